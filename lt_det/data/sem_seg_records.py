"""Records of semantic segmentation: an image and a label map each."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np


class SemSegRecords(Sequence):
    """``{"file_name", "sem_seg_file_name", "zero_is_unlabelled"}`` dicts.

    Held in a few arrays, so that loader processes share them. The last key says what the values
    of the label map mean, see `datasets.label_png`; Detectron2 does not have it.

    Args:
        file_names: (N,) paths of images.
        label_files: (N,) paths of label maps.
        zero_is_unlabelled: (N,) bool.
    """

    def __init__(
        self,
        file_names: Sequence[str],
        label_files: Sequence[str],
        zero_is_unlabelled: np.ndarray,
    ):
        # Arrays of bytes, as long as the longest path each. No path ends with the byte 0, which
        # such arrays cut off.
        self._images = np.array([os.fsencode(path) for path in file_names], dtype=np.bytes_)
        self._labels = np.array([os.fsencode(path) for path in label_files], dtype=np.bytes_)
        self._zero = np.asarray(zero_is_unlabelled, dtype=bool)

    def __len__(self) -> int:
        return len(self._zero)

    def __getitem__(self, index: int) -> dict:
        return {
            "file_name": os.fsdecode(self._images[index]),
            "sem_seg_file_name": os.fsdecode(self._labels[index]),
            "zero_is_unlabelled": bool(self._zero[index]),
        }

    def label_files(self) -> list[str]:
        """(N,) paths of the label maps."""
        return [os.fsdecode(path) for path in self._labels]

    def select(self, images: np.ndarray) -> SemSegRecords:
        """The records of these indices, in this order."""
        images = np.asarray(images, np.int64)
        chosen = object.__new__(SemSegRecords)
        chosen._images, chosen._labels = self._images[images], self._labels[images]
        chosen._zero = self._zero[images]
        return chosen


def join_sem_seg_records(parts: Sequence[SemSegRecords]) -> SemSegRecords:
    """The records of several sets, one after the other; what their label maps mean may differ."""
    joined = object.__new__(SemSegRecords)
    for key in ("_images", "_labels", "_zero"):
        setattr(joined, key, np.concatenate([getattr(part, key) for part in parts]))
    return joined
