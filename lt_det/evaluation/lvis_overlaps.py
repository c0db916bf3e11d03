"""IoU of detections and ground truth of the same image and class: only the pairs that can match.

Nothing below the lowest threshold can match, and most pairs are below it, so that a list of the
others is short, however many detections there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_utils

from lt_det.errors import DataError
from lt_det.evaluation.run_lengths import pixels_covered

# Pairs, or masks, that are looked at together: their arrays stay in the cache of a processor.
BLOCK = 1 << 15
MASK_BLOCK = 1 << 10
# Pairs of masks, at least, that are compared in one call.
_BATCH = 6
# pycocotools 2.0.11 counts the masks of `area` in 8 bits.
_MASKS = 255


@dataclass
class Overlaps:
    """P pairs of a detection and an object.

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

    Returns:
        Pairs sorted by detection.
    """

    def overlap(det, gt):
        return box_iou(det_boxes[det], gt_boxes[gt])

    return _above(first, count, overlap, lowest)


def mask_overlaps(
    det_masks: Callable[[np.ndarray], list[dict]],
    gt_masks: Callable[[np.ndarray], list[dict]],
    image: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    lowest: float,
    name: Callable[[int], str],
) -> tuple[np.ndarray, Overlaps]:
    """Areas of masks, and the IoU by pycocotools of those that can reach `lowest`.

    Args:
        det_masks: gives the RLEs of some detections, (M,) ints.
        gt_masks: the same for objects.
        image: (N,) image of each detection, ascending.
        first: (N,) as in :func:`box_overlaps`.
        count: (N,) as there.
        lowest: as there.
        name: what a message calls a detection.

    Returns:
        (N,) float64 pixels of each detection; pairs.

    Raises:
        DataError: a mask whose runs are not those of its size, with which pycocotools does not
            come to an end.
    """
    areas, parts = np.zeros(len(image)), [_no_overlaps()]
    for start, stop in _blocks_of_images(image):
        rles = det_masks(np.arange(start, stop))
        areas[start:stop] = own = _in_pieces(mask_utils.area, rles)
        pairs = _mask_pairs(
            rles,
            own,
            gt_masks,
            first[start:stop],
            count[start:stop],
            lowest,
            lambda k, start=start: name(start + k),
        )
        parts.append(Overlaps(pairs.det + start, pairs.gt, pairs.iou))
    return areas, _joined(parts)


def _mask_pairs(
    rles: list[dict],
    areas: np.ndarray,
    gt_masks: Callable,
    first: np.ndarray,
    count: np.ndarray,
    lowest: float,
    name: Callable[[int], str],
) -> Overlaps:
    """Pairs of detections whose masks are `rles`."""
    objects = np.unique(ragged(first, count)[1])
    gt_rles = gt_masks(objects)
    gt_areas = _in_pieces(mask_utils.area, gt_rles)
    first = np.searchsorted(objects, first)

    def area_bound(det, gt):
        a, b = areas[det], gt_areas[gt]
        return np.minimum(a, b) / np.maximum(np.maximum(a, b), 1)

    # Rounding is monotone, so that no IoU is above its bound. Empty masks have IoU 0, not 0 / 0.
    pairs = _above(first, count, area_bound, lowest)
    bound = _box_bound(pairs, rles, areas, gt_rles, gt_areas)
    pairs = pairs.select(bound >= lowest)
    _check_runs(rles, np.unique(pairs.det), name)
    pairs.iou = _mask_iou(pairs, first, rles, gt_rles)
    pairs = pairs.select(pairs.iou >= lowest)
    return Overlaps(pairs.det, objects[pairs.gt], pairs.iou)


def _check_runs(rles: list[dict], dets: np.ndarray, name: Callable[[int], str]) -> None:
    """Raise DataError for the first of `dets` whose runs do not cover the mask."""
    own = [rles[k] for k in dets.tolist()]
    covered = pixels_covered([rle["counts"] for rle in own])
    sizes = np.array([rle["size"] for rle in own], dtype=np.int64).reshape(-1, 2)
    wrong = np.flatnonzero(covered != sizes[:, 0] * sizes[:, 1])
    if len(wrong):
        height, width = sizes[wrong[0]]
        raise DataError(
            f"{name(int(dets[wrong[0]]))} has a mask of {height} x {width} pixels whose runs cover "
            f"{covered[wrong[0]]}"
        )


def _box_bound(
    pairs: Overlaps,
    rles: list[dict],
    areas: np.ndarray,
    gt_rles: list[dict],
    gt_areas: np.ndarray,
) -> np.ndarray:
    """(P,) what the IoU of masks of these areas is at most, by the boxes around them."""
    gt_boxes = _in_pieces(mask_utils.toBbox, gt_rles, 4)
    dets = np.unique(pairs.det)
    boxes = np.zeros((len(rles), 4))
    boxes[dets] = _in_pieces(mask_utils.toBbox, [rles[k] for k in dets.tolist()], 4)
    a, b = areas[pairs.det], gt_areas[pairs.gt]
    both = box_intersection(boxes[pairs.det], gt_boxes[pairs.gt])
    both = np.minimum(both, np.minimum(a, b))
    return both / np.maximum(a + b - both, 1)


def _mask_iou(
    pairs: Overlaps, first: np.ndarray, rles: list[dict], gt_rles: list[dict]
) -> np.ndarray:
    """(P,) IoU of the pairs.

    A call of pycocotools costs as much as dozens of pairs whose boxes do not overlap, so that some
    images and classes share one.

    Args:
        pairs: their IoU is not read.
        first: (N,) first object of the image and class of each detection: a name of both.
        rles: the mask of each detection.
        gt_rles: the mask of each object.
    """
    iou = np.zeros(len(pairs.det))
    order = np.argsort(first[pairs.det], kind="stable")
    all_dets, all_gts = pairs.det[order].tolist(), pairs.gt[order].tolist()
    for start, end in _batches(first[pairs.det[order]]):
        dets, gts = all_dets[start:end], all_gts[start:end]
        row = {det: i for i, det in enumerate(dict.fromkeys(dets))}
        column = {gt: i for i, gt in enumerate(dict.fromkeys(gts))}
        table = mask_utils.iou(
            [rles[det] for det in row], [gt_rles[gt] for gt in column], [0] * len(column)
        )
        own = table[[row[det] for det in dets], [column[gt] for gt in gts]]
        iou[order[start:end]] = own
    return iou


# ---- blocks ------------------------------------------------------------------------------------


def ragged(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows of numbers start, ..., start + count - 1: the row of each number, the numbers."""
    rows = np.repeat(np.arange(len(counts)), counts)
    shift = starts - (np.cumsum(counts) - counts)
    return rows, np.arange(len(rows)) + shift[rows]


