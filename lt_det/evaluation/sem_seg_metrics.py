"""Measures of semantic segmentation, as functions of label maps.

A label map is an (H, W) numpy array of class ids 0..C-1 with 255 where the label is ignored, so
that C is at most 255. All measures follow from three numbers of pixels per class, its
:class:`Areas`; results are fractions in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from lt_det.evaluation.groups import group_means

IGNORED = 255
# Names of the groups in semantic segmentation; letters of lt_det.evaluation.groups.
SIZES = {"head": "f", "common": "c", "tail": "r"}
# Of the diagonal of an image: Cheng et al. 2021.
BOUNDARY_SHARE = 0.02
# Scores that are looked at together: 2 MiB of float32, what the cache of a core holds.
_BLOCK = 2**19


class Areas(NamedTuple):
    """Pixels of each class, (C,) int64, over those whose label is not ignored.

    Attributes:
        correct: of this class in labels and prediction.
        labelled: of this class in the labels.
        predicted: of this class in the prediction.
    """

    correct: np.ndarray
    labelled: np.ndarray
    predicted: np.ndarray


# ---------------------------------------------------------------------------------------------
# From maps to pixels
# ---------------------------------------------------------------------------------------------


def top_class(scores: torch.Tensor) -> torch.Tensor:
    """(H, W) uint8 class of the highest score; of equal scores the lower class id, as argmax.

    On the CPU twice as fast as ``argmax(0)`` or ``max(0)``, which cannot compute several pixels
    at once: here the maximum is found first, and then where it is.

    Args:
        scores: (C, H, W) on any device, C in 1..255.

    Returns:
        On the device of `scores`.

    Raises:
        ValueError: NaN among the scores, or another shape.
    """
    if scores.ndim != 3 or not 1 <= len(scores) <= IGNORED:
        raise ValueError(
            f"scores must be (1 to {IGNORED} classes, height, width), got shape "
            f"{tuple(scores.shape)}"
        )
    if scores.device.type == "cpu":
        rows = max(1, _BLOCK // (len(scores) * max(1, scores.shape[2])))
        return torch.cat([_top_class_of_block(block) for block in scores.split(rows, dim=1)])
    best, classes = scores.max(0)
    _refuse_nan(best)
    return classes.to(torch.uint8)


def _top_class_of_block(scores: torch.Tensor) -> torch.Tensor:
    best = scores.amax(0)
    _refuse_nan(best)
    # Falling over the classes: the largest where a class has the best score is its first.
    rank = torch.arange(len(scores), 0, -1, dtype=torch.uint8)[:, None, None]
    return len(scores) - (scores == best).view(torch.uint8).mul_(rank).amax(0)


def _refuse_nan(best: torch.Tensor) -> None:
    if best.isnan().any():
        raise ValueError("scores hold NaN")


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) int64, number of pixels of class `row` that were predicted as class `column`.

    Pixels whose label is ignored are in no cell: as in Detectron2 what is predicted there is
    neither right nor wrong, nor part of the union of its class. Counts runs of equal pairs, of
    which maps of regions have few.

    Args:
        labels: (H, W) ints, 0..C-1 or 255.
        predicted: (H, W) ints, 0..C-1.
        num_classes: C, 1..255.

    Raises:
        ValueError: maps of different or other shapes, or an id that is no class.
    """
    _check_maps(labels, predicted)
    pairs = _bytes("labels", labels).astype(np.uint16).ravel()
    pairs <<= 8
    pairs |= _bytes("predicted", predicted).ravel()
    first, length = runs(pairs)
    # Float64 sums of whole numbers are exact up to 2^53 pixels.
    cells = np.bincount(pairs[first], weights=length, minlength=2**16).reshape(256, 256)
    _refuse_ids("labels", cells[num_classes:IGNORED].any(axis=1), num_classes)
    _refuse_ids("predicted", cells[:, num_classes:].any(axis=0), num_classes)
    return cells[:num_classes, :num_classes].astype(np.int64)


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of equal neighbours in (N >= 1,) `values`: (R,) int64 first indices and lengths."""
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(values)]])
    return edges[:-1], np.diff(edges)


def areas(matrix: np.ndarray) -> Areas:
    """The areas of a (C, C) :func:`confusion_matrix`."""
    return Areas(matrix.diagonal().copy(), matrix.sum(axis=1), matrix.sum(axis=0))


def boundary_distance(height: int, width: int) -> int:
    """Pixels: 2 % of the diagonal of an image, at least 1, as the code of Boundary IoU rounds."""
    return max(1, round(BOUNDARY_SHARE * math.hypot(height, width)))


def boundary_map(labels: np.ndarray, distance: int) -> np.ndarray:
    """(H, W) bool: a pixel of another label, or the outside, is within `distance` of the pixel.

    Distances are those of a square window (the larger of rows and columns). Restricted to one
    class this is ``mask - erode(mask)`` of the code of Boundary IoU, with `distance` erosions by
    3 x 3 in which the outside counts as another class (Cheng et al., "Boundary IoU: Improving
    Object-Centric Image Segmentation Evaluation", CVPR 2021). The ignored label is a label like
    any other here.

    A window has one label exactly if its smallest and largest are equal, for all classes at once.

    Args:
        labels: (H, W) ints.
        distance: pixels, at least 1.

    Raises:
        ValueError: another shape, or `distance` below 1.
    """
    if labels.ndim != 2 or distance < 1:
        raise ValueError(
            f"a boundary needs a (height, width) map and a distance of at least 1, got shape "
            f"{labels.shape} and {distance}"
        )
    boundary = np.ones(labels.shape, dtype=bool)
    side = 2 * distance + 1
    if min(labels.shape) >= side:
        lowest, highest = (
            _over_windows(_over_windows(labels, side, extreme).T, side, extreme).T
            for extreme in (np.minimum, np.maximum)
        )
        inner = slice(distance, -distance)
        boundary[inner, inner] = lowest != highest
    return boundary


def _over_windows(values: np.ndarray, size: int, extreme: Callable) -> np.ndarray:
    """`extreme` over `size` neighbours along the first axis, (N - size + 1, ...).

    Of windows of twice the size from two of the last size; log2(size) steps.
    """
    reached = 1
    while reached < size:
        step = min(reached, size - reached)
        values = extreme(values[step:], values[:-step])
        reached += step
    return values


def boundary_areas(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int, distance: int
) -> Areas:
    """Areas of the pixels along the boundaries, of which Boundary IoU is the IoU.

    A pixel is of a class in the labels if it is so and on a :func:`boundary_map` of the labels;
    likewise for the prediction. It is correct if both are so. (The `SemSegEvaluator` of later
    versions of Detectron2 subtracts eroded label maps from label maps instead of masks, and
    multiplies 8-bit labels, which overflows from 16 classes on: its numbers are others.)

    Args:
        labels: (H, W) ints, 0..C-1 or 255.
        predicted: (H, W) ints, 0..C-1.
        num_classes: C, 1..255.
        distance: pixels, at least 1.

    Raises:
        ValueError: maps of different or other shapes, or an id that is no class along a
            boundary.
    """
    _check_maps(labels, predicted)
    labels, predicted = _bytes("labels", labels), _bytes("predicted", predicted)
    valid = labels != IGNORED
    in_labels = boundary_map(labels, distance) & valid
    in_predicted = boundary_map(predicted, distance) & valid
    correct = in_labels & in_predicted & (labels == predicted)
    return Areas(
        _pixels("labels", labels[correct], num_classes),
        _pixels("labels", labels[in_labels], num_classes),
        _pixels("predicted", predicted[in_predicted], num_classes),
    )


def _pixels(name: str, ids: np.ndarray, num_classes: int) -> np.ndarray:
    pixels = np.bincount(ids, minlength=num_classes)
    _refuse_ids(name, pixels[num_classes:] > 0, num_classes)
    return pixels


def _check_maps(labels: np.ndarray, predicted: np.ndarray) -> None:
    if labels.ndim != 2 or labels.size == 0 or labels.shape != predicted.shape:
        raise ValueError(f"predicted is of shape {predicted.shape}, labels of {labels.shape}")


def _bytes(name: str, ids: np.ndarray) -> np.ndarray:
    """`ids` as uint8, themselves if they are."""
    if ids.dtype == np.uint8:
        return ids
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers, got {ids.dtype}")
    bad = (ids < 0) | (ids > IGNORED)
    if bad.any():
        raise ValueError(f"{name} must be in 0..{IGNORED}, got {ids[bad][0]}")
    return ids.astype(np.uint8)


def _refuse_ids(name: str, found: np.ndarray, num_classes: int) -> None:
    """Raise ValueError for the first True of `found`, which is of id `num_classes`."""
    if found.any():
        ignored = f", or {IGNORED} where ignored" if name == "labels" else ""
        raise ValueError(
            f"{name} must be in 0..{num_classes - 1}{ignored}, got {num_classes + found.argmax()}"
        )


# ---------------------------------------------------------------------------------------------
# From pixels to numbers
# ---------------------------------------------------------------------------------------------


def class_iou(areas: Areas) -> np.ndarray:
    """(C,) float64 intersection over union; NaN: no pixel has this label, as in Detectron2."""
    union = areas.labelled + areas.predicted - areas.correct
    return _shares(areas.correct, union, areas.labelled > 0)


def class_accuracy(areas: Areas) -> np.ndarray:
    """(C,) float64 share of the pixels of a label that are correct; NaN: no pixel has it."""
    return _shares(areas.correct, areas.labelled, areas.labelled > 0)


def _shares(part: np.ndarray, whole: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=where)


def counted_iou(areas: Areas) -> np.ndarray:
    """(C,) float64 IoU as it enters a mean: 0 for a class that is only predicted.

    Detectron2 0.5 divides the sum over the classes in the labels by the number of those in labels
    or prediction. Later versions divide by the number of those in the labels, so that a class
    that is wrongly predicted costs nothing there. NaN: the class is in neither.
    """
    only_predicted = (areas.labelled == 0) & (areas.predicted > 0)
    return np.where(only_predicted, 0.0, class_iou(areas))


def overall(areas: Areas) -> dict[str, float]:
    """The four numbers of Detectron2 0.5's `SemSegEvaluator`; NaN without labelled pixels.

    - ``mIoU``: mean of :func:`counted_iou`;
    - ``fwIoU``: mean IoU, weighted by the labelled pixels of the classes;
    - ``mACC``: mean of :func:`class_accuracy` over the classes that have one;
    - ``pACC``: share of all labelled pixels that are correct.
    """
    pixels = areas.labelled.sum()
    if pixels == 0:
        return dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), float("nan"))
    return {
        "mIoU": mean_iou(areas),
        "fwIoU": float(np.nansum(class_iou(areas) * areas.labelled) / pixels),
        "mACC": float(np.nanmean(class_accuracy(areas))),
        "pACC": float(areas.correct.sum() / pixels),
    }


def mean_iou(areas: Areas) -> float:
    """Mean of :func:`counted_iou` over the classes that have one; NaN without labelled pixels."""
    return float(np.nanmean(counted_iou(areas))) if areas.labelled.any() else float("nan")


def by_size(areas: Areas, groups: Sequence[str]) -> dict[str, float]:
    """Mean IoU and accuracy of the classes with many, some and few training examples.

    The means are taken as those of all classes are: IoU over the classes in labels or
    prediction, so that the mean of the three ``mIoU``, weighted by the number of such classes,
    is the ``mIoU`` of all; accuracy over the classes in the labels.

    Args:
        areas: of C classes.
        groups: (C,) letters, "f" = head, "c" = common, "r" = tail.

    Returns:
        {"mIoU_head", "mIoU_common", "mIoU_tail", "mACC_head", ...}; NaN for a group without a
        class to count.

    Raises:
        ValueError: different lengths, or an unknown letter.
    """
    values = {"mIoU": counted_iou(areas), "mACC": class_accuracy(areas)}
    means = {metric: group_means(column, groups) for metric, column in values.items()}
    return {f"{metric}_{size}": means[metric][SIZES[size]] for metric in means for size in SIZES}
