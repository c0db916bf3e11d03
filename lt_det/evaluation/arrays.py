"""Files of named arrays (.npz), written all or nothing."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence

import numpy as np

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.results import atomic_file


def write_arrays(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Write named arrays, all or nothing."""
    with atomic_file(path, binary=True) as f:
        np.savez(f, **arrays)


def read_arrays(
    path: str | os.PathLike, names: Sequence[str], *, others: bool = False
) -> dict[str, np.ndarray]:
    """Arrays of a file by name.

    Args:
        path: of the file.
        names: arrays it must have.
        others: read the others that it has, too.

    Raises:
        MissingFileError: no such file.
        DataError: the file cannot be read or lacks an array; the message names both.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise MissingFileError(f"no file {path}; the evaluation of the run writes it if asked to")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = file.files
            arrays = {n: file[n] for n in (found if others else names) if n in found}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise DataError(f"{path} cannot be read: {e}") from e
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{path} has no array {missing[0]!r}; it has {', '.join(found) or 'none'}")
    return arrays
