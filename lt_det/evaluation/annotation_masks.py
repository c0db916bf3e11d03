"""Masks of annotation files: polygons and run lengths as pycocotools takes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pycocotools.mask as mask_utils

from lt_det.errors import DataError
from lt_det.evaluation.run_lengths import first_broken_text, not_run_lengths, pixels_covered

# Pixels. pycocotools walks along the edges of a polygon, for ever where one is not finite.
_FARTHEST = 1 << 20


class AnnotationError(DataError):
    """A mask of the annotation file that cannot be used; the message names the annotation."""


class Polygons(list):
    """The polygons of a mask as float64 arrays, x, y of each corner, checked by :func:`packed`."""


def is_read(mask) -> bool:
    """Whether it is of `read_masks`: counts in a file are text or a list."""
    return isinstance(mask, dict) and isinstance(mask.get("counts"), bytes)


def read_masks(masks: list, sizes: np.ndarray, annotation_ids: list) -> list[dict]:
    """Masks of an annotation file as RLE whose counts are bytes.

    Args:
        masks: M of them, polygons, also of :func:`packed`, or RLE, also uncompressed; None: none.
        sizes: (M, 2) ints, height and width of the image of each.
        annotation_ids: of each, for messages.

    Raises:
        AnnotationError: one is none of these, or an RLE that has not the size of its image.
    """
    if any(isinstance(mask, list) and not isinstance(mask, Polygons) for mask in masks):
        masks = packed(masks)
    rles, sizes = _rasterised(masks, sizes), sizes.tolist()
    for k in [k for k, rle in enumerate(rles) if rle is None]:
        mask, number = masks[k], annotation_ids[k]
        if mask is None:
            raise AnnotationError(f"annotation {number} has no mask; evaluate boxes only")
        try:
            rles[k] = to_rle(mask, sizes[k])
        # pycocotools raises Exception itself.
        except Exception as e:
            raise AnnotationError(
                f"annotation {number} has the segmentation {mask!r:.60}, which is neither polygons "
                f"nor an RLE: {e!r:.100}"
            ) from e
    given = [k for k, mask in enumerate(masks) if isinstance(mask, dict)]
    if not given:
        return rles
    counts = [rles[k]["counts"] for k in given]
    ends = np.cumsum([0, *map(len, counts)])
    broken = first_broken_text(np.frombuffer(b"".join(counts), dtype=np.uint8), ends)
    if broken is not None:
        raise AnnotationError(
            f"annotation {annotation_ids[given[broken]]} {not_run_lengths(counts[broken])}"
        )
    for k, pixels in zip(given, pixels_covered(counts).tolist(), strict=True):
        size = list(rles[k]["size"])
        if size != sizes[k] or pixels != sizes[k][0] * sizes[k][1]:
            raise AnnotationError(
                f"annotation {annotation_ids[k]} has a mask of size {size} "
                f"whose runs cover {pixels} pixels; its image has height and width {sizes[k]}"
            )
        # 130.0, which pycocotools does not take, is equal to 130.
        rles[k]["size"] = sizes[k]
    return rles


def packed(masks: list) -> list:
    """Masks with their polygons as arrays, which take a third of the memory of lists.

    Args:
        masks: polygons, RLE or None, as in an annotation file.

    Returns:
        The masks, with :class:`Polygons`; `masks` itself if one of all polygons is wrong, or a
        box, which has 4 numbers.
    """
    plain = [k for k, mask in enumerate(masks) if isinstance(mask, list)]
    polygons = [polygon for k in plain for polygon in masks[k]]
    try:
        corners = np.array(list(chain.from_iterable(polygons)))
        lengths = np.array(list(map(len, polygons)), dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        return masks
    if corners.ndim != 1 or corners.dtype.kind not in "if":
        return masks
    if (lengths < 6).any() or (lengths % 2).any():
        return masks
    if not ((corners > -_FARTHEST) & (corners < _FARTHEST)).all():
        return masks
    corners, ends = corners.astype(np.float64, copy=False), np.cumsum(lengths).tolist()
    arrays = [corners[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    masks, start = list(masks), 0
    for k in plain:
        end = start + len(masks[k])
        masks[k], start = Polygons(arrays[start:end]), end
    return masks


def _rasterised(masks: list, sizes: np.ndarray) -> list[dict | None]:
    """RLEs of the masks that are packed polygons, many in a call; None: of others."""
    rles = [None] * len(masks)
    own = [k for k, mask in enumerate(masks) if isinstance(mask, Polygons)]
    number = np.array([len(masks[k]) for k in own], dtype=np.int64)
    polygons = list(chain.from_iterable(masks[k] for k in own))
    parts = _rasterised_polygons(polygons, np.repeat(sizes[own], number, axis=0))
    if len(parts) > len(own):
        ends = np.cumsum(number).tolist()
        parts = [_union(parts[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    for k, rle in zip(own, parts, strict=True):
        rles[k] = rle
    return rles


def _rasterised_polygons(polygons: list[np.ndarray], sizes: np.ndarray) -> list[dict]:
    """The RLE of each of P polygons in images of (P, 2) height and width; one call a size."""
    rles = [None] * len(polygons)
    code = sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1]
    for size in np.unique(code).tolist():
        own = np.flatnonzero(code == size).tolist()
        found = mask_utils.frPyObjects([polygons[i] for i in own], size >> 32, size & 0xFFFFFFFF)
        for i, rle in zip(own, found, strict=True):
            rles[i] = rle
    return rles


def _union(rles: list[dict]) -> dict:
    """The union of masks of one image."""
    # Merging takes as long as making them.
    return rles[0] if len(rles) == 1 else mask_utils.merge(rles)


def to_rle(segmentation, size: Sequence[int]) -> dict:
    """RLE, with counts as bytes, of polygons, of an uncompressed RLE or of an RLE.

    Args:
        segmentation: as in an annotation file.
        size: height and width of the image.
    """
    if isinstance(segmentation, list):
        # pycocotools looks at the first one alone; with 4 numbers that is a box, as for LVISEval.
        lengths = set(map(len, segmentation))
        if min(lengths) < 4 or any(n % 2 for n in lengths):
            raise ValueError("a polygon is x, y of each corner")
        for polygon in segmentation:
            if not (
                -_FARTHEST < min(polygon) and max(polygon) < _FARTHEST and sum(polygon) < np.inf
            ):
                raise ValueError("a coordinate is not finite or too far outside")
        return _union(mask_utils.frPyObjects(segmentation, *size))
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return mask_utils.frPyObjects(segmentation, *size)
    counts = counts.encode("ascii") if isinstance(counts, str) else bytes(memoryview(counts))
    return {"size": list(segmentation["size"]), "counts": counts}
