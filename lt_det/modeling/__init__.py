"""Heads. Importing this package registers them with Detectron2."""

from lt_det.modeling.atss import LongTailATSS
from lt_det.modeling.calibration import adjust_logits, norcal, tau_normalize
from lt_det.modeling.cifar_resnet import CIFARResNet
from lt_det.modeling.classifier import CosineClassifier, build_classifier
from lt_det.modeling.dense import LongTailRetinaNet
from lt_det.modeling.fcn_head import FCNHead
from lt_det.modeling.fcos import LongTailFCOS
from lt_det.modeling.image_classifier import LongTailClassifier
from lt_det.modeling.roi_heads import (
    LongTailCascadeROIHeads,
    LongTailOutputLayers,
    LongTailRes5ROIHeads,
    LongTailROIHeads,
)
from lt_det.modeling.segmentor import LongTailSegmentor
from lt_det.modeling.sem_seg import LongTailDeepLabV3PlusHead, LongTailSemSegFPNHead
from lt_det.modeling.upernet_head import UPerNetHead

__all__ = [
    "CIFARResNet",
    "CosineClassifier",
    "FCNHead",
    "LongTailATSS",
    "LongTailCascadeROIHeads",
    "LongTailClassifier",
    "LongTailDeepLabV3PlusHead",
    "LongTailFCOS",
    "LongTailOutputLayers",
    "LongTailRes5ROIHeads",
    "LongTailROIHeads",
    "LongTailRetinaNet",
    "LongTailSegmentor",
    "LongTailSemSegFPNHead",
    "UPerNetHead",
    "adjust_logits",
    "build_classifier",
    "norcal",
    "tau_normalize",
]
