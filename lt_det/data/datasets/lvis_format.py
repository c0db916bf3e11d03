"""Data sets in LVIS or COCO JSON form: reading with checks, registration, class lists.

The records are those of Detectron2's ``load_lvis_json`` and ``load_coco_json``, with three
differences: class ids follow the file's own category list (so own files need no built-in
metadata), ``neg_category_ids`` and ``not_exhaustive_category_ids`` are contiguous class ids too
(Detectron2 leaves the ids of the file), and what cannot be trained on is either skipped and
counted in one log line per kind, or an error that names file, image and annotation.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from lt_det.errors import ConfigError, DataError, MissingFileError

try:
    import orjson
except ImportError:
    orjson = None

logger = logging.getLogger(__name__)

FORMATS = ("lvis", "coco")
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


@dataclass(frozen=True)
class Source:
    """Where a data set lies and in which form.

    Attributes:
        name: registered name.
        json_file: annotation file.
        image_root: folder that the image names of the file are relative to.
        file_format: "lvis" or "coco".
    """

    name: str
    json_file: str
    image_root: str
    file_format: str


@dataclass(frozen=True)
class DatasetInfo:
    """A data set's class list.

    Attributes:
        name: registered name.
        json_file: annotation file.
        image_root: folder of the images.
        class_names: (C,) `name` of each category, by contiguous class id.
        category_ids: (C,) category ids of the file, ascending.
        frequency: (C,) 'r', 'c' or 'f' as the file says; None unless every category has one.
    """

    name: str
    json_file: str
    image_root: str
    class_names: list[str]
    category_ids: list[int]
    frequency: list[str] | None


@dataclass(frozen=True)
class _Classes:
    """The category list of a file, in order of id: (C,) each."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    synonyms: tuple[str, ...]  # first synonym, or the name: what Detectron2 calls an LVIS class
    frequency: tuple[str, ...] | None

    def contiguous(self) -> dict[int, int]:
        return {category_id: i for i, category_id in enumerate(self.ids)}


class _Tally:
    """Counts what a file's checks leave out, with the first example of each kind."""

    def __init__(self):
        self.counts: Counter = Counter()
        self.examples: dict[tuple, tuple] = {}

    def add(self, kind: tuple, ann: dict, count: int = 1) -> None:
        self.counts[kind] += count
        self.examples.setdefault(kind, (ann["id"], ann["image_id"]))

    def log(self, path: str) -> None:
        for kind, count in self.counts.items():
            verb, noun, which = kind
            ann_id, image_id = self.examples[kind]
            logger.warning(
                f"file {path}: {verb} {count} {noun}{'s' if count > 1 else ''} {which} "
                f"(e.g. annotation id {ann_id} of image id {image_id})"
            )


# ---- reading ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    """No garbage collection inside: walking millions of live objects doubles the load time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def parse_json(raw: bytes, path: str):
    """The value that the JSON text `raw` holds; `path` is for the message.

    Raises:
        DataError: not JSON; the message names file, line, column and character.
    """
    if orjson is not None:
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass  # NaN, which `json` reads, or broken text, whose place `json` tells
    try:
        return json.loads(raw)
    except UnicodeDecodeError as e:
        raise DataError(f"file {path}: not a text file, see byte {e.start}") from e
    except json.JSONDecodeError as e:
        raise DataError(
            f"file {path}: not valid JSON at line {e.lineno} column {e.colno} "
            f"(character {e.pos} of {len(e.doc)}): {e.msg}. Is it truncated?"
        ) from e


def _data_root() -> str:
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def _origin(path: str) -> str:
    """What prepares a missing file or folder, for an error message."""
    root = _data_root()
    if not os.path.abspath(path).startswith(os.path.abspath(root) + os.sep):
        return "Check `json` and `images` of this data set in DATASETS.LT.REGISTER."
    place = f"The environment variable DETECTRON2_DATASETS moves this place (now {root!r})."
    images = (
        f"COCO images come from https://cocodataset.org/#download and go to "
        f"{root}/coco/train2017 and {root}/coco/val2017"
    )
    if os.path.basename(path).startswith("lvis_") or path.rstrip("/").endswith("/lvis"):
        return (
            f"{place} LVIS annotations come from https://www.lvisdataset.org/dataset and go to "
            f"{root}/lvis/; {images}."
        )
    if f"{os.sep}coco{os.sep}" in path + os.sep:
        return f"{place} {images}, the annotations to {root}/coco/annotations."
    return f"{place} Is it an own data set, check `json` and `images` in DATASETS.LT.REGISTER."


