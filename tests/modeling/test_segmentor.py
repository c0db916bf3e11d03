"""The segmentor: Detectron2's on the whole image, windows, scales and mirror images, two heads."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, SemanticSegmentor, build_backbone, build_model
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch.nn import functional as F

from lt_det.engine import load_config
from lt_det.engine.hooks import named_grad_stats
from lt_det.errors import ConfigError, DataError
from lt_det.losses import build_loss
from lt_det.modeling import LongTailSegmentor, build_classifier
from lt_det.modeling.segmentor import sliding_window, window_starts
from lt_det.modeling.sem_seg import PixelClassifier, PixelHead

CLASSES, IGNORED = 5, 255
MEAN, STD = (100.0, 120.0, 90.0), (50.0, 60.0, 70.0)


class Pixels(Backbone):
    """The image as the only feature, so that a pixel's logits depend on it alone."""

    size_divisibility = 8

    def forward(self, x):
        return {"pixels": x}

    def output_shape(self):
        return {"pixels": ShapeSpec(channels=3, stride=1)}


class PointHead(PixelHead):
    def __init__(self, name, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.cls_loss = build_loss(name, num_classes=CLASSES)
        self.predictor = PixelClassifier(build_classifier(self.cls_loss, 3, init_std=1.0))
        self.ignore_value, self.loss_weight, self.common_stride = IGNORED, 1.0, 1
        self.calibration = None

    def layers(self, features):
        return self.predictor(features["pixels"])


def pointwise(name="SoftmaxEQL", **arguments):
    return LongTailSegmentor(
        backbone=Pixels(),
        sem_seg_head=PointHead(name, seed=0),
        pixel_mean=MEAN,
        pixel_std=STD,
        **arguments,
    )


SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.META_ARCHITECTURE", "LongTailSegmentor", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.SEM_SEG_HEAD.NAME", "LongTailSemSegFPNHead"),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8),
    *("MODEL.SEM_SEG_HEAD.NORM", "", "MODEL.LT.CLASSIFIER.INIT_STD", 0.5),
]


def built(*options):
    torch.manual_seed(0)
    return build_model(load_config("", [*SMALL, *options]))


def record(size=(40, 56), seed=0, **entries):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES + 1, size, generator=generator)
    return {
        "image": torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8),
        "sem_seg": labels.masked_fill(labels == CLASSES, IGNORED),
        **entries,
    }


def scores_of(model, x):
    return model.eval()([x])[0]["sem_seg"]


@pytest.mark.parametrize("result", [(40, 56), (77, 101), (20, 28)])
def test_whole_images_are_segmented_as_by_detectron2(result):
    ours = built()
    cfg = load_config("", SMALL)
    backbone = build_backbone(cfg)
    theirs = SemanticSegmentor(
        backbone=backbone,
        sem_seg_head=SemSegFPNHead(cfg, backbone.output_shape()),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    ).eval()
    weights = ours.state_dict()
    weights["sem_seg_head.predictor.bias"] = weights.pop("sem_seg_head.predictor.classifier.bias")
    weight = weights.pop("sem_seg_head.predictor.classifier.weight")
    weights["sem_seg_head.predictor.weight"] = weight[:, :, None, None]
    theirs.load_state_dict(weights)
    x = record(height=result[0], width=result[1])
    with torch.no_grad():
        expected = theirs([x])[0]["sem_seg"]
    found = scores_of(ours, x)
    # Logits up to 1000 in another memory format, so rounded otherwise in the seventh digit: the
    # best class is the same wherever it is not as good as another by that.
    torch.testing.assert_close(found, expected.softmax(dim=0), rtol=1e-3, atol=1e-4)
    best, second = expected.topk(2, dim=0).values
    clear = best - second > 1e-2
    assert clear.float().mean() > 0.99
    assert torch.equal(found.argmax(dim=0)[clear], expected.argmax(dim=0)[clear])
    assert len(expected.argmax(dim=0).unique()) > 1


def test_the_size_of_the_result_is_that_of_the_image_unless_given():
    model, x = pointwise(), record((13, 21))
    assert scores_of(model, x).shape == (CLASSES, 13, 21)
    assert scores_of(model, x | {"height": 30, "width": 7}).shape == (CLASSES, 30, 7)


