"""What a model predicts for the images of a test set, in the form in which it costs least."""

from __future__ import annotations

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances, ROIMasks
from torch import nn


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
    return MasksInBoxes(inner) if plain and _predicts_masks(inner) else model


def _predicts_masks(model: GeneralizedRCNN) -> bool:
    return bool(getattr(model.roi_heads, "mask_on", False))


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
