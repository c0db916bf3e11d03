"""UPerNet: pyramid pooling on the last feature, a feature pyramid on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from lt_det.errors import ConfigError
from lt_det.losses import LongTailLoss
from lt_det.modeling.calibration import Calibration
from lt_det.modeling.fcn_head import channel_dropout, conv_norm_relu
from lt_det.modeling.sem_seg import (
    PixelClassifier,
    PixelHead,
    chosen_features,
    pixel_arguments,
    resize,
)


class PyramidPooling(nn.Module):
    """The map beside its averages over grids of several sizes, brought to one width.

    Source: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.

    Args:
        in_channels: channels of the input.
        out_channels: channels of each pooled map, and of the output.
        pool_sizes: sides of the grids.
        norm: normalisation, as in ``detectron2.layers.get_norm``. Batch normalisation needs
            more than one image in training, as a grid of side 1 has one value a channel.
    """

    def __init__(self, in_channels: int, out_channels: int, pool_sizes: Sequence[int], norm: str):
        super().__init__()
        self.pool_sizes = tuple(pool_sizes)
        self.reduce = nn.ModuleList(
            conv_norm_relu(in_channels, out_channels, 1, norm) for _ in self.pool_sizes
        )
        width = in_channels + len(self.pool_sizes) * out_channels
        self.fuse = conv_norm_relu(width, out_channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        parts = [x]
        for side, conv in zip(self.pool_sizes, self.reduce, strict=True):
            parts.append(resize(conv(F.adaptive_avg_pool2d(x, side)), x.shape[-2:]))
        return self.fuse(torch.cat(parts, dim=1))


@SEM_SEG_HEADS_REGISTRY.register()
class UPerNetHead(PixelHead):
    """Pyramid pooling, a feature pyramid, all levels concatenated, the classifier.

    The last feature passes the pyramid pooling, the others a convolution 1 x 1. From the last to
    the first, each level is added, resized, to the one before; each but the last then passes a
    convolution 3 x 3. All are resized to the first, concatenated and fused by a convolution
    3 x 3; dropout of channels and the classifier follow. Resizing is bilinear with
    ``align_corners=False``.

    Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018, in the
    form of mmsegmentation's ``UPerHead``. Initialised as
    :func:`~lt_det.modeling.fcn_head.conv_norm_relu` says, as there.

    Args:
        input_shape: shapes of the features; used in the order of their strides.
        loss: built with ``has_background=False``.
        classifier: (M, conv_dims) -> (M, L).
        conv_dims: channels of all convolutions.
        pool_sizes: sides of the grids of the pyramid pooling.
        dropout: share of the channels dropped in training.
        norm: normalisation, see :class:`PyramidPooling`.
        ignore_value: label of pixels without one.
        loss_weight: factor on the loss.
        calibration: of the logits at inference; None = none.

    Raises:
        ConfigError: a pool size below 1, or a dropout outside of [0, 1).
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        loss: LongTailLoss,
        classifier: nn.Module,
        conv_dims: int,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        norm: str = "",
        ignore_value: int = 255,
        loss_weight: float = 1.0,
        calibration: Calibration | None = None,
    ):
        super().__init__()
        if min(pool_sizes, default=1) < 1:
            raise ConfigError(
                f"MODEL.LT.SEM_SEG.POOL_SIZES is {list(pool_sizes)}; sides are at least 1"
            )
        shapes = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in shapes]
        *channels, last = [shape.channels for _, shape in shapes]
        self.common_stride = shapes[0][1].stride
        self.ignore_value, self.loss_weight = ignore_value, loss_weight
        self.pooling = PyramidPooling(last, conv_dims, pool_sizes, norm)
        self.lateral = nn.ModuleList(conv_norm_relu(n, conv_dims, 1, norm) for n in channels)
        self.smooth = nn.ModuleList(conv_norm_relu(conv_dims, conv_dims, 3, norm) for _ in channels)
        self.fuse = conv_norm_relu(len(shapes) * conv_dims, conv_dims, 3, norm)
        self.dropout = channel_dropout(dropout)
        self.predictor = PixelClassifier(classifier)
        self.cls_loss = loss
        self.calibration = calibration

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Translate `cfg`; see the class for the arguments."""
        node = cfg.MODEL.SEM_SEG_HEAD
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        return {
            "input_shape": chosen_features(input_shape, node.IN_FEATURES, key),
            "conv_dims": node.CONVS_DIM,
            "pool_sizes": cfg.MODEL.LT.SEM_SEG.POOL_SIZES,
            "dropout": cfg.MODEL.LT.SEM_SEG.DROPOUT,
            "norm": node.NORM,
            **pixel_arguments(cfg, node.CONVS_DIM),
        }

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """(B, L, h, w) logits at the size of the first feature."""
        maps = [features[name] for name in self.in_features]
        last = top = self.pooling(maps[-1])
        levels = []
        for x, lateral, smooth in zip(
            reversed(maps[:-1]), reversed(self.lateral), reversed(self.smooth), strict=True
        ):
            top = lateral(x) + resize(top, x.shape[-2:])
            levels.insert(0, smooth(top))
        levels = [resize(level, maps[0].shape[-2:]) for level in (*levels, last)]
        return self.predictor(self.dropout(self.fuse(torch.cat(levels, dim=1))))
