"""GCL: Gaussian clouded logits, a random margin that grows with rarity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lt_det.losses.base import LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.count_softmax import CountSoftmaxLoss, mean_rows
from lt_det.losses.counts import log_amplitude, safe_counts
from lt_det.losses.noise import NoiseSource
from lt_det.losses.params import check_at_least, check_positive
from lt_det.losses.softmax_kernel import SoftmaxTerms, shifted_cross_entropy

# Three standard deviations reach the clamp at 1.
NOISE_STD = 1 / 3
# Keeps the derivative of the sine finite at an angle of 0; far below what a cosine resolves.
_MIN_SQUARED_SINE = 1e-12


def gcl_loss(
    cosine: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    noise: Tensor | None,
    *,
    scale: float,
    margin: float,
    noise_multiplier: float,
    focal_gamma: float,
    angular: bool = False,
    easy_margin: bool = True,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """GCL loss, mean over the rows that are not ignored unless `normalizer` is given.

    ``z_ij = scale (cos_ij - noise_multiplier |clip(e_ij, -1, 1)| d_j - margin [j == y_i])``,
    ``L_i = (1 - p_i)^focal_gamma (-log p_i)`` with ``p_i = softmax(z_i)[y_i]``, constant to the
    gradient in the first factor, and the amplitude
    ``d_j = (ln n_max - ln n_j) / (ln n_max - ln n_min)``.

    The angular form widens the angle instead of lowering the cosine: ``z_ij = scale phi_ij``,
    ``phi = cos(theta_ij + a_ij)`` with
    ``a_ij = (pi/2) noise_multiplier |clip(e_ij, -1, 1)| d_j + margin [j == y_i]``. With
    ``easy_margin`` only where ``cos theta > 0``, elsewhere ``phi = cos theta``; without it where
    ``cos theta > cos(pi - a)``, elsewhere ``phi = cos theta - sin(pi - a)``.

    Args:
        cosine: (M, L).
        targets: (M,) int64, -1 = ignored.
        class_counts: (L,) in any order; a zero counts as one, with a warning in every call.
        noise: (M, L) e, drawn from Normal(0, 1/3), neither clipped nor made positive; None =
            none.
        scale: of the cosine.
        margin: subtracted from the cosine of the target, or added to its angle.
        noise_multiplier: factor of the noise.
        focal_gamma: exponent of the focal factor; 0 = none.
        angular: the angular form.
        easy_margin: of the angular form.
        normalizer: divisor of the sum.

    Returns:
        Scalar. For mixup add two losses, each with its own noise.
    """
    cosine = widen(cosine)
    amplitude = log_amplitude(safe_counts(class_counts))
    terms = _terms(
        cosine,
        amplitude,
        noise,
        scale,
        margin,
        noise_multiplier,
        focal_gamma,
        angular,
        easy_margin,
    )
    return mean_rows(shifted_cross_entropy(cosine, targets, terms), targets, normalizer)


def _terms(
    cosine,
    amplitude,
    noise,
    scale,
    margin,
    noise_multiplier,
    focal_gamma,
    angular,
    easy_margin,
):
    # The angular form widens an angle, the other one lowers the scaled cosine.
    cloud, shift = (math.pi / 2, margin) if angular else (scale, -scale * margin)
    return SoftmaxTerms(
        column_scale=scale,
        noise=noise,
        amplitude=(cloud * noise_multiplier * amplitude).to(cosine),
        own_shift=cosine.new_full((len(cosine),), shift) if margin else None,
        focal_gamma=focal_gamma,
        curve=(_widen_easy if easy_margin else _widen) if angular else None,
    )


def _widen(cosine: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The widened cosine phi and d phi / d cosine, without easy margin."""
    phi, slope, cos_a, sin_a = _cos_of_sum(cosine, angle)
    used = cosine > -cos_a
    return torch.where(used, phi, cosine - sin_a), torch.where(used, slope, 1)


