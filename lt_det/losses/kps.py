"""KPS: class factor and margin on a cosine classifier, and its gradient adjustment (GA)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lt_det.losses.base import LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.count_softmax import CountSoftmaxLoss, mean_rows, of_targets
from lt_det.losses.counts import safe_counts
from lt_det.losses.params import check_at_least, check_positive
from lt_det.losses.schedule import ScheduledLoss, check_progress
from lt_det.losses.softmax_kernel import SoftmaxTerms, shifted_cross_entropy

# The release rescales the counts so that the smallest is 50 and takes logarithms to that base.
_SMALLEST_COUNT = 50


class KPSVectors(NamedTuple):
    """Result of :func:`kps_vectors`, each (L,) float64.

    Attributes:
        factor: on the cosine, at least 1, largest for the most frequent class.
        margin: largest for the rarest class.
        adjusted_scale: scale of a sample of the class once GA is on, largest for the rarest.
    """

    factor: Tensor
    margin: Tensor
    adjusted_scale: Tensor


def kps_vectors(counts: Tensor, *, scale: float, max_margin: float, max_scale: float) -> KPSVectors:
    """Class factor, margin and adjusted scale.

    ``f_j = 1 + ln(n_j / n_min) / ln 50``, and with ``j'`` the class at the mirrored rank (the
    rarest for the most frequent one, and so on)
    ``m_j = max_margin f_j' / max_k f_k``, ``S_j = clip(scale f_j', scale, max_scale)``.

    Equal counts give factor 1 and the same margin to all. Among equal counts the class that
    comes first ranks as the more frequent one.

    Args:
        counts: (L,) of at least one, in any order.
        scale: smallest adjusted scale.
        max_margin: margin of the rarest class.
        max_scale: largest adjusted scale.
    """
    factor = 1 + torch.log(counts / counts.min()) / math.log(_SMALLEST_COUNT)
    order = torch.argsort(counts, descending=True, stable=True)
    mirrored = torch.empty_like(factor)
    mirrored[order] = factor[order.flip(0)]
    return KPSVectors(
        factor,
        max_margin * mirrored / factor.max(),
        (scale * mirrored).clamp(min=scale, max=max_scale),
    )


def kps_loss(
    cosine: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    scale: float,
    max_margin: float,
    adjust: Tensor | bool,
    max_scale: float,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """KPS loss, mean over the rows that are not ignored unless `normalizer` is given.

    ``z_ij = S_i (f_j cos_ij - m_j [j == y_i])``, ``L_i = -log softmax(z_i)[y_i]`` with f and m
    of :func:`kps_vectors` and ``S_i = scale``, or the adjusted scale of class ``y_i`` once the
    gradient adjustment is on. The derivative by ``cos_ij`` is ``S_i f_j (p_ij - [j == y_i])``.

    Args:
        cosine: (M, L).
        targets: (M,) int64, -1 = ignored.
        class_counts: (L,) in any order; a zero counts as one, with a warning in every call.
        scale: of the cosine.
        max_margin: margin of the rarest class.
        adjust: whether the gradient adjustment is on.
        max_scale: largest scale of the gradient adjustment.
        normalizer: divisor of the sum.

    Returns:
        Scalar.
    """
    vectors = kps_vectors(
        safe_counts(class_counts), scale=scale, max_margin=max_margin, max_scale=max_scale
    )
    cosine = widen(cosine)
    terms = _terms(cosine, targets, vectors, scale, adjust)
    return mean_rows(shifted_cross_entropy(cosine, targets, terms), targets, normalizer)


def _terms(cosine, targets, vectors: KPSVectors, scale, adjust: Tensor | bool) -> SoftmaxTerms:
    adjusted = of_targets(vectors.adjusted_scale, targets, cosine.dtype)
    adjust = torch.as_tensor(adjust, device=cosine.device)
    row_scale = torch.where(adjust, adjusted, torch.full_like(adjusted, scale))
    return SoftmaxTerms(
        column_scale=vectors.factor.to(cosine),
        row_scale=row_scale,
        own_shift=-row_scale * of_targets(vectors.margin, targets, cosine.dtype),
    )


@LOSS_REGISTRY.register()
class KPS(ScheduledLoss, CountSoftmaxLoss):
    """Key-point-sensitive loss with gradient adjustment; see :func:`kps_loss`.

    Wants the bare cosines of a cosine classifier and scales them itself. The gradient
    adjustment is a phase: from progress ``adjust_from`` on, the samples of rare classes have a
    larger scale. Divided by the number of rows that are not ignored unless ``normalizer`` is
    given. Scores: ``softmax(scale cos)`` without factor or margin, as the release predicts.

    Source: Li, Cheung, Hu, "Key Point Sensitive Loss for Long-Tailed Visual Recognition", TPAMI
    2023, as released (repository Keke921/KPSLoss, 1418f18). Deviations:

    - Classes are paired by rank of their counts. The release reverses the vectors by position,
      which is the same only if the classes are sorted by decreasing count, as in its data sets.
    - Ignored rows, weights, masks and a background column (``background_count``).
    - A class without examples counts as one; in the release NaN.
    - The gradient adjustment starts at any iteration, in the release at an epoch.

    Args:
        scale, max_margin: 15 and 0.2 are what the released script trains with; the released
            class has 30 and 0.5 as defaults, which no released recipe uses.
        adjust_from: progress at which the gradient adjustment starts; 0.6 as released (epoch
            120 of 200), 1 = never.
        max_scale: largest scale of the gradient adjustment.
        **kwargs: see :class:`~lt_det.losses.count_softmax.CountSoftmaxLoss`.

    Raises:
        ValueError: as there; a scale that is not positive, a negative margin, ``max_scale``
            below ``scale``, ``adjust_from`` outside of [0, 1].
    """

    classifier = "cosine"

    def __init__(
        self,
        *,
        scale: float = 15.0,
        max_margin: float = 0.2,
        adjust_from: float = 0.6,
        max_scale: float = 50.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(scale=scale)
        check_at_least(0, max_margin=max_margin)
        check_at_least(scale, max_scale=max_scale)
        check_progress(adjust_from=adjust_from)
        self.scale, self.max_margin, self.max_scale = scale, max_margin, max_scale
        self.adjust_from = adjust_from
        vectors = kps_vectors(self.counts, scale=scale, max_margin=max_margin, max_scale=max_scale)
        for name, value in vectors._asdict().items():
            self.constant(name, value)

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        vectors = KPSVectors(self.factor, self.margin, self.adjusted_scale)
        terms = _terms(x.logits, x.targets, vectors, self.scale, self.reached(self.adjust_from))
        return {"loss_cls": self.cross_entropy(x, terms)}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + (
            f", scale={self.scale}, max_margin={self.max_margin}, "
            f"adjust_from={self.adjust_from}, max_scale={self.max_scale}"
        )
