"""Detectron2's heads for semantic segmentation with the loss of ``MODEL.LT.LOSS``.

Symbols: B images, C classes, L logits of a pixel (``loss.num_logits``), D features, H x W pixels.
Labels are 0..C-1, or ``MODEL.SEM_SEG_HEAD.IGNORE_VALUE``; there is no background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.projects.deeplab import DeepLabV3PlusHead
from torch import Tensor, nn
from torch.nn import functional as F

from lt_det.errors import ConfigError
from lt_det.losses import LongTailLoss
from lt_det.losses.base import widen
from lt_det.losses.layout import segmentation_map, segmentation_rows
from lt_det.losses.one_pass import row_blocks
from lt_det.modeling.build import classifier_from_config, loss_from_config
from lt_det.modeling.calibration import (
    Calibration,
    calibrated_scores,
    calibration_from_config,
)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resizing with ``align_corners=False``.

    Args:
        x: (B, D, h, w).
        size: (H, W); where that is (h, w), `x` itself is returned.

    Returns:
        (B, D, H, W), in channels-last memory if `x` is.
    """
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def pixel_scores(
    loss: LongTailLoss,
    logits: Tensor,
    calibration: Calibration | None = None,
    classifier: nn.Module | None = None,
) -> Tensor:
    """``loss.scores`` of every pixel, in blocks.

    Args:
        loss: built with ``has_background=False``.
        logits: (B, L, H, W), float32 or wider; copied unless they are in channels-last memory
            or B is 1.
        calibration: of the logits of `classifier`; None = none.
        classifier: needed by a calibration alone.

    Returns:
        (B, C, H, W) in [0, 1] of the logits' dtype, in channels-last memory.
    """
    rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
    scores = rows.new_empty(len(rows), loss.num_classes)
    for block in row_blocks(rows):
        scores[block] = calibrated_scores(calibration, loss, rows[block], classifier)
    return segmentation_map(scores, *logits.shape[-2:])


class PixelClassifier(nn.Module):
    """A classifier of feature vectors applied to every pixel.

    Args:
        classifier: (M, D) -> (M, L).
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, L, H, W) in channels-last memory.

        Resizing keeps that memory format, so that the rows a loss takes are a view of the
        logits at full size.
        """
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)
        return segmentation_map(self.classifier(rows), *x.shape[-2:])


class PixelHead(nn.Module):
    """What all heads share: the loss of every pixel in training, its scores otherwise.

    Follows the interface of Detectron2's heads, so that its ``SemanticSegmentor`` and
    ``PanopticFPN`` can use them. Deviations: the results of inference are scores in [0, 1], as
    the loss says, where Detectron2 gives logits; logits are resized to the size of the labels
    and not by a factor; a batch without any valid pixel has loss 0, in Detectron2 NaN.

    A subclass has the attributes `cls_loss`, `calibration`, `ignore_value`, `loss_weight` and
    `common_stride`, a :class:`PixelClassifier` `predictor`, and a method ``layers`` from features
    to logits (B, L, H / common_stride, W / common_stride).
    """

    def forward(self, features: Mapping[str, Tensor], targets: Tensor | None = None):
        """(None, losses) in training, (scores (B, C, H, W) of the whole input, {}) otherwise."""
        logits = self.layers(features)
        if self.training:
            return None, self.losses(logits, targets)
        size = [n * self.common_stride for n in logits.shape[-2:]]
        return self.scores(resize(widen(logits), size)), {}

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The terms of the loss times `loss_weight`; its statistics are updated.

        Of the size of the labels there are the logits and what the loss keeps: their gradient
        alone for losses in one pass, two further tensors for SoftmaxCE and one for GCL.

        Args:
            predictions: (B, L, h, w), what ``layers`` gives.
            targets: (B, H, W) integers.

        Returns:
            {"loss_sem_seg"} and, for losses of several terms, {"loss_sem_seg_<term>"}. Divided
            by the number of pixels that are not ignored, at least 1, unless the loss says
            otherwise; a zero with a graph if there are none.

        Raises:
            ValueError: labels beyond the classes, see :class:`~lt_det.losses.base.LongTailLoss`.
        """
        logits = resize(widen(predictions), targets.shape[-2:])
        terms = self.cls_loss(*segmentation_rows(logits, targets, self.ignore_value))
        return {_term_name(name): term * self.loss_weight for name, term in terms.items()}

    def scores(self, logits: Tensor) -> Tensor:
        """(B, L, H, W) -> (B, C, H, W) in [0, 1], after the calibration."""
        classifier = self.predictor.classifier
        return pixel_scores(self.cls_loss, logits, self.calibration, classifier)


def _term_name(name: str) -> str:
    """Detectron2's name of a term: "loss_cls" -> "loss_sem_seg", "loss_x" -> "loss_sem_seg_x"."""
    return "loss_sem_seg" + name.removeprefix("loss").removeprefix("_cls")


