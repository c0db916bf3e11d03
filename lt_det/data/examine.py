"""Open data of any form and see how many images, instances or pixels each class has."""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_det.data.class_counts import (
    ClassCounts,
    fingerprint_of,
    get_class_counts,
    report_absent_classes,
)
from lt_det.data.class_sets import (
    ClassSets,
    class_sets_from_labels,
    instances_of_pairs,
)
from lt_det.data.datasets.catalog import (
    find_source,
    get_records,
    load_own,
    register_lvis_format,
)
from lt_det.data.datasets.class_names import read_class_names
from lt_det.data.datasets.file_cache import default_cache_dir
from lt_det.data.datasets.image_list import read_image_list
from lt_det.data.datasets.image_sets import check_list_file, find_image_set, prepare_image_set
from lt_det.data.datasets.label_maps import LabelMaps, count_label_maps, read_label_maps
from lt_det.data.datasets.lvis_format import check_format
from lt_det.data.datasets.sem_seg_sets import find_sem_seg_set
from lt_det.data.sem_seg_counts import sem_seg_groups, sem_seg_label_maps
from lt_det.errors import ConfigError, DataError, MissingFileError
from lt_det.evaluation.groups import groups_from_counts

logger = logging.getLogger(__name__)

LVIS_BORDERS = (10, 100)
# Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020:
# few-shot below 20 training images, medium-shot 20..100, many-shot above. Here r, c and f.
LIST_BORDERS = (19, 100)
# Kinds of data.
JSON, LABEL_MAPS, IMAGE_LIST = "annotations", "label maps", "image list"
# What only files in LVIS form have.
LVIS_KEYS = (b'"neg_category_ids"', b'"not_exhaustive_category_ids"')


@dataclass(frozen=True, eq=False)
class Examined:
    """A data set and what its classes have.

    Attributes:
        kind: "annotations" (LVIS or COCO form, or registered), "label maps" or "image list".
        counts: of N images and C classes.
        borders: the last image count of group r and of group c; None if the groups are not
            these of any borders.
        load_pairs: reads `class_sets` and `amount_of_pair`.
        group_by: what the groups are by: "borders", "file" (its own), or "pixels" or "images"
            (thirds of the classes ranked by these).
    """

    kind: str
    counts: ClassCounts
    borders: tuple[int, int] | None
    load_pairs: Callable[[], tuple[ClassSets, np.ndarray]]
    group_by: str = "file"

    @cached_property
    def _pairs(self) -> tuple[ClassSets, np.ndarray]:
        return self.load_pairs()

    @property
    def class_sets(self) -> ClassSets:
        """Of the N images. Annotation files are read for it, even if their counts were cached."""
        return self._pairs[0]

    @property
    def amount_of_pair(self) -> np.ndarray:
        """(P,) int64 instances (pixels of label maps) of each entry of ``class_sets.classes``."""
        return self._pairs[1]

    @property
    def amounts(self) -> dict[str, np.ndarray]:
        """(C,) int64 counts by unit: "images", and "instances" or "pixels" if they differ."""
        found = {"images": self.counts.images}
        if self.kind == JSON:
            found["instances"] = self.counts.instances
        if self.kind == LABEL_MAPS:
            found["pixels"] = self.counts.pixels
        return found


