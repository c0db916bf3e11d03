"""Learning rates: those that differ within a model, and the poly schedule."""

from __future__ import annotations

import torch
from detectron2 import solver
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from torch import nn

from lt_det.errors import ConfigError

KEY = "SOLVER.LT.CLASSIFIER_LR_FACTOR"


def scale_learning_rate(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Multiply the learning rate of ``model.classifier`` by `factor`, in place.

    Groups of the optimizer that hold parameters of the classifier and others are split.

    Raises:
        ConfigError: a factor that is not above 0, or another than 1 for a model without
            ``classifier``.
    """
    if not factor > 0:
        raise ConfigError(f"{KEY} is {factor}; it must be above 0 (MODEL.LT.FREEZE freezes)")
    if factor == 1:
        return
    if not hasattr(model, "classifier"):
        raise ConfigError(
            f"{KEY} is {factor}, but {type(model).__name__} has no `classifier`: the key is for "
            "image classification"
        )
    chosen = {id(p) for p in model.classifier.parameters()}
    for group in list(optimizer.param_groups):
        inside = [p for p in group["params"] if id(p) in chosen]
        if not inside:
            continue
        outside = [p for p in group["params"] if id(p) not in chosen]
        if outside:
            group["params"] = outside
            group = {**group, "params": inside}
            optimizer.param_groups.append(group)
        group["lr"] *= factor
        if "initial_lr" in group:
            group["initial_lr"] *= factor


class PolyLR(WarmupPolyLR):
    """``WarmupPolyLR`` of Detectron2's DeepLab project, of which a checkpoint holds the place only.

    Detectron2's other schedules do the same: length, power and warm-up are the configuration's,
    so that a resumed run takes the schedule that it is given.
    """

    def state_dict(self) -> dict:
        """Initial rates and number of steps."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of :meth:`state_dict`."""
        self.base_lrs, self.last_epoch = state["base_lrs"], state["last_epoch"]


def build_lr_scheduler(cfg, optimizer: torch.optim.Optimizer):
    """Detectron2's schedules, and ``WarmupPolyLR`` with ``SOLVER.POLY_LR_*``."""
    node = cfg.SOLVER
    if node.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return solver.build_lr_scheduler(cfg, optimizer)
    return PolyLR(
        optimizer,
        node.MAX_ITER,
        warmup_factor=node.WARMUP_FACTOR,
        warmup_iters=node.WARMUP_ITERS,
        warmup_method=node.WARMUP_METHOD,
        power=node.POLY_LR_POWER,
        constant_ending=node.POLY_LR_CONSTANT_ENDING,
    )
