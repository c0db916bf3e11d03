"""What the losses of a dense head are divided by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_det.dist import sum_over_ranks, world_size

NORMALIZERS = ("ranks", "running", "local")
EMPTY_BATCHES = ("running", "one")

# Detectron2's: the mean starts at 100 positives a rank and forgets with 0.9.
_START, _MOMENTUM = 100.0, 0.9


class DenseNormalizer(nn.Module):
    """Number of positive anchors that the losses of a step are divided by.

    With n_r positives on rank r, n their sum over W ranks:

    - "ranks": ``max(1, n) / W``, the same on every rank. As gradients are averaged over ranks, the
      step is that of one process with all images.
    - "running": the running mean of that number, Detectron2's way for RetinaNet. Deviation:
      there every rank has a mean of its own, as a Python number that a resumed run has lost.
    - "local": ``max(1, n_r)``, each rank its own.

    A batch without positives has nothing but negatives. Divided by 1, it
    moves weights and gradient statistics as much as a usual batch has positives. With
    ``empty_batch="running"`` it is divided by the running mean and leaves that mean alone ("local"
    looks at the rank's own positives, the mean at those of all ranks); with
    "one" it is divided as the formula says (``1 / W`` for "ranks", as released).

    Source: "ranks" and "local" with "one" are ``retina_post_iou`` and ``retina_post`` of
    ModelTC/United-Perception.

    Buffers:
        running: 0-dim float64, running mean of ``max(1, n) / W`` with momentum 0.9, from 100.

    Args:
        kind: one of ``NORMALIZERS``.
        empty_batch: one of ``EMPTY_BATCHES``.

    Raises:
        ValueError: another value; the message lists the accepted ones.
    """

    def __init__(self, kind: str = "ranks", empty_batch: str = "running"):
        super().__init__()
        for key, value, accepted in (
            ("NORMALIZER", kind, NORMALIZERS),
            ("EMPTY_BATCH", empty_batch, EMPTY_BATCHES),
        ):
            if value not in accepted:
                raise ValueError(
                    f"MODEL.LT.DENSE.{key} is {value!r}; accepted are {', '.join(accepted)}"
                )
        self.kind, self.empty_batch = kind, empty_batch
        self.register_buffer("running", torch.tensor(_START, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, num_positives: Tensor) -> Tensor:
        """Positives of this rank, 0-dim integer, to the normaliser, 0-dim float32.

        Call it on every rank in every step. Does not wait for the device.
        """
        total = sum_over_ranks(num_positives.double())
        mean = total.clamp(min=1) / world_size()
        empty = torch.zeros_like(total, dtype=torch.bool)
        if self.empty_batch == "running":
            empty = total == 0
        moved = _MOMENTUM * self.running + (1 - _MOMENTUM) * mean
        running = torch.where(empty, self.running, moved)
        if self.training:
            self.running.copy_(running)
        if self.kind == "running":
            return running.float()
        if self.kind == "local":
            mean = num_positives.double().clamp(min=1)
            if self.empty_batch == "running":
                empty = num_positives == 0
        return torch.where(empty, running, mean).float()

    def _apply(self, fn, recurse: bool = True):
        # State of the training: it follows the model to another device, never to another dtype.
        kept = self.running
        super()._apply(fn, recurse)
        self.running = kept.to(self.running.device)
        return self

    def reset(self) -> bool:
        """Back to the start, for a new training from other weights; whether it had moved."""
        moved = bool(self.running != _START)
        self.running.fill_(_START)
        return moved

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"kind={self.kind}, empty_batch={self.empty_batch}"