def pixel_counts(cfg) -> Sequence[float] | None:
    """Class counts of a PanopticFPN's pixels; None where they are ``MODEL.LT.CLASS_COUNTS``."""
    panoptic = cfg.MODEL.META_ARCHITECTURE == "PanopticFPN"
    return cfg.MODEL.LT.SEM_SEG.CLASS_COUNTS if panoptic else None


def pixel_loss_from_config(cfg, seed_offset: int = 0) -> LongTailLoss:
    """The loss of ``MODEL.LT.LOSS`` for pixels, with statistics of its own.

    Class counts are those of ``MODEL.LT.CLASS_COUNTS``; in a ``PanopticFPN``, where these are
    of boxes, those of ``MODEL.LT.SEM_SEG.CLASS_COUNTS``.

    Raises:
        ConfigError: a loss that needs the features of every pixel, or whatever
            :func:`~lt_det.losses.build_loss` finds wrong.
    """
    counts = pixel_counts(cfg)
    panoptic = counts is not None
    try:
        loss = loss_from_config(
            cfg,
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            has_background=False,
            class_counts=counts,
            seed_offset=seed_offset,
        )
    except ConfigError as error:
        counts = "MODEL.LT.SEM_SEG.CLASS_COUNTS" if panoptic else "MODEL.LT.CLASS_COUNTS"
        raise ConfigError(
            f"{error} (semantic segmentation: classes are MODEL.SEM_SEG_HEAD.NUM_CLASSES, "
            f"counts {counts})"
        ) from error
    if loss.needs_features:
        raise ConfigError(
            f"MODEL.LT.LOSS.NAME is {cfg.MODEL.LT.LOSS.NAME!r}, which needs the features of every "
            "pixel at the size of the labels; semantic segmentation does not keep them. The "
            "other losses work."
        )
    return loss


def pixel_arguments(cfg, in_features: int, seed_offset: int = 0) -> dict:
    """What every head takes: loss, classifier of (M, `in_features`), ignored label, ..."""
    loss = pixel_loss_from_config(cfg, seed_offset)
    classifier = classifier_from_config(cfg, loss, in_features)
    return {
        "loss": loss,
        "classifier": classifier,
        "calibration": calibration_from_config(cfg, loss, classifier, pixel_counts(cfg)),
        "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "loss_weight": cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT,
    }


def chosen_features(
    shapes: Mapping[str, ShapeSpec], names: Sequence[str], key: str
) -> dict[str, ShapeSpec]:
    """The outputs of a backbone with these names, in the order of the backbone.

    Args:
        shapes: of all its outputs.
        names: of those wanted.
        key: configuration key that the names are from, for the message.

    Raises:
        ConfigError: no name, or an output that the backbone does not have.
    """
    missing = [name for name in names if name not in shapes]
    if missing or not names:
        raise ConfigError(f"{key} is {list(names)}; the backbone gives {', '.join(shapes)}")
    return {name: shape for name, shape in shapes.items() if name in names}


@SEM_SEG_HEADS_REGISTRY.register()
class LongTailSemSegFPNHead(PixelHead, SemSegFPNHead):
    """``SemSegFPNHead`` with the loss of ``MODEL.LT.LOSS``.

    Deviations from Detectron2: see :class:`PixelHead`; the classifier is initialised as
    ``MODEL.LT.CLASSIFIER`` says (Detectron2: Kaiming), all else as there.

    Args:
        input_shape: shapes of the features.
        loss: built with ``has_background=False``.
        classifier: (M, conv_dims) -> (M, L).
        calibration: of the logits at inference; None = none.
        **kwargs: arguments of ``SemSegFPNHead`` but the number of classes.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        loss: LongTailLoss,
        classifier: nn.Module,
        calibration: Calibration | None = None,
        **kwargs,
    ):
        super().__init__(input_shape, num_classes=loss.num_classes, **kwargs)
        self.predictor = PixelClassifier(classifier)
        self.cls_loss = loss
        self.calibration = calibration

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Translate `cfg`; see the class for the arguments."""
        node = cfg.MODEL.SEM_SEG_HEAD
        chosen_features(input_shape, node.IN_FEATURES, "MODEL.SEM_SEG_HEAD.IN_FEATURES")
        ret = super().from_config(cfg, input_shape)
        del ret["num_classes"]
        return ret | pixel_arguments(cfg, node.CONVS_DIM)


