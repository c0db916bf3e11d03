"""FCNHead and UPerNetHead, written out with torch functions on the same weights."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from lt_det.engine import load_config
from lt_det.errors import ConfigError
from lt_det.losses import build_loss
from lt_det.modeling import FCNHead, UPerNetHead, build_classifier

CLASSES, WIDTH = 4, 6
SHAPES = {
    "res3": ShapeSpec(channels=3, stride=4),
    "res4": ShapeSpec(channels=5, stride=8),
    "res5": ShapeSpec(channels=7, stride=16),
}


def built(head, shapes, **arguments):
    """A head in evaluation, with running statistics that are not 0 and 1."""
    torch.manual_seed(0)
    loss = build_loss("SoftmaxEQL", num_classes=CLASSES)
    classifier = build_classifier(loss, WIDTH, init_std=0.5)
    arguments = {"conv_dims": WIDTH, "norm": "BN"} | arguments
    head = head(shapes, loss=loss, classifier=classifier, **arguments)
    for name, buffer in head.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(len(buffer)) + 0.1)
    return head.eval()


def features_of(size=(48, 80), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(2, s.channels, *(n // s.stride for n in size), generator=generator)
        for name, s in SHAPES.items()
    }


class WrittenOut:
    """Convolution, normalisation and ReLU by the names of a state_dict."""

    def __init__(self, head):
        self.weights = head.state_dict()

    def block(self, x, name):
        weight = self.weights[f"{name}.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        norm = [
            self.weights[f"{name}.norm.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        ]
        return F.batch_norm(x, *norm, eps=1e-5).relu()

    def classify(self, x):
        weight = self.weights["predictor.classifier.weight"][:, :, None, None]
        return F.conv2d(x, weight, self.weights["predictor.classifier.bias"])


def bilinear(x, like):
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("concat_input", [True, False])
@pytest.mark.parametrize("num_convs", [1, 3])
def test_fcn_head(num_convs, concat_input):
    shapes = {"res4": SHAPES["res4"]}
    head = built(FCNHead, shapes, num_convs=num_convs, concat_input=concat_input)
    by_hand, x = WrittenOut(head), features_of()["res4"]
    y = x
    for k in range(num_convs):
        y = by_hand.block(y, f"convs.{k}")
    if concat_input:
        y = by_hand.block(torch.cat([x, y], dim=1), "fuse")
    torch.testing.assert_close(head.layers(features_of()), by_hand.classify(y))


def test_upernet_head():
    # The order of the features is that of their strides, whatever the order they are named in.
    shapes = dict(reversed(SHAPES.items()))
    head = built(UPerNetHead, shapes, pool_sizes=(1, 2, 3))
    by_hand, (first, second, last) = WrittenOut(head), features_of().values()
    pooled = [
        bilinear(by_hand.block(F.adaptive_avg_pool2d(last, side), f"pooling.reduce.{k}"), last)
        for k, side in enumerate((1, 2, 3))
    ]
    third = by_hand.block(torch.cat([last, *pooled], dim=1), "pooling.fuse")
    second = by_hand.block(second, "lateral.1") + bilinear(third, second)
    first = by_hand.block(first, "lateral.0") + bilinear(second, first)
    levels = [by_hand.block(first, "smooth.0")]
    levels += [bilinear(x, first) for x in (by_hand.block(second, "smooth.1"), third)]
    expected = by_hand.classify(by_hand.block(torch.cat(levels, dim=1), "fuse"))
    torch.testing.assert_close(head.layers(features_of()), expected)


@pytest.mark.parametrize("head, stride", [(FCNHead, 16), (UPerNetHead, 4)])
def test_scores_have_the_size_of_the_image(head, stride):
    names = ["res5"] if head is FCNHead else list(SHAPES)
    head = built(head, {name: SHAPES[name] for name in names})
    logits = head.layers(features_of())
    expected = F.interpolate(logits, scale_factor=stride, mode="bilinear").softmax(dim=1)
    assert expected.shape[2:] == (48, 80)
    torch.testing.assert_close(head(features_of())[0], expected)


@pytest.mark.parametrize("head", [FCNHead, UPerNetHead])
def test_dropout_takes_whole_channels_before_the_classifier_in_training(head):
    names = ["res5"] if head is FCNHead else list(SHAPES)
    head = built(head, {name: SHAPES[name] for name in names}, dropout=0.5)
    seen = []
    head.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head.layers(features_of())
    head.dropout.train()
    head.layers(features_of())
    whole, dropped = seen
    gone = (dropped == 0).flatten(2).all(dim=2)
    assert 0 < gone.sum() < gone.numel()
    torch.testing.assert_close(dropped, whole * 2 * ~gone[:, :, None, None])


def test_convolutions_start_from_kaimings_distribution_over_the_fan_out():
    head = built(FCNHead, {"res4": ShapeSpec(channels=64, stride=8)}, conv_dims=128, num_convs=1,
                 concat_input=False)  # fmt: skip
    # 73728 weights: their standard deviation is known to 0.3 %.
    assert head.convs[0].weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert head.convs[0].bias is None
    without = built(FCNHead, {"res4": SHAPES["res4"]}, norm="")
    assert (without.convs[0].bias == 0).all()


def configured(*options):
    return load_config(
        "",
        [
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES, "MODEL.SEM_SEG_HEAD.CONVS_DIM", WIDTH),
            *("MODEL.SEM_SEG_HEAD.IN_FEATURES", list(SHAPES), "MODEL.SEM_SEG_HEAD.NORM", "BN"),
            *options,
        ],
    )


def test_configuration_reaches_the_heads():
    cfg = configured(
        *("MODEL.LT.SEM_SEG.NUM_CONVS", 3, "MODEL.LT.SEM_SEG.CONCAT_INPUT", False),
        *("MODEL.LT.SEM_SEG.POOL_SIZES", (1, 4), "MODEL.LT.SEM_SEG.DROPOUT", 0.25),
        *("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 99, "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.3),
    )
    fcn, upernet = FCNHead(cfg, SHAPES), UPerNetHead(cfg, SHAPES)
    assert fcn.in_feature == "res5" and len(fcn.convs) == 3 and fcn.fuse is None
    assert upernet.in_features == list(SHAPES) and upernet.pooling.pool_sizes == (1, 4)
    for head in (fcn, upernet):
        assert (head.dropout.p, head.ignore_value, head.loss_weight) == (0.25, 99, 0.3)


@pytest.mark.parametrize(
    "head, options, message",
    [
        (FCNHead, ["MODEL.LT.SEM_SEG.NUM_CONVS", 0], "MODEL.LT.SEM_SEG.NUM_CONVS .* is 0"),
        (FCNHead, ["MODEL.LT.SEM_SEG.DROPOUT", 1.0], "MODEL.LT.SEM_SEG.DROPOUT is 1.0"),
        (UPerNetHead, ["MODEL.LT.SEM_SEG.DROPOUT", -0.1], "MODEL.LT.SEM_SEG.DROPOUT is -0.1"),
        (UPerNetHead, ["MODEL.LT.SEM_SEG.POOL_SIZES", (1, 0)], r"POOL_SIZES is \[1, 0\]"),
        (FCNHead, ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["x"]], r"IN_FEATURES is \['x'\]; .* res3"),
        (UPerNetHead, ["MODEL.SEM_SEG_HEAD.IN_FEATURES", []], r"IN_FEATURES is \[\]; .* res3"),
    ],
)
def test_bad_values_are_named(head, options, message):
    with pytest.raises(ConfigError, match=message):
        head(configured(*options), SHAPES)
