"""Heads of semantic segmentation: Detectron2's with plain cross-entropy, ours otherwise."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead, build_sem_seg_head
from detectron2.projects.deeplab import DeepLabV3PlusHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from lt_det.engine import load_config
from lt_det.errors import ConfigError
from lt_det.losses import LOSS_REGISTRY, build_loss
from lt_det.losses.layout import segmentation_rows
from lt_det.modeling import (
    LongTailDeepLabV3PlusHead,
    LongTailSemSegFPNHead,
    build_classifier,
)
from lt_det.modeling.sem_seg import PixelClassifier, PixelHead, WindowAverage, pixel_scores, resize
from tests.gloo import run_on_ranks

CLASSES, IGNORED = 5, 255
COUNTS = [400, 90, 30, 7, 2]
FPN_SHAPES = {"p2": ShapeSpec(channels=4, stride=4), "p3": ShapeSpec(channels=4, stride=8)}
DEEPLAB_SHAPES = {"res2": ShapeSpec(channels=4, stride=4), "res5": ShapeSpec(channels=6, stride=8)}
DEEPLAB = {
    "project_channels": [3],
    "aspp_dilations": [1, 2, 3],
    "aspp_dropout": 0.0,
    "decoder_channels": [8, 8],
    "common_stride": 4,
    "norm": "BN",
    "train_size": (32, 32),
    "ignore_value": IGNORED,
    "loss_weight": 0.5,
}
FPN = {
    "conv_dims": 8,
    "common_stride": 4,
    "norm": "BN",
    "ignore_value": IGNORED,
    "loss_weight": 0.5,
}
KINDS = {
    "fpn": (LongTailSemSegFPNHead, SemSegFPNHead, FPN_SHAPES, FPN, {}),
    "deeplab": (
        *(LongTailDeepLabV3PlusHead, DeepLabV3PlusHead, DEEPLAB_SHAPES, DEEPLAB),
        {"loss_type": "cross_entropy"},
    ),
}


def loss_of(name):
    return build_loss(name, num_classes=CLASSES, class_counts=COUNTS)


def pair(kind, **changes):
    """Our head with cross-entropy and Detectron2's with the same weights."""
    ours_type, theirs_type, shapes, arguments, further = KINDS[kind]
    arguments = arguments | changes
    torch.manual_seed(0)
    loss = loss_of("SoftmaxCE")
    # Weights that let predictions differ from pixel to pixel.
    classifier = build_classifier(loss, 8, init_std=0.5)
    ours = ours_type(shapes, loss=loss, classifier=classifier, **arguments)
    theirs = theirs_type(shapes, num_classes=CLASSES, **arguments, **further)
    theirs.load_state_dict(
        {detectron2_name(k): detectron2_shape(k, v) for k, v in ours.state_dict().items()}
    )
    return ours, theirs


def detectron2_name(name):
    return name.replace("predictor.classifier", "predictor")


def detectron2_shape(name, value):
    return value[:, :, None, None] if name == "predictor.classifier.weight" else value


