"""Records of image classification: one file and one label each."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence

import numpy as np
from detectron2.utils.file_io import PathManager

from lt_det.data.class_sets import ClassSets, class_sets_from_labels
from lt_det.data.datasets.image_list import ImageList
from lt_det.errors import DataError, MissingFileError

logger = logging.getLogger(__name__)

# Names in a warning about many classes or images.
SHOWN = 5


class ImageListRecords(Sequence):
    """The images of a list file as ``{"file_name", "image_id", "label"}`` dicts.

    Held in a few arrays, so that loader processes share them: a million dicts would take some
    hundred MB in each.

    Attributes:
        source: the list file.
        image_root: folder that the paths of the list are relative to, absolute.
        image_ids: (N,) int64, the place of each image in its list, from 0.
        labels: (N,) int64.

    Args:
        image_list: paths and labels.
        image_root: as above; addresses like ``s3://...`` stay as they are.
    """

    def __init__(self, image_list: ImageList, image_root: str | os.PathLike):
        root = os.fspath(image_root)
        self.source = image_list.source
        self.image_root = root if "://" in root else os.path.abspath(root)
        self.image_ids = np.arange(len(image_list))
        self.labels = np.asarray(image_list.labels, np.int64)
        names = [os.fsencode(path) for path in image_list.paths]
        self._heap = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._starts = self._ends - np.fromiter(map(len, names), np.int64, len(names))

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The path of one image as the list has it."""
        return os.fsdecode(self._heap[self._starts[index] : self._ends[index]])

    def file_name(self, index: int) -> str:
        """The path of one image, with the image folder."""
        return os.path.join(self.image_root, self.path(index))

    def __getitem__(self, index: int) -> dict:
        return {
            "file_name": self.file_name(index),
            "image_id": int(self.image_ids[index]),
            "label": int(self.labels[index]),
        }

    def select(self, images: np.ndarray) -> ImageListRecords:
        """The images of these indices, in this order; they keep their ids."""
        images = np.asarray(images, np.int64)
        chosen = object.__new__(ImageListRecords)
        chosen.__dict__.update(self.__dict__)
        for name in ("image_ids", "labels", "_starts", "_ends"):
            setattr(chosen, name, getattr(self, name)[images])
        return chosen

    def class_sets(self, num_classes: int) -> ClassSets:
        """The one class of each image.

        Raises:
            DataError: a label out of range.
        """
        check_labels(self, num_classes)
        return class_sets_from_labels(self.labels, num_classes)

    def digest(self) -> str:
        """SHA-256 hex digest of all paths in order, the image folder included."""
        digest = hashlib.sha256(f"{self.image_root}\n".encode(errors="surrogateescape"))
        digest.update((self._ends - self._starts).tobytes())
        for start, end in zip(self._starts.tolist(), self._ends.tolist(), strict=True):
            digest.update(self._heap[start:end])
        return digest.hexdigest()


def check_image_records(
    records: ImageListRecords,
    num_classes: int,
    *,
    class_names: Sequence[str] | None = None,
    may_be_empty: bool = False,
) -> None:
    """Check what can be checked without opening every file.

    Only the first image is looked up on disk; the others would take minutes on a network disk.

    Args:
        records: of one list.
        num_classes: C.
        class_names: (C,) for the warning about classes without an image; numbers without.
        may_be_empty: no such warning, as for a test set of some classes.

    Raises:
        MissingFileError: the image folder or the first image is not there.
        DataError: a label that is not in 0..C-1.
    """
    check_labels(records, num_classes)
    _check_folder(records)
    empty = np.flatnonzero(np.bincount(records.labels, minlength=num_classes) == 0)
    if len(empty) and not may_be_empty:
        shown = [str(class_names[k] if class_names else k) for k in empty[:SHOWN]]
        more = ", ..." if len(empty) > SHOWN else ""
        logger.warning(
            f"{len(empty)} of {num_classes} classes have no image in {records.source}: "
            f"{', '.join(shown)}{more}"
        )


def check_labels(records: ImageListRecords, num_classes: int) -> None:
    """Raise a DataError that names list, line, label and class number unless all are < C."""
    wrong = np.flatnonzero((records.labels < 0) | (records.labels >= num_classes))
    if len(wrong):
        first = wrong[0]
        raise DataError(
            f"{records.source} line {records.image_ids[first] + 1} (not counting blank ones): "
            f"label {records.labels[first]} of {records.path(first)} is not in "
            f"0..{num_classes - 1} ({num_classes} classes); {len(wrong)} labels in all are not"
        )


def _check_folder(records: ImageListRecords) -> None:
    root = records.image_root
    hint = "Check `images` of this data set in DATASETS.LT.REGISTER."
    if "://" not in root and not os.path.isdir(root):
        raise MissingFileError(
            f"image folder {root} of list file {records.source} does not exist. {hint} The paths "
            f"of the list are relative to it; the first one is {records.path(0)}."
        )
    first = records.file_name(0)
    if not PathManager.isfile(first):
        raise MissingFileError(
            f"image {first}, the first of list file {records.source}, does not exist, but the "
            f"image folder {root} does. {hint} The list has the path {records.path(0)}."
        )
