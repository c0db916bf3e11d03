"""From the record of a labelled image to model input, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import configurable
from PIL import Image, ImageEnhance
from PIL.Image import Transpose

from lt_det.data.image_cache import augment_cifar
from lt_det.data.image_decode import (
    Box,
    center_crop,
    decode,
    decode_crop,
    naming_image,
    open_image,
    resize_shorter_side,
    to_tensor,
    upright_size,
)
from lt_det.errors import ConfigError

KEY = "DATALOADER.LT.IMAGE"
AUGMENTS = ("crop", "cifar", "none")
FORMATS = ("RGB", "BGR")
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
# Crops that are drawn before the largest one in the middle is taken, as in torchvision.
CROP_ATTEMPTS = 10


def random_crop_box(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng=np.random
) -> Box:
    """The crop of RandomResizedCrop, in whole pixels.

    Source: torchvision's ``RandomResizedCrop.get_params``, whose distribution it has. Area
    uniform, aspect ratio uniform on a logarithmic scale, place uniform; if ten such crops do not
    fit into the image, the largest one in its middle whose aspect ratio is in the range.

    Args:
        height: of the image.
        width: of the image.
        scale: least and largest share of the image's area.
        ratio: least and largest width / height.
        rng: with a method ``uniform(low, high)``.
    """
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.uniform(0, width - w + 1))
            top = int(rng.uniform(0, height - h + 1))
            return Box(left, top, left + w, top + h)
    return _middle_box(height, width, ratio)


def _middle_box(height: int, width: int, ratio: Sequence[float]) -> Box:
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return Box(left, top, left + w, top + h)


def jitter_factors(strengths: Sequence[float], rng=np.random) -> list[tuple[int, float]]:
    """Factors of ColorJitter, in the order in which they apply.

    Args:
        strengths: of brightness, contrast and saturation; 0 leaves it as it is.
        rng: with the methods ``permutation`` and ``uniform``.

    Returns:
        (0, 1 or 2, factor) in random order; a factor is uniform in 1 - strength .. 1 + strength,
        not below 0.
    """
    used = [k for k in rng.permutation(3).tolist() if strengths[k] > 0]
    return [(k, rng.uniform(max(0.0, 1 - strengths[k]), 1 + strengths[k])) for k in used]


def jitter_color(image: Image.Image, factors: Sequence[tuple[int, float]]) -> Image.Image:
    """Apply factors of brightness (0), contrast (1) and saturation (2), one after the other."""
    for which, factor in factors:
        image = ENHANCERS[which](image).enhance(factor)
    return image


class ImageLabelMapper:
    """Record with `file_name` and `label` -> sample with `image` and `label`.

    Training with ``augment="crop"``: random crop, resized to `size` x `size`, flip, colour
    jitter. Testing with it: shorter side to `resize`, then the middle `size` x `size`; pixel by
    pixel what torchvision's Resize and CenterCrop give. ``"cifar"``: `pad` zeros on all sides,
    random crop of the image's own size, flip; images are tested as they are. ``"none"`` trains
    on what ``"crop"`` tests on.

    Randomness comes from numpy's global generator, which the loader seeds for each sample.

    Args:
        is_train: augment.
        augment: "crop", "cifar" or "none".
        size: side of the output.
        resize: shorter side before the middle is cut out; >= `size`.
        scale: least and largest share of the area of a random crop.
        ratio: least and largest width / height of it.
        jitter: strength of brightness, contrast and saturation; zeros for none.
        flip: mirror every other image, by chance.
        pad: zeros on each side, under "cifar".
        image_format: "RGB" or "BGR".

    Raises:
        ConfigError: a value out of range; the message names the key.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augment: str = "crop",
        size: int = 224,
        resize: int = 256,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        jitter: Sequence[float] = (0.0, 0.0, 0.0),
        flip: bool = True,
        pad: int = 4,
        image_format: str = "RGB",
    ):
        _check_choice("AUGMENT", augment, AUGMENTS)
        if image_format not in FORMATS:
            raise ConfigError(f"INPUT.FORMAT is {image_format!r}; images have {_words(FORMATS)}")
        if not 0 < size <= resize:
            raise ConfigError(f"{KEY}.SIZE {size} must be from 1 to {KEY}.RESIZE, {resize}")
        _check_range("SCALE", scale, 1.0)
        _check_range("RATIO", ratio, math.inf)
        if len(jitter) != 3 or min(jitter) < 0:
            raise ConfigError(
                f"{KEY}.JITTER is {tuple(jitter)}; it takes three strengths from 0, of "
                "brightness, contrast and saturation"
            )
        if pad < 0:
            raise ConfigError(f"{KEY}.PAD {pad} is below 0")
        self.is_train, self.augment = is_train, augment
        self.size, self.resize = size, resize
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.jitter, self.flip, self.pad = tuple(jitter), flip, pad
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        """Translate ``DATALOADER.LT.IMAGE`` and ``INPUT.FORMAT``."""
        node = cfg.DATALOADER.LT.IMAGE
        return {
            "is_train": is_train,
            "augment": node.AUGMENT,
            "size": node.SIZE,
            "resize": node.RESIZE,
            "scale": node.SCALE,
            "ratio": node.RATIO,
            "jitter": node.JITTER,
            "flip": node.FLIP,
            "pad": node.PAD,
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, record: dict) -> dict:
        """Map one record.

        Returns:
            `image` (3, H, W) uint8, `label`, `image_id`, `file_name`, and the `height` and
            `width` that the file has.

        Raises:
            DataError: the file is missing, truncated or no image; the message names it.
        """
        file_name, image_id = record["file_name"], record.get("image_id")
        with naming_image(file_name, image_id), open_image(file_name) as (image, orientation):
            height, width = upright_size(image, orientation)
            pixels = self._pixels(image, orientation)
        return {
            "image": pixels,
            "label": record["label"],
            "image_id": image_id,
            "file_name": file_name,
            "height": height,
            "width": width,
        }

    def _pixels(self, image: Image.Image, orientation: int) -> torch.Tensor:
        if self.augment == "cifar":
            pixels = to_tensor(decode(image, orientation), self.image_format)
            return self._shift(pixels) if self.is_train else pixels
        if self.is_train and self.augment == "crop":
            return to_tensor(self._random_view(image, orientation), self.image_format)
        small = resize_shorter_side(decode(image, orientation), self.resize)
        return to_tensor(center_crop(small, self.size), self.image_format)

    def _random_view(self, image: Image.Image, orientation: int) -> Image.Image:
        box = random_crop_box(*upright_size(image, orientation), self.scale, self.ratio)
        view = decode_crop(image, box, self.size, orientation)
        if self.flip and np.random.uniform() < 0.5:
            view = view.transpose(Transpose.FLIP_LEFT_RIGHT)
        return jitter_color(view, jitter_factors(self.jitter))

    def _shift(self, pixels: torch.Tensor) -> torch.Tensor:
        words = np.frombuffer(np.random.bytes(24), np.uint64).reshape(1, 3)
        batch = pixels.numpy().transpose(1, 2, 0)[None]
        return torch.from_numpy(augment_cifar(batch, words, pad=self.pad, flip=self.flip)[0])


def _words(choices: Sequence[str]) -> str:
    return " or ".join(repr(choice) for choice in choices)


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{KEY}.{key} is {value!r}; accepted are {', '.join(choices)}")


def _check_range(key: str, value: Sequence[float], largest: float) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1] <= largest:
        raise ConfigError(
            f"{KEY}.{key} is {tuple(value)}; it takes a least and a largest value, above 0"
            + (f" and up to {largest:g}" if largest < math.inf else "")
        )
