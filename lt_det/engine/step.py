"""One optimiser step: mixed precision, gradient accumulation, loss logging."""

from __future__ import annotations

import contextlib
import time

import torch
from detectron2.engine import SimpleTrainer
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from lt_det.losses import one_update

# Detectron2's writers run every 20 iterations. On an accelerator the losses are read as often:
# reading them in every iteration would wait for the device each time.
READ_PERIOD = 20


class StepTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one.

    Args:
        model: returns a dict of losses in training mode.
        data_loader: iterable with ``state_dict``, see ``lt_det.data.build.TrainLoader``. Its
            iterator is made at the first step, so that a checkpoint can set its position first.
        optimizer: as in Detectron2.
        accumulation_steps: forward/backward passes per optimiser step; their gradients are
            averaged, and the statistics of the losses are updated once.
        amp: mixed precision; float16 with a loss scale on CUDA, bfloat16 elsewhere.
        max_grad_norm: the gradients of all parameters together are scaled down to this L2 norm
            where it is larger; None = never.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        *,
        accumulation_steps: int = 1,
        amp: bool = False,
        max_grad_norm: float | None = None,
    ):
        TrainerBase.__init__(self)
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.accumulation_steps = accumulation_steps
        self.amp = amp
        self.max_grad_norm = max_grad_norm
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp and self.device_type == "cuda"
        )
        self._batches = None
        self._unread: list[tuple[int, list[str], torch.Tensor]] = []

    def run_step(self) -> None:
        """One optimiser step."""
        assert self.model.training, "the model was changed to eval mode"
        if self._batches is None:
            self._batches = iter(self.data_loader)
        self.optimizer.zero_grad()
        totals: dict[str, torch.Tensor] = {}
        data_time = 0.0
        with one_update(self.model, self.accumulation_steps):
            for k in range(self.accumulation_steps):
                start = time.perf_counter()
                batch = next(self._batches)
                data_time += time.perf_counter() - start
                with self._no_sync(last=k == self.accumulation_steps - 1):
                    for name, value in self._forward_backward(batch).items():
                        totals[name] = totals.get(name, 0) + value
        if self.max_grad_norm is not None:
            self.grad_scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self._record(totals, data_time)

    def flush(self) -> None:
        """Write the losses recorded so far to the event storage.

        Raises:
            FloatingPointError: a loss is not finite; the message names iteration and terms.
        """
        for iteration, names, values in self._unread:
            per_rank = comm.gather(values.tolist())
            if not comm.is_main_process():
                continue
            means = {
                n: sum(v) / len(v) for n, v in zip(names, zip(*per_rank, strict=True), strict=True)
            }
            total = sum(means.values())
            if not -float("inf") < total < float("inf"):
                self._unread.clear()
                raise FloatingPointError(
                    f"the loss is not finite at iteration {iteration}: {means}. A smaller "
                    "SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or "
                    "SOLVER.CLIP_GRADIENTS.ENABLED True usually help."
                )
            storage = get_event_storage()
            storage.put_scalar("total_loss", total)
            if len(means) > 1:
                storage.put_scalars(**means)
        self._unread.clear()

    def state_dict(self) -> dict:
        """Optimiser and loss scale. The place in the data is the rank's own, see the trainer."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Inverse of :meth:`state_dict`."""
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

    def _forward_backward(self, batch) -> dict[str, torch.Tensor]:
        """Losses, detached, each divided by the number of passes."""
        with self._autocast():
            losses = self.model(batch)
        losses = {name: value / self.accumulation_steps for name, value in losses.items()}
        self.grad_scaler.scale(sum(losses.values())).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _autocast(self):
        if not self.amp:
            return contextlib.nullcontext()
        dtype = torch.float16 if self.device_type == "cuda" else torch.bfloat16
        return torch.autocast(self.device_type, dtype=dtype)

    def _no_sync(self, last: bool):
        """Gradients travel between ranks once a step, in the last pass."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _record(self, losses: dict[str, torch.Tensor], data_time: float) -> None:
        names = sorted(losses)
        values = torch.stack([losses[name].float() for name in names])
        self._unread.append((self.iter, names, values))
        if comm.is_main_process():
            get_event_storage().put_scalar("data_time", data_time)
        if self.device_type == "cpu" or (self.iter + 1) % READ_PERIOD == 0:
            self.flush()
