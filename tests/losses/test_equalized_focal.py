"""EFL and EQFL: golden vectors, identities, and the closed form against autograd."""

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss
from lt_det.losses.equalized_focal import dynamic_normalizer, focusing_factors
from lt_det.losses.layout import dense_levels, dense_rows
from tests.gloo import run_on_ranks
from tests.losses.golden import (
    DTYPE,
    ROOT,
    TOLERANCE,
    assert_matches,
    equalization,
    read,
    start_from,
    zero_based,
)

SINGLE_LEVEL = [p for p in equalization("e*fl_*") if "multilevel" not in p.name]
# In float32 the original overflows on large logits: those have float64 vectors only.
GOLDEN = [
    (path, precision)
    for path in SINGLE_LEVEL
    for precision in ("f64", "f32")
    if precision == "f64" or not path.stem.endswith("_f64")
]


def build_from(hparams):
    params = {"gamma": hparams["focal_gamma"], "scale_factor": hparams["scale_factor"]}
    if hparams["loss"] == "EFL":
        params["alpha"] = hparams["focal_alpha"]
    else:
        params["dynamic_normalizer"] = hparams.get("dynamic_normalizer", False)
    return build_loss(
        hparams["loss"], num_classes=hparams["num_classes"], has_background=True, **params
    )


@pytest.mark.parametrize("path, precision", GOLDEN, ids=lambda x: getattr(x, "stem", x))
def test_golden(path, precision):
    data, hparams = read(path)
    loss = build_from(hparams)
    tolerance = start_from(loss.stats, data, TOLERANCE[precision])
    for t in range(int(data["num_steps"])):
        logits = torch.as_tensor(data[f"s{t}_logits"]).to(DTYPE[precision]).requires_grad_()
        # Without a normaliser the original sums; its loss weight enters the statistics.
        normalizer = float(data.get(f"s{t}_normalizer", 1.0)) / hparams["loss_weight"]
        quality = data.get(f"s{t}_scores")
        value = loss(
            logits,
            zero_based(data[f"s{t}_labels"], hparams["num_classes"]),
            normalizer=normalizer,
            quality=None if quality is None else torch.as_tensor(quality),
        )["loss_cls"]
        value.backward()
        ours = {
            "grad": logits.grad,
            "pos_grad": loss.stats.pos,
            "neg_grad": loss.stats.neg,
            "ratio": loss.stats.ratio().clamp(0, 1),
        }
        for key, array in ours.items():
            assert_matches(array, data[f"s{t}_{key}_{precision}"], tolerance, f"s{t}_{key}")
        # The original computes the loss of large logits from rounded probabilities.
        loose = dict(tolerance, rtol=1e-8) if "extreme" in path.name else tolerance
        assert_matches(value.detach(), data[f"s{t}_loss_{precision}"], loose, f"s{t}_loss")


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_golden_of_a_dense_head_with_several_levels_and_anchors(precision):
    data, hparams = read(ROOT / "equalization" / "efl_multilevel_C6_A2.npz")
    loss = build_from({"loss": "EFL", **hparams})
    num_classes, anchors = hparams["num_classes"], hparams["num_anchors"]
    for t in range(int(data["num_steps"])):
        levels = [
            torch.as_tensor(data[f"s{t}_pred{level}_{precision}"]).requires_grad_()
            for level in range(hparams["fpn_levels"])
        ]
        shapes = [(len(x), anchors, *x.shape[2:]) for x in levels]
        value = loss(
            dense_rows(levels, num_classes),
            zero_based(data[f"s{t}_labels"], num_classes).flatten(),
            normalizer=float(data[f"s{t}_normalizer"]),
        )["loss_cls"]
        value.backward()
        tolerance = TOLERANCE[precision]
        assert_matches(value.detach(), data[f"s{t}_loss_{precision}"], tolerance)
        for level, x in enumerate(levels):
            assert_matches(x.grad, data[f"s{t}_grad{level}_{precision}"], tolerance)
        assert_matches(loss.stats.pos, data[f"s{t}_pos_grad_{precision}"], tolerance)
        assert_matches(loss.stats.neg, data[f"s{t}_neg_grad_{precision}"], tolerance)
        # And back: the rows of the gradient are those of the levels.
        rows = dense_rows([x.grad for x in levels], num_classes)
        for x, back in zip(levels, dense_levels(rows, shapes), strict=True):
            assert torch.equal(x.grad, back)


