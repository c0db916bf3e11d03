"""Inference with masks inside their boxes gives what Detectron2's own way gives."""

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

from lt_det.engine import LongTailTrainer, load_config, prepare_config
from lt_det.engine.inference import MasksInBoxes, masks_in_boxes, postprocess
from lt_det.evaluation.instance_columns import instance_columns

CONFIG = "configs/quick/lvis_eqlv2.yaml"
IDS = list(range(100, 109))


def make_model(options, *more):
    torch.manual_seed(0)
    options = [*options, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", *more]
    cfg = load_config(CONFIG, [*options, "TEST.DETECTIONS_PER_IMAGE", "20"])
    prepare_config(cfg, training=False)
    return LongTailTrainer.build_model(cfg)


def batch(seed=0):
    """Images that are to be scaled up and down, and one of unknown size."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(64, 80, 131, 163), (70, 64, 35, 31), (64, 64, None, None)]
    images = []
    for k, (height, width, full_height, full_width) in enumerate(sizes):
        pixels = torch.rand(3, height, width, generator=generator) * 255
        images.append({"image": pixels, "image_id": k})
        if full_height:
            images[-1].update(height=full_height, width=full_width)
    return images


def as_results(output, image):
    """What Detectron2's evaluators keep, with ids of the file."""
    results = instances_to_coco_json(output["instances"], image["image_id"])
    return [{**r, "category_id": IDS[r["category_id"]]} for r in results]


def columns(output, image):
    """What ours keep, in the same form."""
    found = instance_columns(output["instances"], image["image_id"], IDS)
    return [row for block in found.results() for row in block]


def test_detections_and_strings_are_those_of_detectron2(tiny_options):
    model = make_model(tiny_options).eval()
    # Random weights give masks near 0.5 everywhere; stronger ones give masks with borders.
    model.roi_heads.mask_head.predictor.weight.data.mul_(1e4)
    images = batch()
    with torch.no_grad():
        theirs = model([dict(image) for image in images])
        ours = masks_in_boxes(model)(images)
    number, partly = 0, 0
    for image, a, b in zip(images, theirs, ours, strict=True):
        expected = as_results(a, image)
        assert columns(b, image) == expected
        # Whole images are encoded to the same, for models that give them.
        assert columns(a, image) == expected
        number += len(expected)
        covered = a["instances"].pred_masks.float().mean((1, 2))
        partly += ((covered > 0) & (covered < 1)).sum().item()
    assert number > 30 and partly > 20


def test_boxes_that_are_empty_in_the_image_are_dropped_with_their_masks():
    def made():
        instances = Instances((50, 100))
        boxes = [[-20.0, 5, -3, 20], [10, 5, 60, 20], [90, 40, 130, 70], [5, 60, 9, 80]]
        instances.pred_boxes = Boxes(torch.tensor(boxes))
        instances.scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
        instances.pred_classes = torch.tensor([0, 1, 2, 3])
        instances.pred_masks = torch.rand(4, 1, 14, 14, generator=torch.manual_seed(0))
        return instances

    image = {"image_id": 7, "height": 25, "width": 200}
    expected = as_results({"instances": detector_postprocess(made(), 25, 200)}, image)
    assert [r["category_id"] for r in expected] == [101, 102]
    assert columns({"instances": postprocess(made(), image)}, image) == expected


def test_detections_without_masks_or_none_at_all(tiny_options):
    model = make_model(tiny_options).eval()
    image = batch()[0]
    with torch.no_grad():
        (found,) = masks_in_boxes(model)([image])
    none = instance_columns(found["instances"][:0], 3, IDS)
    assert len(none) == 0 and none.tasks == {"bbox", "segm"}
    boxes_only = found["instances"]
    boxes_only.remove("pred_masks")
    assert instance_columns(boxes_only, 3, IDS).tasks == {"bbox"}


def test_models_that_infer_in_another_way_are_left_alone(tiny_options):
    class Other(GeneralizedRCNN):
        def inference(self, *args, **kwargs):
            return []

    model = make_model(tiny_options)
    other = make_model(tiny_options)
    other.__class__ = Other
    without_masks = make_model(tiny_options, "MODEL.MASK_ON", "False")
    for kept in (other, without_masks, nn.Linear(2, 2)):
        assert masks_in_boxes(kept) is kept
    wrapped = nn.Module()
    wrapped.module = model  # as DistributedDataParallel has it
    assert masks_in_boxes(wrapped).model is model


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_comes_back(tiny_options, training):
    model = make_model(tiny_options).train(training)
    around = MasksInBoxes(model)
    mode = around.training
    around.eval()
    assert not model.training
    around.train(mode)
    assert model.training == model.roi_heads.training == training


def test_a_box_that_is_not_finite_gets_an_empty_mask():
    instances = postprocess(_one_mask(), {"image_id": 1})
    instances.pred_boxes.tensor[0, 2] = np.inf
    (row,) = columns({"instances": instances}, {"image_id": 1})
    assert row["bbox"][2] == np.inf
    assert row["segmentation"] == {"size": [10, 20], "counts": "X6"}  # 200 zeros


def _one_mask():
    instances = Instances((10, 20))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2, 5, 7]]))
    instances.scores = torch.tensor([0.5])
    instances.pred_classes = torch.tensor([0])
    instances.pred_masks = torch.ones(1, 1, 7, 7)
    return instances
