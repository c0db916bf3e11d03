"""A data set in JSON form as columns: one array for each property of all its annotations.

The columns lie in one file that is mapped into memory, so that a start reads only what it needs
and several processes share one copy. `column_builder` makes it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from detectron2.structures import BoxMode

# What `crowds` holds where an annotation has no key `iscrowd`.
ABSENT = -128
# Values of `mask_kinds`. An RLE is a text in JSON files; one of runs is compressed to bytes.
NO_MASK, POLYGONS, RLE_TEXT, RLE_BYTES = range(4)

_XYWH_ABS = BoxMode.XYWH_ABS  # looking up the member costs as much as making a dict

_MAGIC = b"LTDETCOL"
_TRAILER = struct.Struct("<QQI8s")  # place, size and checksum of the index, magic
_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)  # arrays have no one-bool equality
class Columns:
    """N images and their A annotations. Ragged columns are flat, with offsets from 0.

    Attributes:
        image_ids, widths, heights: (N,) int64, in order of image id.
        url_offsets, url_bytes: (N + 1,) int64 and uint8, `coco_url` in UTF-8; "" = none.
        name_offsets, name_bytes: the same of `file_name`.
        absent_offsets, absent_classes: (N + 1,) int64 and int64 class ids, `neg_category_ids`.
        partial_offsets, partial_classes: the same of `not_exhaustive_category_ids`.
        ann_offsets: (N + 1,) int64, the annotations of each image.
        boxes: (A, 4) float64 x, y, width, height in pixels.
        class_ids: (A,) int64, 0..C-1.
        crowds: (A,) int8 `iscrowd`; `ABSENT` = no such key.
        mask_kinds: (A,) int8 NO_MASK, POLYGONS, RLE_TEXT or RLE_BYTES.
        mask_ranges: (A, 2) int64 first and last + 1, of `polygon_ranges` or of `rle_bytes`.
        polygon_ranges: (P, 2) int64 first and last + 1, of `coordinates`.
        coordinates: in order of the file; int32 hundredths of a pixel where that is exact for
            all, else float64.
        rle_bytes: uint8, compressed runs.
        keypoint_offsets, keypoints: (A + 1,) int64 and float64; both empty if there are none.
    """

    image_ids: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    url_offsets: np.ndarray
    url_bytes: np.ndarray
    name_offsets: np.ndarray
    name_bytes: np.ndarray
    absent_offsets: np.ndarray
    absent_classes: np.ndarray
    partial_offsets: np.ndarray
    partial_classes: np.ndarray
    ann_offsets: np.ndarray
    boxes: np.ndarray
    class_ids: np.ndarray
    crowds: np.ndarray
    mask_kinds: np.ndarray
    mask_ranges: np.ndarray
    polygon_ranges: np.ndarray
    coordinates: np.ndarray
    rle_bytes: np.ndarray
    keypoint_offsets: np.ndarray
    keypoints: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_name(self, image: int, key: str) -> str:
        """`coco_url` or `file_name` of one image; "" = none."""
        prefix = "url" if key == "coco_url" else "name"
        start, stop = getattr(self, f"{prefix}_offsets")[image : image + 2].tolist()
        return getattr(self, f"{prefix}_bytes")[start:stop].tobytes().decode()

    def annotations(self, image: int) -> list[dict]:
        """The annotations of one image in Detectron2's form."""
        start, stop = self.ann_offsets[image : image + 2].tolist()
        boxes = self.boxes[start:stop].tolist()
        class_ids = self.class_ids[start:stop].tolist()
        objs = [
            {"bbox": box, "bbox_mode": _XYWH_ABS, "category_id": class_id}
            for box, class_id in zip(boxes, class_ids, strict=True)
        ]
        for obj, crowd in zip(objs, self.crowds[start:stop].tolist(), strict=True):
            if crowd != ABSENT:
                obj["iscrowd"] = crowd
        if len(self.keypoint_offsets):
            for k, obj in enumerate(objs):
                self._add_keypoints(obj, start + k)
        kinds = self.mask_kinds[start:stop].tolist()
        self._add_masks(objs, kinds, self.mask_ranges[start:stop].tolist(), image)
        return objs

    def _add_masks(self, objs: list[dict], kinds: list[int], ranges: list, image: int) -> None:
        ends = [r for kind, r in zip(kinds, ranges, strict=True) if kind == POLYGONS]
        first = ends[0][0] if ends else 0
        polygons = self._polygons(first, ends[-1][1]) if ends else []
        for obj, kind, (a, b) in zip(objs, kinds, ranges, strict=True):
            if kind == POLYGONS:
                obj["segmentation"] = polygons[a - first : b - first]
            elif kind != NO_MASK:
                counts = self.rle_bytes[a:b].tobytes()
                obj["segmentation"] = {
                    "size": [self.heights[image].item(), self.widths[image].item()],
                    "counts": counts.decode() if kind == RLE_TEXT else counts,
                }

    def _polygons(self, first: int, last: int) -> list[list[float]]:
        """The polygons of an image. One division for all of them: calls cost more than copies."""
        ranges = self.polygon_ranges[first:last].tolist()
        pieces = [self.coordinates[a:b] for a, b in ranges]
        if self.coordinates.dtype != np.int32:
            return [piece.tolist() for piece in pieces]
        values = np.frombuffer(b"".join(pieces), np.int32) / 100.0
        polygons, place = [], 0
        for a, b in ranges:
            polygons.append(values[place : place + b - a].tolist())
            place += b - a
        return polygons

    def _add_keypoints(self, obj: dict, index: int) -> None:
        keypoints = self.keypoints[slice(*self.keypoint_offsets[index : index + 2])]
        if len(keypoints):
            obj["keypoints"] = keypoints.tolist()


