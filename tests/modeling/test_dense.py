"""Dense detectors: Detectron2's where nothing is long-tailed, ours where it is."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from lt_det.data.mappers import ImageClasses
from lt_det.engine.tasks import task_of
from lt_det.errors import ConfigError, DataError
from lt_det.losses import LOSS_REGISTRY, build_loss
from lt_det.losses.layout import dense_rows
from tests.gloo import run_on_ranks
from tests.losses.golden import ROOT, TOLERANCE, assert_matches, read, zero_based
from tests.modeling.dense_cases import CLASSES, config, detector, image

DENSE_LOSSES = ["EFL", "EQFL", "EQL", "FocalLoss", "SigmoidBCE", "SigmoidEQL"]
AS_DETECTRON2 = [
    *("MODEL.LT.LOSS.NAME", "FocalLoss", "MODEL.LT.DENSE.NORMALIZER", "running"),
    *("MODEL.LT.DENSE.EMPTY_BATCH", "one", "MODEL.LT.DENSE.TOPK", 0),
]


def step(model, batch, iteration=0):
    with EventStorage(iteration) as storage:
        return model(batch), storage


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_focal_loss_equals_detectron2(box_loss):
    """Losses over two steps with their running normaliser, gradients and detections."""
    options = [*AS_DETECTRON2, "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", box_loss]
    ours = detector("retinanet", *options)
    cfg = config("retinanet", *options)
    theirs = RetinaNet(cfg)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for batch in ([image([0, 3]), image([1], seed=1)], [image([]), image([2, 2], seed=2)]):
        (a, _), (b, _) = step(ours, batch), step(theirs, batch)
        assert a.keys() == b.keys() == {"loss_cls", "loss_box_reg"}
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)  # sums of 1e4 terms
        sum(a.values()).backward(), sum(b.values()).backward()
    for (name, p), (other, q) in zip(
        ours.head.named_parameters(), theirs.head.named_parameters(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)
    ours.eval(), theirs.eval()
    # Scores that differ, without any so near to 1 that float32 rounds it to 1.
    torch.nn.init.normal_(ours.head.cls_score.weight, std=0.05)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    with torch.no_grad():
        found, expected = (m([image([]), image([], seed=5)]) for m in (ours, theirs))
    for x, y in zip(found, expected, strict=True):
        x, y = x["instances"], y["instances"]
        assert len(x) == len(y) > 20
        torch.testing.assert_close(x.scores, y.scores)
        torch.testing.assert_close(x.pred_boxes.tensor, y.pred_boxes.tensor)
        assert torch.equal(x.pred_classes, y.pred_classes)


def test_the_losses_that_fit_are_those_with_one_sigmoid_output_a_class():
    fitting = []
    for name in LOSS_REGISTRY:
        params = {"num_images": 10} if name == "EQL" else {}
        loss = build_loss(
            name, num_classes=3, has_background=True, class_counts=[4, 2, 1], **params
        )
        if loss.num_logits == 3:
            fitting.append(name)
            logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
            # What inference ranks by without asking the loss.
            torch.testing.assert_close(loss.scores(logits)[:, :3], logits.sigmoid())
    assert fitting == DENSE_LOSSES


@pytest.mark.parametrize("kind", ["retinanet", "atss"])
@pytest.mark.parametrize("name", DENSE_LOSSES)
def test_the_head_trains_with_the_loss_of_the_library(kind, name):
    cfg = config(kind, "MODEL.LT.LOSS.NAME", name)
    if name == "EQL":
        cfg.MODEL.LT.LOSS.PARAMS.num_images = 50
    torch.manual_seed(0)
    model = build_model(cfg)
    batch = [image([0, 3]), image([])]
    torch.manual_seed(1)
    terms, _ = step(model, batch)
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in model.head.parameters())
    features = model.backbone(model.preprocess_image(batch).tensor)
    features = [features[f] for f in model.head_in_features]
    anchors, outputs = model.anchor_generator(features), model.head(features)
    labels, boxes = model.label_anchors(anchors, [x["instances"] for x in batch])
    labels = torch.stack(labels).flatten()
    quality = None
    if name == "EQFL":
        everything = Boxes.cat(anchors).tensor.repeat(2, 1)
        predicted = model.box2box_transform.apply_deltas(dense_rows(outputs[1], 4), everything)
        quality = torch.tensor(
            [
                iou_of(a, b)
                for a, b in zip(predicted.tolist(), torch.cat(boxes).tolist(), strict=True)
            ]
        )
    torch.manual_seed(1)
    fresh = type(model.cls_loss)(
        num_classes=CLASSES,
        has_background=True,
        class_counts=torch.tensor([40, 30, 20, 10]),
        **dict(cfg.MODEL.LT.LOSS.PARAMS),
    )
    expected = fresh(
        dense_rows(outputs[0], CLASSES),
        labels,
        normalizer=((labels >= 0) & (labels < CLASSES)).sum(),
        quality=quality,
    )["loss_cls"]
    torch.testing.assert_close(terms["loss_cls"], expected, rtol=1e-4, atol=1e-6)


def iou_of(a, b):
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - overlap
    return overlap / union


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_golden_levels_through_the_model(precision):
    """Two anchors on a cell, several levels: value, gradient in every channel, and sums."""
    data, hparams = read(ROOT / "equalization" / "efl_multilevel_C6_A2.npz")
    classes, anchors = hparams["num_classes"], hparams["num_anchors"]
    model = detector("atss", "MODEL.RETINANET.NUM_CLASSES", classes, "MODEL.LT.CLASS_COUNTS", [])
    for t in range(int(data["num_steps"])):
        logits = [
            torch.as_tensor(data[f"s{t}_pred{k}_{precision}"]).requires_grad_()
            for k in range(hparams["fpn_levels"])
        ]
        boxes = [
            Boxes(torch.tensor([[0.0, 0, 9, 9]]).repeat(anchors * x[0, 0].numel(), 1))
            for x in logits
        ]
        labels = zero_based(data[f"s{t}_labels"], classes)
        divisor = torch.tensor(float(data[f"s{t}_normalizer"]), dtype=torch.float64)
        model.label_anchors = lambda *_, own=labels: (
            list(own),
            [torch.tensor([[0.0, 0, 9, 9]]).repeat(own.shape[1], 1)] * len(own),
        )
        model.normalizer.forward = lambda _, own=divisor: own
        deltas = [x.new_zeros(len(x), anchors * 4, *x.shape[2:]).float() for x in logits]
        with EventStorage(0):
            terms = model.training_losses(boxes, (logits, deltas), [None] * len(labels))
        value = terms["loss_cls"]
        value.backward()
        tolerance = TOLERANCE[precision]
        assert_matches(value.detach(), data[f"s{t}_loss_{precision}"], tolerance)
        for k, x in enumerate(logits):
            assert_matches(x.grad, data[f"s{t}_grad{k}_{precision}"], tolerance)
        assert_matches(model.cls_loss.stats.pos, data[f"s{t}_pos_grad_{precision}"], tolerance)
        assert_matches(model.cls_loss.stats.neg, data[f"s{t}_neg_grad_{precision}"], tolerance)


@pytest.mark.parametrize("name", ["EFL", "EQFL"])
def test_the_statistics_are_the_gradient_at_channel_a_c_of_the_head(name):
    """|gradient| that autograd brings to the convolution, credited by channel = a * C + c."""
    model = detector("atss", "MODEL.LT.LOSS.NAME", name)
    caught = []
    model.head.cls_score.register_forward_hook(lambda *args: caught.append(args[2]))
    batch = [image([0, 3]), image([2], seed=1)]
    terms, _ = step(model, batch)
    gradients = torch.autograd.grad(terms["loss_cls"], caught)
    sums = torch.zeros(2, CLASSES)
    per_level = [x.shape[1] // CLASSES * x.shape[2] * x.shape[3] for x in gradients]
    anchors = model.anchor_generator([torch.zeros(1, 1, *x.shape[2:]) for x in gradients])
    labels, _ = model.label_anchors(anchors, [x["instances"] for x in batch])
    for k, label in enumerate(labels):
        for own, gradient in zip(label.split(per_level), gradients, strict=True):
            _, height, width = gradient[k].shape
            by_cell = own.view(height, width, -1)
            for a in range(by_cell.shape[2]):
                for c in range(CLASSES):
                    size = gradient[k, a * CLASSES + c].abs()
                    positive = by_cell[:, :, a] == c
                    sums[0, c] += size[positive].sum()
                    sums[1, c] += size[~positive].sum()
    stats = model.cls_loss.stats
    torch.testing.assert_close(torch.stack([stats.pos, stats.neg]).float(), sums)
    assert (stats.pos[[0, 2, 3]] > 0).all() and stats.pos[1] == 0


def test_the_bias_starts_at_the_prior_of_the_loss():
    for value, expected in [(-1.0, 0.001), (0.02, 0.02), (0.0, 0.5)]:
        model = detector("retinanet", "MODEL.LT.CLASSIFIER.PRIOR_PROB", value)
        prior = model.head.cls_score.bias.sigmoid()
        torch.testing.assert_close(prior, torch.full_like(prior, expected))


@pytest.mark.parametrize("kind", ["retinanet", "atss"])
def test_images_without_annotations_are_all_negative(kind):
    model = detector(kind)
    terms, storage = step(model, [image([]), image([])], iteration=19)
    assert storage.latest()["num_pos_anchors"][0] == 0
    assert terms.pop("loss_cls") > 0 and all(value == 0 for value in terms.values())
    sum(terms.values()).backward()
    assert (model.head.bbox_pred.weight.grad == 0).all()
    stats = model.cls_loss.stats
    assert (stats.pos == 0).all() and (stats.neg > 0).all()
    assert model.normalizer.running == 100


def test_the_number_of_positives_is_logged_every_twentieth_iteration():
    model = detector("atss")
    _, storage = step(model, [image([0]), image([])], iteration=5)
    assert "num_pos_anchors" not in storage.latest()
    _, storage = step(model, [image([0]), image([])], iteration=39)
    assert (
        storage.latest()["num_pos_anchors"][0] * 2
        == int(storage.latest()["num_pos_anchors"][0] * 2)
        > 0
    )


def test_class_lists_mask_all_but_the_rows_of_their_class():
    """Image 0 holds 0 and 3, 3 not exhaustively, without 1; image 1 has no lists."""
    model = detector("atss", "MODEL.LT.FEDERATED.MODE", "annotated")
    batch = [image([0, 3]), image([1], seed=1)]
    instances = batch[0]["instances"]
    lists = (torch.tensor([0, 3]), torch.tensor([1]), torch.tensor([3]))
    instances.image_classes = ImageClasses(*lists, len(instances))
    caught, masks = [], []
    model.head.cls_score.register_forward_hook(lambda *args: caught.append(args[2]))
    original = model.cls_loss.forward
    model.cls_loss.forward = lambda *args, **kw: (
        masks.append((args[1], kw)),
        original(*args, **kw),
    )[1]
    terms, _ = step(model, batch)
    (labels, kw), gradients = masks[0], torch.autograd.grad(terms["loss_cls"], caught)
    labels = labels.view(2, -1)
    expected = torch.ones(2, labels.shape[1], CLASSES, dtype=torch.bool)
    expected[0] = torch.tensor([True, True, False, False])
    expected[0, labels[0] == 3, 3] = True
    assert torch.equal(kw["class_mask"].view_as(expected), expected)
    rows = dense_rows(gradients, CLASSES).view_as(expected)
    assert torch.equal(rows != 0, expected)
    assert (labels[0] == 3).any()


def test_sampled_classes_are_the_same_for_all_rows():
    options = ["MODEL.LT.FEDERATED.MODE", "sampled", "MODEL.LT.FEDERATED.NUM_SAMPLED", 3]
    model = detector("atss", *options, "MODEL.LT.CLASS_COUNTS", [9, 100, 0, 1])
    terms, _ = step(model, [image([0, 3]), image([])])
    terms["loss_cls"].backward()
    moved = model.head.cls_score.weight.grad.abs().sum(dim=(1, 2, 3)).view(-1, CLASSES) > 0
    assert moved.tolist() == [[True, True, False, True]] * len(moved)


WRONG = {
    "softmax": (["MODEL.LT.LOSS.NAME", "SoftmaxCE"], "SoftmaxCE.*5 outputs for 4.*EFL.*SigmoidBCE"),
    "background column": (["MODEL.LT.LOSS.NAME", "EQLv2"], "'EQLv2'.*SigmoidEQL"),
    "mask": (["MODEL.MASK_ON", True], "MODEL.MASK_ON is True"),
    "classifier": (["MODEL.LT.CLASSIFIER.NAME", "cosine"], "CLASSIFIER.NAME is 'cosine'.*linear"),
    "prior": (["MODEL.LT.CLASSIFIER.PRIOR_PROB", 1.0], "PRIOR_PROB is 1.0"),
    "box loss": (["MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "l2"], "is 'l2'; accepted are smooth_l1"),
    "normaliser": (["MODEL.LT.DENSE.NORMALIZER", "all"], "NORMALIZER is 'all'.*ranks, running"),
    "empty": (["MODEL.LT.DENSE.EMPTY_BATCH", "zero"], "EMPTY_BATCH is 'zero'.*running, one"),
    "gamma": (["MODEL.RETINANET.FOCAL_LOSS_GAMMA", 1.5], "GAMMA is 1.5.*LOSS.PARAMS .gamma.*2.0"),
    "alpha": (["MODEL.RETINANET.FOCAL_LOSS_ALPHA", 0.5], "ALPHA is 0.5.*LOSS.PARAMS .alpha.*0.25"),
    "d2 prior": (["MODEL.RETINANET.PRIOR_PROB", 0.02], "0.02.*MODEL.LT.CLASSIFIER.PRIOR_PROB"),
    "candidates": (["MODEL.LT.DENSE.TOPK", -1], "MODEL.LT.DENSE.TOPK is -1"),
}


@pytest.mark.parametrize("kind", ["retinanet", "atss"])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_values_are_named_with_their_key_and_what_is_accepted(kind, what):
    options, message = WRONG[what]
    with pytest.raises(ConfigError, match=message):
        detector(kind, *options)


@pytest.mark.parametrize("kind", ["retinanet", "atss"])
def test_pictures_of_the_training_change_neither_losses_nor_gradients(kind):
    batch = [image([0, 3]), image([1], seed=1)]
    found = []
    for period in (0, 5):
        model = detector(kind, "VIS_PERIOD", period)
        with EventStorage(10) as storage:
            terms = model(batch)
        sum(terms.values()).backward()
        found.append([*terms.values(), *(p.grad for p in model.head.parameters())])
        assert len(storage._vis_data) == (period > 0)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_training_image_without_annotations_field_is_named():
    sample = image([0]) | {"file_name": "a/b.jpg"}
    del sample["instances"]
    with pytest.raises(DataError, match="a/b.jpg.*DATASETS.TRAIN"):
        detector()([sample])


def batch_of(rank):
    """Images of a rank: the second rank has no object at all."""
    return [image([0, 3]), image([1], seed=1)] if rank == 0 else [image([]), image([], seed=2)]


def train_rank(rank: int):
    model = frozen_detector()
    for _ in range(2):
        terms, _ = step(model, batch_of(rank))
    stats = model.cls_loss.stats
    model.zero_grad()
    terms["loss_cls"].backward()
    return stats.pos, stats.neg, model.normalizer.running, model.head.cls_score.bias.grad


def frozen_detector():
    """Batch normalisation by running statistics, so that images do not depend on each other."""
    return detector("atss", "MODEL.RESNETS.NORM", "FrozenBN")


def test_two_ranks_one_without_objects_are_one_process_with_all_images():
    by_rank = run_on_ranks(train_rank, 2)
    model = frozen_detector()
    for _ in range(2):
        terms, _ = step(model, batch_of(0) + batch_of(1))
    stats = model.cls_loss.stats
    model.zero_grad()
    terms["loss_cls"].backward()
    for k in range(3):
        assert torch.equal(by_rank[0][k], by_rank[1][k])
    # Each rank divides by half the positives: twice the gradient, of which the mean is taken.
    for k, expected in enumerate([stats.pos, stats.neg]):
        torch.testing.assert_close(by_rank[0][k] / 2, expected, rtol=1e-5, atol=1e-9)
    mean = (by_rank[0][3] + by_rank[1][3]) / 2
    torch.testing.assert_close(mean, model.head.cls_score.bias.grad, rtol=1e-3, atol=1e-6)
    assert (by_rank[1][0] > 0).sum() == 3


def test_fcos_is_detectron2s_where_there_is_one():
    cfg = config(
        "retinanet", "MODEL.META_ARCHITECTURE", "LongTailFCOS", "MODEL.LT.LOSS.NAME", "FocalLoss"
    )
    cfg.MODEL.LT.DENSE.NORMALIZER, cfg.MODEL.LT.DENSE.EMPTY_BATCH = "running", "one"
    cfg.MODEL.LT.DENSE.TOPK = 0
    entry = META_ARCH_REGISTRY.get("LongTailFCOS")
    if not isinstance(entry, type):  # Detectron2 0.5
        with pytest.raises(
            ConfigError, match="LongTailFCOS.*no detectron2.modeling.meta_arch.fcos"
        ):
            build_model(cfg)
        with pytest.raises(ConfigError, match="LongTailFCOS"):
            task_of(cfg).loss(cfg)  # before anything is written
        return
    torch.manual_seed(0)
    ours = build_model(cfg)
    theirs = entry.__mro__[2](
        backbone=ours.backbone,
        head=ours.head,
        head_in_features=ours.head_in_features,
        num_classes=CLASSES,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        test_score_thresh=0.0,
        test_nms_thresh=0.5,
        max_detections_per_image=100,
    )
    theirs.loss_normalizer = 100  # theirs starts at 300
    batch = [image([0, 3]), image([1], seed=1)]
    (a, _), (b, _) = step(ours, batch), step(theirs, batch)
    names = {"loss_cls": "cls", "loss_box_reg": "loc", "loss_centerness": "ctr"}
    assert a.keys() == names.keys()
    for name, other in names.items():
        torch.testing.assert_close(a[name], b[f"loss_fcos_{other}"], rtol=1e-4, atol=1e-6)
    torch.nn.init.normal_(ours.head.cls_score.weight, std=0.05)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        found, expected = (m([image([])])[0]["instances"] for m in (ours, theirs))
    assert len(found) == len(expected) > 20
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
