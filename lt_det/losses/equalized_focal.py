"""Equalized focal loss (EFL) and its quality form (EQFL)."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_det.losses.base import LongTailLoss, LossInput
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.focal import alpha_weights, weighted_sigmoid_focal
from lt_det.losses.grad_stats import GradStats
from lt_det.losses.one_pass import Sums, row_blocks, rows_of
from lt_det.losses.params import check_at_least, check_at_most, check_positive
from lt_det.losses.sigmoid_bce import one_vs_all_columns, one_vs_all_scores, softplus


def focusing_factors(ratio: Tensor, *, gamma: float, scale_factor: float) -> tuple[Tensor, Tensor]:
    """Exponent and weight of each class from the gradient ratio.

    ``gamma_j = gamma + scale_factor (1 - min(max(g_j, 0), 1))``, ``omega_j = gamma_j / gamma``.

    Args:
        ratio: (C,) accumulated positive over negative gradient, g.
        gamma: exponent of a balanced class.
        scale_factor: how much the exponent of a class without positives is larger.

    Returns:
        gamma_j (C,) and omega_j (C,), of the ratio's dtype.
    """
    exponent = gamma + scale_factor * (1 - ratio.clamp(0, 1))
    return exponent, exponent / gamma


class _EqualizedFocal(LongTailLoss):
    """What EFL and EQFL have in common."""

    prior_prob = 0.001

    def __init__(self, *, gamma: float = 2.0, scale_factor: float = 8.0, **kwargs):
        super().__init__(**kwargs)
        check_positive(gamma=gamma)
        check_at_least(0, scale_factor=scale_factor)
        self.gamma, self.scale_factor = gamma, scale_factor
        self.stats = GradStats(self.num_classes, kwargs.get("class_counts"), passes="mean")

    def factors(self) -> tuple[Tensor, Tensor]:
        """(C,) float64 exponents and weights of the classes, from the steps so far."""
        ratio = self.stats.ratio()
        # Until any class has received gradient the ratio is 1, which is plain focal loss.
        started = (self.stats.pos + self.stats.neg).sum() > 0
        ratio = torch.where(started, ratio, torch.ones_like(ratio))
        return focusing_factors(ratio, gamma=self.gamma, scale_factor=self.scale_factor)

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """(M, C) sigmoid; with background a last column of zeros."""
        return one_vs_all_scores(logits, self.has_background)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        own = f", gamma={self.gamma}, scale_factor={self.scale_factor}"
        return super().extra_repr() + own

    def _sums(self, x: LossInput, positive: float, negative: float) -> Sums:
        exponent, weight = (f.to(x.logits.dtype) for f in self.factors())
        return weighted_sigmoid_focal(
            x.logits,
            one_vs_all_columns(x.targets, self.num_classes),
            gamma=exponent,
            pos_weight=weight * positive,
            neg_weight=weight * negative,
            row_weight=x.weight,
            mask=x.class_mask,
            quality=x.quality,
        )

    def _finish(self, sums: Sums, normalizer: Tensor) -> dict[str, Tensor]:
        if self.training and torch.is_grad_enabled():
            self.stats.update(sums.pos / normalizer, sums.neg / normalizer)
        return {"loss_cls": sums.loss / normalizer}


@LOSS_REGISTRY.register()
class EFL(_EqualizedFocal):
    """Equalized focal loss over C one-vs-all outputs; a background row is all zeros.

    ``L = (1/normalizer) sum_i weight_i sum_j alpha_t omega_j (1 - p_t)^gamma_j (-log p_t)``,
    p_t = p and alpha_t = alpha for the row's class, p_t = 1 - p and alpha_t = 1 - alpha
    elsewhere; gamma_j and omega_j from :func:`focusing_factors`, constants in the gradient. The
    ratio ``g_j = P_j / (Q_j + 1e-10)`` comes from the steps before this one: the sums over
    ranks of ``|dL/dz_ij|`` over positives and over negatives, **with** weight, alpha, omega and
    1/normalizer, as released. In the first step the ratio is 1: plain focal loss.

    Divided by the number of rows that are not ignored unless ``normalizer`` is given. The
    released dense heads divide by the positives over all ranks, at least 1, over the number of
    ranks; a dense head must hand that number in. A constant factor on the normaliser does not
    change the ratio, one that differs between steps weighs the steps.

    Source: Li et al., "Equalized Focal Loss for Dense Long-Tailed Object Detection", CVPR 2022,
    and ModelTC/United-Perception, 52aaeb9. The gradient is the closed form in
    :func:`~lt_det.losses.focal.weighted_sigmoid_focal`. Deviations:

    - powers and logarithms from log-sigmoid: right for every finite logit; the release gives
      inf and NaN in float32 once a negative's logit reaches 17.
    - no hooks: nothing depends on the order or number of backward calls, and the loss scale of
      mixed precision does not enter the sums. Rows come from ``lt_det.losses.layout``, with the
      channel order of the head; the release reads it wrongly for more than one anchor.
    - labels are 0..C-1 with background C; without ``normalizer`` the mean over rows, in the
      release the sum.
    - weights and masks work and count in the sums; updates in training with gradients only.
    - a first step without any row leaves the ratio at 1; in the release it falls to 0.

    Args:
        gamma, scale_factor: see :func:`focusing_factors`; released 2 and 8 (4 for YOLOX).
        alpha: weight of positives, 1 - alpha of negatives; negative = both weigh 1.
        **kwargs: see :class:`~lt_det.losses.base.LongTailLoss`.

    Raises:
        ValueError: see :class:`~lt_det.losses.base.LongTailLoss`; gamma not above 0,
            scale_factor below 0, alpha above 1.
    """

    def __init__(self, *, alpha: float = 0.25, **kwargs):
        super().__init__(**kwargs)
        check_at_most(1, alpha=alpha)
        self.alpha = alpha

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}; updates ``stats``."""
        return self._finish(self._sums(x, *alpha_weights(self.alpha)), x.normalizer)


