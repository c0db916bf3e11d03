"""Softmax-EQL: golden vectors, identities, and the closed form against autograd."""

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss
from lt_det.losses.softmax_eql import softmax_adjustment
from tests.losses.golden import (
    DTYPE,
    TOLERANCE,
    assert_matches,
    equalization,
    read,
    start_from,
)

FORM = {"SoftmaxEQL": "ratio", "SoftmaxEQL_v2": "share"}


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("path", equalization("softmax_eql*"), ids=lambda p: p.stem)
def test_golden(path, precision):
    data, hparams = read(path)
    loss = build_loss(
        "SoftmaxEQL",
        num_classes=hparams["num_classes"],
        form=FORM[hparams["loss"]],
        tau=hparams["tau"],
        eps=hparams["eps"],
        indicator=hparams["indicator"],
    )
    tolerance = start_from(loss.stats, data, TOLERANCE[precision])
    for t in range(int(data["num_steps"])):
        logits = torch.as_tensor(data[f"s{t}_logits"]).to(DTYPE[precision]).requires_grad_()
        labels = torch.as_tensor(data[f"s{t}_labels"])
        # The released loss weight enters the statistics.
        value = loss(logits, labels, normalizer=len(logits) / hparams["loss_weight"])["loss_cls"]
        value.backward()
        ours = {
            "loss": value.detach(),
            "grad": logits.grad,
            "pos_grad": loss.stats.pos,
            "neg_grad": loss.stats.neg,
        }
        for key, array in ours.items():
            assert_matches(array, data[f"s{t}_{key}_{precision}"], tolerance, f"s{t}_{key}")
        assert_matches(loss.stats.ratio(), data[f"s{t}_ratio_{precision}"], tolerance, "ratio")


def rows(seed=0, columns=6):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(25, columns, generator=generator, dtype=torch.float64) * 2
    targets = torch.randint(-1, columns, (25,), generator=generator)
    return logits.requires_grad_(), targets


def warmed_up(steps=3, **params):
    loss = build_loss("SoftmaxEQL", num_classes=5, has_background=True, **params)
    for seed in range(steps):
        loss(*rows(seed + 50))
    return loss


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("adjust_background", [True, False])
@pytest.mark.parametrize("form", ["ratio", "share"])
def test_statistics_are_the_absolute_gradient_that_autograd_gives(form, adjust_background, soft):
    """|dL/dz| with everything in it, split by label: the definition, from autograd."""
    loss = build_loss(
        "SoftmaxEQL",
        num_classes=5,
        has_background=True,
        form=form,
        adjust_background=adjust_background,
    )
    expected = torch.zeros(2, 6, dtype=torch.float64)
    for seed in range(4):
        logits, targets = rows(seed)
        generator = torch.Generator().manual_seed(seed)
        weight = torch.rand(25, generator=generator, dtype=torch.float64)
        if soft:
            targets = torch.rand(25, 5, generator=generator, dtype=torch.float64).softmax(1)
            y = F.pad(targets, (0, 1))
        else:
            y = F.one_hot(targets + 1, 7)[:, 1:].double()
        loss(logits, targets, weight=weight)["loss_cls"].backward()
        size = logits.grad.abs()
        expected += torch.stack([(size * y).sum(0), (size * (1 - y)).sum(0)])
        torch.testing.assert_close(torch.stack(loss.stats.columns()), expected)
    assert loss.stats.extra_pos.shape == (1,)
    assert torch.equal(loss.stats.pos, loss.stats.columns()[0][:5])


@pytest.mark.parametrize("indicator", ["pos", "neg", "ratio", "pos_and_neg"])
@pytest.mark.parametrize("form", ["ratio", "share"])
def test_it_is_cross_entropy_of_the_adjusted_logits(form, indicator):
    loss = warmed_up(form=form, indicator=indicator, tau=0.7).eval()
    pos, neg = loss.stats.columns()
    chosen = {"pos": pos, "neg": neg, "ratio": pos / neg, "pos_and_neg": pos / neg + neg}
    amount = chosen[indicator]
    if form == "ratio":
        adjustment = 0.7 * amount.log()
    else:
        adjustment = 0.7 * (amount / amount.sum()).log()
    logits, targets = rows(9)
    value = loss(logits, targets)["loss_cls"]
    expected = F.cross_entropy(logits + adjustment, targets, ignore_index=-1)
    # eps in the sum and 1e-9 in the logarithm are left out here.
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    (ours,) = torch.autograd.grad(value, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_every_other_class_has_the_margin_of_the_formula():
    """z~_k = z_k + tau log(max(I_k, eps) / max(I_y, eps)), z~_y = z_y."""
    loss = warmed_up(tau=1.5, eps=0.4).eval()
    indicator = torch.cat([loss.stats.pos, loss.stats.extra_pos]).clamp(min=0.4)
    # Some classes are at the floor, some above.
    assert 0 < (indicator == 0.4).sum() < 6
    logits, targets = rows(9)
    keep = targets >= 0
    own = indicator[targets.clamp(min=0)][:, None]
    expected = F.cross_entropy((logits + 1.5 * (indicator / own).log())[keep], targets[keep])
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], expected)


