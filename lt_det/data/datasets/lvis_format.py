"""Files in LVIS or COCO JSON form: reading with checks, records and class lists.

The records are those of Detectron2's ``load_lvis_json`` and ``load_coco_json``, with three
differences: class ids follow the file's own category list (so own files need no built-in
metadata), ``neg_category_ids`` and ``not_exhaustive_category_ids`` are contiguous class ids too
(Detectron2 leaves the ids of the file), and what cannot be trained on is either skipped and
counted in one log line per kind, or an error that names file, image and annotation.
"""

from __future__ import annotations

import logging
import os

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from lt_det.data.datasets.annotations import Tally, convert_annotations, note_missing_masks, where
from lt_det.data.datasets.categories import ClassList, first_repeated, read_classes
from lt_det.data.datasets.column_cache import OpenColumns, open_columns
from lt_det.data.datasets.columns import image_path
from lt_det.data.datasets.paths import datasets_root
from lt_det.data.records import ColumnRecords, ListRecords, Records
from lt_det.errors import ConfigError, DataError, MissingFileError
from lt_det.evaluation.json_files import gc_paused, parse_json

logger = logging.getLogger(__name__)

FORMATS = ("lvis", "coco")


# ---- reading ---------------------------------------------------------------------------------


def _origin(path: str) -> str:
    """What prepares a missing file or folder, for an error message."""
    root = datasets_root()
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


def _read_annotation_file(path: str, name: str | None) -> tuple[dict, ClassList]:
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
    classes = read_classes(data["categories"], path)
    _CLASS_LISTS[key] = classes
    return data, classes


# ---- class list ------------------------------------------------------------------------------


# Class lists of files read in this process, by path, modification time and size.
_CLASS_LISTS: dict[tuple[str, int, int], ClassList] = {}


def _file_key(local: str) -> tuple[str, int, int]:
    stat = os.stat(local)
    return os.path.abspath(local), stat.st_mtime_ns, stat.st_size


def class_list(
    path: str, name: str, *, file_format: str | None = None, cache_dir: str | None = None
) -> ClassList:
    """Class list of an annotation file; see `catalog.dataset_info`.

    Args:
        path: annotation file.
        name: of the data set, for messages.
        file_format: "lvis" or "coco": what the file has to be in order to be read into columns,
            and these cached; None = only its categories matter.
        cache_dir: see `load_records`.

    Raises:
        MissingFileError: no such file.
        DataError: not JSON, a list is missing, or a category cannot be used; with `file_format`
            also what `load_lvis_format` says of annotations.
    """
    local = _local_annotation_file(path, name)
    key = _file_key(local)
    if key not in _CLASS_LISTS:
        with gc_paused():
            opened = None
            if file_format is not None:
                opened = _open(local, path, name, file_format, True, cache_dir)
            if opened is None:
                return _read_annotation_file(path, name)[1]
            _CLASS_LISTS[key] = read_classes(opened.about["categories"], path)
    return _CLASS_LISTS[key]


def _set_metadata(name: str, classes: ClassList, path: str) -> None:
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
            f"file {path}: lists {len(classes.names)} categories, but data set "
            f"{name!r} is known to have {len(known)}"
        )
    elif tuple(known) not in (classes.names, classes.synonyms):
        logger.warning(
            f"file {path}: class names differ from those known for {name!r}, "
            f"first at {_first_difference(known, classes.names)}"
        )
    id_map = classes.contiguous()
    if meta.get("thing_dataset_id_to_contiguous_id", id_map) != id_map:
        raise DataError(f"file {path}: its category ids are not those known for {name!r}")
    meta.thing_dataset_id_to_contiguous_id = id_map


def _first_difference(a, b) -> str:
    pairs = enumerate(zip(a, b, strict=True))
    return next(f"class {i}: {x!r} and {y!r}" for i, (x, y) in pairs if x != y)


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
    repeated = first_repeated(image["id"] for image in images)
    if repeated is not None:
        raise DataError(f"file {path}: image id {repeated} is used twice")


def _name_keys(first: dict, image_root: str, file_format: str, look: bool) -> tuple[str, str]:
    """The image keys that name the file, the one to use first in front.

    Detectron2 takes `coco_url` in LVIS files and `file_name` in COCO files. Where an image has
    both and only the other one leads to a file, the other one goes first. Only the first image
    of the set is looked up on disk: all of a set follow one scheme.
    """
    keys = ("coco_url", "file_name") if file_format == "lvis" else ("file_name", "coco_url")
    if look and all(first.get(key) for key in keys):
        found = [PathManager.isfile(image_path(image_root, key, first[key])) for key in keys]
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
        paths.append(image_path(image_root, key, image[key]))
    return paths


