"""From configuration to loss and classifier, the same way for every head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lt_det.errors import ConfigError
from lt_det.losses import LongTailLoss, build_loss
from lt_det.losses.build import loss_parameters
from lt_det.losses.federated import AnnotatedClasses, SampledClasses
from lt_det.modeling.classifier import build_classifier

FEDERATED_MODES = ("annotated", "sampled")


def loss_from_config(
    cfg,
    *,
    num_classes: int,
    has_background: bool,
    class_counts: Sequence[float] | None = None,
    seed_offset: int = 0,
) -> LongTailLoss:
    """The loss of ``MODEL.LT.LOSS``.

    Args:
        cfg: the configuration.
        num_classes: C.
        has_background: whether a target may be C.
        class_counts: (C,) training examples of each class, empty = unknown; None = those of
            ``MODEL.LT.CLASS_COUNTS``.
        seed_offset: added to ``SEED`` where the loss draws noise; another one for each of several
            heads keeps them from drawing the same.

    Raises:
        ConfigError: whatever :func:`~lt_det.losses.build_loss` finds wrong.
    """
    node = cfg.MODEL.LT.LOSS
    if class_counts is None:
        class_counts = cfg.MODEL.LT.CLASS_COUNTS
    params = dict(node.PARAMS)
    try:
        if "seed" in loss_parameters(node.NAME) and cfg.SEED >= 0:
            # Runs with other seeds draw other noise.
            params.setdefault("seed", cfg.SEED + seed_offset)
        return build_loss(
            node.NAME,
            num_classes=num_classes,
            has_background=has_background,
            class_counts=list(class_counts) or None,
            **params,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"MODEL.LT.LOSS: {error}") from error


def federated_from_config(cfg, *, num_classes: int) -> nn.Module | None:
    """What makes the class masks of ``MODEL.LT.FEDERATED``; None = all classes take part.

    Raises:
        ConfigError: unknown mode, or what
            :class:`~lt_det.losses.federated.SampledClasses` finds wrong.
    """
    node = cfg.MODEL.LT.FEDERATED
    if node.MODE not in ("", *FEDERATED_MODES):
        raise ConfigError(
            f"MODEL.LT.FEDERATED.MODE is {node.MODE!r}; accepted are "
            f"{', '.join(FEDERATED_MODES)} and '' (all classes take part)"
        )
    if not node.MODE:
        return None
    if node.MODE == "annotated":
        return AnnotatedClasses()
    counts = list(cfg.MODEL.LT.CLASS_COUNTS)
    try:
        return SampledClasses(
            num_classes,
            torch.as_tensor(counts) if counts else None,
            node.NUM_SAMPLED,
            node.POWER,
            seed=max(cfg.SEED, 0),
        )
    except ValueError as error:
        raise ConfigError(f"MODEL.LT.FEDERATED: {error}") from error


def classifier_from_config(cfg, loss: LongTailLoss, in_features: int) -> nn.Module:
    """The classifier of ``MODEL.LT.CLASSIFIER`` for `loss`."""
    node = cfg.MODEL.LT.CLASSIFIER
    return build_classifier(
        loss,
        in_features,
        name=node.NAME,
        scale=node.SCALE,
        init_std=node.INIT_STD,
        prior_prob=node.PRIOR_PROB,
    )
