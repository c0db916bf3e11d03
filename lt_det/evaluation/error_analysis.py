"""Where errors go: what was missed and what was wrongly found, by group of classes.

The result of every function is::

    {"missed":          {group: {outcome: number}},    # what became of what is there
     "false_positives": {group: {outcome: number}}}    # what is there where something was found

with groups "r", "c", "f" ("all" where classes have no group), that of the true class in "missed"
and that of the predicted class in "false_positives". The outcomes of a group add up to its number
of objects (images, pixels). They are:

    found         the object was found; of a false positive: "right", it is none
    class_r       another class that is rare (class_c, class_f: common, frequent; "class_all")
    localisation  the right class, but out of place (detection only)
    duplicate     an object that a better detection has found (detection only)
    background    nothing
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lt_det.evaluation.groups import GROUPS, check_groups
from lt_det.evaluation.lvis_ground_truth import GroundTruth, positions
from lt_det.evaluation.lvis_matching import Matches
from lt_det.evaluation.lvis_overlaps import Overlaps, box_overlaps
from lt_det.evaluation.predictions import Predictions, is_finite

# IoU from which two boxes are at the same place, and from which one is near the other: those of
# Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020.
SAME_PLACE = 0.5
NEAR = 0.1


# ---------------------------------------------------------------------------------------------
# Classification and segmentation
# ---------------------------------------------------------------------------------------------


def confusion_errors(confusion: np.ndarray, groups: Sequence[str] | None) -> dict:
    """Of one label per image or pixel; there is no place and no background.

    Args:
        confusion: (C, C) number of images or pixels of class `row` predicted as class `column`.
        groups: (C,) letters of `GROUPS`; None: all classes are one group.

    Raises:
        ValueError: `confusion` is not square, or there is not one group per class.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"a confusion matrix is (C, C), got {confusion.shape}")
    names, group = _group_numbers(groups, len(confusion))
    member = np.eye(len(names), dtype=confusion.dtype)[group]
    right = confusion.diagonal() @ member
    between = member.T @ confusion @ member - np.diag(right)
    wrong = [f"class_{name}" for name in names]
    return {
        kind: {
            name: {word: int(right[g]), **dict(zip(wrong, counts[g].tolist(), strict=True))}
            for g, name in enumerate(names)
        }
        for kind, word, counts in (
            ("missed", "found", between),
            ("false_positives", "right", between.T),
        )
    }


# ---------------------------------------------------------------------------------------------
# Detection
# ---------------------------------------------------------------------------------------------


def detection_errors(
    gt: GroundTruth,
    predictions: Predictions,
    matches: Matches,
    groups: Sequence[str] | None,
) -> dict:
    """Of boxes or masks, at IoU 0.5.

    Whether an object was found, and whether a detection is a false positive, is what `matches`
    says; where an error goes is decided by boxes, for masks as well.

    - missed: an object that no detection matches. Of the detections of its class that are near
      (IoU 0.1) and those of another class at the same place (IoU 0.5), the one with the highest
      score decides: "localisation" or the group of the other class. Without any: "background".
      A detection that matches another object is right there and explains nothing (as in TIDE),
      and neither does one that the evaluation left out, such as those beyond its limits.
    - false positives: among the detections of highest score of each class, as many as it has
      objects (so that neither score thresholds nor the number of detections an image keeps
      matter). "duplicate": at the place of an object of its class that is found; or else the
      group of an object of another class at the same place; or else "localisation", near one of
      its class, or at the place of one that is missed; or else "background".

    What federated annotation leaves unknown: a detection of a class that is not listed for its
    image is no false positive and is in no number of "false_positives"; it can be what an object
    was taken for, beyond the limits of the evaluation too, since `matches` do not have it. A
    false positive on "background" may be on an object of a class that nobody looked for in that
    image.

    Args:
        gt: ground truth.
        predictions: with boxes.
        matches: of these, of either task.
        groups: (C,) letters of `GROUPS`; None: all classes are one group.

    Raises:
        ValueError: there are no boxes, or there is not one group per class.
    """
    names, group = _group_numbers(groups, gt.num_classes)
    if len(predictions) and predictions.boxes is None:
        raise ValueError("predictions without boxes have no place")
    found = np.zeros(len(gt.gt_class), dtype=bool)
    found[matches.det_gt[0][matches.det_gt[0] >= 0]] = True
    det_class = positions(predictions.category_ids, gt.category_ids)
    usable = _may_explain(gt, predictions, matches, det_class)
    pairs = _near_pairs(gt, predictions, det_class, usable)
    same = det_class[pairs.det] == gt.gt_class[pairs.gt]
    missed = _what_objects_became(pairs, same, predictions.scores, found, group[det_class])
    hit = _what_detections_hit(pairs, same, found, group[gt.gt_class], len(predictions))
    best = _best_of_classes(matches)
    wrong = np.where(matches.matched[0, 0, best], _RIGHT, hit[matches.det_row[best]])
    counted = ~matches.gt_ignored[0]
    outcomes = ("background", "localisation", "duplicate", *(f"class_{name}" for name in names))
    return {
        "missed": _table(
            names, group[gt.gt_class][counted], missed[counted], ("found", *outcomes), {"duplicate"}
        ),
        "false_positives": _table(
            names, group[matches.det_class[best]], wrong, ("right", *outcomes), set()
        ),
    }


