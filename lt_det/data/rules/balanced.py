"""Every class equally often."""

from __future__ import annotations

import numpy as np

from lt_det.data.rules.base import SAMPLING_RULES, SamplingRule


@SAMPLING_RULES.register("balanced")
class Balanced(SamplingRule):
    """Weight ``1 / n_c``: with one class an image, every class is drawn equally often.

    Source: the code of GCL ("BalancedDatasetSampler"). The form "repeat" (``n_max / n_c``, at
    most `cap`) is ours.
    """

    def class_weights(self, counts: np.ndarray, num_images: int) -> np.ndarray:
        """``1 / n_c``."""
        return 1 / counts
