"""EQL v2 and Sigmoid-EQL: sigmoid losses re-weighted by the accumulated gradient ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_det.losses.base import LongTailLoss, LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.grad_stats import GradStats
from lt_det.losses.params import check_at_least, check_finite
from lt_det.losses.sigmoid_bce import (
    one_vs_all_columns,
    one_vs_all_scores,
    pad_mask,
    weighted_sigmoid_bce,
)


def equalization_weights(
    ratio: Tensor, *, gamma: float, mu: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """Weights of positives and negatives from the gradient ratio.

    ``f(g) = 1 / (1 + exp(-gamma (g - mu)))``, positives ``q = 1 + alpha (1 - f)``,
    negatives ``r = f``.

    Args:
        ratio: (C,) accumulated positive over negative gradient, g.
        gamma: slope of the mapping.
        mu: ratio at which a negative weighs one half.
        alpha: extra weight of the positives of a class with ratio 0.

    Returns:
        q (C,) in [1, 1 + alpha], r (C,) in [0, 1], of the ratio's dtype.
    """
    f = torch.sigmoid(gamma * (ratio - mu))
    return 1 + alpha * (1 - f), f


@LOSS_REGISTRY.register()
class SigmoidEQL(LongTailLoss):
    """Gradient-driven sigmoid equalization loss over C one-vs-all outputs.

    ``L = (1/normalizer) sum_i weight_i sum_j w_ij BCE(sigmoid(z_ij), y_ij)`` with
    ``w_ij = q_j`` for positives and ``r_j`` for negatives, see :func:`equalization_weights`.
    The ratio ``g_j = P_j / (Q_j + 1e-10)`` comes from the sums of all steps before this one:
    ``P_j`` of ``w_ij |p_ij - 1|`` over positives, ``Q_j`` of ``w_ij p_ij`` over negatives,
    background rows included, times the row weight, without the normaliser, over all ranks.
    Before the first step q = r = 1, which is plain binary cross-entropy.

    Divided by the number of rows that are not ignored unless ``normalizer`` is given.

    Source: Tan et al., "Equalization Loss v2", CVPR 2021, and its released code (repository
    tztztztztz/eqlv2, 907fad9). Sigmoid-EQL is its name in Tan et al., TPAMI 2023. Where the
    released code has a defect, the contract of this library wins; the deviations are:

    - ``weight``, ``normalizer`` and ``class_mask`` work, and count in P and Q; the release
      accepts weights and ignores them.
    - a target of -1 is an ignored row; in the release it becomes background.
    - P and Q are updated only in training mode with gradients enabled, in the release in every
      forward.
    - no rows give a zero and still take part in the sum over ranks; in the release NaN.
    - the all-reduce needs no process group; sums are float64.
    - a first step without any row leaves all weights at 1; in the release they would jump to
      those of ratio 0. As released, once any class has received gradient, a class that has
      received none has ratio 0.

    Args:
        gamma, mu, alpha: see :func:`equalization_weights`; released 12, 0.8, 4.
        **kwargs: see :class:`~lt_det.losses.base.LongTailLoss`.

    Raises:
        ValueError: see :class:`~lt_det.losses.base.LongTailLoss`; negative gamma or alpha,
            a mu that is not finite.
    """

    prior_prob = 0.001

    def __init__(self, *, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0, **kwargs):
        super().__init__(**kwargs)
        check_at_least(0, gamma=gamma, alpha=alpha)
        check_finite(mu=mu)
        self.gamma, self.mu, self.alpha = gamma, mu, alpha
        self.stats = GradStats(self.num_classes, kwargs.get("class_counts"))

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}; updates ``stats``."""
        pos_weight, neg_weight = self._weights(x.logits.dtype)
        sums = weighted_sigmoid_bce(
            x.logits,
            one_vs_all_columns(x.targets, self.num_logits),
            pos_weight=pos_weight,
            neg_weight=neg_weight,
            row_weight=x.weight,
            mask=pad_mask(x.class_mask, self.num_logits),
            divisor=x.normalizer,
        )
        if self.training and torch.is_grad_enabled():
            self.stats.update(sums.pos[: self.num_classes], sums.neg[: self.num_classes])
        return {"loss_cls": sums.loss}

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """(M, C) sigmoid; with background a last column of zeros."""
        return one_vs_all_scores(logits, self.has_background)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + f", gamma={self.gamma}, mu={self.mu}, alpha={self.alpha}"

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(L,) weights of positives and negatives; columns beyond C weigh 1."""
        q, r = equalization_weights(
            self.stats.ratio(), gamma=self.gamma, mu=self.mu, alpha=self.alpha
        )
        # Before anything is known every class weighs 1 (the release starts the ratio at 100).
        started = (self.stats.pos + self.stats.neg).sum() > 0
        ones = torch.ones_like(q)
        q, r = torch.where(started, q, ones), torch.where(started, r, ones)
        extra = ones.new_ones(self.num_logits - self.num_classes)
        return torch.cat([q, extra]).to(dtype), torch.cat([r, extra]).to(dtype)


@LOSS_REGISTRY.register()
class EQLv2(SigmoidEQL):
    """The released two-stage form of :class:`SigmoidEQL`, with a background column.

    The extra, last output is an ordinary binary classifier whose target is 1 for background
    rows and 0 for foreground rows. It always weighs 1 and is left out of P, Q and the ratio.
    Without ``has_background`` it is :class:`SigmoidEQL`.

    Args:
        gamma, mu, alpha: as there.
        test_with_obj: multiply class scores by the probability of not being background, as
            released; False leaves the factor out.
    """

    def __init__(self, *, test_with_obj: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.test_with_obj = test_with_obj

    @property
    def num_logits(self) -> int:
        """C, or C+1 with the background last."""
        return self.num_classes + int(self.has_background)

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """``sigmoid(z_j) (1 - sigmoid(z_bg))``, and ``sigmoid(z_bg)`` last."""
        scores = torch.sigmoid(widen(logits))
        if self.has_background and self.test_with_obj:
            # 1 - sigmoid(z) = sigmoid(-z), exact for large z.
            scores[:, :-1] *= torch.sigmoid(-widen(logits[:, -1:]))
        return scores
