"""What a model predicts for the images of a test set: at the least cost, and only once."""

from __future__ import annotations

import hashlib
import json
import os

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances, ROIMasks
from detectron2.utils.file_io import PathManager
from torch import nn

import lt_det
from lt_det.config import node_at
from lt_det.evaluation.lvis import LongTailLVISEvaluator

# What the predictions for an image do not depend on.
_OTHER_KEYS = (
    *("DATALOADER", "MODEL.WEIGHTS", "OUTPUT_DIR", "SEED", "SOLVER", "VIS_PERIOD"),
    *("TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS", "TEST.LT.BEST_METRIC", "TEST.LT.BOOTSTRAP"),
)


class MasksInBoxes(nn.Module):
    """A ``GeneralizedRCNN`` in inference whose masks stay inside their boxes.

    As the model itself, but `pred_masks` are :class:`ROIMasks` of (N, M, M) probabilities and
    not (N, H, W) of whole images, which take 92 MB for 300 detections at 480 x 640.

    Args:
        model: the model, without DistributedDataParallel; both share the training mode.
    """

    def __init__(self, model: GeneralizedRCNN):
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, batch: list[dict]) -> list[dict]:
        """As the forward pass of the model in inference."""
        found = self.model.inference(batch, do_postprocess=False)
        return [
            {"instances": postprocess(instances, image)}
            for image, instances in zip(batch, found, strict=True)
        ]


def masks_in_boxes(model: nn.Module) -> nn.Module:
    """`model` that gives its masks inside boxes if it can, or `model` itself.

    It can if it is a ``GeneralizedRCNN`` that has masks and that does not change inference.
    """
    inner = getattr(model, "module", model)  # under DistributedDataParallel
    plain = (
        isinstance(inner, GeneralizedRCNN)
        and type(inner).inference is GeneralizedRCNN.inference
        and type(inner).forward is GeneralizedRCNN.forward
    )
    return MasksInBoxes(inner) if plain and getattr(inner.roi_heads, "mask_on", False) else model


def postprocess(instances: Instances, image: dict) -> Instances:
    """Detectron2's ``detector_postprocess`` without the pasting of masks.

    Boxes are scaled to the image and clipped, and what is empty then is dropped.

    Args:
        instances: of :meth:`GeneralizedRCNN.inference` before postprocessing; `pred_masks`, if
            there, of shape (N, 1, M, M). They may be changed.
        image: the sample of the loader, with "height" and "width" of the image in pixels; by
            default those of the network's input.

    Returns:
        With `pred_masks` as :class:`ROIMasks`.
    """
    height, width = (
        image.get(k, n) for k, n in zip(("height", "width"), instances.image_size, strict=True)
    )
    with_masks = instances.has("pred_masks")
    if with_masks:
        # Under another name Detectron2 does with them as with scores: it keeps or drops them.
        instances.roi_masks = _roi_masks(instances.pred_masks)
        instances.remove("pred_masks")
    result = detector_postprocess(instances, height, width)
    if with_masks:
        result.pred_masks = result.roi_masks
        result.remove("roi_masks")
    return result


def _roi_masks(masks: torch.Tensor | ROIMasks) -> ROIMasks:
    return masks if isinstance(masks, ROIMasks) else ROIMasks(masks[:, 0])


def prediction_fingerprint(
    cfg: CfgNode, weights: str | None, counts_fingerprint: str | None, annotations: str
) -> str:
    """What decides the predictions for a test set, as SHA-256; "" if it is not known.

    Of the configuration, all but what is about the training and the loader; of the files, place,
    size and time of the last change; of the code, only the versions.

    Args:
        cfg: prepared.
        weights: checkpoint; None: those of a running training, which no file may hold.
        counts_fingerprint: of the class counts of the training set, which some scores depend on.
        annotations: file of the test set.
    """
    if not weights:
        return ""
    own = cfg.clone()
    own.defrost()
    for key in _OTHER_KEYS:
        above, _, name = key.rpartition(".")
        (node_at(own, above) if above else own).pop(name)
    files = [_identity(path) for path in (weights, annotations)]
    versions = [lt_det.__version__, detectron2.__version__, torch.__version__]
    content = json.dumps([own.dump(), files, counts_fingerprint, versions])
    return hashlib.sha256(content.encode()).hexdigest()


def _identity(path: str) -> list:
    path = os.path.realpath(PathManager.get_local_path(path))
    status = os.stat(path)
    return [path, status.st_size, status.st_mtime_ns]


def resume_predictions(evaluator: DatasetEvaluator) -> set[int]:
    """Ids of images whose predictions a killed evaluation has left; all ranks must call it.

    Of detections only: what other evaluators keep is made in minutes.
    """
    return evaluator.resume() if isinstance(evaluator, LongTailLVISEvaluator) else set()


def model_for(evaluator: DatasetEvaluator, model: nn.Module) -> nn.Module:
    """`model` as it costs least, if the evaluator knows masks inside boxes."""
    known = isinstance(evaluator, LongTailLVISEvaluator)
    return masks_in_boxes(model) if known else model
