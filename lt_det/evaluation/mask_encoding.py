"""Masks that a network predicts inside boxes, as the run lengths of whole images.

What Detectron2 does in two steps, ``paste_masks_in_image`` and ``pycocotools.mask.encode``, is
done in one here that never makes an image. Between two rows of a mask its interpolated values
rise or fall evenly, so where a column of pixels enters or leaves the mask can be computed; the
pixels need not be.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

from lt_det.evaluation.run_lengths import encode_edges

THRESHOLD = 0.5
# Values computed here and by torch differ by less than this times (M + 4): both round positions of
# up to M and sums of up to 1 to 24 bits, a few times each.
_ROUNDING = 2.0**-22
# Columns of pixels that are looked at together: 1 MB for masks of 28 x 28, which stays in the cache
# of a core.
_BLOCK = 2**13


def encode_masks(masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]) -> list[bytes]:
    """Paste masks into an image and encode where they are at least 0.5.

    The strings are those of Detectron2's ``paste_masks_in_image`` on a CPU and
    ``pycocotools.mask.encode``: bilinear interpolation between the centres of the M x M cells, and
    zeros around them. Masks with a value so close to 0.5 that the order of roundings decides are
    pasted by the function that Detectron2 uses, see :func:`paste_in_box`.

    Deviations: half precision is computed in float32; a box outside of the image gives an empty
    mask, where Detectron2 fails.

    Args:
        masks: (N, M, M) floats, probabilities.
        boxes: (N, 4) XYXY in pixels of the image; they may reach over its borders.
        image_size: (height, width) in pixels.

    Returns:
        N strings, the compressed "counts" of COCO's run lengths, column by column.

    Raises:
        ValueError: shapes that do not fit, a box that is not finite or ends before it starts.
    """
    masks = np.ascontiguousarray(masks, dtype=np.float32)
    boxes = np.ascontiguousarray(boxes, dtype=np.float32)
    height, width = (int(n) for n in image_size)
    _check(masks, boxes, height, width)
    first, last = (
        np.clip(side, 0, width).astype(np.int64)
        for side in (np.floor(boxes[:, 0]), np.ceil(boxes[:, 2]))
    )
    columns = np.where((boxes[:, 2:] > boxes[:, :2]).all(axis=1), last - first, 0)
    texts = []
    for part in _blocks(columns):
        edges, of = _edges(masks[part], boxes[part], first[part], columns[part], (height, width))
        texts += encode_edges(edges, of, len(columns[part]), height * width)
    return texts


def _check(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> None:
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or boxes.shape != (len(masks), 4):
        raise ValueError(
            f"masks must be (N, M, M) and boxes (N, 4), got {masks.shape} and {boxes.shape}"
        )
    if min(height, width, masks.shape[1]) < 1:
        raise ValueError(f"an image of {height} x {width} pixels, masks of {masks.shape}")
    bad = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1))
    if bad.any():
        k = int(bad.argmax())
        raise ValueError(f"box {k} is not x0 <= x1, y0 <= y1, all finite: {boxes[k].tolist()}")


def _blocks(columns: np.ndarray) -> Iterator[slice]:
    """Slices of neighbouring masks with up to `_BLOCK` columns together, or one mask."""
    ends, start = np.cumsum(columns), 0
    while start < len(columns):
        before = ends[start] - columns[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + _BLOCK, side="right")))
        yield slice(start, stop)
        start = stop


def _edges(
    masks: np.ndarray,
    boxes: np.ndarray,
    first: np.ndarray,
    columns: np.ndarray,
    image_size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels at which masks change, counted column by column, and the mask of each.

    Args:
        masks: (n, M, M) float32.
        boxes: (n, 4) float32.
        first: (n,) int64 first column of pixels that the box touches.
        columns: (n,) int64 number of such columns; 0: the mask is empty.
        image_size: (height, width).

    Returns:
        ``edges`` (E,) int64, rising in each mask: a mask starts at the first, third ... and ends
        before the second, fourth ...; ``of`` (E,) int64, index of the mask, rising.
    """
    height = image_size[0]
    certain = _are_probabilities(masks)
    fast = np.where(certain, columns, 0)
    of_column = np.repeat(np.arange(len(masks)), fast)
    column = np.arange(len(of_column)) - np.repeat(np.cumsum(fast) - fast - first, fast)
    values = _column_values(masks, boxes, of_column, column)
    at, row, unsure = _crossings(values, boxes[of_column], height)
    certain[of_column[unsure]] = False
    of = of_column[at]
    kept = certain[of]
    edges, of = (column[at] * height + row)[kept], of[kept]
    pasted = np.flatnonzero(~certain & (columns > 0))
    if len(pasted):
        more = [paste_in_box(masks[k], boxes[k], image_size) for k in pasted]
        of = np.concatenate([of, np.repeat(pasted, [len(e) for e in more])])
        order = np.argsort(of, kind="stable")
        edges, of = np.concatenate([edges, *more])[order], of[order]
    return _without_pairs(edges, of)


def _are_probabilities(masks: np.ndarray) -> np.ndarray:
    """(n,) bool; False also for NaN."""
    flat = masks.reshape(len(masks), -1)
    return (flat.min(axis=1) >= 0) & (flat.max(axis=1) <= 1)


