"""IoU of detections and ground truth of the same image and class: only the pairs that can match.

Nothing below the lowest threshold can match, and most pairs are below it, so that a list of the
others is short, however many detections there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_utils

# Pairs, or masks, that are looked at together: their arrays stay in the cache of a processor.
BLOCK = 1 << 15
# pycocotools 2.0.11 counts the masks of `area` in 8 bits.
_MASKS = 255


@dataclass
class Overlaps:
    """P pairs of a detection and an object, sorted by detection.

    Attributes:
        det: (P,) int32 detection.
        gt: (P,) int32 object.
        iou: (P,) float64.
    """

    det: np.ndarray
    gt: np.ndarray
    iou: np.ndarray

    def select(self, rows: np.ndarray) -> Overlaps:
        """Some pairs: (M,) ints, or (P,) bool."""
        return Overlaps(self.det[rows], self.gt[rows], self.iou[rows])


def ragged(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows of numbers start, ..., start + count - 1: the row of each number, the numbers."""
    rows = np.repeat(np.arange(len(counts)), counts)
    shift = starts - (np.cumsum(counts) - counts)
    return rows, np.arange(len(rows)) + shift[rows]


def box_overlaps(
    det_boxes: np.ndarray,
    gt_boxes: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    lowest: float,
) -> Overlaps:
    """IoU of boxes, in the arithmetic of pycocotools.

    Args:
        det_boxes: (N, 4) XYWH.
        gt_boxes: (G, 4) XYWH.
        first: (N,) the first object of the image and class of each detection,
        count: (N,) and their number; they are in a row.
        lowest: IoU of the pairs that are kept.
    """

    def overlap(det, gt):
        return box_iou(det_boxes[det], gt_boxes[gt])

    return _above(first, count, overlap, lowest)


def mask_overlaps(
    det_masks: Callable[[np.ndarray], list[dict]],
    det_areas: np.ndarray,
    gt_masks: Callable[[np.ndarray], list[dict]],
    first: np.ndarray,
    count: np.ndarray,
    lowest: float,
) -> Overlaps:
    """IoU of masks by pycocotools, for pairs whose areas and boxes allow `lowest`.

    Args:
        det_masks: gives the RLEs of some detections, (M,) ints.
        det_areas: (N,) float64 pixels of each.
        gt_masks: gives the RLEs of some objects.
        first: (N,) as in :func:`box_overlaps`.
        count: (N,) as there.
        lowest: as there.
    """
    compared = np.flatnonzero(count)
    det_boxes = np.zeros((len(det_areas), 4))
    det_boxes[compared] = mask_boxes(det_masks, compared)
    objects = np.unique(ragged(first[compared], count[compared])[1])
    rles = gt_masks(objects)
    number = int(objects[-1]) + 1 if len(objects) else 0
    gt_boxes, gt_areas = np.zeros((number, 4)), np.zeros(number)
    gt_boxes[objects] = _in_pieces(mask_utils.toBbox, rles, 4)
    gt_areas[objects] = _in_pieces(mask_utils.area, rles)

    def bound(det, gt):
        both = np.minimum(det_areas[det], gt_areas[gt])
        both = np.minimum(both, box_intersection(det_boxes[det], gt_boxes[gt]))
        # Rounding is monotone, so that a mask IoU is never above its bound. Empty masks have
        # IoU 0, not 0 / 0.
        return both / np.maximum(det_areas[det] + gt_areas[gt] - both, 1)

    pairs = _above(first, count, bound, lowest)
    rle_of = dict(zip(objects.tolist(), rles, strict=True))
    pairs.iou = _mask_iou(pairs, det_masks, rle_of, first)
    keep = pairs.iou >= lowest
    return pairs.select(keep)


def _above(first: np.ndarray, count: np.ndarray, measure: Callable, lowest: float) -> Overlaps:
    """The pairs for which `measure(det, gt)` is at least `lowest`."""
    parts = [], [], []
    for start, stop in _blocks(count):
        row, gt = ragged(first[start:stop], count[start:stop])
        det = row + start
        value = measure(det, gt)
        keep = value >= lowest
        for part, column in zip(parts, (det, gt, value), strict=True):
            part.append(column[keep])
    kinds = (np.int32, np.int32, np.float64)
    columns = [
        np.concatenate([np.zeros(0, kind), *part]).astype(kind, copy=False)
        for part, kind in zip(parts, kinds, strict=True)
    ]
    return Overlaps(*columns)


def _blocks(count: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of detections with some `BLOCK` pairs each."""
    ends = np.cumsum(count)
    start, total = 0, int(ends[-1]) if len(ends) else 0
    done = 0
    while done < total:
        stop = max(start + 1, int(np.searchsorted(ends, done + BLOCK, side="right")))
        yield start, stop
        start, done = stop, int(ends[stop - 1])


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P,) IoU of the boxes (P, 4) XYWH in the same rows; 0 where they do not overlap."""
    both = box_intersection(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = both / (a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - both)
    return np.where(both > 0, iou, 0.0)


def box_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P,) area that the boxes (P, 4) XYWH in the same rows share."""
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, 2:] + a[:, :2], b[:, 2:] + b[:, :2])
    side = np.maximum(high - low, 0.0)
    return side[:, 0] * side[:, 1]


def mask_areas(masks: Callable[[np.ndarray], list[dict]], rows: np.ndarray) -> np.ndarray:
    """(M,) float64 pixels of the masks of some rows, (M,) ints."""
    parts = [
        _in_pieces(mask_utils.area, masks(rows[start : start + _MASKS]))
        for start in range(0, len(rows), _MASKS)
    ]
    return np.concatenate([np.zeros(0), *parts])


def mask_boxes(masks: Callable[[np.ndarray], list[dict]], rows: np.ndarray) -> np.ndarray:
    """(M, 4) XYWH boxes around the masks of some rows, (M,) ints."""
    parts = [
        _in_pieces(mask_utils.toBbox, masks(rows[start : start + _MASKS]), 4)
        for start in range(0, len(rows), _MASKS)
    ]
    return np.concatenate([np.zeros((0, 4)), *parts])


def _in_pieces(measure: Callable, rles: list[dict], *shape: int) -> np.ndarray:
    """(M, *shape) float64, what a function of pycocotools gives for M masks."""
    values = [measure(rles[i : i + _MASKS]) for i in range(0, len(rles), _MASKS)]
    return np.concatenate([np.zeros((0, *shape)), *values])


def _mask_iou(
    pairs: Overlaps, det_masks: Callable, rle_of: dict[int, dict], first: np.ndarray
) -> np.ndarray:
    """(P,) IoU of the pairs, one call of pycocotools for those of an image and class."""
    iou = np.zeros(len(pairs.det))
    # The first object of an image and class is a name of both.
    order = np.argsort(first[pairs.det], kind="stable")
    names = first[pairs.det[order]]
    borders = np.flatnonzero(np.diff(names)) + 1
    for part in np.split(order, borders) if len(order) else ():
        dets, row = np.unique(pairs.det[part], return_inverse=True)
        objects, column = np.unique(pairs.gt[part], return_inverse=True)
        table = mask_utils.iou(
            det_masks(dets), [rle_of[k] for k in objects.tolist()], [0] * len(objects)
        )
        iou[part] = table[row, column]
    return iou
