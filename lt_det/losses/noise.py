"""Random numbers of a loss: reproducible, resumable, different on every rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_det.dist import rank

_MASK = 2**64 - 1


class NoiseSource(nn.Module):
    """Random numbers that depend on a seed and on the number of draws so far.

    Each draw seeds a ``torch.Generator`` of its own, on the device where the numbers are wanted,
    from (seed, draws so far, rank). The state is therefore two integers instead of a
    generator's bytes, with three consequences: a checkpoint, which holds the state of one rank,
    resumes the noise of *every* rank; it can be resumed on another device; and nothing is drawn
    on the CPU and copied. Torch's global generators are never touched. The state is in the
    state_dict as extra state, not as a buffer: a buffer would be moved to the device and reading
    it back would wait there.

    The numbers are drawn in float32, the same for every dtype.

    Args:
        seed: at least 0. That of a checkpoint wins.

    Attributes:
        draws: how often numbers were drawn.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed, self.draws = seed, 0
        self._own_seed = seed

    @torch.compiler.disable  # a compiler cannot trace the making of a generator
    def normal(self, shape: tuple[int, ...], *, std: float, device: torch.device) -> Tensor:
        """`shape` float32 numbers from Normal(0, std); the next call gives others."""
        generator = self._next_generator(device)
        return torch.empty(shape, device=device).normal_(0, std, generator=generator)

    def uniform(self, shape: tuple[int, ...], *, device: torch.device) -> Tensor:
        """`shape` float32 numbers from [0, 1); the next call gives others."""
        return torch.rand(shape, device=device, generator=self._next_generator(device))

    def _next_generator(self, device: torch.device) -> torch.Generator:
        generator = torch.Generator(device=device)
        generator.manual_seed(_mix(self.seed, self.draws, rank()))
        self.draws += 1
        return generator

    def get_extra_state(self) -> Tensor:
        """(2,) int64: seed and draws."""
        return torch.tensor([self.seed, self.draws])

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of :meth:`get_extra_state`."""
        self.seed, self.draws = (int(v) for v in state)

    def reset(self) -> bool:
        """Back to the seed it was made with and no draws; whether that is a change."""
        before = (self.seed, self.draws)
        self.seed, self.draws = self._own_seed, 0
        return before != (self.seed, self.draws)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"seed={self.seed}"


def _mix(*numbers: int) -> int:
    """A 63-bit seed: close numbers give unrelated ones (the finaliser of splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1
