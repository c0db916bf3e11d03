"""Seesaw: golden vectors, identities, and the counts."""

import io

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss
from tests.gloo import run_on_ranks
from tests.losses.golden import DTYPE, TOLERANCE, assert_matches, equalization, read

# What the original adds to its divisor.
FLOAT32_EPS = 1.1920928955078125e-07


def build(num_classes=5, has_background=True, **params):
    return build_loss("Seesaw", num_classes=num_classes, has_background=has_background, **params)


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("path", equalization("seesaw_*"), ids=lambda p: p.stem)
def test_golden(path, precision):
    data, hparams = read(path)
    num_classes = hparams["num_classes"]
    loss = build(num_classes, p=hparams["p"], q=hparams["q"], eps=hparams["eps"])
    tolerance = TOLERANCE[precision]
    for t in range(int(data["num_steps"])):
        logits = torch.as_tensor(data[f"s{t}_logits"]).to(DTYPE[precision]).requires_grad_()
        labels = torch.as_tensor(data[f"s{t}_labels"])
        weight = data.get(f"s{t}_weights")
        terms = loss(
            logits,
            labels,
            weight=None if weight is None else torch.as_tensor(weight),
            normalizer=1.0,
        )
        # Without avg_factor the original takes the mean of each term over its own rows.
        divisors = [int((labels < num_classes).sum()), len(labels)]
        if f"s{t}_avg_factor" in data:
            divisors = [float(data[f"s{t}_avg_factor"]) + FLOAT32_EPS] * 2
        factors = [hparams["loss_weight"] / d for d in divisors]
        classes = terms["loss_cls"] * factors[0]
        objectness = terms["loss_objectness"] * factors[1]
        (classes + objectness).backward()
        ours = {
            "loss_classes": classes.detach(),
            "loss_objectness": objectness.detach(),
            "grad": logits.grad,
            "cum_samples": loss.counts.samples,
        }
        for key, array in ours.items():
            assert_matches(array, data[f"s{t}_{key}_{precision}"], tolerance, f"s{t}_{key}")
    scores = loss.scores(torch.as_tensor(data["s0_logits"]).to(DTYPE[precision]))
    assert_matches(scores, data[f"act_{precision}"], tolerance, "scores")


def rows(seed=0, num_classes=5, extra=2):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(24, num_classes + extra, generator=generator, dtype=torch.float64) * 2
    targets = torch.randint(-1, num_classes + (extra > 0), (24,), generator=generator)
    return logits.requires_grad_(), targets


def formula(logits, targets, counts, p=0.8, q=2.0, eps=1e-2):
    """The class part, written out: sum over the rows of a class."""
    num_classes = len(counts)
    z = logits[:, :num_classes]
    keep = (targets >= 0) & (targets < num_classes)
    z, y = z[keep], targets[keep]
    n = counts.clamp(min=1)
    s = z.softmax(1).detach()
    mitigation = (n[None] / n[y][:, None]).clamp(max=1) ** p
    compensation = (s / s.gather(1, y[:, None]).clamp(min=eps)).clamp(min=1) ** q
    other = F.one_hot(y, num_classes) == 0
    factor = torch.where(other, mitigation * compensation, 1)
    return F.cross_entropy(z + factor.log(), y, reduction="sum")


def test_value_and_gradient_are_those_of_the_formula():
    loss = build()
    for seed in range(3):
        logits, targets = rows(seed)
        terms = loss(logits, targets, normalizer=1.0)
        expected = formula(logits, targets, loss.counts.samples[:5])
        torch.testing.assert_close(terms["loss_cls"], expected)
        keep = targets >= 0
        pair = F.cross_entropy(logits[keep, 5:], (targets[keep] == 5).long(), reduction="sum")
        torch.testing.assert_close(terms["loss_objectness"], pair)
        # Terms may be weighed apart: each has a gradient of its own.
        (ours,) = torch.autograd.grad(2 * terms["loss_cls"] + 3 * terms["loss_objectness"], logits)
        (theirs,) = torch.autograd.grad(2 * expected + 3 * pair, logits)
        torch.testing.assert_close(ours, theirs)


