"""IoU of detections and ground truth of the same image and class: only the pairs that can match.

Nothing below the lowest threshold can match, and most pairs are below it, so that a list of the
others is short, however many detections there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_utils

from lt_det.evaluation.predictions import MASKS, check_runs

# Pairs, or masks, that are looked at together: their arrays stay in the cache of a processor.
BLOCK = 1 << 15
MASK_BLOCK = 1 << 11
# Pairs of masks, about, that are compared in one call.
_BATCH = 64


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


@dataclass
class MaskSource:
    """Masks of N detections.

    Attributes:
        rles: gives the RLEs of some, (M,) ints.
        areas: (N,) pixels of each, and
        boxes: (N, 4) XYWH around them, as pycocotools computes both; None, both: not known.
    """

    rles: Callable[[np.ndarray], list[dict]]
    areas: np.ndarray | None = None
    boxes: np.ndarray | None = None


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
    masks: MaskSource,
    gt_masks: Callable[[np.ndarray], list[dict]],
    image: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    lowest: float,
    name: Callable[[int], str],
) -> tuple[np.ndarray, Overlaps]:
    """Areas of masks, and the IoU by pycocotools of those that can reach `lowest`.

    Args:
        masks: of N detections, each of the size of its image.
        gt_masks: gives the RLEs of some objects, (M,) ints.
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
        block = _Block(masks, start, stop)
        areas[start:stop] = block.areas
        pairs = _mask_pairs(
            block,
            gt_masks,
            first[start:stop],
            count[start:stop],
            lowest,
            lambda k, start=start: name(start + k),
        )
        parts.append(Overlaps(pairs.det + start, pairs.gt, pairs.iou))
    return areas, _joined(parts)


class _Block:
    """The masks of detections start, ..., stop - 1 of a source, counted from 0.

    Attributes:
        is_measured: whether areas and boxes are known.
        areas: float64 pixels of each.
    """

    def __init__(self, masks: MaskSource, start: int, stop: int):
        self._source, self._start = masks, start
        self.is_measured = masks.areas is not None
        if self.is_measured:
            self.areas = masks.areas[start:stop].astype(np.float64)
        else:
            self._rles = masks.rles(np.arange(start, stop))
            self.areas = _in_pieces(mask_utils.area, self._rles)

    def rles(self, dets: np.ndarray) -> list[dict]:
        """The masks of some, (M,) ints."""
        if self.is_measured:
            return self._source.rles(dets + self._start)
        return [self._rles[k] for k in dets.tolist()]

    def boxes(self, dets: np.ndarray) -> np.ndarray:
        """(M, 4) float64 XYWH of the pixels of some, (M,) ints."""
        if self.is_measured:
            return self._source.boxes[dets + self._start].astype(np.float64)
        return _in_pieces(mask_utils.toBbox, self.rles(dets), 4)


def _mask_pairs(
    block: _Block,
    gt_masks: Callable,
    first: np.ndarray,
    count: np.ndarray,
    lowest: float,
    name: Callable[[int], str],
) -> Overlaps:
    """Pairs of the detections of a block."""
    groups, at = np.unique(first[count > 0], return_index=True)
    objects = ragged(groups, count[count > 0][at])[1]
    gt_rles = gt_masks(objects)
    gt_areas = _in_pieces(mask_utils.area, gt_rles)
    first = np.searchsorted(objects, first)

    def area_bound(det, gt):
        a, b = block.areas[det], gt_areas[gt]
        return np.minimum(a, b) / np.maximum(np.maximum(a, b), 1)

    # Rounding is monotone, so that no IoU is above its bound. Empty masks have IoU 0, not 0 / 0.
    pairs = _above(first, count, area_bound, lowest)
    pairs = pairs.select(_box_bound(pairs, block, gt_rles, gt_areas) >= lowest)
    dets, place = np.unique(pairs.det, return_inverse=True)
    rles = block.rles(dets)
    check_runs(rles, lambda k: name(int(dets[k])))
    pairs.iou = _mask_iou(place, pairs.gt, rles, gt_rles)
    pairs = pairs.select(pairs.iou >= lowest)
    return Overlaps(pairs.det, objects[pairs.gt], pairs.iou)


def _box_bound(
    pairs: Overlaps, block: _Block, gt_rles: list[dict], gt_areas: np.ndarray
) -> np.ndarray:
    """(P,) what the IoU of masks of these areas is at most, by the boxes around them."""
    gt_boxes = _in_pieces(mask_utils.toBbox, gt_rles, 4)
    dets, place = np.unique(pairs.det, return_inverse=True)
    a, b = block.areas[pairs.det], gt_areas[pairs.gt]
    both = box_intersection(block.boxes(dets)[place], gt_boxes[pairs.gt])
    both = np.minimum(both, np.minimum(a, b))
    return both / np.maximum(a + b - both, 1)


def _mask_iou(
    det: np.ndarray, gt: np.ndarray, det_rles: list[dict], gt_rles: list[dict]
) -> np.ndarray:
    """(P,) IoU of pairs of masks.

    A call of pycocotools costs as much as some pairs, and it compares all masks with all objects
    that it gets. So many objects share a call, each with the masks it is paired with, and each
    object and its masks are said to have a width that no other has: pycocotools passes over masks
    of different sizes, and a width that is large enough has no part in what it computes.

    Args:
        det: (P,) place in `det_rles`.
        gt: (P,) place in `gt_rles`.
        det_rles: masks.
        gt_rles: masks of objects; pairs are of masks of the same size.
    """
    iou = np.empty(len(det))
    order = np.argsort(gt, kind="stable")
    det, gt = det[order], gt[order]
    objects, column = np.unique(gt, return_inverse=True)
    for start, end in _batches(gt):
        first, last = column[start], column[end - 1] + 1
        own = [gt_rles[k] for k in objects[first:last].tolist()]
        widest = max(rle["size"][1] for rle in own)
        sizes = [[rle["size"][0], widest + k] for k, rle in enumerate(own)]
        columns = column[start:end] - first
        table = mask_utils.iou(
            [
                {"size": sizes[c], "counts": det_rles[k]["counts"]}
                for k, c in zip(det[start:end].tolist(), columns.tolist(), strict=True)
            ],
            [{"size": size, "counts": rle["counts"]} for size, rle in zip(sizes, own, strict=True)],
            [0] * len(own),
        )
        iou[order[start:end]] = table[np.arange(end - start), columns]
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
    """Ranges of some `_BATCH` pairs that keep equal names, which are in a row, together."""
    starts = np.flatnonzero(np.diff(names, prepend=-1))
    first = np.diff(starts // _BATCH, prepend=-1) > 0
    borders = [*starts[first].tolist(), len(names)]
    yield from zip(borders[:-1], borders[1:], strict=True)


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
    values = [measure(rles[i : i + MASKS]) for i in range(0, len(rles), MASKS)]
    return np.concatenate([np.zeros((0, *shape)), *values])
