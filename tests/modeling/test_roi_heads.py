"""ROI heads: equal to Detectron2 where nothing is long-tailed, ours where it is."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from lt_det.losses import build_loss
from lt_det.modeling import LongTailOutputLayers, build_classifier

CLASSES, FEATURES = 5, 12


def predictor(name="SoftmaxCE", *, agnostic=False, seed=0, **params):
    torch.manual_seed(seed)
    loss = build_loss(name, num_classes=CLASSES, has_background=True, **params)
    return LongTailOutputLayers(
        ShapeSpec(channels=FEATURES),
        loss=loss,
        classifier=build_classifier(loss, FEATURES),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=CLASSES,
        cls_agnostic_bbox_reg=agnostic,
        test_score_thresh=0.0,
    )


def regions(counts=(6, 4), seed=1, background_only=False):
    """Labelled proposals of a few images and their features."""
    generator = torch.Generator().manual_seed(seed)
    proposals = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 50
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40], 1)
        item = Instances((100, 100))
        item.proposal_boxes = Boxes(boxes)
        if background_only:
            item.gt_classes = torch.full((count,), CLASSES)
        else:
            item.gt_classes = torch.randint(0, CLASSES + 1, (count,), generator=generator)
            shift = torch.randn(count, 4, generator=generator)
            item.gt_boxes = Boxes(boxes + shift)
        proposals.append(item)
    return torch.randn(sum(counts), FEATURES, generator=generator), proposals


def losses_of(layer, features, proposals, iteration=0):
    with EventStorage(iteration) as storage:
        return layer.losses(layer(features), proposals), storage


@pytest.mark.parametrize("agnostic", [False, True])
def test_softmax_equals_detectron2(agnostic):
    ours = predictor(agnostic=agnostic)
    theirs = FastRCNNOutputLayers(
        ShapeSpec(channels=FEATURES),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=CLASSES,
        cls_agnostic_bbox_reg=agnostic,
    )
    theirs.load_state_dict(ours.state_dict())
    features, proposals = regions()
    a, _ = losses_of(ours, features, proposals)
    b, _ = losses_of(theirs, features, proposals)
    assert a.keys() == b.keys() == {"loss_cls", "loss_box_reg"}
    for key in a:
        torch.testing.assert_close(a[key], b[key])
    ours.eval(), theirs.eval()
    found = ours.inference(ours(features), proposals)[0]
    expected = theirs.inference(theirs(features), proposals)[0]
    for x, y in zip(found, expected, strict=True):
        assert len(x) == len(y) > 0
        torch.testing.assert_close(x.scores, y.scores)
        torch.testing.assert_close(x.pred_boxes.tensor, y.pred_boxes.tensor)
        assert torch.equal(x.pred_classes, y.pred_classes)


@pytest.mark.parametrize("name", ["SoftmaxCE", "SigmoidBCE", "EQLv2", "SigmoidEQL"])
def test_the_head_trains_with_the_loss_of_the_library(name):
    layer = predictor(name)
    features, proposals = regions()
    losses, _ = losses_of(layer, features, proposals)
    fresh = build_loss(name, num_classes=CLASSES, has_background=True)
    expected = fresh(layer(features)[0], torch.cat([p.gt_classes for p in proposals]))
    torch.testing.assert_close(losses["loss_cls"], expected["loss_cls"])


def test_eqlv2_detects_by_class_score_times_not_background():
    layer = predictor("EQLv2").eval()
    features, proposals = regions()
    with torch.no_grad():
        predictions = layer(features)
        scores = layer.predict_probs(predictions, proposals)
        found, _ = layer.inference(predictions, proposals)
    p = torch.sigmoid(predictions[0])
    expected = (p[:, :CLASSES] * (1 - p[:, CLASSES:])).split([6, 4])
    for ours, right in zip(scores, expected, strict=True):
        torch.testing.assert_close(ours[:, :CLASSES], right)
    by_hand, _ = fast_rcnn_inference(
        layer.predict_boxes(predictions, proposals), scores, [(100, 100)] * 2, 0.0, 0.5, 100
    )
    assert torch.equal(found[0].scores, by_hand[0].scores)


@pytest.mark.parametrize("name", ["SoftmaxCE", "EQLv2"])
@pytest.mark.parametrize("counts", [(0, 0), ()])
def test_no_regions_give_zeros_with_a_graph(name, counts):
    layer = predictor(name)
    features, proposals = regions(counts)
    losses, _ = losses_of(layer, features, proposals)
    sum(losses.values()).backward()
    assert all(value == 0 for value in losses.values())
    assert (layer.cls_score.weight.grad == 0).all() and (layer.bbox_pred.weight.grad == 0).all()


def test_images_without_ground_truth_are_all_background():
    layer = predictor("EQLv2")
    features, proposals = regions(background_only=True)
    losses, _ = losses_of(layer, features, proposals)
    assert losses["loss_box_reg"] == 0 and losses["loss_cls"] > 0
    assert (layer.cls_loss.stats.pos == 0).all() and (layer.cls_loss.stats.neg > 0).all()


def test_accuracy_is_that_of_the_scores_on_foreground_every_twentieth_iteration():
    layer = predictor("EQLv2")
    features, proposals = regions((40, 30))
    _, storage = losses_of(layer, features, proposals, iteration=5)
    assert "fast_rcnn/fg_cls_accuracy" not in storage.latest()
    _, storage = losses_of(layer, features, proposals, iteration=19)
    labels = torch.cat([p.gt_classes for p in proposals])
    logits = layer(features)[0][labels < CLASSES, :CLASSES]
    expected = (logits.argmax(1) == labels[labels < CLASSES]).float().mean().item()
    assert storage.latest()["fast_rcnn/fg_cls_accuracy"][0] == pytest.approx(expected)


def test_statistics_do_not_move_at_test_time():
    layer = predictor("EQLv2").eval()
    features, proposals = regions()
    layer.inference(layer(features), proposals)
    assert layer.cls_loss.stats.steps == 0
