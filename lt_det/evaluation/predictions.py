"""Predicted boxes and masks as columns: a few large arrays in place of millions of dicts."""

from __future__ import annotations

import glob
import numbers
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from operator import contains

import numpy as np
import orjson
import pycocotools.mask as mask_utils

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.json_files import gc_paused
from lt_det.evaluation.results import atomic_file
from lt_det.evaluation.run_lengths import (
    first_broken_text,
    is_run_length_text,
    joined,
    not_run_lengths,
    pixels_covered,
)

# Dicts that are read at once: few enough to stay in the cache of a processor between columns.
BLOCK = 256
# pycocotools 2.0.11 counts the masks of `area` in 8 bits.
MASKS = 255
_COLUMNS = ("image_ids", "category_ids", "scores")
_MASK_COLUMNS = ("mask_sizes", "mask_counts", "mask_offsets")
_MEASURES = ("mask_areas", "mask_boxes")


@dataclass(frozen=True, eq=False)
class Predictions:
    """N predictions, one per row, in the order in which they were made.

    Attributes:
        image_ids: (N,) int64, as in the annotation file.
        category_ids: (N,) int64, as in the annotation file.
        scores: (N,) float64.
        boxes: (N, 4) float64 XYWH in pixels; None: there are none.
        mask_sizes: (N, 2) int32 height and width of the mask of each row; None: no masks.
        mask_counts: (B,) uint8, the compressed run lengths of all masks, as pycocotools has
            them, one after the other.
        mask_offsets: (N + 1,) int64, where in `mask_counts` those of each row begin, and B.
        mask_areas: (N,) int64 pixels of each mask, and
        mask_boxes: (N, 4) int32 XYWH around them, as pycocotools computes both; None: they are
            computed when needed. The evaluation takes them as they are, see :meth:`measured`.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray | None = None
    mask_sizes: np.ndarray | None = None
    mask_counts: np.ndarray | None = None
    mask_offsets: np.ndarray | None = None
    mask_areas: np.ndarray | None = None
    mask_boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def tasks(self) -> set[str]:
        """What there is to evaluate: "bbox" if there are boxes, "segm" if there are masks."""
        has = {"bbox": self.boxes is not None, "segm": self.mask_sizes is not None}
        return {task for task, there in has.items() if there}

    @classmethod
    def from_results(cls, results: Iterable[dict], masks: bool = True) -> Predictions:
        """Columns of predictions in the results format of LVIS and COCO.

        Args:
            results: dicts with "image_id", "category_id", "score", and "bbox" (XYWH, pixels) or
                "segmentation" (RLE, compressed or not) or both; all have what the first one has.
            masks: False: masks are not read, and there are no columns of them.

        Raises:
            DataError: an entry lacks something or holds something else; the message has its
                number.
        """
        return _columns(results if isinstance(results, Sequence) else list(results), 0, masks)

    @classmethod
    def from_pieces(cls, pieces: Iterable[Sequence[dict]], masks: bool = True) -> Predictions:
        """As :meth:`from_results`, of lists that come one after the other."""
        parts, number = [], 0
        for piece in pieces:
            parts.append(_columns(piece, number, masks))
            number += len(piece)
        return concatenate(parts)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Predictions:
        """Read columns from a file of :meth:`save`, or from all of a folder.

        Args:
            path: a ``.npz`` file, or a folder; its ``.npz`` files, also those in folders in
                it, are read in the order of their names.

        Raises:
            MissingFileError: no such file, or nothing in the folder.
            DataError: a file that is something else; the message names it.
        """
        path = os.fspath(path)
        if not os.path.isdir(path):
            return _load(path)
        files = sorted(glob.glob(os.path.join(glob.escape(path), "**", "*.npz"), recursive=True))
        if not files:
            raise MissingFileError(f"no column files (.npz) in the folder {path}")
        return concatenate([_load(file) for file in files])

    def save(self, path: str | os.PathLike) -> None:
        """Write the columns to a ``.npz`` file, all or nothing."""
        columns = {k: v for k, v in vars(self).items() if v is not None}
        with atomic_file(path, binary=True) as f:
            np.savez(f, **columns)

    def measured(self) -> Predictions:
        """With `mask_areas` and `mask_boxes`, so that no evaluation needs to compute them.

        Raises:
            DataError: the run lengths of a mask are broken or do not cover its size.
        """
        if self.mask_sizes is None:
            return self
        areas, boxes = np.empty(len(self), np.int64), np.empty((len(self), 4), np.int32)
        for start in range(0, len(self), MASKS):
            part = slice(start, start + MASKS)
            rles = self.masks(np.arange(len(self))[part])
            check_runs(rles, lambda k, start=start: self.name(start + k))
            areas[part], boxes[part] = mask_utils.area(rles), mask_utils.toBbox(rles)
        return replace(self, mask_areas=areas, mask_boxes=boxes)

    @property
    def is_measured(self) -> bool:
        """Whether areas and boxes of the masks are known."""
        return self.mask_areas is not None and self.mask_boxes is not None

    def name(self, row: int) -> str:
        """What a message calls a row."""
        return f"prediction {row}, of image {self.image_ids[row]},"

    def select(self, rows: np.ndarray) -> Predictions:
        """Some rows: (M,) ints, or (N,) bool."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        boxes = None if self.boxes is None else self.boxes[rows]
        head = (self.image_ids[rows], self.category_ids[rows], self.scores[rows], boxes)
        if self.mask_sizes is None:
            return Predictions(*head)
        starts = self.mask_offsets[rows]
        sizes = self.mask_offsets[rows + 1] - starts
        offsets = _offsets(sizes)
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)
        measures = {
            name: getattr(self, name)[rows] for name in _MEASURES if getattr(self, name) is not None
        }
        return Predictions(*head, self.mask_sizes[rows], self.mask_counts[at], offsets, **measures)

    def masks(self, rows: np.ndarray) -> list[dict]:
        """The masks of some rows as pycocotools takes them."""
        if not len(rows):
            return []
        starts, ends = self.mask_offsets[rows], self.mask_offsets[rows + 1]
        low, high = int(starts.min()), int(ends.max())
        data = memoryview(np.ascontiguousarray(self.mask_counts[low:high]))
        if high - low <= 8 * (ends - starts).sum():
            # One copy of the whole range is faster than one of each mask.
            data = data.tobytes()
        starts, ends = (starts - low).tolist(), (ends - low).tolist()
        sizes = self.mask_sizes[rows].tolist()
        return [
            {"size": size, "counts": bytes(data[a:b])}
            for size, a, b in zip(sizes, starts, ends, strict=True)
        ]

    def results(self, block: int = 1024) -> Iterator[list[dict]]:
        """All rows in the results format of LVIS, in lists of `block`."""
        for start in range(0, len(self), block):
            yield self._results_of(slice(start, start + block))

    def _results_of(self, rows: slice) -> list[dict]:
        head = (self.image_ids[rows], self.category_ids[rows], self.scores[rows])
        results = [
            {"image_id": image_id, "category_id": category_id, "score": score}
            for image_id, category_id, score in zip(*(c.tolist() for c in head), strict=True)
        ]
        if self.boxes is not None:
            for result, box in zip(results, self.boxes[rows].tolist(), strict=True):
                result["bbox"] = box
        if self.mask_sizes is not None:
            for result, mask in zip(results, self._masks_as_text(rows), strict=True):
                result["segmentation"] = mask
        return results

    def json_pieces(self, block: int = 1024) -> Iterator[bytes]:
        """The entries of :meth:`results` as JSON with commas between them, `block` at a time.

        Scores and boxes must be finite, see :func:`is_finite`.
        """
        for start in range(0, len(self), block):
            yield self._json_of(slice(start, min(start + block, len(self))))

    def _json_of(self, rows: slice) -> bytes:
        # Text in between is the same in each row, the lists are what rows differ in.
        ids = np.stack([self.image_ids[rows], self.category_ids[rows]], axis=1, dtype=np.int64)
        texts = [b'{"image_id":', _rows_as_json(ids, b',"category_id":'), b',"score":']
        texts.append(_rows_as_json(self.scores[rows, None].astype(np.float64)))
        if self.boxes is not None:
            boxes = _rows_as_json(self.boxes[rows].astype(np.float64))
            texts += [b',"bbox":[', boxes, b"]"]
        if self.mask_sizes is not None:
            texts += [
                b',"segmentation":{"size":[',
                _rows_as_json(self.mask_sizes[rows].astype(np.int64)),
            ]
            texts += [b'],"counts":"', self._counts_as_json(rows), b'"}']
        texts.append(b"},")
        number, step = rows.stop - rows.start, len(texts)
        parts = [b""] * (number * step)
        for k, text in enumerate(texts):
            parts[k::step] = [text] * number if isinstance(text, bytes) else text
        parts[-1] = b"}"
        return b"".join(parts)

    def _counts_as_json(self, rows: slice) -> list[bytes]:
        """The text of each mask as a JSON string, without its quotes."""
        ends = self.mask_offsets[rows.start : rows.stop + 1]
        ends, codes = ends - ends[0], self.mask_counts[ends[0] : ends[-1]]
        text = codes.tobytes()
        if not is_run_length_text(text):
            pairs = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
            return [orjson.dumps(text[a:b].decode("ascii"))[1:-1] for a, b in pairs]
        # The one character of the coding that has another form in JSON, of two.
        doubled = np.flatnonzero(codes == ord("\\"))
        ends = (ends + np.searchsorted(doubled, ends)).tolist()
        text = text.replace(b"\\", b"\\\\")
        return [text[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def _masks_as_text(self, rows: slice) -> list[dict]:
        sizes = self.mask_sizes[rows].tolist()
        ends = self.mask_offsets[rows.start : rows.stop + 1]
        text = self.mask_counts[ends[0] : ends[-1]].tobytes().decode("ascii")
        ends = (ends - ends[0]).tolist()
        ranges = zip(sizes, ends[:-1], ends[1:], strict=True)
        return [{"size": size, "counts": text[a:b]} for size, a, b in ranges]


def _rows_as_json(values: np.ndarray, between: bytes = b",") -> list[bytes]:
    """The text of each of N rows of numbers, with something `between` the numbers of a row."""
    text = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)[2:-2]
    if between != b",":
        text = text.replace(b"],[", b"\n").replace(b",", between)
        return text.split(b"\n")
    return text.split(b"],[")


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """The rows of all parts in turn.

    Raises:
        DataError: some have boxes or masks and others have not.
    """
    # A part without rows says nothing of what the others have.
    parts = [p for p in parts if len(p)] or list(parts[:1])
    if not parts:
        return _columns([], 0, True)
    if any(p.tasks != parts[0].tasks for p in parts):
        raise DataError("some predictions have a box or mask and others have none")
    columns = {}
    for name in (*_COLUMNS, "boxes", "mask_sizes", "mask_counts"):
        values = [getattr(p, name) for p in parts]
        columns[name] = None if values[0] is None else np.concatenate(values)
    for name in _MEASURES:
        values = [getattr(p, name) for p in parts]
        columns[name] = None if any(v is None for v in values) else np.concatenate(values)
    if parts[0].mask_sizes is not None:
        sizes = [np.diff(p.mask_offsets) for p in parts]
        columns["mask_offsets"] = _offsets(np.concatenate(sizes))
    return Predictions(**columns)


def is_finite(predictions: Predictions) -> np.ndarray:
    """(N,) bool, whether the score and the box of each row are finite."""
    finite = np.isfinite(predictions.scores)
    # Looking at all at once first is faster by the number of rows.
    if predictions.boxes is not None and not np.isfinite(predictions.boxes).all():
        finite &= np.isfinite(predictions.boxes).all(axis=1)
    return finite


def check_sizes(predictions: Predictions) -> None:
    """Raise DataError for the first box whose width or height is negative, naming its row."""
    if predictions.boxes is None:
        return
    negative = predictions.boxes[:, 2:] < 0
    if negative.any():
        negative = negative.any(axis=1)
        row = int(np.argmax(negative))
        raise DataError(
            f"prediction {row}, of image {predictions.image_ids[row]}, has a box of negative "
            f"size, {predictions.boxes[row].tolist()}: a box is x, y, width, height; "
            f"{np.count_nonzero(negative)} predictions have such a box"
        )


def check_runs(rles: list[dict], name: Callable[[int], str]) -> None:
    """Raise DataError for the first mask whose runs are no such text or do not cover its size.

    pycocotools does not come to an end with such masks.

    Args:
        rles: masks whose counts are bytes or text.
        name: what a message calls one.
    """
    counts = [rle["counts"] for rle in rles]
    broken = first_broken_text(np.frombuffer(joined(counts), np.uint8), _offsets_of(counts))
    if broken is not None:
        raise DataError(f"{name(broken)} {not_run_lengths(counts[broken])}")
    covered = pixels_covered(counts)
    # As Python's numbers: those of numpy may be too narrow for the product.
    pixels = [int(height) * int(width) for height, width in (rle["size"] for rle in rles)]
    wrong = np.flatnonzero(covered != np.array(pixels, dtype=np.int64))
    if len(wrong):
        height, width = rles[wrong[0]]["size"]
        raise DataError(
            f"{name(int(wrong[0]))} has a mask of {height} x {width} pixels whose runs cover "
            f"{covered[wrong[0]]}"
        )


def check_masks(predictions: Predictions) -> None:
    """Raise DataError for the first mask whose run lengths are no such text, naming its row.

    Not of masks whose areas and boxes are known: nothing reads them but what checks them itself.
    """
    if predictions.mask_sizes is None or predictions.is_measured:
        return
    row = first_broken_text(predictions.mask_counts, predictions.mask_offsets)
    if row is not None:
        a, b = predictions.mask_offsets[row : row + 2]
        text = predictions.mask_counts[a:b].tobytes()
        raise DataError(f"{predictions.name(row)} {not_run_lengths(text)}")


# ---- from dicts ------------------------------------------------------------------------------


def has_masks(results: Sequence[dict] | None) -> bool:
    """Whether there are entries in the results format, and they have masks."""
    return bool(results) and "segmentation" in results[0]


def rles_of(results: Sequence[dict], rows: np.ndarray) -> tuple[list[dict], np.ndarray]:
    """The masks of some entries in the results format, (M,) ints, as pycocotools takes them.

    Returns:
        M masks, whose counts are bytes or text; they are not copied if that is what they have.
        (M, 2) int64 height and width of each.

    Raises:
        DataError: an entry has another thing in the place of a mask; the message has its number.
    """
    rows = rows.tolist()
    masks = [results[k]["segmentation"] for k in rows]
    if not masks:
        return [], np.zeros((0, 2), np.int64)
    try:
        sizes = _mask_sizes([m["size"] for m in masks])
        counts = [m["counts"] for m in masks]
        if not _is_compressed(counts):
            counts = [_compressed(m) for m in masks]
            sized = zip(sizes.tolist(), counts, strict=True)
            masks = [{"size": size, "counts": text} for size, text in sized]
        text = joined(counts)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        for k in rows:
            fault = _fault(results[k], "bbox" in results[k], True)
            if fault:
                raise DataError(f"prediction {k} {fault}") from None
        raise
    broken = first_broken_text(np.frombuffer(text, dtype=np.uint8), _offsets_of(counts))
    if broken is not None:
        row = rows[broken]
        image_id = results[row]["image_id"]
        fault = not_run_lengths(counts[broken])
        raise DataError(f"prediction {row}, of image {image_id}, {fault}")
    return masks, sizes


def _columns(results: Sequence[dict], first: int, with_masks: bool) -> Predictions:
    """See :meth:`Predictions.from_results`; the first entry has the number `first` in messages."""
    number = len(results)
    ids, categories = np.empty(number, np.int64), np.empty(number, np.int64)
    scores = np.empty(number)
    head = results[0] if number and isinstance(results[0], dict) else {}
    boxes = np.empty((number, 4)) if "bbox" in head else None
    masks = _MaskColumns(number) if "segmentation" in head and with_masks else None
    with gc_paused():
        for start in range(0, number, BLOCK):
            block = results[start : start + BLOCK]
            rows = slice(start, start + len(block))
            try:
                ids[rows] = _numbers([p["image_id"] for p in block], numbers.Integral)
                categories[rows] = _numbers([p["category_id"] for p in block], numbers.Integral)
                scores[rows] = _numbers([p["score"] for p in block], numbers.Real)
                if boxes is not None:
                    boxes[rows] = _boxes([p["bbox"] for p in block])
                if masks is not None:
                    masks.add(rows, [p["segmentation"] for p in block])
                same = _same_keys(block, "bbox" in head, "segmentation" in head)
            except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
                same = False
            if not same:
                _raise_fault(block, first + start, "bbox" in head, "segmentation" in head)
    return Predictions(ids, categories, scores, boxes, **(masks.columns() if masks else {}))


def _same_keys(block: Sequence[dict], with_box: bool, with_mask: bool) -> bool:
    """Whether all entries have a box, a mask or both, as said."""
    if not with_box and not with_mask:
        return False
    return all(
        set(map(contains, block, repeat(key))) == {there}
        for key, there in (("bbox", with_box), ("segmentation", with_mask))
    )


def _numbers(values: list, kind: type) -> list:
    """`values` if all are numbers of this kind.

    Raises:
        TypeError: one is not, or is a bool, which Python takes for a number.
    """
    for found in set(map(type, values)):
        if found is bool or not issubclass(found, kind):
            raise TypeError(f"a {found.__name__}")
    return values


def _boxes(boxes: list) -> np.ndarray:
    """(M, 4) float64 of M sequences of four numbers."""
    if set(map(len, boxes)) != {4}:
        raise ValueError("not four numbers")
    flat = list(chain.from_iterable(boxes))
    return np.array(_numbers(flat, numbers.Real), dtype=np.float64).reshape(-1, 4)


class _MaskColumns:
    """Columns of masks, filled block by block."""

    def __init__(self, number: int):
        self._sizes = np.empty((number, 2), dtype=np.int32)
        self._lengths = np.empty(number, dtype=np.int64)
        self._counts = bytearray()

    def add(self, rows: slice, masks: list[dict]) -> None:
        """Add the masks of some rows, which come in turn."""
        counts = [m["counts"] for m in masks]
        if not _is_compressed(counts):
            counts = [_compressed(m) for m in masks]
        text = joined(counts)
        self._sizes[rows] = _mask_sizes([m["size"] for m in masks])
        self._lengths[rows] = list(map(len, counts))
        self._counts += text

    def columns(self) -> dict:
        """As attributes of `Predictions`."""
        counts = np.frombuffer(self._counts, dtype=np.uint8)
        arrays = (self._sizes, counts, _offsets(self._lengths))
        return dict(zip(_MASK_COLUMNS, arrays, strict=True))


def _mask_sizes(sizes: list) -> np.ndarray:
    """(M, 2) ints of M pairs of ints."""
    if set(map(len, sizes)) != {2}:
        raise ValueError("not two numbers")
    flat = _numbers(list(chain.from_iterable(sizes)), numbers.Integral)
    return np.array(flat, dtype=np.int64).reshape(-1, 2)


def _is_compressed(counts: list) -> bool:
    """Whether all are text, or all are bytes."""
    return set(map(type, counts)) in ({str}, {bytes})


def _compressed(mask: dict) -> bytes:
    """The compressed run lengths of an RLE, whose counts may be text, bytes or a list."""
    counts = mask["counts"]
    if isinstance(counts, list):
        return mask_utils.frPyObjects(mask, *mask["size"])["counts"]
    return counts.encode("ascii") if isinstance(counts, str) else bytes(memoryview(counts))


def _raise_fault(block: Sequence, first: int, with_box: bool, with_mask: bool) -> None:
    """Raise DataError for the first entry of `block`, whose number is `first`, with a fault."""
    for i, p in enumerate(block, start=first):
        fault = _fault(p, with_box, with_mask)
        if fault:
            raise DataError(f"prediction {i} {fault}")
    raise AssertionError("no entry has a fault")


def _fault(p, with_box: bool, with_mask: bool) -> str | None:
    """What is wrong with an entry; None: nothing."""
    if not isinstance(p, dict):
        return f"is not an object but {p!r:.60}"
    missing = {"image_id", "category_id", "score"} - set(p)
    if missing:
        return f"has no {sorted(missing)[0]!r}"
    if "bbox" not in p and "segmentation" not in p:
        return "has neither 'bbox' nor 'segmentation'"
    for key, there in (("bbox", with_box), ("segmentation", with_mask)):
        if there != (key in p):
            return f"has {'no' if there else 'a'} {key!r}, unlike the first one"
    checks = {
        "image_id": (_check_id, "a whole number of at most 64 bits"),
        "category_id": (_check_id, "a whole number of at most 64 bits"),
        "score": (_is_real, "a number in the range of float64"),
        "bbox": (_check_box, "four numbers: x, y, width, height"),
        "segmentation": (_check_mask, "an RLE, {'size': [height, width], 'counts': ...}"),
    }
    for key, (check, wanted) in checks.items():
        if key in p and not check(p[key]):
            return f"has {key!r} {p[key]!r:.60}, which is not {wanted}"
    return None


def _check_id(value) -> bool:
    return _is_number(value, numbers.Integral) and -(1 << 63) <= value < 1 << 63


def _check_box(value) -> bool:
    try:
        return len(value) == 4 and all(map(_is_real, value))
    except TypeError:
        return False


def _check_mask(value) -> bool:
    try:
        return _mask_sizes([value["size"]]).min() >= 0 and _compressed(value) is not None
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def _is_number(value, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_real(value) -> bool:
    try:
        return _is_number(value, numbers.Real) and float(value) is not None
    except OverflowError:
        return False


# ---- files -----------------------------------------------------------------------------------


def _load(path: str) -> Predictions:
    if not os.path.isfile(path):
        raise MissingFileError(f"no column file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise DataError(f"{path} cannot be read: {e}. Is it cut off?") from e
    wanted = list(_COLUMNS)
    if any(name in found for name in (*_MASK_COLUMNS, *_MEASURES)):
        wanted += _MASK_COLUMNS
    if any(name in found for name in _MEASURES):
        wanted += _MEASURES
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{path} has no array {missing[0]!r}; it has {', '.join(found) or 'none'}")
    names = (*_COLUMNS, "boxes", *_MASK_COLUMNS, *_MEASURES)
    predictions = Predictions(**{name: found[name] for name in names if name in found})
    if not predictions.tasks and predictions.image_ids.size:
        raise DataError(
            f"{path} has neither boxes ('boxes') nor masks ({', '.join(_MASK_COLUMNS)})"
        )
    try:
        _check_columns(predictions)
    except DataError as e:
        raise DataError(f"{path}: {e}") from e
    return predictions


def _check_columns(predictions: Predictions) -> None:
    """Raise DataError for the first column of another type or length than described."""
    number = len(predictions)
    wanted = {
        "image_ids": ("i", (number,)),
        "category_ids": ("i", (number,)),
        "scores": ("f", (number,)),
        "boxes": ("f", (number, 4)),
        "mask_sizes": ("i", (number, 2)),
        "mask_counts": ("u", None),
        "mask_offsets": ("i", (number + 1,)),
        "mask_areas": ("i", (number,)),
        "mask_boxes": ("i", (number, 4)),
    }
    for name, (kind, shape) in wanted.items():
        column = getattr(predictions, name)
        if column is None:
            continue
        if column.dtype.kind != kind or (shape is not None and column.shape != shape):
            raise DataError(
                f"array {name!r} is {column.dtype} of shape {column.shape}; wanted is kind "
                f"{kind!r} of shape {shape or '(any,)'}"
            )
    offsets = predictions.mask_offsets
    if offsets is None:
        return
    if predictions.mask_areas is not None:
        _check_measures(predictions)
    ends = [offsets[0], offsets[-1] - len(predictions.mask_counts)]
    if any(ends) or (np.diff(offsets) < 0).any():
        raise DataError("array 'mask_offsets' does not rise from 0 to the size of 'mask_counts'")


def _check_measures(predictions: Predictions) -> None:
    """Raise DataError for the first area or box that is not inside of its image."""
    height, width = predictions.mask_sizes.T.astype(np.int64)
    areas, (x, y, w, h) = predictions.mask_areas, predictions.mask_boxes.T.astype(np.int64)
    inside = (areas >= 0) & (areas <= w * h)
    inside &= (x >= 0) & (y >= 0) & (w >= 0) & (h >= 0) & (x + w <= width) & (y + h <= height)
    if not inside.all():
        row = int(np.argmin(inside))
        raise DataError(
            f"{predictions.name(row)} has a mask of {height[row]} x {width[row]} (height x width) "
            f"with {areas[row]} pixels in the box {predictions.mask_boxes[row].tolist()}"
        )


def _offsets_of(texts: list) -> np.ndarray:
    return _offsets(list(map(len, texts)))


def _offsets(sizes: np.ndarray) -> np.ndarray:
    """(N + 1,) int64, where each of N rows of these sizes begins, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
