"""Label maps of semantic segmentation: which classes each one holds and how many pixels of each.

What the values of a label map mean is said in `label_png`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lt_det.data.class_sets import ClassSets, class_sets_from_pairs
from lt_det.data.datasets.file_cache import cache_path
from lt_det.data.datasets.label_png import IGNORED, beyond_classes, read_label_png
from lt_det.data.datasets.parallel import default_workers
from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.results import atomic_file

logger = logging.getLogger(__name__)

NUM_VALUES = 256
# Raise it when the rules for what counts change: older caches are then rebuilt.
CACHE_VERSION = 1


@dataclass(frozen=True, eq=False)
class LabelMaps:
    """What the label maps of a set hold.

    Attributes:
        class_sets: of the N maps, in the order of `files`.
        pixels_of_pair: (P,) int64, pixels that each entry of ``class_sets.classes`` has.
        names: (C,) class names.
        files: (N,) paths.
    """

    class_sets: ClassSets
    pixels_of_pair: np.ndarray
    names: tuple[str, ...]
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self) -> np.ndarray:
        """(C,) int64, pixels of each class."""
        result = np.zeros(len(self.names), dtype=np.int64)
        np.add.at(result, self.class_sets.classes, self.pixels_of_pair)
        return result


def read_label_maps(
    folder: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    *,
    zero_is_unlabelled: bool = False,
    cache_dir: str | None = None,
) -> LabelMaps:
    """Count the pixels of each class in all label maps below a folder.

    Args:
        folder: searched with its subfolders for ``*.png``.
        class_names: (C,); None: "class 0", "class 1", ... up to the largest value in the maps.
        zero_is_unlabelled: see `label_png`.
        cache_dir: where the counts of the values are kept, with a fingerprint of the names,
            sizes and times of the files; None keeps none.

    Raises:
        MissingFileError: no such folder.
        DataError: no PNG in it, one that is not a label map, a value beyond the class list, or
            no labelled pixel at all without a class list.
    """
    folder = os.path.abspath(folder)
    return count_label_maps(
        find_label_maps(folder),
        folder,
        class_names,
        zero_is_unlabelled=zero_is_unlabelled,
        cache_dir=cache_dir,
    )


def count_label_maps(
    files: Sequence[str],
    place: str,
    class_names: Sequence[str] | None = None,
    *,
    zero_is_unlabelled: bool = False,
    cache_dir: str | None = None,
) -> LabelMaps:
    """`read_label_maps` of given files; `place`, their folder or data set, names the cache.

    Raises:
        MissingFileError: a file does not exist.
        DataError: see `read_label_maps`.
    """
    values, pixels = cached_value_counts(files, place, cache_dir)
    return _to_classes(files, values, pixels, class_names, zero_is_unlabelled)


def find_label_maps(folder: str | os.PathLike) -> list[str]:
    """Paths of all ``*.png`` below a folder, sorted; hidden files (``.*``) are left out.

    Raises:
        MissingFileError: no such folder.
        DataError: no PNG in it.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise MissingFileError(
            f"folder of label maps {folder} does not exist (looked for {os.path.abspath(folder)})"
        )
    files = sorted(
        os.path.join(place, name)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(".png") and not name.startswith(".")
    )
    if not files:
        raise DataError(f"folder {folder} holds no label map (*.png, also in subfolders)")
    return files


def _to_classes(
    files: Sequence[str],
    values: ClassSets,
    pixels: np.ndarray,
    class_names: Sequence[str] | None,
    zero_is_unlabelled: bool,
) -> LabelMaps:
    """Classes for values: `values` are sets of 0..255, `pixels` belong to their pairs."""
    first = int(zero_is_unlabelled)
    labelled = (values.classes >= first) & (values.classes != IGNORED)
    images, classes = values.image_of_pair()[labelled], values.classes[labelled] - first
    if class_names is None:
        if not len(classes):
            raise DataError(f"no pixel of the {len(files)} label maps has a class: {files[0]}, ...")
        class_names = [f"class {k}" for k in range(classes.max() + 1)]
    beyond = np.flatnonzero(classes >= len(class_names))
    if len(beyond):
        message = beyond_classes(classes[beyond[0]] + first, len(class_names), zero_is_unlabelled)
        raise DataError(f"{files[images[beyond[0]]]}: {message}")
    sets = class_sets_from_pairs(images, classes, len(files), len(class_names))
    return LabelMaps(sets, pixels[labelled], tuple(class_names), tuple(files))


