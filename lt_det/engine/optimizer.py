"""Learning rates: those that differ within a model, and the poly schedule."""

from __future__ import annotations

import torch
from detectron2 import solver
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from torch import nn

from lt_det.errors import ConfigError

KEY = "SOLVER.LT.CLASSIFIER_LR_FACTOR"
# Detectron2's, each of a single parameter, and ours.
_CLIP_TYPES = ("value", "norm", "full_model")


def max_grad_norm(cfg) -> float | None:
    """The L2 norm that all gradients together are clipped to; None = they are not.

    ``SOLVER.CLIP_GRADIENTS`` with ``CLIP_TYPE`` "full_model", as several projects built on
    Detectron2 call it.

    Raises:
        ConfigError: an unknown kind, or a norm other than 2 or a bound that is not above 0.
    """
    node = cfg.SOLVER.CLIP_GRADIENTS
    if not node.ENABLED:
        return None
    if node.CLIP_TYPE not in _CLIP_TYPES:
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {node.CLIP_TYPE!r}; accepted are "
            f"{', '.join(_CLIP_TYPES)}"
        )
    if node.CLIP_TYPE != "full_model":
        return None
    if node.NORM_TYPE != 2.0 or not node.CLIP_VALUE > 0:
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS has NORM_TYPE {node.NORM_TYPE} and CLIP_VALUE "
            f"{node.CLIP_VALUE}; with CLIP_TYPE full_model accepted are 2.0 and a value above 0"
        )
    return node.CLIP_VALUE


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
