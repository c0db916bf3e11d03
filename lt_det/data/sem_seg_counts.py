"""What the label maps of registered sets of semantic segmentation hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from lt_det.data.class_counts import ClassCounts, fingerprint_of
from lt_det.data.class_sets import ClassSets
from lt_det.data.datasets.file_cache import default_cache_dir
from lt_det.data.datasets.image_size import upright_size
from lt_det.data.datasets.label_maps import LabelMaps, count_label_maps
from lt_det.data.datasets.parallel import default_workers
from lt_det.data.datasets.sem_seg_sets import (
    find_sem_seg_set,
    sem_seg_class_names,
    sem_seg_records,
)
from lt_det.data.image_decode import IMAGE_ERRORS
from lt_det.data.ragged import offsets_of
from lt_det.data.sem_seg_records import SemSegRecords, join_sem_seg_records
from lt_det.errors import ConfigError, DataError
from lt_det.evaluation.groups import groups_by_rank, groups_from_counts

GROUP_BY = ("pixels", "images", "borders")
GROUP_BY_KEY = "DATASETS.LT.SEM_SEG.GROUP_BY"
CLASSES_KEY = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"


def sem_seg_label_maps(
    name: str, *, records: SemSegRecords | None = None, cache_dir: str | None = None
) -> LabelMaps:
    """What the label maps of a registered set hold, by class.

    Args:
        name: registered name.
        records: those of the set, if they are there already.
        cache_dir: where the counts are kept; None or "" is ``$DETECTRON2_DATASETS/lt_det_cache``.

    Raises:
        ConfigError, MissingFileError, DataError: see `sem_seg_sets` and `label_maps`.
    """
    records = sem_seg_records(name) if records is None else records
    sem_seg_set = find_sem_seg_set(name)
    # As `read_label_maps` of the folder names it, so that both have one cache.
    place = os.path.abspath(sem_seg_set.label_dir) if sem_seg_set.label_dir else name
    return count_label_maps(
        records.label_files(),
        place,
        sem_seg_class_names(name),
        zero_is_unlabelled=sem_seg_set.zero_is_unlabelled,
        cache_dir=cache_dir or default_cache_dir(),
    )


def check_sem_seg_classes(names: Sequence[str], num_classes: int | None = None) -> list[str]:
    """(C,) class names that all registered sets have.

    Args:
        names: registered names.
        num_classes: C, of the model; None: as many as there are.

    Raises:
        ConfigError: the lists differ, or are not of C classes.
    """
    first = sem_seg_class_names(names[0])
    for name in names[1:]:
        other = sem_seg_class_names(name)
        if other != first:
            same = [a == b for a, b in zip(first, other, strict=False)]
            k = [*same, False].index(False)
            raise ConfigError(
                f"data sets {names[0]!r} and {name!r} have different class lists, of {len(first)} "
                f"and {len(other)} classes, from class {k} on; sets that are trained on together "
                "need the same class list"
            )
    if num_classes not in (None, len(first)):
        raise ConfigError(
            f"{CLASSES_KEY} is {num_classes}, but data set {names[0]!r} has {len(first)} classes"
        )
    return first


def sem_seg_training_data(
    names: Sequence[str],
    *,
    num_classes: int,
    drop_empty: bool,
    cache_dir: str | None = None,
) -> tuple[SemSegRecords, ClassSets]:
    """Records of several registered sets and the classes in their label maps.

    Args:
        names: registered names.
        num_classes: C.
        drop_empty: leave out images without any labelled pixel.
        cache_dir: see `sem_seg_label_maps`.

    Raises:
        ConfigError, MissingFileError, DataError: see `sem_seg_label_maps` and
            `check_sem_seg_classes`.
    """
    check_sem_seg_classes(names, num_classes)
    parts = [sem_seg_records(name) for name in names]
    sets = [
        sem_seg_label_maps(name, records=part, cache_dir=cache_dir).class_sets
        for name, part in zip(names, parts, strict=True)
    ]
    records, joined = join_sem_seg_records(parts), _join_class_sets(sets)
    if drop_empty:
        labelled = np.flatnonzero(joined.sizes)
        records, joined = records.select(labelled), joined.select(labelled)
    return records, joined


def check_sem_seg_files(name: str, *, cache_dir: str | None = None) -> None:
    """Find in all files of a registered set what would fail when it is read.

    Label maps are read whole once, see `sem_seg_label_maps`; of the images the size is read.

    Raises:
        ConfigError, MissingFileError, DataError: see `sem_seg_label_maps`; a label map of another
            size than its image.
    """
    records = sem_seg_records(name)
    sem_seg_label_maps(name, records=records, cache_dir=cache_dir)
    with ThreadPoolExecutor(default_workers()) as pool:
        list(pool.map(_check_sizes, records))


def _check_sizes(record: dict) -> None:
    image, labels = record["file_name"], record["sem_seg_file_name"]
    try:
        with Image.open(image) as opened:
            size = upright_size(opened)
    except IMAGE_ERRORS as error:
        raise DataError(f"cannot use image {image}: {error}") from error
    with Image.open(labels) as opened:
        if opened.size != size:
            raise DataError(
                f"label map {labels} has {opened.size[0]} x {opened.size[1]} pixels, its image "
                f"{image} {size[0]} x {size[1]}"
            )


def _join_class_sets(sets: Sequence[ClassSets]) -> ClassSets:
    """The sets of the images of all, one after the other."""
    sizes = np.concatenate([s.sizes for s in sets])
    classes = np.concatenate([s.classes for s in sets])
    return ClassSets(offsets_of(sizes), classes, sets[0].num_classes)


def sem_seg_class_counts(
    names: Sequence[str],
    *,
    num_classes: int | None = None,
    group_by: str = "pixels",
    borders: Sequence[int] = (10, 100),
    cache_dir: str | None = None,
) -> ClassCounts:
    """Images and pixels of each class of registered sets, added up, and the groups.

    Args:
        names: registered names; all with the same class list.
        num_classes: C of the model; None: that of the sets.
        group_by: "pixels" or "images": thirds of the classes ranked by these, see
            `groups.groups_by_rank`. "borders": by `borders`.
        borders: the last image count of group r and of group c.
        cache_dir: see `sem_seg_label_maps`.

    Raises:
        ConfigError: no data set, bad `group_by` or `borders`, or see `check_sem_seg_classes`.
        MissingFileError, DataError: see `sem_seg_label_maps`.
    """
    if not names:
        raise ConfigError("no data set to count classes of: DATASETS.TRAIN is empty")
    check_group_by(group_by)  # before anything is counted
    classes = check_sem_seg_classes(names, num_classes)
    maps = [sem_seg_label_maps(name, cache_dir=cache_dir) for name in names]
    images = np.sum([m.class_sets.image_counts() for m in maps], axis=0)
    pixels = np.sum([m.pixels() for m in maps], axis=0)
    return ClassCounts(
        names=tuple(classes),
        images=images,
        instances=None,
        groups=sem_seg_groups(images, pixels, group_by, borders),
        num_images=sum(len(m) for m in maps),
        fingerprint=fingerprint_of(classes, images, None, pixels),
        source=" + ".join(names),
        empty_images=int(sum((m.class_sets.sizes == 0).sum() for m in maps)),
        pixels=pixels,
    )


def sem_seg_groups(
    images: np.ndarray, pixels: np.ndarray, group_by: str, borders: Sequence[int]
) -> tuple[str, ...]:
    """The group of each class.

    Args:
        images: (C,) int64 training images that hold the class.
        pixels: (C,) int64 training pixels of the class.
        group_by: see `sem_seg_class_counts`.
        borders: see `sem_seg_class_counts`.

    Raises:
        ConfigError: bad `group_by` or, with "borders", bad `borders`.
    """
    check_group_by(group_by)
    if group_by == "borders":
        return tuple(groups_from_counts(images, borders))
    return tuple(groups_by_rank({"pixels": pixels, "images": images}[group_by]))


def check_group_by(group_by: str) -> None:
    """Raise a ConfigError unless `group_by` is one that `sem_seg_class_counts` knows."""
    if group_by not in GROUP_BY:
        raise ConfigError(f"{GROUP_BY_KEY} is {group_by!r}; accepted are {', '.join(GROUP_BY)}")
