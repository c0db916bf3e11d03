"""Dense (one-stage) detectors with the classification loss of ``MODEL.LT.LOSS``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor, nn

from lt_det.dist import sum_over_ranks, world_size
from lt_det.errors import ConfigError, DataError
from lt_det.losses import LOSS_REGISTRY, LongTailLoss, build_loss
from lt_det.losses.dense_normalizer import DenseNormalizer
from lt_det.losses.federated import verified_classes
from lt_det.losses.layout import dense_rows
from lt_det.modeling.build import federated_from_config, loss_from_config
from lt_det.modeling.calibration import CountCalibration, calibration_from_config
from lt_det.modeling.classifier import prior_bias
from lt_det.modeling.dense_inference import detect, level_candidates

# Detectron2's writers run every 20 iterations; reading the number of positives more often would
# wait for the device for numbers that nobody sees.
_LOG_PERIOD = 20

BOX_LOSSES = ("smooth_l1", "giou")

# Keys of Detectron2's focal loss: default there, and where the value is set here.
_KEYS_WITHOUT_EFFECT = {
    "FOCAL_LOSS_GAMMA": (2.0, "MODEL.LT.LOSS.PARAMS (gamma)"),
    "FOCAL_LOSS_ALPHA": (0.25, "MODEL.LT.LOSS.PARAMS (alpha)"),
    "PRIOR_PROB": (0.01, "MODEL.LT.CLASSIFIER.PRIOR_PROB"),
}


def dense_loss_from_config(cfg) -> LongTailLoss:
    """The loss of ``MODEL.LT.LOSS`` for a dense head, with all keys that it depends on checked.

    A dense head has one sigmoid output a class and no background output: a loss of another form
    cannot be its loss.

    Raises:
        ConfigError: the value, what is accepted and the key.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if cfg.MODEL.MASK_ON:
        raise ConfigError(f"MODEL.MASK_ON is True, but {name} detects boxes only: set it False")
    if cfg.MODEL.LT.CLASSIFIER.NAME not in ("", "linear"):
        raise ConfigError(
            f"MODEL.LT.CLASSIFIER.NAME is {cfg.MODEL.LT.CLASSIFIER.NAME!r}; {name} classifies by "
            "a convolution: accepted are linear and ''"
        )
    for key, (default, ours) in _KEYS_WITHOUT_EFFECT.items():
        if cfg.MODEL.RETINANET[key] != default:
            raise ConfigError(
                f"MODEL.RETINANET.{key} is {cfg.MODEL.RETINANET[key]}, but {name} takes this from "
                f"{ours}: leave it at {default}"
            )
    if cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE not in BOX_LOSSES:
        raise ConfigError(
            f"MODEL.RETINANET.BBOX_REG_LOSS_TYPE is {cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE!r}; "
            f"accepted are {', '.join(BOX_LOSSES)}"
        )
    if cfg.MODEL.LT.DENSE.TOPK < 0:
        raise ConfigError(
            f"MODEL.LT.DENSE.TOPK is {cfg.MODEL.LT.DENSE.TOPK}; accepted are a number of "
            "candidates and 0 (all that the levels give)"
        )
    normalizer_from_config(cfg)
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    loss = loss_from_config(cfg, num_classes=num_classes, has_background=True)
    if not _one_output_a_class(loss):
        raise ConfigError(
            f"MODEL.LT.LOSS.NAME is {cfg.MODEL.LT.LOSS.NAME!r} with {loss.num_logits} outputs for "
            f"{num_classes} classes; {name} has one sigmoid output a class. Accepted are "
            f"{', '.join(_dense_losses())} (FocalLoss in its sigmoid form)"
        )
    return loss


def _one_output_a_class(loss: LongTailLoss) -> bool:
    """Whether `loss`, built with a background, has C one-vs-all outputs."""
    return loss.num_logits == loss.num_classes and not loss.needs_features


def _dense_losses() -> list[str]:
    """Names of the losses that fit a dense head."""
    names = []
    for name in LOSS_REGISTRY:
        loss = build_loss(name, num_classes=2, has_background=True, class_counts=[1, 1])
        if _one_output_a_class(loss):
            names.append(name)
    return names


