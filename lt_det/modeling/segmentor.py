"""Semantic segmentation: a backbone, a head, an auxiliary head, and inference in several views."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    SemanticSegmentor,
)
from detectron2.structures import ImageList
from torch import Tensor
from torch.nn import functional as F

from lt_det.errors import ConfigError, DataError
from lt_det.losses.base import widen
from lt_det.losses.layout import segmentation_map
from lt_det.modeling.fcn_head import auxiliary_head_from_config
from lt_det.modeling.sem_seg import PixelHead, resize


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover a side of an image.

    Args:
        length: of the side, at least `window`.
        window: its length.
        stride: from one window to the next, at most `window`; the last one is moved back inside.
    """
    return [*range(0, length - window, stride), length - window]


def sliding_window(
    image: Tensor, predict: Callable[[Tensor], Tensor], window: int, stride: int
) -> Tensor:
    """What `predict` says of square windows, averaged where they overlap.

    Source: the "slide" mode of mmsegmentation, with the same windows. Deviation: an image with
    a side below `window` is padded with zeros, at the right and at the bottom, to that side.

    Args:
        image: (3, H, W).
        predict: (3, window, window) -> (1, L, window, window) float32.
        window: side of a window.
        stride: pixels from one window to the next, at most `window`.

    Returns:
        (1, L, H, W), in channels-last memory.
    """
    height, width = image.shape[-2:]
    image = F.pad(image, (0, max(0, window - width), 0, max(0, window - height)))
    tops, lefts = (window_starts(side, window, stride) for side in image.shape[-2:])
    times = image.new_zeros(image.shape[-2:])
    total = None
    for top in tops:
        for left in lefts:
            part = (..., slice(top, top + window), slice(left, left + window))
            found = predict(image[part])
            if total is None:
                rows = found.new_zeros(times.numel(), found.shape[1])
                total = segmentation_map(rows, *times.shape)
            total[part] += found
            times[part] += 1
    return total.div_(times)[..., :height, :width]


