"""Post-hoc calibration: identities and closed forms, the same on logits, on scores, in models."""

import logging
import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

from lt_det.engine import load_config
from lt_det.errors import ConfigError
from lt_det.losses import LOSS_REGISTRY, build_loss
from lt_det.modeling import adjust_logits, build_classifier, norcal, tau_normalize
from lt_det.modeling.calibration import (
    METHODS,
    CountCalibration,
    TauNorm,
    calibrated_scores,
    calibration_from_config,
    norcal_shift,
    prior_shift,
    rescore,
    rescore_detections,
    score_form,
    set_strength,
    unit_shift,
)
from lt_det.modeling.classifier import tau_normalized_logits
from lt_det.modeling.dense_inference import level_candidates
from lt_det.modeling.sem_seg import pixel_arguments
from tests.modeling import dense_cases

COUNTS = [300, 40, 7, 1]
BY_COUNTS = [norcal, adjust_logits]


def random_logits(rows=20, columns=5, seed=0, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, columns, generator=generator, dtype=dtype)


# ---- functions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", BY_COUNTS)
def test_strength_zero_changes_no_bit(function):
    logits = random_logits(dtype=torch.float32)
    assert torch.equal(function(logits, COUNTS, 0), logits)
    weight = random_logits(5, 3, seed=1, dtype=torch.float32)
    found = tau_normalize(logits, weight, weight[:, 0], 0, num_classes=4, background=True)
    assert torch.equal(found, logits)


@pytest.mark.parametrize("function", BY_COUNTS)
def test_equal_counts_change_no_softmax_without_background(function):
    logits = random_logits(columns=4)
    found = function(logits, [50] * 4, 0.7).softmax(dim=1)
    torch.testing.assert_close(found, logits.softmax(dim=1))


def test_equal_counts_keep_the_ranking_beside_a_background():
    """Foreground against foreground; under logit adjustment nothing changes at all."""
    logits = random_logits()
    assert torch.equal(adjust_logits(logits, [50] * 4, 0.7), logits)
    found = norcal(logits, [50] * 4, 0.7)
    assert torch.equal(found[:, :4].argsort(dim=1), logits[:, :4].argsort(dim=1))


def test_norcal_is_the_formula_of_the_paper():
    logits, gamma = random_logits(), 0.6
    exponents, weights = logits.exp(), torch.tensor(COUNTS, dtype=torch.float64) ** -gamma
    below = (exponents[:, :4] * weights).sum(dim=1) + exponents[:, 4]
    expected = exponents[:, :4] * weights / below[:, None]
    found = norcal(logits, COUNTS, gamma).softmax(dim=1)
    torch.testing.assert_close(found[:, :4], expected)
    torch.testing.assert_close(found[:, 4], exponents[:, 4] / below)
    scores = torch.sigmoid(logits[:, :4])
    by_class = scores * weights / (scores * weights + 1 - scores)
    torch.testing.assert_close(torch.sigmoid(norcal(logits[:, :4], COUNTS, gamma)), by_class)


@pytest.mark.parametrize("function", BY_COUNTS)
def test_background_and_further_columns_keep_their_logits(function):
    logits = random_logits(columns=6)
    assert torch.equal(function(logits, COUNTS, 1.3)[:, 4:], logits[:, 4:])


def test_who_keeps_a_place_beside_the_background():
    """NorCal: a class of one example; logit adjustment: the largest class. The other end moves."""
    logits = random_logits()
    by_norcal, by_prior = norcal(logits, COUNTS, 1), adjust_logits(logits, COUNTS, 1)
    assert torch.equal(by_norcal[:, 3], logits[:, 3])
    assert torch.equal(by_prior[:, 0], logits[:, 0])
    torch.testing.assert_close(by_norcal[:, 0], logits[:, 0] - math.log(300))
    torch.testing.assert_close(by_prior[:, 3], logits[:, 3] + math.log(300))
    background = logits.softmax(dim=1)[:, 4]
    assert (by_norcal.softmax(dim=1)[:, 4] > background).all()
    assert (by_prior.softmax(dim=1)[:, 4] < background).all()


