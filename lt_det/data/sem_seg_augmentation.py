"""Augmentation of semantic segmentation: resize by a random ratio, crop, flip, colour.

The order and the ranges are those of mmsegmentation's pipelines; what Detectron2 has a key for is
set by that key.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from detectron2.data import transforms as T
from PIL import Image

from lt_det.data.datasets.label_png import IGNORED
from lt_det.errors import ConfigError

RATIO_KEY = "DATALOADER.LT.SEM_SEG.RATIO"
COLOR_KEY = "DATALOADER.LT.SEM_SEG.COLOR"
AREA_KEY = "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA"
SAMPLINGS = ("choice", "range")
FLIPS = ("horizontal", "vertical", "none")
CROP_TYPES = ("absolute", "absolute_range", "relative", "relative_range")
FORMATS = ("RGB", "BGR")
# Crops that are drawn before one is taken in which a class is too large, as in Detectron2.
CROP_ATTEMPTS = 10


class ResizeByRandomRatio(T.Augmentation):
    """Detectron2's ``ResizeShortestEdge`` with both of its sizes times a random number.

    Source: mmsegmentation's ``RandomResize`` with `ratio_range`, whose scale (2048, 512) is a
    shorter edge of 512 and a limit of 2048 here.

    Args:
        sizes: of the shorter edge, in pixels; 0 = the image's own, without a limit.
        limit: of the longer edge, in pixels.
        sampling: "choice" takes one of `sizes`, "range" one between the two.
        ratio: least and largest factor, drawn uniformly.
    """

    def __init__(self, sizes: Sequence[int], limit: int, sampling: str, ratio: Sequence[float]):
        super().__init__()
        self.sizes, self.limit, self.sampling = tuple(sizes), limit, sampling
        self.ratio = tuple(ratio)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a size and a ratio for an (H, W, C) image."""
        size, limit = self._draw_size(), self.limit
        if size == 0:
            size, limit = min(image.shape[:2]), sys.maxsize
        ratio = np.random.uniform(*self.ratio)
        # Whole pixels, as in mmsegmentation.
        size, limit = max(1, int(size * ratio)), max(1, int(limit * ratio))
        return T.ResizeShortestEdge(size, limit, "choice").get_transform(image)

    def _draw_size(self) -> int:
        if self.sampling == "range":
            return int(np.random.randint(self.sizes[0], self.sizes[1] + 1))
        return int(np.random.choice(self.sizes))


class CropWithClassLimit(T.Augmentation):
    """Detectron2's ``RandomCrop_CategoryAreaConstraint``: no class should fill the crop.

    The same crops from the same random numbers; only, pixels are counted by value instead of
    being sorted, which takes 0.3 instead of 2 to 11 ms for 512 x 512 pixels, up to ten times.
    A limit of 1 is none.

    Args:
        crop: draws crops.
        limit: share of the labelled pixels that the largest class must stay below.
    """

    def __init__(self, crop: T.RandomCrop, limit: float):
        super().__init__()
        self.crop, self.limit = crop, limit

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        """Draw a crop of an (H, W, C) image with its (H, W) uint8 classes, 255 = ignored."""
        for _ in range(CROP_ATTEMPTS):
            crop = self.crop.get_transform(image)
            if self.limit >= 1 or self._is_mixed(crop.apply_segmentation(sem_seg)):
                break
        return crop

    def _is_mixed(self, classes: np.ndarray) -> bool:
        pixels = np.bincount(classes.ravel(), minlength=IGNORED + 1)[:IGNORED]
        return np.count_nonzero(pixels) > 1 and pixels.max() < pixels.sum() * self.limit


@dataclass(frozen=True)
class Distortion:
    """What `distort` does to an image; the defaults do nothing.

    Attributes:
        brightness: is added, in 1/255.
        contrast: factor on all values.
        contrast_last: it comes after saturation and hue instead of before.
        saturation: factor on the saturation.
        hue: is added, in turns of the colour circle.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_last: bool = False
    saturation: float = 1.0
    hue: float = 0.0


def distort(image: np.ndarray, distortion: Distortion, image_format: str) -> np.ndarray:
    """Brightness, contrast, saturation and hue of an image changed.

    Values outside of 0..255 are cut off and fractions dropped after each step, as in
    mmsegmentation. Saturation and hue change in one conversion to HSV, with eight bits each.

    Args:
        image: (H, W, 3) uint8.
        distortion: what to do.
        image_format: "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8, a new array unless nothing changes.
    """
    before, after = _line(1.0, distortion.brightness), _line(1.0, 0.0)
    if distortion.contrast_last:
        after = _line(distortion.contrast, 0.0)
    else:
        before = _line(distortion.contrast, 0.0)[before]
    image = _mapped(image, before)
    if distortion.saturation != 1 or distortion.hue != 0:
        image = _change_color(image, distortion.saturation, distortion.hue, image_format)
    return _mapped(image, after)


def _line(factor: float, offset: float) -> np.ndarray:
    """(256,) uint8, what becomes of each value."""
    return np.clip(np.arange(256) * factor + offset, 0, 255).astype(np.uint8)


def _mapped(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return image if np.array_equal(table, np.arange(256)) else table[image]


def _change_color(
    image: np.ndarray, saturation: float, hue: float, image_format: str
) -> np.ndarray:
    # In BGR read as RGB hues run backwards, and all else is the same.
    turn = -hue if image_format == "BGR" else hue
    hues = (np.arange(256) + round(turn * 255)) % 255  # Pillow's 255 is a whole turn
    tables = np.concatenate([hues, _line(saturation, 0.0), np.arange(256)])
    picture = Image.fromarray(image).convert("HSV").point(tables.tolist())
    return np.asarray(picture.convert("RGB"))


class PhotometricDistortion(T.Augmentation):
    """Random brightness, contrast, saturation and hue.

    Each is changed with probability 1/2; contrast comes before or after the two others by a coin.

    Source: mmsegmentation's ``PhotoMetricDistortion`` (first used by SSD) with its defaults.
    Deviations: its `hue_delta` of 18 counts in half degrees, as OpenCV does, so the range is
    +-36 degrees here, too, but drawn on a finer grid; saturation and hue share one rounding.

    Args:
        image_format: "RGB" or "BGR".
    """

    brightness = 32.0
    factors = (0.5, 1.5)
    hue = 0.1  # turns: 36 degrees

    def __init__(self, image_format: str):
        super().__init__()
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a distortion."""
        return T.ColorTransform(
            partial(distort, distortion=self.draw(), image_format=self.image_format)
        )

    def draw(self) -> Distortion:
        """The random numbers of one image."""
        chosen, contrast_last = np.random.rand(4) < 0.5, np.random.rand() < 0.5
        brightness = np.random.uniform(-self.brightness, self.brightness)
        contrast, saturation = np.random.uniform(*self.factors, size=2)
        hue = np.random.uniform(-self.hue, self.hue)
        return Distortion(
            brightness=brightness if chosen[0] else 0.0,
            contrast=contrast if chosen[1] else 1.0,
            contrast_last=bool(contrast_last),
            saturation=saturation if chosen[2] else 1.0,
            hue=hue if chosen[3] else 0.0,
        )


