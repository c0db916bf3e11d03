"""Repeat-factor sampling with any exponent, and its usual one."""

from __future__ import annotations

import numpy as np

from lt_det.data.rules.base import PARAMS_KEY, SAMPLING_RULES, SamplingRule, check_range
from lt_det.errors import ConfigError


def repeat_factors(
    counts: np.ndarray, num_images: int, threshold: float, exponent: float
) -> np.ndarray:
    """``max(1, (threshold / f_c) ** exponent)`` with ``f_c = n_c / N``.

    Args:
        counts: (C,) int64 >= 1, images that hold each class.
        num_images: N.
        threshold: share of the images below which a class is repeated.
        exponent: 0.5 is LVIS's.

    Returns:
        (C,) float64 >= 1.
    """
    ratio = threshold / (counts / num_images)
    # sqrt is correctly rounded, a power of 0.5 need not be: the bits are to be Detectron2's.
    return np.maximum(1.0, np.sqrt(ratio) if exponent == 0.5 else ratio**exponent)


@SAMPLING_RULES.register("power")
class Power(SamplingRule):
    """Repeat-factor sampling: a class below `threshold` is repeated ``(t / f_c) ** exponent``.

    In the form "draw" an image of class c has the weight ``n_c ** -exponent``, so that the class
    is drawn in proportion to ``n_c ** (1 - exponent)``: exponent 0 is instance sampling, 0.5
    square-root sampling, 1 class-balanced, 2 reversed (class probability in proportion to
    1 / n_c, as the second branch of BBN draws).

    Source: Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR
    2019, section 5 (exponent 0.5); Kang et al., ICLR 2020, section 3.2 ("draw", q = 1 - exponent).

    Args:
        threshold: t, a share of the images above 0; form "repeat" only.
        exponent: see above, 0 to 4.
        cap: largest factor, 0 = none.
    """

    def __init__(self, *, threshold: float = 0.001, exponent: float = 0.5, cap: float = 0.0):
        super().__init__(cap=cap)
        if not 0 < threshold <= 1:
            raise ConfigError(f"threshold={threshold} in {PARAMS_KEY} must lie in (0, 1]")
        check_range("exponent", exponent, 0, 4)
        self.threshold, self.exponent = threshold, exponent

    def class_weights(self, counts: np.ndarray, num_images: int) -> np.ndarray:
        """``n_c ** -exponent``."""
        return counts.astype(np.float64) ** -self.exponent

    def class_factors(self, counts: np.ndarray, num_images: int) -> np.ndarray:
        """See :func:`repeat_factors`."""
        return repeat_factors(counts, num_images, self.threshold, self.exponent)


@SAMPLING_RULES.register("sqrt")
class SquareRoot(Power):
    """Power with exponent 0.5: LVIS's repeat-factor sampling, or square-root sampling.

    Its factors equal those of Detectron2's ``RepeatFactorTrainingSampler`` bit for bit. One
    deviation: crowds do not count as holding a class, since they are not trained on.

    Args:
        threshold: share of the images below which a class is repeated.
        cap: largest factor, 0 = none.
    """

    def __init__(self, *, threshold: float = 0.001, cap: float = 0.0):
        super().__init__(threshold=threshold, exponent=0.5, cap=cap)
