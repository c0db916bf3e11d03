"""Losses that change over training: they all read one number, the progress."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScheduledLoss(nn.Module):
    """Mixin: a float64 buffer ``progress``, 0 at the start of training and 1 at its end.

    Something has to set it: ``lt_det.engine``'s trainer does before every step, a loop of one's
    own calls :func:`set_progress`. Otherwise it stays 0. A loss compares it on the device, so
    that nothing waits.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))

    def reached(self, start: float) -> Tensor | bool:
        """Whether the phase that starts at progress `start` has begun; never if it is 1."""
        return False if start >= 1 else self.progress >= start

    def reset(self) -> bool:
        """Back to progress 0; whether that is a change."""
        moved = bool(self.progress)
        self.progress.zero_()
        return moved


def scheduled_losses(model: nn.Module) -> list[ScheduledLoss]:
    """The losses of `model` that follow a schedule."""
    return [m for m in model.modules() if isinstance(m, ScheduledLoss)]


def set_progress(model: nn.Module, value: float) -> None:
    """Tell all losses of `model` how far training has come.

    Raises:
        ValueError: `value` outside of [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"progress is {value}; it runs from 0 to 1")
    for loss in scheduled_losses(model):
        loss.progress.fill_(value)


def check_progress(**params: float) -> None:
    """Raise a ValueError that names the parameters which are not in [0, 1]."""
    for name, value in params.items():
        if not 0 <= value <= 1:
            raise ValueError(
                f"{name}={value} in MODEL.LT.LOSS.PARAMS is a share of the training: 0 = from "
                "the start, 1 = never"
            )
