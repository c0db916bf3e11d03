"""Random state of a process, in a form that a checkpoint can hold."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import torch


def get_rng_state() -> dict:
    """State of the Python, numpy, torch and CUDA generators of this process.

    Only tensors and plain values, so that ``torch.load(weights_only=True)`` reads it.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict) -> None:
    """Inverse of :func:`get_rng_state`."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def preserved_rng():
    """Leave the random state as it was, whatever happens inside."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