@META_ARCH_REGISTRY.register()
class LongTailSegmentor(SemanticSegmentor):
    """``SemanticSegmentor`` with an auxiliary head and with windows, scales and mirror images.

    Symbols as in :mod:`lt_det.modeling.sem_seg`. Deviations from Detectron2: at inference images
    are seen one by one, so that none is padded to the size of another, and the result is scores
    in [0, 1] instead of logits. Logits are resized, then turned into scores; scores of several
    views are averaged. The scales of a view apply to the test image as it comes from the data
    loader, with the filter that Pillow resizes training images with.

    Args:
        backbone: any of Detectron2's.
        sem_seg_head: a :class:`~lt_det.modeling.sem_seg.PixelHead`.
        pixel_mean, pixel_std: (3,) of the input, 0 to 255, in its order of channels.
        auxiliary_head: a second head, for training only; None = none.
        auxiliary_weight: factor on its loss.
        window: side of the windows that a test image is cut into, in pixels; 0 = none.
        stride: pixels from one window to the next; 0 = two thirds of the side.
        scales: factors on the size of the test image.
        flip: whether each view is also seen mirrored.

    Raises:
        ConfigError: a bad value of `window`, `stride` or `scales`.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: PixelHead,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        auxiliary_head: PixelHead | None = None,
        auxiliary_weight: float = 0.4,
        window: int = 0,
        stride: int = 0,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ):
        super().__init__(
            backbone=backbone,
            sem_seg_head=sem_seg_head,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        check_views(window, stride, scales)
        self.auxiliary_head, self.auxiliary_weight = auxiliary_head, auxiliary_weight
        self.window, self.stride = window, stride or max(1, window * 2 // 3)
        self.scales, self.flip = tuple(scales), flip

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Translate `cfg`; see the class for the arguments.

        Raises:
            ConfigError: a head of Detectron2, which gives no scores, or an unknown one.
        """
        check_head_name(cfg.MODEL.SEM_SEG_HEAD.NAME)
        ret = super().from_config(cfg)
        node = cfg.TEST.LT.SEM_SEG
        return ret | {
            "auxiliary_head": auxiliary_head_from_config(cfg, ret["backbone"].output_shape()),
            "auxiliary_weight": cfg.MODEL.LT.SEM_SEG.AUX.WEIGHT,
            "window": node.WINDOW,
            "stride": node.STRIDE,
            "scales": node.SCALES,
            "flip": node.FLIP,
        }

    def forward(self, batched_inputs: list[dict]):
        """Losses in training, scores otherwise.

        Args:
            batched_inputs: "image" (3, H, W) uint8 or float; in training "sem_seg" (H, W)
                integers; otherwise "height" and "width" of the result, by default those of the
                image.

        Returns:
            {name: scalar}, those of the auxiliary head as "loss_sem_seg_aux..."; or for each image
            {"sem_seg": (C, height, width) float32 in [0, 1]}, in channels-last memory.

        Raises:
            DataError: a training image without labels, or of another size than they.
        """
        if self.training:
            return self._losses(batched_inputs)
        return [{"sem_seg": self._predict(x)} for x in batched_inputs]

    def _losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        for x in batched_inputs:
            _check_labels(x)
        features = self.backbone(self._batch([self._image(x) for x in batched_inputs]))
        labels = [x["sem_seg"].to(self.device, non_blocking=True) for x in batched_inputs]
        labels = self._batch(labels, self.sem_seg_head.ignore_value)
        _, losses = self.sem_seg_head(features, labels)
        if self.auxiliary_head is not None:
            _, further = self.auxiliary_head(features, labels)
            for name, loss in further.items():
                name = name.replace("loss_sem_seg", "loss_sem_seg_aux", 1)
                losses[name] = loss * self.auxiliary_weight
        return losses

    @torch.no_grad()
    def _predict(self, x: dict) -> Tensor:
        """(C, height, width) scores of one image."""
        image = self._image(x)
        size = (x.get("height", image.shape[-2]), x.get("width", image.shape[-1]))
        views = list(self._views(image))
        total = None
        for view, mirrored in views:
            scores = self._view_scores(view, mirrored, size)
            total = scores if total is None else total.add_(scores)
        return total.div_(len(views)) if len(views) > 1 else total

    def _view_scores(self, view: Tensor, mirrored: bool, size: Sequence[int]) -> Tensor:
        """(C, height, width) scores of one view, mirrored back."""
        # One name for all: each full-size map goes as soon as the next is there.
        logits = self._logits(view)
        if mirrored:
            logits = logits.flip(-1)
        logits = resize(logits, size)
        return self.sem_seg_head.scores(logits)[0]

    def _views(self, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """(3, h, w) at every scale, and whether it is mirrored."""
        for scale in self.scales:
            view = image
            if scale != 1:
                size = [max(1, round(side * scale)) for side in image.shape[-2:]]
                view = F.interpolate(
                    image[None], size, mode="bilinear", align_corners=False, antialias=True
                )[0]
            yield view, False
            if self.flip:
                yield view.flip(-1), True

    def _logits(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (1, L, H, W) float32, from windows or from the whole."""
        if self.window:
            return sliding_window(image, self._whole_logits, self.window, self.stride)
        return self._whole_logits(image)

    def _whole_logits(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        batch = self._batch([image])
        logits = widen(self.sem_seg_head.layers(self.backbone(batch)))
        logits = resize(logits, batch.shape[-2:])[..., :height, :width]
        # What is cut off would be kept along with the rest.
        return logits.contiguous(memory_format=torch.channels_last)

    def _image(self, x: dict) -> Tensor:
        """(3, H, W) float32, normalised."""
        image = x["image"].to(self.device, non_blocking=True)
        return (image - self.pixel_mean) / self.pixel_std

    def _batch(self, maps: list[Tensor], value: float = 0) -> Tensor:
        """One tensor, padded with `value` to the largest and to what the backbone needs."""
        # Detectron2 0.5 has no padding constraints, neither here nor in the backbone.
        constraints = getattr(self.backbone, "padding_constraints", None)
        further = {"padding_constraints": constraints} if constraints else {}
        divisor = self.backbone.size_divisibility
        return ImageList.from_tensors(maps, divisor, value, **further).tensor


def check_head_name(name: str) -> None:
    """Raise a ConfigError unless `name` is a registered :class:`PixelHead`."""
    heads = [n for n, head in SEM_SEG_HEADS_REGISTRY if _takes_our_losses(head)]
    if name not in heads:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NAME is {name!r}; heads with the losses of MODEL.LT.LOSS are "
            f"{', '.join(heads)}"
        )


def _takes_our_losses(head) -> bool:
    return isinstance(head, type) and issubclass(head, PixelHead)


def check_views(window: int, stride: int, scales: Sequence[float]) -> None:
    """Raise a ConfigError for values of ``TEST.LT.SEM_SEG`` that give no view of an image."""
    if window < 0:
        raise ConfigError(
            f"TEST.LT.SEM_SEG.WINDOW is {window}; accepted are a number of pixels and 0 (the "
            "whole image)"
        )
    if stride and not window:
        raise ConfigError(
            f"TEST.LT.SEM_SEG.STRIDE is {stride}, but there are no windows: set "
            "TEST.LT.SEM_SEG.WINDOW"
        )
    if stride < 0 or stride > window:
        raise ConfigError(
            f"TEST.LT.SEM_SEG.STRIDE is {stride}; accepted are 1 to the WINDOW, {window}, and 0 "
            "(two thirds of it)"
        )
    numbers = all(isinstance(scale, (int, float)) for scale in scales)
    if not scales or not numbers or not 0 < min(scales) <= max(scales) < math.inf:
        raise ConfigError(
            f"TEST.LT.SEM_SEG.SCALES is {list(scales)}; it takes at least one number, all above 0"
        )


def _check_labels(x: dict) -> None:
    """Image and labels of a training record belong together."""
    name = x.get("file_name", "a training image")
    if "sem_seg" not in x:
        raise DataError(f'{name} comes without labels ("sem_seg"); see DATASETS.TRAIN')
    image, labels = tuple(x["image"].shape[-2:]), tuple(x["sem_seg"].shape)
    if image != labels:
        raise DataError(f"{name}: the image is {image} (height, width), its labels are {labels}")
