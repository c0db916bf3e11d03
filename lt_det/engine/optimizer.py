"""Learning rates that differ within a model."""

from __future__ import annotations

import torch
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