def _local_annotation_file(path: str, name: str | None) -> str:
    local = PathManager.get_local_path(path) if "://" in path else path
    if not os.path.isfile(local):
        of = f" of data set {name!r}" if name else ""
        raise MissingFileError(
            f"annotation file {path}{of} does not exist "
            f"(looked for {os.path.abspath(local)}). {_origin(path)}"
        )
    return local


def _read_annotation_file(path: str, name: str | None) -> tuple[dict, _Classes]:
    """Content and class list of an annotation file; the class list is remembered."""
    local = _local_annotation_file(path, name)
    key = _file_key(local)
    with open(local, "rb") as f:
        data = parse_json(f.read(), path)
    if not isinstance(data, dict):
        raise DataError(f"file {path}: holds a {type(data).__name__} instead of an object")
    # The files of test sets ("image_info_test-dev2017") list images and classes only.
    if "image_info" in os.path.basename(path):
        data.setdefault("annotations", [])
    for field in ("images", "annotations", "categories"):
        if not isinstance(data.get(field), list):
            what = "is not a list" if field in data else "is missing"
            raise DataError(f"file {path}: key {field!r} {what}")
        for i, entry in enumerate(data[field]):
            if not isinstance(entry, dict):
                raise DataError(f"file {path}: entry {i} of {field!r} is {entry!r}, not an object")
    classes = _read_classes(data["categories"], path)
    _CLASS_LISTS[key] = classes
    return data, classes


def _file_key(local: str) -> tuple[str, int, int]:
    stat = os.stat(local)
    return os.path.abspath(local), stat.st_mtime_ns, stat.st_size


# Class lists of files read in this process, by path, modification time and size.
_CLASS_LISTS: dict[tuple[str, int, int], _Classes] = {}


def _read_classes(categories: list[dict], path: str) -> _Classes:
    """The class list, sorted by category id.

    Raises:
        DataError: no category, a category without `id` or `name`, an id that is used twice,
            a frequency other than r, c, f.
    """
    if not categories:
        raise DataError(f"file {path}: lists no category")
    for i, category in enumerate(categories):
        for key in ("id", "name"):
            if key not in category:
                raise DataError(f"file {path}: category number {i} lacks the key {key!r}")
        if not isinstance(category["id"], int):
            raise DataError(f"file {path}: category id {category['id']!r} is not a whole number")
    ordered = sorted(categories, key=lambda c: c["id"])
    ids = tuple(c["id"] for c in ordered)
    names = tuple(str(c["name"]) for c in ordered)
    repeated = _first_repeated(ids)
    if repeated is not None:
        raise DataError(f"file {path}: category id {repeated} is used twice")
    if len(set(names)) < len(names):
        logger.warning(f"file {path}: several categories are named {_first_repeated(names)!r}")
    synonyms = tuple((c.get("synonyms") or [n])[0] for c, n in zip(ordered, names, strict=True))
    return _Classes(ids, names, synonyms, _read_frequency(ordered, path))


def _read_frequency(categories: list[dict], path: str) -> tuple[str, ...] | None:
    frequency = tuple(c.get("frequency") for c in categories)
    for category, value in zip(categories, frequency, strict=True):
        if value not in ("r", "c", "f", None):
            raise DataError(
                f"file {path}: category id {category['id']} has frequency {value!r}; "
                "accepted: 'r', 'c', 'f'"
            )
    missing = frequency.count(None)
    if 0 < missing < len(frequency):
        logger.warning(
            f"file {path}: {missing} of {len(frequency)} categories have no `frequency`; "
            "the groups r, c, f will come from image counts"
        )
    return None if missing else frequency