def _column_values(
    masks: np.ndarray, boxes: np.ndarray, of: np.ndarray, column: np.ndarray
) -> np.ndarray:
    """(R, M + 2) float32: `masks` interpolated at R columns of pixels, less the threshold.

    The first and last value of each are of the zeros around a mask.
    """
    cells = masks.shape[1]
    padded = np.zeros((len(masks), cells + 2, cells + 2), dtype=np.float32)
    padded[:, 1:-1, 1:-1] = masks.transpose(0, 2, 1)
    padded -= np.float32(THRESHOLD)
    x = np.clip(_positions(column, boxes[of, 0], boxes[of, 2], cells), -1, cells)
    left = np.minimum(np.floor(x), cells - 1)
    index = of * (cells + 2) + left.astype(np.int64) + 1
    padded = padded.reshape(-1, cells + 2)
    values = padded[index]
    step = padded[index + 1]
    step -= values
    step *= (x - left)[:, None]
    values += step
    return values


def _positions(pixels: np.ndarray, low: np.ndarray, high: np.ndarray, cells: int) -> np.ndarray:
    """Where the centres of pixels lie between the centres of the cells of a mask; 0: the first.

    With the roundings of ``paste_masks_in_image`` and ``grid_sample``.

    Args:
        pixels: (R,) column or row.
        low: (R,) float32 first side of the box.
        high: (R,) float32 last side, above `low`.
        cells: M.

    Returns:
        (R,) float32, beyond 0..M - 1 outside of the centres.
    """
    return (_grid(pixels, low, high) + 1) * np.float32(cells / 2) - np.float32(0.5)


def _grid(pixels: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Float32 places of the centres of pixels for ``grid_sample``: -1, 1 are the sides of a box."""
    return (pixels.astype(np.float32) + np.float32(0.5) - low) / (high - low) * 2 - 1


def _crossings(
    values: np.ndarray, boxes: np.ndarray, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the columns cross zero.

    Args:
        values: (R, M + 2) float32 of :func:`_column_values`.
        boxes: (R, 4) float32 box of each.
        height: of the image.

    Returns:
        ``at`` (E,) int64, column of each crossing; ``row`` (E,) int64, 0..height, first pixel
        after it; ``unsure`` (any,) int64, columns in which rounding may decide.
    """
    cells = values.shape[1] - 2
    error = np.float32(_ROUNDING * (cells + 4))
    inside = values >= 0
    change = np.flatnonzero(inside[:, 1:] != inside[:, :-1])
    at, cell = np.divmod(change, cells + 1)
    flat = values.reshape(-1)
    before = flat[change + at]
    slope = flat[change + at + 1] - before
    # From here in float64: only what torch rounds is to be rounded.
    crossing = cell - 1 - before / slope.astype(np.float64)
    low, high = boxes[at, 1], boxes[at, 3]
    pixels = (high.astype(np.float64) - low) / cells
    pixel = (crossing + 0.5) * pixels + low - 0.5
    near = _positions(np.rint(pixel), low, high, cells)
    close = np.abs((near - crossing) * slope) <= error
    close |= np.abs(slope) <= 2 * error * pixels
    touching = np.flatnonzero(np.abs(flat) <= error) // (cells + 2)
    row = np.clip(np.ceil(pixel), 0, height).astype(np.int64)
    return at, row, np.concatenate([at[close], touching])


def paste_in_box(mask: np.ndarray, box: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Edges of one mask from its pixels, for masks in which rounding decides.

    The values are those of ``paste_masks_in_image`` in its region, to the last bit.

    Args:
        mask: (M, M) float32.
        box: (4,) float32 XYXY with an area, at least partly inside of the image.
        image_size: (height, width).

    Returns:
        (E,) int64 as of :func:`_edges`, with an end and a start at the same pixel where two
        columns join.
    """
    height, width = image_size
    x0, y0 = np.maximum(np.floor(box[:2]) - 1, 0).astype(np.int64)
    x1, y1 = np.minimum(np.ceil(box[2:]) + 1, (width, height)).astype(np.int64)
    if y1 <= y0:
        return np.zeros(0, dtype=np.int64)
    grid = np.empty((1, y1 - y0, x1 - x0, 2), dtype=np.float32)
    grid[..., 0] = _grid(np.arange(x0, x1), box[0], box[2])
    grid[..., 1] = _grid(np.arange(y0, y1), box[1], box[3])[:, None]
    values = F.grid_sample(
        torch.from_numpy(mask)[None, None], torch.from_numpy(grid), align_corners=False
    )[0, 0]
    inside = np.zeros((x1 - x0, y1 - y0 + 1), dtype=bool)
    inside[:, :-1] = (values >= THRESHOLD).numpy().T
    column, row = np.divmod(np.flatnonzero(np.diff(inside.reshape(-1), prepend=False)), y1 - y0 + 1)
    return (column + x0) * height + row + y0


def _without_pairs(edges: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop what starts where it ends, and an end with the start that follows at the same pixel."""
    same = (edges[1:] == edges[:-1]) & (of[1:] == of[:-1])
    if not same.any():
        return edges, of
    start = np.flatnonzero(np.concatenate([[True], ~same]))
    odd = np.diff(start, append=len(edges)) % 2 == 1
    return edges[start[odd]], of[start[odd]]
