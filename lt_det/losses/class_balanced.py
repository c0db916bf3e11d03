"""Cross-entropy weighted by the effective number of examples of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_det.losses.base import IGNORED, LossInput
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.count_softmax import CountSoftmaxLoss, of_targets
from lt_det.losses.counts import effective_number_weights
from lt_det.losses.softmax_kernel import SoftmaxTerms


def label_weight_sum(weights: Tensor, targets: Tensor) -> Tensor:
    """Sum of the weights of the labels over rows that are not ignored; 1 if that is 0."""
    total = (of_targets(weights, targets, weights.dtype) * (targets != IGNORED)).sum()
    return torch.where(total > 0, total, torch.ones_like(total))


@LOSS_REGISTRY.register()
class ClassBalancedCE(CountSoftmaxLoss):
    """Softmax cross-entropy whose rows weigh what their class does.

    ``L = sum_i weight_i w_{y_i} (-log softmax(z_i)[y_i]) / sum_i w_{y_i}`` with
    ``w_j = (1 - beta) / (1 - beta^n_j)``, scaled to the sum L (the number of columns).

    Divided by the sum of the label weights of the rows that are not ignored, as
    ``torch.nn.functional.cross_entropy`` with class weights does, unless ``normalizer`` is
    given. Row weights do not enter the divisor. Scores: softmax.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
    Deviations: the TensorFlow original divides by the number of rows (give ``normalizer`` for
    that); a class without examples counts as one; ignored rows, row weights, masks and a
    background column (``background_count``).

    Args:
        beta: in [0, 1); 0.9999 is the largest of the paper's four, 0 is plain cross-entropy.
        **kwargs: see :class:`~lt_det.losses.count_softmax.CountSoftmaxLoss`.

    Raises:
        ValueError: as there; ``beta`` outside of [0, 1).
    """

    def __init__(self, *, beta: float = 0.9999, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta
        self.constant("class_weights", effective_number_weights(self.counts, beta))

    def default_normalizer(self, targets: Tensor) -> Tensor:
        """Sum of the label weights."""
        return label_weight_sum(self.class_weights, targets)

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        x.weight = x.weight * of_targets(self.class_weights, x.targets, x.logits.dtype)
        return {"loss_cls": self.cross_entropy(x, SoftmaxTerms())}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + f", beta={self.beta}"
