"""Files that are kept beside the data: where they lie, and what they were made from."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator

from iopath.common.file_io import file_lock
from portalocker.exceptions import BaseLockException

from lt_det.data.datasets.paths import datasets_root

logger = logging.getLogger(__name__)

# Bytes hashed at either end of a file. Reading all of LVIS train (1.1 GB) would take as long
# as counting it.
HASHED_BYTES = 2**20


def default_cache_dir() -> str:
    """``$DETECTRON2_DATASETS/lt_det_cache``, with Detectron2's default root ``datasets``."""
    return os.path.join(datasets_root(), "lt_det_cache")


def file_stamp(path: str, **more) -> dict:
    """What tells whether a file is still the one that something was made from.

    Args:
        path: the file.
        **more: what else has to be the same, such as a version; values that JSON can hold.
    """
    stat = os.stat(path)
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        digest.update(f.read(HASHED_BYTES))
        f.seek(max(0, stat.st_size - HASHED_BYTES))
        digest.update(f.read(HASHED_BYTES))
    return {
        **more,
        "path": os.path.abspath(path),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256_of_ends": digest.hexdigest(),
    }


def cache_path(place: str, kind: str, cache_dir: str, suffix: str) -> str:
    """Where what is kept of a data set lies.

    Args:
        place: the file or folder it was made from, with its whole path, or a registered name.
        kind: what else tells it from others of that place.
        cache_dir: its folder.
        suffix: how its name ends.

    Returns:
        A path with the last part of `place` and a digest of all of it and of `kind`.
    """
    stem = os.path.splitext(os.path.basename(place))[0]
    digest = hashlib.sha256(f"{place}\n{kind}".encode()).hexdigest()[:12]
    return os.path.join(cache_dir, f"{stem}-{digest}{suffix}")


@contextlib.contextmanager
def lock_if_possible(path: str) -> Iterator[bool]:
    """Wait until no other process is inside with this path; whether that is certain.

    Where the folder cannot be written or its file system knows no locks, nobody waits: the work
    inside is then done more than once, so it has to be right all the same.
    """
    with contextlib.ExitStack() as stack:
        locked = False
        try:
            stack.enter_context(file_lock(path))
            locked = True
        except (OSError, BaseLockException) as e:
            logger.info(f"{path} is not locked: {e}")
        yield locked