def normalizer_from_config(cfg) -> DenseNormalizer:
    """Of ``MODEL.LT.DENSE``.

    Raises:
        ConfigError: an unknown kind.
    """
    node = cfg.MODEL.LT.DENSE
    try:
        return DenseNormalizer(node.NORMALIZER, node.EMPTY_BATCH)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def start_at_prior(conv: nn.Conv2d, loss: LongTailLoss, cfg) -> None:
    """Initial weights and bias of a classification convolution, by ``MODEL.LT.CLASSIFIER``.

    Raises:
        ConfigError: a prior outside of [0, 1) other than -1.
    """
    node = cfg.MODEL.LT.CLASSIFIER
    if node.PRIOR_PROB != -1 and not 0 <= node.PRIOR_PROB < 1:
        raise ConfigError(
            f"MODEL.LT.CLASSIFIER.PRIOR_PROB is {node.PRIOR_PROB}; accepted are -1 (what the loss "
            "asks for), 0 (none) and probabilities below 1"
        )
    prior = loss.prior_prob if node.PRIOR_PROB == -1 else node.PRIOR_PROB
    nn.init.normal_(conv.weight, std=node.INIT_STD)
    nn.init.constant_(conv.bias, prior_bias(prior) if prior else 0.0)


def dense_arguments(cfg, loss: LongTailLoss, head: nn.Module) -> dict:
    """Arguments of :class:`LongTailDense` from `cfg`; `head` starts at the loss's prior."""
    start_at_prior(head.cls_score, loss, cfg)
    node = cfg.MODEL.LT.DENSE
    return {
        "head": head,
        "loss": loss,
        "normalizer": normalizer_from_config(cfg),
        "federated": federated_from_config(cfg, num_classes=loss.num_classes),
        "max_candidates": node.TOPK,
        "clip_boxes": node.CLIP_BEFORE_NMS,
        "box_weight": node.BOX_WEIGHT,
        "box_weight_by_iou": node.BOX_WEIGHT_BY_IOU,
        "calibration": calibration_from_config(cfg, loss),
    }


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) with boxes (..., 4), which broadcast; x0, y0, x1, y1.

    Returns:
        (...) in [0, 1]; 0 where the union is empty.
    """
    overlap = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    overlap = overlap.clamp(min=0).prod(dim=-1)
    areas = [(x[..., 2:] - x[..., :2]).clamp(min=0).prod(dim=-1) for x in (a, b)]
    union = areas[0] + areas[1] - overlap
    return torch.where(union > 0, overlap / union.clamp(min=1e-12), 0)


def federated_rows(federated: nn.Module, labels: Tensor, verified: Tensor | None) -> Tensor:
    """The class mask of dense rows.

    Args:
        federated: see ``lt_det.losses.federated``.
        labels: (B, K) int64 labels of the anchors.
        verified: (B, C) bool, the classes verified in each image; None if not needed.

    Returns:
        Bool (C,), or (B*K, C) where it differs between rows: a class that is not annotated
        exhaustively takes part in its own rows alone. That is a quarter of the bytes of the
        logits; it is filled image by image.
    """
    if verified is None:
        return federated(labels.flatten())
    batch, rows = labels.shape
    mask = torch.empty(batch, rows, verified.shape[1], dtype=torch.bool, device=labels.device)
    for own, label, classes in zip(mask, labels, verified, strict=True):
        own.copy_(federated(label, classes.expand(rows, -1)))
    return mask.flatten(0, 1)


@dataclass
class Positives:
    """The positive anchors of a batch.

    Attributes:
        rows: (P,) int64, place among the B*K rows.
        anchors, boxes: (P, 4), the anchor and the object it is to find.
        deltas: (P, D) predicted, with a graph, float32.
        predicted: (P, 4) the decoded `deltas`, with a graph.
        iou: (P,) of the predicted box with its object, without a graph.
    """

    rows: Tensor
    anchors: Tensor
    boxes: Tensor
    deltas: Tensor
    predicted: Tensor
    iou: Tensor


class LongTailDense:
    """What our dense detectors have in common; goes before a dense detector of Detectron2.

    B images, K anchors an image on all levels, A on a cell, C classes. Anchors are labelled 0..C-1,
    C = background, -1 = ignored. All losses are divided by the same normaliser, but for a box loss
    that is weighted by IoU.

    Args:
        loss: built with ``has_background=True``; C outputs, scores by sigmoid.
        normalizer: see :class:`~lt_det.losses.dense_normalizer.DenseNormalizer`.
        federated: makes the loss's class mask from labels and verified classes, see
            ``lt_det.losses.federated``; None = no mask.
        max_candidates: pairs of anchor and class that go into non-maximum suppression, of all
            levels together; 0 = as many as the levels give (``test_topk_candidates`` each).
        clip_boxes: clip boxes to the image, and drop those outside of it, before non-maximum
            suppression; False: after it, as Detectron2 does.
        box_weight: factor on the box regression loss.
        box_weight_by_iou: weight the box loss of a positive by the IoU of its predicted box, and
            divide by the sum of these weights: ``max(1, sum over ranks) / W`` with W ranks.
        calibration: of the class logits at inference; None = none.
        **kwargs: arguments of Detectron2's detector. Those of its focal loss have no effect.
    """

    score_power = 1.0
    """Exponent on the product of class score and quality."""

    def __init__(
        self,
        *,
        loss: LongTailLoss,
        normalizer: DenseNormalizer,
        federated: nn.Module | None = None,
        max_candidates: int = 0,
        clip_boxes: bool = False,
        box_weight: float = 1.0,
        box_weight_by_iou: bool = False,
        calibration: CountCalibration | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.cls_loss, self.normalizer, self.federated = loss, normalizer, federated
        self.max_candidates, self.clip_boxes = max_candidates, clip_boxes
        self.box_weight, self.box_weight_by_iou = box_weight, box_weight_by_iou
        self.calibration = calibration

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Translate `cfg`; see the class for the arguments.

        Raises:
            ConfigError: see :func:`dense_loss_from_config`.
        """
        loss = dense_loss_from_config(cfg)
        ret = super().from_config(cfg)
        return ret | dense_arguments(cfg, loss, ret["head"])

    def forward(self, batched_inputs: list[dict]):
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: "image" (3, H, W); in training "instances" with ``gt_boxes`` and
                ``gt_classes`` int64 in 0..C-1; otherwise "height" and "width" of the result, by
                default those of the image.

        Returns:
            {name: scalar}; or {"instances": ...} with ``pred_boxes``, ``scores`` and
            ``pred_classes`` for each image.

        Raises:
            DataError: a training image without annotations.
        """
        if self.training:
            targets = [_instances(x).to(self.device) for x in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        outputs = self.head(features)
        anchors = self.anchor_generator(features)
        if self.training:
            self._visualize(batched_inputs, anchors, outputs, images.image_sizes)
            return self.training_losses(anchors, outputs, targets)
        found = self.detections(anchors, outputs, images.image_sizes)
        return [
            {"instances": detector_postprocess(r, x.get("height", s[0]), x.get("width", s[1]))}
            for r, x, s in zip(found, batched_inputs, images.image_sizes, strict=True)
        ]

    def training_losses(self, anchors: list[Boxes], outputs, targets: list[Instances]):
        """{"loss_cls" and further terms of the loss, "loss_box_reg", further terms of the head}.

        Args:
            anchors: one for each level.
            outputs: of the head, lists of (B, A*., H_l, W_l): logits, deltas, ...
            targets: one for each image.
        """
        labels, boxes = (torch.stack(x) for x in self.label_anchors(anchors, targets))
        is_positive = (labels >= 0) & (labels < self.num_classes)
        num_positives = is_positive.sum()
        normalizer = self.normalizer(num_positives)
        self._log(num_positives, len(targets))
        positives = self._positives(anchors, outputs[1], boxes, is_positive)
        quality = None
        if self.cls_loss.accepts_quality:
            quality = normalizer.new_zeros(labels.numel())
            quality[positives.rows] = positives.iou
        terms = self.cls_loss(
            dense_rows(outputs[0], self.num_classes),
            labels.flatten(),
            class_mask=self._class_mask(labels, targets),
            normalizer=normalizer,
            quality=quality,
        )
        terms["loss_box_reg"] = self._box_term(positives, normalizer) * self.box_weight
        return terms | self.further_losses(outputs, positives, normalizer)

    def _box_term(self, positives: Positives, normalizer: Tensor) -> Tensor:
        losses = self.box_losses(positives)
        if not self.box_weight_by_iou:
            return losses.sum() / normalizer
        total = sum_over_ranks(positives.iou.sum()).clamp(min=1)
        return (losses * positives.iou).sum() / (total / world_size())

    def box_losses(self, positives: Positives) -> Tensor:
        """(P,) by ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE``, as in Detectron2."""
        if self.box_reg_loss_type == "giou":
            return giou_loss(positives.predicted, positives.boxes)
        wanted = self.box2box_transform.get_deltas(positives.anchors, positives.boxes)
        return smooth_l1_loss(positives.deltas, wanted, beta=self.smooth_l1_beta).sum(dim=1)

    def further_losses(self, outputs, positives: Positives, normalizer: Tensor) -> dict:
        """Losses of further outputs of the head; none."""
        return {}

    @torch.no_grad()
    def detections(self, anchors: list[Boxes], outputs, image_sizes) -> list[Instances]:
        """Detections of each image.

        The ``test_topk_candidates`` best pairs of anchor and class of each level, the
        ``max_candidates`` best of these, class-wise non-maximum suppression. A head with a quality
        output has its logits overwritten.
        """
        return [self._detect_image(k, anchors, outputs, size) for k, size in enumerate(image_sizes)]

    def _detect_image(self, k: int, anchors, outputs, size) -> Instances:
        qualities = outputs[2] if len(outputs) > 2 else [None] * len(anchors)
        levels = [
            level_candidates(
                logits[k] if self.calibration is None else self.calibration.maps(logits[k]),
                deltas[k],
                boxes.tensor,
                None if quality is None else quality[k],
                num_classes=self.num_classes,
                topk=self.test_topk_candidates,
                threshold=self.test_score_thresh ** (1 / self.score_power),
            )
            for logits, deltas, quality, boxes in zip(
                outputs[0], outputs[1], qualities, anchors, strict=True
            )
        ]
        found = detect(
            levels,
            self.box2box_transform,
            size,
            max_candidates=self.max_candidates,
            clip=self.clip_boxes,
            nms_threshold=self.test_nms_thresh,
            max_detections=self.max_detections_per_image,
        )
        found.scores = found.scores**self.score_power
        return found

    def _positives(self, anchors, deltas, boxes: Tensor, is_positive: Tensor) -> Positives:
        rows = is_positive.flatten().nonzero()[:, 0]
        anchors = Boxes.cat(anchors).tensor
        own = anchors[rows % len(anchors)]
        # As many columns as a box has sides; decoded in float32 whatever the head computes in.
        deltas = dense_rows(deltas, 4)[rows].float()
        predicted = self.box2box_transform.apply_deltas(deltas, own)
        boxes = boxes.flatten(0, 1)[rows]
        return Positives(rows, own, boxes, deltas, predicted, paired_iou(predicted.detach(), boxes))

    def _class_mask(self, labels: Tensor, targets: list[Instances]) -> Tensor | None:
        """Bool (B*K, C) or (C,), or None."""
        if self.federated is None:
            return None
        verified = None
        if self.federated.needs_verified:
            verified = torch.stack([self._verified(x) for x in targets])
        return federated_rows(self.federated, labels, verified)

    def _verified(self, target: Instances) -> Tensor:
        """(C,) bool; all True where the image has no class lists."""
        if target.has("image_classes"):
            return verified_classes(*target.image_classes.lists, self.num_classes)
        return torch.ones(self.num_classes, dtype=torch.bool, device=self.device)

    def _visualize(self, batched_inputs, anchors, outputs, image_sizes) -> None:
        """Objects and detections in the event storage, every ``VIS_PERIOD`` iterations."""
        period = getattr(self, "vis_period", 0)  # Detectron2's FCOS has none
        if period <= 0 or get_event_storage().iter % period:
            return
        # The detections of a head with a quality output are written over its logits.
        copies = [[x.detach().clone() for x in levels] for levels in outputs]
        self.visualize_training(batched_inputs, self.detections(anchors, copies, image_sizes))

    def _log(self, num_positives: Tensor, num_images: int) -> None:
        storage = get_event_storage()
        if (storage.iter + 1) % _LOG_PERIOD == 0:
            storage.put_scalar("num_pos_anchors", num_positives.item() / num_images)


def _instances(x: dict) -> Instances:
    if "instances" not in x:
        name = x.get("file_name", "a training image")
        raise DataError(f'{name} comes without annotations ("instances"); see DATASETS.TRAIN')
    return x["instances"]


@META_ARCH_REGISTRY.register()
class LongTailRetinaNet(LongTailDense, RetinaNet):
    """Detectron2's ``RetinaNet`` with the loss of ``MODEL.LT.LOSS``.

    Anchors, matching, head, box regression and its loss are Detectron2's. The bias of the
    classification convolution starts at the loss's prior (``MODEL.LT.CLASSIFIER.PRIOR_PROB``),
    and ``MODEL.RETINANET.PRIOR_PROB`` has no effect.

    Deviations: the normaliser, see :class:`~lt_det.losses.dense_normalizer.DenseNormalizer`;
    at most ``MODEL.LT.DENSE.TOPK`` candidates in non-maximum suppression.

    Args:
        **kwargs: of :class:`LongTailDense` and Detectron2's ``RetinaNet``.
    """

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
