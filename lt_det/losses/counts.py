"""What the losses derive from the number of training examples of each class.

All functions compute in float64 and are defined for equal counts, for a single class and for
counts in any order, where the formulas of the papers give 0/0.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def safe_counts(class_counts: Tensor) -> Tensor:
    """(C,) float64 counts of at least one.

    A class without a training example counts as one with one example, and a warning says so:
    its logarithm and its inverse would not be finite.

    Raises:
        ValueError: not a vector, or a negative count.
    """
    counts = torch.as_tensor(class_counts).detach().to(torch.float64)
    if counts.dim() != 1 or counts.numel() == 0 or not bool((counts >= 0).all()):
        raise ValueError(f"class_counts must be (C,) numbers of at least 0, got {class_counts}")
    empty = int((counts < 1).sum())
    if empty:
        logger.warning(
            "%d of %d classes have no training example and are treated as if they had one. "
            "See DATASETS.TRAIN and MODEL.LT.CLASS_COUNTS.",
            empty,
            len(counts),
        )
    return counts.clamp(min=1)


def with_background(counts: Tensor, background_count: float | None) -> Tensor:
    """(C+1,) counts with that of the background last.

    Args:
        counts: (C,) of at least one.
        background_count: None = as many as the largest class.

    Raises:
        ValueError: `background_count` is not positive.
    """
    if background_count is None:
        return torch.cat([counts, counts.max()[None]])
    if not 0 < background_count < math.inf:
        raise ValueError(
            f"background_count={background_count} in MODEL.LT.LOSS.PARAMS must be positive"
        )
    return torch.cat([counts, counts.new_tensor([background_count])])


def log_amplitude(counts: Tensor) -> Tensor:
    """(C,) ``(ln n_max - ln n_j) / (ln n_max - ln n_min)``: 0 = most frequent, 1 = rarest.

    0 for every class if all counts are equal.
    """
    gap = counts.max().log() - counts.log()
    return _divide_by_largest(gap)


def linear_ramp(counts: Tensor) -> Tensor:
    """(C,) ``(n_j - n_min) / (n_max - n_min)``: 1 = most frequent, 0 = rarest.

    1 for every class if all counts are equal: each is the most frequent.
    """
    return 1 - _divide_by_largest(counts.max() - counts)


def effective_number_weights(counts: Tensor, beta: float) -> Tensor:
    """(C,) ``(1 - beta) / (1 - beta^n_j)``, scaled to the sum C.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.

    Args:
        counts: (C,) of at least one.
        beta: in [0, 1); 0 weighs all classes alike.

    Raises:
        ValueError: `beta` outside of [0, 1).
    """
    check_beta(beta)
    if beta == 0:
        return torch.ones_like(counts)
    weights = (1 - beta) / -torch.expm1(counts * math.log(beta))
    return weights * (len(counts) / weights.sum())


def check_beta(beta: float) -> None:
    """Raise a ValueError unless `beta` is in [0, 1)."""
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta} in MODEL.LT.LOSS.PARAMS must be in [0, 1)")


def _divide_by_largest(gap: Tensor) -> Tensor:
    largest = gap.max()
    return gap / torch.where(largest > 0, largest, torch.ones_like(largest))