def image_path(root: str, key: str, name: str) -> str:
    """Path of an image by its `coco_url` (last two components) or its `file_name`."""
    parts = name.split("/")[-2:] if key == "coco_url" else [name]
    return os.path.join(root, *parts)


# ---- the file --------------------------------------------------------------------------------


class ColumnFile:
    """Writes columns one after the other, then where each of them lies.

    Args:
        out: empty, open for reading and writing.
    """

    def __init__(self, out: BinaryIO):
        self.out = out
        self.sections: dict[str, list] = {}  # name -> dtype, shape, place

    def begin(self) -> int:
        """Go on to the next aligned place of the file."""
        place = self.out.seek(0, os.SEEK_END)
        self.out.write(bytes(-place % _ALIGNMENT))
        return self.out.tell()

    def add(self, name: str, values: np.ndarray) -> None:
        """Write a column."""
        place = self.begin()
        self.out.write(np.ascontiguousarray(values))
        self.note(name, values.dtype, values.shape, place)

    def note(self, name: str, dtype: np.dtype, shape: tuple[int, ...], place: int) -> None:
        """Say where a column lies that is already written."""
        self.sections[name] = [np.dtype(dtype).str, list(shape), place]

    def close(self, about: dict) -> None:
        """Write the index, with `about`, which JSON can hold."""
        index = json.dumps({"about": about, "sections": self.sections}).encode()
        place = self.begin()
        self.out.write(index)
        self.out.write(_TRAILER.pack(place, len(index), zlib.crc32(index), _MAGIC))
        self.out.flush()


class OtherStamp(ValueError):
    """The columns were made from something else, or by another version."""


def read_columns(buffer, stamp: dict | None = None) -> tuple[Columns, dict]:
    """Columns over a buffer that holds a whole file, and what `ColumnFile.close` was told.

    Args:
        buffer: bytes of the file.
        stamp: what has to be the `stamp` of what it was told; None = anything. It is compared
            before anything else, as a file of another version may have other columns.

    Raises:
        OtherStamp: it is not.
        ValueError: truncated, or not such a file. Only the index is read, so a byte that is wrong
            inside a column goes unnoticed; files come into being under their name complete.
    """
    size = len(buffer) - _TRAILER.size
    if size < 0:
        raise ValueError("it is too short")
    place, length, checksum, magic = _TRAILER.unpack_from(buffer, size)
    if magic != _MAGIC or place + length != size:
        raise ValueError("its end is missing")
    index = bytes(memoryview(buffer)[place:size])
    if zlib.crc32(index) != checksum:
        raise ValueError("its index is damaged")
    content = json.loads(index)
    try:
        about, sections = content["about"], content["sections"]
        if stamp is not None and about["stamp"] != stamp:
            raise OtherStamp("it was made from something else")
        arrays = {
            name: np.frombuffer(buffer, dtype, math.prod(shape), start).reshape(shape)
            for name, (dtype, shape, start) in sections.items()
        }
        return Columns(**arrays), about
    except (AttributeError, KeyError, OverflowError, TypeError) as e:
        raise ValueError(f"its index is not one of columns: {e!r}") from e


def map_columns(path: str, stamp: dict | None = None) -> tuple[Columns, dict]:
    """`read_columns` of a file that is mapped into memory, read-only.

    Raises:
        OSError: no such file.
        ValueError: see `read_columns`; an empty file.
    """
    with open(path, "rb") as f:
        return read_columns(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), stamp)
