"""The images of data sets: Detectron2's dicts, made when they are asked for.

A :class:`Records` answers what a start of training asks about all images (sizes, classes, which
are annotated, which masks) from arrays, without making a dict.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.data import DatasetFromList

from lt_det.data.class_sets import ClassSets, class_sets_from_pairs
from lt_det.data.datasets.columns import (
    ABSENT,
    NO_MASK,
    RLE_TEXT,
    Columns,
    image_path,
    map_columns,
)
from lt_det.data.ragged import offsets_of, ragged_index
from lt_det.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


class Records(Sequence, ABC):
    """N Detectron2 dataset dicts. Each access makes a new one, which may be changed.

    A subclass holds M images; these are the N of them that `select` has left.

    Attributes:
        widths, heights: (N,) int64 pixels; 0 where a record does not say.

    Args:
        widths, heights: (M,) int64.
    """

    def __init__(self, widths: np.ndarray, heights: np.ndarray):
        self.widths, self.heights = widths, heights
        self._order = np.arange(len(widths))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._make(self._order[index].item())

    def __copy__(self) -> Records:
        # Not by way of __getstate__, which is for other processes.
        result = object.__new__(type(self))
        result.__dict__.update(self.__dict__)
        return result

    def select(self, indices: np.ndarray) -> Records:
        """The images of (any,) indices, in this order."""
        indices = np.asarray(indices, np.int64)
        result = copy.copy(self)
        for name in ("_order", "widths", "heights"):
            setattr(result, name, getattr(self, name)[indices])
        return result

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(A,) int64 image indices, never falling, and (A,) int64 class ids of the annotations.

        Crowds are left out.
        """
        offsets, classes = self._classes()
        sizes = np.diff(offsets)[self._order]
        rows = ragged_index(offsets[self._order], sizes)
        return np.repeat(np.arange(len(self)), sizes), classes[rows]

    def annotated(self) -> np.ndarray:
        """(N,) bool, whether an image has an annotation that is not a crowd."""
        return np.diff(self._classes()[0])[self._order] > 0

    def class_sets(self, num_classes: int) -> ClassSets:
        """Which classes each image holds.

        Raises:
            DataError: a class id that is not in 0..num_classes-1; the message names the image.
        """
        images, classes = self._checked_pairs(num_classes)
        return class_sets_from_pairs(images, classes, len(self), num_classes)

    def instance_counts(self, num_classes: int) -> np.ndarray:
        """(C,) int64 annotations of each class.

        Raises:
            DataError: as in `class_sets`.
        """
        return np.bincount(self._checked_pairs(num_classes)[1], minlength=num_classes)

    def has_image_lists(self) -> bool:
        """Whether any image has LVIS's lists of classes."""
        return bool(self._have_lists()[self._order].any())

    def check_masks(self, mask_format: str) -> None:
        """Find masks that Detectron2's mapper would fail on in the middle of training.

        Args:
            mask_format: ``INPUT.MASK_FORMAT``, "polygon" or "bitmask".

        Raises:
            DataError: an annotation without a mask.
            ConfigError: a mask in RLE although `mask_format` is "polygon".
        """
        unmasked, has_rle = (faults[self._order] for faults in self._mask_faults())
        wrong = unmasked | has_rle if mask_format == "polygon" else unmasked
        if wrong.any():
            _name_mask_fault(self[int(np.argmax(wrong))], mask_format)

    def _checked_pairs(self, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        images, classes = self.pairs()
        wrong = np.flatnonzero((classes < 0) | (classes >= num_classes))
        if len(wrong):
            record = self[int(images[wrong[0]])]
            raise DataError(
                f"category id {classes[wrong[0]]} of image {record.get('file_name')} "
                f"(image id {record.get('image_id')}) is not in 0..{num_classes - 1}"
            )
        return images, classes

    @abstractmethod
    def _make(self, image: int) -> dict:
        """The dict of one of the M images."""

    @abstractmethod
    def _classes(self) -> tuple[np.ndarray, np.ndarray]:
        """(M + 1,) offsets into (A,) class ids of the annotations that are no crowds."""

    @abstractmethod
    def _mask_faults(self) -> tuple[np.ndarray, np.ndarray]:
        """(M,) bool each: an annotation without a mask, one in RLE. Crowds do not count."""

    @abstractmethod
    def _have_lists(self) -> np.ndarray:
        """(M,) bool, whether the record has LVIS's lists."""


def _name_mask_fault(record: dict, mask_format: str) -> None:
    where = f"image id {record['image_id']} ({record['file_name']})"
    for annotation in record["annotations"]:
        mask = annotation.get("segmentation")
        if annotation.get("iscrowd"):
            continue  # not trained on
        if not mask:
            raise DataError(
                f"{where} has an annotation without a mask, box {annotation['bbox']}; "
                "MODEL.MASK_ON False trains on boxes alone"
            )
        if isinstance(mask, dict) and mask_format == "polygon":
            raise ConfigError(
                f"INPUT.MASK_FORMAT is 'polygon' but {where} has a mask in RLE; "
                "set INPUT.MASK_FORMAT bitmask"
            )


class ListRecords(Records):
    """Records of a loader that gives dicts, kept serialised so that processes share them.

    Args:
        records: Detectron2 dataset dicts. Only `width`, `height`, `annotations` and LVIS's lists
            are looked at here, and each of them may be missing.
    """

    def __init__(self, records: Iterable[dict]):
        records = list(records)
        super().__init__(
            np.array([record.get("width", 0) for record in records], np.int64),
            np.array([record.get("height", 0) for record in records], np.int64),
        )
        anns = [
            [ann for ann in record.get("annotations") or () if not ann.get("iscrowd")]
            for record in records
        ]
        self._offsets = offsets_of([len(of_image) for of_image in anns])
        self._class_ids = np.array([a["category_id"] for of in anns for a in of], np.int64)
        masks = [[ann.get("segmentation") for ann in of_image] for of_image in anns]
        self._unmasked = np.array([not all(map(_is_mask, m)) for m in masks], bool)
        self._has_rle = np.array([any(isinstance(x, dict) for x in m) for m in masks], bool)
        self._lists = np.array(["neg_category_ids" in record for record in records], bool)
        # DatasetFromList cannot serialise nothing.
        self._dicts = DatasetFromList(records, copy=False) if records else []

    def _make(self, image: int) -> dict:
        return self._dicts[image]

    def _classes(self) -> tuple[np.ndarray, np.ndarray]:
        return self._offsets, self._class_ids

    def _mask_faults(self) -> tuple[np.ndarray, np.ndarray]:
        return self._unmasked, self._has_rle

    def _have_lists(self) -> np.ndarray:
        return self._lists


def _is_mask(mask) -> bool:
    # An array, which has no truth value, is a mask too.
    return len(mask) > 0 if hasattr(mask, "__len__") else mask is not None


class ColumnRecords(Records):
    """Records of a data set in columns.

    Args:
        columns: of M images.
        image_root: folder of the images.
        name_keys: "coco_url" and "file_name", the one that names an image that has both first.
        with_lists: the records have LVIS's lists.
        source: file that the columns are mapped from and its `about`; another process then maps
            it too instead of getting a copy. None = they are in memory only.
    """

    def __init__(
        self,
        columns: Columns,
        image_root: str,
        name_keys: tuple[str, str],
        *,
        with_lists: bool,
        source: tuple[str, dict] | None = None,
    ):
        super().__init__(columns.widths, columns.heights)
        self._columns, self._image_root, self._name_keys = columns, image_root, name_keys
        self._with_lists, self._source = with_lists, source

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        if self._source is not None:
            for name in ("_columns", "widths", "heights"):
                del state[name]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._source is not None:
            path, about = self._source
            try:
                self._columns, found = map_columns(path)
            except (OSError, ValueError) as e:
                raise DataError(f"{path} changed while a process was starting: {e}") from e
            if found != about:
                raise DataError(f"{path} was made anew while a process was starting; start again")
            self.widths = self._columns.widths[self._order]
            self.heights = self._columns.heights[self._order]

    def _make(self, image: int) -> dict:
        columns = self._columns
        record = {
            "file_name": self.file_name(image),
            "height": columns.heights[image].item(),
            "width": columns.widths[image].item(),
            "image_id": columns.image_ids[image].item(),
        }
        if self._with_lists:
            start, stop = columns.partial_offsets[image : image + 2].tolist()
            record["not_exhaustive_category_ids"] = columns.partial_classes[start:stop].tolist()
            start, stop = columns.absent_offsets[image : image + 2].tolist()
            record["neg_category_ids"] = columns.absent_classes[start:stop].tolist()
        record["annotations"] = columns.annotations(image)
        return record

    def file_name(self, image: int) -> str:
        """Path of one of the M images."""
        for key in self._name_keys:
            name = self._columns.image_name(image, key)
            if name:
                break
        return image_path(self._image_root, key, name)

    def _classes(self) -> tuple[np.ndarray, np.ndarray]:
        columns = self._columns
        crowd = self._crowds()
        if not crowd.any():
            return columns.ann_offsets, columns.class_ids
        before = offsets_of(~crowd)
        return before[columns.ann_offsets], columns.class_ids[~crowd]

    def _crowds(self) -> np.ndarray:
        return (self._columns.crowds != 0) & (self._columns.crowds != ABSENT)

    def _mask_faults(self) -> tuple[np.ndarray, np.ndarray]:
        kinds, counted = self._columns.mask_kinds, ~self._crowds()
        return self._any((kinds == NO_MASK) & counted), self._any((kinds >= RLE_TEXT) & counted)

    def _any(self, which: np.ndarray) -> np.ndarray:
        """(M,) bool, whether (A,) bool holds for any annotation of an image."""
        return np.diff(offsets_of(which)[self._columns.ann_offsets]) > 0

    def _have_lists(self) -> np.ndarray:
        return np.full(len(self._columns), self._with_lists)


class JoinedRecords(Records):
    """The images of several sets, one set after the other.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: Sequence[Records]):
        super().__init__(
            np.concatenate([part.widths for part in parts]),
            np.concatenate([part.heights for part in parts]),
        )
        self._parts = list(parts)
        self._starts = offsets_of([len(part) for part in parts])

    def _make(self, image: int) -> dict:
        part = int(np.searchsorted(self._starts, image, side="right")) - 1
        return self._parts[part][image - self._starts[part].item()]

    def _classes(self) -> tuple[np.ndarray, np.ndarray]:
        pairs = [part.pairs() for part in self._parts]
        sizes = [
            np.bincount(p[0], minlength=len(part))
            for p, part in zip(pairs, self._parts, strict=True)
        ]
        return offsets_of(np.concatenate(sizes)), np.concatenate([classes for _, classes in pairs])

    def _mask_faults(self) -> tuple[np.ndarray, np.ndarray]:
        faults = [[f[part._order] for f in part._mask_faults()] for part in self._parts]
        return tuple(np.concatenate(of_parts) for of_parts in zip(*faults, strict=True))

    def _have_lists(self) -> np.ndarray:
        return np.concatenate([part._have_lists()[part._order] for part in self._parts])


def as_records(records: Sequence[dict]) -> Records:
    """`records` themselves if they are Records, else a ListRecords of them."""
    return records if isinstance(records, Records) else ListRecords(records)


def join_records(parts: Sequence[Sequence[dict]]) -> Records:
    """The images of all parts, one part after the other."""
    parts = [as_records(part) for part in parts]
    return parts[0] if len(parts) == 1 else JoinedRecords(parts)


def drop_unannotated(records: Records) -> Records:
    """`records` without images that have no annotation but crowds, as Detectron2 does it."""
    annotated = records.annotated()
    logger.info(
        "Removed %d images with no usable annotations. %d images left.",
        len(records) - annotated.sum(),
        annotated.sum(),
    )
    return records if annotated.all() else records.select(np.flatnonzero(annotated))
