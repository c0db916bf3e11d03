"""Label maps as files: PNG with one byte per pixel.

By default value k is class k and 255 is ignored, as in Detectron2. With `zero_is_unlabelled`,
value 0 is ignored as well and value k is class k - 1, as in ADE20K as it is downloaded.
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from lt_det.errors import DataError

IGNORED = 255
READABLE = "a label map is an 8-bit PNG of mode L (grey) or P (palette; its indices count)"


def read_label_png(path: str | os.PathLike) -> Image.Image:
    """A label map, decoded; its pixels are the values of the file, of a palette the indices.

    Raises:
        DataError: not a readable image, or not such a PNG. The message lacks the path: it goes
            on where that ends.
    """
    try:
        with Image.open(path) as image:
            # A grey PNG of 1, 2 or 4 bits is stretched to 0..255 while it is decoded.
            stored = image.tile[0][3] if image.tile else image.mode
            mode = stored if image.mode == "L" else image.mode
            if image.format == "PNG" and mode in ("L", "P"):
                image.load()
                return image
    except Exception as e:  # decoders raise almost anything on damaged files
        raise DataError(f"cannot be read as a label map: {e}") from e
    what = f"has mode {mode}" if image.format == "PNG" else f"is of the format {image.format}"
    raise DataError(f"{what}; {READABLE}")


def class_map(values: np.ndarray, num_classes: int, zero_is_unlabelled: bool) -> np.ndarray:
    """Classes for the values of a label map.

    Args:
        values: (H, W) uint8, see the module.
        num_classes: C; at most 255, or 254 with `zero_is_unlabelled`.
        zero_is_unlabelled: see the module.

    Returns:
        (H, W) uint8, 0..C-1 = classes, 255 = ignored; `values` itself where nothing changes.

    Raises:
        DataError: a value beyond the classes. The message lacks the path: it goes on where that
            ends.
    """
    first = int(zero_is_unlabelled)
    beyond = (values >= num_classes + first) & (values != IGNORED)
    if beyond.any():
        raise DataError(beyond_classes(values[beyond].min(), num_classes, zero_is_unlabelled))
    if not zero_is_unlabelled:
        return values
    return np.where(values == IGNORED, values, values - np.uint8(1))  # 0 - 1 is 255


def beyond_classes(value: int, num_classes: int, zero_is_unlabelled: bool) -> str:
    """The message about a value that is no class; it goes on where the path of the file ends."""
    first = int(zero_is_unlabelled)
    hint = (
        ""
        if zero_is_unlabelled
        else (
            "; if 0 means unlabelled and 1 is the first class, set zero_is_unlabelled "
            "(--zero-is-unlabelled)"
        )
    )
    return (
        f"value {value} is beyond the class list of {num_classes} classes, which are the values "
        f"{first}..{num_classes - 1 + first} ({IGNORED} is ignored). "
        f"Give the class list that the maps were made with{hint}."
    )


def read_class_map(
    path: str | os.PathLike, num_classes: int, zero_is_unlabelled: bool = False
) -> np.ndarray:
    """(H, W) uint8 classes of a label map file, 255 = ignored.

    Args:
        path: PNG.
        num_classes: C.
        zero_is_unlabelled: see the module.

    Raises:
        DataError: see `read_label_png` and `class_map`; the message names the file.
    """
    try:
        return class_map(np.asarray(read_label_png(path)), num_classes, zero_is_unlabelled)
    except DataError as error:
        raise DataError(f"label map {path}: {error}") from error
