"""Cross-entropy weighted by the effective number of examples of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_det.losses.base import IGNORED, LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.count_softmax import CountSoftmaxLoss, mean_rows, of_targets
from lt_det.losses.counts import effective_number_weights, safe_counts
from lt_det.losses.softmax_kernel import SoftmaxTerms, shifted_cross_entropy


def label_weight_sum(weights: Tensor, targets: Tensor) -> Tensor:
    """Sum of the weights of the labels over rows that are not ignored; 1 if that is 0."""
    total = (of_targets(weights, targets, weights.dtype) * (targets != IGNORED)).sum()
    return torch.where(total > 0, total, torch.ones_like(total))


def weighted_mean_rows(
    rows: Tensor, targets: Tensor, class_weights: Tensor, normalizer: Tensor | float | None = None
) -> Tensor:
    """Sum of row losses times the weight of the label over `normalizer`.

    None = the sum of the label weights of the rows not ignored.
    """
    if normalizer is None:
        normalizer = label_weight_sum(class_weights.to(rows), targets)
    rows = rows * of_targets(class_weights, targets, rows.dtype)
    return mean_rows(rows, targets, normalizer)


def class_balanced_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    beta: float,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """Class-balanced softmax cross-entropy.

    ``L = sum_i w_{y_i} (-log softmax(z_i)[y_i]) / normalizer`` with
    ``w_j = (1 - beta) / (1 - beta^n_j)``, scaled to the sum L (the number of columns). Divided
    by the sum of the label weights of the rows that are not ignored unless `normalizer` is
    given, as ``torch.nn.functional.cross_entropy`` with class weights.

    Args:
        logits: (M, L) z.
        targets: (M,) int64, -1 = ignored.
        class_counts: (L,) in any order; a zero counts as one, with a warning in every call.
        beta: in [0, 1).
        normalizer: divisor of the sum.

    Returns:
        Scalar.
    """
    weights = effective_number_weights(safe_counts(class_counts), beta)
    rows = shifted_cross_entropy(widen(logits), targets, SoftmaxTerms())
    return weighted_mean_rows(rows, targets, weights, normalizer)


@LOSS_REGISTRY.register()
class ClassBalancedCE(CountSoftmaxLoss):
    """Softmax cross-entropy whose rows weigh what their class does.

    See :func:`class_balanced_loss`. Divided by the sum of the label weights of the rows that are
    not ignored unless ``normalizer`` is given. Row weights do not enter the divisor. Scores:
    softmax.

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
