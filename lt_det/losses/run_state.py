"""What the losses carry along a training, and how a new training gets rid of it."""

from __future__ import annotations

from torch import nn

from lt_det.losses.dense_normalizer import DenseNormalizer
from lt_det.losses.grad_stats import Accumulators
from lt_det.losses.noise import NoiseSource
from lt_det.losses.schedule import ScheduledLoss


def reset_run_state(model: nn.Module) -> int:
    """Take all accumulators, noise sources, schedules and normalisers of `model` to their start.

    For a new training from the weights of another one.

    Returns:
        How many of them were not at their start.
    """
    kinds = (Accumulators, DenseNormalizer, NoiseSource, ScheduledLoss)
    return sum(m.reset() for m in model.modules() if isinstance(m, kinds))
