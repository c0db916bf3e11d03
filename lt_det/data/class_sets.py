"""Which classes each image holds, for all images at once.

Samplers and class counts need nothing else of a data set, so boxes, label maps and image labels
all come down to this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lt_det.data.ragged import offsets_of, ragged_index
from lt_det.errors import DataError


@dataclass(frozen=True, eq=False)  # arrays have no one-bool equality
class ClassSets:
    """The set of classes of each of N images, in compressed rows.

    Image i holds ``classes[offsets[i]:offsets[i + 1]]``.

    Attributes:
        offsets: (N + 1,) int64, from 0, never falling.
        classes: (P,) int64 class ids 0..C-1; ascending and each once within an image.
        num_classes: C.
    """

    offsets: np.ndarray
    classes: np.ndarray
    num_classes: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, image: int) -> np.ndarray:
        """(any,) class ids of one image."""
        return self.classes[self.offsets[image] : self.offsets[image + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """(N,) int64, how many classes each image holds."""
        return np.diff(self.offsets)

    def image_of_pair(self) -> np.ndarray:
        """(P,) int64, the image that each entry of `classes` belongs to."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def image_counts(self) -> np.ndarray:
        """(C,) int64, images that hold each class."""
        return np.bincount(self.classes, minlength=self.num_classes)

    def largest(self, values: np.ndarray, empty: float) -> np.ndarray:
        """(N,) the largest of (C,) `values` over the classes of each image; `empty` without.

        Raises:
            ValueError: not one value for each class.
        """
        values = np.asarray(values)
        if values.shape != (self.num_classes,):
            raise ValueError(f"{values.shape} values for {self.num_classes} classes")
        result = np.full(len(self), empty, dtype=values.dtype)
        filled = self.sizes > 0
        # Segments between the starts of images that hold something: empty ones have no entry
        # of their own, and `reduceat` would give them their neighbour's first.
        if filled.any():
            result[filled] = np.maximum.reduceat(values[self.classes], self.offsets[:-1][filled])
        return result

    def select(self, images: np.ndarray) -> ClassSets:
        """The sets of the images of these indices, in this order."""
        images = np.asarray(images, dtype=np.int64)
        sizes = self.sizes[images]
        classes = self.classes[ragged_index(self.offsets[:-1][images], sizes)]
        return ClassSets(offsets_of(sizes), classes, self.num_classes)


def class_sets_from_pairs(
    images: np.ndarray, classes: np.ndarray, num_images: int, num_classes: int
) -> ClassSets:
    """Class sets from (image, class) pairs in any order; repeated pairs count once.

    Args:
        images: (P,) ints 0..num_images-1.
        classes: (P,) ints 0..num_classes-1.
        num_images: N; images without a pair hold nothing.
        num_classes: C.

    Raises:
        DataError: an image or class id out of range.
    """
    images, classes = np.asarray(images, np.int64), np.asarray(classes, np.int64)
    _check_range("image index", images, num_images)
    _check_range("class id", classes, num_classes)
    # Sorting is several times faster here than numpy.unique, which hashes since numpy 2.3.
    keys = np.sort(images * max(num_classes, 1) + classes)
    keys = keys[np.append(True, np.diff(keys) > 0)[: len(keys)]]
    sizes = np.bincount(keys // max(num_classes, 1), minlength=num_images)
    return ClassSets(offsets_of(sizes), keys % max(num_classes, 1), num_classes)


def class_sets_from_labels(labels: Sequence[int] | np.ndarray, num_classes: int) -> ClassSets:
    """Class sets of images with (N,) one label 0..C-1 each.

    Raises:
        DataError: a label out of range.
    """
    labels = np.asarray(labels, np.int64)
    _check_range("label", labels, num_classes)
    return ClassSets(np.arange(len(labels) + 1), labels, num_classes)


def instances_of_pairs(images: np.ndarray, classes: np.ndarray, sets: ClassSets) -> np.ndarray:
    """(P,) int64, annotations behind each entry of ``sets.classes``.

    Args:
        images: (A,) int64, image index of each annotation.
        classes: (A,) int64, its class id.
        sets: what `class_sets_from_pairs` makes of them.
    """
    number = max(sets.num_classes, 1)
    keys = sets.image_of_pair() * number + sets.classes
    return np.bincount(np.searchsorted(keys, images * number + classes), minlength=len(keys))


def expected_per_class(
    sets: ClassSets, repeats: np.ndarray, amount_of_pair: np.ndarray | None = None
) -> np.ndarray:
    """(C,) float64, images (or instances, pixels) of each class in an epoch, on average.

    Args:
        sets: of the N images.
        repeats: (N,) how often each image comes in the epoch.
        amount_of_pair: (P,) what an image holds of a class; None: one.
    """
    weights = repeats[sets.image_of_pair()]
    if amount_of_pair is not None:
        weights = weights * amount_of_pair
    return np.bincount(sets.classes, weights, minlength=sets.num_classes)


def _check_range(what: str, values: np.ndarray, number: int) -> None:
    wrong = np.flatnonzero((values < 0) | (values >= number))
    if len(wrong):
        raise DataError(f"{what} {values[wrong[0]]} (entry {wrong[0]}) is not in 0..{number - 1}")