def build_sem_seg_augmentation(cfg, is_train: bool) -> list[T.Augmentation]:
    """Augmentations of training or testing.

    Training: resize (``INPUT.{MIN_SIZE_TRAIN, MAX_SIZE_TRAIN, MIN_SIZE_TRAIN_SAMPLING}``,
    ``DATALOADER.LT.SEM_SEG.RATIO``), crop (``INPUT.CROP``), flip (``INPUT.RANDOM_FLIP``) and
    colour (``DATALOADER.LT.SEM_SEG.COLOR``). An image smaller than the crop stays so: the model
    pads. Testing: resize (``INPUT.{MIN_SIZE_TEST, MAX_SIZE_TEST}``; 0 = as it is).

    Raises:
        ConfigError: a value out of range; the message names the key.
    """
    node = cfg.INPUT
    if not is_train:
        return [T.ResizeShortestEdge(node.MIN_SIZE_TEST, node.MAX_SIZE_TEST, "choice")]
    steps: list[T.Augmentation] = [_build_resize(cfg)]
    if node.CROP.ENABLED:
        steps.append(_build_crop(node.CROP))
    _check_choice("INPUT.RANDOM_FLIP", node.RANDOM_FLIP, FLIPS)
    if node.RANDOM_FLIP != "none":
        vertical = node.RANDOM_FLIP == "vertical"
        steps.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
    if cfg.DATALOADER.LT.SEM_SEG.COLOR:
        if node.FORMAT not in FORMATS:
            raise ConfigError(
                f"{COLOR_KEY} changes images in {' or '.join(FORMATS)}, but INPUT.FORMAT is "
                f"{node.FORMAT!r}"
            )
        steps.append(PhotometricDistortion(node.FORMAT))
    return steps


def _build_resize(cfg) -> ResizeByRandomRatio:
    node, ratio = cfg.INPUT, tuple(cfg.DATALOADER.LT.SEM_SEG.RATIO)
    numbers = all(isinstance(r, (int, float)) for r in ratio)
    if len(ratio) != 2 or not numbers or not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ConfigError(f"{RATIO_KEY} is {ratio}; it takes two factors, 0 < least <= largest")
    sizes, sampling = node.MIN_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    _check_choice("INPUT.MIN_SIZE_TRAIN_SAMPLING", sampling, SAMPLINGS)
    is_range = len(sizes) == 2 and sizes[0] <= sizes[1]
    if not sizes or min(sizes) < 0 or (sampling == "range" and not is_range):
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}; it takes sizes in pixels, under "
            "INPUT.MIN_SIZE_TRAIN_SAMPLING 'range' the least and the largest"
        )
    if node.MAX_SIZE_TRAIN < 1:
        raise ConfigError(f"INPUT.MAX_SIZE_TRAIN is {node.MAX_SIZE_TRAIN}; it is at least 1")
    return ResizeByRandomRatio(sizes, node.MAX_SIZE_TRAIN, sampling, ratio)


def _build_crop(node) -> CropWithClassLimit:
    """The crop of an ``INPUT.CROP`` node."""
    _check_choice("INPUT.CROP.TYPE", node.TYPE, CROP_TYPES)
    size, limit = tuple(node.SIZE), node.SINGLE_CATEGORY_MAX_AREA
    largest = 1.0 if node.TYPE.startswith("relative") else math.inf
    # Of an "absolute_range" they are the least and the largest side.
    rising = node.TYPE != "absolute_range" or size[0] <= size[-1]
    if len(size) != 2 or not 0 < min(size) <= max(size) <= largest or not rising:
        raise ConfigError(
            f"INPUT.CROP.SIZE is {size}; INPUT.CROP.TYPE {node.TYPE!r} takes two numbers above 0"
            + (", up to 1" if largest == 1 else "")
            + ("" if rising else ", the least and the largest side")
        )
    if not 0 < limit <= 1:
        raise ConfigError(f"{AREA_KEY} is {limit}; it is a share above 0, and 1 is no limit")
    return CropWithClassLimit(T.RandomCrop(node.TYPE, size), limit)


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key} is {value!r}; accepted are {', '.join(choices)}")
