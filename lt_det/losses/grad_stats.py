"""Per-class sums of positive and negative gradient, the state of the equalization losses."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lt_det.dist import sum_over_ranks

logger = logging.getLogger(__name__)

# In every released implementation; keeps the ratio of a class without negatives finite.
RATIO_EPS = 1e-10


class Accumulators(nn.Module):
    """Per-class sums over the whole run: the part that all accumulators have in common.

    Plain sums, no momentum and no decay. They are float64 and stay float64 under
    ``model.half()``: in float32 the sum of a frequent class soon exceeds what one step can move.

    Buffers:
        steps: updates done.
        skipped: updates dropped because a value was not finite.
        counts_id: fingerprint of the class counts the sums belong to, 0 = unknown.

    Args:
        sizes: name -> number of entries of each sum.
        class_counts: (C,) training examples per class; only their fingerprint is kept.
        passes: what the passes of one optimiser step add together under :func:`one_update`.
            "sum"; "mean" for sums that are divided by the normaliser of their pass, as the
            gradients of the passes are averaged; "each" = every pass is an update of its own,
            for a loss that needs the sums of a pass in that pass.
    """

    def __init__(
        self, sizes: dict[str, int], class_counts: Tensor | None = None, *, passes: str = "sum"
    ):
        super().__init__()
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))
        self.register_buffer("counts_id", torch.tensor(counts_fingerprint(class_counts)))
        self.passes = passes
        self._sizes = dict(sizes)
        self._held: Tensor | None = None

    def sums(self) -> dict[str, Tensor]:
        """The sums by name, without the counters."""
        return {name: self._buffers[name] for name in self._sizes}

    @torch.no_grad()
    def add(self, step: Tensor) -> None:
        """Add one step's sums, over all ranks.

        Must be called on every rank in every step, with or without rows. If any value of the
        reduced sums is not finite nothing is added, on all ranks alike, and ``skipped`` grows.

        Args:
            step: this rank's sums, those of all buffers one after the other.
        """
        if self._held is not None:
            self._held += step
            return
        step = sum_over_ranks(step.to(torch.float64))
        finite = torch.isfinite(step).all()
        step = torch.where(finite, step, torch.zeros_like(step))
        parts = step.split(list(self._sizes.values()))
        for total, part in zip(self.sums().values(), parts, strict=True):
            total.add_(part)
        self.steps.add_(finite)
        self.skipped.add_(~finite)

    @contextlib.contextmanager
    def one_update(self, num_passes: int) -> Iterator[None]:
        """See :func:`one_update`."""
        if num_passes == 1 or self.passes == "each":
            yield
            return
        held = self._held = self.steps.new_zeros(sum(self._sizes.values()), dtype=torch.float64)
        try:
            yield
        finally:
            self._held = None
        self.add(held / num_passes if self.passes == "mean" else held)

    def reset(self) -> bool:
        """Back to the state before the first step; whether there had been one."""
        used = bool(self.steps + self.skipped)
        for name, buffer in self._buffers.items():
            if name != "counts_id":
                buffer.zero_()
        return used

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return ", ".join(f"{name}: {size}" for name, size in self._sizes.items())

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
        for name, size in self._sizes.items():
            if prefix + name not in state_dict:
                return None  # reported by the caller as a missing key
            stored = len(state_dict[prefix + name])
            if stored != size:
                return f"the checkpoint has {stored} classes, the loss has {size}"
        stored_id = int(state_dict.get(prefix + "counts_id", 0))
        if stored_id and int(self.counts_id) and stored_id != int(self.counts_id):
            return "the class counts of the checkpoint are not those of MODEL.LT.CLASS_COUNTS"
        return None


class GradStats(Accumulators):
    """How much positive and negative gradient each class has received so far.

    Buffers, beside those of :class:`Accumulators`:
        pos: (C,) float64, sum of |dL/dz_ij| over rows i that are positive for class j.
        neg: (C,) float64, the same over rows that are negative for class j.
        extra_pos, extra_neg: (E,) the same for further columns (a background that takes part
            in the re-balancing); only with ``num_extra``.

    Args:
        num_classes: C.
        class_counts: (C,) training examples per class; only their fingerprint is kept.
        num_extra: E, columns beyond the classes.
        passes: see :class:`Accumulators`.
    """

    def __init__(
        self,
        num_classes: int,
        class_counts: Tensor | None = None,
        num_extra: int = 0,
        *,
        passes: str = "sum",
    ):
        sizes = {"pos": num_classes, "neg": num_classes}
        if num_extra:
            sizes |= {"extra_pos": num_extra, "extra_neg": num_extra}
        super().__init__(sizes, class_counts, passes=passes)
        self.num_extra = num_extra

    def ratio(self) -> Tensor:
        """(C,) float64 positive over negative sum; 0 for a class that has received neither."""
        return self.pos / (self.neg + RATIO_EPS)

    def columns(self) -> tuple[Tensor, Tensor]:
        """Positive and negative sums (C+E,) of all columns, the classes first."""
        if not self.num_extra:
            return self.pos, self.neg
        return torch.cat([self.pos, self.extra_pos]), torch.cat([self.neg, self.extra_neg])

    def update(self, pos: Tensor, neg: Tensor) -> None:
        """Add one step's sums, over all ranks; see :meth:`Accumulators.add`.

        Args:
            pos: (C+E,) sums over this rank's rows that are positive for the column.
            neg: (C+E,) sums over those that are negative for it.
        """
        if self.num_extra:
            (pos, extra_pos), (neg, extra_neg) = (
                x.split([len(self.pos), self.num_extra]) for x in (pos, neg)
            )
            self.add(torch.cat([pos, neg, extra_pos, extra_neg]))
        else:
            self.add(torch.cat([pos, neg]))

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"num_classes={len(self.pos)}"


def counts_fingerprint(class_counts: Tensor | None) -> int:
    """A 63-bit number that identifies class counts; 0 for None."""
    if class_counts is None:
        return 0
    data = class_counts.detach().cpu().to(torch.float64).numpy().tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> 1


@contextlib.contextmanager
def one_update(model: nn.Module, num_passes: int) -> Iterator[None]:
    """The forward passes inside of the ``with`` are one update of every accumulator of `model`.

    For gradient accumulation: all passes see the sums from before the step, and what they add is
    reduced over ranks and applied once, at the end, also by a rank that added nothing. So the
    statistics are those of one large batch; see ``passes`` of :class:`Accumulators`. If the
    passes raise, what they added is dropped and nothing is sent. Every rank must enter and leave
    alike. With one pass nothing is held back.

    Args:
        model: holds the losses.
        num_passes: passes of the step, the same on every rank.
    """
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, Accumulators):
                stack.enter_context(module.one_update(num_passes))
        yield
