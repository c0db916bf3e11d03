"""From the outputs of a dense head to detections, at 1203 classes without copies of the scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms

# Entries looked at in one go. torch.topk holds 16 bytes for each entry on a CPU; an accelerator
# prefers few large calls.
# The first block is held whole with its indices; the others leave little.
_BLOCK_CPU, _BLOCK, _FIRST_BLOCK = 2**20, 2**26, 2**20


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries without sorting or copying the rest.

    Blocks of `x` are looked through for entries above the k-th largest so far.

    Args:
        x: (n,) float.
        k: at least 1.

    Returns:
        Values (m,) in descending order and their int64 indices, m <= k. Entries that are NaN or
        -inf are left out. Among equal values at the border some are taken, the earlier blocks'
        first.
    """
    later = _BLOCK_CPU if x.device.type == "cpu" else _BLOCK
    borders = [0, *range(min(_FIRST_BLOCK, later), len(x), later), len(x)]
    values, indices = x.new_empty(0), torch.empty(0, dtype=torch.int64, device=x.device)
    floor = x.new_tensor(-float("inf"))
    for start, end in itertools.pairwise(borders):
        part = x[start:end]
        found = (part > floor).nonzero()[:, 0]
        values = torch.cat([values, part[found]])
        indices = torch.cat([indices, found.add_(start)])
        if len(values) > k:
            values, order = values.topk(k)
            indices, floor = indices[order], values[-1]
    values, order = values.sort(descending=True)
    return values, indices[order]


@dataclass
class Candidates:
    """The best entries of one level of one image.

    Attributes:
        scores: (m,) in (0, 1].
        classes: (m,) int64.
        anchors: (m, 4) boxes.
        deltas: (m, D) box regression.
    """

    scores: Tensor
    classes: Tensor
    anchors: Tensor
    deltas: Tensor


def level_candidates(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    quality: Tensor | None = None,
    *,
    num_classes: int,
    topk: int,
    threshold: float,
) -> Candidates:
    """The best (anchor, class) pairs of a level: the `topk` highest scores above `threshold`.

    Without quality the pairs are ranked by logit, and no score but theirs is computed.

    Args:
        logits: (A*C, H, W), channel ``a * C + c``. With `quality` it is overwritten by the
            scores if it is float32: no second tensor of that size. Half precision is widened,
            since its scores are too coarse to rank by.
        deltas: (A*D, H, W).
        anchors: (H*W*A, 4), ordered h, w, a.
        quality: (A, H, W) logits of a second probability of each anchor, or None. The score is
            the product of both.
        num_classes: C.
        topk: at least 1.
        threshold: 0 keeps all.
    """
    logits = logits.contiguous()
    _, height, width = logits.shape
    num_anchors = logits.shape[0] // num_classes
    if quality is None:
        best, index = largest(logits.reshape(-1), topk)
        scores = best.float().sigmoid()
    else:
        logits = logits.float()
        pairs = logits.view(num_anchors, num_classes, height, width)
        pairs.sigmoid_().mul_(quality.float().sigmoid()[:, None])
        scores, index = largest(logits.reshape(-1), topk)
    kept = scores > threshold
    scores, index = scores[kept], index[kept]
    cell, channel = index % (height * width), index // (height * width)
    anchor, classes = channel // num_classes, channel % num_classes
    deltas = deltas.reshape(num_anchors, -1, height * width)[anchor, :, cell]
    return Candidates(scores, classes, anchors[cell * num_anchors + anchor], deltas)


def detect(
    levels: Sequence[Candidates],
    box2box_transform,
    image_size: tuple[int, int],
    *,
    max_candidates: int,
    clip: bool = False,
    nms_threshold: float,
    max_detections: int,
) -> Instances:
    """Class-wise non-maximum suppression over the candidates of all levels of an image.

    Args:
        levels: of :func:`level_candidates`.
        box2box_transform: decodes the deltas.
        image_size: (height, width).
        max_candidates: how many of all levels together go into the suppression; 0 = all.
        clip: clip the boxes to the image first and drop those outside of it.
        nms_threshold: IoU above which the lower score goes.
        max_detections: kept afterwards.

    Returns:
        ``pred_boxes``, ``scores`` in descending order, ``pred_classes``.
    """
    scores = torch.cat([c.scores for c in levels])
    best = scores.sort(descending=True, stable=True).indices[: max_candidates or len(scores)]
    scores = scores[best]
    classes = torch.cat([c.classes for c in levels])[best]
    anchors = torch.cat([c.anchors for c in levels])[best]
    deltas = torch.cat([c.deltas for c in levels])[best]
    boxes = Boxes(box2box_transform.apply_deltas(deltas.float(), anchors))
    found = Instances(image_size, pred_boxes=boxes, scores=scores, pred_classes=classes)
    if clip:
        boxes.clip(image_size)
        found = found[boxes.nonempty()]
    # torchvision moves the boxes of each class apart. At 1203 classes and boxes beyond the image
    # float32 would be left with steps of several pixels.
    kept = batched_nms(
        found.pred_boxes.tensor.double(), found.scores.double(), found.pred_classes, nms_threshold
    )
    return found[kept[:max_detections]]
