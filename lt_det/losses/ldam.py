"""LDAM: label-distribution-aware margins, with deferred re-weighting."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_det.losses.base import LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.class_balanced import label_weight_sum, weighted_mean_rows
from lt_det.losses.count_softmax import CountSoftmaxLoss, mean_rows, of_targets
from lt_det.losses.counts import effective_number_weights, safe_counts
from lt_det.losses.params import check_at_least, check_positive
from lt_det.losses.schedule import ScheduledLoss, check_progress
from lt_det.losses.softmax_kernel import SoftmaxTerms, shifted_cross_entropy


def ldam_margins(counts: Tensor, max_margin: float) -> Tensor:
    """(L,) ``max_margin n_j^-1/4 / max_k n_k^-1/4``: the rarest class has ``max_margin``."""
    return max_margin * (counts / counts.min()) ** -0.25


def ldam_loss(
    cosine: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    scale: float,
    max_margin: float,
    class_weights: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """LDAM loss.

    ``z_ij = scale (cos_ij - m_j [j == y_i])``,
    ``L = sum_i w_{y_i} (-log softmax(z_i)[y_i]) / normalizer`` with m of :func:`ldam_margins`.
    Divided by the sum of the label weights of the rows that are not ignored, as torch does with
    class weights: by their number without.

    Args:
        cosine: (M, L).
        targets: (M,) int64, -1 = ignored.
        class_counts: (L,) in any order; a zero counts as one, with a warning in every call.
        scale: of the cosine.
        max_margin: margin of the rarest class.
        class_weights: (L,) w; None = 1.
        normalizer: divisor of the sum.

    Returns:
        Scalar.
    """
    cosine = widen(cosine)
    margins = ldam_margins(safe_counts(class_counts), max_margin)
    rows = shifted_cross_entropy(cosine, targets, _terms(cosine, targets, margins, scale))
    if class_weights is None:
        return mean_rows(rows, targets, normalizer)
    return weighted_mean_rows(rows, targets, class_weights, normalizer)


def _terms(cosine, targets, margins, scale):
    return SoftmaxTerms(
        column_scale=scale, own_shift=-scale * of_targets(margins, targets, cosine.dtype)
    )


@LOSS_REGISTRY.register()
class LDAM(ScheduledLoss, CountSoftmaxLoss):
    """Label-distribution-aware margin loss; see :func:`ldam_loss`.

    Wants the bare cosines of a cosine classifier and scales them itself. From progress
    ``reweight_from`` on (deferred re-weighting) rows weigh what their class does:
    ``(1 - beta) / (1 - beta^n_j)``, scaled to the sum L. Divided by the sum of the label
    weights of the rows that are not ignored, which is their number before that, unless
    ``normalizer`` is given. Row weights do not enter the divisor. Scores: ``softmax(scale cos)``.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019, as released (repository kaidic/LDAM-DRW, 2536330). Deviations: a class without
    examples counts as one; ignored rows, row weights, masks and a background column
    (``background_count``); re-weighting starts at any iteration, in the release at an epoch.

    Args:
        scale, max_margin: 30, 0.5 as released.
        reweight_from: 0.8 as released (epoch 160 of 200); 1 = never.
        beta: in [0, 1); 0.9999 as released.
        **kwargs: see :class:`~lt_det.losses.count_softmax.CountSoftmaxLoss`.

    Raises:
        ValueError: as there; a scale that is not positive, a negative margin, ``reweight_from``
            outside of [0, 1], ``beta`` outside of [0, 1).
    """

    classifier = "cosine"

    def __init__(
        self,
        *,
        scale: float = 30.0,
        max_margin: float = 0.5,
        reweight_from: float = 0.8,
        beta: float = 0.9999,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(scale=scale)
        check_at_least(0, max_margin=max_margin)
        check_progress(reweight_from=reweight_from)
        self.scale, self.max_margin = scale, max_margin
        self.reweight_from, self.beta = reweight_from, beta
        self.constant("margins", ldam_margins(self.counts, max_margin))
        self.constant("deferred_weights", effective_number_weights(self.counts, beta))

    def class_weights(self) -> Tensor:
        """(L,) at the present progress: ones before re-weighting starts."""
        started = torch.as_tensor(
            self.reached(self.reweight_from), device=self.deferred_weights.device
        )
        return torch.where(started, self.deferred_weights, torch.ones_like(self.deferred_weights))

    def default_normalizer(self, targets: Tensor) -> Tensor:
        """Sum of the label weights."""
        return label_weight_sum(self.class_weights(), targets)

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        x.weight = x.weight * of_targets(self.class_weights(), x.targets, x.logits.dtype)
        terms = _terms(x.logits, x.targets, self.margins, self.scale)
        return {"loss_cls": self.cross_entropy(x, terms)}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + (
            f", scale={self.scale}, max_margin={self.max_margin}, "
            f"reweight_from={self.reweight_from}, beta={self.beta}"
        )