def _widen_easy(cosine: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The widened cosine phi and d phi / d cosine, with easy margin."""
    phi, slope, _, _ = _cos_of_sum(cosine, angle)
    used = cosine > 0
    return torch.where(used, phi, cosine), torch.where(used, slope, 1)


def _cos_of_sum(cosine, angle):
    """cos(theta + a) with its derivative by cos(theta), cos(a), sin(a)."""
    cos_a, sin_a = angle.cos(), angle.sin()
    squared = 1 - cosine * cosine
    sine = squared.clamp(min=_MIN_SQUARED_SINE).sqrt_()
    phi = cosine * cos_a - sine * sin_a
    # The derivative of the bounded sine is 0 where the bound holds.
    cotangent = (cosine / sine).masked_fill_(squared < _MIN_SQUARED_SINE, 0)
    return phi, cotangent.mul_(sin_a).add_(cos_a), cos_a, sin_a


@LOSS_REGISTRY.register()
class GCL(CountSoftmaxLoss):
    """Gaussian clouded logits; see :func:`gcl_loss`.

    Wants the bare cosines of a cosine classifier and scales them itself. In training every call
    draws new noise from the loss's own source (:class:`~lt_det.losses.noise.NoiseSource`), so
    mixup, which calls it twice, has two draws; in eval mode there is none. Divided by the number
    of rows that are not ignored unless ``normalizer`` is given. Scores: ``softmax(scale cos)``.

    Source: Li, Cheung, Lu, "Long-Tailed Visual Recognition via Gaussian Clouded Logit
    Adjustment", CVPR 2022, and "Adjusting Logit in Gaussian Form" (angular), TAI 2024, as
    released (repository Keke921/GCLLoss, c2a6233). Deviations:

    - The noise has its own generator, resumes exactly and differs between ranks; in the release
      it comes from torch's global one. Three losses of a cascade with the same ``seed`` draw the
      same numbers.
    - No noise in eval mode; the release has it in the validation loss, which it only logs.
    - Equal counts or a single class have amplitude 0, a class without examples counts as one;
      in the release NaN.
    - Ignored rows, weights, masks and a background column (``background_count``).
    - Class weights do not enter the focal factor; in the release they do if there are any.
    - Angular: the squared sine is at least 1e-12, so that the gradient stays finite.

    Args:
        scale, margin, noise_multiplier, focal_gamma: defaults of the released first stage on
            CIFAR (30, 0, 0.5, 0). Places: noise_multiplier 1. Second stage: margin 0.1,
            focal_gamma 1, and scale 20 (CIFAR) or 15 (Places). Margin and noise_multiplier of
            the angular form are angles, the latter in quarter turns (released 0.5 for Places).
        angular: the angular form.
        easy_margin: of the angular form, as released for Places.
        seed: of the noise.
        **kwargs: see :class:`~lt_det.losses.count_softmax.CountSoftmaxLoss`.

    Raises:
        ValueError: as there; a scale that is not positive, a negative parameter.
    """

    classifier = "cosine"
    noise_parameter = "noise_multiplier"
    exact_gradient_with = {"focal_gamma": 0.0}

    def __init__(
        self,
        *,
        scale: float = 30.0,
        margin: float = 0.0,
        noise_multiplier: float = 0.5,
        focal_gamma: float = 0.0,
        angular: bool = False,
        easy_margin: bool = True,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(scale=scale)
        check_at_least(
            0, margin=margin, noise_multiplier=noise_multiplier, focal_gamma=focal_gamma, seed=seed
        )
        self.scale, self.margin = scale, margin
        self.noise_multiplier, self.focal_gamma = noise_multiplier, focal_gamma
        self.angular, self.easy_margin = angular, easy_margin
        self.constant("amplitude", log_amplitude(self.counts))
        self.noise = NoiseSource(seed)

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}; draws noise in training."""
        noise = None
        if self.training and self.noise_multiplier:
            noise = self.noise.normal(x.logits.shape, std=NOISE_STD, device=x.logits.device)
        terms = _terms(
            x.logits,
            self.amplitude,
            noise,
            self.scale,
            self.margin,
            self.noise_multiplier,
            self.focal_gamma,
            self.angular,
            self.easy_margin,
        )
        return {"loss_cls": self.cross_entropy(x, terms)}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + (
            f", scale={self.scale}, margin={self.margin}, noise_multiplier="
            f"{self.noise_multiplier}, focal_gamma={self.focal_gamma}, angular={self.angular}"
        )