@pytest.mark.parametrize("form", ["ratio", "share"])
def test_a_background_left_out_has_no_margin_to_any_class(form):
    loss = warmed_up(form=form, adjust_background=False).eval()
    classes = loss.stats.pos
    logits, targets = rows(9)
    background = targets == 5
    # Background rows: plain cross-entropy.
    value = loss(logits[background], targets[background])["loss_cls"]
    torch.testing.assert_close(value, F.cross_entropy(logits[background], targets[background]))
    # Rows of a class: margins among the classes, none to the background.
    keep = (targets >= 0) & ~background
    adjustment = loss.adjustment()
    assert adjustment[5] == 0
    margin = adjustment[:5] - adjustment[targets[keep]][:, None]
    shifted = logits[keep] + F.pad(margin, (0, 1))
    value = loss(logits[keep], targets[keep])["loss_cls"]
    torch.testing.assert_close(value, F.cross_entropy(shifted, targets[keep]))
    # Also with soft labels that are one-hot.
    soft = F.one_hot(targets[keep], 5).double()
    torch.testing.assert_close(loss(logits[keep], soft)["loss_cls"], value)
    # Among themselves the classes are as without any background.
    alone = build_loss("SoftmaxEQL", num_classes=5, form=form)
    alone.stats.pos.copy_(classes)
    torch.testing.assert_close(alone.adjustment(), adjustment[:5])


@pytest.mark.parametrize("params", [{"tau": 0.0}, {"tau": 0.0, "form": "share"}])
def test_tau_zero_is_cross_entropy_for_ever(params):
    loss = warmed_up(**params)
    logits, targets = rows(9)
    expected = F.cross_entropy(logits, targets, ignore_index=-1)
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], expected)


@pytest.mark.parametrize("form", ["ratio", "share"])
@pytest.mark.parametrize("indicator", ["pos", "neg", "ratio", "pos_and_neg"])
def test_the_first_step_is_cross_entropy(form, indicator):
    logits, targets = rows()
    loss = build_loss(
        "SoftmaxEQL", num_classes=5, has_background=True, form=form, indicator=indicator
    )
    expected = F.cross_entropy(logits, targets, ignore_index=-1)
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], expected)


def test_the_share_does_not_depend_on_the_scale_but_the_ratio_form_on_its_floor():
    indicator = torch.tensor([0.0, 0.01, 3.0], dtype=torch.float64)
    for scale in (1.0, 1000.0):
        share = softmax_adjustment(indicator * scale, form="share", tau=1.0, eps=1e-12)
        torch.testing.assert_close(
            share, softmax_adjustment(indicator, form="share", tau=1.0, eps=1e-12)
        )
    low = softmax_adjustment(indicator, form="ratio", tau=1.0, eps=1e-4)
    high = softmax_adjustment(indicator * 1000, form="ratio", tau=1.0, eps=1e-4)
    torch.testing.assert_close((high - low)[1], (high - low)[2])
    assert high[0] == low[0]


def test_a_strong_competitor_gets_a_positive_margin():
    """The point of the loss: a class that has learned little is held against more."""
    loss = build_loss("SoftmaxEQL", num_classes=3)
    logits = torch.zeros(20, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0] * 15 + [1] * 4 + [2])
    loss(logits, targets)
    # At equal logits P of a class is its share of the rows times 1 - 1/3.
    share = torch.tensor([15.0, 4, 1], dtype=torch.float64) / 20
    torch.testing.assert_close(loss.stats.pos, share * 2 / 3)
    # So the margin of the second step is the log of the ratio of the shares.
    adjustment = loss.adjustment()
    torch.testing.assert_close(adjustment - adjustment[0], share.log() - share[0].log())


def test_segmentation_sized_rows_in_blocks_equal_one_block():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6000, 150, generator=generator, requires_grad=True)
    targets = torch.randint(-1, 150, (6000,), generator=generator)
    loss = build_loss("SoftmaxEQL", num_classes=150)
    loss(logits, targets)["loss_cls"].backward()
    whole = logits.grad.clone()
    plain = F.cross_entropy(logits, targets, ignore_index=-1)
    (expected,) = torch.autograd.grad(plain, logits)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-9)
    y = F.one_hot(targets + 1, 151)[:, 1:].bool()
    size = expected.double().abs()
    torch.testing.assert_close(loss.stats.neg, (size * ~y).sum(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.stats.pos, (size * y).sum(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "params", [{"form": "log"}, {"indicator": "both"}, {"tau": -1.0}, {"eps": 0.0}]
)
def test_wrong_parameters_are_an_error(params):
    with pytest.raises(ValueError, match="MODEL.LT.LOSS.PARAMS"):
        build_loss("SoftmaxEQL", num_classes=3, **params)
