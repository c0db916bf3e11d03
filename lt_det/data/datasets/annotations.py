"""Annotations of a file in LVIS or COCO form: checks, and conversion to Detectron2's form.

What cannot be trained on is skipped and counted in a `Tally`; what cannot be read is an error.
"""

from __future__ import annotations

import logging
import math
from collections import Counter

from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from lt_det.errors import DataError

logger = logging.getLogger(__name__)

# Detectron2 drops boxes below this side, in pixels, after augmentation
# (`Boxes.nonempty` in `filter_empty_instances`); one this small never trains.
MIN_BOX_SIDE = 1e-5

# What is left out or worth a word: (verb, noun, which ones).
EMPTY_BOX = ("skipped", "annotation", "with an empty or degenerate box")
OUTSIDE_BOX = ("skipped", "annotation", "with a box wholly outside the image")
NO_POLYGON = ("skipped", "annotation", "without a valid polygon")
IGNORED = ("skipped", "annotation", "marked as `ignore`")
LVIS_CROWD = ("skipped", "annotation", "marked as `iscrowd`, which the LVIS format does not have,")
BAD_POLYGON = (
    "dropped",
    "polygon",
    "with fewer than 3 points, an odd number of coordinates or one that is not finite",
)
NO_MASK = ("kept", "annotation", "without a mask although others have one")


class Tally:
    """Counts what a file's checks leave out, with the first example of each kind."""

    def __init__(self):
        self.counts: Counter = Counter()
        self.examples: dict[tuple, tuple] = {}

    def add(self, kind: tuple, ann: dict, count: int = 1) -> None:
        """Count an annotation, or `count` parts of it, under one of the kinds above."""
        self.counts[kind] += count
        self.examples.setdefault(kind, (ann["id"], ann["image_id"]))

    def rows(self) -> list[list]:
        """[*kind, count, annotation id, image id of the example] of each kind, for JSON."""
        return [[*kind, count, *self.examples[kind]] for kind, count in self.counts.items()]

    @classmethod
    def from_rows(cls, rows: list[list]) -> Tally:
        """What `rows` came from."""
        tally = cls()
        for *kind, count, ann_id, image_id in rows:
            tally.add(tuple(kind), {"id": ann_id, "image_id": image_id}, count)
        return tally

    def log(self, path: str) -> None:
        """One warning per kind."""
        for kind, count in self.counts.items():
            verb, noun, which = kind
            ann_id, image_id = self.examples[kind]
            logger.warning(
                f"file {path}: {verb} {count} {noun}{'s' if count > 1 else ''} {which} "
                f"(e.g. annotation id {ann_id} of image id {image_id})"
            )


def where(path: str, ann: dict) -> str:
    """Which annotation an error message is about."""
    return f"file {path}: annotation id {ann.get('id')} of image id {ann.get('image_id')}"


def box_fault(box, width: int, height: int) -> tuple | None:
    """Why a box cannot be trained on, or None.

    Args:
        box: (4,) x, y, width, height in pixels.
        width: of the image, in pixels.
        height: of the image, in pixels.

    Returns:
        EMPTY_BOX for a side below `MIN_BOX_SIDE` or a value that is not finite, OUTSIDE_BOX for
        a box that shares less than `MIN_BOX_SIDE` with the image. A box that is partly outside
        is fine: augmentation clips it.

    Raises:
        TypeError, ValueError: not four numbers.
    """
    x, y, w, h = box
    if not math.isfinite(x + y + w + h) or w < MIN_BOX_SIDE or h < MIN_BOX_SIDE:
        return EMPTY_BOX
    shared_w = min(x + w, width) - max(x, 0)
    shared_h = min(y + h, height) - max(y, 0)
    return OUTSIDE_BOX if min(shared_w, shared_h) < MIN_BOX_SIDE else None


def valid_polygons(polygons: list[list[float]]) -> list[list[float]]:
    """The polygons with at least 3 points, whole (x, y) pairs and finite coordinates.

    Raises:
        TypeError: not a list of lists of numbers.
    """
    if not isinstance(polygons, list):
        raise TypeError(f"a list of polygons is wanted, got a {type(polygons).__name__}")
    return [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0 and math.isfinite(sum(p))]