def test_without_a_background_both_are_the_same():
    logits = random_logits(columns=4)
    found = [f(logits, COUNTS, 0.8).softmax(dim=1) for f in BY_COUNTS]
    torch.testing.assert_close(*found)


def test_adjustment_turns_bayes_posterior_into_the_balanced_one():
    """Scores of p(x|y) under the prior of the counts -> those under equal priors."""
    likelihood = random_logits(columns=4)
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    logits = likelihood + (counts / counts.sum()).log()
    balanced = likelihood.softmax(dim=1)
    torch.testing.assert_close(adjust_logits(logits, COUNTS, 1).softmax(dim=1), balanced)
    assert (logits.argmax(dim=1) != balanced.argmax(dim=1)).any()


@pytest.mark.parametrize("function", BY_COUNTS)
def test_the_fewer_examples_the_higher_the_score(function):
    """Of equal logits; and more strength means more for the rarest."""
    scores = function(torch.zeros(1, 5), COUNTS, 0.5).softmax(dim=1)[0]
    assert (scores[:3] < scores[1:4]).all()
    shares = [
        s[3] / s[:4].sum()
        for s in (function(torch.zeros(1, 5), COUNTS, g).softmax(dim=1)[0] for g in (0, 0.3, 1, 2))
    ]
    assert shares == sorted(shares) and shares[0] < shares[-1]


@pytest.mark.parametrize("function", BY_COUNTS)
def test_classes_move_with_their_counts(function):
    order = torch.tensor([2, 0, 3, 1])
    logits = random_logits(columns=4)
    found = function(logits[:, order], [COUNTS[k] for k in order], 0.7)
    assert torch.equal(found, function(logits, COUNTS, 0.7)[:, order])


def test_a_class_without_examples_counts_as_one_with_one(caplog):
    with caplog.at_level(logging.WARNING):
        assert torch.equal(norcal_shift([9, 0], 0.5), norcal_shift([9, 1], 0.5))
        assert torch.equal(prior_shift([9, 0], 0.5), prior_shift([9, 1], 0.5))
    assert "1 of 2 classes have no training example" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", BY_COUNTS)
def test_half_precision_is_computed_in_single(function, dtype):
    """Counts of 1e6 to the power 2 leave the range of half precision."""
    logits = random_logits(scale=1000, dtype=torch.float32).to(dtype)
    counts = [10**6, 1000, 3, 1]
    found = function(logits, counts, 2)
    assert found.isfinite().all()
    assert torch.equal(found, function(logits.float(), counts, 2))
    weight = torch.full((5, 3), 2.0, dtype=dtype)
    found = tau_normalize(logits, weight, weight[:, 0], 1, num_classes=4, background=False)
    torch.testing.assert_close(found[:, :4], (logits.float()[:, :4] - 2) / math.sqrt(12))


# ---- tau ----------------------------------------------------------------------------------------


