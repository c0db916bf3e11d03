"""Measures of image classification, as functions of arrays.

Arrays are numpy arrays or tensors on any device; results are fractions in [0, 1] as numpy
arrays unless a function says otherwise. N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lt_det.evaluation.groups import group_means

# The bins of Guo et al. 2017.
ECE_BINS = 15
# Of single precision: a softmax may sum to a little more than 1.
_PROBABILITY_SLACK = 1e-5
# Names of the groups in image classification; letters of lt_det.evaluation.groups.
SHOTS = {"many": "f", "medium": "c", "few": "r"}


def top_k_classes(scores: torch.Tensor | np.ndarray, k: int) -> torch.Tensor:
    """The k classes of the highest scores, best first; of equal scores the lower class id.

    Args:
        scores: (N, C) without NaN. Only their order counts: logits and probabilities agree.
        k: 1..C.

    Returns:
        (N, k) int64 on the device of `scores`.

    Raises:
        ValueError: `scores` has another shape, or `k` is not in 1..C.
    """
    scores = torch.as_tensor(scores)
    if scores.ndim != 2:
        raise ValueError(f"scores must be (images, classes), got shape {tuple(scores.shape)}")
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be in 1..{scores.shape[1]}, the number of classes, got {k}")
    best, classes = scores.topk(k, dim=1)
    # topk leaves open which of equal scores it takes, and in which order. A stable sort of all
    # classes does not, but takes 60 times as long for 8142 classes.
    tied = (scores >= best[:, -1:]).sum(dim=1) > k
    classes = classes.sort(dim=1).values
    classes = classes.gather(1, _descending(scores.gather(1, classes)))
    if tied.any():
        classes[tied] = _descending(scores[tied])[:, :k]
    return classes


def top_k_hits(
    scores: torch.Tensor | np.ndarray, labels: torch.Tensor | np.ndarray, k: int
) -> torch.Tensor:
    """(N,) bool: the label is among the classes of :func:`top_k_classes`.

    Args:
        scores: (N, C) without NaN.
        labels: (N,) int64, 0..C-1.
        k: 1..C.

    Raises:
        ValueError: see :func:`top_k_classes`; or not one label per row.
    """
    classes = top_k_classes(scores, k)
    labels = torch.as_tensor(labels).to(classes.device)
    if labels.shape != classes.shape[:1]:
        raise ValueError(f"labels of shape {tuple(labels.shape)} for {len(classes)} rows of scores")
    return (classes == labels[:, None]).any(dim=1)


def confusion_matrix(
    labels: torch.Tensor | np.ndarray, predicted: torch.Tensor | np.ndarray, num_classes: int
) -> np.ndarray:
    """(C, C) int64, number of images of class `row` that were predicted as class `column`.

    Args:
        labels: (N,) ints, 0..C-1.
        predicted: (N,) ints, 0..C-1.
        num_classes: C. The matrix has 8 C^2 bytes: 8 MB for 1000 classes.

    Raises:
        ValueError: different lengths, or a class that is not in 0..C-1.
    """
    labels = _class_ids("labels", labels, num_classes)
    predicted = _class_ids("predicted", predicted, num_classes)
    _check_lengths(labels=labels, predicted=predicted)
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def class_accuracy(
    labels: torch.Tensor | np.ndarray, correct: torch.Tensor | np.ndarray, num_classes: int
) -> np.ndarray:
    """(C,) float64 share of the images of each class that are correct; NaN: no image.

    Args:
        labels: (N,) ints, 0..C-1.
        correct: (N,) bool.
        num_classes: C.

    Raises:
        ValueError: different lengths, or a label that is not in 0..C-1.
    """
    return class_means(labels, correct, num_classes)


def class_means(
    labels: torch.Tensor | np.ndarray, values: torch.Tensor | np.ndarray, num_classes: int
) -> np.ndarray:
    """(C,) float64 mean of (N,) `values` over the images of each class; NaN: no image.

    Raises:
        ValueError: different lengths, or a label that is not in 0..C-1.
    """
    labels, values = _class_ids("labels", labels, num_classes), _numpy(values)
    _check_lengths(labels=labels, values=values)
    sums = np.bincount(labels, weights=values.astype(np.float64), minlength=num_classes)
    images = np.bincount(labels, minlength=num_classes)
    return np.divide(sums, images, out=np.full(num_classes, np.nan), where=images > 0)


def mean_over_classes(accuracy: Sequence[float]) -> float:
    """Mean of (C,) class accuracies over the classes that have one; NaN if none has."""
    accuracy = np.asarray(accuracy, dtype=np.float64)
    valid = accuracy[~np.isnan(accuracy)]
    return float(valid.mean()) if len(valid) else float("nan")


def shot_accuracy(accuracy: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """Mean class accuracy of the classes with many, medium and few training images.

    The groups are those of :func:`lt_det.evaluation.groups.groups_from_counts`:

    - borders (19, 100): many > 100, medium 20-100, few < 20 (Kang et al., "Decoupling
      Representation and Classifier for Long-Tailed Recognition", ICLR 2020);
    - borders (20, 99): many >= 100, few <= 20 (the released code of Liu et al., "Large-Scale
      Long-Tailed Recognition in an Open World", CVPR 2019).

    A group's accuracy is the mean of its classes' accuracies, not the share of its images.

    Args:
        accuracy: (C,) of :func:`class_accuracy`; NaN classes are left out.
        groups: (C,) letters, "f" = many, "c" = medium, "r" = few.

    Returns:
        {"many", "medium", "few"}; NaN for a group in which no class has a value.

    Raises:
        ValueError: different lengths, or an unknown letter.
    """
    means = group_means(accuracy, groups)
    return {shot: means[letter] for shot, letter in SHOTS.items()}


def expected_calibration_error(
    confidence: torch.Tensor | np.ndarray,
    correct: torch.Tensor | np.ndarray,
    bins: int = ECE_BINS,
) -> float:
    """Mean distance between confidence and accuracy (Guo et al., ICML 2017, equation 3).

    ``sum_b n_b / N |accuracy_b - confidence_b|`` over bins of equal width, ``accuracy_b`` and
    ``confidence_b`` being means over the ``n_b`` images of a bin. Bin b holds confidences in
    ``(b / bins, (b + 1) / bins]``; a confidence of exactly 0 is in the first. The edges are
    float64: a float32 confidence meant to lie on one may be on either side.

    Args:
        confidence: (N,) probability of the predicted class, in [0, 1]; what exceeds the range by
            rounding (1e-5) is taken for its end.
        correct: (N,) bool, the prediction is right.
        bins: number of bins, at least 1.

    Returns:
        In [0, 1].

    Raises:
        ValueError: no image, different lengths, fewer than one bin, or a confidence that is not
            in [0, 1].
    """
    confidence = _numpy(confidence).astype(np.float64)
    correct = _numpy(correct).astype(np.float64)
    _check_lengths(confidence=confidence, correct=correct)
    if len(confidence) == 0:
        raise ValueError("the calibration error of no images is not defined")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    bad = ~are_probabilities(confidence)
    if bad.any():
        raise ValueError(f"a confidence must be in [0, 1], got {confidence[bad][0]}")
    confidence = confidence.clip(0, 1)
    edges = np.linspace(0, 1, bins + 1)
    place = np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)
    # n_b / N |a_b - c_b| = |sum of (correct - confidence) in b| / N.
    gaps = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _descending(values: torch.Tensor) -> torch.Tensor:
    """Columns of each row by falling value, of equal values the first column first."""
    return values.sort(dim=1, descending=True, stable=True).indices


def are_probabilities(values: np.ndarray) -> np.ndarray:
    """Whether each of `values` is in [0, 1], up to rounding; False for NaN."""
    return (values >= -_PROBABILITY_SLACK) & (values <= 1 + _PROBABILITY_SLACK)


def _numpy(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _class_ids(name: str, ids, num_classes: int) -> np.ndarray:
    ids = _numpy(ids)
    if ids.ndim != 1:
        raise ValueError(f"{name} must be one class per image, got shape {ids.shape}")
    if len(ids) == 0:
        return ids.astype(np.int64)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers, got {ids.dtype}")
    bad = (ids < 0) | (ids >= num_classes)
    if bad.any():
        raise ValueError(f"{name} must be in 0..{num_classes - 1}, got {ids[bad][0]}")
    return ids.astype(np.int64)


def _check_lengths(**arrays: np.ndarray) -> None:
    (first, a), (second, b) = arrays.items()
    if a.shape != b.shape:
        raise ValueError(f"{first} of shape {a.shape} and {second} of shape {b.shape}")
