"""Softmax losses that add the logarithm of the class prior: logit adjustment, balanced softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_det.losses.base import LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.count_softmax import CountSoftmaxLoss, mean_rows
from lt_det.losses.counts import safe_counts
from lt_det.losses.params import check_at_least
from lt_det.losses.softmax_kernel import SoftmaxTerms, shifted_cross_entropy


def balanced_softmax_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """Balanced softmax, mean over the rows that are not ignored unless `normalizer` is given.

    ``L_i = -log softmax(z_i + ln n)[y_i]``

    Args:
        logits: (M, L) z.
        targets: (M,) int64, -1 = ignored.
        class_counts: (L,) n, in any order; a zero counts as one, with a warning in every call.
        normalizer: divisor of the sum.

    Returns:
        Scalar.
    """
    return _loss(logits, targets, safe_counts(class_counts).log(), normalizer)


def logit_adjustment_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    tau: float,
    eps: float = 1e-12,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """Logit-adjusted loss, mean over the rows that are not ignored unless `normalizer` is given.

    ``L_i = -log softmax(z_i + a)[y_i]`` with a of :func:`prior_adjustment`.

    Args:
        logits: (M, L) z.
        targets: (M,) int64, -1 = ignored.
        class_counts: (L,) in any order; a zero counts as one, with a warning in every call.
        tau: strength, at least 0.
        eps: floor of the prior.
        normalizer: divisor of the sum.

    Returns:
        Scalar.
    """
    adjustment = prior_adjustment(safe_counts(class_counts), tau=tau, eps=eps)
    return _loss(logits, targets, adjustment, normalizer)


def prior_adjustment(counts: Tensor, *, tau: float, eps: float) -> Tensor:
    """(L,) ``ln(pi_j^tau + eps)`` with the prior ``pi_j = n_j / sum_k n_k``."""
    prior = counts / counts.sum()
    return torch.log(prior**tau + eps) if eps else tau * prior.log()


def _loss(logits, targets, adjustment, normalizer):
    logits = widen(logits)
    rows = shifted_cross_entropy(logits, targets, _terms(logits, adjustment))
    return mean_rows(rows, targets, normalizer)


def _terms(logits, adjustment):
    return SoftmaxTerms(column_bias=adjustment.to(logits))


@LOSS_REGISTRY.register()
class BalancedSoftmax(CountSoftmaxLoss):
    """Softmax cross-entropy of ``z_ij + ln n_j``; see :func:`balanced_softmax_loss`.

    Divided by the number of rows that are not ignored unless ``normalizer`` is given. Scores:
    softmax of the plain logits. Equal counts: plain cross-entropy.

    Source: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020
    (repository jiawei-ren/BalancedMetaSoftmax-Classification, 34a61e4). Deviations: a class
    without examples counts as one, in the release its logit is minus infinity; ignored rows,
    weights, masks and a background column (``background_count``).

    Args:
        **kwargs: see :class:`~lt_det.losses.count_softmax.CountSoftmaxLoss`.

    Raises:
        ValueError: as there.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.constant("adjustment", self.counts.log())

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        return {"loss_cls": self.cross_entropy(x, _terms(x.logits, self.adjustment))}


@LOSS_REGISTRY.register()
class LogitAdjustment(CountSoftmaxLoss):
    """Softmax cross-entropy of ``z_ij + ln(pi_j^tau + eps)``; see :func:`logit_adjustment_loss`.

    Up to ``eps`` the adjustment is ``tau ln pi_j``; with tau 1 it is :class:`BalancedSoftmax`,
    with tau 0 plain cross-entropy.

    Divided by the number of rows that are not ignored unless ``normalizer`` is given. Scores:
    softmax of the plain logits, whose argmax is the balanced prediction.

    Source: Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021; ``eps`` is that
    of the port Chumsy0725/logit-adj-pytorch (2e5bd39). Deviations: a class without examples
    counts as one; ignored rows, weights, masks and a background column (``background_count``).

    Args:
        tau: at least 0; 1 as in the paper.
        eps: 1e-12 as in the port, 0 as in the paper. Priors are far above it.
        **kwargs: see :class:`~lt_det.losses.count_softmax.CountSoftmaxLoss`.

    Raises:
        ValueError: as there; a negative tau or eps.
    """

    def __init__(self, *, tau: float = 1.0, eps: float = 1e-12, **kwargs):
        super().__init__(**kwargs)
        check_at_least(0, tau=tau, eps=eps)
        self.tau = tau
        self.constant("adjustment", prior_adjustment(self.counts, tau=tau, eps=eps))

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        return {"loss_cls": self.cross_entropy(x, _terms(x.logits, self.adjustment))}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + f", tau={self.tau}"