def features_of(shapes, size=(32, 32), batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(
            batch, s.channels, *(side // s.stride for side in size), generator=generator
        )
        for name, s in shapes.items()
    }


def labels_of(size=(32, 32), batch=2, seed=2):
    """Labels of which about a sixth is ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES + 1, (batch, *size), generator=generator)
    return labels.masked_fill(labels == CLASSES, IGNORED)


@pytest.mark.parametrize("kind", list(KINDS))
def test_cross_entropy_equals_detectron2_in_loss_and_gradient(kind):
    ours, theirs = pair(kind)
    features, labels = features_of(KINDS[kind][2]), labels_of()
    found, expected = ours(features, labels)[1], theirs(features, labels)[1]
    assert found.keys() == expected.keys() == {"loss_sem_seg"}
    torch.testing.assert_close(found["loss_sem_seg"], expected["loss_sem_seg"])
    found["loss_sem_seg"].backward(), expected["loss_sem_seg"].backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        # Sums over 2048 pixels in another order.
        torch.testing.assert_close(
            detectron2_shape(name, parameter.grad),
            gradients.pop(detectron2_name(name)),
            rtol=1e-4,
            atol=1e-6,
        )
    assert not gradients


@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
@pytest.mark.parametrize("kind", list(KINDS))
def test_scores_are_the_softmax_of_detectron2s_logits(kind, size):
    ours, theirs = (head.eval() for head in pair(kind))
    features = features_of(KINDS[kind][2], size)
    (found, losses), (expected, _) = ours(features), theirs(features)
    assert losses == {}
    torch.testing.assert_close(found, expected.softmax(dim=1))


def test_deeplab_without_a_crop_equals_detectron2_on_any_size():
    ours, theirs = (head.eval() for head in pair("deeplab", train_size=None))
    features = features_of(DEEPLAB_SHAPES, (24, 40))
    torch.testing.assert_close(ours(features)[0], theirs(features)[0].softmax(dim=1))


def test_deeplab_averages_small_images_as_a_whole():
    with_crop, _ = pair("deeplab")
    without, _ = pair("deeplab", train_size=None)
    small = features_of(DEEPLAB_SHAPES, (24, 16))
    torch.testing.assert_close(with_crop.eval()(small)[0], without.eval()(small)[0])


@pytest.mark.parametrize(
    "size, expected", [((3, 5), (1, 4)), ((2, 2), (1, 1)), ((3, 2), (1, 1)), ((4, 1), (2, 1))]
)
def test_windows_end_at_the_border_of_the_map(size, expected):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = WindowAverage((3, 2))(x)
    for i in range(expected[0]):
        for j in range(expected[1]):
            by_hand = x[:, :, i : i + 3, j : j + 2].mean(dim=(2, 3))
            torch.testing.assert_close(found[:, :, i, j], by_hand)
    assert found.shape[2:] == expected


class Rows(PixelHead):
    """A head without layers, to call the loss on given logits."""

    def __init__(self, loss, weight=1.0):
        super().__init__()
        self.cls_loss, self.ignore_value, self.loss_weight = loss, IGNORED, weight


def logits_of(size=(8, 8), batch=2, seed=3):
    x = torch.randn(batch, *size, CLASSES, generator=torch.Generator().manual_seed(seed))
    return x.permute(0, 3, 1, 2).requires_grad_()


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_the_rows_of_the_loss_are_a_view_of_the_resized_logits(classifier):
    module = PixelClassifier(build_classifier(loss_of("SoftmaxCE"), 6, name=classifier))
    features = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = resize(module(features), (32, 24))
    rows, _ = segmentation_rows(logits, torch.zeros(2, 32, 24, dtype=torch.int64))
    assert rows.data_ptr() == logits.data_ptr()
    by_hand = F.interpolate(
        module.classifier(features.permute(0, 2, 3, 1).reshape(-1, 6))
        .view(2, 8, 8, CLASSES)
        .permute(0, 3, 1, 2)
        .contiguous(),
        size=(32, 24),
        mode="bilinear",
    )
    torch.testing.assert_close(logits, by_hand)


def known_losses():
    return [name for name in LOSS_REGISTRY if not LOSS_REGISTRY.get(name).needs_features]


@pytest.mark.parametrize("name", known_losses())
def test_every_loss_is_that_of_the_rows_and_so_are_its_statistics(name):
    head, direct = Rows(loss_of(name), weight=0.5), loss_of(name)
    for seed in (3, 4):  # the second step sees the statistics of the first
        logits, labels = logits_of(seed=seed), labels_of((16, 20), seed=seed)
        full = F.interpolate(logits, size=(16, 20), mode="bilinear", align_corners=False)
        rows = full.permute(0, 2, 3, 1).reshape(-1, CLASSES)
        targets = labels.flatten().masked_fill(labels.flatten() == IGNORED, -1)
        expected = direct(rows, targets)["loss_cls"]
        (found,) = head.losses(logits, labels).values()
        assert found.isfinite() and found > 0
        torch.testing.assert_close(found, 0.5 * expected)
        gradients = [torch.autograd.grad(x, logits)[0] for x in (found, 0.5 * expected)]
        torch.testing.assert_close(*gradients)
    found, expected = head.cls_loss.state_dict(), direct.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize("name", ["SoftmaxCE", "SoftmaxEQL", "SigmoidEQL", "Seesaw"])
def test_ignored_pixels_take_no_part(name):
    labels = labels_of((8, 8))
    ignored = (labels == IGNORED)[:, None].expand(-1, CLASSES, -1, -1)
    results = []
    for value in (0.0, 1e4):
        head, logits = Rows(loss_of(name)), logits_of()
        x = torch.where(ignored, value, logits)
        (loss,) = head.losses(x, labels).values()
        loss.backward()
        assert (logits.grad[~ignored] != 0).all()
        results.append((loss, logits.grad, head.cls_loss.state_dict()))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_the_ignored_value_is_the_heads(value):
    head, logits, labels = Rows(loss_of("SoftmaxCE")), logits_of(), labels_of((8, 8))
    head.ignore_value = value
    labels = torch.where(labels == IGNORED, 7, labels) if value == 7 else labels.clamp(max=4)
    found = head.losses(logits, labels)["loss_sem_seg"]
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, ignore_index=value))


@pytest.mark.parametrize("name", ["SoftmaxCE", "SoftmaxEQL", "SigmoidEQL", "GCL"])
def test_no_valid_pixel_gives_zero_with_a_graph_and_no_statistics(name):
    head, logits = Rows(loss_of(name)), logits_of()
    (loss,) = head.losses(logits, torch.full((2, 16, 16), IGNORED)).values()
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
    if hasattr(head.cls_loss, "stats"):
        assert (head.cls_loss.stats.pos == 0).all() and (head.cls_loss.stats.neg == 0).all()


def test_half_precision_logits_have_the_loss_of_their_float32_values():
    logits, labels = logits_of().to(torch.bfloat16), labels_of((16, 16))
    found = Rows(loss_of("SoftmaxEQL")).losses(logits, labels)["loss_sem_seg"]
    expected = Rows(loss_of("SoftmaxEQL")).losses(logits.float(), labels)["loss_sem_seg"]
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


class TwoTerms(nn.Module):
    def forward(self, logits, targets):
        return {"loss_cls": logits.sum(), "loss_objectness": logits.mean()}


def test_further_terms_are_named_after_the_first_and_weighted():
    logits, labels = logits_of(), labels_of((8, 8))
    found = Rows(TwoTerms(), weight=0.5).losses(logits, labels)
    expected = {
        "loss_sem_seg": 0.5 * logits.sum(),
        "loss_sem_seg_objectness": 0.5 * logits.mean(),
    }
    torch.testing.assert_close(found, expected)


def test_a_label_beyond_the_classes_is_an_error():
    with pytest.raises(ValueError, match="targets run from 0 to 7; accepted are .* 0..4"):
        Rows(loss_of("SoftmaxCE")).losses(logits_of(), labels_of((8, 8)).clamp(max=7))


# Of each rank. SoftmaxEQL's sums hold 1 / normaliser, so that they are those of one process only
# where one rank has all the pixels.
RANK_LABELS = {
    "SoftmaxEQL": [labels_of((8, 8), 1, seed=5), torch.full((1, 8, 8), IGNORED)],
    "SigmoidEQL": [
        labels_of((8, 8), 1, seed=5),
        labels_of((8, 8), 1, seed=6).index_fill(1, torch.arange(7), IGNORED),
    ],
}


def two_steps(name, labels, images):
    """Statistics after two steps on some of two images."""
    head = Rows(loss_of(name))
    for seed in (7, 8):
        head.losses(logits_of(seed=seed)[images], labels)
    return head.cls_loss.stats.pos, head.cls_loss.stats.neg


def statistics_of_rank(rank):
    images = slice(rank, rank + 1)
    return {name: two_steps(name, labels[rank], images) for name, labels in RANK_LABELS.items()}


def test_two_ranks_have_the_statistics_of_one_process():
    of_ranks = run_on_ranks(statistics_of_rank, 2)
    torch.testing.assert_close(of_ranks[0], of_ranks[1], rtol=0, atol=0)
    for name, labels in RANK_LABELS.items():
        expected = two_steps(name, torch.cat(labels), slice(None))
        # float32 sums in another order.
        torch.testing.assert_close(of_ranks[0][name], expected, rtol=1e-5, atol=1e-7)
        assert (expected[0] > 0).any()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", ["SoftmaxCE", "SigmoidEQL"])
def test_scores_are_those_of_the_loss_for_every_pixel(name, channels_last):
    # Three blocks of 393216 elements.
    loss, logits = loss_of(name), logits_of((330, 300)).detach()
    found = pixel_scores(loss, logits if channels_last else logits.contiguous())
    expected = logits.softmax(1) if name == "SoftmaxCE" else logits.sigmoid()
    torch.testing.assert_close(found, expected)


SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.SEM_SEG_HEAD.NAME", "LongTailSemSegFPNHead"),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8),
    *("MODEL.SEM_SEG_HEAD.NORM", ""),
]


def config(*options):
    return load_config("", [*SMALL, *options])


def head_of(cfg, shapes=FPN_SHAPES):
    return build_sem_seg_head(cfg, shapes)


def test_a_loss_of_features_is_refused_by_name():
    refused = [name for name in LOSS_REGISTRY if name not in known_losses()]
    assert refused == ["FBL"]
    cfg = config("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3"], "MODEL.LT.LOSS.NAME", "FBL")
    cfg.MODEL.LT.CLASS_COUNTS = COUNTS
    with pytest.raises(ConfigError, match="MODEL.LT.LOSS.NAME is 'FBL', which needs the features"):
        head_of(cfg)


def test_a_feature_that_the_backbone_lacks_is_named():
    cfg = config("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p9"])
    with pytest.raises(ConfigError, match=r"IN_FEATURES is \['p2', 'p9'\]; .* gives p2, p3$"):
        head_of(cfg)


@pytest.mark.parametrize(
    "options, message",
    [
        (["INPUT.CROP.TYPE", "relative"], "INPUT.CROP.TYPE is 'relative'"),
        (["MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", []], r"PROJECT_CHANNELS is \[\]; .*res2"),
        (["INPUT.CROP.SIZE", [32, 36]], r"INPUT.CROP.SIZE is \[32, 36\].* 8$"),
    ],
)
def test_what_deeplab_cannot_use_is_named(options, message):
    cfg = config(
        *("MODEL.SEM_SEG_HEAD.NAME", "LongTailDeepLabV3PlusHead", "INPUT.CROP.ENABLED", True),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res5"], "INPUT.CROP.TYPE", "absolute"),
        *options,
    )
    with pytest.raises(ConfigError, match=message):
        head_of(cfg, DEEPLAB_SHAPES)


@pytest.mark.parametrize("architecture", ["PanopticFPN", "LongTailSegmentor"])
def test_counts_are_those_of_the_pixels(architecture):
    cfg = config(
        *("MODEL.META_ARCHITECTURE", architecture, "MODEL.LT.LOSS.NAME", "BalancedSoftmax"),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3"]),
    )
    cfg.MODEL.LT.CLASS_COUNTS = [1, 2] if architecture == "PanopticFPN" else COUNTS
    cfg.MODEL.LT.SEM_SEG.CLASS_COUNTS = COUNTS if architecture == "PanopticFPN" else []
    loss = head_of(cfg).cls_loss
    logits, targets = torch.zeros(5, 5), torch.arange(5)
    expected = F.cross_entropy(torch.tensor(COUNTS).log().expand(5, 5), targets)
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], expected)


def test_missing_counts_of_the_pixels_are_named():
    cfg = config(
        *("MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.LT.LOSS.NAME", "BalancedSoftmax"),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3"]),
    )
    cfg.MODEL.LT.CLASS_COUNTS = COUNTS
    with pytest.raises(ConfigError, match=r"counts MODEL.LT.SEM_SEG.CLASS_COUNTS\)$"):
        head_of(cfg)


def image(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8),
        "sem_seg": labels_of((64, 64), 1, seed)[0],
        "height": 64,
        "width": 64,
    }


def test_detectron2s_segmentor_takes_the_head():
    torch.manual_seed(0)
    model = build_model(config("MODEL.META_ARCHITECTURE", "SemanticSegmentor"))
    batch = [image(0), image(1)]
    losses = model(batch)
    losses["loss_sem_seg"].backward()
    # Nearly equal scores at the start: log 5 plus or minus what weights of 0.01 give.
    assert losses["loss_sem_seg"].item() == pytest.approx(1.609, abs=0.1)
    assert model.sem_seg_head.predictor.classifier.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        found = model(batch[:1])[0]["sem_seg"]
    torch.testing.assert_close(found.sum(dim=0), torch.ones(64, 64))


@pytest.mark.parametrize("roi_heads", ["StandardROIHeads", "LongTailROIHeads"])
def test_panoptic_fpn_trains_and_its_semantic_part_is_the_best_score(roi_heads):
    torch.manual_seed(0)
    cfg = config(
        *("MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.ROI_HEADS.NAME", roi_heads),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.MASK_ON", True),
        *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
        *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [48], [64], [96]]),
        *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
        *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
        *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 10, "MODEL.LT.LOSS.NAME", "SoftmaxEQL"),
        *("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 0),
        *("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 1.1),
    )
    model = build_model(cfg)
    batch = [image()]
    target = Instances((64, 64))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 48.0]]))
    target.gt_classes = torch.tensor([1])
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 8:48, 8:40] = True
    target.gt_masks = BitMasks(masks)
    batch[0]["instances"] = target
    with EventStorage(0):
        losses = model(batch)
    assert {"loss_sem_seg", "loss_cls", "loss_mask", "loss_rpn_cls"} <= losses.keys()
    sum(losses.values()).backward()
    assert model.sem_seg_head.predictor.classifier.weight.grad.abs().sum() > 0
    assert (model.sem_seg_head.cls_loss.stats.pos > 0).all()
    model.eval()
    with torch.no_grad():
        found = model(batch)[0]
    torch.testing.assert_close(found["sem_seg"].sum(dim=0), torch.ones(64, 64))
    # No instance passes a threshold of 1.1: what is left are the semantic labels, 0 for "thing".
    segments, info = found["panoptic_seg"]
    labels = torch.tensor([0] + [item["category_id"] for item in info])
    assert torch.equal(labels[segments.long()], found["sem_seg"].argmax(dim=0))
