"""Every image equally often."""

from __future__ import annotations

import numpy as np

from lt_det.data.rules.base import SAMPLING_RULES, SamplingRule


@SAMPLING_RULES.register("instance")
class Instance(SamplingRule):
    """Every image once an epoch, or with the same probability: the data as they are.

    Also called instance-balanced sampling (Kang et al., "Decoupling Representation and
    Classifier for Long-Tailed Recognition", ICLR 2020, q = 1).
    """

    def __init__(self):
        super().__init__(cap=0)

    def class_weights(self, counts: np.ndarray, num_images: int) -> np.ndarray:
        """Ones."""
        return np.ones(len(counts))