@pytest.mark.parametrize("length, window, stride", [(8, 8, 3), (20, 8, 8), (21, 8, 5), (9, 8, 1)])
def test_windows_cover_a_side_and_stay_inside(length, window, stride):
    starts = window_starts(length, window, stride)
    count = max(length - window + stride - 1, 0) // stride + 1  # mmsegmentation's number
    by_hand = [min(k * stride, length - window) for k in range(count)]
    assert starts == by_hand
    assert {p for s in starts for p in range(s, s + window)} == set(range(length))


def test_overlapping_windows_are_averaged():
    """Each window answers with its own number: a pixel has the mean over its windows."""
    answers = iter(range(100))
    seen = []

    def predict(part):
        seen.append(part)
        return torch.full((1, 2, 8, 8), float(next(answers)))

    image = torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(0))
    found = sliding_window(image, predict, 8, 5)
    total, times = torch.zeros(12, 20), torch.zeros(12, 20)
    corners = [(top, left) for top in (0, 4) for left in (0, 5, 10, 12)]
    for answer, (top, left) in enumerate(corners):
        assert torch.equal(seen[answer], image[:, top : top + 8, left : left + 8])
        total[top : top + 8, left : left + 8] += answer
        times[top : top + 8, left : left + 8] += 1
    torch.testing.assert_close(found, (total / times).expand(1, 2, 12, 20))


@pytest.mark.parametrize("size", [(40, 56), (20, 56), (11, 13)])
def test_windows_change_nothing_where_a_pixel_depends_on_itself_alone(size):
    x = record(size)
    expected = scores_of(pointwise(), x)
    for stride in (0, 5, 24):
        found = scores_of(pointwise(window=24, stride=stride), x)
        torch.testing.assert_close(found, expected)


def test_one_window_is_the_whole_image():
    model, x = built(), record((64, 64))
    expected = scores_of(model, x)
    model.window, model.stride = 64, 32
    torch.testing.assert_close(scores_of(model, x), expected)


def test_stride_0_is_two_thirds_of_the_window():
    assert pointwise(window=512).stride == 341
    assert pointwise(window=1).stride == 1


@pytest.mark.parametrize("window", [0, 32])
def test_the_mean_with_the_mirror_image_is_symmetric(window):
    model, x = built("TEST.LT.SEM_SEG.FLIP", True, "TEST.LT.SEM_SEG.WINDOW", window), record()
    mirrored = x | {"image": x["image"].flip(-1)}
    found = scores_of(model, x)
    torch.testing.assert_close(found.flip(-1), scores_of(model, mirrored), rtol=1e-4, atol=1e-6)
    # The mean of the scores of both, one of them mirrored back.
    model.flip = False
    both = scores_of(model, x), scores_of(model, mirrored).flip(-1)
    torch.testing.assert_close(found, (both[0] + both[1]) / 2)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_scales_are_averaged():
    x = record(height=50, width=60)
    model = built("TEST.LT.SEM_SEG.SCALES", (0.5, 1.0, 1.5))
    found = scores_of(model, x)
    alone = []
    for scale in model.scales:
        model.scales = (scale,)
        alone.append(scores_of(model, x))
    torch.testing.assert_close(found, sum(alone) / 3)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_a_scale_resizes_the_image():
    x = record()
    model = pointwise(scales=(0.5,))
    image = (x["image"] - model.pixel_mean) / model.pixel_std
    small = F.interpolate(image[None], size=(20, 28), mode="bilinear", antialias=True)
    logits = model.sem_seg_head.layers({"pixels": small})
    expected = F.interpolate(logits, size=(40, 56), mode="bilinear")[0].softmax(dim=0)
    torch.testing.assert_close(scores_of(model, x), expected)


def test_predictions_move_no_statistics_and_keep_no_graph():
    model = pointwise(flip=True)
    assert not scores_of(model, record()).requires_grad
    assert model.sem_seg_head.cls_loss.stats.steps == 0


def test_padding_takes_no_part_in_the_loss():
    """Images of two sizes in a batch: the mean over their valid pixels, as for each alone."""
    records = [record((40, 56), seed=0), record((24, 31), seed=1)]
    together = pointwise()(records)["loss_sem_seg"]
    alone = torch.stack([pointwise()([x])["loss_sem_seg"] for x in records])
    pixels = torch.tensor([(x["sem_seg"] != IGNORED).sum() for x in records])
    torch.testing.assert_close(together, (alone * pixels).sum() / pixels.sum())