def test_one_term_alone_has_its_gradient():
    logits, targets = rows()
    terms = build()(logits, targets)
    (grad,) = torch.autograd.grad(terms["loss_objectness"], logits)
    assert (grad[:, :5] == 0).all() and (grad[targets >= 0, 5:] != 0).all()


def test_without_factors_it_is_cross_entropy():
    logits, targets = rows(extra=0)
    value = build(has_background=False, p=0.0, q=0.0)(logits, targets)
    assert list(value) == ["loss_cls"]
    torch.testing.assert_close(value["loss_cls"], F.cross_entropy(logits, targets, ignore_index=-1))


def test_a_rare_class_gets_less_negative_gradient_from_frequent_rows():
    logits = torch.zeros(101, 2, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0] * 100 + [1])
    build(2, has_background=False)(logits, targets)["loss_cls"].backward()
    # Rows of class 0 hold a logit of log(0.01^0.8) against class 1; the row of class 1 nothing.
    push = torch.tensor(0.01**0.8, dtype=torch.float64)
    torch.testing.assert_close(logits.grad[0, 1] * 101, push / (1 + push))
    torch.testing.assert_close(logits.grad[100, 0].item() * 101, 0.5)


def test_counts_are_rows_of_each_label_with_the_current_ones_first():
    loss = build(3, class_counts=[5, 5, 5])
    logits = torch.zeros(7, 5, requires_grad=True)
    targets = torch.tensor([0, 0, 2, 3, 3, -1, 2])
    mask = torch.ones(7, 3, dtype=torch.bool)
    mask[6, 2] = False
    loss(logits, targets, class_mask=mask, weight=torch.full((7,), 0.25))
    assert loss.counts.samples.tolist() == [2, 0, 1, 2]
    assert loss.counts.steps == 1
    before = loss.counts.samples.clone()
    with torch.no_grad():
        loss(logits, targets)
    loss.eval()(logits, targets)
    assert torch.equal(loss.counts.samples, before)
    loss.half().float()
    assert loss.counts.samples.dtype == torch.float64 and torch.equal(loss.counts.samples, before)


def test_counts_of_other_class_counts_are_not_taken_over(caplog):
    loss = build(3, class_counts=[5, 5, 5])
    loss(torch.zeros(2, 5, requires_grad=True), torch.tensor([0, 1]))
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    same, other = build(3, class_counts=[5, 5, 5]), build(3, class_counts=[5, 5, 6])
    same.load_state_dict(dict(state))
    assert torch.equal(same.counts.samples, loss.counts.samples)
    other.load_state_dict(dict(state))
    assert (other.counts.samples == 0).all() and "start from zero" in caplog.text


def two_ranks(rank: int):
    loss = build(3)
    steps = []
    for sizes in ((4, 2), (3, 0), (0, 0)):
        targets = torch.arange(sum(sizes)) % 4
        own = targets[: sizes[0]] if rank == 0 else targets[sizes[0] :]
        logits = torch.linspace(-1, 1, len(own) * 5).view(-1, 5).requires_grad_()
        loss(logits, own)
        steps.append(loss.counts.samples.clone())
    return steps


def test_counts_are_summed_over_ranks():
    ranks = run_on_ranks(two_ranks, 2)
    expected = [[2, 2, 1, 1], [3, 3, 2, 1], [3, 3, 2, 1]]
    for steps in ranks.values():
        assert [s.tolist() for s in steps] == expected


@pytest.mark.parametrize("params", [{"p": -0.1}, {"q": -1.0}, {"eps": 0.0}])
def test_wrong_parameters_are_an_error(params):
    with pytest.raises(ValueError, match="MODEL.LT.LOSS.PARAMS"):
        build(**params)
