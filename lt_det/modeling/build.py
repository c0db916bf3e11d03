"""From configuration to loss and classifier, the same way for every head."""

from __future__ import annotations

from torch import nn

from lt_det.errors import ConfigError
from lt_det.losses import LongTailLoss, build_loss
from lt_det.modeling.classifier import build_classifier


def loss_from_config(cfg, *, num_classes: int, has_background: bool) -> LongTailLoss:
    """The loss of ``MODEL.LT.LOSS`` with the counts of ``MODEL.LT.CLASS_COUNTS``.

    Raises:
        ConfigError: whatever :func:`~lt_det.losses.build_loss` finds wrong.
    """
    node = cfg.MODEL.LT.LOSS
    try:
        return build_loss(
            node.NAME,
            num_classes=num_classes,
            has_background=has_background,
            class_counts=list(cfg.MODEL.LT.CLASS_COUNTS) or None,
            **node.PARAMS,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"MODEL.LT.LOSS: {error}") from error


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
