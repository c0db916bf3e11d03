"""Registered data sets of image classification: a list file and an image folder each."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_det.data.datasets.class_names import read_class_names
from lt_det.data.datasets.image_list import read_image_list
from lt_det.data.datasets.paths import datasets_root
from lt_det.errors import ConfigError, MissingFileError
from lt_det.evaluation.groups import groups_from_counts

# Stands for Detectron2's folder of data sets until a set is used.
ROOT = "{DETECTRON2_DATASETS}"


@dataclass(frozen=True)
class ImageSet:
    """Where a set lies.

    Attributes:
        name: registered name.
        list_file: "path label" per line.
        image_root: folder that the paths are relative to.
        class_file: names of the classes, see `class_names.read_class_names`; "" = none.
        hint: how a missing file comes into being, for the message.
    """

    name: str
    list_file: str
    image_root: str
    class_file: str = ""
    hint: str = "Check `list` and `images` of this data set in DATASETS.LT.REGISTER."


# What is registered; the rest of what a set is comes from its files when it is used.
_IMAGE_SETS: dict[str, ImageSet] = {}
# What has to run before a set's files are there.
_PREPARE_SET: dict[str, Callable[[], object]] = {}


def register_image_set(image_set: ImageSet, *, prepare: Callable[[], object] | None = None) -> None:
    """Register a set with Detectron2. Reads nothing; the same set again changes nothing.

    `prepare` runs before the set is used; it may write the files, and has to cope with other
    processes doing the same.

    Raises:
        ConfigError: the name is taken by another set.
    """
    name = image_set.name
    if _IMAGE_SETS.get(name) == image_set:
        return
    if name in DatasetCatalog:
        raise ConfigError(
            f"data set name {name!r} is taken, so {image_set.list_file} cannot have it. Choose "
            "another name in DATASETS.LT.REGISTER."
        )
    MetadataCatalog.get(name).set(evaluator_type="image_classification")
    DatasetCatalog.register(name, lambda: list(image_records(name)))
    _IMAGE_SETS[name] = image_set
    if prepare is not None:
        _PREPARE_SET[name] = prepare


def find_image_set(name: str) -> ImageSet | None:
    """A registered set with its paths as they are now; None: no image set has that name."""
    found = _IMAGE_SETS.get(name)
    if found is None:
        return None
    texts = found.list_file, found.image_root, found.class_file, found.hint
    return ImageSet(name, *(text.replace(ROOT, datasets_root()) for text in texts))


def prepare_image_set(name: str) -> None:
    """Let a generated set come into being."""
    if name in _PREPARE_SET:
        _PREPARE_SET[name]()


def check_list_file(name: str) -> ImageSet:
    """The set of that name, whose list file is there.

    Raises:
        MissingFileError: it is not.
    """
    image_set = find_image_set(name)
    if not os.path.isfile(image_set.list_file):
        raise MissingFileError(
            f"list file {image_set.list_file} of data set {name!r} does not exist (looked for "
            f"{os.path.abspath(image_set.list_file)}). {image_set.hint}"
        )
    return image_set


def image_records(name: str):
    """The :class:`~lt_det.data.image_records.ImageListRecords` of a registered set.

    Raises:
        ConfigError: no image set has that name.
        MissingFileError, DataError: see `image_list.read_image_list`.
    """
    # Here, because records are made from what this package reads.
    from lt_det.data.image_records import ImageListRecords

    if find_image_set(name) is None:
        raise ConfigError(
            f"data set {name!r} is not one of image classification; those are "
            f"{', '.join(sorted(_IMAGE_SETS))}"
        )
    prepare_image_set(name)
    image_set = check_list_file(name)
    if not os.path.isdir(image_set.image_root):
        raise MissingFileError(
            f"image folder {image_set.image_root} of data set {name!r} does not exist (looked for "
            f"{os.path.abspath(image_set.image_root)}). {image_set.hint}"
        )
    return ImageListRecords(read_image_list(image_set.list_file), image_set.image_root)


def image_class_names(name: str, num_classes: int) -> list[str]:
    """(C,) names of the classes of a registered set, "class 0", ... where it has no names.

    Raises:
        ConfigError: the set has another number of names.
        MissingFileError: it has a file of names that is not there.
    """
    prepare_image_set(name)
    image_set = find_image_set(name)
    if not image_set.class_file:
        return [f"class {k}" for k in range(num_classes)]
    if not os.path.isfile(image_set.class_file):
        raise MissingFileError(
            f"class list {image_set.class_file} of data set {name!r} does not exist (looked for "
            f"{os.path.abspath(image_set.class_file)}). {image_set.hint}"
        )
    names = read_class_names(image_set.class_file)
    if len(names) != num_classes:
        raise ConfigError(
            f"MODEL.LT.NUM_CLASSES is {num_classes}, but {image_set.class_file} of data set "
            f"{name!r} names {len(names)} classes"
        )
    return names


def image_set_counts(name: str, num_classes: int, borders: tuple[int, int]):
    """:class:`~lt_det.data.class_counts.ClassCounts` of a registered set.

    Raises:
        DataError: a label beyond the classes.
        ConfigError, MissingFileError: see above.
    """
    # Here, because `examine` opens image sets, too.
    from lt_det.data.examine import counts_of_class_sets

    sets = image_records(name).class_sets(num_classes)
    counts = counts_of_class_sets(sets, image_class_names(name, num_classes), name)
    return replace(counts, groups=tuple(groups_from_counts(counts.images, borders)))


# ---- the usual sets ----------------------------------------------------------------------------

# Folder, images, list files by split, and the script that prepares it.
_PREPARE = "tools/prepare_image_lists.py {} checks the lists against the image folder"
_KNOWN = {
    "imagenet_lt": (
        "imagenet",
        {s: f"imagenet_lt/ImageNet_LT_{s}.txt" for s in ("train", "val", "test")},
    ),
    "places_lt": (
        "places",
        {s: f"places_lt/Places_LT_{s}.txt" for s in ("train", "val", "test")},
    ),
    "inat2018": (
        "inat2018",
        {s: f"inat2018/iNaturalist18_{s}.txt" for s in ("train", "val")},
    ),
}
_CIFAR = "tools/make_long_tailed.py cifar-{0}-python.tar.gz --output {1} --imbalance {2} makes it"


def register_known_image_sets() -> None:
    """ImageNet-LT, Places-LT, iNaturalist 2018 and CIFAR-LT below ``$DETECTRON2_DATASETS``."""
    moves = f"The environment variable DETECTRON2_DATASETS moves the folder {ROOT}"
    for key, (images, lists) in _KNOWN.items():
        for split, list_file in lists.items():
            hint = f"{_PREPARE.format(key)}. {moves}."
            register_image_set(
                ImageSet(f"{key}_{split}", f"{ROOT}/{list_file}", f"{ROOT}/{images}", "", hint)
            )
    for classes in (10, 100):
        folder = f"{ROOT}/cifar{classes}_lt"
        names = f"{folder}/classes.txt"
        splits = {f"cifar{classes}_test": ("test.txt", 100)}
        for factor in (10, 50, 100, 200):
            file = f"train_exp_if{factor}_seed0.txt"
            splits[f"cifar{classes}_lt_if{factor}_train"] = (file, factor)
        for name, (file, factor) in splits.items():
            hint = f"{_CIFAR.format(classes, folder, factor)}. {moves}."
            register_image_set(ImageSet(name, f"{folder}/{file}", folder, names, hint))
