"""Batch normalisation over several ranks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lt_det.dist import sum_over_ranks, world_size


@torch.no_grad()
def average_norm_statistics(model: nn.Module) -> None:
    """Give every rank the mean of all ranks' running means and variances, in place.

    Each rank normalises by its own batches, so the running statistics drift apart; an evaluation
    over several ranks, and the checkpoint, are to be of one model. Every rank must call it.
    """
    running = [
        statistic
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
        for statistic in (module.running_mean, module.running_var)
    ]
    if world_size() == 1 or not running:
        return
    mean = sum_over_ranks(torch.cat(running)) / world_size()
    for statistic, part in zip(running, mean.split([len(s) for s in running]), strict=True):
        statistic.copy_(part)