def _first_repeated(values):
    """The first value that came before, or None."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


# ---- images ----------------------------------------------------------------------------------


def _check_images(images: list[dict], path: str) -> None:
    """Every image has an id of its own, a width and a height.

    Raises:
        DataError: it does not, or there is no image.
    """
    if not images:
        raise DataError(f"file {path}: lists no image")
    for i, image in enumerate(images):
        if "id" not in image:
            raise DataError(f"file {path}: image number {i} lacks the key 'id'")
        if not isinstance(image["id"], int):
            raise DataError(f"file {path}: image id {image['id']!r} is not a whole number")
        for key in ("width", "height"):
            if key not in image:
                raise DataError(f"file {path}: image id {image['id']} lacks the key {key!r}")
            if not isinstance(image[key], int) or image[key] <= 0:
                raise DataError(
                    f"file {path}: image id {image['id']} has {key} {image[key]!r}, "
                    "not a positive whole number"
                )
    repeated = _first_repeated(image["id"] for image in images)
    if repeated is not None:
        raise DataError(f"file {path}: image id {repeated} is used twice")


def _image_path(image: dict, key: str, image_root: str) -> str:
    """Path of an image by its `coco_url` (last two components) or its `file_name`."""
    parts = image[key].split("/")[-2:] if key == "coco_url" else [image[key]]
    return os.path.join(image_root, *parts)


def _name_keys(first: dict, image_root: str, file_format: str, look: bool) -> tuple[str, str]:
    """The image keys that name the file, the one to use first in front.

    Detectron2 takes `coco_url` in LVIS files and `file_name` in COCO files. Where an image has
    both and only the other one leads to a file, the other one goes first. Only the first image
    of the set is looked up on disk: all of a set follow one scheme.
    """
    keys = ("coco_url", "file_name") if file_format == "lvis" else ("file_name", "coco_url")
    if look and all(first.get(key) for key in keys):
        found = [PathManager.isfile(_image_path(first, key, image_root)) for key in keys]
        if found == [False, True]:
            return keys[::-1]
    return keys


def _image_paths(
    images: list[dict], image_root: str, file_format: str, path: str, look: bool
) -> list[str]:
    """Path of every image.

    Raises:
        DataError: an image has neither `coco_url` nor `file_name`.
    """
    keys = _name_keys(images[0], image_root, file_format, look)
    paths = []
    for image in images:
        key = keys[0] if image.get(keys[0]) else keys[1]
        if not image.get(key):
            raise DataError(
                f"file {path}: image id {image['id']} has neither 'coco_url' nor 'file_name'"
            )
        paths.append(_image_path(image, key, image_root))
    return paths


def _check_image_folder(image_root: str, first: str, name: str | None) -> None:
    for folder in (image_root, os.path.dirname(first)):
        if "://" not in folder and not os.path.isdir(folder):
            of = f" of data set {name!r}" if name else ""
            raise MissingFileError(
                f"image folder {folder}{of} does not exist "
                f"(looked for {os.path.abspath(folder)}). {_origin(folder)}"
            )


# ---- annotations -----------------------------------------------------------------------------


def _where(path: str, ann: dict) -> str:
    return f"file {path}: annotation id {ann.get('id')} of image id {ann.get('image_id')}"


def _group_by_image(images: list[dict], annotations: list[dict], path: str) -> dict[int, list]:
    """Annotations by image id, in the order of the file.

    Raises:
        DataError: an annotation without an id or image id, of an image that does not exist, or
            with an id that is used twice.
    """
    by_image: dict[int, list] = {image["id"]: [] for image in images}
    seen = set()
    for i, ann in enumerate(annotations):
        for key in ("id", "image_id"):
            if key not in ann:
                raise DataError(f"file {path}: annotation number {i} lacks the key {key!r}")
        try:
            by_image[ann["image_id"]].append(ann)
            seen.add(ann["id"])
        except (KeyError, TypeError):
            raise DataError(f"{_where(path, ann)}: the file lists no image with that id") from None
    # COCO 2014's (valminus)minival files are known to repeat a few; Detectron2 lets them pass.
    if len(seen) < len(annotations) and "minival" not in os.path.basename(path):
        repeated = _first_repeated(ann["id"] for ann in annotations)
        images_of = [ann["image_id"] for ann in annotations if ann["id"] == repeated]
        raise DataError(
            f"file {path}: annotation id {repeated} is used twice, "
            f"in image id {images_of[0]} and image id {images_of[1]}"
        )
    return by_image


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
            f"{_where(path, ann)}: the RLE mask has (height, width) {list(rle['size'])}, "
            f"the image {size}"
        )
    counts = rle["counts"]
    if not isinstance(counts, list):
        return rle
    if sum(counts) != size[0] * size[1]:
        raise DataError(
            f"{_where(path, ann)}: the runs of the RLE mask cover {sum(counts)} pixels, "
            f"the image has {size[0] * size[1]}"
        )
    from pycocotools import mask as mask_util

    return mask_util.frPyObjects(rle, *size)


def _convert_mask(ann: dict, image: dict, path: str, check: bool, tally: _Tally):
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
            f"{_where(path, ann)}: 'segmentation' is neither a list of polygons "
            "[[x1, y1, ...], ...] nor an RLE mask"
        ) from None
    if len(polygons) == len(mask):
        return mask
    tally.add(BAD_POLYGON, ann, len(mask) - len(polygons))
    return polygons


def _convert_keypoints(keypoints: list) -> list:
    """Pixel indices to coordinates of pixel centres, as Detectron2 does; visibility stays."""
    return [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(keypoints)]


def _convert_annotation(
    ann: dict, image: dict, class_of: dict, file_format: str, path: str, check: bool, tally: _Tally
) -> dict | None:
    """One annotation in Detectron2's form, or None if it is skipped (and counted)."""
    if ann["category_id"] not in class_of:
        raise DataError(
            f"{_where(path, ann)}: category id {ann['category_id']!r} is not in the file's list "
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
        obj["keypoints"] = _convert_keypoints(ann["keypoints"])
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


def _convert_annotations(
    anns: list[dict], image: dict, class_of: dict, file_format: str, path: str, check: bool, tally
) -> list[dict]:
    objs = []
    for ann in anns:
        try:
            obj = _convert_annotation(ann, image, class_of, file_format, path, check, tally)
        except KeyError as e:
            raise DataError(f"{_where(path, ann)} lacks the key {e.args[0]!r}") from e
        except DataError:
            raise
        except (TypeError, ValueError, OverflowError) as e:
            raise DataError(
                f"{_where(path, ann)}: bbox {ann.get('bbox')!r}, category id "
                f"{ann.get('category_id')!r} or its mask cannot be read: {e}"
            ) from e
        if obj is not None:
            objs.append(obj)
    return objs


def _federated_lists(image: dict, class_of: dict, path: str) -> dict[str, list[int]]:
    """The image's lists of classes that are checked to be absent / not annotated in full."""
    lists = {}
    for key in ("not_exhaustive_category_ids", "neg_category_ids"):
        try:
            lists[key] = [class_of[category_id] for category_id in image.get(key) or []]
        except KeyError as e:
            raise DataError(
                f"file {path}: {key} of image id {image['id']} has category id {e.args[0]!r}, "
                f"which is not in the file's list of {len(class_of)} categories"
            ) from e
    return lists


def _note_missing_masks(records: list[dict], annotations: list[dict], tally: _Tally) -> None:
    """Count annotations without a mask in a file that has masks: mask heads cannot take them."""
    without = [ann for ann in annotations if not ann.get("segmentation")]
    if without and any("segmentation" in obj for r in records for obj in r["annotations"]):
        tally.add(NO_MASK, without[0], len(without))


def _build_records(
    data: dict, classes: _Classes, source: Source, path: str, check: bool, need_images: bool
) -> list[dict]:
    file_format = source.file_format
    _check_images(data["images"], path)
    images = sorted(data["images"], key=lambda image: image["id"])
    paths = _image_paths(images, source.image_root, file_format, path, look=need_images)
    if need_images:
        _check_image_folder(source.image_root, paths[0], source.name or None)
    by_image = _group_by_image(images, data["annotations"], path)
    class_of, tally, records = classes.contiguous(), _Tally(), []
    for image, file_name in zip(images, paths, strict=True):
        record = {
            "file_name": file_name,
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
        }
        if file_format == "lvis":
            record.update(_federated_lists(image, class_of, path))
        record["annotations"] = _convert_annotations(
            by_image[image["id"]], image, class_of, file_format, path, check, tally
        )
        records.append(record)
    if check:
        _note_missing_masks(records, data["annotations"], tally)
    tally.log(path)
    return records


def load_lvis_format(
    json_file: str,
    image_root: str,
    *,
    name: str | None = None,
    file_format: str = "lvis",
    check: bool = True,
    need_images: bool = True,
) -> list[dict]:
    """Read an annotation file in LVIS or COCO form.

    Skipped and counted, one warning per kind: boxes that are empty or outside the image,
    annotations none of whose polygons is valid, annotations marked `ignore`, and `iscrowd` in
    LVIS files (COCO crowds are kept with their mark; Detectron2's mapper drops them). A polygon
    that is not valid is dropped on its own. An annotation without any mask is kept, as in
    Detectron2, and counted if others of the file have one.

    Args:
        json_file: annotation file.
        image_root: folder that `file_name` (or the last two components of `coco_url`) is
            relative to; `_name_keys` says which of the two counts.
        name: registered name; its metadata then gets `thing_classes` and
            `thing_dataset_id_to_contiguous_id`.
        file_format: "lvis" or "coco".
        check: look at boxes and polygons. False takes them as they are; ids, categories and
            RLE sizes are checked all the same.
        need_images: the image folder has to exist.

    Returns:
        One dict per image, in order of image id: `file_name`, `height`, `width` (pixels),
        `image_id` and `annotations`: dicts of `bbox` (4,) in pixels, `bbox_mode` XYWH_ABS,
        `category_id` (0..C-1, categories sorted by id), `segmentation` (polygons or RLE) and,
        in COCO form, `iscrowd` and `keypoints`. In LVIS form also `neg_category_ids` and
        `not_exhaustive_category_ids`, as class ids 0..C-1.

    Raises:
        ConfigError: unknown `file_format`.
        MissingFileError: no such annotation file or image folder.
        DataError: a file that is not JSON or lacks a key, ids used twice, an annotation of an
            unknown image or category, an image without a size, a mask of another size than the
            image.
    """
    _check_format(file_format, name)
    source = Source(name or "", str(json_file), str(image_root), file_format)
    with _gc_paused():
        data, classes = _read_annotation_file(source.json_file, name)
        records = _build_records(data, classes, source, source.json_file, check, need_images)
    if name:
        _set_metadata(name, classes, source)
    logger.info(f"Loaded {len(records)} images from {json_file} ({file_format} format)")
    return records


# ---- registration ----------------------------------------------------------------------------

# What register_lvis_format has registered, and what has to run before a set's first load.
_SOURCES: dict[str, Source] = {}
_PREPARE: dict[str, Callable[[], object]] = {}


def _check_format(file_format: str, name: str | None) -> None:
    if file_format not in FORMATS:
        of = f" of data set {name!r}" if name else ""
        raise ConfigError(f"unknown format {file_format!r}{of}. Accepted: {', '.join(FORMATS)}.")


def register_lvis_format(
    name: str,
    json_file: str,
    image_root: str,
    *,
    file_format: str = "lvis",
    prepare: Callable[[], object] | None = None,
) -> None:
    """Register a data set in LVIS or COCO form with Detectron2. Reads nothing.

    Registering the same set again changes nothing. `prepare` runs once per process, before the
    first load; it may write the files, and has to cope with other processes doing the same.

    Raises:
        ConfigError: unknown format, or the name is taken by another set.
    """
    _check_format(file_format, name)
    source = Source(name, str(json_file), str(image_root), file_format)
    if name in DatasetCatalog:
        if _SOURCES.get(name) == source:
            return
        other = MetadataCatalog.get(name).get("json_file", "another source")
        raise ConfigError(
            f"data set name {name!r} is taken (by {other}), so {json_file} cannot have it. "
            "Choose another name in DATASETS.LT.REGISTER."
        )
    MetadataCatalog.get(name).set(
        json_file=source.json_file,
        image_root=source.image_root,
        evaluator_type="lvis",
        lt_format=file_format,
    )
    DatasetCatalog.register(name, partial(get_records, name))
    _SOURCES[name] = source
    if prepare is not None:
        _PREPARE[name] = prepare


def _set_metadata(name: str, classes: _Classes, source: Source) -> None:
    """Write the class list to the catalogue, or compare with the one that is there.

    Raises:
        DataError: Detectron2's built-in class list, or that of an earlier load, has another
            number of classes or other category ids.
    """
    meta = MetadataCatalog.get(name)
    known = meta.get("thing_classes")
    if known is None:
        meta.thing_classes = list(classes.names)
    elif len(known) != len(classes.names):
        raise DataError(
            f"file {source.json_file}: lists {len(classes.names)} categories, but data set "
            f"{name!r} is known to have {len(known)}"
        )
    elif tuple(known) not in (classes.names, classes.synonyms):
        logger.warning(
            f"file {source.json_file}: class names differ from those known for {name!r}, "
            f"first at {_first_difference(known, classes.names)}"
        )
    id_map = classes.contiguous()
    if meta.get("thing_dataset_id_to_contiguous_id", id_map) != id_map:
        raise DataError(
            f"file {source.json_file}: its category ids are not those known for {name!r}"
        )
    meta.thing_dataset_id_to_contiguous_id = id_map


def _first_difference(a, b) -> str:
    pairs = enumerate(zip(a, b, strict=True))
    return next(f"class {i}: {x!r} and {y!r}" for i, (x, y) in pairs if x != y)


# Modules whose registration functions read one JSON file and nothing else.
_DETECTRON2_LOADERS = {
    "detectron2.data.datasets.lvis": "lvis",
    "detectron2.data.datasets.coco": "coco",
}


def find_source(name: str) -> Source | None:
    """Where a registered set lies, after running its `prepare`.

    Returns:
        None for sets that neither `register_lvis_format` nor Detectron2's own
        `register_lvis_instances` / `register_coco_instances` registered.

    Raises:
        ConfigError: no set has that name.
    """
    if name not in DatasetCatalog:
        raise ConfigError(_unknown_dataset(name))
    if name in _SOURCES:
        if name in _PREPARE:
            _PREPARE[name]()
            del _PREPARE[name]
        return _SOURCES[name]
    file_format = _DETECTRON2_LOADERS.get(getattr(DatasetCatalog[name], "__module__", None))
    if file_format is None:
        return None
    meta = MetadataCatalog.get(name)
    return Source(name, str(meta.json_file), str(meta.image_root), file_format)


def _unknown_dataset(name: str) -> str:
    near = difflib.get_close_matches(str(name), DatasetCatalog.list(), n=4)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return (
        f"unknown data set {name!r} in DATASETS.TRAIN or DATASETS.TEST.{hint} "
        "Own data sets are registered with DATASETS.LT.REGISTER; "
        f"registered so far: {', '.join(sorted(_SOURCES)) or 'none'}, "
        f"and {len(DatasetCatalog) - len(_SOURCES)} of Detectron2's."
    )


def get_records(name: str, *, need_images: bool = True) -> list[dict]:
    """Records of a registered set, checked as in `load_lvis_format` if it is in JSON form.

    Built-in ``lvis_*`` and ``coco_*`` sets are read with the same checks; sets with a loader of
    their own are read with it.

    Raises:
        ConfigError: no set has that name; the message lists near ones.
        MissingFileError, DataError: see `load_lvis_format`.
    """
    source = find_source(name)
    if source is None:
        return DatasetCatalog.get(name)
    return load_lvis_format(
        source.json_file,
        source.image_root,
        name=name,
        file_format=source.file_format,
        need_images=need_images,
    )


def dataset_info(name: str) -> DatasetInfo:
    """Class list of a registered set with an annotation file. The images need not be there.

    A file is read once per process as long as its path, modification time and size stay.

    Raises:
        ConfigError: no set has that name, or it has no annotation file.
        MissingFileError, DataError: see `load_lvis_format`.
    """
    find_source(name)
    meta = MetadataCatalog.get(name)
    path = meta.get("json_file")
    if path is None:
        raise ConfigError(
            f"data set {name!r} has no annotation file in LVIS or COCO form "
            "(`json_file` in its metadata)"
        )
    classes = _class_list(str(path), name)
    return DatasetInfo(
        name=name,
        json_file=str(path),
        image_root=str(meta.get("image_root", "")),
        class_names=list(classes.names),
        category_ids=list(classes.ids),
        frequency=None if classes.frequency is None else list(classes.frequency),
    )


def _class_list(path: str, name: str) -> _Classes:
    key = _file_key(_local_annotation_file(path, name))
    if key not in _CLASS_LISTS:
        with _gc_paused():
            return _read_annotation_file(path, name)[1]
    return _CLASS_LISTS[key]