def _above(first: np.ndarray, count: np.ndarray, measure: Callable, lowest: float) -> Overlaps:
    """The pairs for which `measure(det, gt)` is at least `lowest`."""
    parts = [_no_overlaps()]
    for start, stop in _blocks(count):
        row, gt = ragged(first[start:stop], count[start:stop])
        det = row + start
        value = measure(det, gt)
        keep = value >= lowest
        parts.append(Overlaps(det[keep], gt[keep], value[keep]))
    return _joined(parts)


def _no_overlaps() -> Overlaps:
    return Overlaps(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0))


def _joined(parts: Sequence[Overlaps]) -> Overlaps:
    det, gt, iou = (np.concatenate([vars(p)[name] for p in parts]) for name in vars(parts[0]))
    return Overlaps(det.astype(np.int32), gt.astype(np.int32), iou)


def _blocks(count: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of detections with some `BLOCK` pairs each."""
    ends = np.cumsum(count)
    start, done, total = 0, 0, int(ends[-1]) if len(ends) else 0
    while done < total:
        stop = max(start + 1, int(np.searchsorted(ends, done + BLOCK, side="right")))
        yield start, stop
        start, done = stop, int(ends[stop - 1])


def _blocks_of_images(image: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of some `MASK_BLOCK` detections that keep those of an image together."""
    start = 0
    while start < len(image):
        last = image[min(start + MASK_BLOCK, len(image)) - 1]
        stop = int(np.searchsorted(image, last, side="right"))
        yield start, stop
        start = stop


def _batches(names: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of at least `_BATCH` pairs, but for the last, that keep equal names together."""
    if not len(names):
        return
    ends = np.append(np.flatnonzero(np.diff(names)) + 1, len(names)).tolist()
    start = 0
    for end in ends:
        if end - start >= _BATCH or end == ends[-1]:
            yield start, end
            start = end


# ---- boxes and masks ---------------------------------------------------------------------------


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


def _in_pieces(measure: Callable, rles: list[dict], *shape: int) -> np.ndarray:
    """(M, *shape) float64, what a function of pycocotools gives for M masks."""
    values = [measure(rles[i : i + _MASKS]) for i in range(0, len(rles), _MASKS)]
    return np.concatenate([np.zeros((0, *shape)), *values])