def linear(columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(6, columns).double()
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_tau_normalisation_from_logits_is_that_of_the_weights(tau):
    layer, x = linear(4), random_logits(columns=6)
    found = tau_normalize(layer(x), layer.weight, layer.bias, tau, num_classes=4, background=False)
    torch.testing.assert_close(found, tau_normalized_logits(x, layer.weight, tau))


def test_tau_normalisation_beside_a_background():
    """It keeps its logit; classes of equal norms keep theirs; a long row loses."""
    layer, x = linear(5), random_logits(columns=6)
    layer.weight[:4] = F.normalize(layer.weight[:4], dim=1) * 3

    def normalized():
        return tau_normalize(
            layer(x), layer.weight, layer.bias, 0.7, num_classes=4, background=True
        )

    torch.testing.assert_close(normalized(), layer(x))
    layer.weight[0] *= 16
    # The geometric mean of (48, 3, 3, 3) is 6.
    factors = torch.tensor([6 / 48, 2, 2, 2], dtype=torch.float64) ** 0.7
    expected = (layer(x)[:, :4] - layer.bias[:4]) * factors + layer.bias[:4]
    torch.testing.assert_close(normalized()[:, :4], expected)
    assert torch.equal(normalized()[:, 4], layer(x)[:, 4])


# ---- saved scores -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["NorCal", "LogitAdjustment"])
@pytest.mark.parametrize("name", list(LOSS_REGISTRY))
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_saved_scores_of_images_are_rescored_as_logits_are(name, method, scale):
    """For every loss, whatever it scales its logits by."""
    loss = build_loss(name, num_classes=4, class_counts=COUNTS, **_params(name))
    logits = random_logits(columns=loss.num_logits, scale=scale / getattr(loss, "scale", 1))
    calibration = CountCalibration(unit_shift(method, COUNTS), 0.7)
    expected = calibrated_scores(calibration, loss, logits, None)
    saved = loss.scores(logits)
    found = rescore(saved, 0.7 * unit_shift(method, COUNTS), score_form(loss))
    torch.testing.assert_close(found, expected.double())
    sums_to_one = torch.allclose(saved.sum(dim=1), saved.new_ones(1))
    assert score_form(loss) == ("softmax" if sums_to_one else "sigmoid")


def _params(name):
    return {"num_images": 100} if name == "EQL" else {}


def test_a_softmax_with_background_is_rescored_as_logits_are():
    logits = random_logits()
    found = rescore(logits.softmax(dim=1), norcal_shift(COUNTS, 0.6), "softmax")
    torch.testing.assert_close(found, norcal(logits, COUNTS, 0.6).softmax(dim=1))


def test_certain_scores_stay():
    shift = norcal_shift(COUNTS, 2)
    scores = torch.tensor([[0.0, 0, 1, 0], [0.5, 0.5, 0, 0]])
    found = rescore(scores, shift, "softmax")
    assert torch.equal(found[0], scores[0].double())
    torch.testing.assert_close(found[1, :2], torch.tensor([40.0**2, 300.0**2]).double() / 91600)
    assert torch.equal(rescore(scores[:1], shift, "sigmoid"), scores[:1].double())


def test_detections_with_sigmoid_scores_are_rescored_exactly():
    logits, classes = random_logits(rows=50, columns=4), torch.arange(50) % 4
    own = logits[torch.arange(50), classes]
    found = rescore_detections(own.sigmoid(), classes, norcal_shift(COUNTS, 0.6))
    expected = norcal(logits, COUNTS, 0.6).sigmoid()[torch.arange(50), classes]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_softmax_detections_are_bounded_by_what_is_known_of_their_region(kept):
    """With all classes of a region exact, else lower (NorCal) or upper bounds."""
    logits, rows = random_logits(rows=50), torch.arange(50)
    scores = logits.softmax(dim=1)
    classes = torch.stack([(rows + k) % 4 for k in range(kept)], dim=1)
    saved = scores.gather(1, classes).flatten()
    regions = rows.repeat_interleave(kept)
    for function, shift, sign in ((norcal, norcal_shift, 1), (adjust_logits, prior_shift, -1)):
        exact = function(logits, COUNTS, 0.6).softmax(dim=1).gather(1, classes).flatten()
        found = rescore_detections(saved, classes.flatten(), shift(COUNTS, 0.6), regions)
        if kept == 4:
            torch.testing.assert_close(found, exact)
        else:
            assert (sign * found < sign * exact).all()
            alone = rescore_detections(saved, classes.flatten(), shift(COUNTS, 0.6))
            # Equal, up to rounding, where the other class known is not shifted.
            assert ((found - exact).abs() <= (alone - exact).abs() + 1e-12).all()


def test_a_region_whose_scores_sum_to_more_than_one_by_rounding():
    scores = torch.tensor([0.5, 0.5000001])
    classes, regions = torch.tensor([0, 3]), torch.tensor([0, 0])
    found = rescore_detections(scores, classes, norcal_shift(COUNTS, 1), regions)
    expected = torch.tensor([1 / 301, 300 / 301]).double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


# ---- modules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SoftmaxCE", "SigmoidBCE", "EQLv2", "Seesaw"])
def test_scores_of_a_head_with_background(name):
    """Softmax, one-vs-all, class times objectness: the background's score is never shifted."""
    loss = build_loss(name, num_classes=4, has_background=True)
    logits = random_logits(columns=loss.num_logits)
    calibration = CountCalibration(norcal_shift(COUNTS, 1), 0.6)
    found, before = calibrated_scores(calibration, loss, logits, None), loss.scores(logits)
    weights = norcal_shift(COUNTS, -0.6).exp()
    if name == "SoftmaxCE":
        odds = found[:, :4] / found[:, 4:]
        torch.testing.assert_close(odds, before[:, :4] / before[:, 4:] * weights)
        return
    assert torch.equal(found[:, 4:], before[:, 4:])
    if name == "Seesaw":  # classes share what is no background
        torch.testing.assert_close(found.sum(dim=1), torch.ones(20, dtype=torch.float64))
        ratio = found[:, :4] / before[:, :4] / weights
        torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 4))
        return
    nothing = 1 - logits[:, 4:].sigmoid() if name == "EQLv2" else 1
    odds = logits[:, :4].exp() * weights
    torch.testing.assert_close(found[:, :4], odds / (1 + odds) * nothing)