def _convert_rle(ann: dict, image: dict, path: str) -> dict:
    """Compressed form of an RLE mask (Detectron2 takes no other).

    Raises:
        DataError: its size is not the image's.
    """
    rle = ann["segmentation"]
    size = [image["height"], image["width"]]
    if list(rle["size"]) != size:
        raise DataError(
            f"{where(path, ann)}: the RLE mask has (height, width) {list(rle['size'])}, "
            f"the image {size}"
        )
    counts = rle["counts"]
    if not isinstance(counts, list):
        return rle
    if sum(counts) != size[0] * size[1]:
        raise DataError(
            f"{where(path, ann)}: the runs of the RLE mask cover {sum(counts)} pixels, "
            f"the image has {size[0] * size[1]}"
        )
    return mask_util.frPyObjects(rle, *size)


def _convert_mask(ann: dict, image: dict, path: str, check: bool, tally: Tally):
    """The mask of an annotation as Detectron2 takes it; [] if no polygon of it is valid."""
    mask = ann["segmentation"]
    if isinstance(mask, dict):
        return _convert_rle(ann, image, path)
    if not check:
        return mask
    try:
        polygons = valid_polygons(mask)
    except TypeError:
        raise DataError(
            f"{where(path, ann)}: 'segmentation' is neither a list of polygons "
            "[[x1, y1, ...], ...] nor an RLE mask"
        ) from None
    if len(polygons) == len(mask):
        return mask
    tally.add(BAD_POLYGON, ann, len(mask) - len(polygons))
    return polygons


def convert_keypoints(keypoints: list) -> list:
    """Pixel indices to coordinates of pixel centres, as Detectron2 does; visibility stays."""
    return [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(keypoints)]


def convert_annotations(
    anns: list[dict],
    image: dict,
    class_of: dict,
    file_format: str,
    path: str,
    check: bool,
    tally: Tally,
) -> list[dict]:
    """The annotations of one image in Detectron2's form, without those that are skipped.

    Args:
        anns: entries of the file.
        image: the file's entry of the image they are of.
        class_of: category id -> class id 0..C-1.
        file_format: "lvis" or "coco".
        path: the file, for messages.
        check: look at boxes and polygons.
        tally: counts what is skipped.

    Raises:
        DataError: an annotation that cannot be read; the message names it.
    """
    objs = []
    for ann in anns:
        try:
            obj = _convert_annotation(ann, image, class_of, file_format, path, check, tally)
        except KeyError as e:
            raise DataError(f"{where(path, ann)} lacks the key {e.args[0]!r}") from e
        except DataError:
            raise
        except (TypeError, ValueError, OverflowError) as e:
            raise DataError(
                f"{where(path, ann)}: bbox {ann.get('bbox')!r}, category id "
                f"{ann.get('category_id')!r} or its mask cannot be read: {e}"
            ) from e
        if obj is not None:
            objs.append(obj)
    return objs


def _convert_annotation(
    ann: dict, image: dict, class_of: dict, file_format: str, path: str, check: bool, tally: Tally
) -> dict | None:
    """One annotation in Detectron2's form, or None if it is skipped (and counted)."""
    if ann["category_id"] not in class_of:
        raise DataError(
            f"{where(path, ann)}: category id {ann['category_id']!r} is not in the file's list "
            f"of {len(class_of)} categories"
        )
    fault = _fault(ann, image, file_format) if check else None
    if fault is not None:
        tally.add(fault, ann)
        return None
    obj = {
        "bbox": ann["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": class_of[ann["category_id"]],
    }
    if file_format == "coco" and "iscrowd" in ann:
        obj["iscrowd"] = ann["iscrowd"]
    if file_format == "coco" and ann.get("keypoints"):
        obj["keypoints"] = convert_keypoints(ann["keypoints"])
    if ann.get("segmentation"):
        obj["segmentation"] = _convert_mask(ann, image, path, check, tally)
        if not obj["segmentation"]:
            tally.add(NO_POLYGON, ann)
            return None
    return obj


def _fault(ann: dict, image: dict, file_format: str) -> tuple | None:
    if ann.get("ignore"):
        return IGNORED
    if file_format == "lvis" and ann.get("iscrowd"):
        return LVIS_CROWD
    return box_fault(ann["bbox"], image["width"], image["height"])


def note_missing_masks(records: list[dict], annotations: list[dict], tally: Tally) -> None:
    """Count annotations without a mask in a file that has masks: mask heads cannot take them."""
    without = [ann for ann in annotations if not ann.get("segmentation")]
    if without and any("segmentation" in obj for r in records for obj in r["annotations"]):
        tally.add(NO_MASK, without[0], len(without))
