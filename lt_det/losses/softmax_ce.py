"""Softmax cross-entropy, the baseline."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_det.losses.base import IGNORED, LongTailLoss, LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY


def softmax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row.

    Args:
        logits: (M, L).
        targets: (M,) int64 column, -1 = ignored; or (M, L) soft labels.

    Returns:
        (M,), 0 on ignored rows.
    """
    if targets.dim() == 2:
        # A class that is masked out (-inf) and has no label mass contributes 0, not NaN.
        log_p = F.log_softmax(logits, dim=1)
        return -torch.where(targets > 0, targets * log_p, torch.zeros_like(log_p)).sum(dim=1)
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)


def mask_softmax(x: LossInput, num_classes: int) -> tuple[Tensor, Tensor]:
    """Take masked classes out of the denominator.

    Returns:
        (M, L) logits with -inf at masked classes, and targets in which a row whose own class is
        masked is ignored (hard labels) or has no mass there (soft labels).
    """
    if x.class_mask is None:
        return x.logits, x.targets
    mask = x.class_mask.expand(len(x.logits), -1)
    logits = x.logits.clone()
    logits[:, :num_classes] = logits[:, :num_classes].masked_fill(~mask, float("-inf"))
    if x.soft:
        return logits, x.targets * mask
    return logits, ignore_masked_targets(x.targets, x.class_mask, num_classes)


def ignore_masked_targets(targets: Tensor, class_mask: Tensor | None, num_classes: int) -> Tensor:
    """(M,) hard targets in which a row whose own class is masked is ignored."""
    if class_mask is None:
        return targets
    own = targets.clamp(0, num_classes - 1)[:, None]
    own_mask = class_mask.expand(len(targets), -1).gather(1, own)[:, 0]
    hidden = (targets >= 0) & (targets < num_classes) & ~own_mask
    return targets.masked_fill(hidden, IGNORED)


@LOSS_REGISTRY.register()
class SoftmaxCE(LongTailLoss):
    """Softmax cross-entropy over C classes, and the background where there is one.

    ``L = (1/normalizer) sum_i weight_i (-log softmax(z_i)[y_i])``

    Divided by the number of rows that are not ignored unless ``normalizer`` is given. Without
    weights and masks this is ``torch.nn.functional.cross_entropy``. Scores: softmax.

    Raises:
        ValueError: see :class:`~lt_det.losses.base.LongTailLoss`.
    """

    accepts_soft_labels = True

    @property
    def num_logits(self) -> int:
        """C, or C+1 with the background last."""
        return self.num_classes + int(self.has_background)

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        logits, targets = mask_softmax(x, self.num_classes)
        if x.soft and self.has_background:
            targets = F.pad(targets, (0, 1))
        rows = softmax_cross_entropy(logits, targets)
        return {"loss_cls": (rows * x.weight).sum() / x.normalizer}

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """(M, L) softmax."""
        return F.softmax(widen(logits), dim=1)
