"""Label smoothing that is stronger for frequent classes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lt_det.losses.base import LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.count_softmax import CountSoftmaxLoss, mean_rows, of_targets
from lt_det.losses.counts import linear_ramp, safe_counts
from lt_det.losses.params import check_at_least, check_at_most, check_positive
from lt_det.losses.softmax_kernel import SoftmaxTerms, shifted_cross_entropy

SHAPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "concave": lambda x, power: torch.sin(math.pi / 2 * x),
    "linear": lambda x, power: x,
    "convex": lambda x, power: 1 + torch.sin(1.5 * math.pi + math.pi / 2 * x),
    "exp": lambda x, power: x**power,
}
"""Ramp x from 0 (rarest) to 1 (most frequent) -> share of the way from tail to head."""


def smoothing_of_classes(
    counts: Tensor, *, smooth_head: float, smooth_tail: float, shape: str, power: float = 2.0
) -> Tensor:
    """(L,) smoothing of each class, between `smooth_tail` and `smooth_head`.

    ``u_j = smooth_tail + (smooth_head - smooth_tail) g(x_j)`` with
    ``x_j = (n_j - n_min) / (n_max - n_min)`` and g of ``SHAPES``. With equal counts every class
    is the most frequent one.
    """
    share = SHAPES[shape](linear_ramp(counts), power)
    return smooth_tail + (smooth_head - smooth_tail) * share


def label_aware_smoothing_loss(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    smooth_head: float,
    smooth_tail: float,
    shape: str,
    power: float = 2.0,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """Label-aware smoothing, mean over the rows not ignored unless `normalizer` is given.

    ``L_i = (1 - u_{y_i}) (-log p_{i y_i}) + u_{y_i} mean_j(-log p_ij)``, ``p_i = softmax(z_i)``
    with u of :func:`smoothing_of_classes`.

    Args:
        logits: (M, L) z.
        targets: (M,) int64, -1 = ignored.
        class_counts: (L,) in any order; a zero counts as one, with a warning in every call.
        smooth_head: smoothing of the most frequent class.
        smooth_tail: smoothing of the rarest class.
        shape: a name of ``SHAPES``.
        power: exponent of "exp".
        normalizer: divisor of the sum.

    Returns:
        Scalar.
    """
    logits = widen(logits)
    smoothing = smoothing_of_classes(
        safe_counts(class_counts),
        smooth_head=smooth_head,
        smooth_tail=smooth_tail,
        shape=shape,
        power=power,
    )
    rows = shifted_cross_entropy(logits, targets, _terms(logits, targets, smoothing))
    return mean_rows(rows, targets, normalizer)


def _terms(logits, targets, smoothing):
    return SoftmaxTerms(smoothing=of_targets(smoothing, targets, logits.dtype))


@LOSS_REGISTRY.register()
class LabelAwareSmoothing(CountSoftmaxLoss):
    """Softmax cross-entropy with a label smoothing that depends on the class.

    See :func:`label_aware_smoothing_loss`; the mean runs over all columns, the background's too,
    that take part in the row.

    Divided by the number of rows that are not ignored unless ``normalizer`` is given. Scores:
    softmax.

    Source: Zhong et al., "Improving Calibration for Long-Tailed Recognition" (MiSLAS), CVPR
    2021, as released (repository dvlab-research/MiSLAS, 0fc381e). The release gives the other
    classes u/C each; the paper u/(C-1). Deviations: equal counts are smoothed like the head and
    a class without examples counts as one, in the release NaN; ignored rows, weights, masks and
    a background column (``background_count``).

    Args:
        smooth_head, smooth_tail: smoothing of the most frequent and of the rarest class; 0.4 and
            0.1 as released for CIFAR-100 (imbalance 100) and Places, 0.3 and 0 for ImageNet-LT
            and iNaturalist.
        shape: "concave" (released), "linear", "convex" or "exp", see ``SHAPES``.
        power: exponent of "exp".
        **kwargs: see :class:`~lt_det.losses.count_softmax.CountSoftmaxLoss`.

    Raises:
        ValueError: as there; a smoothing outside of [0, 1], an unknown shape.
    """

    def __init__(
        self,
        *,
        smooth_head: float = 0.4,
        smooth_tail: float = 0.1,
        shape: str = "concave",
        power: float = 2.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_at_least(0, smooth_head=smooth_head, smooth_tail=smooth_tail)
        check_at_most(1, smooth_head=smooth_head, smooth_tail=smooth_tail)
        if shape not in SHAPES:
            raise ValueError(
                f"shape={shape!r} in MODEL.LT.LOSS.PARAMS; accepted are " + ", ".join(SHAPES)
            )
        check_positive(power=power)
        self.smooth_head, self.smooth_tail, self.shape = smooth_head, smooth_tail, shape
        smoothing = smoothing_of_classes(
            self.counts, smooth_head=smooth_head, smooth_tail=smooth_tail, shape=shape, power=power
        )
        self.constant("smoothing", smoothing)

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        return {"loss_cls": self.cross_entropy(x, _terms(x.logits, x.targets, self.smoothing))}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + (
            f", smooth_head={self.smooth_head}, smooth_tail={self.smooth_tail}, shape={self.shape}"
        )
