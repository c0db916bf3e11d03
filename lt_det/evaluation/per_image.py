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
from torch.nn.functional import embedding_bag

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.arrays import read_arrays
from lt_det.evaluation.classification_predictions import PREDICTIONS_FILE, read_class_predictions
from lt_det.evaluation.lvis_api import matches_path
from lt_det.evaluation.lvis_matching import Matches
from lt_det.evaluation.results import class_values
from lt_det.evaluation.sem_seg_predictions import IMAGES_FILE

# Percent; JSON keeps all digits, but sums may be taken in another order.
_SAME = 1e-6
# Thresholds of recall as lvis.LVISEval has them; AP is the mean precision over them.
_RECALLS = np.linspace(0, 1, 101)
# Some are a rounding error above j / 100, and not reached by a recall of exactly j / 100.
_LATE = (_RECALLS > np.arange(101) / 100).astype(np.float32)
# Events times classes of a chunk; with 500 weightings an array of 2 MB of float32.
_CHUNK = 1024
# With more objects of a class than this, 100 times their sum is not exact in float32.
_FLOAT32_OBJECTS = 2**16


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
    found = read_per_image(folder, len(record["per_class"]["name"]))
    found = [images for images in found if images.part in record["metrics"]]
    missing = set(record["metrics"]) - {images.part for images in found}
    if missing:
        raise MissingFileError(
            f"{os.fspath(folder)} has no file of {sorted(missing)[0]}, which the record of "
            f"{record['dataset']} has; evaluate the run again to have it"
        )
    for images in found:
        column = f"{images.part}/{images.column}"
        values = images.class_values(torch.ones(len(images.image_ids), 1, dtype=torch.float64))
        recorded = class_values(record, column)
        other = np.flatnonzero(np.abs(values[:, 0] - recorded) > _SAME)
        if len(other):
            k = other[0]
            raise DataError(
                f"the files in {os.fspath(folder)} are of another evaluation than the record of "
                f"{record['dataset']}: {column} of class {record['per_class']['name'][k]!r} is "
                f"{values[k, 0]:.3f} there and {recorded[k]:.3f} in the record"
            )
    return found


class _Sums:
    """Sums of the weights of images, by bag.

    Args:
        bags: (N,) ints 0..K-1, the sum that ...
        images: (N,) ints, ... this image enters.
        num_bags: K.
        amounts: (N,) what the weight is multiplied with; None: 1.
    """

    def __init__(self, bags, images, num_bags: int, amounts=None):
        order = np.argsort(bags, kind="stable")
        starts = np.searchsorted(bags[order], np.arange(num_bags))
        self._starts = torch.from_numpy(starts)
        self._images = torch.from_numpy(images[order].astype(np.int64))
        self._amounts = None if amounts is None else torch.from_numpy(amounts[order])

    def __call__(self, weights: torch.Tensor) -> np.ndarray:
        """(K, B) of (I, B) weights."""
        amounts = None if self._amounts is None else self._amounts.to(weights.dtype)
        sums = embedding_bag(
            self._images, weights, self._starts, mode="sum", per_sample_weights=amounts
        )
        return sums.numpy()


# ---------------------------------------------------------------------------------------------
# Detection
# ---------------------------------------------------------------------------------------------