def test_the_auxiliary_head_has_a_loss_and_statistics_of_its_own():
    auxiliary = PointHead("SoftmaxEQL", seed=1)
    model = pointwise(auxiliary_head=auxiliary, auxiliary_weight=0.25)
    x = record()
    losses = model([x])
    assert losses.keys() == {"loss_sem_seg", "loss_sem_seg_aux"}
    alone = pointwise()
    torch.testing.assert_close(losses["loss_sem_seg"], alone([x])["loss_sem_seg"])
    other = LongTailSegmentor(
        backbone=Pixels(),
        sem_seg_head=PointHead("SoftmaxEQL", seed=1),
        pixel_mean=MEAN,
        pixel_std=STD,
    )
    torch.testing.assert_close(losses["loss_sem_seg_aux"], 0.25 * other([x])["loss_sem_seg"])
    found = named_grad_stats(model)
    assert list(found) == ["", "aux"]
    for stats, single in zip(found.values(), (alone, other), strict=True):
        torch.testing.assert_close(stats.pos, single.sem_seg_head.cls_loss.stats.pos)
    assert not torch.allclose(found[""].pos, found["aux"].pos)


def test_the_auxiliary_head_of_the_configuration_trains_and_does_not_predict():
    options = ["MODEL.LT.LOSS.NAME", "SigmoidEQL", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 2.0]
    auxiliary = [
        *("MODEL.LT.SEM_SEG.AUX.FEATURE", "p4", "MODEL.LT.SEM_SEG.AUX.CHANNELS", 6),
        *("MODEL.LT.SEM_SEG.AUX.NUM_CONVS", 2, "MODEL.LT.SEM_SEG.AUX.WEIGHT", 0.3),
    ]
    model, x = built(*options, *auxiliary), record((64, 64))
    losses = model([x, x])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.auxiliary_head.parameters())
    head = model.auxiliary_head
    assert (head.in_feature, len(head.convs), head.fuse) == ("p4", 2, None)
    assert head.convs[0].out_channels == 6
    assert model.auxiliary_weight == 0.3 and head.loss_weight == 1
    found = scores_of(model, x)
    model.auxiliary_head = None
    assert torch.equal(found, scores_of(model, x))


@pytest.mark.parametrize(
    "options, message",
    [
        (["TEST.LT.SEM_SEG.WINDOW", -1], "TEST.LT.SEM_SEG.WINDOW is -1"),
        (
            ["TEST.LT.SEM_SEG.WINDOW", 32, "TEST.LT.SEM_SEG.STRIDE", 33],
            "TEST.LT.SEM_SEG.STRIDE is 33; accepted are 1 to the WINDOW, 32",
        ),
        (["TEST.LT.SEM_SEG.STRIDE", -2], "TEST.LT.SEM_SEG.STRIDE is -2"),
        (["TEST.LT.SEM_SEG.SCALES", ()], r"TEST.LT.SEM_SEG.SCALES is \[\]"),
        (["TEST.LT.SEM_SEG.SCALES", (1.0, 0.0)], r"TEST.LT.SEM_SEG.SCALES is \[1.0, 0.0\]"),
        (["MODEL.LT.SEM_SEG.AUX.FEATURE", "res4"], r"AUX.FEATURE is \['res4'\]; .* p2, p3, p4"),
        (["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"], "NAME is 'SemSegFPNHead'; .* UPerNetHead"),
        (["MODEL.SEM_SEG_HEAD.NAME", "x"], "MODEL.SEM_SEG_HEAD.NAME is 'x'; .* FCNHead"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        built(*options)


def test_labels_that_do_not_belong_to_the_image_are_an_error_with_its_file():
    x = record((40, 56), file_name="images/a.jpg")
    x["sem_seg"] = x["sem_seg"][:, :50]
    with pytest.raises(DataError, match=r"images/a.jpg: the image is \(40, 56\).*\(40, 50\)"):
        pointwise()([x])
    del x["sem_seg"]
    with pytest.raises(DataError, match="images/a.jpg comes without labels"):
        pointwise()([x])
