"""Decoding of image files for classification, as far as it is needed.

A crop is chosen from the size in the header. A JPEG file is then decoded at the smallest of the
scales 1, 1/2, 1/4, 1/8 at which the crop still has the output's resolution: libjpeg does that
in its inverse cosine transform. It saves that transform, the colours and most of the resizing,
not the Huffman decoding. For an output of 224 pixels it begins with crops of 448: images of
800 x 600 gain, those of 500 x 375 never do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image
from PIL.Image import Resampling, Transpose

from lt_det.errors import DataError

# What Pillow raises for files that are missing, damaged or no images: a broken PNG header is a
# SyntaxError, a broken PPM header a ValueError.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

EXIF_ORIENTATION = 274
# EXIF orientation -> what turns the stored image upright, as in Detectron2.
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
# Orientations whose upright left is the stored right or, of turned ones, the stored bottom, ...
MIRRORED_X, MIRRORED_Y = (2, 3, 7, 8), (3, 4, 6, 7)
# Formats whose files Image.draft can decode at a smaller scale.
DRAFT_FORMATS = ("JPEG", "MPO")
DRAFT_SCALES = (8, 4, 2)


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom lie outside."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def size(self) -> tuple[float, float]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left


@contextlib.contextmanager
def naming_image(file_name: str, image_id: int | None) -> Iterator[None]:
    """Turn what Pillow raises into a DataError that names the file and the image id."""
    try:
        yield
    except IMAGE_ERRORS as error:
        raise DataError(
            f"cannot use image {file_name} (image id {image_id}): {error}. "
            "DATALOADER.LT.BAD_IMAGE 'skip' trains without such images."
        ) from error


@contextlib.contextmanager
def open_image(file_name: str) -> Iterator[tuple[Image.Image, int]]:
    """An image file, decoded or not, and its EXIF orientation 1..8.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: see IMAGE_ERRORS.
    """
    with PathManager.open(file_name, "rb") as file:
        image = Image.open(file)
        if image.format not in DRAFT_FORMATS:
            # Their EXIF data may come after the pixels, or be applied while these are read.
            image.load()
        yield image, orientation_of(image)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation; 1 for images that have none, or one that cannot be read."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Broken EXIF data raises anything; the pixels may be fine.
        return 1
    return orientation if orientation in UPRIGHT else 1


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """(height, width) of the image once it is upright."""
    width, height = image.size
    return (width, height) if orientation >= 5 else (height, width)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned upright."""
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def stored_box(box: Box, height: int, width: int, orientation: int) -> Box:
    """A box of the upright image as it lies in the stored one of `height` x `width`."""
    left, top, right, bottom = box
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in MIRRORED_X:
        left, right = width - right, width - left
    if orientation in MIRRORED_Y:
        top, bottom = height - bottom, height - top
    return Box(left, top, right, bottom)


def to_rgb(image: Image.Image) -> Image.Image:
    """In 8-bit RGB. Of 16-bit gray the upper eight bits count, where Pillow would clip."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(image: Image.Image, orientation: int = 1) -> Image.Image:
    """All of the image in 8-bit RGB, upright."""
    return upright(to_rgb(image), orientation)


def draft_scale(box: Box, size: int) -> int:
    """1, 2, 4 or 8: by how much the image may shrink for `box` still to be `size` x `size`."""
    room = min(box.size) / size
    return next((scale for scale in DRAFT_SCALES if scale <= room), 1)


def decode_crop(image: Image.Image, box: Box, size: int, orientation: int = 1) -> Image.Image:
    """A crop, resized bilinearly to `size` x `size` in 8-bit RGB, upright.

    Args:
        image: as opened; not decoded yet, if there is to be a gain.
        box: in the upright image.
        size: of the output in pixels.
        orientation: EXIF orientation of `image`.
    """
    width, height = image.size
    box = stored_box(box, height, width, orientation)
    scale = draft_scale(box, size)
    if scale > 1:
        drafted = image.draft(None, (width // scale, height // scale))
        # The extent of the decoded image is a fraction where the scale does not divide the size.
        _, (_, _, drafted_width, drafted_height) = drafted or (None, (0, 0, width, height))
        x, y = drafted_width / width, drafted_height / height
        box = Box(box.left * x, box.top * y, box.right * x, box.bottom * y)
    # Reads the crop where it lies. The gap is what Pillow recommends for a result that is hardly
    # told from that of a plain resize.
    pixels = to_rgb(image).resize((size, size), Resampling.BILINEAR, box=box, reducing_gap=3.0)
    return upright(pixels, orientation)


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Bilinear, to a shorter side of `size`; the longer one is rounded down."""
    width, height = image.size
    short = min(width, height)
    shape = (int(size * width / short), int(size * height / short))
    return image.resize(shape, Resampling.BILINEAR)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The `size` x `size` pixels in the middle."""
    left, top = (int(round((side - size) / 2)) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image, image_format: str = "RGB") -> torch.Tensor:
    """(3, H, W) uint8 with the channels in the order "RGB" or "BGR"."""
    planes = image.split()
    if image_format == "BGR":
        planes = planes[::-1]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))
