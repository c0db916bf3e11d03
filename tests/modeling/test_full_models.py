"""Whole detectors of each kind of ROI head: train a step, detect."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from lt_det.engine import load_config
from lt_det.engine.hooks import named_grad_stats

SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.ROI_HEADS.NUM_CLASSES", 4),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 10, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
]
HEADS = {
    "LongTailROIHeads": [],
    "LongTailROIHeads-agnostic": ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
    "LongTailCascadeROIHeads": ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
    "LongTailRes5ROIHeads": [
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
        *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 16),
        *("MODEL.RESNETS.OUT_FEATURES", ["res4"], "MODEL.RPN.IN_FEATURES", ["res4"]),
        *("MODEL.ROI_HEADS.IN_FEATURES", ["res4"]),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64]], "MODEL.ROI_MASK_HEAD.NUM_CONV", 0),
    ],
}


def detector(head: str, loss: str, federated: str = "", *, num_sampled: int = 50, counts=()):
    options = [*SMALL, *HEADS[head], "MODEL.ROI_HEADS.NAME", head.split("-")[0]]
    cfg = load_config("configs/base/lvis_mask_rcnn_r50_fpn.yaml", options)
    cfg.MODEL.LT.LOSS.NAME = loss
    cfg.MODEL.LT.FEDERATED.MODE = federated
    cfg.MODEL.LT.FEDERATED.NUM_SAMPLED = num_sampled
    cfg.MODEL.LT.CLASS_COUNTS = list(counts)
    torch.manual_seed(0)
    return build_model(cfg)


def image(labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = Instances((64, 64))
    corner = torch.rand(len(labels), 2, generator=generator) * 20
    target.gt_boxes = Boxes(torch.cat([corner, corner + 30], dim=1))
    target.gt_classes = torch.tensor(labels, dtype=torch.int64)
    masks = torch.zeros(len(labels), 64, 64, dtype=torch.bool)
    for mask, box in zip(masks, target.gt_boxes.tensor.long(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = True
    target.gt_masks = BitMasks(masks)
    pixels = torch.rand(3, 64, 64, generator=generator) * 255
    return {"image": pixels, "instances": target, "height": 64, "width": 64}


@pytest.mark.parametrize("loss", ["SoftmaxCE", "EQLv2", "SigmoidEQL"])
@pytest.mark.parametrize("head", list(HEADS))
def test_a_step_reaches_every_part_and_inference_ranks_all_classes(head, loss):
    model = detector(head, loss)
    with EventStorage(0):
        losses = model([image([0, 3]), image([])])
    sum(losses.values()).backward()
    classifiers = [p for n, p in model.named_parameters() if n.endswith("cls_score.weight")]
    stages = 3 if "Cascade" in head else 1
    assert len(classifiers) == stages
    assert all(p.grad.abs().sum() > 0 for p in classifiers)
    assert sum(name.startswith("loss_cls") for name in losses) == stages
    assert losses["loss_mask"] > 0

    stats = named_grad_stats(model)
    assert len(stats) == (0 if loss == "SoftmaxCE" else stages)
    for state in stats.values():
        # Classes 0 and 3 are in the images, 1 and 2 only ever negative.
        assert (state.pos[[1, 2]] == 0).all() and (state.neg > 0).all()
    model.eval()
    with torch.no_grad():
        found = model([image([])])[0]["instances"]
    assert len(found) > 0 and found.has("pred_masks")
    assert set(found.pred_classes.tolist()) <= set(range(4))
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert (found.scores >= 0).all() and (found.scores <= 1).all()


def test_stages_of_a_cascade_have_states_of_their_own():
    model = detector("LongTailCascadeROIHeads", "EQLv2")
    with EventStorage(0):
        model([image([0, 3]), image([1])])
    stats = named_grad_stats(model)
    assert list(stats) == ["stage0", "stage1", "stage2"]
    assert not torch.equal(stats["stage0"].neg, stats["stage1"].neg)
