"""Sizes of images as they are read: upright."""

from __future__ import annotations

from PIL import Image

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)  # orientations in which width and height change places


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as Detectron2 reads an image, its EXIF orientation applied.

    The pixels need not be decoded.
    """
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Detectron2 reads an image with damaged EXIF data as one without
        orientation = None
    return image.size[::-1] if orientation in _QUARTER_TURNS else image.size