def test_maps_of_a_dense_head_are_shifted_by_channel():
    """Two anchors; candidates of shifted maps are those of shifted rows."""
    logits = random_logits(8, 15).view(8, 3, 5).float()
    calibration = CountCalibration(norcal_shift(COUNTS, 1), 0.6)
    rows = logits.view(2, 4, 15).transpose(1, 2).reshape(30, 4)
    expected = norcal(rows, COUNTS, 0.6).view(2, 15, 4).transpose(1, 2).reshape(8, 3, 5)
    assert torch.equal(calibration.maps(logits), expected)
    anchors = torch.zeros(30, 4)
    options = {"num_classes": 4, "topk": 7, "threshold": 0.0}
    best = level_candidates(calibration.maps(logits), torch.zeros(8, 3, 5), anchors, **options)
    torch.testing.assert_close(best.scores, expected.flatten().topk(7).values.sigmoid())
    calibration.strength = 0
    assert calibration.maps(logits) is logits


@pytest.mark.parametrize("kind", ["counts", "tau"])
def test_a_calibration_adds_no_state_and_none_of_its_precision_is_lost(kind):
    module = TauNorm(0.5) if kind == "tau" else CountCalibration(norcal_shift(COUNTS, 1), 0.5)
    assert not module.state_dict() and not list(module.parameters())
    if kind == "counts":
        assert torch.equal(module.half().unit_shift, norcal_shift(COUNTS, 1))


# ---- configuration ------------------------------------------------------------------------------


def config(*options):
    return load_config("", ["MODEL.LT.CLASS_COUNTS", COUNTS, *map(str, options)])


def from_config(*options, loss="SoftmaxCE", classifier=None):
    cfg = config("MODEL.LT.LOSS.NAME", loss, *options)
    built = build_loss(loss, num_classes=4, class_counts=COUNTS)
    return calibration_from_config(cfg, built, classifier or build_classifier(built, 3))


