"""Predictions that are written while they are made, as columns.

Inference over a large set takes hours, and its predictions gigabytes. So each rank writes what it
has from time to time, and forgets it::

    <folder>/rank0000/part-00000-1f0c9a2b.npz

A part holds the columns of :class:`lt_det.evaluation.predictions.Predictions`, in which the rows
of an image are neighbours, and::

    images       (n,) int64 ids of its images, in the order of the rows
    rows         (n,) int64 predictions of each; 0: nothing was found
    fingerprint  text that says what the predictions were made with

A part is there as a whole or not at all, whenever the run is killed. Its name holds eight random
digits, so that no two runs write to the same file.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import shutil
import time
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.predictions import Predictions, concatenate
from lt_det.evaluation.results import atomic_file

logger = logging.getLogger(__name__)

FOLDER = "predictions"
# What a run that is killed may lose, and what it holds in memory.
PART_SECONDS = 60
PART_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class Part:
    """The predictions of some images.

    Attributes:
        images: (n,) int64 ids, as in the annotation file.
        rows: (n,) int64 predictions of each, which are neighbours and in this order.
        predictions: all of them.
    """

    images: np.ndarray
    rows: np.ndarray
    predictions: Predictions


class PredictionFiles:
    """Takes the predictions of one rank, image by image, and gives them back in parts.

    Args:
        folder: for the files of all ranks; None: parts stay in memory.
        rank: index of this process.
        ranks: number of processes.
        fingerprint: says what the predictions are made with; "" = not known, then
            :meth:`resume` finds nothing.
    """

    def __init__(self, folder: str | None, *, rank: int = 0, ranks: int = 1, fingerprint: str = ""):
        self._folder = None if folder is None else os.path.abspath(folder)
        self._rank, self._ranks, self._fingerprint = rank, ranks, fingerprint
        self._parts: list[str | Part] = []
        self._own = _Own()
        self._started = False

    def start(self) -> None:
        """Forget everything and remove the files of earlier runs."""
        self._parts, self._own, self._started = [], _Own(), True
        if self._folder is None:
            return
        shutil.rmtree(self._own_folder(), ignore_errors=True)
        if self._rank == 0:
            kept = {_rank_folder(self._folder, k) for k in range(self._ranks)}
            for folder in set(glob.glob(_rank_folder(glob.escape(self._folder), None))) - kept:
                shutil.rmtree(folder, ignore_errors=True)

    def resume(self) -> list[str]:
        """Keep the files that an earlier run wrote with the same fingerprint.

        Rank 0 removes the others and takes over those that are kept: :meth:`parts` has them
        there. It is for the caller to see that the images in them are not processed again.

        Returns:
            Names of the kept files in the folder, sorted. All ranks must have found the same:
            the folder is not shared by all machines otherwise, and all have to :meth:`start`.
        """
        self._parts, self._own, self._started = [], _Own(), True
        if self._folder is None or not self._fingerprint:
            self.start()
            return []
        found = part_files(self._folder)
        kept = [path for path in found if _fingerprint_of(path) == self._fingerprint]
        if self._rank == 0:
            for path in set(found) - set(kept):
                with contextlib.suppress(OSError):
                    os.remove(path)
            if len(kept) < len(found):
                logger.info(
                    f"{len(found) - len(kept)} files in {self._folder} are removed: they are "
                    "of other weights, another configuration or damaged"
                )
            self._parts = list(kept)
        return [os.path.relpath(path, self._folder) for path in kept]

    def images(self, names: Sequence[str]) -> set[int]:
        """Ids of the images in files that :meth:`resume` has kept."""
        read = (_images_of(os.path.join(self._folder, name)) for name in names)
        return {int(i) for images in read for i in images}

    def add(self, image_id: int, predictions: Predictions) -> None:
        """Take the predictions of an image."""
        if not self._started:
            self.start()
        self._own.add(image_id, predictions)
        if self._own.bytes >= PART_BYTES or self._own.seconds() >= PART_SECONDS:
            self._close_part()

    def parts(self) -> list[str | Part]:
        """All that was taken, in turn: paths of files, or parts in memory without a folder."""
        if not self._started:
            self.start()
        if self._own.images:
            self._close_part()
        return list(self._parts)

    def _close_part(self) -> None:
        part, self._own = self._own.part(), _Own()
        if self._folder is None:
            self._parts.append(part)
        else:
            self._parts.append(write_part(self._own_folder(), part, self._fingerprint))

    def _own_folder(self) -> str:
        return _rank_folder(self._folder, self._rank)


class _Own:
    """What a rank holds in memory."""

    def __init__(self):
        self.images: list[int] = []
        self.bytes = 0
        self._predictions: list[Predictions] = []
        self._since = 0.0

    def add(self, image_id: int, predictions: Predictions) -> None:
        if not self.images:
            self._since = time.monotonic()
        self.images.append(image_id)
        self._predictions.append(predictions)
        self.bytes += sum(c.nbytes for c in vars(predictions).values() if c is not None)

    def seconds(self) -> float:
        """Since the first image."""
        return time.monotonic() - self._since

    def part(self) -> Part:
        """All of it."""
        images = np.array(self.images, dtype=np.int64)
        rows = np.array([len(p) for p in self._predictions], dtype=np.int64)
        return Part(images, rows, concatenate(self._predictions))


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def part_files(folder: str | os.PathLike) -> list[str]:
    """Paths of the parts of all ranks in a folder, in the order in which they are read."""
    name = f"part-{'[0-9]' * 5}-*.npz"
    pattern = os.path.join(_rank_folder(glob.escape(os.fspath(folder)), None), name)
    return sorted(glob.glob(pattern))


def write_part(folder: str, part: Part, fingerprint: str = "") -> str:
    """Write a part after those that are in the folder; its path."""
    os.makedirs(folder, exist_ok=True)
    numbers = [int(n[5:10]) for n in os.listdir(folder) if n.startswith("part-")]
    name = f"part-{max(numbers, default=-1) + 1:05d}-{uuid.uuid4().hex[:8]}.npz"
    path = os.path.join(folder, name)
    columns = {k: v for k, v in vars(part.predictions).items() if v is not None}
    with atomic_file(path, binary=True) as f:
        np.savez(f, images=part.images, rows=part.rows, fingerprint=fingerprint, **columns)
    return path


def read_part(path: str) -> Part:
    """Inverse of :func:`write_part`.

    Raises:
        MissingFileError, DataError: as ``Predictions.load``.
    """
    predictions = Predictions.load(path)
    images, rows = _arrays(path, "images", "rows")
    if images.shape != rows.shape or rows.sum() != len(predictions):
        raise DataError(
            f"{path}: {len(images)} images with {rows.sum()} predictions, but {len(predictions)} "
            "rows"
        )
    return Part(images, rows, predictions)


def join_parts(parts: Sequence[str | Part]) -> Part:
    """All images and predictions of parts, or of files with parts.

    In turn; if all are files, in the order of :func:`part_files`, so that rows have the same number
    whoever reads them. Of an image that is there more than once, as a sampler gives it that pads
    its ranks, the first predictions are taken.

    Raises:
        MissingFileError, DataError: see :func:`read_part`.
    """
    if all(isinstance(part, str) for part in parts):
        parts = sorted(parts)
    parts = [read_part(part) if isinstance(part, str) else part for part in parts]
    images = np.concatenate([np.zeros(0, np.int64), *(part.images for part in parts)])
    rows = np.concatenate([np.zeros(0, np.int64), *(part.rows for part in parts)])
    predictions = concatenate([part.predictions for part in parts])
    first = np.zeros(len(images), dtype=bool)
    first[np.unique(images, return_index=True)[1]] = True
    if not first.all():
        logger.warning(
            f"{np.count_nonzero(~first)} images were processed more than once; their first "
            "predictions are used"
        )
        predictions = predictions.select(np.repeat(first, rows))
    return Part(images[first], rows[first], predictions)


def read_folder(folder: str | os.PathLike) -> Part:
    """What an evaluation has written to a folder, also one that was killed.

    Raises:
        MissingFileError: there are no parts.
        DataError: a part that is damaged, or parts of different runs.
    """
    paths = part_files(folder)
    if not paths:
        raise MissingFileError(
            f"no predictions in {folder}: an evaluation writes them to "
            f"{_rank_folder(FOLDER, 0)} and so on in its output_dir"
        )
    made_with = {str(_arrays(path, "fingerprint")[0]): path for path in paths}
    if len(made_with) > 1:
        one, other = list(made_with.values())[:2]
        raise DataError(f"{one} and {other} are of different weights or configurations")
    found = join_parts(paths)
    logger.info(
        f"{folder}: {len(found.predictions)} predictions for {len(found.images)} images; others "
        "count as images without detections"
    )
    return found


def _rank_folder(folder: str, rank: int | None) -> str:
    """Of one rank, or a pattern for all."""
    return os.path.join(folder, f"rank{'[0-9]' * 4 if rank is None else f'{rank:04d}'}")


def _fingerprint_of(path: str) -> str | None:
    """None: the file cannot be read."""
    try:
        return str(_arrays(path, "fingerprint")[0])
    except (DataError, MissingFileError):
        return None


def _images_of(path: str) -> np.ndarray:
    return _arrays(path, "images")[0]


def _arrays(path: str, *names: str) -> list[np.ndarray]:
    if not os.path.isfile(path):
        raise MissingFileError(f"no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise DataError(f"{path} is no part of predictions: {e}. Is it cut off?") from e
