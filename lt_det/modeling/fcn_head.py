"""The fully convolutional head, alone or as auxiliary head."""

from __future__ import annotations

from collections.abc import Mapping

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from lt_det.errors import ConfigError
from lt_det.losses import LongTailLoss
from lt_det.modeling.calibration import Calibration
from lt_det.modeling.sem_seg import (
    PixelClassifier,
    PixelHead,
    chosen_features,
    pixel_arguments,
)


def conv_norm_relu(in_channels: int, out_channels: int, size: int, norm: str) -> Conv2d:
    """A convolution that keeps the size of the map, its normalisation and ReLU.

    The weight starts from Kaiming's normal distribution for ReLU over the fan-out, a bias, which
    there is without normalisation, at 0.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        size: side of the kernel, odd.
        norm: as in ``detectron2.layers.get_norm``; "" = none.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=size,
        padding=size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(conv)
    return conv


def channel_dropout(share: float) -> nn.Module:
    """Dropout of whole channels.

    Raises:
        ConfigError: a share outside of [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"MODEL.LT.SEM_SEG.DROPOUT is {share}; it is at least 0 and below 1")
    return nn.Dropout2d(share)


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(PixelHead):
    """Convolutions 3 x 3 with normalisation and ReLU, dropout of channels, the classifier.

    With `concat_input`, one more such convolution sees the input and the output of the others.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, in
    the form of mmsegmentation's ``FCNHead``. Initialised as :func:`conv_norm_relu` says, as
    there.

    Args:
        input_shape: shape of the one feature, by name.
        loss: built with ``has_background=False``.
        classifier: (M, conv_dims) -> (M, L).
        conv_dims: channels of all convolutions.
        num_convs: number of convolutions before the concatenation, at least 1.
        concat_input: see above.
        dropout: share of the channels dropped in training.
        norm: normalisation, as in ``detectron2.layers.get_norm``.
        ignore_value: label of pixels without one.
        loss_weight: factor on the loss.
        calibration: of the logits at inference; None = none.

    Raises:
        ConfigError: no convolution, or a dropout outside of [0, 1).
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        loss: LongTailLoss,
        classifier: nn.Module,
        conv_dims: int,
        num_convs: int = 2,
        concat_input: bool = True,
        dropout: float = 0.1,
        norm: str = "",
        ignore_value: int = 255,
        loss_weight: float = 1.0,
        calibration: Calibration | None = None,
    ):
        super().__init__()
        if num_convs < 1:
            raise ConfigError(
                f"MODEL.LT.SEM_SEG.NUM_CONVS or AUX.NUM_CONVS is {num_convs}; an FCNHead has at "
                "least one convolution"
            )
        ((self.in_feature, shape),) = input_shape.items()
        self.common_stride = shape.stride
        self.ignore_value, self.loss_weight = ignore_value, loss_weight
        channels = [shape.channels] + [conv_dims] * (num_convs - 1)
        self.convs = nn.Sequential(*(conv_norm_relu(n, conv_dims, 3, norm) for n in channels))
        self.fuse = None
        if concat_input:
            self.fuse = conv_norm_relu(shape.channels + conv_dims, conv_dims, 3, norm)
        self.dropout = channel_dropout(dropout)
        self.predictor = PixelClassifier(classifier)
        self.cls_loss = loss
        self.calibration = calibration

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Translate `cfg`; of the features in IN_FEATURES, the last is used."""
        node = cfg.MODEL.SEM_SEG_HEAD
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        return {
            "input_shape": chosen_features(input_shape, node.IN_FEATURES[-1:], key),
            "conv_dims": node.CONVS_DIM,
            "num_convs": cfg.MODEL.LT.SEM_SEG.NUM_CONVS,
            "concat_input": cfg.MODEL.LT.SEM_SEG.CONCAT_INPUT,
            "dropout": cfg.MODEL.LT.SEM_SEG.DROPOUT,
            "norm": node.NORM,
            **pixel_arguments(cfg, node.CONVS_DIM),
        }

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """(B, L, h, w) logits at the size of the feature."""
        x = features[self.in_feature]
        y = self.convs(x)
        if self.fuse is not None:
            y = self.fuse(torch.cat([x, y], dim=1))
        return self.predictor(self.dropout(y))


def auxiliary_head_from_config(cfg, shapes: Mapping[str, ShapeSpec]) -> FCNHead | None:
    """The head of ``MODEL.LT.SEM_SEG.AUX`` with a loss, statistics and noise of its own.

    Its loss has weight 1.

    Args:
        cfg: the configuration.
        shapes: of all outputs of the backbone.

    Returns:
        None if FEATURE is "".

    Raises:
        ConfigError: a feature that the backbone does not have.
    """
    node = cfg.MODEL.LT.SEM_SEG.AUX
    if not node.FEATURE:
        return None
    return FCNHead(
        chosen_features(shapes, [node.FEATURE], "MODEL.LT.SEM_SEG.AUX.FEATURE"),
        conv_dims=node.CHANNELS,
        num_convs=node.NUM_CONVS,
        concat_input=False,
        dropout=cfg.MODEL.LT.SEM_SEG.DROPOUT,
        norm=cfg.MODEL.SEM_SEG_HEAD.NORM,
        **(pixel_arguments(cfg, node.CHANNELS, seed_offset=1) | {"loss_weight": 1.0}),
    )
