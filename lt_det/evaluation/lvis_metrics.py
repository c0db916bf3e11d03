"""Precision, recall and the metrics of LVIS, from matches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lt_det.evaluation.groups import GROUPS
from lt_det.evaluation.lvis_matching import Matches

AP_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
AR_METRICS = ("AR", "ARs", "ARm", "ARl")
METRICS = AP_METRICS + AR_METRICS
# The R recalls at which precision is read.
RECALLS = np.linspace(0.0, 1.0, 101)


def precision_and_recall(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """What ``LVISEval.accumulate`` makes of all matches, bit for bit.

    Returns:
        (T, R, C, A) interpolated precision at each IoU threshold and recall, 0 where the recall
        is not reached, and (T, C, A) the highest recall; classes in the order of `matches`. -1:
        no ground truth.
    """
    num_gt = matches.num_gt()
    thresholds, (areas, classes) = len(matches.thresholds), num_gt.shape
    precision = np.empty((areas, thresholds, classes, len(RECALLS)))
    recall = np.empty((areas, thresholds, classes))
    # Where the detections of each class begin and end.
    borders = np.searchsorted(matches.det_class, np.arange(classes + 1))
    for a in range(areas):
        present = np.flatnonzero(num_gt[a])
        precision[a, :, num_gt[a] == 0], recall[a, :, num_gt[a] == 0] = -1, -1
        needed = _needed(num_gt[a, present])
        for t in range(thresholds):
            positive = matches.matched[a, t] & ~matches.ignored[a, t]
            false = ~(matches.matched[a, t] | matches.ignored[a, t])
            found, values = _precision_at_hits(positive, false, borders)
            # True positives are of classes that are present.
            found = found[present]
            precision[a, t, present] = _interpolated(found, values, needed)
            recall[a, t, present] = found / num_gt[a, present]
    return precision.transpose(1, 3, 2, 0), recall.transpose(1, 2, 0)


def _needed(num_gt: np.ndarray) -> np.ndarray:
    """(C, R) the least number of `num_gt` objects, at least 1, that gives each recall.

    The first n with ``n / num_gt >= recall`` in float64, as ``np.searchsorted`` finds it. For
    recall 0 the precision is the highest of all, which is that from the first hit on.
    """
    of = num_gt[:, None].astype(np.float64)
    needed = np.ceil(RECALLS * of)
    # The product may be rounded past a whole number, either way.
    needed -= (needed - 1) / of >= RECALLS
    needed += needed / of < RECALLS
    return np.maximum(needed, 1).astype(np.int64)


def _precision_at_hits(
    positive: np.ndarray, false: np.ndarray, borders: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Precision rises at true positives alone, so these are all that the envelope needs.

    Args:
        positive: (N,) bool, true positives, sorted by class and score.
        false: (N,) bool, false positives.
        borders: (C + 1,) where the detections of each class begin, and N.

    Returns:
        (C,) true positives of each class; (P,) float64, the precision at each in turn.
    """
    at = np.flatnonzero(positive)
    starts = np.searchsorted(at, borders)
    found = np.diff(starts)
    first = np.repeat(np.arange(len(found)), found)
    hits = np.arange(1, len(at) + 1) - starts[first]
    falses = np.concatenate([[0], np.cumsum(false, dtype=np.int32)])
    misses = falses[at] - falses[borders[first]]
    # np.spacing(1): the division by zero guard of LVISEval, which adds in this order.
    return found, hits / (misses + hits.astype(np.float64) + np.spacing(1))


def _interpolated(found: np.ndarray, values: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """(C, R) highest precision at each recall or a larger one; 0: not reached.

    Args:
        found: (C,) true positives of each class.
        values: (P,) precision at each, of one class after the other.
        needed: (C, R) of :func:`_needed`.
    """
    highest = np.zeros(needed.shape)
    reached = needed <= found[:, None]
    starts = np.cumsum(found) - found
    if len(values):
        # From where a recall is reached to where the next one is; the last one of a class ends
        # where the first one of the next class begins, for recall 0 needs one hit. Where recalls
        # share a hit, `reduceat` gives its value, and the last of them has the rest.
        at = (starts[:, None] + needed - 1)[reached]
        highest[reached] = np.maximum.reduceat(values, at)
    return np.maximum.accumulate(highest[:, ::-1], axis=1)[:, ::-1]


def metrics_from_arrays(
    precision: np.ndarray, recall: np.ndarray, groups: Sequence[str] | None
) -> dict[str, float]:
    """The metrics of LVIS.

    Args:
        precision: (T, R, C, A) of :func:`precision_and_recall`.
        recall: (T, C, A).
        groups: (C,) "r", "c" or "f"; None: APr, APc and APf are NaN.

    Returns:
        `METRICS` in percent; NaN where no class has ground truth. AR is the mean highest recall,
        which lvis calls "AR@300".
    """
    everything = precision[..., 0]
    metrics = {"AP": everything, "AP50": everything[:1], "AP75": everything[5:6]}
    metrics.update({f"AP{a}": precision[..., i] for i, a in enumerate("sml", start=1)})
    for g in GROUPS:
        members = [k for k, letter in enumerate(groups or ()) if letter == g]
        metrics[f"AP{g}"] = everything[:, :, members]
    metrics["AR"] = recall[..., 0]
    metrics.update({f"AR{a}": recall[..., i] for i, a in enumerate("sml", start=1)})
    return {name: _percent(values) for name, values in metrics.items()}


def per_class_ap(precision: np.ndarray) -> np.ndarray:
    """(C,) AP of each class in percent; NaN: no ground truth. Their mean is the AP."""
    ap = 100.0 * precision[..., 0].mean(axis=(0, 1))
    ap[precision[0, 0, :, 0] < 0] = np.nan
    return ap


def _percent(values: np.ndarray) -> float:
    valid = values[values > -1]
    return 100.0 * float(valid.mean()) if valid.size else float("nan")