def _check_image_folder(image_root: str, first: str, name: str | None) -> None:
    for folder in (image_root, os.path.dirname(first)):
        if "://" not in folder and not os.path.isdir(folder):
            of = f" of data set {name!r}" if name else ""
            raise MissingFileError(
                f"image folder {folder}{of} does not exist "
                f"(looked for {os.path.abspath(folder)}). {_origin(folder)}"
            )


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


# ---- records ---------------------------------------------------------------------------------


def check_format(file_format: str, name: str | None) -> None:
    """Raise ConfigError for a format other than `FORMATS`; `name` is for the message."""
    if file_format not in FORMATS:
        of = f" of data set {name!r}" if name else ""
        raise ConfigError(f"unknown format {file_format!r}{of}. Accepted: {', '.join(FORMATS)}.")


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
    return list(
        load_records(
            json_file,
            image_root,
            name=name,
            file_format=file_format,
            check=check,
            need_images=need_images,
        )
    )


def load_records(
    json_file: str,
    image_root: str,
    *,
    name: str | None = None,
    file_format: str = "lvis",
    check: bool = True,
    need_images: bool = True,
    cache_dir: str | None = None,
) -> Records:
    """What `load_lvis_format` gives, as columns that make each dict when it is asked for.

    It has one argument more: `cache_dir`, where the columns of large files are kept, so that a
    later call maps them into memory; None or "" = nowhere.

    Raises:
        ConfigError, MissingFileError, DataError: see there.
    """
    check_format(file_format, name)
    path, image_root = str(json_file), str(image_root)
    local = _local_annotation_file(path, name)
    with gc_paused():
        opened = _open(local, path, name, file_format, check, cache_dir)
        if opened is None:
            classes, records = _load_entries(
                path, image_root, name, file_format, check, need_images
            )
        else:
            classes = read_classes(opened.about["categories"], path)
            _CLASS_LISTS[_file_key(local)] = classes
            records = _column_records(opened, image_root, name, file_format, need_images)
            Tally.from_rows(opened.about["left_out"]).log(path)
    if name:
        _set_metadata(name, classes, path)
    logger.info(f"Loaded {len(records)} images from {json_file} ({file_format} format)")
    return records


def _open(
    local: str, path: str, name: str | None, file_format: str, check: bool, cache_dir: str | None
) -> OpenColumns | None:
    def read_whole():
        data, _ = _read_annotation_file(path, name)
        for key in ("images", "annotations", "categories"):
            yield key, data[key]

    return open_columns(local, file_format, check, cache_dir, read_whole)


def _column_records(
    opened: OpenColumns, image_root: str, name: str | None, file_format: str, need_images: bool
) -> ColumnRecords:
    first = {key: opened.columns.image_name(0, key) for key in ("coco_url", "file_name")}
    records = ColumnRecords(
        opened.columns,
        image_root,
        _name_keys(first, image_root, file_format, look=need_images),
        with_lists=file_format == "lvis",
        source=None if opened.path is None else (opened.path, opened.about),
    )
    if need_images:
        _check_image_folder(image_root, records.file_name(0), name)
    return records


def _load_entries(
    path: str, image_root: str, name: str | None, file_format: str, check: bool, need_images: bool
) -> tuple[ClassList, ListRecords]:
    """Records of a file whose entries are wrong, which is an error here, or fit no column."""
    data, classes = _read_annotation_file(path, name)
    _check_images(data["images"], path)
    data["images"].sort(key=lambda image: image["id"])
    names = _image_paths(data["images"], image_root, file_format, path, look=need_images)
    if need_images:
        _check_image_folder(image_root, names[0], name)
    records = _build_records(data, names, classes.contiguous(), file_format, path, check)
    return classes, ListRecords(records)


def _build_records(
    data: dict, names: list[str], class_of: dict, file_format: str, path: str, check: bool
) -> list[dict]:
    """One record per image of `data`, whose file is the one of `names` in the same place."""
    by_image = _group_by_image(data["images"], data["annotations"], path)
    tally, records = Tally(), []
    for image, file_name in zip(data["images"], names, strict=True):
        record = {
            "file_name": file_name,
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
        }
        if file_format == "lvis":
            record.update(_federated_lists(image, class_of, path))
        record["annotations"] = convert_annotations(
            by_image[image["id"]], image, class_of, file_format, path, check, tally
        )
        records.append(record)
    if check:
        note_missing_masks(records, data["annotations"], tally)
    tally.log(path)
    return records


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
            raise DataError(f"{where(path, ann)}: the file lists no image with that id") from None
    # COCO 2014's (valminus)minival files are known to repeat a few; Detectron2 lets them pass.
    if len(seen) < len(annotations) and "minival" not in os.path.basename(path):
        repeated = first_repeated(ann["id"] for ann in annotations)
        images_of = [ann["image_id"] for ann in annotations if ann["id"] == repeated]
        raise DataError(
            f"file {path}: annotation id {repeated} is used twice, "
            f"in image id {images_of[0]} and image id {images_of[1]}"
        )
    return by_image
