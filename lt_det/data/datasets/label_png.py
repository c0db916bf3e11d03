"""Label maps as files: PNG with one byte per pixel."""

from __future__ import annotations

import os

from PIL import Image

from lt_det.errors import DataError

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
