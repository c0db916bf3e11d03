"""Small random LVIS sets with every corner of the rules, and plain ``lvis.LVISEval`` on them."""

from __future__ import annotations

import copy
import logging
from unittest import mock

import lvis.eval as lvis_eval
import numpy as np
import pycocotools.mask as mask_utils
from lvis import LVIS, LVISEval, LVISResults

from lt_det.evaluation.groups import GROUPS

SIZE = 130  # pixels; room for all three ranges of area (32^2, 96^2)
# Sides with areas on both borders, and inside all ranges.
SIDES = (3, 8, 16, 32, 33, 60, 96)


def width_of(image_id: int) -> int:
    """Widths of images differ by a few pixels, and some are equal."""
    return SIZE + image_id % 4


def encode(box, size: int = SIZE, width: int | None = None) -> dict:
    """A box without its lower right quarter, so that mask and box differ in area and IoU."""
    x, y, w, h = (int(v) for v in box)
    mask = np.zeros((size, width or size), dtype=np.uint8)
    mask[y : y + h, x : x + w] = 1
    mask[y + h // 2 : y + h, x + w // 2 : x + w] = 0
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def random_set(seed: int) -> tuple[dict, list[dict]]:
    """Annotation file and predictions; the same for the same seed."""
    rng = np.random.default_rng(seed)
    category_ids = (rng.permutation(20)[: rng.integers(1, 5)] + 1).tolist()
    image_ids = rng.permutation(50)[: rng.integers(1, 5)].tolist()
    categories = [
        {"id": i, "name": f"class {i}", "frequency": str(rng.choice(GROUPS))} for i in category_ids
    ]
    images = [
        {
            "id": i,
            "height": SIZE,
            "width": width_of(i),
            "neg_category_ids": [c for c in category_ids if rng.random() < 0.4],
            "not_exhaustive_category_ids": [c for c in category_ids if rng.random() < 0.3],
        }
        for i in image_ids
    ]
    annotations = [
        _annotation(rng, image_id, category_ids)
        for image_id in image_ids
        for _ in range(rng.integers(0, 8))
    ]
    rng.shuffle(annotations)
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    # Some images above the limit of 300.
    most = 360 if rng.random() < 0.1 else 14
    predictions = []
    for image_id in image_ids:
        number = 0 if rng.random() < 0.1 else rng.integers(0, most)
        own = [a for a in annotations if a["image_id"] == image_id]
        predictions += [_prediction(rng, image_id, own, category_ids) for _ in range(number)]
    if rng.random() < 0.5:
        rng.shuffle(predictions)
    return dataset, predictions


def _box(rng) -> list[int]:
    side = int(rng.choice(SIDES))
    x, y = 4 * rng.integers(0, 6, size=2)
    return [int(x), int(y), int(side * rng.choice([1, 0.5])), side]


def _annotation(rng, image_id: int, category_ids: list[int]) -> dict:
    x, y, w, h = box = _box(rng)
    mask = encode(box, width=width_of(image_id))
    area = float(mask_utils.area(mask))
    if rng.random() < 0.2:
        area = float(rng.choice([0, 1024, 9216, 500, 2000]))
    polygon = [[x, y, x + w, y, x + w, y + h]]
    if image_id % 2:
        polygon.append([x, y, x + w / 3, y + h, x, y + h])
    annotation = {
        "image_id": image_id,
        "category_id": int(rng.choice(category_ids)),
        "bbox": box,
        "area": area,
        "segmentation": mask if rng.random() < 0.7 else polygon,
    }
    if rng.random() < 0.15:
        annotation["ignore"] = int(rng.random() < 0.7)
    return annotation


def _prediction(rng, image_id: int, own: list[dict], category_ids: list[int]) -> dict:
    box, category_id = _box(rng), int(rng.choice(category_ids))
    if own and rng.random() < 0.6:
        annotation = own[rng.integers(len(own))]
        box = list(annotation["bbox"])
        if rng.random() < 0.7:  # the others are equal boxes: ties of IoU
            box[0] = max(0, box[0] + int(rng.integers(-1, 3)))
        if rng.random() < 0.8:
            category_id = annotation["category_id"]
    if rng.random() < 0.05:
        box[2] = 0
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(v) for v in box],
        # One decimal: many equal scores within and across images.
        "score": round(rng.random(), 1),
        "segmentation": encode(box, width=width_of(image_id)),
    }


class NumpyWithFloat:
    """What ``lvis.eval`` of 0.5.3 takes for numpy, for the time of a call."""

    float = float

    def __getattr__(self, name):
        return getattr(np, name)


def reference(dataset, predictions, task, *, max_detections=300, image_ids=None):
    """A finished ``lvis.LVISEval`` of the package itself, on copies.

    Args:
        dataset: content of an annotation file.
        predictions: at least one.
        task: "bbox" or "segm".
        max_detections: -1: no limit.
        image_ids: the images to evaluate; None: all.
    """
    predictions = copy.deepcopy(predictions)
    if task == "segm":  # or LVISResults would take the area of the box
        for p in predictions:
            p.pop("bbox")
    gt = LVIS.__new__(LVIS)
    gt.logger, gt.dataset = logging.getLogger("lvis"), copy.deepcopy(dataset)
    gt._create_index()
    with mock.patch.object(lvis_eval, "np", NumpyWithFloat()):
        dt = LVISResults(gt, predictions, max_dets=max_detections)
        found = LVISEval(gt, dt, task)
        if image_ids is not None:
            found.params.img_ids = list(image_ids)
        found.run()
    return found