def examine(
    target: str | os.PathLike,
    *,
    class_file: str | os.PathLike | None = None,
    file_format: str | None = None,
    zero_is_unlabelled: bool = False,
    borders: Sequence[int] | None = None,
    own_groups: bool = True,
    group_by: str | None = None,
    cache_dir: str | None = None,
) -> Examined:
    """Open data of any form.

    `target` is one of

    * the name of a registered data set,
    * an annotation file in LVIS or COCO form (``*.json``); the images need not be there,
    * a folder of label maps,
    * a list file of image classification (any other file).

    Classes without any image are reported in one log line.

    Args:
        target: name or path. A name comes first: ``./name`` is the path.
        class_file: class list (`class_names.read_class_names`) of label maps or a list file;
            None: "class 0", "class 1", ... up to the largest class there is.
        file_format: "lvis" or "coco", for annotation files; None: what the file looks like.
        zero_is_unlabelled: for label maps, see `datasets.label_maps`.
        borders: the last image count of group r and of group c. None: (10, 100), as LVIS; for
            list files (19, 100), the few, medium and many shots of Kang et al.; for label maps
            see `group_by`.
        own_groups: the groups of an annotation file that has them go before `borders`.
        group_by: for label maps, "pixels", "images" or "borders", see
            `sem_seg_counts.sem_seg_class_counts`; None: "borders" if these are given, else
            "pixels", as training has it. Of no effect on other data.
        cache_dir: where counts are kept; None or "" is ``$DETECTRON2_DATASETS/lt_det_cache``.

    Raises:
        ConfigError: neither a registered name nor a path, bad `borders` or `group_by`, an
            option that the target has no use for.
        MissingFileError, DataError: see the readers; and no image with a class.
    """
    target = os.fspath(target)
    cache_dir = cache_dir or default_cache_dir()
    kind, is_name = _kind_of(target)
    _check_options(target, kind, is_name, class_file, file_format, zero_is_unlabelled)
    names = None if class_file is None else read_class_names(class_file)
    if kind == LABEL_MAPS and is_name:
        found = _registered_label_maps(target, cache_dir)
    elif kind == LABEL_MAPS:
        found = _label_maps(target, names, zero_is_unlabelled, cache_dir)
    elif kind == IMAGE_LIST and is_name:
        found = _registered_image_list(target)
    elif kind == IMAGE_LIST:
        found = _image_list(target, names)
    else:
        name = target if is_name else _register(target, file_format)
        found = _annotations(name, target, cache_dir, borders or LVIS_BORDERS)
    if not found.counts.images.any():
        raise DataError(f"{target}: none of its {found.counts.num_images} images has a class")
    report_absent_classes(found.counts)
    if kind == LABEL_MAPS:
        return _with_sem_seg_groups(found, borders, group_by)
    return _with_groups(found, borders, own_groups)


def annotated_only(found: Examined) -> Examined:
    """`found` without images that hold no class, as ``FILTER_EMPTY_ANNOTATIONS`` trains on it."""
    counts = found.counts

    def load_pairs():
        sets = found.class_sets
        # Images without classes have no pairs, so the amounts stay as they are.
        return sets.select(np.flatnonzero(sets.sizes)), found.amount_of_pair

    held = replace(counts, num_images=counts.num_images - counts.empty_images, empty_images=0)
    return replace(found, counts=held, load_pairs=load_pairs)


def _kind_of(target: str) -> tuple[str, bool]:
    """Kind of the target and whether it is a registered name."""
    if find_image_set(target):
        return IMAGE_LIST, True
    if find_sem_seg_set(target):
        return LABEL_MAPS, True
    if target in DatasetCatalog:
        meta = MetadataCatalog.get(target)
        things = meta.get("thing_classes") or meta.get("json_file")
        return LABEL_MAPS if meta.get("stuff_classes") and not things else JSON, True
    if os.path.isdir(target):
        return LABEL_MAPS, False
    if os.path.isfile(target):
        return JSON if target.lower().endswith(".json") else IMAGE_LIST, False
    if os.sep in target or os.path.splitext(target)[1]:
        raise MissingFileError(
            f"no file or folder {target} (looked for {os.path.abspath(target)}), "
            "and no data set of this name"
        )
    find_source(target)  # an unknown name: this says so and lists near ones
    return JSON, True


def _check_options(target, kind, is_name, class_file, file_format, zero_is_unlabelled) -> None:
    """Refuse options that would have no effect."""
    what = "a registered data set" if is_name else f"of the kind {kind!r}"
    if (kind == JSON or is_name) and class_file is not None:
        raise ConfigError(f"class list {class_file}: {target} is {what} and has its own classes")
    if file_format is not None:
        check_format(file_format, target)
        if kind != JSON or is_name:
            raise ConfigError(
                f"format {file_format!r} is for annotation files, but {target} is {what}"
            )
    if zero_is_unlabelled and (kind != LABEL_MAPS or is_name):
        raise ConfigError(f"zero_is_unlabelled is for label maps, but {target} is {what}")


def _with_groups(found: Examined, borders: Sequence[int] | None, own_groups: bool) -> Examined:
    """With groups by `borders`, unless it has its own and `own_groups` keeps them."""
    counts = found.counts
    borders = borders or (LIST_BORDERS if found.kind == IMAGE_LIST else LVIS_BORDERS)
    groups = tuple(groups_from_counts(counts.images, borders))
    if own_groups and counts.groups not in ((), groups):
        return found
    counts = replace(counts, groups=groups)
    return replace(found, counts=counts, borders=tuple(borders), group_by="borders")


