"""Class-based effective number (CBEN)."""

from __future__ import annotations

import numpy as np

from lt_det.data.rules.base import (
    DEFAULT_CAP,
    PARAMS_KEY,
    SAMPLING_RULES,
    SamplingRule,
    check_range,
)
from lt_det.data.rules.effective import effective_number
from lt_det.errors import ConfigError


def class_based_beta(counts: np.ndarray, a: float, b: float) -> np.ndarray:
    """``beta_c = a + b t_c``, t_c falling with log n_c from 1 (rarest) to 0 (most frequent).

    Args:
        counts: (C,) int64 >= 1.
        a: beta of the most frequent class.
        b: what the rarest class has more.

    Returns:
        (C,) float64. With equal counts t_c is 0 everywhere (the released code divides 0 by 0).
    """
    logs = np.log(counts)
    span = logs.max() - logs.min()
    t = (logs.max() - logs) / span if span > 0 else np.zeros(len(logs))
    return a + b * t


@SAMPLING_RULES.register("cben")
class CBEN(SamplingRule):
    """Weight ``1 / E_c`` with an effective number whose beta depends on the class.

    Source: Li, Cheung and Lu, "Long-tailed Visual Recognition via Gaussian Clouded Logit
    Adjustment", CVPR 2022, and its released sampler, whose constants are the defaults. Two
    deviations: beta is computed in float64 (in float32 there; the weights differ by up to 6e-5),
    and equal counts give equal weights rather than NaN.

    The form "repeat" is ours, for images that hold many classes and cannot be drawn by class:
    the factor of an image is the largest of its classes' ``1 / E_c``, scaled so that the most
    frequent class has 1, at most `cap`; why there is one, and why 100, stands at ``DEFAULT_CAP``.
    Where nearly every image holds a rare class all factors reach the cap and nothing is balanced;
    `tools/preview_sampling.py` and the log of a training say so.

    Args:
        a: beta of the most frequent class.
        b: what the rarest class has more; a + b at most 1.
        cap: largest factor in the form "repeat", 0 = none.
    """

    def __init__(self, *, a: float = 0.9999, b: float = 1e-5, cap: float = DEFAULT_CAP):
        super().__init__(cap=cap)
        check_range("a", a, 0, 1)
        check_range("b", b, 0, 1)
        if a + b > 1:
            raise ConfigError(f"a={a} and b={b} in {PARAMS_KEY} must not exceed 1 together")
        self.a, self.b = a, b

    def class_weights(self, counts: np.ndarray, num_images: int) -> np.ndarray:
        """``1 / E_c``."""
        return 1 / effective_number(counts, class_based_beta(counts, self.a, self.b))
