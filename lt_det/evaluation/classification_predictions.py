"""Files that an evaluation of image classification leaves for later looks at a run.

``predictions.npz``::

    image_ids    (N,) int64 or text, ascending
    labels       (N,) int64
    top_classes  (N, k) int64, the k = min(5, C) classes of the highest scores, best first
    top_scores   (N, k) their scores
    scores       (N, C) float32, only where the evaluator keeps them

``features.npz``::

    image_ids    (N,) as above
    labels       (N,) int64
    features     (N, D) float32, what the classifier is given
    weights      (C, D) float32 rows of the classifier, if the evaluator was given them
"""

from __future__ import annotations

import os

import numpy as np

from lt_det.errors import DataError
from lt_det.evaluation.arrays import read_arrays

PREDICTIONS_FILE = "predictions.npz"
FEATURES_FILE = "features.npz"


def read_class_predictions(
    path: str | os.PathLike, num_classes: int, *, scores: bool = True
) -> dict[str, np.ndarray]:
    """The arrays of a ``predictions.npz``.

    Args:
        path: of the file.
        num_classes: C.
        scores: read the scores of all classes, too, if they were kept.

    Raises:
        MissingFileError: no such file.
        DataError: not such a file, or not of `num_classes` classes.
    """
    names = ("image_ids", "labels", "top_classes", "top_scores")
    arrays = read_arrays(path, names, others=scores)
    ids, labels, top = (arrays[name] for name in ("image_ids", "labels", "top_classes"))
    if labels.ndim != 1 or top.ndim != 2 or not len(top) == len(labels) == len(ids):
        raise DataError(
            f"{path}: image_ids of shape {ids.shape}, labels of shape {labels.shape} and "
            f"top_classes of shape {top.shape}"
        )
    _check_classes(path, "labels", labels, num_classes)
    _check_classes(path, "top_classes", top, num_classes)
    return arrays


def read_features(path: str | os.PathLike, num_classes: int) -> dict[str, np.ndarray]:
    """The arrays of a ``features.npz``; "weights" is there only if it was kept.

    Raises:
        MissingFileError: no such file.
        DataError: not such a file, or not of `num_classes` classes.
    """
    arrays = read_arrays(path, ("features", "labels"), others=True)
    features, labels = arrays["features"], arrays["labels"]
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise DataError(
            f"{path}: features of shape {features.shape} and labels of shape {labels.shape}"
        )
    if len(labels) == 0:
        raise DataError(f"{path} holds no image")
    _check_classes(path, "labels", labels, num_classes)
    weights = arrays.get("weights")
    if weights is not None and (weights.ndim != 2 or len(weights) != num_classes):
        raise DataError(f"{path}: weights of shape {weights.shape} for {num_classes} classes")
    return arrays


def _check_classes(path, name: str, ids: np.ndarray, num_classes: int) -> None:
    bad = (ids < 0) | (ids >= num_classes)
    if bad.any():
        raise DataError(f"{path}: {name} must be in 0..{num_classes - 1}, got {ids[bad][0]}")
