"""Heads. Importing this package registers them with Detectron2."""

from lt_det.modeling.cifar_resnet import CIFARResNet
from lt_det.modeling.classifier import CosineClassifier, build_classifier
from lt_det.modeling.image_classifier import LongTailClassifier
from lt_det.modeling.roi_heads import (
    LongTailCascadeROIHeads,
    LongTailOutputLayers,
    LongTailRes5ROIHeads,
    LongTailROIHeads,
)

__all__ = [
    "CIFARResNet",
    "CosineClassifier",
    "LongTailCascadeROIHeads",
    "LongTailClassifier",
    "LongTailOutputLayers",
    "LongTailRes5ROIHeads",
    "LongTailROIHeads",
    "build_classifier",
]
