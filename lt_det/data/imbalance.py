"""How long-tailed a data set is, in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lt_det.evaluation.groups import GROUPS, check_groups


def imbalance_factor(counts: Sequence[float] | np.ndarray) -> float:
    """Largest over smallest of (C,) counts; classes that count 0 are left out.

    Raises:
        ValueError: see `gini`.
    """
    counts = _checked(counts)
    present = counts[counts > 0]
    return float(present.max() / present.min())


def gini(counts: Sequence[float] | np.ndarray) -> float:
    """Gini coefficient of (C,) counts.

    The mean of |n_i - n_j| over all C * C pairs (i, j), divided by twice the mean of n.
    0: all classes have the same count; (C - 1) / C: one class has everything. Classes that
    count 0 take part as zeros.

    Raises:
        ValueError: `counts` is not one row of numbers >= 0, or none of them is above 0.
    """
    counts = np.sort(_checked(counts))
    number = len(counts)
    # In ascending order, n_(i) is the larger one of i - 1 pairs and the smaller one of C - i.
    rank = np.arange(1, number + 1)
    return float(((2 * rank - number - 1) * counts).sum() / (number * counts.sum()))


def top_share(counts: Sequence[float] | np.ndarray, number: int) -> float:
    """Part, 0..1, of all (C,) counts that the `number` largest classes hold.

    Raises:
        ValueError: see `gini`; or `number` is not in 0..C.
    """
    counts = np.sort(_checked(counts))[::-1]
    if not 0 <= number <= len(counts):
        raise ValueError(f"the top {number} of {len(counts)} classes")
    return float(counts[:number].sum() / counts.sum())


def group_shares(counts: Sequence[float] | np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Part, 0..1, of all (C,) counts that the classes of each group hold.

    Args:
        counts: (C,) numbers.
        groups: (C,) letters r, c or f.

    Returns:
        {"r": part, "c": part, "f": part}; 0 for a group without classes.

    Raises:
        ValueError: see `gini`; or `groups` has another length or an unknown letter.
    """
    counts = _checked(counts)
    check_groups(groups, len(counts))
    letters = np.asarray(list(groups))
    return {g: float(counts[letters == g].sum() / counts.sum()) for g in GROUPS}


def _checked(counts) -> np.ndarray:
    """`counts` as float64."""
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 1:
        raise ValueError(f"counts must have one number per class, got shape {counts.shape}")
    # `not >=` rather than `<`, so that NaN is refused as well.
    wrong = np.flatnonzero(~(counts >= 0) | np.isinf(counts))
    if len(wrong):
        raise ValueError(f"counts must be numbers >= 0; class {wrong[0]} has {counts[wrong[0]]}")
    if not counts.any():
        raise ValueError(f"none of the {len(counts)} classes has any count")
    return counts
