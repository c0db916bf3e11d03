"""Detectron2's ROI heads with the classification loss of ``MODEL.LT.LOSS``.

Detectron2 has no registry for box predictors, so each head lets its parent build the standard
one and replaces it.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from lt_det.losses import LongTailLoss
from lt_det.losses.federated import verified_classes
from lt_det.modeling.build import (
    classifier_from_config,
    federated_from_config,
    loss_from_config,
)
from lt_det.modeling.calibration import (
    Calibration,
    calibrated_scores,
    calibration_from_config,
)

# Detectron2's writers run every 20 iterations; reading the accuracy more often would wait for
# the device for numbers that nobody sees.
_LOG_PERIOD = 20


class LongTailOutputLayers(FastRCNNOutputLayers):
    """Box predictor whose classifier, classification loss and scores come from the loss.

    R is the number of regions of a batch, C of foreground classes, L of logits. Regions are
    labelled 0..C-1, C = background. The classification loss is divided by R, as is the box
    regression loss, which is Detectron2's own.

    Args:
        input_shape: shape of the region features.
        loss: built with ``has_background=True``.
        classifier: maps region features to ``loss.num_logits`` outputs.
        federated: makes the loss's class mask from the labels of the regions and the classes
            verified in the image of each, see ``lt_det.losses.federated``; None = no mask.
        calibration: of the logits at inference; None = none.
        **kwargs: arguments of Detectron2's ``FastRCNNOutputLayers``.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        loss: LongTailLoss,
        classifier: nn.Module,
        federated: nn.Module | None = None,
        calibration: Calibration | None = None,
        **kwargs,
    ):
        super().__init__(input_shape, **kwargs)
        self.cls_score = classifier
        self.cls_loss = loss
        self.federated = federated
        self.calibration = calibration

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        """Translate `cfg`; see the class for the arguments."""
        ret = super().from_config(cfg, input_shape)
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        loss = loss_from_config(cfg, num_classes=num_classes, has_background=True)
        in_features = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        ret["loss"] = loss
        ret["classifier"] = classifier_from_config(cfg, loss, in_features)
        ret["federated"] = federated_from_config(cfg, num_classes=num_classes)
        ret["calibration"] = calibration_from_config(cfg, loss, ret["classifier"])
        return ret

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Region features (R, ...) to logits (R, L) and box deltas (R, 4 or 4C).

        For losses that need them, the flattened features (R, D) come third.
        """
        x = torch.flatten(x, start_dim=1)
        logits, deltas = super().forward(x)
        return (logits, deltas, x) if self.cls_loss.needs_features else (logits, deltas)

    def losses(self, predictions: tuple[Tensor, ...], proposals: list[Instances]):
        """{"loss_cls" and further terms of the loss, "loss_box_reg"}."""
        logits, deltas = predictions[:2]
        gt_classes = _cat([p.gt_classes for p in proposals], deltas, torch.int64)
        terms = self.cls_loss(
            logits,
            gt_classes,
            class_mask=self._class_mask(gt_classes, proposals),
            features=predictions[2] if len(predictions) > 2 else None,
        )
        self._log_accuracy(logits, gt_classes)
        boxes = _cat([p.proposal_boxes.tensor for p in proposals], deltas).view(-1, 4)
        # Regions of an image without ground truth are all background: their gt box is unused.
        gt_boxes = _cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals],
            deltas,
        ).view(-1, 4)
        terms["loss_box_reg"] = self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes)
        return {name: term * self.loss_weight.get(name, 1.0) for name, term in terms.items()}

    def inference(self, predictions, proposals):
        """As in Detectron2."""
        return super().inference(predictions[:2], proposals)

    def predict_boxes(self, predictions, proposals):
        """As in Detectron2."""
        return super().predict_boxes(predictions[:2], proposals)

    def predict_boxes_for_gt_classes(self, predictions, proposals):
        """As in Detectron2."""
        return super().predict_boxes_for_gt_classes(predictions[:2], proposals)

    def predict_probs(self, predictions, proposals: list[Instances]) -> list[Tensor]:
        """Scores (R_i, C+1) of each image after the calibration, the background last."""
        scores = calibrated_scores(self.calibration, self.cls_loss, predictions[0], self.cls_score)
        return list(scores.split([len(p) for p in proposals]))

    def _class_mask(self, gt_classes: Tensor, proposals: list[Instances]) -> Tensor | None:
        """Bool (R, C) or (C,), or None."""
        if self.federated is None:
            return None
        verified = None
        if self.federated.needs_verified:
            none = gt_classes.new_ones(0, self.num_classes, dtype=torch.bool)
            verified = torch.cat([none, *(self._verified(p) for p in proposals)])
        return self.federated(gt_classes, verified)

    def _verified(self, regions: Instances) -> Tensor:
        """(R_i, C) bool, the same in every row; all True where the image has no class lists."""
        device = regions.gt_classes.device
        verified = torch.ones(self.num_classes, dtype=torch.bool, device=device)
        if regions.has("image_classes"):
            verified = verified_classes(*regions.image_classes.lists, self.num_classes)
        return verified.expand(len(regions), -1)

    @torch.no_grad()
    def _log_accuracy(self, logits: Tensor, gt_classes: Tensor) -> None:
        """Share of foreground regions whose best foreground class is the right one."""
        storage = get_event_storage()
        if (storage.iter + 1) % _LOG_PERIOD != 0:
            return
        foreground = (gt_classes >= 0) & (gt_classes < self.num_classes)
        if foreground.any():
            best = self.cls_loss.scores(logits[foreground])[:, : self.num_classes].argmax(1)
            right = (best == gt_classes[foreground]).float().mean()
            storage.put_scalar("fast_rcnn/fg_cls_accuracy", right.item(), smoothing_hint=False)


def _cat(tensors: list[Tensor], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Concatenation; an empty tensor on the device of `like` for an empty list."""
    if tensors:
        return cat(tensors, dim=0)
    return torch.empty(0, device=like.device, dtype=dtype or like.dtype)