def _with_sem_seg_groups(
    found: Examined, borders: Sequence[int] | None, group_by: str | None
) -> Examined:
    """With the groups that training has of label maps."""
    group_by = group_by or ("borders" if borders else "pixels")
    borders, counts = tuple(borders or LVIS_BORDERS), found.counts
    groups = sem_seg_groups(counts.images, counts.pixels, group_by, borders)
    return replace(
        found,
        counts=replace(counts, groups=groups),
        borders=borders if group_by == "borders" else None,
        group_by=group_by,
    )


# ---- kinds -----------------------------------------------------------------------------------


def _annotations(name: str, source: str, cache_dir: str, borders: Sequence[int]) -> Examined:
    counts = get_class_counts(name, cache_dir=cache_dir, borders=borders)
    counts = replace(counts, source=source)

    def load_pairs():
        records = get_records(name, need_images=False, cache_dir=cache_dir)
        sets = records.class_sets(len(counts.names))
        return sets, instances_of_pairs(*records.pairs(), sets)

    return Examined(JSON, counts, None, load_pairs)


def _register(path: str, file_format: str | None) -> str:
    """Registered name of an annotation file: its path and form."""
    file_format = file_format or guess_format(path)
    name = f"{os.path.abspath(path)} ({file_format})"
    register_lvis_format(name, os.path.abspath(path), "", file_format=file_format)
    return name


def guess_format(path: str | os.PathLike) -> str:
    """Whether an annotation file is in the form "lvis" or "coco", by the keys of its images."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return "coco"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return "lvis" if any(content.find(key) >= 0 for key in LVIS_KEYS) else "coco"


def _label_maps(folder: str, names: list[str] | None, zero: bool, cache_dir: str) -> Examined:
    maps = read_label_maps(folder, names, zero_is_unlabelled=zero, cache_dir=cache_dir)
    return _examined_maps(maps, folder)


def _registered_label_maps(name: str, cache_dir: str) -> Examined:
    """A set of semantic segmentation, or one of Detectron2's with label maps of another kind.

    In the latter 255 is ignored and k is class k.
    """
    if find_sem_seg_set(name):
        return _examined_maps(sem_seg_label_maps(name, cache_dir=cache_dir), name)
    files = [record["sem_seg_file_name"] for record in load_own(name)]
    names = MetadataCatalog.get(name).stuff_classes
    return _examined_maps(count_label_maps(files, name, names, cache_dir=cache_dir), name)


def _examined_maps(maps: LabelMaps, source: str) -> Examined:
    counts = counts_of_class_sets(maps.class_sets, maps.names, source, pixels=maps.pixels())
    return Examined(LABEL_MAPS, counts, None, lambda: (maps.class_sets, maps.pixels_of_pair))


def _image_list(path: str, names: list[str] | None) -> Examined:
    images = read_image_list(path, num_classes=None if names is None else len(names))
    if names is None:
        names = [f"class {k}" for k in range(images.labels.max() + 1)]
    sets = class_sets_from_labels(images.labels, len(names))
    counts = counts_of_class_sets(sets, names, path)
    one_each = np.ones(len(images), dtype=np.int64)
    return Examined(IMAGE_LIST, counts, None, lambda: (sets, one_each))


def _registered_image_list(name: str) -> Examined:
    prepare_image_set(name)
    image_set = check_list_file(name)
    names = read_class_names(image_set.class_file) if image_set.class_file else None
    found = _image_list(image_set.list_file, names)
    return replace(found, counts=replace(found.counts, source=name))


def counts_of_class_sets(
    sets: ClassSets, names: Sequence[str], source: str, *, pixels: np.ndarray | None = None
) -> ClassCounts:
    """Counts without groups. With (C,) `pixels` there are no instances, else one per image."""
    images = sets.image_counts()
    instances = images if pixels is None else None
    return ClassCounts(
        names=tuple(names),
        images=images,
        instances=instances,
        groups=(),
        num_images=len(sets),
        fingerprint=fingerprint_of(names, images, instances, pixels),
        source=source,
        empty_images=int((sets.sizes == 0).sum()),
        pixels=pixels,
    )
