"""The inverse of the effective number of images."""

from __future__ import annotations

import numpy as np

from lt_det.data.rules.base import DEFAULT_CAP, SAMPLING_RULES, SamplingRule, check_range


def effective_number(counts: np.ndarray, beta: np.ndarray | float) -> np.ndarray:
    """``E = (1 - beta ** n) / (1 - beta)``, the limit n where beta is 1.

    Args:
        counts: (C,) int64 >= 1.
        beta: one number in [0, 1], or (C,).

    Returns:
        (C,) float64 >= 1.
    """
    beta = np.broadcast_to(np.asarray(beta, np.float64), np.shape(counts))
    limit = beta == 1
    safe = np.where(limit, 0.0, beta)
    # expm1 and log1p keep the digits that 1 - beta ** n loses for beta near 1.
    with np.errstate(divide="ignore"):  # log(0) at beta 0: expm1(-inf) = -1, so E = 1
        number = -np.expm1(counts * np.log(safe)) / (1 - safe)
    return np.where(limit, counts, number)


@SAMPLING_RULES.register("effective")
class Effective(SamplingRule):
    """Weight ``1 / E_c`` with the effective number of images at a fixed beta.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    equation 2; as a sampler in the code of GCL. The form "repeat" is ours.

    Args:
        beta: 0 (all classes alike) to 1 (class-balanced).
        cap: largest factor in the form "repeat", 0 = none.
    """

    def __init__(self, *, beta: float = 0.9999, cap: float = DEFAULT_CAP):
        super().__init__(cap=cap)
        check_range("beta", beta, 0, 1)
        self.beta = beta

    def class_weights(self, counts: np.ndarray, num_images: int) -> np.ndarray:
        """``1 / E_c``."""
        return 1 / effective_number(counts, self.beta)
