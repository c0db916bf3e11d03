"""The predictions for one image: from Detectron2's ``Instances`` to columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances, ROIMasks
from pycocotools import mask as coco_mask

from lt_det.errors import DataError
from lt_det.evaluation.mask_encoding import encode_masks
from lt_det.evaluation.predictions import Predictions


def instance_columns(
    instances: Instances, image_id: int, category_ids: Sequence[int]
) -> Predictions:
    """Columns of the instances of an image, with the values of ``instances_to_coco_json``.

    Args:
        instances: N of them, with `pred_boxes`, `scores`, `pred_classes` and optionally
            `pred_masks`, at the size of the image in the annotation file. Masks are (N, H, W)
            bool, or :class:`ROIMasks` inside the boxes, which are pasted and encoded as by
            :func:`lt_det.evaluation.mask_encoding.encode_masks`.
        image_id: as in the annotation file.
        category_ids: (C,) id of each class in the annotation file.

    Raises:
        DataError: a class that is not in 0..C - 1.
    """
    instances = instances.to("cpu")
    boxes = instances.pred_boxes.tensor.detach().numpy()
    classes = instances.pred_classes.numpy()
    _check_classes(classes, image_id, len(category_ids))
    number = len(boxes)
    columns = Predictions(
        image_ids=np.full(number, image_id, dtype=np.int64),
        category_ids=np.asarray(category_ids, dtype=np.int64)[classes],
        scores=instances.scores.detach().numpy().astype(np.float64),
        boxes=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1, dtype=np.float64),
        **(_mask_columns(instances) if instances.has("pred_masks") else {}),
    )
    return columns.measured()


def _check_classes(classes: np.ndarray, image_id: int, number: int) -> None:
    unknown = (classes < 0) | (classes >= number)
    if unknown.any():
        raise DataError(
            f"image {image_id!r}: predicted class {classes[unknown][0]}, but there are {number} "
            "classes; see MODEL.ROI_HEADS.NUM_CLASSES"
        )


def _mask_columns(instances: Instances) -> dict[str, np.ndarray]:
    """The columns of masks, as attributes of `Predictions`."""
    masks = instances.pred_masks
    if isinstance(masks, ROIMasks):
        size = tuple(int(n) for n in instances.image_size)
        texts = encode_masks(masks.tensor.detach().numpy(), _finite(instances), size)
        sizes = [size] * len(texts)
    else:
        rles = [
            coco_mask.encode(np.asfortranarray(m, dtype=np.uint8)) for m in map(np.asarray, masks)
        ]
        texts = [rle["counts"] for rle in rles]
        sizes = [rle["size"] for rle in rles]
    lengths = np.array([0, *map(len, texts)], dtype=np.int64)
    return {
        "mask_sizes": np.array(sizes, dtype=np.int32).reshape(-1, 2),
        "mask_counts": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "mask_offsets": np.cumsum(lengths),
    }


def _finite(instances: Instances) -> np.ndarray:
    """(N, 4) boxes, zeros where one is not finite: the evaluation drops those rows."""
    boxes = instances.pred_boxes.tensor.detach().numpy()
    return np.where(np.isfinite(boxes).all(axis=1, keepdims=True), boxes, 0)
