"""ATSS: the dense detector that equalized focal loss was published with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from lt_det.errors import ConfigError
from lt_det.losses.layout import dense_rows
from lt_det.modeling.dense import LongTailDense, Positives, dense_arguments, paired_iou

# Pairs of object and anchor whose distances are held at a time, 16 MB each in float32.
_PAIRS = 2**22
# Pixels that an anchor's centre has to be inside of the box, as in the authors' code.
_INSIDE = 0.01


def atss_assign(
    anchors: Tensor, level_sizes: Sequence[int], boxes: Tensor, topk: int
) -> tuple[Tensor, Tensor]:
    """Adaptive training sample selection: which anchor is to find which object.

    Candidates of an object are the `topk` anchors of each level whose centres are nearest to its
    own. Those with an IoU of at least mean + standard deviation over its candidates, and with
    their centre inside of the object, are its positives. An anchor chosen by several objects
    takes the one it overlaps most; of equal ones the first.

    Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via
    Adaptive Training Sample Selection", CVPR 2020, algorithm 1, with the sample standard deviation
    (n - 1) of the authors' code. Deviation: `topk` counts anchors, whatever their number on a
    cell; there it is multiplied by that number.

    Args:
        anchors: (K, 4), level after level.
        level_sizes: anchors of each level; their sum is K.
        boxes: (G, 4) objects.
        topk: anchors of a level, at least 1.

    Returns:
        matched: (K,) int64, the object of an anchor; -1 = none.
        iou: (K,) IoU with that object, 0 where there is none.
    """
    matched = torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    best = anchors.new_zeros(len(anchors))
    if len(boxes) == 0:
        return matched, best
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    candidates = torch.cat(_nearest(centers, level_sizes, boxes, topk), dim=1)
    iou = paired_iou(boxes[:, None], anchors[candidates])
    spread = iou.std(dim=1, correction=min(1, candidates.shape[1] - 1))
    chosen = iou >= (iou.mean(dim=1) + spread)[:, None]
    centers = centers[candidates]
    sides = torch.cat([centers - boxes[:, None, :2], boxes[:, None, 2:] - centers], dim=2)
    chosen &= sides.amin(dim=2) > _INSIDE

    flat = candidates.flatten()
    iou = torch.where(chosen, iou, -1).flatten()
    best = torch.full_like(best, -1).scatter_reduce(0, flat, iou, "amax")
    # Of the pairs that reach the anchor's best overlap, the first object.
    objects = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(candidates)
    wins = chosen.flatten() & (iou == best[flat])
    first = torch.where(wins, objects.flatten(), len(boxes))
    matched = torch.full_like(matched, len(boxes)).scatter_reduce(0, flat, first, "amin")
    found = matched < len(boxes)
    return torch.where(found, matched, -1), torch.where(found, best, 0)


def _nearest(centers: Tensor, level_sizes, boxes: Tensor, topk: int) -> list[Tensor]:
    """Of each level, (G, <=topk) indices of the anchors nearest to each object."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    nearest, start = [], 0
    for size, own in zip(level_sizes, centers.split(list(level_sizes)), strict=True):
        parts = []
        for some in middle.split(max(1, _PAIRS // max(1, size))):
            # Squared, in the order of the distances.
            distance = (own[:, 0] - some[:, :1]).square_()
            distance += (own[:, 1] - some[:, 1:]).square_()
            parts.append(distance.topk(min(topk, size), dim=1, largest=False).indices)
        nearest.append(torch.cat(parts) + start)
        start += size
    return nearest


class ATSSHead(RetinaNetHead):
    """Detectron2's ``RetinaNetHead`` with a third output on the box tower: the IoU branch.

    Deviation from the ATSS authors' head: no learned scale of a level, since deltas are relative
    to anchors that grow with the level.

    Args:
        iou_branch: False leaves the branch out.
        **kwargs: of Detectron2's head.
    """

    @configurable
    def __init__(self, *, iou_branch: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.iou_pred = None
        if iou_branch:
            num_anchors = self.bbox_pred.out_channels // 4
            self.iou_pred = nn.Conv2d(self.bbox_pred.in_channels, num_anchors, 3, padding=1)
            nn.init.normal_(self.iou_pred.weight, std=0.01)
            nn.init.zeros_(self.iou_pred.bias)

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        """Translate `cfg`; see the class for the arguments."""
        ret = super().from_config(cfg, input_shape)
        return ret | {"iou_branch": cfg.MODEL.LT.DENSE.IOU_BRANCH}

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """Features of the levels to class logits, deltas and, with the branch, IoU logits.

        (B, A*C, H_l, W_l), (B, A*4, H_l, W_l) and (B, A, H_l, W_l).
        """
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        boxes = [self.bbox_subnet(x) for x in features]
        outputs = logits, [self.bbox_pred(x) for x in boxes]
        if self.iou_pred is None:
            return outputs
        return *outputs, [self.iou_pred(x) for x in boxes]


@META_ARCH_REGISTRY.register()
class LongTailATSS(LongTailDense, RetinaNet):
    """RetinaNet with ATSS assignment and an IoU branch, with the loss of ``MODEL.LT.LOSS``.

    The branch learns, on positives, the IoU of the predicted box with its object by binary
    cross-entropy; score = class score * IoU score. No anchor is ignored. The box loss is
    ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE``, in the recipes GIoU weighted by IoU
    (``MODEL.LT.DENSE.BOX_WEIGHT_BY_IOU``).

    Source: the "improved baseline" of EFL (Li et al., CVPR 2022) in ModelTC/United-Perception;
    what the recipes leave different is said in ``configs/base/lvis_atss_r50_fpn.yaml``.

    Args:
        topk: see :func:`atss_assign`.
        iou_weight: factor on the loss of the IoU branch.
        **kwargs: of :class:`~lt_det.modeling.dense.LongTailDense` and Detectron2's ``RetinaNet``.
    """

    @configurable
    def __init__(self, *, topk: int = 18, iou_weight: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.topk, self.iou_weight = topk, iou_weight

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Translate `cfg`; see the class for the arguments.

        Raises:
            ConfigError: a top-k below 1; see also
                :func:`~lt_det.modeling.dense.dense_loss_from_config`.
        """
        node = cfg.MODEL.LT.DENSE
        if node.ATSS_TOPK < 1:
            raise ConfigError(
                f"MODEL.LT.DENSE.ATSS_TOPK is {node.ATSS_TOPK}; it must be at least 1"
            )
        ret = super().from_config(cfg)
        shapes = ret["backbone"].output_shape()
        head = ATSSHead(cfg, [shapes[name] for name in ret["head_in_features"]])
        ret |= dense_arguments(cfg, ret["loss"], head)
        return ret | {"topk": node.ATSS_TOPK, "iou_weight": node.IOU_WEIGHT}

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], targets: list[Instances]):
        """As Detectron2's, by :func:`atss_assign`.

        Returns:
            (K,) labels and (K, 4) boxes of each image.
        """
        sizes = [len(level) for level in anchors]
        anchors = Boxes.cat(anchors).tensor
        labels, matched_boxes = [], []
        for target in targets:
            boxes, classes = target.gt_boxes.tensor, target.gt_classes
            matched, _ = atss_assign(anchors, sizes, boxes, self.topk)
            # A last entry for anchors without an object, index -1.
            classes = torch.cat([classes, classes.new_full((1,), self.num_classes)])
            boxes = torch.cat([boxes, boxes.new_zeros(1, 4)])
            labels.append(classes[matched])
            matched_boxes.append(boxes[matched])
        return labels, matched_boxes

    def further_losses(self, outputs, positives: Positives, normalizer: Tensor) -> dict:
        """{"loss_iou"} with the branch."""
        if len(outputs) < 3:
            return {}
        logits = dense_rows(outputs[2], 1)[positives.rows, 0].float()
        loss = F.binary_cross_entropy_with_logits(logits, positives.iou, reduction="sum")
        return {"loss_iou": loss * self.iou_weight / normalizer}