def test_no_name_is_no_calibration():
    assert from_config() is None


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf])
def test_a_strength_that_is_none_is_refused(strength):
    cfg = config(*NORCAL)
    cfg.MODEL.LT.CALIBRATION.STRENGTH = strength
    with pytest.raises(ConfigError, match=r"CALIBRATION.STRENGTH is .*at least 0.*calibrate.py"):
        calibration_from_config(cfg, build_loss("SoftmaxCE", num_classes=4))


NORCAL = ("MODEL.LT.CALIBRATION.NAME", "NorCal", "MODEL.LT.CALIBRATION.STRENGTH", 0.5)
TAU = ("MODEL.LT.CALIBRATION.NAME", "TauNorm", "MODEL.LT.CALIBRATION.STRENGTH", 0.5)


def test_wrong_values_are_named():
    with pytest.raises(ConfigError, match="'Norcal'.*Did you mean 'NorCal'.*LogitAdj.*TauNorm"):
        from_config("MODEL.LT.CALIBRATION.NAME", "Norcal")
    with pytest.raises(ConfigError, match="each of the 4 classes, and there are 0.*CLASS_COUNTS"):
        from_config(*NORCAL, "MODEL.LT.CLASS_COUNTS", [])
    with pytest.raises(ConfigError, match="loss KPS is a CosineClassifier"):
        from_config(*TAU, loss="KPS")


@pytest.mark.parametrize(
    "loss, said",
    [("SoftmaxCE", ""), ("BalancedSoftmax", "is corrected twice"), ("KPS", "may be corrected")],
)
def test_a_second_correction_is_said_in_the_log(loss, said, caplog):
    with caplog.at_level(logging.WARNING):
        from_config(*NORCAL, loss=loss)
    assert said in caplog.text and bool(caplog.text) == bool(said)
    caplog.clear()
    from_config(*NORCAL[:3], 0.0, loss=loss)
    assert not caplog.text


# ---- models -------------------------------------------------------------------------------------

CLASSIFIER = (
    *("MODEL.META_ARCHITECTURE", "LongTailClassifier", "MODEL.DEVICE", "cpu"),
    *("MODEL.BACKBONE.NAME", "build_cifar_resnet_backbone", "MODEL.RESNETS.DEPTH", "8"),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.LT.NUM_CLASSES", "4"),
)
SEGMENTOR = (
    *("MODEL.META_ARCHITECTURE", "LongTailSegmentor", "MODEL.DEVICE", "cpu"),
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res5"], "MODEL.WEIGHTS", ""),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2"], "MODEL.SEM_SEG_HEAD.NORM", ""),
    *("MODEL.LT.CLASSIFIER.INIT_STD", 1.0, "TEST.LT.SEM_SEG.FLIP", True),
)
HEADS = ("FCNHead", "UPerNetHead", "LongTailSemSegFPNHead")


def model(*options):
    torch.manual_seed(0)
    return build_model(config(*options)).eval()


