"""Which detection matches which ground truth, under the rules of LVIS.

The rules are those of ``lvis.LVISEval`` 0.5.3: in the order of their scores, each detection takes
the object of its image and class that it overlaps most and that is still free; objects that are
not ignored come first. Here this is done for all images and classes at once. Among the pairs that
are left, one is certain if the object is the detection's first choice and the detection is the
best ranked of those that overlap the object: nobody can take either. So all such pairs are matched
in one round, and few rounds are needed until no pair is left.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.lvis_ground_truth import GroundTruth, positions
from lt_det.evaluation.lvis_overlaps import MaskSource, Overlaps, box_overlaps, mask_overlaps
from lt_det.evaluation.predictions import Predictions, has_masks, is_finite, rles_of
from lt_det.evaluation.results import atomic_file

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ("all", "small", "medium", "large")
# (A, 2) square pixels, both ends included.
AREA_RANGES = np.array([[0, 1e5], [0, 32], [32, 96], [96, 1e5]]) ** 2
_UNLISTED, _NOTHING = -1, 0


@dataclass(eq=False)
class Matches:
    """What the matching of one task has found; all metrics follow from it.

    N detections take part: of an evaluated image and class, within the limits of the protocol,
    with an area above 0, and of a class that the image's lists or objects name. They are sorted
    by class, then descending score; equal scores in the order of the images, then as given.

    Attributes:
        task: "bbox" or "segm".
        image_ids: (I,) int64 all images that are evaluated, ascending.
        category_ids: (C,) int64 in the class order of the evaluation.
        thresholds: (T,) float64 IoU.
        areas: A names of ranges of area; the first one is "all".
        det_image: (N,) int32 place in `image_ids`.
        det_class: (N,) int32.
        det_score: (N,) float64.
        det_row: (N,) int64 row of the `Predictions`.
        det_gt: (T, N) int32 the object that it matches for area "all"; -1: none.
        matched: (A, T, N) bool. Matched and not ignored is a true positive,
        ignored: (A, T, N) bool. neither a false one.
        gt_image: (G,) int32 place in `image_ids`.
        gt_class: (G,) int32, ascending.
        gt_ignored: (A, G) bool: not to be found, outside the range of area or marked as `ignore`.
        gt_row: (G,) int64 place in the annotation file's list.
    """

    task: str
    image_ids: np.ndarray
    category_ids: np.ndarray
    thresholds: np.ndarray
    areas: tuple[str, ...]
    det_image: np.ndarray
    det_class: np.ndarray
    det_score: np.ndarray
    det_row: np.ndarray
    det_gt: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    gt_image: np.ndarray
    gt_class: np.ndarray
    gt_ignored: np.ndarray
    gt_row: np.ndarray

    def num_gt(self) -> np.ndarray:
        """(A, C) int64 objects to be found."""
        counts = [
            np.bincount(self.gt_class[~ignored], minlength=len(self.category_ids))
            for ignored in self.gt_ignored
        ]
        return np.stack(counts)

    def test_counts(self) -> dict[str, np.ndarray]:
        """(C,) int64 "test_images" and "test_instances": objects to be found and their images."""
        classes = len(self.category_ids)
        use = ~self.gt_ignored[0]
        pairs = np.unique(self.gt_image[use].astype(np.int64) * classes + self.gt_class[use])
        return {
            "test_images": np.bincount(pairs % classes, minlength=classes),
            "test_instances": np.bincount(self.gt_class[use], minlength=classes),
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write a ``.npz`` file, all or nothing; bools take a bit, `det_gt` only its matches."""
        arrays = dict(vars(self))
        for name in ("matched", "ignored", "gt_ignored"):
            arrays[name] = np.packbits(arrays[name], axis=-1)
        det_gt = arrays.pop("det_gt")
        arrays["det_gt_at"] = np.flatnonzero(det_gt >= 0)
        arrays["det_gt_is"] = det_gt.ravel()[arrays["det_gt_at"]]
        with atomic_file(path, binary=True) as f:
            np.savez(f, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Matches:
        """Read a file of :meth:`save`.

        Raises:
            MissingFileError: no such file.
            DataError: a file that is something else; the message names it.
        """
        path = os.fspath(path)
        if not os.path.isfile(path):
            raise MissingFileError(f"no matches {path}; an evaluation writes them")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return cls(**_unpacked(arrays))
        except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as e:
            raise DataError(f"{path} does not hold matches: {e}") from e


def _unpacked(arrays: dict) -> dict:
    detections, objects = len(arrays["det_row"]), len(arrays["gt_row"])
    for name, number in (("matched", detections), ("ignored", detections), ("gt_ignored", objects)):
        arrays[name] = np.unpackbits(arrays[name], axis=-1, count=number).astype(bool)
    det_gt = np.full((len(arrays["thresholds"]), detections), -1, dtype=np.int32)
    det_gt.ravel()[arrays.pop("det_gt_at")] = arrays.pop("det_gt_is")
    task, areas = str(arrays.pop("task")), tuple(arrays.pop("areas").tolist())
    return {**arrays, "det_gt": det_gt, "task": task, "areas": areas}


# ---- which detections take part --------------------------------------------------------------


@dataclass
class Candidates:
    """The detections that take part in an evaluation, before their areas are known.

    Attributes:
        row: (N,) int64 row of the `Predictions`; ascending among those of an image.
        image: (N,) int64 place of the image, ascending.
        category: (N,) int64 class.
        first: (N,) int64 the first object of that image and class,
        count: (N,) int64 and the number of objects.
        exhaustive: (N,) bool, whether all objects are annotated there.
    """

    row: np.ndarray
    image: np.ndarray
    category: np.ndarray
    first: np.ndarray
    count: np.ndarray
    exhaustive: np.ndarray


def choose_candidates(
    gt: GroundTruth,
    predictions: Predictions,
    *,
    max_detections: int | None = 300,
    max_per_class: int | None = None,
) -> Candidates:
    """The detections that take part; those whose score or box is not finite do not.

    Args:
        gt: ground truth.
        predictions: predictions.
        max_detections: the detections of highest score that each image keeps, over all classes;
            ties: those given first. None: all.
        max_per_class: the same for each class, over all images; ties: in the order of the images.

    Raises:
        DataError: a prediction of an image or class that the ground truth does not have.
    """
    image = _known_images(predictions.image_ids, gt)
    category = _known_classes(predictions, gt)
    rows = np.flatnonzero((image >= 0) & is_finite(predictions))
    for key, limit in ((image, max_detections), (category, max_per_class)):
        if limit is not None:
            rows = rows[_best(key[rows], predictions.scores[rows], image[rows], limit)]
    pair, first, count, exhaustive = _pair_table(gt)
    own = pair[image[rows] * gt.num_classes + category[rows]]
    listed = own != _UNLISTED
    rows, own = rows[listed], own[listed]
    if (np.diff(image[rows]) < 0).any():
        order = np.argsort(image[rows], kind="stable")
        rows, own = rows[order], own[order]
    return Candidates(rows, image[rows], category[rows], first[own], count[own], exhaustive[own])


def _known_images(image_ids: np.ndarray, gt: GroundTruth) -> np.ndarray:
    """(N,) place of each image; -1: an image of the file that is not evaluated."""
    image = positions(image_ids, gt.image_ids)
    outside = np.flatnonzero(image < 0)
    unknown = outside[positions(image_ids[outside], gt.left_out_images) < 0]
    if len(unknown):
        raise DataError(
            f"prediction {unknown[0]} is for image {image_ids[unknown[0]]}, which is not among the "
            f"{len(gt.image_ids) + len(gt.left_out_images)} images of the annotation file; "
            f"{len(unknown)} predictions are for such images"
        )
    return image


def _known_classes(predictions: Predictions, gt: GroundTruth) -> np.ndarray:
    category = positions(predictions.category_ids, gt.category_ids)
    unknown = np.flatnonzero(category < 0)
    if len(unknown):
        row = unknown[0]
        raise DataError(
            f"prediction {row}, of image {predictions.image_ids[row]}, has category id "
            f"{predictions.category_ids[row]}, which is not among the {gt.num_classes} that are "
            f"evaluated; {len(unknown)} predictions have such a category id"
        )
    return category


def _best(key: np.ndarray, scores: np.ndarray, image: np.ndarray, limit: int) -> np.ndarray:
    """(N,) bool: the `limit` of highest score of each key; ties: by image, then as given."""
    keep = np.ones(len(key), dtype=bool)
    sizes = np.bincount(key)
    if not len(key) or sizes.max() <= limit:
        return keep
    over = np.flatnonzero(sizes[key] > limit)
    over = over[np.lexsort((image[over], -scores[over], key[over]))]
    starts = np.concatenate([[0], np.cumsum(sizes * (sizes > limit))[:-1]])
    keep[over[np.arange(len(over)) - starts[key[over]] >= limit]] = False
    return keep


def _pair_table(gt: GroundTruth) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What an image and class have.

    Returns:
        (I * C,) int32, `_UNLISTED` or a place in the others, `_NOTHING` being that of a class
        without objects in an image where all would be annotated. Of each place: the first object,
        the number of objects, and whether all are annotated.
    """
    table = np.full(
        len(gt.image_ids) * gt.num_classes,
        _UNLISTED if gt.federated else _NOTHING,
        dtype=np.int32,
    )
    table[gt.negative] = _NOTHING
    with_objects, start, count = np.unique(gt.pairs(), return_index=True, return_counts=True)
    table[with_objects] = _NOTHING
    empty = gt.not_exhaustive[table[gt.not_exhaustive] == _NOTHING]
    empty = np.setdiff1d(empty, with_objects, assume_unique=True)
    table[with_objects] = 1 + np.arange(len(with_objects))
    table[empty] = 1 + len(with_objects) + np.arange(len(empty))
    first = np.zeros(1 + len(with_objects) + len(empty), dtype=np.int64)
    counts, exhaustive = np.zeros_like(first), np.ones(len(first), dtype=bool)
    first[1 : 1 + len(start)], counts[1 : 1 + len(start)] = start, count
    listed = table[gt.not_exhaustive]
    exhaustive[listed[listed != _UNLISTED]] = False
    return table, first, counts, exhaustive


# ---- matching --------------------------------------------------------------------------------


def match(
    gt: GroundTruth,
    predictions: Predictions,
    candidates: Candidates,
    task: str,
    listed: Sequence[dict] | None = None,
) -> Matches:
    """Match the detections that take part with the ground truth.

    Args:
        gt: ground truth.
        predictions: predictions.
        candidates: of :func:`choose_candidates`.
        task: "bbox" or "segm"; "segm" takes sizes (small, medium, large) from the mask, "bbox"
            from the box.
        listed: what the predictions were made of, if their masks are to be read from there.

    Raises:
        DataError: there are no boxes or masks, or a mask has another size than its image.
    """
    there = task in predictions.tasks or (task == "segm" and has_masks(listed))
    if len(predictions) and not there:
        raise DataError(f"the predictions have no {'boxes' if task == 'bbox' else 'masks'}")
    areas, overlaps = (
        _measure_boxes(gt, predictions, candidates)
        if task == "bbox"
        else _measure_masks(gt, predictions, candidates, listed)
    )
    scores = predictions.scores[candidates.row]
    order = _by_class_and_score(candidates.category, scores, gt.num_classes)
    # The range of `LVIS.get_ann_ids`; what has no area overlaps nothing.
    order = order[(areas[order] > 0) & (areas[order] < np.inf)]
    rank = np.full(len(areas), -1, dtype=np.int32)
    rank[order] = np.arange(len(order))
    overlaps.det = rank[overlaps.det]
    areas, first = areas[order], candidates.first[order]
    gt_ignored = _outside(gt.areas) | gt.ignore
    unmatched_ignored = _outside(areas) | ~candidates.exhaustive[order]
    det_gt, matched, ignored = _assign(overlaps, first, gt_ignored, unmatched_ignored)
    return Matches(
        task=task,
        image_ids=gt.image_ids,
        category_ids=gt.category_ids,
        thresholds=THRESHOLDS,
        areas=AREAS,
        det_image=candidates.image[order].astype(np.int32),
        det_class=candidates.category[order].astype(np.int32),
        det_score=scores[order],
        det_row=candidates.row[order],
        det_gt=det_gt,
        matched=matched,
        ignored=ignored,
        gt_image=gt.gt_image,
        gt_class=gt.gt_class,
        gt_ignored=gt_ignored,
        gt_row=gt.gt_row,
    )


def _by_class_and_score(category: np.ndarray, scores: np.ndarray, classes: int) -> np.ndarray:
    """(N,) order by class, then descending score; ties as they are."""
    # numpy sorts integers of two bytes by radix, others by merging.
    kind = np.uint16 if classes <= 1 << 16 else np.int64
    return np.lexsort((-scores, category.astype(kind)))


def _measure_boxes(
    gt: GroundTruth, predictions: Predictions, candidates: Candidates
) -> tuple[np.ndarray, Overlaps]:
    """(N,) square pixels of the candidates, and the pairs that can match."""
    c = candidates
    boxes = predictions.boxes[c.row] if len(c.row) else np.zeros((0, 4))
    # Columns may be float32, in which an IoU is another number.
    boxes = boxes.astype(np.float64, copy=False)
    areas = boxes[:, 2] * boxes[:, 3]
    return areas, box_overlaps(boxes, gt.boxes, c.first, c.count, THRESHOLDS[0])


def _measure_masks(
    gt: GroundTruth, predictions: Predictions, candidates: Candidates, listed: Sequence[dict] | None
) -> tuple[np.ndarray, Overlaps]:
    """As :func:`_measure_boxes`."""
    c = candidates
    if len(c.row):
        gt.check_masks()

    def name(k):
        return predictions.name(c.row[k])

    def check(of, sizes):
        _check_mask_sizes(of, sizes, gt.image_sizes[c.image[of]], name)

    def read(of):
        rles, sizes = rles_of(listed, c.row[of])
        check(of, sizes)
        return rles

    if listed is not None:
        masks = MaskSource(read)
    else:
        masks = MaskSource(lambda of: predictions.masks(c.row[of]))
        if len(c.row):
            check(np.arange(len(c.row)), predictions.mask_sizes[c.row])
            if predictions.is_measured:
                masks.areas = predictions.mask_areas[c.row]
                masks.boxes = predictions.mask_boxes[c.row]
    return mask_overlaps(masks, gt.rles, c.image, c.first, c.count, THRESHOLDS[0], name)


def _check_mask_sizes(
    of: np.ndarray, sizes: np.ndarray, expected: np.ndarray, name: Callable[[int], str]
) -> None:
    """Raise DataError for a mask of another size than its image.

    pycocotools gives IoU -1 for masks of different sizes, which would be a silent AP of 0.

    Args:
        of: (M,) what the masks are of, for `name`.
        sizes: (M, 2) height and width of masks.
        expected: (M, 2) those of their images.
        name: what a message calls one.
    """
    wrong = (sizes != expected).any(axis=1)
    if wrong.any():
        k = int(np.argmax(wrong))
        (mask_height, mask_width), (height, width) = sizes[k], expected[k]
        raise DataError(
            f"{name(of[k])} has a mask of {mask_height} x {mask_width} (height x width); in the "
            f"annotation file the image is {height} x {width}"
        )


def _outside(areas: np.ndarray) -> np.ndarray:
    """(A, N) bool, outside each range of area."""
    return (areas < AREA_RANGES[:, :1]) | (areas > AREA_RANGES[:, 1:])


def _assign(
    overlaps: Overlaps, first: np.ndarray, gt_ignored: np.ndarray, unmatched_ignored: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match for all thresholds and ranges of area.

    Args:
        overlaps: pairs at the lowest threshold.
        first: (N,) first object of the image and class of each detection: a name of both.
        gt_ignored: (A, G) bool.
        unmatched_ignored: (A, N) bool, ignored if it matches nothing.

    Returns:
        `det_gt`, `matched` and `ignored` of `Matches`.
    """
    areas, number = unmatched_ignored.shape
    thresholds = len(THRESHOLDS)
    det_gt = np.full((thresholds, number), -1, dtype=np.int32)
    matched = np.zeros((areas, thresholds, number), dtype=bool)
    ignored = np.repeat(unmatched_ignored[:, None], thresholds, axis=1)
    group = first[overlaps.det]
    plain = _greedy_all(overlaps, np.zeros(gt_ignored.shape[1], dtype=bool))
    for a, flags in enumerate(gt_ignored):
        # Only where some objects of an image and class are ignored do these change who matches.
        mixed = _mixed(group, flags[overlaps.gt], len(flags))
        own = _greedy_all(overlaps.select(mixed[group]), flags)
        for t in range(thresholds):
            for (det, gt), use in ((plain[t], ~mixed), (own[t], mixed)):
                used = use[first[det]]
                det, gt = det[used], gt[used]
                matched[a, t, det] = True
                ignored[a, t, det] = flags[gt]
                if a == 0:
                    det_gt[t, det] = gt
    return det_gt, matched, ignored


def _mixed(group: np.ndarray, ignored: np.ndarray, number: int) -> np.ndarray:
    """(number,) bool: of the pairs of a group, some are ignored and others are not."""
    some, others = np.zeros(number, dtype=bool), np.zeros(number, dtype=bool)
    some[group[ignored]] = True
    others[group[~ignored]] = True
    return some & others


def _greedy_all(pairs: Overlaps, ignored: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The matched detections and their objects at each threshold; `ignored` is (G,) bool."""
    # A detection prefers objects that are not ignored, then those it overlaps more, then later
    # ones: LVISEval takes a later object of the same IoU.
    pairs = pairs.select(np.lexsort((-pairs.gt, -pairs.iou, ignored[pairs.gt], pairs.det)))
    found = []
    for threshold in THRESHOLDS:
        above = pairs.iou >= threshold
        found.append(_greedy(pairs.det[above], pairs.gt[above]))
    return found


def _greedy(det: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match detections with objects, the best ranked first, each with its first free choice.

    Args:
        det: (P,) detections of pairs; sorted, the better ranked first, so that the pairs of a
            detection are in a row,
        gt: (P,) and in the order of its preference.

    Returns:
        (M,) detections and (M,) objects.
    """
    found = [], []
    best = np.empty(gt.max() + 1 if len(gt) else 0, dtype=det.dtype)
    free_det = np.ones(det[-1] + 1 if len(det) else 0, dtype=bool)
    free_gt = np.ones(len(best), dtype=bool)
    while len(det):
        # Of the detections that are written to the same place the last one stays: the best.
        best[gt[::-1]] = det[::-1]
        certain = best[gt] == det
        certain[1:] &= det[1:] != det[:-1]
        new_det, new_gt = det[certain], gt[certain]
        found[0].append(new_det)
        found[1].append(new_gt)
        free_det[new_det], free_gt[new_gt] = False, False
        left = free_det[det] & free_gt[gt]
        det, gt = det[left], gt[left]
    none = np.zeros(0, dtype=np.int32)
    return np.concatenate([none, *found[0]]), np.concatenate([none, *found[1]])
