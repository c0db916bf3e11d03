"""Per-class sums of positive and negative gradient, the state of the equalization losses."""

from __future__ import annotations

import hashlib
import logging

import torch
from torch import Tensor, nn

from lt_det.dist import sum_over_ranks

logger = logging.getLogger(__name__)

# In every released implementation; keeps the ratio of a class without negatives finite.
RATIO_EPS = 1e-10


class GradStats(nn.Module):
    """How much positive and negative gradient each class has received so far.

    Plain sums over the whole run, no momentum and no decay. They are float64 and stay float64
    under ``model.half()``: in float32 the sum of a frequent class soon exceeds what one step
    can move.

    Buffers:
        pos: (C,) float64, sum of |dL/dz_ij| over rows i that are positive for class j.
        neg: (C,) float64, the same over rows that are negative for class j.
        steps: updates done.
        skipped: updates dropped because a value was not finite.
        counts_id: fingerprint of the class counts the sums belong to, 0 = unknown.

    Args:
        num_classes: C.
        class_counts: (C,) training examples per class; only their fingerprint is kept.
    """

    def __init__(self, num_classes: int, class_counts: Tensor | None = None):
        super().__init__()
        self.register_buffer("pos", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("neg", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))
        self.register_buffer("counts_id", torch.tensor(counts_fingerprint(class_counts)))

    def ratio(self) -> Tensor:
        """(C,) float64 positive over negative sum; 0 for a class that has received neither."""
        return self.pos / (self.neg + RATIO_EPS)

    @torch.no_grad()
    def update(self, pos: Tensor, neg: Tensor) -> None:
        """Add one step's sums, over all ranks.

        Must be called on every rank in every step, with or without rows. If any value of the
        reduced sums is not finite nothing is added, on all ranks alike, and ``skipped`` grows.

        Args:
            pos: (C,) sums over this rank's rows that are positive for the class.
            neg: (C,) sums over those that are negative for it.
        """
        step = sum_over_ranks(torch.stack([pos, neg]).to(self.pos.dtype))
        finite = torch.isfinite(step).all()
        step = torch.where(finite, step, torch.zeros_like(step))
        self.pos.add_(step[0])
        self.neg.add_(step[1])
        self.steps.add_(finite)
        self.skipped.add_(~finite)

    def reset(self) -> None:
        """Back to the state before the first step."""
        for buffer in (self.pos, self.neg, self.steps, self.skipped):
            buffer.zero_()

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"num_classes={len(self.pos)}"

    def _apply(self, fn, recurse: bool = True):
        # Follow the model to another device, never to another dtype.
        for name, buffer in self._buffers.items():
            device = fn(torch.empty(0, device=buffer.device)).device
            self._buffers[name] = buffer.to(device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        reason = self._mismatch(state_dict, prefix)
        if reason:
            logger.warning("Gradient statistics %s start from zero: %s", prefix or "", reason)
            for name, buffer in self._buffers.items():
                state_dict[prefix + name] = torch.zeros_like(buffer)
            state_dict[prefix + "counts_id"] = self.counts_id.clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _mismatch(self, state_dict: dict, prefix: str) -> str | None:
        """Why the sums in `state_dict` do not belong to these classes; None if they do."""
        if prefix + "pos" not in state_dict:
            return None  # reported by the caller as a missing key
        stored = state_dict[prefix + "pos"]
        if stored.shape != self.pos.shape:
            return f"the checkpoint has {len(stored)} classes, the loss has {len(self.pos)}"
        stored_id = int(state_dict.get(prefix + "counts_id", 0))
        if stored_id and int(self.counts_id) and stored_id != int(self.counts_id):
            return "the class counts of the checkpoint are not those of MODEL.LT.CLASS_COUNTS"
        return None


def counts_fingerprint(class_counts: Tensor | None) -> int:
    """A 63-bit number that identifies class counts; 0 for None."""
    if class_counts is None:
        return 0
    data = class_counts.detach().cpu().to(torch.float64).numpy().tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> 1


def reset_grad_stats(model: nn.Module) -> int:
    """Reset every GradStats of `model` that has seen a step.

    Returns:
        How many were reset.
    """
    used = [m for m in model.modules() if isinstance(m, GradStats) and int(m.steps + m.skipped)]
    for stats in used:
        stats.reset()
    return len(used)
