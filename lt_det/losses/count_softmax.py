"""Base of the softmax losses that know how frequent each class is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_det.losses.base import IGNORED, LongTailLoss, LossInput, widen
from lt_det.losses.counts import safe_counts, with_background
from lt_det.losses.sigmoid_bce import pad_mask
from lt_det.losses.softmax_ce import ignore_masked_targets
from lt_det.losses.softmax_kernel import SoftmaxTerms, shifted_cross_entropy


class CountSoftmaxLoss(LongTailLoss):
    """Softmax over C classes and the background, with a training count for each column.

    With ``has_background`` the background is one more class, whose count is
    ``background_count``. This is ours: the papers have no background.

    Args:
        num_classes: C.
        has_background: whether a target may be C.
        class_counts: (C,); required. A zero counts as one, with a warning.
        background_count: training examples of the background, None = as many as the largest
            class has. Sampled regions are background far more often than they are any class,
            so the background should sit at the head; its true number depends on the sampler of
            the regions and would stretch every log-count ramp.

    Raises:
        ValueError: no class counts; a background count without a background, or not positive;
            see :class:`~lt_det.losses.base.LongTailLoss`.
    """

    scale = 1.0
    """What the loss multiplies the classifier's output by, in training and for scores."""

    def __init__(
        self,
        *,
        num_classes: int,
        has_background: bool = False,
        class_counts: Tensor | None = None,
        background_count: float | None = None,
    ):
        super().__init__(
            num_classes=num_classes, has_background=has_background, class_counts=class_counts
        )
        name = type(self).__name__
        if class_counts is None:
            raise ValueError(
                f"{name} needs class_counts, the training examples of each of the {num_classes} "
                "classes: set MODEL.LT.CLASS_COUNTS, or train on a set of DATASETS.TRAIN, whose "
                "classes are counted"
            )
        counts = safe_counts(class_counts)
        if has_background:
            counts = with_background(counts, background_count)
        elif background_count is not None:
            raise ValueError(
                f"{name}: background_count={background_count} in MODEL.LT.LOSS.PARAMS, but this "
                "head has no background"
            )
        self.constant("counts", counts)

    @property
    def num_logits(self) -> int:
        """L: C, or C+1 with the background last."""
        return self.num_classes + int(self.has_background)

    def constant(self, name: str, value: Tensor) -> None:
        """Keep `value` as a buffer that follows the device and is not saved."""
        self.register_buffer(name, value, persistent=False)

    def cross_entropy(
        self, x: LossInput, terms: SoftmaxTerms, row_shift: Tensor | None = None
    ) -> Tensor:
        """Mean over rows of :func:`shifted_cross_entropy`, with weights, masks, ignored rows."""
        targets = ignore_masked_targets(x.targets, x.class_mask, self.num_classes)
        terms.mask = pad_mask(x.class_mask, self.num_logits)
        rows = shifted_cross_entropy(x.logits, targets, terms, row_shift)
        return (rows * x.weight).sum() / x.normalizer

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """(M, L) softmax of the classifier's output times the scale, nothing else."""
        logits = widen(logits)
        return F.softmax(logits if self.scale == 1 else self.scale * logits, dim=1)


def mean_rows(rows: Tensor, targets: Tensor, normalizer: Tensor | float | None = None) -> Tensor:
    """Sum of row losses over `normalizer`; None = the rows not ignored, at least 1."""
    if normalizer is None:
        normalizer = (targets != IGNORED).sum().clamp(min=1)
    return rows.sum() / normalizer


def of_targets(per_class: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """(M,) value of each row's class from (L,) values; an ignored row gets that of class 0."""
    return per_class.to(device=targets.device, dtype=dtype)[targets.clamp(min=0)]
