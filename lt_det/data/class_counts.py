"""How many images and instances each class has, cached with a fingerprint of the data."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from lt_det.data.datasets.catalog import dataset_info, find_source, get_records
from lt_det.data.datasets.file_cache import cache_path, default_cache_dir, file_stamp
from lt_det.data.records import as_records
from lt_det.errors import ConfigError, DataError
from lt_det.evaluation.groups import groups_from_counts
from lt_det.evaluation.json_files import parse_json
from lt_det.evaluation.results import atomic_file

logger = logging.getLogger(__name__)

# Raise it when the rules for what counts change: older caches are then rebuilt.
CACHE_VERSION = 2
# Class names in a log line.
NAMES_SHOWN = 5


@dataclass(frozen=True, eq=False)  # arrays have no one-bool equality: compare `fingerprint`
class ClassCounts:
    """Training examples per class of one data set or of several added up.

    Attributes:
        names: (C,) class names, by contiguous class id.
        images: (C,) int64, images that hold the class.
        instances: (C,) int64, annotations of the class. Crowds, and what the loader skips,
            count in neither. One per image in list files; None for label maps.
        groups: (C,) 'r', 'c' or 'f'.
        num_images: all images, also those without annotations.
        fingerprint: hex digest of `names`, `images`, `instances` and `pixels`.
        source: the data sets, joined by " + ".
        empty_images: images that hold no class.
        pixels: (C,) int64, pixels of the class; None unless the data are label maps.
    """

    names: tuple[str, ...]
    images: np.ndarray
    instances: np.ndarray | None
    groups: tuple[str, ...]
    num_images: int
    fingerprint: str
    source: str
    empty_images: int
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class _SetCounts:
    """Counts of one data set; `frequency` is None unless the file has one for each class."""

    names: tuple[str, ...]
    images: np.ndarray
    instances: np.ndarray
    frequency: tuple[str, ...] | None
    num_images: int
    empty_images: int


def count_classes(records: Sequence[dict], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Count images and instances of each class.

    Args:
        records: Detectron2 dataset dicts. Annotations with `iscrowd` do not count.
        num_classes: C.

    Returns:
        (C,) int64 images that hold the class at least once, and (C,) int64 instances.

    Raises:
        DataError: a category id that is not in 0..C-1.
    """
    records = as_records(records)
    images = records.class_sets(num_classes).image_counts()
    return images, records.instance_counts(num_classes)


