"""Label smoothing that is stronger for frequent classes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lt_det.losses.base import LossInput
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.count_softmax import CountSoftmaxLoss, check_positive, of_targets
from lt_det.losses.counts import linear_ramp
from lt_det.losses.softmax_kernel import SoftmaxTerms

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


@LOSS_REGISTRY.register()
class LabelAwareSmoothing(CountSoftmaxLoss):
    """Softmax cross-entropy with a label smoothing that depends on the class.

    ``L = (1/normalizer) sum_i weight_i ((1 - u_{y_i}) (-log p_{i y_i}) + u_{y_i} mean_j(-log
    p_ij))`` with u of :func:`smoothing_of_classes`; the mean runs over all columns, the
    background's too, that take part in the row.

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
        for name, value in (("smooth_head", smooth_head), ("smooth_tail", smooth_tail)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} in MODEL.LT.LOSS.PARAMS must be in [0, 1]")
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
        terms = SoftmaxTerms(smoothing=of_targets(self.smoothing, x.targets, x.logits.dtype))
        return {"loss_cls": self.cross_entropy(x, terms)}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + (
            f", smooth_head={self.smooth_head}, smooth_tail={self.smooth_tail}, shape={self.shape}"
        )
