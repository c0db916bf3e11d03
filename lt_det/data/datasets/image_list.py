"""List files of image classification: one ``relative/path label`` per line.

The form of ImageNet-LT, Places-LT and the iNaturalist lists of the long-tailed literature.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.results import atomic_file

# Labels of a list without a class number are below it. The largest lists have some ten thousand
# classes, and everything that reads a label makes arrays and names for all classes up to it: an
# image id in place of a label would fill the memory.
LABEL_LIMIT = 1_000_000
MAX_DIGITS = 40  # of a label as it is written


@dataclass(frozen=True, eq=False)
class ImageList:
    """The content of a list file.

    Attributes:
        paths: (N,) image paths as the file has them.
        labels: (N,) int64, 0..C-1.
        source: the list file.
    """

    paths: list[str]
    labels: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.paths)


def read_image_list(path: str | os.PathLike, *, num_classes: int | None = None) -> ImageList:
    """Read a list file. Blank lines are left out; the label is what follows the last white space.

    Args:
        path: text file, UTF-8.
        num_classes: C; None takes any label below `LABEL_LIMIT`.

    Raises:
        MissingFileError: no such file.
        DataError: a line without a label, a label that is not a whole number 0..C-1, a path
            that comes twice, no line at all, no text; the message names file and line.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise MissingFileError(
            f"list file {path} does not exist (looked for {os.path.abspath(path)})"
        )
    paths: list[str] = []
    labels: list[int] = []
    line_of: dict[str, int] = {}
    for number, line in _lines(path):
        if not line.strip():
            continue
        name, label = _parse(line, number, path, num_classes)
        if name in line_of:
            raise DataError(f"{path} line {number}: {name} is on line {line_of[name]} already")
        line_of[name] = number
        paths.append(name)
        labels.append(label)
    if not paths:
        raise DataError(f"list file {path} names no image")
    return ImageList(paths, np.array(labels, dtype=np.int64), path)


def _lines(path: str) -> Iterator[tuple[int, str]]:
    with open(path, encoding="utf-8") as file:
        try:
            yield from enumerate(file, start=1)
        except UnicodeDecodeError as e:
            raise DataError(f"list file {path} is not text in UTF-8: {e}") from e


def _parse(line: str, number: int, path: str, num_classes: int | None) -> tuple[str, int]:
    parts = line.rsplit(None, 1)
    if len(parts) != 2:
        raise DataError(
            f"{path} line {number}: expected 'relative/path label', got {line.strip()!r}"
        )
    name, text = parts[0].strip(), parts[1]
    if not text.isdecimal():
        raise DataError(f"{path} line {number}: label {text!r} is not a whole number from 0")
    # Python refuses to convert thousands of digits.
    label = int(text) if len(text) <= MAX_DIGITS else None
    limit = LABEL_LIMIT if num_classes is None else num_classes
    if label is None or label >= limit:
        shown = f"{text[:MAX_DIGITS]}..." if label is None else label
        why = f"{num_classes} classes" if num_classes is not None else "is it an image id?"
        raise DataError(f"{path} line {number}: label {shown} is not in 0..{limit - 1} ({why})")
    return name, label


def write_image_list(
    path: str | os.PathLike, paths: Sequence[str], labels: Sequence[int] | np.ndarray
) -> None:
    """Write a list file in one step, so that a stopped script leaves no half of one."""
    with atomic_file(path) as file:
        file.writelines(f"{p} {int(k)}\n" for p, k in zip(paths, labels, strict=True))
