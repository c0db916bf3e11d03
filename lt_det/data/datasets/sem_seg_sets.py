"""Registered data sets of semantic segmentation: an image folder and a folder of label maps each.

Beside those registered here, Detectron2's own sets with ``evaluator_type`` "sem_seg" are found.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_det.data.datasets.catalog import load_own
from lt_det.data.datasets.class_names import read_class_names
from lt_det.data.datasets.image_folder import SUFFIXES
from lt_det.data.datasets.image_sets import ROOT
from lt_det.data.datasets.label_maps import find_label_maps
from lt_det.data.datasets.label_png import IGNORED
from lt_det.data.datasets.paths import datasets_root
from lt_det.data.sem_seg_records import SemSegRecords
from lt_det.errors import ConfigError, DataError, MissingFileError

# File names in a message about many.
SHOWN = 3
EVALUATOR_TYPE = "sem_seg"


@dataclass(frozen=True)
class SemSegSet:
    """Where a set lies.

    Attributes:
        name: registered name.
        image_dir: folder of the images, searched with its subfolders; "" = Detectron2's loader
            of the set knows.
        label_dir: folder of the label maps (``*.png``) with the same names; "" likewise.
        class_file: names of the classes, see `class_names.read_class_names`; "" = the
            `stuff_classes` of the set's metadata.
        zero_is_unlabelled: what the values mean, see `label_png`.
        hint: how a missing file comes into being, for the message.
    """

    name: str
    image_dir: str
    label_dir: str
    class_file: str = ""
    zero_is_unlabelled: bool = False
    hint: str = "Check `images`, `labels` and `classes` of this data set in DATASETS.LT.REGISTER."


_ADE20K = f"{ROOT}/ADEChallengeData2016"
_ADE20K_HINT = (
    "tools/prepare_ade20k.py prepares it. The environment variable DETECTRON2_DATASETS moves the "
    f"folder {ROOT}."
)
# What is registered; the rest of what a set is comes from its files when it is used. ADE20K is
# registered by Detectron2, whose loader leaves out images and label maps without a partner.
_SEM_SEG_SETS: dict[str, SemSegSet] = {
    name: SemSegSet(
        name,
        f"{_ADE20K}/images/{split}",
        f"{_ADE20K}/annotations_detectron2/{split}",
        hint=_ADE20K_HINT,
    )
    for name, split in (
        ("ade20k_sem_seg_train", "training"),
        ("ade20k_sem_seg_val", "validation"),
    )
}
# What has to run before a set's files are there.
_PREPARE_SET: dict[str, Callable[[], object]] = {}


def register_sem_seg_set(
    sem_seg_set: SemSegSet, *, prepare: Callable[[], object] | None = None
) -> None:
    """Register a set with Detectron2. Reads nothing; the same set again changes nothing.

    The metadata has the class names, `stuff_classes`, from the first load on.

    Args:
        sem_seg_set: what to register; its class list cannot be "".
        prepare: runs before the set is used; it may write the files, and has to cope with other
            processes doing the same.

    Raises:
        ConfigError: the name is taken by another set.
    """
    name = sem_seg_set.name
    if _SEM_SEG_SETS.get(name) == sem_seg_set and name in DatasetCatalog:
        return
    if name in DatasetCatalog:
        raise ConfigError(
            f"data set name {name!r} is taken, so {sem_seg_set.label_dir} cannot have it. Choose "
            "another name in DATASETS.LT.REGISTER."
        )
    meta = MetadataCatalog.get(name)
    meta.set(evaluator_type=EVALUATOR_TYPE, ignore_label=IGNORED)
    if ROOT not in sem_seg_set.image_dir + sem_seg_set.label_dir:
        meta.set(image_root=sem_seg_set.image_dir, sem_seg_root=sem_seg_set.label_dir)
    DatasetCatalog.register(name, lambda: list(_load(name)))
    _SEM_SEG_SETS[name] = sem_seg_set
    if prepare is not None:
        _PREPARE_SET[name] = prepare


def find_sem_seg_set(name: str) -> SemSegSet | None:
    """A registered set with its paths as they are now; None: no such set has that name."""
    if name not in DatasetCatalog:
        return None
    found = _SEM_SEG_SETS.get(name)
    if found is None:
        meta = MetadataCatalog.get(name)
        return SemSegSet(name, "", "") if meta.get("evaluator_type") == EVALUATOR_TYPE else None
    keys = ("image_dir", "label_dir", "class_file", "hint")
    return replace(found, **{k: getattr(found, k).replace(ROOT, datasets_root()) for k in keys})


def sem_seg_records(name: str) -> SemSegRecords:
    """Images and label maps of a registered set, paired by their paths without suffix.

    Raises:
        ConfigError: no set of semantic segmentation has that name.
        MissingFileError: a folder is not there.
        DataError: an image without a label map or the reverse, or two images of one name.
    """
    sem_seg_set = _prepared_set(name)
    if not sem_seg_set.label_dir:
        return _own_records(name)
    for what, folder in (("image", sem_seg_set.image_dir), ("label map", sem_seg_set.label_dir)):
        if not os.path.isdir(folder):
            raise MissingFileError(
                f"{what} folder {folder} of data set {name!r} does not exist (looked for "
                f"{os.path.abspath(folder)}). {sem_seg_set.hint}"
            )
    pairs = pair_files(sem_seg_set.image_dir, sem_seg_set.label_dir, name)
    zero = np.full(len(pairs[0]), sem_seg_set.zero_is_unlabelled)
    return SemSegRecords(*pairs, zero)


def sem_seg_class_names(name: str) -> list[str]:
    """(C,) class names of a registered set.

    Raises:
        ConfigError: no set of semantic segmentation has that name, it has no class list, or more
            classes than a label map can hold.
        MissingFileError: the class list is not there.
        DataError: see `class_names.read_class_names`.
    """
    sem_seg_set = _prepared_set(name)
    path = sem_seg_set.class_file
    if not path:
        names = MetadataCatalog.get(name).get("stuff_classes")
        if not names:
            raise ConfigError(f"data set {name!r} has no `stuff_classes` in its metadata")
    elif not os.path.isfile(path):
        raise MissingFileError(
            f"class list {path} of data set {name!r} does not exist (looked for "
            f"{os.path.abspath(path)}). {sem_seg_set.hint}"
        )
    else:
        names = read_class_names(path)
    most = IGNORED - int(sem_seg_set.zero_is_unlabelled)
    if len(names) > most:
        raise ConfigError(
            f"data set {name!r} has {len(names)} classes{f' ({path})' if path else ''}; label maps "
            f"with one byte per pixel hold at most {most} here, as {IGNORED} is ignored"
        )
    return list(names)


def pair_files(image_dir: str, label_dir: str, name: str) -> tuple[list[str], list[str]]:
    """Images and label maps with the same path below their folders, but for the suffix.

    Returns:
        (N,) paths of the images and (N,) of the label maps, sorted by the latter.

    Raises:
        DataError: no label map at all, one without an image, an image without one, or two images
            of one name; the message names `name` and the files.
    """
    labels = {_stem(path, label_dir): path for path in find_label_maps(label_dir)}
    images: dict[str, str] = {}
    for path in _find_images(image_dir):
        other = images.setdefault(_stem(path, image_dir), path)
        if other != path:
            raise DataError(f"data set {name!r}: {other} and {path} would share a label map")
    _check_partners("image", images, "label map", labels, label_dir, name)
    _check_partners("label map", labels, "image", images, image_dir, name)
    return [images[stem] for stem in labels], list(labels.values())


def _check_partners(
    what: str,
    files: dict[str, str],
    partner: str,
    partners: dict[str, str],
    folder: str,
    name: str,
) -> None:
    """Raise a DataError unless each of `files` has one of `partners`, which are in `folder`."""
    single = sorted(path for stem, path in files.items() if stem not in partners)
    if single:
        more = ", ..." if len(single) > SHOWN else ""
        raise DataError(
            f"data set {name!r}: {len(single)} of {len(files)} {what}s have no {partner} of the "
            f"same name in {folder}: {', '.join(single[:SHOWN])}{more}"
        )


def _find_images(folder: str) -> list[str]:
    return [
        os.path.join(place, file)
        for place, _, files in os.walk(folder, followlinks=True)
        for file in sorted(files)
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    ]


def _stem(path: str, folder: str) -> str:
    return os.path.splitext(os.path.relpath(path, folder))[0]


def _prepared_set(name: str) -> SemSegSet:
    """The set of that name, generated if it is one that is.

    Raises:
        ConfigError: no set of semantic segmentation has that name.
    """
    if name in _PREPARE_SET:
        _PREPARE_SET[name]()
    sem_seg_set = find_sem_seg_set(name)
    if sem_seg_set is None:
        known = [n for n in DatasetCatalog.list() if find_sem_seg_set(n) is not None]
        raise ConfigError(
            f"data set {name!r} is not one of semantic segmentation; those are "
            f"{', '.join(sorted(known))}"
        )
    return sem_seg_set


def _own_records(name: str) -> SemSegRecords:
    """Records by the loader that a set was registered with, outside of lt_det.

    Raises:
        ConfigError: the set ignores another value than 255.
        MissingFileError, DataError: files or keys that are missing.
    """
    ignored = MetadataCatalog.get(name).get("ignore_label", IGNORED)
    if ignored != IGNORED:
        raise ConfigError(
            f"data set {name!r} has the `ignore_label` {ignored} in its metadata; ignored pixels "
            f"of a label map are {IGNORED}"
        )
    records = load_own(name)
    for record in records:
        if "file_name" not in record or "sem_seg_file_name" not in record:
            raise DataError(
                f"data set {name!r}: a record of semantic segmentation needs `file_name` and "
                f"`sem_seg_file_name`, got {record}"
            )
    images = [record["file_name"] for record in records]
    labels = [record["sem_seg_file_name"] for record in records]
    return SemSegRecords(images, labels, np.zeros(len(records), bool))


def _load(name: str) -> SemSegRecords:
    """What Detectron2's own tools get, with the metadata that they read after it."""
    MetadataCatalog.get(name).set(stuff_classes=sem_seg_class_names(name))
    return sem_seg_records(name)