# Numbers of the outcomes; from `_CLASS` on the groups.
_RIGHT, _BACKGROUND, _LOCALISATION, _DUPLICATE, _CLASS = range(5)


def _may_explain(
    gt: GroundTruth, predictions: Predictions, matches: Matches, det_class: np.ndarray
) -> np.ndarray:
    """(N,) bool: predictions that match nothing and that the evaluation has not left out."""
    image = positions(predictions.image_ids, gt.image_ids)
    usable = (image >= 0) & (det_class >= 0) & is_finite(predictions)
    # Of what is listed, only what took part; nothing is known of the rest.
    if gt.federated:
        listed = np.concatenate([gt.pairs(), gt.negative])
        usable &= ~np.isin(image * gt.num_classes + det_class, listed)
    else:
        usable[:] = False
    usable[matches.det_row] = matches.det_gt[0] < 0
    return usable


def _near_pairs(
    gt: GroundTruth, predictions: Predictions, det_class: np.ndarray, usable: np.ndarray
) -> Overlaps:
    """Pairs of a usable prediction and an object of its image that may be about each other."""
    image = positions(predictions.image_ids, gt.image_ids)
    by_image = np.argsort(gt.gt_image, kind="stable")
    number = np.bincount(gt.gt_image, minlength=len(gt.image_ids))
    first = np.cumsum(number) - number
    count = np.where(usable, number[image], 0)
    boxes = predictions.boxes if len(predictions) else np.zeros((0, 4))
    pairs = box_overlaps(boxes, gt.boxes[by_image], first[image], count, NEAR)
    pairs.gt = by_image[pairs.gt]
    same = det_class[pairs.det] == gt.gt_class[pairs.gt]
    return pairs.select(same | (pairs.iou >= SAME_PLACE))


def _what_objects_became(
    pairs: Overlaps,
    same: np.ndarray,
    scores: np.ndarray,
    found: np.ndarray,
    det_group: np.ndarray,
) -> np.ndarray:
    """(G,) outcome of each object."""
    outcome = np.where(found, _RIGHT, _BACKGROUND)
    best = _first_of_each(pairs.gt, -scores[pairs.det])
    best = best[~found[pairs.gt[best]]]
    wrong_class = _CLASS + det_group[pairs.det[best]]
    outcome[pairs.gt[best]] = np.where(same[best], _LOCALISATION, wrong_class)
    return outcome


def _what_detections_hit(
    pairs: Overlaps, same: np.ndarray, found: np.ndarray, gt_group: np.ndarray, number: int
) -> np.ndarray:
    """(N,) outcome of each of N predictions, were it a false positive."""
    outcome = np.full(number, _BACKGROUND)
    taken = same & (pairs.iou >= SAME_PLACE) & found[pairs.gt]
    # The better reason first, and of equal ones the larger overlap.
    reason = np.select([taken, ~same], [0, 1], default=2)
    best = _first_of_each(pairs.det, -pairs.iou, reason)
    outcome[pairs.det[best]] = np.choose(
        reason[best], [_DUPLICATE, _CLASS + gt_group[pairs.gt[best]], _LOCALISATION]
    )
    return outcome


def _best_of_classes(matches: Matches) -> np.ndarray:
    """Detections that count, of each class as many as it has objects, by falling score."""
    counted = np.flatnonzero(~matches.ignored[0, 0])
    classes = matches.det_class[counted]
    objects = matches.num_gt()[0]
    rank = np.arange(len(classes)) - np.searchsorted(classes, classes, side="left")
    return counted[rank < objects[classes]]


def _first_of_each(name: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """For each value of `name` where the keys, the last one first, are smallest."""
    order = np.lexsort((*keys, name))
    return order[np.diff(name[order], prepend=-1) != 0]


def _group_numbers(groups: Sequence[str] | None, num_classes: int):
    """Names of the groups, and (C,) the number of that of each class."""
    if groups is None:
        return ("all",), np.zeros(num_classes, dtype=np.int64)
    check_groups(groups, num_classes)
    return GROUPS, np.array([GROUPS.index(letter) for letter in groups], dtype=np.int64)


def _table(names, group: np.ndarray, outcome: np.ndarray, words, never: set[str]) -> dict:
    """{group: {outcome: number}} without the outcomes that there can never be."""
    counts = np.bincount(group * len(words) + outcome, minlength=len(names) * len(words))
    rows = counts.reshape(len(names), len(words)).tolist()
    return {
        name: {word: n for word, n in zip(words, row, strict=True) if word not in never}
        for name, row in zip(names, rows, strict=True)
    }