def run_golden(rank: int):
    data, hparams = read(ROOT / "equalization" / "efl_2ranks_C10_N40.npz")
    loss = build_from(hparams)
    steps = []
    for t in range(int(data["num_steps"])):
        logits = torch.as_tensor(data[f"r{rank}_s{t}_logits"]).double().requires_grad_()
        targets = zero_based(data[f"r{rank}_s{t}_labels"], hparams["num_classes"])
        value = loss(logits, targets, normalizer=float(data[f"s{t}_normalizer"]))["loss_cls"]
        value.backward()
        steps.append((value.detach(), logits.grad, loss.stats.pos.clone(), loss.stats.neg.clone()))
    return steps


def test_golden_on_two_ranks():
    data, _ = read(ROOT / "equalization" / "efl_2ranks_C10_N40.npz")
    for rank, steps in run_on_ranks(run_golden, 2).items():
        for t, ours in enumerate(steps):
            keys = [f"r{rank}_s{t}_loss", f"r{rank}_s{t}_grad", f"s{t}_pos_grad", f"s{t}_neg_grad"]
            for key, array in zip(keys, ours, strict=True):
                assert_matches(array, data[f"{key}_f64"], TOLERANCE["f64"], key)


@pytest.mark.parametrize("name", ["EFL", "EQFL"])
def test_statistics_are_the_absolute_gradient_that_autograd_gives(name):
    """|dL/dz| with everything in it, split by label: the definition, from the gradient."""
    generator = torch.Generator().manual_seed(0)
    loss = build_loss(name, num_classes=6, has_background=True)
    expected = torch.zeros(2, 6, dtype=torch.float64)
    for _ in range(4):
        logits = torch.randn(20, 6, generator=generator, dtype=torch.float64) * 2
        logits.requires_grad_()
        targets = torch.randint(-1, 7, (20,), generator=generator)
        weight = torch.rand(20, generator=generator, dtype=torch.float64)
        quality = torch.rand(20, generator=generator) if name == "EQFL" else None
        loss(logits, targets, weight=weight, quality=quality)["loss_cls"].backward()
        positive = torch.arange(6)[None] == targets[:, None]
        size = logits.grad.abs()
        expected += torch.stack([(size * positive).sum(0), (size * ~positive).sum(0)])
        torch.testing.assert_close(torch.stack([loss.stats.pos, loss.stats.neg]), expected)


def warmed_up(name, **params):
    loss = build_loss(name, num_classes=5, has_background=True, **params)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        loss(torch.randn(30, 5, generator=generator), torch.randint(0, 4, (30,)))
    return loss.eval()


@pytest.mark.parametrize("name", ["EFL", "EQFL"])
def test_value_and_gradient_are_those_of_the_formula(name):
    """The formula written out with one-hot targets and differentiated by autograd."""
    loss = warmed_up(name)
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(12, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 6, (12,), generator=generator)
    quality = torch.rand(12, generator=generator, dtype=torch.float64)
    y = F.one_hot(targets, 6)[:, :5].double()
    gamma, omega = focusing_factors(loss.stats.ratio(), gamma=2.0, scale_factor=8.0)
    p = logits.sigmoid()
    if name == "EFL":
        p_t = y * p + (1 - y) * (1 - p)
        alpha_t = y * 0.25 + (1 - y) * 0.75
        entries = alpha_t * omega * (1 - p_t) ** gamma * -p_t.log()
        value = loss(logits, targets)["loss_cls"]
    else:
        q = y * quality[:, None]
        bce = F.binary_cross_entropy_with_logits(logits, q, reduction="none")
        entries = omega * (q - p).abs() ** gamma * bce
        value = loss(logits, targets, quality=quality)["loss_cls"]
    expected = entries.sum() / 12
    torch.testing.assert_close(value, expected)
    (ours,) = torch.autograd.grad(value, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)


def test_the_quality_gradient_is_the_derivative_of_the_value():
    loss = warmed_up("EQFL")
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 5, 2, -1, 4])
    quality = torch.tensor([0.3, 1.0, 0.5, 0.0, 0.2, 0.9])
    assert torch.autograd.gradcheck(lambda z: loss(z, targets, quality=quality)["loss_cls"], logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [16.0, 17.0, 88.0, 100.0, 1e4, 3e38])
