"""Image classification through Detectron2's backbones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn

from lt_det.errors import ConfigError
from lt_det.losses import LongTailLoss
from lt_det.losses.layout import image_rows
from lt_det.modeling.build import classifier_from_config, loss_from_config
from lt_det.modeling.calibration import (
    Calibration,
    calibrated_scores,
    calibration_from_config,
    check_calibration,
    warn_of_double_correction,
)
from lt_det.modeling.classifier import ClassScale, tau_normalized_logits
from lt_det.modeling.freeze import FrozenParts
from lt_det.modeling.mixup import Mixup, mixed_terms


@META_ARCH_REGISTRY.register()
class LongTailClassifier(nn.Module):
    """Backbone, global average pooling, the classifier that the loss asks for, the loss.

    N is the number of images of a batch, C of classes, D of features. Images are classified into
    0..C-1; there is no background.

    Args:
        backbone: any of Detectron2's.
        feature: name of the output that is pooled, e.g. "res5".
        loss: built with ``has_background=False``.
        classifier: (N, D) -> (N, ``loss.num_logits``).
        pixel_mean, pixel_std: (3,) of the input, 0 to 255, in its order of channels.
        mixup: applied to the images in training; None = none.
        class_scale: learned factor on each output; None = none.
        tau: at inference, rows of a linear classifier are divided by their norm to the power
            tau and the bias is left out; 0 = not.
        calibration: of the logits at inference; None = none.
        keep_features: give the pooled features beside the scores at inference.
        freeze: dotted names of parts that do not train.
        freeze_norm: see :class:`~lt_det.modeling.freeze.FrozenParts`.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        feature: str,
        loss: LongTailLoss,
        classifier: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        mixup: Mixup | None = None,
        class_scale: nn.Module | None = None,
        tau: float = 0.0,
        calibration: Calibration | None = None,
        keep_features: bool = False,
        freeze: Sequence[str] = (),
        freeze_norm: str = "eval",
    ):
        super().__init__()
        self.backbone, self.feature = backbone, feature
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier
        self.cls_loss = loss
        self.class_scale = class_scale
        self.mixup = mixup
        self.calibration = calibration
        self.tau, self.keep_features = tau, keep_features
        for key, values in (("PIXEL_MEAN", pixel_mean), ("PIXEL_STD", pixel_std)):
            if len(values) != 3 or (key == "PIXEL_STD" and not min(values) > 0):
                raise ConfigError(f"MODEL.{key} is {list(values)}; it takes one number a channel")
        if not tau >= 0:
            raise ConfigError(f"TEST.LT.TAU_NORM is {tau}; it is at least 0")
        if tau and not isinstance(classifier, nn.Linear):
            raise ConfigError(
                f"TEST.LT.TAU_NORM is {tau}, but loss {type(loss).__name__} has a "
                f"{loss.classifier} classifier; tau-normalisation is for linear ones"
            )
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.frozen = FrozenParts(self, freeze, freeze_norm)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Translate `cfg`; see the class for the arguments."""
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        feature = cfg.MODEL.LT.FEATURE or list(shapes)[-1]
        if feature not in shapes:
            raise ConfigError(
                f"MODEL.LT.FEATURE is {feature!r}; backbone {cfg.MODEL.BACKBONE.NAME} gives "
                f"{', '.join(shapes)}"
            )
        loss = loss_from_config(cfg, num_classes=cfg.MODEL.LT.NUM_CLASSES, has_background=False)
        classifier = classifier_from_config(cfg, loss, shapes[feature].channels)
        return {
            "backbone": backbone,
            "feature": feature,
            "loss": loss,
            "classifier": classifier,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "mixup": mixup_from_config(cfg),
            "class_scale": ClassScale(loss.num_logits) if cfg.MODEL.LT.CLASS_SCALE else None,
            **_calibration_arguments(cfg, loss),
            "keep_features": cfg.TEST.LT.KEEP_FEATURES,
            "freeze": cfg.MODEL.LT.FREEZE,
            "freeze_norm": cfg.MODEL.LT.FREEZE_NORM,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def train(self, mode: bool = True):
        """As in torch; frozen parts stay in the mode they are frozen in."""
        super().train(mode)
        if mode:
            self.frozen.set_modes()
        return self

    def forward(self, batched_inputs: list[dict]):
        """Losses in training, predictions otherwise.

        Args:
            batched_inputs: "image" (3, H, W) uint8 or float, all of one size, and in training
                "label", int 0..C-1.

        Returns:
            {name: scalar}; or for each image {"scores": (C,) float32 in [0, 1]} and, with
            `keep_features`, "features" (D,).
        """
        images = self.preprocess(batched_inputs)
        if not self.training:
            features = self.features(images)
            scores = calibrated_scores(
                self.calibration, self.cls_loss, self.logits(features), self.classifier
            )
            outputs = [{"scores": row} for row in scores]
            if self.keep_features:
                for output, row in zip(outputs, features, strict=True):
                    output["features"] = row
            return outputs
        targets = torch.tensor([x["label"] for x in batched_inputs])
        targets = targets.to(self.device, non_blocking=True)
        if self.mixup is None:
            features = self.features(images)
            return self.cls_loss(self.logits(features), targets, features=self._needed(features))
        images, order, lam = self.mixup(images)
        features = self.features(images)
        return mixed_terms(
            self.cls_loss,
            self.logits(features),
            targets,
            targets[order],
            lam,
            features=self._needed(features),
        )

    def preprocess(self, batched_inputs: list[dict]) -> Tensor:
        """(N, 3, H, W) float32, normalised.

        Raises:
            ValueError: images of different sizes.
        """
        images = [x["image"] for x in batched_inputs]
        sizes = {tuple(x.shape) for x in images}
        if len(sizes) > 1:
            raise ValueError(
                f"a batch of images of different sizes {sorted(sizes)}; DATALOADER.LT.IMAGE has "
                "to bring them to one"
            )
        batch = torch.stack(images).to(self.device, non_blocking=True)
        return (batch - self.pixel_mean) / self.pixel_std

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D) pooled features."""
        return image_rows(self.pool(self.backbone(images)[self.feature]))

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, L)."""
        if self.tau and not self.training:
            logits = tau_normalized_logits(features, self.classifier.weight, self.tau)
        else:
            logits = self.classifier(features)
        return logits if self.class_scale is None else self.class_scale(logits)

    def _needed(self, features: Tensor) -> Tensor | None:
        return features if self.cls_loss.needs_features else None


def _calibration_arguments(cfg, loss: LongTailLoss) -> dict:
    """The tau of the classifier's rows, and any other calibration.

    Raises:
        ConfigError: tau set in two places, or what
            :func:`~lt_det.modeling.calibration.calibration_from_config` finds wrong.
    """
    tau, node = cfg.TEST.LT.TAU_NORM, cfg.MODEL.LT.CALIBRATION
    if check_calibration(cfg) != "TauNorm":
        return {"tau": tau, "calibration": calibration_from_config(cfg, loss)}
    if tau:
        raise ConfigError(
            f"TEST.LT.TAU_NORM is {tau} and MODEL.LT.CALIBRATION.NAME TauNorm with STRENGTH "
            f"{node.STRENGTH}: they are the same, set one"
        )
    warn_of_double_correction(cfg.MODEL.LT.LOSS.NAME, node.NAME, node.STRENGTH)
    return {"tau": node.STRENGTH}


def mixup_from_config(cfg) -> Mixup | None:
    """The mixup of ``MODEL.LT.MIXUP``; None for 0."""
    if cfg.MODEL.LT.MIXUP == 0:
        return None
    return Mixup(cfg.MODEL.LT.MIXUP, seed=max(cfg.SEED, 0))
