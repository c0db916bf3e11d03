"""Rows of different lengths, one after the other in a flat array."""

from __future__ import annotations

import numpy as np


def offsets_of(sizes) -> np.ndarray:
    """(N + 1,) int64, where each of N rows of these sizes begins, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def ragged_index(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The places starts[i], ..., starts[i] + sizes[i] - 1 of every row i in turn."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