@pytest.mark.parametrize("name", ["EFL", "EQFL"])
def test_large_logits_give_the_limits_of_the_formula(name, logit, dtype):
    """A wrong and sure answer costs |z| and has slope 1, a right and sure one nothing."""
    loss = build_loss(name, num_classes=2, **({"alpha": -1.0} if name == "EFL" else {}))
    # rows: wrong positive, right positive; the other column is a sure, right negative.
    logits = torch.tensor([[-logit, -logit], [logit, -logit]], dtype=dtype, requires_grad=True)
    value = loss(logits, torch.tensor([0, 0]), normalizer=1.0)["loss_cls"]
    value.backward()
    # At 16 the corrections to the limit are 2 gamma (1 + z) exp(-z), below 1e-5.
    close = dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value.detach(), torch.tensor(logit, dtype=dtype), **close)
    expected = torch.tensor([[-1.0, 0.0], [0.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(logits.grad, expected, **close)
    assert loss.stats.skipped == 0 and torch.isfinite(loss.stats.ratio()).all()


@pytest.mark.parametrize("logit", [17.0, 88.0, 1e4])
def test_a_sure_wrong_negative_in_float32(logit):
    """Where the released code gives inf and NaN."""
    loss = build_loss("EFL", num_classes=1, has_background=True)
    z = torch.full((1, 1), logit, requires_grad=True)
    value = loss(z, torch.tensor([1]))["loss_cls"]
    value.backward()
    torch.testing.assert_close(value.item(), 0.75 * logit, rtol=1e-6, atol=0)
    torch.testing.assert_close(z.grad.item(), 0.75, rtol=1e-5, atol=0)
    assert loss.stats.neg.item() == pytest.approx(0.75, rel=1e-5)


def test_without_history_it_is_focal_loss():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1, 6, (9,), generator=generator)
    common = dict(num_classes=5, has_background=True)
    value = build_loss("EFL", **common)(logits, targets)["loss_cls"]
    expected = build_loss("FocalLoss", **common)(logits, targets)["loss_cls"]
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_scale_factor_zero_is_focal_loss_for_ever():
    loss = warmed_up("EFL", scale_factor=0.0)
    logits = torch.linspace(-3, 3, 20, dtype=torch.float64).view(4, 5)
    targets = torch.tensor([0, 4, 5, 2])
    focal = build_loss("FocalLoss", num_classes=5, has_background=True)
    torch.testing.assert_close(
        loss(logits, targets)["loss_cls"], focal(logits, targets)["loss_cls"]
    )


def test_without_quality_all_qualities_are_one():
    logits = torch.linspace(-3, 3, 20, dtype=torch.float64).view(4, 5)
    targets = torch.tensor([0, 4, 5, -1])
    loss = warmed_up("EQFL")
    anything = torch.tensor([1.0, 1.0, float("nan"), float("nan")])
    torch.testing.assert_close(
        loss(logits, targets)["loss_cls"], loss(logits, targets, quality=anything)["loss_cls"]
    )


def test_quality_equal_to_the_probability_has_no_loss_and_no_gradient():
    logits = torch.tensor([[0.4]], dtype=torch.float64, requires_grad=True)
    loss = build_loss("EQFL", num_classes=1)
    value = loss(logits, torch.tensor([0]), quality=logits.sigmoid()[0])["loss_cls"]
    value.backward()
    assert value.item() < 1e-15 and logits.grad.abs().item() < 1e-15


def test_factors_at_the_ends_and_outside():
    exponent, weight = focusing_factors(
        torch.tensor([0.0, 0.5, 1.0, 7.0]), gamma=2.0, scale_factor=8.0
    )
    assert exponent.tolist() == [10, 6, 2, 2]
    assert weight.tolist() == [5, 3, 1, 1]


def test_dynamic_normalizer_is_half_the_focal_factors():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    columns = torch.randint(-1, 6, (40,), generator=generator)
    weight = torch.rand(40, generator=generator, dtype=torch.float64)
    y = F.one_hot(columns + 1, 7)[:, 1:].bool()
    p = logits.sigmoid()
    factor = torch.where(y, 1 - p, p) ** 1.5
    expected = (factor.sum(1) * weight).sum() / 2
    torch.testing.assert_close(dynamic_normalizer(logits, columns, 1.5, weight), expected)
    assert dynamic_normalizer(logits[:0], columns[:0], 1.5, weight[:0]) == 1


def test_quality_is_checked():
    logits, targets = torch.zeros(3, 2), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match="EFL has no quality target"):
        build_loss("EFL", num_classes=2)(logits, targets, quality=torch.ones(3))
    with pytest.raises(ValueError, match=r"quality is .*\(2,\), expected floats of shape \(3,\)"):
        build_loss("EQFL", num_classes=2)(logits, targets, quality=torch.ones(2))


@pytest.mark.parametrize("params", [{"gamma": 0.0}, {"scale_factor": -1.0}, {"alpha": 2.0}])
def test_parameters_outside_of_their_range_are_an_error(params):
    with pytest.raises(ValueError, match="MODEL.LT.LOSS.PARAMS"):
        build_loss("EFL", num_classes=3, **params)
