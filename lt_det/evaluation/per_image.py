"""What each test image contributes to a result, so that images can be weighted.

An evaluation leaves a file from which the value of every class (AP, accuracy, IoU) follows for
any weighting of its test images, without matching or comparing anything again. With weights
drawn at random this is the bootstrap of :mod:`lt_det.evaluation.bootstrap`; with all weights one
it is the result itself.

Here I is the number of images, C of classes, T of IoU thresholds, and B of weightings that are
computed at once. A weight is how often an image is in the set: a whole number >= 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.arrays import read_arrays
from lt_det.evaluation.classification_predictions import PREDICTIONS_FILE, read_class_predictions
from lt_det.evaluation.lvis_api import matches_path
from lt_det.evaluation.lvis_matching import Matches
from lt_det.evaluation.results import class_values
from lt_det.evaluation.sem_seg_predictions import IMAGES_FILE
from lt_det.evaluation.weighted_ap import WeightSums, make_chunks

# With more objects of a class than this, 100 times their sum is not exact in float32.
_FLOAT32_OBJECTS = 2**16
# Percent; JSON keeps all digits, but sums may be taken in another order.
_SAME = 1e-6


class PerImage(Protocol):
    """What the three kinds of results below have in common.

    Attributes:
        part: of the record's metrics: "bbox", "segm", "classification" or "sem_seg".
        column: the record's column of the class values, without the part.
        image_ids: (I,) ids or names, unique, ascending.
        num_classes: C.
        truth_image: (P,) int64 images (0..I-1) that hold ...
        truth_class: (P,) int64 ... these classes in the ground truth; each pair once.
    """

    part: str
    column: str
    image_ids: np.ndarray
    num_classes: int
    truth_image: np.ndarray
    truth_class: np.ndarray

    def class_values(self, weights: torch.Tensor) -> np.ndarray:
        """The values of the classes for each weighting.

        Args:
            weights: (I, B) float32 or float64 whole numbers >= 0.

        Returns:
            (C, B) percent, NaN where no image that has a weight holds the class.
        """
        ...

    def overall_values(self, weights: torch.Tensor) -> dict[str, np.ndarray]:
        """(B,) percent of the metrics that are no mean over classes, by name in the record."""
        ...


def read_per_image(folder: str | os.PathLike, num_classes: int) -> list[PerImage]:
    """What an evaluation has left in its folder, ``<run>/inference/<data set>``.

    Args:
        folder: see above.
        num_classes: C of the record.

    Returns:
        One entry for each part that was measured, e.g. boxes and masks.

    Raises:
        MissingFileError: the folder has no file to read.
        DataError: a file cannot be read, or is of another number of classes.
    """
    folder = os.fspath(folder)
    readers = {
        matches_path(folder, "bbox"): read_detection,
        matches_path(folder, "segm"): read_detection,
        os.path.join(folder, PREDICTIONS_FILE): read_classification,
        os.path.join(folder, IMAGES_FILE): read_segmentation,
    }
    found = [read(path, num_classes) for path, read in readers.items() if os.path.isfile(path)]
    if not found:
        names = ", ".join(map(os.path.basename, readers))
        raise MissingFileError(
            f"{folder} has none of {names}; evaluate the run again with --eval-only or, if its "
            "detections were kept, these with tools/evaluate_json.py"
        )
    return found


def read_images_of_record(folder: str | os.PathLike, record: Mapping) -> list[PerImage]:
    """What the test images contribute to a result record, checked against it.

    Args:
        folder: of the files, see :func:`read_per_image`.
        record: the result record.

    Raises:
        MissingFileError: the folder lacks the files of a part of the record.
        DataError: a file cannot be read, or is of another evaluation than the record.
    """
    found = read_per_image(folder, len(record["per_class"].get("name", ())))
    found = [images for images in found if images.part in record["metrics"]]
    missing = set(record["metrics"]) - {images.part for images in found}
    if missing:
        raise MissingFileError(
            f"{os.fspath(folder)} has no file of {sorted(missing)[0]}, which the record of "
            f"{record['dataset']} has; evaluate the run again to have it"
        )
    for images in found:
        _check_recorded(images, record, os.fspath(folder))
    return found


def _check_recorded(images: PerImage, record: Mapping, folder: str) -> None:
    """Raise DataError unless the class values are those of the record."""
    column = f"{images.part}/{images.column}"
    values = images.class_values(torch.ones(len(images.image_ids), 1, dtype=torch.float64))[:, 0]
    recorded = class_values(record, column)
    held = np.isin(np.arange(images.num_classes), images.truth_class)
    same = np.where(held, np.abs(values - recorded) <= _SAME, np.isnan(recorded))
    if not same.all():
        k = int(np.argmin(same))
        raise DataError(
            f"the files in {folder} are of another evaluation than the record of "
            f"{record['dataset']}: {column} of class {record['per_class']['name'][k]!r} is "
            f"{values[k]:.3f} there and {recorded[k]:.3f} in the record"
        )


# ---------------------------------------------------------------------------------------------
# Detection
# ---------------------------------------------------------------------------------------------


class DetectionImages:
    """AP of boxes or masks as LVIS defines it, for weighted images.

    The value of a class is that of a set in which an image with weight w is w times, matched
    once: detections stay in the order of their scores, and count as often as their image. (If
    several detections of one image have one score, those of its copies would take turns in such
    a set. Here each stays beside its own copies.)

    What the limits of the protocol have left out stays out: a limit per class over the whole set
    is not drawn anew for a resample.

    Args:
        matches: of a task.
    """

    column = "AP"

    def __init__(self, matches: Matches):
        self.part = matches.task
        self.image_ids = matches.image_ids
        self.num_classes = len(matches.category_ids)
        counted = ~matches.gt_ignored[0]
        gt_image = matches.gt_image[counted].astype(np.int64)
        gt_class = matches.gt_class[counted].astype(np.int64)
        self._objects = WeightSums(gt_class, gt_image, self.num_classes)
        self._most_objects = np.bincount(gt_class, minlength=1).max()
        self.truth_image, self.truth_class = _unique_pairs(
            gt_image, gt_class, len(self.image_ids), self.num_classes
        )
        self._chunks = make_chunks(matches, np.unique(gt_class), len(self.image_ids))

    def class_values(self, weights: torch.Tensor) -> np.ndarray:
        """(C, B) AP in percent; NaN: no object. See :class:`PerImage`."""
        if self._most_objects > _FLOAT32_OBJECTS:
            weights = weights.double()
        objects = self._objects(weights)
        ap = np.zeros_like(objects)
        # A weight of zero for what fills a chunk up.
        weights = torch.cat([weights, weights.new_zeros(1, weights.shape[1])])
        for chunk in self._chunks:
            ap[chunk.classes] = chunk.ap(weights, objects[chunk.classes])
        ap[objects == 0] = np.nan
        return 100 * ap

    def overall_values(self, weights: torch.Tensor) -> dict[str, np.ndarray]:
        """None: AP is a mean over classes."""
        return {}


def read_detection(path: str | os.PathLike, num_classes: int) -> DetectionImages:
    """Of a ``matches_<task>.npz``; see :func:`read_per_image`."""
    matches = Matches.load(path)
    if len(matches.category_ids) != num_classes:
        raise DataError(f"{path} is of {len(matches.category_ids)} classes, not {num_classes}")
    return DetectionImages(matches)


# ---------------------------------------------------------------------------------------------
# Classification and segmentation
# ---------------------------------------------------------------------------------------------


class ClassificationImages:
    """Accuracy of each class, and top-1, for weighted images.

    Args:
        image_ids: (I,) ids, ascending.
        labels: (I,) ints, 0..C-1.
        correct: (I,) bool, the class of the highest score is the label.
        num_classes: C.
    """

    part = "classification"
    column = "accuracy"

    def __init__(self, image_ids, labels, correct, num_classes: int):
        self.image_ids = np.asarray(image_ids)
        self.num_classes = num_classes
        self.truth_image = np.arange(len(labels))
        self.truth_class = np.asarray(labels)
        hits = np.flatnonzero(correct)
        self._hits = WeightSums(self.truth_class[hits], hits, num_classes)
        self._images = WeightSums(self.truth_class, self.truth_image, num_classes)

    def class_values(self, weights: torch.Tensor) -> np.ndarray:
        """(C, B) accuracy in percent; NaN: no image. See :class:`PerImage`."""
        return 100 * _shares(self._hits(weights), self._images(weights))

    def overall_values(self, weights: torch.Tensor) -> dict[str, np.ndarray]:
        """{"top1": (B,) percent of the images}."""
        return {"top1": 100 * self._hits(weights).sum(axis=0) / self._images(weights).sum(axis=0)}


def read_classification(path: str | os.PathLike, num_classes: int) -> ClassificationImages:
    """Of a ``predictions.npz``; see :func:`read_per_image`."""
    arrays = read_class_predictions(path, num_classes, scores=False)
    correct = arrays["top_classes"][:, 0] == arrays["labels"]
    return ClassificationImages(arrays["image_ids"], arrays["labels"], correct, num_classes)


class SegmentationImages:
    """IoU of each class for weighted images.

    A class that no image holds, but that some predict, has IoU 0 where it is predicted: so it
    enters the mean, see :func:`lt_det.evaluation.sem_seg_metrics.counted_iou`. A class that some
    image holds has no value where none of those has a weight.

    Args:
        image_ids: (I,) names, ascending.
        image: (N,) ints 0..I-1, ...
        classes: (N,) ints 0..C-1, ... classes in the labels or the prediction of that image.
        pixels: (3, N) int64 pixels of the class there: correct, labelled, predicted.
        num_classes: C.
    """

    part = "sem_seg"
    column = "IoU"

    def __init__(self, image_ids, image, classes, pixels, num_classes: int):
        self.image_ids = np.asarray(image_ids)
        self.num_classes = num_classes
        in_labels = pixels[1] > 0
        self.truth_image = np.asarray(image)[in_labels].astype(np.int64)
        self.truth_class = np.asarray(classes)[in_labels].astype(np.int64)
        self._pixels = [WeightSums(np.asarray(classes), image, num_classes, row) for row in pixels]
        self._never_labelled = np.bincount(self.truth_class, minlength=num_classes) == 0

    def class_values(self, weights: torch.Tensor) -> np.ndarray:
        """(C, B) IoU in percent; NaN: see the class and :class:`PerImage`."""
        # Sums of pixels are not exact in float32.
        correct, labelled, predicted = (pixels(weights.double()) for pixels in self._pixels)
        union = labelled + predicted - correct
        union[(labelled == 0) & ~self._never_labelled[:, None]] = 0
        return 100 * _shares(correct, union)

    def overall_values(self, weights: torch.Tensor) -> dict[str, np.ndarray]:
        """None: mIoU is a mean over classes."""
        return {}


def read_segmentation(path: str | os.PathLike, num_classes: int) -> SegmentationImages:
    """Of a ``sem_seg_images.npz``; see :func:`read_per_image`."""
    names = ("image_ids", "image", "classes", "pixels", "confusion")
    image_ids, image, classes, pixels, confusion = read_arrays(path, names).values()
    if len(confusion) != num_classes:
        raise DataError(f"{path} is of {len(confusion)} classes, not {num_classes}")
    return SegmentationImages(image_ids, image, classes, pixels, num_classes)


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _unique_pairs(image, classes, num_images: int, num_classes: int):
    """The pairs of image and class, each once."""
    pairs = np.unique(image * num_classes + classes)
    return pairs // num_classes, pairs % num_classes
