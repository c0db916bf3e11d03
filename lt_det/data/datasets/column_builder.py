"""From the entries of a file in LVIS or COCO form to its columns.

Only what is in order, or is skipped and counted, becomes columns. All else - an entry without a
key, a value of another type, an id that no list knows - is an `UnusualEntry`, and the file is
read as a whole by `lvis_format`, which names the entry or can cope with it. So that there is one
place for the rules and their messages, no message here reaches the user as an error.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from itertools import chain, compress

import numpy as np
from pycocotools import mask as mask_util

from lt_det.data.datasets.annotations import (
    BAD_POLYGON,
    EMPTY_BOX,
    IGNORED,
    LVIS_CROWD,
    MIN_BOX_SIDE,
    NO_MASK,
    NO_POLYGON,
    OUTSIDE_BOX,
    Tally,
    convert_keypoints,
)
from lt_det.data.datasets.columns import (
    ABSENT,
    POLYGONS,
    RLE_BYTES,
    RLE_TEXT,
    ColumnFile,
)
from lt_det.data.datasets.columns import NO_MASK as WITHOUT
from lt_det.data.ragged import offsets_of, ragged_index

_INT8 = np.iinfo(np.int8)
# 2**31 hundredths of a pixel.
_MAX_HUNDREDTHS = np.iinfo(np.int32).max
# Values widened at a time.
_PIECE = 2**20

# What the columns call the lists of an LVIS image.
_LISTS = {"absent": "neg_category_ids", "partial": "not_exhaustive_category_ids"}
# What is kept of a category.
_CATEGORY_KEYS = ("id", "name", "synonyms", "frequency")

# What plain Python and `struct` raise over an entry that is not of the usual form.
_UNUSUAL = (AttributeError, KeyError, TypeError, ValueError, OverflowError, struct.error)


class UnusualEntry(Exception):
    """The columns cannot hold an entry, or it is wrong."""


def ints(values: Iterable[int]) -> np.ndarray:
    """(any,) int64; a value that is no whole number is an error, unlike in `numpy.array`."""
    return _packed("q", values, np.int64)


def floats(values: Iterable[float]) -> np.ndarray:
    """(any,) float64; a value that is no number is an error."""
    return _packed("d", values, np.float64)


def joined_floats(rows: list[list[float]]) -> np.ndarray:
    """(any,) float64, the values of all rows. For long rows the fastest way there is."""
    packed = b"".join([struct.pack(f"{len(row)}d", *row) for row in rows])
    return np.frombuffer(packed, np.float64)


def _packed(code: str, values: Iterable, dtype) -> np.ndarray:
    values = list(values)
    return np.frombuffer(struct.pack(f"{len(values)}{code}", *values), dtype)


def hundredths(values: np.ndarray) -> np.ndarray | None:
    """int32 hundredths of float64 values, or None unless division gives every value back."""
    scaled = np.rint(values * 100)
    if (scaled / 100 == values).all() and np.abs(scaled).max(initial=0) <= _MAX_HUNDREDTHS:
        return scaled.astype(np.int32)
    return None


class CoordinateColumn:
    """A long column written as it comes: int32 hundredths until they are not exact, then float64.

    Args:
        file: where it goes. Nothing else may be written before `finish`.
    """

    def __init__(self, file: ColumnFile):
        self.file, self.place, self.count, self.dtype = file, file.begin(), 0, np.dtype(np.int32)

    def add(self, values: np.ndarray) -> None:
        """Write (any,) float64 values."""
        if self.dtype == np.int32:
            short = hundredths(values)
            if short is None:
                self._widen()
            else:
                values = short
        self.file.out.write(values)
        self.count += len(values)

    def _widen(self) -> None:
        """Rewrite what there is as float64, from the end: it grows over what follows it."""
        out = self.file.out
        for start in reversed(range(0, self.count, _PIECE)):
            out.seek(self.place + 4 * start)
            piece = np.frombuffer(out.read(4 * min(_PIECE, self.count - start)), np.int32)
            out.seek(self.place + 8 * start)
            out.write(piece / 100)
        out.seek(self.place + 8 * self.count)
        self.dtype = np.dtype(np.float64)

    def finish(self, name: str) -> None:
        """Note the column in its file."""
        self.file.note(name, self.dtype, (self.count,), self.place)


class ColumnBuilder:
    """Takes the lists of a file block by block and writes its columns.

    Args:
        file: of the columns, empty.
        path: of the data; COCO's minival files may repeat annotation ids.
        file_format: "lvis" or "coco".
        check: skip what cannot be trained on, see `lvis_format.load_lvis_format`.
    """

    def __init__(self, file: ColumnFile, path: str, file_format: str, check: bool):
        self.file, self.path, self.check = file, path, check
        self.is_lvis = file_format == "lvis"
        self.coordinates = CoordinateColumn(file)
        self.blocks: dict[str, list[np.ndarray]] = {}
        self.categories: list[dict] = []
        self.missing = {"images", "annotations", "categories"}
        if "image_info" in os.path.basename(path):  # of a test set
            self.missing.discard("annotations")
        self.num_annotations = self.num_polygons = self.num_rle_bytes = 0
        self.rle_bytes: list[bytes] = []
        self.rle_sizes: list[tuple[int, int, int]] = []  # annotation, height, width

    def add(self, key: str, entries: list[dict]) -> None:
        """Take a block of the list `key` of the file; lists of no interest are passed over.

        Raises:
            UnusualEntry: see above.
        """
        take = {
            "images": self._add_images,
            "annotations": self._add_annotations,
            "categories": self._add_categories,
        }.get(key)
        if take is None:
            return
        self.missing.discard(key)
        try:
            take(entries)
        except _UNUSUAL as e:
            raise UnusualEntry(f"{type(e).__name__} {e} in {key}") from e

    def _put(self, name: str, values: np.ndarray) -> None:
        self.blocks.setdefault(name, []).append(values)

    def _take(self, name: str, dtype=np.int64) -> np.ndarray:
        blocks = self.blocks.pop(name, [])
        return np.concatenate(blocks) if blocks else np.zeros(0, dtype)

    def _add_categories(self, categories: list[dict]) -> None:
        self.categories += [{k: c[k] for k in _CATEGORY_KEYS if k in c} for c in categories]

    # ---- images ------------------------------------------------------------------------------

    def _add_images(self, images: list[dict]) -> None:
        for key in ("id", "width", "height"):
            self._put(f"image {key}", ints([image[key] for image in images]))
        for key in ("coco_url", "file_name"):
            texts = [(image.get(key) or "").encode() for image in images]
            self._put(f"{key} sizes", ints(map(len, texts)))
            self._put(key, np.frombuffer(b"".join(texts), np.uint8))
        for key in _LISTS.values() if self.is_lvis else ():
            lists = [image.get(key) or [] for image in images]
            self._put(f"{key} sizes", ints(map(len, lists)))
            self._put(key, ints(chain.from_iterable(lists)))

    # ---- annotations -------------------------------------------------------------------------

    def _add_annotations(self, anns: list[dict]) -> None:
        for key in ("id", "image_id", "category_id"):
            self._put(key, ints([ann[key] for ann in anns]))
        boxes = [ann["bbox"] for ann in anns]
        if set(map(len, boxes)) - {4}:
            raise UnusualEntry("a box without four sides")
        self._put("bbox", floats(chain.from_iterable(boxes)).reshape(-1, 4))
        crowds = ints([ann.get("iscrowd", ABSENT) for ann in anns])
        if (crowds < _INT8.min).any() or (crowds > _INT8.max).any():
            raise UnusualEntry("iscrowd is a large number")
        self._put("iscrowd", crowds.astype(np.int8))
        self._put("ignore", np.array([bool(ann.get("ignore")) for ann in anns], bool))
        self._add_masks([ann.get("segmentation") for ann in anns])
        if not self.is_lvis:
            self._add_keypoints([ann.get("keypoints") for ann in anns])
        self.num_annotations += len(anns)

    def _add_masks(self, masks: list) -> None:
        kinds = np.zeros(len(masks), np.int8)
        rles = {}
        if set(map(type, masks)) - {list}:
            rles = {i: mask for i, mask in enumerate(masks) if mask and type(mask) is dict}
            if any(m and type(m) is not list for i, m in enumerate(masks) if i not in rles):
                raise UnusualEntry("a mask that is neither a list nor an object")
            masks = [mask if mask and type(mask) is list else [] for mask in masks]
        counts = ints(map(len, masks))
        kinds[counts > 0] = POLYGONS
        counts = self._add_polygons(list(chain.from_iterable(masks)), counts)
        ends = self.num_polygons + np.cumsum(counts)
        ranges = np.stack([ends - counts, ends], axis=1)
        self.num_polygons += int(counts.sum())
        for i, rle in rles.items():
            kinds[i], ranges[i] = self._add_rle(rle, self.num_annotations + i)
        self._put("mask kinds", kinds)
        self._put("mask ranges", ranges)

    def _add_polygons(self, polygons: list[list[float]], counts: np.ndarray) -> np.ndarray:
        """Write polygons, all of `counts` (n,) of n masks in turn; returns how many are kept."""
        if set(map(type, polygons)) - {list}:
            raise UnusualEntry("a polygon that is not a list")
        sizes, values = ints(map(len, polygons)), joined_floats(polygons)
        kept = counts
        if self.check:
            good = (sizes >= 6) & (sizes % 2 == 0)
            if not np.isfinite(values).all():
                good &= np.array([np.isfinite(floats(p)).all() for p in polygons])
            if not good.all():
                owners = np.repeat(np.arange(len(counts)), counts)
                kept = np.bincount(owners[good], minlength=len(counts))
                sizes, values = sizes[good], joined_floats(list(compress(polygons, good)))
        self._put("dropped polygons", counts - kept)
        self._put("polygon sizes", sizes)
        self.coordinates.add(values)
        return kept

    def _add_rle(self, rle: dict, index: int) -> tuple[int, tuple[int, int]]:
        """Keep an RLE mask; returns its kind and where its bytes lie."""
        if rle.keys() != {"size", "counts"}:
            raise UnusualEntry("an RLE mask with other keys than size and counts")
        (height, width), counts = rle["size"], rle["counts"]
        if isinstance(counts, list):
            if sum(counts) != height * width:
                raise UnusualEntry("the runs of an RLE mask do not fill it")
            kind, text = RLE_BYTES, mask_util.frPyObjects(rle, height, width)["counts"]
        else:
            kind, text = RLE_TEXT, counts.encode()
        self.rle_bytes.append(text)
        self.rle_sizes.append((index, height, width))
        self.num_rle_bytes += len(text)
        return kind, (self.num_rle_bytes - len(text), self.num_rle_bytes)

    def _add_keypoints(self, keypoints: list) -> None:
        lists = [convert_keypoints(k) if k else [] for k in keypoints]
        self._put("keypoint sizes", ints(map(len, lists)))
        self._put("keypoint", floats(chain.from_iterable(lists)))

    # ---- the end -----------------------------------------------------------------------------

    def finish(self) -> tuple[list[dict], Tally]:
        """Write the columns; the categories of the file, and what was left out.

        Raises:
            UnusualEntry: no image or category, ids that are used twice or unknown, a mask of
                another size than its image.
        """
        if self.missing:
            raise UnusualEntry(f"no {' and no '.join(sorted(self.missing))}")
        try:
            self.coordinates.finish("coordinates")
            image_ids = self._write_images()
            return self.categories, self._write_annotations(image_ids)
        except _UNUSUAL as e:
            raise UnusualEntry(f"{type(e).__name__} {e}") from e

    def _classes_of(self, category_ids: np.ndarray) -> np.ndarray:
        """Class ids 0..C-1 of category ids."""
        known = ints(sorted(category["id"] for category in self.categories))
        return _places(known, category_ids, "category id")

    def _write_images(self) -> np.ndarray:
        ids = self._take("image id")
        order = np.argsort(ids, kind="stable")
        ids, widths, heights = (
            column[order] for column in (ids, self._take("image width"), self._take("image height"))
        )
        if not len(ids) or (np.diff(ids) == 0).any() or min(widths.min(), heights.min()) <= 0:
            raise UnusualEntry("no image, an image id that is used twice, or no size")
        self.widths, self.heights = widths, heights
        for name, values in (("image_ids", ids), ("widths", widths), ("heights", heights)):
            self.file.add(name, values)
        url_sizes = self._write_ragged("coco_url", "url", "url_bytes", order, np.uint8)
        name_sizes = self._write_ragged("file_name", "name", "name_bytes", order, np.uint8)
        if (url_sizes + name_sizes == 0).any():
            raise UnusualEntry("an image without a file")
        for name, key in _LISTS.items():
            if self.blocks.get(key):
                self.blocks[key] = [self._classes_of(self._take(key))]
            else:
                self.blocks[f"{key} sizes"] = [np.zeros(len(ids), np.int64)]
            self._write_ragged(key, name, f"{name}_classes", order, np.int64)
        return ids

    def _write_ragged(
        self, key: str, name: str, values_name: str, order: np.ndarray, dtype
    ) -> np.ndarray:
        """Write the rows `order` of the ragged column `key`; returns their sizes."""
        sizes, values = self._take(f"{key} sizes"), self._take(key, dtype)
        starts = np.cumsum(sizes) - sizes
        sizes = sizes[order]
        self.file.add(f"{name}_offsets", offsets_of(sizes))
        self.file.add(values_name, values[ragged_index(starts[order], sizes)])
        return sizes

    def _write_annotations(self, image_ids: np.ndarray) -> Tally:
        ids, ann_images = self._take("id"), self._take("image_id")
        images = _places(image_ids, ann_images, "image id")
        if "minival" not in os.path.basename(self.path) and (np.diff(np.sort(ids)) == 0).any():
            raise UnusualEntry("an annotation id that is used twice")
        # From here on by image, and in the order of the file within an image.
        order = np.argsort(images, kind="stable")
        images = images[order]
        boxes = self._take("bbox", np.float64).reshape(-1, 4)[order]
        kinds = self._take("mask kinds", np.int8)[order]
        ranges = self._take("mask ranges").reshape(-1, 2)[order]
        crowds = self._take("iscrowd", np.int8)[order]
        faults = np.zeros(len(order), np.int8)
        if self.check:
            ignored = self._take("ignore", bool)[order]
            faults = self._faults(boxes, self.widths[images], self.heights[images], crowds, ignored)
        self._check_rle_sizes(images, order, faults)
        dropped = np.where(faults == 0, self._take("dropped polygons")[order], 0)
        empty = (kinds == POLYGONS) & (ranges[:, 0] == ranges[:, 1]) & (faults == 0)
        kept = np.flatnonzero((faults == 0) & ~empty)

        self.file.add(
            "ann_offsets", offsets_of(np.bincount(images[kept], minlength=len(image_ids)))
        )
        self.file.add("boxes", boxes[kept])
        self.file.add("class_ids", self._classes_of(self._take("category_id"))[order][kept])
        self.file.add(
            "crowds", np.full(len(kept), ABSENT, np.int8) if self.is_lvis else crowds[kept]
        )
        self.file.add("mask_kinds", kinds[kept])
        self._write_mask_ranges(kinds[kept], ranges[kept])
        self.file.add("rle_bytes", np.frombuffer(b"".join(self.rle_bytes), np.uint8))
        self._write_keypoints(order[kept])

        events = [(kind, faults == code, None) for code, kind in enumerate(_FAULTS, start=1)]
        events += [(BAD_POLYGON, dropped > 0, dropped), (NO_POLYGON, empty, None)]
        tally = _tally(events, ids[order], ann_images[order])
        without = order[kinds == WITHOUT]
        if self.check and len(without) and (kinds[kept] != WITHOUT).any():
            first = without.min()
            tally.add(NO_MASK, _named(ids[first], ann_images[first]), len(without))
        return tally

    def _faults(self, boxes, widths, heights, crowds, ignored) -> np.ndarray:
        """(A,) int8 place in `_FAULTS`, from 1, of what `annotations` skips first; 0 = nothing."""
        x, y, w, h = boxes.T
        faults = np.zeros(len(boxes), np.int8)
        with np.errstate(invalid="ignore", over="ignore"):
            shared_w = np.minimum(x + w, widths) - np.maximum(x, 0)
            shared_h = np.minimum(y + h, heights) - np.maximum(y, 0)
            faults[np.minimum(shared_w, shared_h) < MIN_BOX_SIDE] = 1 + _FAULTS.index(OUTSIDE_BOX)
            empty = ~np.isfinite(x + y + w + h) | (w < MIN_BOX_SIDE) | (h < MIN_BOX_SIDE)
        faults[empty] = 1 + _FAULTS.index(EMPTY_BOX)
        if self.is_lvis:
            faults[(crowds != 0) & (crowds != ABSENT)] = 1 + _FAULTS.index(LVIS_CROWD)
        faults[ignored] = 1 + _FAULTS.index(IGNORED)
        return faults

    def _check_rle_sizes(self, images: np.ndarray, order: np.ndarray, faults: np.ndarray) -> None:
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        index, heights, widths = ints(chain.from_iterable(self.rle_sizes)).reshape(-1, 3).T
        of, counts = images[place[index]], faults[place[index]] == 0
        wrong = (self.heights[of] != heights) | (self.widths[of] != widths)
        if (wrong & counts).any():
            raise UnusualEntry("an RLE mask of another size than its image")

    def _write_mask_ranges(self, kinds: np.ndarray, ranges: np.ndarray) -> None:
        """Write where the masks lie; polygons get rows in the order of the annotations."""
        of_polygons = kinds == POLYGONS
        first, last = ranges[of_polygons].T
        rows = ragged_index(first, last - first)
        offsets = offsets_of(self._take("polygon sizes"))
        self.file.add("polygon_ranges", np.stack([offsets[rows], offsets[rows + 1]], axis=1))
        ends = np.cumsum(last - first)
        ranges[of_polygons] = np.stack([ends - (last - first), ends], axis=1)
        self.file.add("mask_ranges", ranges)

    def _write_keypoints(self, order: np.ndarray) -> None:
        if any(map(len, self.blocks.get("keypoint", ()))):
            self._write_ragged("keypoint", "keypoint", "keypoints", order, np.float64)
        else:
            self.file.add("keypoint_offsets", np.zeros(0, np.int64))
            self.file.add("keypoints", np.zeros(0, np.float64))


# In `_faults`' codes from 1.
_FAULTS = (IGNORED, LVIS_CROWD, EMPTY_BOX, OUTSIDE_BOX)


def _tally(events: list[tuple], ids: np.ndarray, image_ids: np.ndarray) -> Tally:
    """What was left out, the kinds in the order in which their first examples come.

    Args:
        events: (kind, (A,) bool which annotations, (A,) int64 how many parts each or None).
        ids: (A,) of the annotations.
        image_ids: (A,) of their images.
    """
    tally = Tally()
    found = [(np.flatnonzero(which), kind, parts) for kind, which, parts in events if which.any()]
    for places, kind, parts in sorted(found, key=lambda event: event[0][0]):
        count = len(places) if parts is None else int(parts.sum())
        tally.add(kind, _named(ids[places[0]], image_ids[places[0]]), count)
    return tally


def _named(ann_id: np.int64, image_id: np.int64) -> dict:
    return {"id": int(ann_id), "image_id": int(image_id)}


def _places(known: np.ndarray, values: np.ndarray, what: str) -> np.ndarray:
    """Where each of (n,) values is among the ascending (K,) known ones."""
    if not len(known):
        raise UnusualEntry(f"no {what}")
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    if (known[places] != values).any():
        raise UnusualEntry(f"an unknown {what}")
    return places