# ---- values ----------------------------------------------------------------------------------


def count_values(files: Sequence[str]) -> tuple[ClassSets, np.ndarray]:
    """Which values each label map holds and how often. Decodes the files in parallel.

    Returns:
        Sets of values 0..255 of the N files, and (P,) int64 pixels of each pair.

    Raises:
        DataError: a file that is not an 8-bit label map; the message names it and its mode.
    """
    # Threads: Pillow lets go of the interpreter while it decodes.
    with ThreadPoolExecutor(default_workers()) as pool:
        rows = np.stack(list(pool.map(_histogram, files)))
    images, values = np.nonzero(rows)
    sets = class_sets_from_pairs(images, values, len(files), NUM_VALUES)
    return sets, rows[images, values].astype(np.int64)


def _histogram(path: str) -> np.ndarray:
    """(256,) int32, how many pixels of a label map have each value."""
    try:
        return np.array(read_label_png(path).histogram(), dtype=np.int32)
    except DataError as e:
        raise DataError(f"{path} {e}") from e


# ---- cache -----------------------------------------------------------------------------------


def cached_value_counts(
    files: Sequence[str], place: str, cache_dir: str | None
) -> tuple[ClassSets, np.ndarray]:
    """`count_values` of `files`, from the cache of `place` if it was made from these files.

    Raises:
        MissingFileError: a file does not exist.
        DataError: see `count_values`.
    """
    if cache_dir is None:
        return count_values(files)
    stamp = files_stamp(files, place)
    path = cache_path(place, "label maps", cache_dir, ".label_maps.npz")
    cached = _read_cache(path, stamp)
    if cached is not None:
        return cached
    values, pixels = count_values(files)
    logger.info(f"Counted the pixels of {len(files)} label maps of {place}")
    _write_cache(path, stamp, values, pixels)
    return values, pixels


def files_stamp(files: Sequence[str], place: str) -> dict:
    """What tells whether label maps are still those that were counted.

    Raises:
        MissingFileError: a file does not exist.
    """
    digest = hashlib.sha256()
    for path, stat in zip(files, _stats(files), strict=True):
        entry = (os.path.abspath(path), stat.st_size, stat.st_mtime_ns)
        digest.update(json.dumps(entry).encode())
    return {
        "version": CACHE_VERSION,
        "place": place,
        "files": len(files),
        "sha256_of_names_sizes_times": digest.hexdigest(),
    }


def _stats(files: Sequence[str]) -> Iterator[os.stat_result]:
    for path in files:
        try:
            yield os.stat(path)
        except FileNotFoundError as e:
            raise MissingFileError(f"label map {path} does not exist (a broken link?)") from e


def _read_cache(path: str, stamp: dict) -> tuple[ClassSets, np.ndarray] | None:
    """The cached counts; None, with a log line that says why, if they cannot be used."""
    try:
        with np.load(path, allow_pickle=False) as content:
            made_from = json.loads(str(content["stamp"]))
            sets = ClassSets(content["offsets"], content["values"].astype(np.int64), NUM_VALUES)
            pixels = content["pixels"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        logger.warning(f"Label maps are counted again, the cache {path} is unreadable: {e}")
        return None
    if made_from != stamp:
        logger.info(
            f"Label maps are counted again: {stamp['place']} is not what {path} was made from"
        )
        return None
    return sets, pixels


def _write_cache(path: str, stamp: dict, values: ClassSets, pixels: np.ndarray) -> None:
    """Write the cache file in one step, so that other processes see all of it or nothing."""
    try:
        with atomic_file(path, binary=True) as file:
            np.savez_compressed(
                file,
                stamp=json.dumps(stamp),
                offsets=values.offsets,
                values=values.classes.astype(np.uint8),
                pixels=pixels,
            )
    except OSError as e:
        logger.info(f"Label maps are not cached: {e}")