def _long_tail_predictor(cfg, standard: FastRCNNOutputLayers) -> LongTailOutputLayers:
    """The predictor to put in the place of Detectron2's."""
    return LongTailOutputLayers(
        cfg,
        ShapeSpec(channels=standard.cls_score.in_features),
        box2box_transform=standard.box2box_transform,
    )


def _with_image_classes(regions: list[Instances], targets: list[Instances]) -> list[Instances]:
    """Give the regions of an image the class lists that its targets carry, if any.

    Detectron2 hands regions the fields of the target they match; those of an image without
    targets, and all after the first stage of a cascade, would have none.
    """
    for region, target in zip(regions, targets, strict=True):
        if target.has("image_classes"):
            region.image_classes = target.image_classes.of_length(len(region))
    return regions


class _KeepsImageClasses:
    """Regions labelled for training carry the class lists of their image."""

    def label_and_sample_proposals(self, proposals, targets):
        """As in Detectron2."""
        regions = super().label_and_sample_proposals(proposals, targets)
        return _with_image_classes(regions, targets)


@ROI_HEADS_REGISTRY.register()
class LongTailROIHeads(_KeepsImageClasses, StandardROIHeads):
    """``StandardROIHeads`` (FPN) with the loss of ``MODEL.LT.LOSS``."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = _long_tail_predictor(cfg, ret["box_predictor"])
        return ret


@ROI_HEADS_REGISTRY.register()
class LongTailCascadeROIHeads(_KeepsImageClasses, CascadeROIHeads):
    """``CascadeROIHeads`` with the loss of ``MODEL.LT.LOSS``: one loss and one state a stage."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictors"] = [_long_tail_predictor(cfg, p) for p in ret["box_predictors"]]
        return ret

    def _match_and_label_boxes(self, proposals, stage, targets):
        regions = super()._match_and_label_boxes(proposals, stage, targets)
        return _with_image_classes(regions, targets)


@ROI_HEADS_REGISTRY.register()
class LongTailRes5ROIHeads(_KeepsImageClasses, Res5ROIHeads):
    """``Res5ROIHeads`` (C4) with the loss of ``MODEL.LT.LOSS``."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        """Translate `cfg`."""
        ret = super().from_config(cfg, input_shape)
        ret["box_predictor"] = _long_tail_predictor(cfg, ret["box_predictor"])
        return ret