@LOSS_REGISTRY.register()
class EQFL(_EqualizedFocal):
    """Equalized quality focal loss: EFL whose positives have a quality target.

    ``L = (1/normalizer) sum_i weight_i sum_j omega_j F_ij``; in the column of the row's class
    ``F = |q_i - p|^gamma_j BCE(p, q_i)``, elsewhere ``F = p^gamma_j (-log(1 - p))``. No alpha.
    ``quality`` (M,), q, is an argument of the call (overlap of the predicted box with the
    object); without it q = 1. Ratio, sums (split by the hard label), normaliser, source and
    deviations are those of :class:`EFL`.

    Args:
        gamma, scale_factor: see :func:`focusing_factors`; released configurations use 4.
        dynamic_normalizer: divide by ``max(1, (sum_pos (1-p)^gamma + sum_neg p^gamma) / 2)``
            over all entries of this rank instead of by the normaliser.

    Raises:
        ValueError: see :class:`~lt_det.losses.base.LongTailLoss`; gamma not above 0,
            scale_factor below 0.
    """

    accepts_quality = True

    def __init__(self, *, dynamic_normalizer: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.dynamic_normalizer = dynamic_normalizer

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}; updates ``stats``."""
        sums = self._sums(x, 1.0, 1.0)
        normalizer = x.normalizer
        if self.dynamic_normalizer:
            columns = one_vs_all_columns(x.targets, self.num_classes)
            normalizer = dynamic_normalizer(x.logits, columns, self.gamma, x.weight, x.class_mask)
        return self._finish(sums, normalizer)


@torch.no_grad()
def dynamic_normalizer(
    logits: Tensor,
    columns: Tensor,
    gamma: float,
    row_weight: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """``max(1, (1/2) sum_i a_i sum_j m_ij (1 - p_t)^gamma)``, how much there is to learn.

    Args:
        logits: (M, C).
        columns: (M,) int64, the positive column of a row; -1 = none.
        gamma: exponent.
        row_weight: (M,) a.
        mask: (M, C) or (1, C) bool m, or None.

    Returns:
        Scalar without gradient, of the logits' dtype.
    """
    total = logits.new_zeros((), dtype=torch.float64)
    for rows in row_blocks(logits):
        own, has_own = columns[rows].clamp(min=0)[:, None], columns[rows] >= 0
        z = logits[rows].clone()
        z.scatter_(1, own, torch.where(has_own[:, None], -z.gather(1, own), z.gather(1, own)))
        power = (z - softplus(z)).mul_(gamma).exp_()
        if mask is not None:
            power *= rows_of(mask, rows)
        total += torch.dot(power.sum(dim=1), row_weight[rows])
    return (total / 2).clamp(min=1).to(logits.dtype)