def fingerprint_of(
    names: Sequence[str],
    images: np.ndarray,
    instances: np.ndarray | None,
    pixels: np.ndarray | None = None,
) -> str:
    """SHA-256 hex digest of the class names and (C,) counts."""
    counts = [images, instances] if pixels is None else [images, instances, pixels]
    content = [list(names), *(None if n is None else np.asarray(n).tolist() for n in counts)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def get_class_counts(
    dataset_names: Sequence[str] | str,
    *,
    cache_dir: str | None = None,
    borders: Sequence[int] = (10, 100),
) -> ClassCounts:
    """Counts of one or several registered data sets, added up. Needs no image.

    The groups are the `frequency` of the annotation files where every class of every set has
    one and all agree, otherwise they follow from the image counts.

    Args:
        dataset_names: registered names; all with the same class list.
        cache_dir: where counts are kept; None or "" is ``$DETECTRON2_DATASETS/lt_det_cache``.
            A folder that cannot be written means no cache, not an error.
        borders: the last image count of group r and of group c.

    Raises:
        ConfigError: no data set or an unknown one; class lists that differ; bad `borders`.
        MissingFileError, DataError: see `lvis_format.load_lvis_format`.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    if not names:
        raise ConfigError("no data set to count classes of: DATASETS.TRAIN is empty")
    cache_dir = cache_dir or default_cache_dir()
    sets = [_counts_of(name, cache_dir) for name in names]
    for name, counts in zip(names[1:], sets[1:], strict=True):
        _check_same_classes(names[0], sets[0].names, name, counts.names)
    images = np.sum([s.images for s in sets], axis=0)
    instances = np.sum([s.instances for s in sets], axis=0)
    return ClassCounts(
        names=sets[0].names,
        images=images,
        instances=instances,
        groups=_groups(sets, images, borders),
        num_images=sum(s.num_images for s in sets),
        fingerprint=fingerprint_of(sets[0].names, images, instances),
        source=" + ".join(names),
        empty_images=sum(s.empty_images for s in sets),
    )


def report_absent_classes(counts: ClassCounts) -> None:
    """Say in one warning which classes are in no image."""
    absent = np.flatnonzero(counts.images == 0)
    if len(absent):
        shown = ", ".join(counts.names[k] for k in absent[:NAMES_SHOWN])
        more = ", ..." if len(absent) > NAMES_SHOWN else ""
        logger.warning(
            f"{len(absent)} of the {len(counts.names)} classes of {counts.source} are in no "
            f"image: {shown}{more}"
        )


def _check_same_classes(first: str, a: tuple[str, ...], second: str, b: tuple[str, ...]) -> None:
    if len(a) != len(b):
        raise ConfigError(
            f"data sets {first!r} and {second!r} have {len(a)} and {len(b)} classes; "
            "sets that are trained on together need the same class list"
        )
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        if x != y:
            raise ConfigError(
                f"class {i} is {x!r} in data set {first!r} but {y!r} in {second!r}; "
                "sets that are trained on together need the same class list"
            )


def _groups(sets: list[_SetCounts], images: np.ndarray, borders: Sequence[int]) -> tuple[str, ...]:
    by_count = tuple(groups_from_counts(images, borders))
    frequencies = {s.frequency for s in sets}
    if len(frequencies) > 1:
        logger.info("The data sets disagree on `frequency`: groups come from image counts.")
        return by_count
    return frequencies.pop() or by_count


def _counts_of(name: str, cache_dir: str) -> _SetCounts:
    """Counts of one data set, from the cache if it is there and fits the annotation file."""
    source = find_source(name)
    if source is None or not _is_local_file(source.json_file):
        return _count(name, cache_dir)
    stamp = file_stamp(source.json_file, version=CACHE_VERSION)
    place = os.path.abspath(source.json_file)
    path = cache_path(place, source.file_format, cache_dir, ".json")
    cached = _read_cache(path, stamp)
    if cached is not None:
        return cached
    counts = _count(name, cache_dir)
    _write_cache(path, stamp, counts)
    return counts


def _count(name: str, cache_dir: str) -> _SetCounts:
    """Counts of one data set, from its records."""
    records = get_records(name, need_images=False, cache_dir=cache_dir)
    meta = MetadataCatalog.get(name)
    if meta.get("json_file") is not None and find_source(name) is not None:
        info = dataset_info(name)
        names, frequency = info.class_names, info.frequency
    else:
        names, frequency = meta.get("thing_classes"), None
    if names is None:
        raise ConfigError(
            f"data set {name!r} has no class list: neither an annotation file in LVIS or COCO "
            "form nor `thing_classes` in its metadata"
        )
    images, instances = count_classes(records, len(names))
    logger.info(
        f"Counted {instances.sum()} instances of {len(names)} classes "
        f"in {len(records)} images of {name}"
    )
    frequency = None if frequency is None else tuple(frequency)
    empty = len(records) - int(records.annotated().sum())
    return _SetCounts(tuple(names), images, instances, frequency, len(records), empty)


# ---- cache -----------------------------------------------------------------------------------


def _is_local_file(path: str) -> bool:
    return "://" not in path and PathManager.isfile(path)


def _read_cache(path: str, stamp: dict) -> _SetCounts | None:
    """The cached counts; None, with a log line that says why, if they cannot be used."""
    try:
        with open(path, "rb") as f:
            content = parse_json(f.read(), path)
    except FileNotFoundError:
        return None
    except (OSError, DataError) as e:
        logger.warning(f"Class counts are counted again, the cache is unreadable: {e}")
        return None
    if not isinstance(content, dict) or content.get("stamp") != stamp:
        logger.info(
            f"Class counts are counted again: {stamp['path']} is not what {path} was made from"
        )
        return None
    counts = _decode(content)
    if counts is None:
        logger.warning(f"Class counts are counted again: {path} is damaged")
    return counts


def _decode(content: dict) -> _SetCounts | None:
    """Counts of a cache file's content; None if it does not fit its own fingerprint."""
    try:
        names, frequency = tuple(content["names"]), content["frequency"]
        images = np.array(content["images"], dtype=np.int64)
        instances = np.array(content["instances"], dtype=np.int64)
        if content["fingerprint"] != _cache_fingerprint(content):
            return None
        frequency = None if frequency is None else tuple(frequency)
        numbers = content["num_images"], content["empty_images"]
        return _SetCounts(names, images, instances, frequency, *numbers)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _cache_fingerprint(content: dict) -> str:
    body = {key: value for key, value in content.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write_cache(path: str, stamp: dict, counts: _SetCounts) -> None:
    """Write the cache file in one step, so that other processes see all of it or nothing."""
    content = {
        "stamp": stamp,
        "names": list(counts.names),
        "images": counts.images.tolist(),
        "instances": counts.instances.tolist(),
        "frequency": None if counts.frequency is None else list(counts.frequency),
        "num_images": counts.num_images,
        "empty_images": counts.empty_images,
    }
    content["fingerprint"] = _cache_fingerprint(content)
    try:
        with atomic_file(path) as f:
            json.dump(content, f)
    except OSError as e:
        logger.info(f"Class counts are not cached: {e}")
