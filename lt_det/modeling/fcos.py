"""FCOS with the classification loss of ``MODEL.LT.LOSS``, where Detectron2 has FCOS (main)."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from fvcore.nn import giou_loss
from torch import Tensor
from torch.nn import functional as F

from lt_det.errors import ConfigError
from lt_det.losses.layout import dense_rows
from lt_det.modeling.dense import (
    LongTailDense,
    Positives,
    dense_arguments,
    dense_loss_from_config,
)

try:
    from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
except ImportError:  # Detectron2 0.5
    FCOS = None


def check_fcos() -> None:
    """Raise a ConfigError where the installed Detectron2 has no FCOS."""
    if FCOS is None:
        raise ConfigError(
            "MODEL.META_ARCHITECTURE is 'LongTailFCOS', but the installed Detectron2 has no "
            "detectron2.modeling.meta_arch.fcos: its main branch has. Accepted here are "
            "LongTailRetinaNet and LongTailATSS"
        )


if FCOS is None:

    @META_ARCH_REGISTRY.register()
    def LongTailFCOS(cfg):
        """Stands in where Detectron2 has no FCOS; raises the ConfigError of `check_fcos`."""
        check_fcos()

else:

    @META_ARCH_REGISTRY.register()
    class LongTailFCOS(LongTailDense, FCOS):
        """Detectron2's ``FCOS`` with the loss of ``MODEL.LT.LOSS``.

        Detectron2 configures FCOS from Python alone; here it takes the keys of
        ``MODEL.RETINANET`` (classes, features, convolutions, norm, thresholds), of which those on
        anchors, matching and the kind of box loss have no effect. Labels, GIoU box loss,
        centerness and score, sqrt(class score * centerness), are Detectron2's.

        Deviations: as of :class:`~lt_det.modeling.dense.LongTailRetinaNet`; the terms are called
        "loss_cls", "loss_box_reg" and "loss_centerness".

        Args:
            **kwargs: of :class:`~lt_det.modeling.dense.LongTailDense` and Detectron2's ``FCOS``.
        """

        score_power = 0.5

        @configurable
        def __init__(self, **kwargs):
            super().__init__(**kwargs)

        @classmethod
        def from_config(cls, cfg) -> dict:
            """Translate `cfg`; see the class for the arguments.

            Raises:
                ConfigError: see :func:`~lt_det.modeling.dense.dense_loss_from_config`.
            """
            loss = dense_loss_from_config(cfg)
            node = cfg.MODEL.RETINANET
            backbone = build_backbone(cfg)
            shapes = [backbone.output_shape()[name] for name in node.IN_FEATURES]
            head = FCOSHead(
                input_shape=shapes,
                conv_dims=[shapes[0].channels] * node.NUM_CONVS,
                num_classes=node.NUM_CLASSES,
                norm=node.NORM,
            )
            return dense_arguments(cfg, loss, head) | {
                "backbone": backbone,
                "head_in_features": node.IN_FEATURES,
                "num_classes": node.NUM_CLASSES,
                "test_score_thresh": node.SCORE_THRESH_TEST,
                "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
                "test_nms_thresh": node.NMS_THRESH_TEST,
                "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
                "pixel_mean": cfg.MODEL.PIXEL_MEAN,
                "pixel_std": cfg.MODEL.PIXEL_STD,
            }

        def box_losses(self, positives: Positives) -> Tensor:
            """(P,) GIoU."""
            return giou_loss(positives.predicted, positives.boxes)

        def further_losses(self, outputs, positives: Positives, normalizer: Tensor) -> dict:
            """{"loss_centerness"}."""
            logits = dense_rows(outputs[2], 1)[positives.rows, 0].float()
            sides = self.box2box_transform.get_deltas(positives.anchors, positives.boxes)
            wanted = centerness(sides)
            loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
            return {"loss_centerness": loss / normalizer}


def centerness(sides: Tensor) -> Tensor:
    """``sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))``.

    Args:
        sides: (P, 4), from a point to the left, top, right and bottom side of its box, above 0.

    Returns:
        (P,) in (0, 1].
    """
    across, down = sides[:, 0::2], sides[:, 1::2]
    ratios = [x.amin(dim=1) / x.amax(dim=1) for x in (across, down)]
    return torch.sqrt(ratios[0] * ratios[1])
