"""Own data sets from the configuration, without code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from lt_det.data.datasets.catalog import register_lvis_format, set_cache_dir
from lt_det.data.datasets.image_sets import ImageSet, register_image_set
from lt_det.data.datasets.lvis_format import FORMATS
from lt_det.data.datasets.sem_seg_sets import SemSegSet, register_sem_seg_set
from lt_det.errors import ConfigError

KEY = "DATASETS.LT.REGISTER"
# Keys of an entry that must be there, and that may be: of annotation files, of list files of image
# classification, and of label maps. An entry with the key `list` is of the second kind, one with
# the key `labels` of the third.
JSON_KEYS = ("name", "json", "images"), ("format",)
LIST_KEYS = ("name", "list", "images"), ("classes",)
LABEL_KEYS = ("name", "labels", "images", "classes"), ("zero_is_unlabelled",)
PATH_KEYS = ("json", "list", "labels", "images", "classes")


def register_from_config(cfg) -> list[str]:
    """Register the data sets that ``DATASETS.LT.REGISTER`` lists. Reads none of them.

    Each entry is ``{name: my_train, json: /path/train.json, images: /path/images, format: lvis}``,
    `format` being "lvis" unless given; or, for image classification,
    ``{name: my_train, list: /path/train.txt, images: /path/images, classes: /path/names.txt}``,
    where the file of class names may be left out; or, for semantic segmentation,
    ``{name: my_train, labels: /path/maps, images: /path/images, classes: /path/names.txt,
    zero_is_unlabelled: False}``, where the last is False unless given.

    ``~`` and environment variables in paths are expanded, relative paths start at the current
    directory. A second call with the same entries changes nothing. From now on large files are
    cached in ``DATASETS.LT.CACHE_DIR``.

    Returns:
        The names, in the order of the list.

    Raises:
        ConfigError: an entry with a missing, unknown or empty key, an environment variable that
            is not set, or a name that is taken.
    """
    entries = cfg.DATASETS.LT.REGISTER
    if not isinstance(entries, (list, tuple)):
        raise ConfigError(
            f"{KEY} must be a list of {{name, json, images, format}}, "
            f"got a {type(entries).__name__}"
        )
    for i, entry in enumerate(entries):
        _check_entry(entry, f"{KEY}[{i}]")
        paths = {
            key: _expand_path(entry[key], f"{KEY}[{i}].{key}") for key in PATH_KEYS if key in entry
        }
        _register(entry, paths)
    set_cache_dir(cfg.DATASETS.LT.CACHE_DIR)
    return [entry["name"] for entry in entries]


def _register(entry: Mapping, paths: Mapping[str, str]) -> None:
    name, images, classes = entry["name"], paths["images"], paths.get("classes", "")
    if "list" in entry:
        register_image_set(ImageSet(name, paths["list"], images, classes))
    elif "labels" in entry:
        zero = entry.get("zero_is_unlabelled", False)
        register_sem_seg_set(SemSegSet(name, images, paths["labels"], classes, zero))
    else:
        file_format = entry.get("format", FORMATS[0])
        register_lvis_format(name, paths["json"], images, file_format=file_format)


def _keys_of(entry: Mapping) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if "list" in entry:
        return LIST_KEYS
    return LABEL_KEYS if "labels" in entry else JSON_KEYS


def _check_entry(entry, where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} must be {{name, json, images, format}}, got {entry!r}")
    required, optional = _keys_of(entry)
    accepted = ", ".join((*required, *optional))
    for key in entry:
        if key not in required + optional:
            raise ConfigError(f"{where} has the unknown key {key!r}. Accepted: {accepted}.")
    for key in required:
        if key not in entry:
            raise ConfigError(f"{where} lacks the key {key!r}. Accepted: {accepted}.")
    for key, value in entry.items():
        if key == "zero_is_unlabelled":
            if not isinstance(value, bool):
                raise ConfigError(f"{where}.{key} must be True or False, got {value!r}")
        elif not isinstance(value, str) or not value:
            raise ConfigError(f"{where}.{key} must be a text that is not empty, got {value!r}")


def _expand_path(path: str, where: str) -> str:
    """Absolute path; addresses like ``s3://...`` stay as they are."""
    if "://" in path:
        return path
    expanded = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise ConfigError(f"{where} is {path!r}, but {unset.group(1)} is not set")
    return os.path.abspath(expanded)