@SEM_SEG_HEADS_REGISTRY.register()
class LongTailDeepLabV3PlusHead(PixelHead, DeepLabV3PlusHead):
    """DeepLab's ``DeepLabV3PlusHead`` with the loss of ``MODEL.LT.LOSS``.

    Deviations from Detectron2: see :class:`PixelHead`; ``MODEL.SEM_SEG_HEAD.LOSS_TYPE`` is not
    read; the classifier is initialised as ``MODEL.LT.CLASSIFIER`` says (Detectron2: normal with
    standard deviation 0.001), all else as there. With ``INPUT.CROP`` the image pooling of
    the pyramid averages over windows of the size of a crop. Detectron2 then refuses images
    whose size is not a multiple of the crop's; here all sizes work, smaller images are
    averaged over as a whole, and where Detectron2 gives a result it is the same.

    Args:
        input_shape: shapes of the features.
        loss: built with ``has_background=False``.
        classifier: (M, decoder_channels[0]) -> (M, L).
        calibration: of the logits at inference; None = none.
        **kwargs: arguments of ``DeepLabV3PlusHead`` but number of classes and type of the loss.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        loss: LongTailLoss,
        classifier: nn.Module,
        calibration: Calibration | None = None,
        **kwargs,
    ):
        super().__init__(
            input_shape, num_classes=loss.num_classes, loss_type="cross_entropy", **kwargs
        )
        del self.loss
        self.predictor = PixelClassifier(classifier)
        self.cls_loss = loss
        self.calibration = calibration
        pyramid = self.decoder[self.in_features[-1]]["project_conv"]
        if pyramid.pool_kernel_size is not None:
            pyramid.convs[-1][0] = WindowAverage(pyramid.pool_kernel_size)
            pyramid.pool_kernel_size = None  # the size is no longer checked

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Translate `cfg`; see the class for the arguments.

        Raises:
            ConfigError: a feature that the backbone does not have, a number of PROJECT_CHANNELS
                that does not fit the features, or a crop whose size is not given in pixels or
                not divisible by the stride of the last feature.
        """
        node = cfg.MODEL.SEM_SEG_HEAD
        names, channels = node.IN_FEATURES, node.PROJECT_CHANNELS
        shapes = chosen_features(input_shape, names, "MODEL.SEM_SEG_HEAD.IN_FEATURES")
        if len(channels) != len(names) - 1:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS is {list(channels)}; it takes one number "
                f"for each but the last of IN_FEATURES, {list(names)}"
            )
        _check_crop(cfg.INPUT.CROP, max(shape.stride for shape in shapes.values()))
        ret = super().from_config(cfg, input_shape)
        del ret["num_classes"], ret["loss_type"]
        return ret | pixel_arguments(cfg, ret["decoder_channels"][0])


class WindowAverage(nn.Module):
    """Average over every window of a map; a map smaller than the window is one window.

    Args:
        size: (height, width) of the window.
    """

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, max(H - height, 0) + 1, max(W - width, 0) + 1)."""
        window = [min(side, n) for side, n in zip(self.size, x.shape[-2:], strict=True)]
        return F.avg_pool2d(x, window, stride=1)


def _check_crop(crop, stride: int) -> None:
    if not crop.ENABLED:
        return
    if crop.TYPE != "absolute":
        raise ConfigError(
            f"INPUT.CROP.TYPE is {crop.TYPE!r}; a DeepLab head needs 'absolute', pixels"
        )
    if any(side % stride for side in crop.SIZE):
        raise ConfigError(
            f"INPUT.CROP.SIZE is {list(crop.SIZE)}; a DeepLab head needs multiples of the stride "
            f"of its last feature, {stride}"
        )
