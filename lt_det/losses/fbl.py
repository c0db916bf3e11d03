"""FBL: a stimulus for the feature norm of rare classes that grows over training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lt_det.losses.base import LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.count_softmax import CountSoftmaxLoss, mean_rows
from lt_det.losses.counts import log_amplitude, safe_counts
from lt_det.losses.params import check_at_least
from lt_det.losses.schedule import ScheduledLoss
from lt_det.losses.softmax_kernel import SoftmaxTerms, shifted_cross_entropy

_NORM_EPS = 1e-12

# The release has (t / (T - 10))^2 with the epoch t of T = 200: in progress t / T the divisor is
# 190 / 200, whatever the length of the training.
_PARABOLIC_END = 0.95

CURRICULA: dict[str, Callable[[Tensor], Tensor]] = {
    "parabolic": lambda t: (t / _PARABOLIC_END) ** 2,
    "linear": lambda t: t,
    "cosine": lambda t: 1 - torch.cos(math.pi / 2 * t),
    "sine": lambda t: torch.sin(math.pi / 2 * t),
    "constant": torch.ones_like,
}
"""Progress in [0, 1] -> alpha."""


def fbl_loss(
    logits: Tensor,
    features: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    strength: Tensor | float,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """FBL, mean over the rows that are not ignored unless `normalizer` is given.

    ``z'_ij = z_ij - strength l_j / (|f_i| + 1e-12)`` for every class j,
    ``L_i = -log softmax(z'_i)[y_i]`` with ``l_j = (ln n_max - ln n_j) / (ln n_max - ln n_min)``.
    The gradient flows through the norm ``|f_i|``. A feature of exactly zero length has a
    stimulus of the order 1e13 and no gradient of its norm, as released.

    Args:
        logits: (M, L) z.
        features: (M, D) f, the input of the classifier.
        targets: (M,) int64, -1 = ignored.
        class_counts: (L,) in any order; a zero counts as one, with a warning in every call.
        strength: alpha(t) lambda.
        normalizer: divisor of the sum.

    Returns:
        Scalar.
    """
    logits = widen(logits)
    rarity = log_amplitude(safe_counts(class_counts))
    rows = shifted_cross_entropy(
        logits, targets, _terms(logits, rarity), _stimulus(features, logits, strength)
    )
    return mean_rows(rows, targets, normalizer)


def _terms(logits, rarity):
    return SoftmaxTerms(direction=-rarity.to(logits))


def _stimulus(features, logits, strength):
    """(M,)."""
    norm = torch.linalg.vector_norm(widen(features).to(logits.dtype), dim=1)
    strength = torch.as_tensor(strength, dtype=logits.dtype, device=logits.device)
    return strength / (norm + _NORM_EPS)


@LOSS_REGISTRY.register()
class FBL(ScheduledLoss, CountSoftmaxLoss):
    """Feature-balanced loss; see :func:`fbl_loss`, with ``strength = alpha(t) strength``.

    ``alpha(t)`` of the progress t in [0, 1]: "parabolic" ``(t / 0.95)^2``, "linear" ``t``,
    "cosine" ``1 - cos(pi t / 2)``, "sine" ``sin(pi t / 2)``, "constant" ``1``. In eval mode
    alpha is 0, as released, which is plain cross-entropy. Divided by the number of rows that are
    not ignored unless ``normalizer`` is given. Scores: softmax of the plain logits.

    Source: Li, Cheung, Jiang, "Feature-Balanced Loss for Long-Tailed Visual Recognition", ICME
    2022, as released (repository Keke921/FBL, 8331b0c). Deviations:

    - The parabola of the release is ``(t / (T - 10))^2`` with epoch t of T. For its 200 epochs
      that is ours at every epoch; for another T ours keeps the shape, where the release would
      not be defined below T = 11. Ours moves every iteration, the release every epoch.
    - Alpha is clipped to 1; the release reaches 1.097 in its last epoch (``clip=False``).
    - Equal counts or a single class have ``l = 0``, a class without examples counts as one; in
      the release NaN.
    - Ignored rows, weights, masks and a background column (``background_count``).

    Args:
        strength: lambda; 60 as released for CIFAR, 150 for ImageNet-LT, iNaturalist and Places.
        curriculum: a name of ``CURRICULA``.
        clip: keep alpha at 1 or below.
        **kwargs: see :class:`~lt_det.losses.count_softmax.CountSoftmaxLoss`.

    Raises:
        ValueError: as there; a negative strength, an unknown curriculum, no features.
    """

    needs_features = True

    def __init__(
        self,
        *,
        strength: float = 60.0,
        curriculum: str = "parabolic",
        clip: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_at_least(0, strength=strength)
        if curriculum not in CURRICULA:
            raise ValueError(
                f"curriculum={curriculum!r} in MODEL.LT.LOSS.PARAMS; accepted are "
                + ", ".join(CURRICULA)
            )
        self.strength, self.curriculum, self.clip = strength, curriculum, clip
        self.constant("rarity", log_amplitude(self.counts))

    def alpha(self) -> Tensor:
        """0-dim float64: the curriculum at the present progress."""
        alpha = CURRICULA[self.curriculum](self.progress)
        return alpha.clamp(max=1) if self.clip else alpha

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        strength = self.strength * self.alpha() if self.training else 0.0
        stimulus = _stimulus(x.features, x.logits, strength)
        return {"loss_cls": self.cross_entropy(x, _terms(x.logits, self.rarity), stimulus)}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + (
            f", strength={self.strength}, curriculum={self.curriculum}, clip={self.clip}"
        )
