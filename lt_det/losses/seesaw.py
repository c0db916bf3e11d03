"""Seesaw loss: class counts and current mistakes rescale the negatives of each row."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_det.losses.base import LongTailLoss, LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.grad_stats import Accumulators
from lt_det.losses.one_pass import (
    Sums,
    cross_entropy_block_,
    mask_classes_,
    one_pass,
    rows_of,
)
from lt_det.losses.params import check_at_least, check_at_most, check_positive


def seesaw_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor,
    *,
    p: float,
    q: float,
    eps: float,
    row_weight: Tensor,
    mask: Tensor | None = None,
) -> Sums:
    """Seesaw loss of the class columns, and plain cross-entropy of the objectness pair.

    Rows of a class y: ``CE(z~, y)`` with ``z~_k = z_k + log S_k``, k != y,
    ``S_k = min(1, n_k / n_y)^p max(1, s_k / max(s_y, eps))^q``, s = softmax(z) over the
    classes, n at least 1. S is a constant in the gradient. All rows: cross-entropy of
    ``(object, background)``, the two last columns where there are more than C.

    One pass over blocks of rows; no other (M, L) tensor than the gradient.

    Args:
        logits: (M, C) or (M, C+2), float32 or float64.
        targets: (M,) int64, 0..C-1, C = background, -1 = ignored.
        counts: (C,) n, float64.
        p: exponent of the counts (mitigation), at least 0.
        q: exponent of the mistakes (compensation), at least 0.
        eps: floor of the own probability.
        row_weight: (M,) a, 0 on ignored rows.
        mask: (M, C) or (1, C) bool, False = not in the denominator, or None.

    Returns:
        ``losses``: the sum over rows of the class part and, with C+2 columns, of the
        objectness part.
    """
    num_classes = len(counts)
    with_background = logits.shape[1] > num_classes
    log_counts = counts.clamp(min=1).log().to(logits.dtype)

    def block(z, rows, grad):
        out = torch.empty_like(z) if grad is None else grad
        labels, weight = targets[rows], row_weight[rows]
        own = labels.clamp(min=0, max=num_classes - 1)
        class_weight = weight * (labels < num_classes)
        classes = out[:, :num_classes]
        classes.copy_(z[:, :num_classes])
        keep = rows_of(mask, rows)
        if keep is not None:
            class_weight = mask_classes_(classes, keep, own, class_weight)
        _shift_(classes, own[:, None], log_counts, p, q, math.log(eps))
        loss, class_pos, class_neg = cross_entropy_block_(classes, own, class_weight)
        pos, neg = (F.pad(s, (0, z.shape[1] - num_classes)) for s in (class_pos, class_neg))
        if not with_background:
            return (loss,), pos, neg
        pair = out[:, num_classes:]
        pair.copy_(z[:, num_classes:])
        is_background = (labels == num_classes).long()
        objectness, pos[num_classes:], neg[num_classes:] = cross_entropy_block_(
            pair, is_background, weight
        )
        return (loss, objectness), pos, neg

    ends = (num_classes, num_classes + 2) if with_background else ()
    return one_pass(logits, block, group_ends=ends)


def _shift_(z, own, log_counts, p, q, log_eps):
    """Add log S to the (n, C) logits of a block."""
    own_logit = z.gather(1, own)
    shift = None
    if q > 0:
        top = z.amax(dim=1, keepdim=True)
        log_total = (z - top).exp_().sum(dim=1, keepdim=True).log_().add_(top)
        # log s_k - log max(s_y, eps), where positive
        own_log_prob = (own_logit - log_total).clamp_(min=log_eps)
        shift = (z - (log_total + own_log_prob)).clamp_(min=0).mul_(q)
    if p > 0:
        fewer = (log_counts - log_counts[own]).clamp_(max=0)
        shift = fewer.mul_(p) if shift is None else shift.add_(fewer, alpha=p)
    if shift is not None:
        z += shift
        z.scatter_(1, own, own_logit)


@LOSS_REGISTRY.register()
class Seesaw(LongTailLoss):
    """Seesaw loss, with an objectness pair where there is a background.

    Outputs: C classes; with background two more, (object, background). See
    :func:`seesaw_cross_entropy` for the formula. Terms: ``loss_cls``, over the rows of a class,
    and, with background, ``loss_objectness``, over all rows. Scores: ``softmax(classes)
    p_object``, and p_background last; without background the softmax.

    Both terms are divided by the same number, the rows that are not ignored unless
    ``normalizer`` is given, as where the original is given an `avg_factor` (its heads always
    do; it adds 1.2e-7 to it). Without one the original takes the mean of each term over its own
    rows.

    State: ``counts.samples`` (C,), with background (C+1,), rows of each label so far. The rows
    of the current step are added before its loss, as in the original; with gradient
    accumulation those of each pass are, before the loss of that pass. A row counts once
    whatever its weight; ignored rows and rows whose own class is masked do not count.

    Source: Wang et al., "Seesaw Loss for Long-Tailed Instance Segmentation", CVPR 2021, and
    mmdetection 3.3.0. Deviations: counts are summed over ranks (the original forgets to), in
    float64, in training with gradients only; ignored rows and masks work (the factors are then
    those among the classes that take part); C outputs without background.

    The original's "normalised" classifier is MODEL.LT.CLASSIFIER.NAME cosine, SCALE 20.

    Args:
        p: exponent of the mitigation factor; 0 = off.
        q: exponent of the compensation factor; 0 = off.
        eps: floor of the own probability in the compensation factor.
        **kwargs: see :class:`~lt_det.losses.base.LongTailLoss`.

    Raises:
        ValueError: see :class:`~lt_det.losses.base.LongTailLoss`; p or q below 0, eps outside
            of (0, 1].
    """

    # The probabilities in the compensation factor are constants in the gradient.
    exact_gradient_with = {"q": 0.0}
    weight_enters_statistics = False

    def __init__(self, *, p: float = 0.8, q: float = 2.0, eps: float = 1e-2, **kwargs):
        super().__init__(**kwargs)
        check_at_least(0, p=p, q=q)
        check_positive(eps=eps)
        check_at_most(1, eps=eps)
        self.p, self.q, self.eps = p, q, eps
        labels = self.num_classes + int(self.has_background)
        # The loss needs the rows of its own pass, over all ranks: nothing to hold back.
        self.counts = Accumulators({"samples": labels}, kwargs.get("class_counts"), passes="each")

    @property
    def num_logits(self) -> int:
        """C, or C+2 with (object, background) last."""
        return self.num_classes + 2 * int(self.has_background)

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar} and with background "loss_objectness"; updates ``counts``."""
        if self.training and torch.is_grad_enabled():
            self.counts.add(self._rows_of_each_label(x))
        sums = seesaw_cross_entropy(
            x.logits,
            x.targets,
            self.counts.samples[: self.num_classes],
            p=self.p,
            q=self.q,
            eps=self.eps,
            row_weight=x.weight,
            mask=x.class_mask,
        )
        names = ("loss_cls", "loss_objectness")
        return {name: loss / x.normalizer for name, loss in zip(names, sums.losses, strict=False)}

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """(M, C) softmax, or (M, C+1) ``softmax(classes) p_object`` and p_background."""
        logits = widen(logits)
        classes = F.softmax(logits[:, : self.num_classes], dim=1)
        if not self.has_background:
            return classes
        pair = F.softmax(logits[:, self.num_classes :], dim=1)
        return torch.cat([classes * pair[:, :1], pair[:, 1:]], dim=1)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + f", p={self.p}, q={self.q}, eps={self.eps}"

    def _rows_of_each_label(self, x: LossInput) -> Tensor:
        """(C,) or (C+1,) float64."""
        counted = x.targets >= 0
        if x.class_mask is not None:
            own = x.targets.clamp(0, self.num_classes - 1)[:, None]
            mine = x.class_mask.expand(len(own), -1).gather(1, own)[:, 0]
            counted = counted & (mine | (x.targets == self.num_classes))
        rows = torch.zeros_like(self.counts.samples)
        return rows.index_add_(0, x.targets.clamp(min=0), counted.to(rows.dtype))
