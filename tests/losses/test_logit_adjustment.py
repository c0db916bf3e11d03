"""Balanced softmax and logit adjustment: golden vectors and identities."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss
from lt_det.losses.logit_adjustment import balanced_softmax_loss, logit_adjustment_loss
from tests.losses.golden_classification import golden_files

COUNTS = torch.tensor([500, 3, 60, 9])


def inputs():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 4, (12,), generator=generator)


def build(name, counts=COUNTS, **params):
    return build_loss(name, num_classes=len(counts), class_counts=counts, **params)


def module(name, counts, **params):
    """The module as a function of logits, targets and `normalizer`."""
    loss = build(name, counts, **params)
    return lambda *args, **kwargs: loss(*args, **kwargs)["loss_cls"]


@golden_files("balanced_softmax")
def test_golden_balanced_softmax(golden):
    counts = golden["class_counts"]
    rows = len(golden["labels"])
    for function in (
        partial(balanced_softmax_loss, class_counts=counts),
        module("BalancedSoftmax", counts),
    ):
        for prefix, normalizer in [("mean", None), ("sum", 1.0)]:
            logits = golden.leaf("logits")
            value = function(logits, golden["labels"], normalizer=normalizer)
            value.backward()
            golden.check_loss(value, f"{prefix}_loss")
            golden.check_grad(logits.grad, f"{prefix}_grad_logits")
        each = [
            function(golden["logits"][i : i + 1], golden["labels"][i : i + 1]) for i in range(rows)
        ]
        golden.check_loss(torch.stack(each), "none_loss")


@golden_files("logit_adjustment")
def test_golden_logit_adjustment(golden):
    counts = golden["class_counts"]
    for k, variant in enumerate(golden.variants):
        tau = variant["tau"]
        adjustment = build("LogitAdjustment", counts, tau=tau).adjustment
        # Float64 also in the float32 file.
        torch.testing.assert_close(adjustment, golden[f"v{k}_adjustment"], rtol=1e-9, atol=0)
        for function in (
            partial(logit_adjustment_loss, class_counts=counts, tau=tau),
            module("LogitAdjustment", counts, tau=tau),
        ):
            logits = golden.leaf("logits")
            value = function(logits, golden["labels"])
            value.backward()
            golden.check_loss(value, f"v{k}_loss")
            golden.check_grad(logits.grad, f"v{k}_grad_logits")


def test_tau_one_is_balanced_softmax_and_tau_zero_cross_entropy():
    logits, targets = inputs()
    one = build("LogitAdjustment", tau=1.0, eps=0.0)(logits, targets)["loss_cls"]
    balanced = build("BalancedSoftmax")(logits, targets)["loss_cls"]
    torch.testing.assert_close(one, balanced, rtol=1e-12, atol=0)
    zero = build("LogitAdjustment", tau=0.0)(logits, targets)["loss_cls"]
    torch.testing.assert_close(zero, F.cross_entropy(logits, targets), rtol=1e-12, atol=0)


def test_eps_moves_the_adjustment_only_where_a_prior_is_as_small():
    port, paper = build("LogitAdjustment"), build("LogitAdjustment", eps=0.0)
    torch.testing.assert_close(port.adjustment, paper.adjustment, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["BalancedSoftmax", "LogitAdjustment"])
def test_equal_counts_are_cross_entropy(name):
    logits, targets = inputs()
    value = build(name, torch.full((4,), 30))(logits, targets)["loss_cls"]
    torch.testing.assert_close(value, F.cross_entropy(logits, targets))


@pytest.mark.parametrize("name", ["BalancedSoftmax", "LogitAdjustment"])
def test_logits_at_the_prior_predict_the_training_labels_best(name):
    """With z = 0 the training probabilities are the prior, the scores are uniform."""
    loss = build(name)
    logits = torch.zeros(4, 4, dtype=torch.float64)
    each = [loss(logits[:1], torch.tensor([j]))["loss_cls"].item() for j in range(4)]
    prior = COUNTS / COUNTS.sum()
    torch.testing.assert_close(torch.tensor(each), -prior.log())
    assert (loss.scores(logits) == 0.25).all()


@pytest.mark.parametrize("name", ["BalancedSoftmax", "LogitAdjustment"])
def test_a_class_without_examples_and_a_single_class(name, caplog):
    loss = build(name, torch.tensor([0, 1, 500]))
    assert "1 of 3 classes have no training example" in caplog.text
    assert loss.adjustment[0] == loss.adjustment[1]
    single = build(name, torch.tensor([4]))
    assert single(torch.rand(3, 1), torch.zeros(3, dtype=torch.int64))["loss_cls"] == 0


@pytest.mark.parametrize("name", ["BalancedSoftmax", "LogitAdjustment"])
def test_the_background_has_the_largest_count_unless_told(name):
    loss = build(name, has_background=True)
    assert loss.adjustment[4] == loss.adjustment[0]
    told = build(name, has_background=True, background_count=9)
    assert told.adjustment[4] == told.adjustment[3]


def test_wrong_parameters_are_errors():
    with pytest.raises(ValueError, match="tau=-1.*at least 0"):
        build("LogitAdjustment", tau=-1)
    for name in ("BalancedSoftmax", "LogitAdjustment"):
        with pytest.raises(ValueError, match=f"{name} needs class_counts"):
            build_loss(name, num_classes=2)
