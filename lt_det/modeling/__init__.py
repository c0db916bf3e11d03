"""Heads. Importing this package registers them with Detectron2."""

from lt_det.modeling.classifier import CosineClassifier, build_classifier
from lt_det.modeling.roi_heads import (
    LongTailCascadeROIHeads,
    LongTailOutputLayers,
    LongTailRes5ROIHeads,
    LongTailROIHeads,
)

__all__ = [
    "CosineClassifier",
    "LongTailCascadeROIHeads",
    "LongTailOutputLayers",
    "LongTailRes5ROIHeads",
    "LongTailROIHeads",
    "build_classifier",
]
