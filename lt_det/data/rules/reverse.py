"""The "reverse" sampler of the released code."""

from __future__ import annotations

import numpy as np

from lt_det.data.rules.base import SAMPLING_RULES, SamplingRule


@SAMPLING_RULES.register("reverse")
class Reverse(SamplingRule):
    """Weight ``n_max / n_c``, as the released code of GCL has it.

    Since that is the weight of an image, not of its class, classes come out balanced, exactly as
    with `balanced`; the name is kept for those who reproduce that code. Sampling that favours
    rare classes beyond balance, as the second branch of BBN does, is `power` with exponent 2 in
    the form "draw".
    """

    def class_weights(self, counts: np.ndarray, num_images: int) -> np.ndarray:
        """``n_max / n_c``."""
        return counts.max() / counts
