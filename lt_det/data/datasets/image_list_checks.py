"""Checks of list files: against the image folder, and against what is known of a set."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lt_det.data.datasets.image_list import ImageList
from lt_det.data.datasets.parallel import map_files
from lt_det.errors import DataError, MissingFileError

# Paths that decide how a list has to change.
_SAMPLE = 10


@dataclass(frozen=True)
class KnownSet:
    """What is known of a published set.

    Attributes:
        num_classes: C.
        largest: training images of the largest class.
        smallest: training images of the smallest class.
        images: split -> number of images.
        files: split -> usual name of its list.
        annotations: split -> JSON file that the list can be built from.
        source: where the lists come from.
    """

    num_classes: int
    largest: int
    smallest: int
    images: dict[str, int]
    files: dict[str, str]
    annotations: dict[str, str]
    source: str


# Liu et al., Large-Scale Long-Tailed Recognition in an Open World (CVPR 2019), for the first two;
# Van Horn et al., The iNaturalist Species Classification and Detection Dataset (2018 edition).
KNOWN_SETS = {
    "imagenet_lt": KnownSet(
        num_classes=1000,
        largest=1280,
        smallest=5,
        images={"train": 115846, "val": 20000, "test": 50000},
        files={s: f"ImageNet_LT_{s}.txt" for s in ("train", "val", "test")},
        annotations={},
        source="https://github.com/zhmiao/OpenLongTailRecognition-OLTR",
    ),
    "places_lt": KnownSet(
        num_classes=365,
        largest=4980,
        smallest=5,
        images={"train": 62500, "val": 7300, "test": 36500},
        files={s: f"Places_LT_{s}.txt" for s in ("train", "val", "test")},
        annotations={},
        source="https://github.com/zhmiao/OpenLongTailRecognition-OLTR",
    ),
    "inat2018": KnownSet(
        num_classes=8142,
        largest=1000,
        smallest=2,
        images={"train": 437513, "val": 24426},
        files={s: f"iNaturalist18_{s}.txt" for s in ("train", "val")},
        annotations={s: f"{s}2018.json" for s in ("train", "val")},
        source="https://github.com/visipedia/inat_comp/tree/master/2018",
    ),
}


def read_inat_json(path: str | os.PathLike, *, num_classes: int) -> ImageList:
    """The list of an iNaturalist annotation file: ``file_name``, and ``category_id`` as label.

    Images keep the order of the file.

    Raises:
        MissingFileError: no such file.
        DataError: not such a file, an image without exactly one annotation, an annotation of no
            image, or a label outside 0..C-1.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise MissingFileError(f"{path} does not exist (looked for {os.path.abspath(path)})")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        pairs = [(a["image_id"], int(a["category_id"])) for a in content["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no iNaturalist annotation file ({type(error).__name__}: {error}); "
            "expected images with id and file_name, annotations with image_id and category_id"
        ) from error
    if not names:
        raise DataError(f"{path} names no image")
    labels: dict = {}
    for image_id, label in pairs:
        if image_id in labels or image_id not in names:
            what = "a second annotation" if image_id in labels else "an annotation but no entry"
            raise DataError(f"{path}: image id {image_id!r} has {what}")
        if not 0 <= label < num_classes:
            raise DataError(
                f"{path}: image id {image_id!r} has category_id {label}; "
                f"accepted: 0..{num_classes - 1}"
            )
        labels[image_id] = label
    bare = [name for image_id, name in names.items() if image_id not in labels]
    if bare:
        raise DataError(f"{path}: {len(bare)} images have no annotation, the first is {bare[0]}")
    in_order = np.array([labels[image_id] for image_id in names], dtype=np.int64)
    return ImageList(list(names.values()), in_order, path)


def empty_classes(labels: np.ndarray, num_classes: int) -> list[int]:
    """Classes 0..C-1 that no label names."""
    return np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0).tolist()


def differences(labels: np.ndarray, known: KnownSet, split: str) -> list[str]:
    """How a list differs from the published set, one sentence each; none if it does not."""
    found = [("images", len(labels), known.images[split])]
    if split == "train":
        counts = np.bincount(labels, minlength=known.num_classes)
        found.append(("images in the largest class", int(counts.max()), known.largest))
        found.append(("images in the smallest class", int(counts.min()), known.smallest))
    return [f"{n} {what}, published are {e}" for what, n, e in found if n != e]


class FolderIndex:
    """Which files there are under a folder; every sub-folder is listed once, when needed.

    A stat call for each of 437,513 images takes minutes on a network drive.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = os.fspath(root)
        self._files: dict[str, set[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._files:
            self._files[folder] = self._list(folder)
        return name in self._files[folder]

    def _list(self, folder: str) -> set[str]:
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def folders(self) -> list[str]:
        """Folders directly under the root, sorted."""
        with os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())


@dataclass(frozen=True)
class Rerooting:
    """How the paths of a list have to change: leading components dropped, one put in front."""

    dropped: int
    prefix: str

    def apply(self, path: str) -> str:
        """The path in the image folder."""
        rest = path.split("/", self.dropped)[-1]
        return f"{self.prefix}/{rest}" if self.prefix else rest

    def describe(self, example: str) -> str:
        """In words, with what becomes of an example."""
        leading = "/".join(example.split("/")[: self.dropped])
        steps = [f"without the leading {leading}/"] if self.dropped else []
        steps += [f"with {self.prefix}/ in front"] if self.prefix else []
        return f"{' and '.join(steps)} ({example} is {self.apply(example)})"


def missing_paths(paths: Sequence[str], index: FolderIndex) -> list[str]:
    """The paths that are not files under the folder, in their order."""
    return [path for path in paths if path not in index]


def find_rerooting(paths: Sequence[str], index: FolderIndex) -> Rerooting | None:
    """The change under which the paths are found, if none is found as it stands.

    Leading components are dropped, as many as all paths have, or a folder that is directly under
    the root is put in front, or both. A sample of the paths decides; of several changes that
    find the same number, the first in this order is taken.

    Returns:
        None if no change finds any of the sample. A change that would make two paths the same is
        none.
    """
    depth = min(path.count("/") for path in paths)
    sample = paths[:: -(-len(paths) // _SAMPLE)]
    changes = [Rerooting(dropped, "") for dropped in range(1, depth + 1)]
    changes += [Rerooting(d, name) for d in range(depth + 1) for name in index.folders()]
    found = {c: sum(c.apply(path) in index for path in sample) for c in changes}
    for change in sorted((c for c in changes if found[c]), key=found.get, reverse=True):
        if len({change.apply(path) for path in paths}) == len(paths):
            return change
    return None


def broken_images(
    paths: Sequence[str], root: str | os.PathLike, *, workers: int, title: str
) -> list[tuple[str, str]]:
    """Path and reason of every image that does not decode."""
    full = [os.path.join(root, path) for path in paths]
    reasons = map_files(_fault_of, full, workers=workers, title=title)
    return [(path, why) for path, why in zip(paths, reasons, strict=True) if why is not None]


def _fault_of(path: str) -> str | None:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # decoders raise almost anything on damaged files
        return f"{type(error).__name__}: {error}"
    return None
