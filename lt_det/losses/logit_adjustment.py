"""Softmax losses that add the logarithm of the class prior: logit adjustment, balanced softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_det.losses.base import LossInput
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.count_softmax import CountSoftmaxLoss, check_at_least
from lt_det.losses.softmax_kernel import SoftmaxTerms


@LOSS_REGISTRY.register()
class BalancedSoftmax(CountSoftmaxLoss):
    """Softmax cross-entropy of ``z_ij + ln n_j``.

    ``L = (1/normalizer) sum_i weight_i (-log softmax(z_i + ln n)[y_i])``

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
        terms = SoftmaxTerms(column_bias=self.adjustment.to(x.logits))
        return {"loss_cls": self.cross_entropy(x, terms)}


@LOSS_REGISTRY.register()
class LogitAdjustment(CountSoftmaxLoss):
    """Softmax cross-entropy of ``z_ij + ln(pi_j^tau + eps)`` with the class prior pi.

    ``L = (1/normalizer) sum_i weight_i (-log softmax(z_i + adjustment)[y_i])``,
    ``pi_j = n_j / sum_k n_k``. Up to ``eps`` that is ``tau ln pi_j``; with tau 1 it is
    :class:`BalancedSoftmax`, with tau 0 plain cross-entropy.

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
        prior = self.counts / self.counts.sum()
        self.constant("adjustment", torch.log(prior**tau + eps) if eps else tau * prior.log())

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        terms = SoftmaxTerms(column_bias=self.adjustment.to(x.logits))
        return {"loss_cls": self.cross_entropy(x, terms)}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + f", tau={self.tau}"
