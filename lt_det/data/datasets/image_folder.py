"""Image folders of classification: one sub-folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lt_det.errors import DataError, MissingFileError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def read_image_folder(root: str | os.PathLike) -> tuple[list[str], np.ndarray, list[str]]:
    """Images and classes of a folder, both in sorted order.

    Only names are read; those that begin with a dot are left out.

    Returns:
        paths: (N,) ``class/file``, relative to `root`, with forward slashes.
        labels: (N,) int64, the position of the class in `names`.
        names: (C,) sub-folders.

    Raises:
        MissingFileError: no such folder.
        DataError: no sub-folder, or one without an image.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"image folder {root} does not exist (looked for {root.resolve()})")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"image folder {root} has no sub-folder; expected one per class")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(f for f in os.listdir(root / name) if _is_image(f))
        if not files:
            raise DataError(
                f"{root / name}, class {label}, has no image; accepted: {', '.join(SUFFIXES)}"
            )
        paths += [f"{name}/{file}" for file in files]
        labels += [label] * len(files)
    return paths, np.array(labels, dtype=np.int64), names


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