def pictures(seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    return [{"image": torch.rand(3, size, size, generator=generator) * 255} for _ in range(3)]


@torch.no_grad()
def outputs(net, key, seed=0):
    return torch.stack([x[key] for x in net(pictures(seed))])


def test_image_classifier_gives_what_rescoring_gives():
    saved = outputs(model(*CLASSIFIER), "scores")
    found = outputs(model(*CLASSIFIER, *NORCAL), "scores")
    expected = rescore(saved, norcal_shift(COUNTS, 0.5), "softmax")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    assert (found - saved).abs().max() > 0.01
    nothing = outputs(model(*CLASSIFIER, *NORCAL[:3], 0.0), "scores")
    assert torch.equal(nothing, saved)


def test_tau_of_the_image_classifier_is_that_of_the_test_key():
    found = outputs(model(*CLASSIFIER, *TAU), "scores")
    assert torch.equal(found, outputs(model(*CLASSIFIER, "TEST.LT.TAU_NORM", 0.5), "scores"))
    with pytest.raises(ConfigError, match="TAU_NORM is 0.3 and .*set one"):
        model(*CLASSIFIER, *TAU, "TEST.LT.TAU_NORM", 0.3)


@pytest.mark.parametrize("head", HEADS)
def test_segmentation_averages_calibrated_views(head):
    """Of two views of an image, the scores of each are rescored before their mean is taken."""
    options = (*SEGMENTOR, "MODEL.SEM_SEG_HEAD.NAME", head)
    plain = (*options, "TEST.LT.SEM_SEG.FLIP", False)
    found = outputs(model(*options, *NORCAL), "sem_seg")
    one, mirrored = model(*plain), pictures()
    for x in mirrored:
        x["image"] = x["image"].flip(-1)
    with torch.no_grad():
        views = [
            torch.stack([x["sem_seg"] for x in one(pictures())]),
            torch.stack([x["sem_seg"].flip(-1) for x in one(mirrored)]),
        ]
    rows = [rescored_map(v, norcal_shift(COUNTS, 0.5)) for v in views]
    torch.testing.assert_close(found.double(), sum(rows) / 2, rtol=1e-4, atol=1e-6)


def rescored_map(scores, shift):
    rows = scores.permute(0, 2, 3, 1)
    return rescore(rows.reshape(-1, 4), shift, "softmax").view(rows.shape).permute(0, 3, 1, 2)


def test_tau_in_segmentation_is_that_of_its_classifier():
    """Normalising the weights gives what normalising the resized logits gives."""
    options = (*SEGMENTOR, "MODEL.SEM_SEG_HEAD.NAME", "FCNHead")
    changed = model(*options)
    linear = changed.sem_seg_head.predictor.classifier
    with torch.no_grad():
        linear.weight /= linear.weight.norm(dim=1, keepdim=True) ** 0.5
        linear.bias.zero_()
    found = outputs(model(*options, *TAU), "sem_seg")
    torch.testing.assert_close(found, outputs(changed, "sem_seg"), rtol=1e-4, atol=1e-6)


def test_a_panoptic_head_goes_by_the_counts_of_its_pixels():
    options = (*SEGMENTOR, "MODEL.SEM_SEG_HEAD.NAME", "FCNHead", *NORCAL)
    options += ("MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.LT.SEM_SEG.CLASS_COUNTS")
    cfg = config(*options, [5, 6, 7, 8])
    found = pixel_arguments(cfg, 8)["calibration"].unit_shift
    assert torch.equal(found, norcal_shift([5, 6, 7, 8], 1))


DETECTOR = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.ROI_HEADS.NUM_CLASSES", 4),
    *("MODEL.LT.CLASSIFIER.INIT_STD", 0.5, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *("MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0, "TEST.DETECTIONS_PER_IMAGE", -1),
)
FPN = (
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 8),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 8, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3),
)
ROI_HEADS = {
    "LongTailROIHeads": FPN,
    "LongTailCascadeROIHeads": (*FPN, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    "LongTailRes5ROIHeads": (),
}


def roi_scores(net):
    """Scores (R, C+1) of one image's regions as the head thresholds them, before anything else."""
    predictors = net.roi_heads.box_predictor
    predictors = predictors if isinstance(predictors, nn.ModuleList) else [predictors]
    caught = []
    for predictor in predictors:
        original = predictor.predict_probs
        predictor.predict_probs = lambda *args, f=original: caught.append(f(*args)) or caught[-1]
    features = net.backbone(pictures(size=64)[0]["image"][None] / 255)
    proposals = Instances((64, 64))
    corner = torch.rand(9, 2, generator=torch.Generator().manual_seed(1)) * 30
    proposals.proposal_boxes = Boxes(torch.cat([corner, corner + 25], dim=1))
    proposals.objectness_logits = torch.zeros(9)
    found, _ = net.roi_heads(None, features, [proposals], None)
    return [c[0] for c in caught], found[0].scores


@pytest.mark.parametrize("name", ROI_HEADS)
@torch.no_grad()
def test_roi_heads_calibrate_every_stage(name):
    """Scores of each stage are those of shifted logits, detections have their mean."""
    options = (*DETECTOR, *ROI_HEADS[name], "MODEL.ROI_HEADS.NAME", name)
    before, _ = roi_scores(model(*options))
    net = model(*options, *NORCAL)
    stages, detected = roi_scores(net)
    assert len(stages) == (3 if "Cascade" in name else 1)
    for old, new in zip(before, stages, strict=True):
        expected = rescore(old, norcal_shift(COUNTS, 0.5), "softmax")
        torch.testing.assert_close(new.double(), expected, rtol=1e-4, atol=1e-6)
    mean = (sum(stages) / len(stages))[:, :4].flatten().sort(descending=True).values
    torch.testing.assert_close(detected, mean)
    set_strength(net, 0.0)
    for old, new in zip(before, roi_scores(net)[0], strict=True):
        assert torch.equal(old, new)


@torch.no_grad()
def test_tau_in_roi_heads_is_that_of_their_classifier():
    options = (*DETECTOR, *FPN, "MODEL.ROI_HEADS.NAME", "LongTailROIHeads")
    before = model(*options).roi_heads.box_predictor
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    proposals = Instances((64, 64), proposal_boxes=Boxes(torch.zeros(6, 4)))
    logits = before(x)[0]
    layer = before.cls_score
    expected = tau_normalize(
        logits, layer.weight, layer.bias, 0.5, num_classes=4, background=True
    ).softmax(dim=1)
    predictor = model(*options, *TAU).roi_heads.box_predictor
    torch.testing.assert_close(predictor.predict_probs(predictor(x), [proposals])[0], expected)


@pytest.mark.parametrize("kind", ["retinanet", "atss"])
@torch.no_grad()
def test_dense_detectors_rank_by_calibrated_scores(kind):
    """All candidates kept: the best calibrated scores, those of the old ones rescored."""
    low = ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.NMS_THRESH_TEST", 1.0)
    low += ("TEST.DETECTIONS_PER_IMAGE", 10**6, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 10**6)
    low += ("MODEL.LT.DENSE.TOPK", 0, "MODEL.LT.DENSE.IOU_BRANCH", False)
    before = dense_cases.detector(kind, *low).eval()
    after = dense_cases.detector(kind, *low, *NORCAL).eval()
    shift = norcal_shift([40, 30, 20, 10], 0.5)
    found = [net([dense_cases.image([0])])[0]["instances"] for net in (before, after)]
    expected = rescore_detections(found[0].scores, found[0].pred_classes, shift)
    assert after.score_power == 1
    torch.testing.assert_close(
        found[1].scores.double(), expected.sort(descending=True).values, rtol=1e-4, atol=1e-7
    )


def test_dense_detectors_have_no_rows_to_normalise():
    with pytest.raises(ConfigError, match="is a convolution; .*NorCal and LogitAdjustment"):
        dense_cases.detector("retinanet", *TAU)


TRAINED = {
    "classifier": CLASSIFIER,
    "segmentor": (*SEGMENTOR, "MODEL.SEM_SEG_HEAD.NAME", "FCNHead"),
    "detector": (*DETECTOR, *FPN, "MODEL.ROI_HEADS.NAME", "LongTailROIHeads"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", TRAINED)
def test_training_and_checkpoints_know_nothing_of_it(kind, name):
    on = ("MODEL.LT.CALIBRATION.NAME", name, "MODEL.LT.CALIBRATION.STRENGTH", 0.5)
    plain, calibrated = (model(*TRAINED[kind], *more) for more in ((), on))
    a, b = plain.state_dict(), calibrated.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    if kind == "classifier":
        batch = [x | {"label": k} for k, x in enumerate(pictures())]
        losses = [net.train()(batch)["loss_cls"] for net in (plain, calibrated)]
        assert torch.equal(*losses)
