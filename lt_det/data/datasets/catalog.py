"""Registered data sets: where each one lies, its records and its class list."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_det.data.datasets.file_cache import default_cache_dir
from lt_det.data.datasets.lvis_format import check_format, class_list, load_records
from lt_det.data.datasets.paths import datasets_root
from lt_det.data.records import ListRecords, Records
from lt_det.errors import ConfigError, MissingFileError


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


# Where the columns of large annotation files are kept; "" = the default folder.
_SETTINGS = {"cache_dir": ""}

# What register_lvis_format has registered, and what has to run before a set's first load.
_SOURCES: dict[str, Source] = {}
_PREPARE: dict[str, Callable[[], object]] = {}

# Modules whose registration functions read one JSON file and nothing else.
_DETECTRON2_LOADERS = {
    "detectron2.data.datasets.lvis": "lvis",
    "detectron2.data.datasets.coco": "coco",
}


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
    check_format(file_format, name)
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
    DatasetCatalog.register(name, partial(_list_records, name))
    _SOURCES[name] = source
    if prepare is not None:
        _PREPARE[name] = prepare


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


def set_cache_dir(cache_dir: str) -> None:
    """Keep columns there from now on; "" = ``$DETECTRON2_DATASETS/lt_det_cache``.

    A setting of the process, as the catalogues are: Detectron2 asks them for a data set by its
    name alone.
    """
    _SETTINGS["cache_dir"] = cache_dir


def _cache_dir() -> str:
    return _SETTINGS["cache_dir"] or default_cache_dir()


def get_records(name: str, *, need_images: bool = True, cache_dir: str | None = None) -> Records:
    """Records of a registered set, checked as in `load_lvis_format` if it is in JSON form.

    Built-in ``lvis_*`` and ``coco_*`` sets are read with the same checks; sets with a loader of
    their own are read with it.

    Args:
        name: registered name.
        need_images: the image folder has to exist.
        cache_dir: where the columns of large files are kept; None or "" is the folder of
            ``DATASETS.LT.CACHE_DIR``.

    Raises:
        ConfigError: no set has that name; the message lists near ones.
        MissingFileError, DataError: see `load_lvis_format` and `load_own`.
    """
    source = find_source(name)
    if source is None:
        return ListRecords(load_own(name))
    return load_records(
        source.json_file,
        source.image_root,
        name=name,
        file_format=source.file_format,
        need_images=need_images,
        cache_dir=cache_dir or _cache_dir(),
    )


def load_own(name: str) -> list[dict]:
    """Records of a registered set by the loader it was registered with.

    Raises:
        MissingFileError: a file or folder of the set does not exist.
    """
    try:
        return DatasetCatalog.get(name)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MissingFileError(
            f"data set {name!r}: {e.filename or e} does not exist; the environment variable "
            f"DETECTRON2_DATASETS moves the folder of Detectron2's data sets "
            f"(now {datasets_root()!r})"
        ) from e


def _list_records(name: str) -> list[dict]:
    """What Detectron2's own tools get: they index, change and measure a list."""
    return list(get_records(name))


def dataset_info(name: str) -> DatasetInfo:
    """Class list of a registered set with an annotation file. The images need not be there.

    A file is read once per process as long as its path, modification time and size stay.

    Raises:
        ConfigError: no set has that name, or it has no annotation file.
        MissingFileError, DataError: see `load_lvis_format`.
    """
    source = find_source(name)
    meta = MetadataCatalog.get(name)
    path = meta.get("json_file")
    if path is None:
        raise ConfigError(
            f"data set {name!r} has no annotation file in LVIS or COCO form "
            "(`json_file` in its metadata)"
        )
    file_format = None if source is None else source.file_format
    classes = class_list(str(path), name, file_format=file_format, cache_dir=_cache_dir())
    return DatasetInfo(
        name=name,
        json_file=str(path),
        image_root=str(meta.get("image_root", "")),
        class_names=list(classes.names),
        category_ids=list(classes.ids),
        frequency=None if classes.frequency is None else list(classes.frequency),
    )