class DetectionImages:
    """AP of boxes or masks as LVIS defines it, for weighted images.

    The value of a class is that of a set in which an image with weight w is w times, matched
    once: detections stay in the order of their scores, and count as often as their image. (If
    several detections of one image have one score, those of its copies would take turns in such
    a set. Here each stays beside its own copies.)

    Precision matters only at true positives, which are few: what lies between two of them is
    added up once for all thresholds.

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
        self._objects = _Sums(gt_class, gt_image, self.num_classes)
        self._most_objects = np.bincount(gt_class, minlength=1).max()
        self.truth_image, self.truth_class = _unique_pairs(
            gt_image, gt_class, len(self.image_ids), self.num_classes
        )
        self._thresholds = len(matches.thresholds)
        self._chunks = _chunks(matches, np.unique(gt_class), len(self.image_ids))

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


class _Chunk:
    """Detections of K classes with about equally many events, which are computed together.

    An event is a detection that is a true positive at some threshold, or counts at some and is
    ignored at others. What is between two events is a false positive at all thresholds, or
    ignored at all. Classes with fewer than E events are filled up with events of weight zero.

    Args:
        classes: (K,) class ids.
        events: (E, K) numbers of the events of each class, by falling score; -1 fills up.
        event_image: (V,) image of each event.
        is_tp, counts: (T, V) bool, true positive, not ignored.
        plain_event, plain_image: (N,) the next event after each plain false positive of any
            class, ascending, and its image.
        num_images: I.
    """

    def __init__(
        self, classes, events, event_image, is_tp, counts, plain_event, plain_image, num_images
    ):
        self.classes = classes
        filled = events < 0
        self._event_image = torch.from_numpy(np.where(filled, num_images, event_image[events]))
        self._is_tp = (is_tp[:, events] & ~filled)[..., None]
        self._counts = (counts[:, events] & ~filled)[..., None]
        # The plain detections before each event: a range of the ascending `plain_event`.
        first = np.searchsorted(plain_event, events.ravel(), side="left")
        length = np.searchsorted(plain_event, events.ravel(), side="right") - first
        length[filled.ravel()] = 0
        bags = np.repeat(np.arange(events.size), length)
        place = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        self._plain = _Sums(bags, plain_image[first[bags] + place], events.size)

    def ap(self, weights: torch.Tensor, objects: np.ndarray) -> np.ndarray:
        """(K, B) AP as a fraction, of (I + 1, B) weights and (K, B) sums of weighted objects."""
        weight = weights[self._event_image].numpy()
        plain = self._plain(weights).reshape(weight.shape)
        objects = np.maximum(objects, 1)
        ap = np.zeros_like(objects)
        for is_tp, counts in zip(self._is_tp, self._counts, strict=True):
            tp = _running(np.add, weight * is_tp)
            detections = _running(np.add, plain + weight * counts)
            np.maximum(detections, 1, out=detections)  # where there is none, there is no tp
            precision = np.divide(tp, detections, out=detections)
            # Highest precision at this recall or a larger one.
            _running(np.maximum, precision[::-1])
            recalls = _recalls_reached(tp, objects)
            precision[1:] *= recalls[1:] - recalls[:-1]
            precision[0] *= recalls[0]
            ap += precision.sum(axis=0)
        return ap / (len(self._is_tp) * len(_RECALLS))


def _chunks(matches: Matches, classes: np.ndarray, num_images: int) -> list[_Chunk]:
    """The detections of `classes` that matter, in chunks."""
    matched, ignored = matches.matched[0], matches.ignored[0]
    is_tp, counts = matched & ~ignored, ~ignored
    wanted = np.isin(matches.det_class, classes)
    event = wanted & (is_tp.any(axis=0) | (counts.any(axis=0) & ~counts.all(axis=0)))
    places = np.flatnonzero(event)
    if not len(places):
        return []
    event_class = matches.det_class[places]
    # The next event after each detection; after the last one of a class nothing matters.
    following = np.minimum(np.cumsum(event), len(places) - 1)
    plain = wanted & ~event & counts.all(axis=0)
    plain &= event_class[following] == matches.det_class
    plain &= places[following] > np.arange(len(following))
    shared = {
        "event_image": matches.det_image[places].astype(np.int64),
        "is_tp": is_tp[:, places],
        "counts": counts[:, places],
        "plain_event": following[plain],
        "plain_image": matches.det_image[plain],
        "num_images": num_images,
    }
    classes, first, sizes = np.unique(event_class, return_index=True, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    chunks = []
    while len(order):
        most = sizes[order[0]]
        part, order = np.split(order, [max(1, _CHUNK // most)])
        at = np.arange(most)[:, None]
        events = np.where(at < sizes[part], first[part] + at, -1)
        chunks.append(_Chunk(classes[part], events, **shared))
    return chunks


def _running(operation: np.ufunc, values: np.ndarray) -> np.ndarray:
    """``operation.accumulate`` along the first axis, in place; 30 times as fast where rows are."""
    for last, row in zip(values[:-1], values[1:], strict=True):
        operation(row, last, out=row)
    return values


def _recalls_reached(tp: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """How many of the 101 thresholds are at most ``tp / objects``, for whole numbers."""
    hundredfold = 100 * tp
    percent = np.floor(hundredfold / objects)
    late = _LATE.astype(tp.dtype)[percent.astype(np.intp)]
    late *= percent * objects == hundredfold
    percent += 1
    percent -= late
    return percent


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
        self._hits = _Sums(self.truth_class[hits], hits, num_classes)
        self._images = _Sums(self.truth_class, self.truth_image, num_classes)

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
        self._pixels = [_Sums(np.asarray(classes), image, num_classes, row) for row in pixels]
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
