"""Class-balanced cross-entropy: golden vectors, the effective number, identities."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss
from lt_det.losses.class_balanced import class_balanced_loss
from lt_det.losses.counts import effective_number_weights
from tests.losses.golden_classification import golden_files


def inputs(classes=4):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (12,), generator=generator)


@golden_files("class_balanced_ce")
def test_golden(golden):
    counts = golden["class_counts"]
    for k, variant in enumerate(golden.variants):
        beta = variant["beta"]
        loss = build_loss(
            "ClassBalancedCE", num_classes=len(counts), class_counts=counts, beta=beta
        )
        golden.check_grad(loss.class_weights.to(golden["logits"].dtype), f"v{k}_weights")
        function = partial(class_balanced_loss, class_counts=counts, beta=beta)
        for call in (function, loss):
            logits = golden.leaf("logits")
            value = call(logits, golden["labels"])
            value = value if call is function else value["loss_cls"]
            value.backward()
            golden.check_loss(value, f"v{k}_loss")
            golden.check_grad(logits.grad, f"v{k}_grad_logits")


def test_it_is_torchs_weighted_cross_entropy_also_with_ignored_rows():
    logits, targets = inputs()
    targets[:4] = -1
    counts = torch.tensor([500, 3, 60, 9])
    loss = build_loss("ClassBalancedCE", num_classes=4, class_counts=counts, beta=0.99)
    expected = F.cross_entropy(logits, targets, weight=loss.class_weights, ignore_index=-1)
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], expected)


@pytest.mark.parametrize("counts,beta", [([7] * 4, 0.999), ([500, 3, 60, 9], 0.0)])
def test_equal_counts_or_beta_zero_are_cross_entropy(counts, beta):
    logits, targets = inputs()
    loss = build_loss("ClassBalancedCE", num_classes=4, class_counts=counts, beta=beta)
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], F.cross_entropy(logits, targets))


def test_beta_close_to_one_weighs_by_the_inverse_count():
    counts = torch.tensor([100.0, 10.0, 2.0], dtype=torch.float64)
    weights = effective_number_weights(counts, 1 - 1e-12)
    # 1 - beta itself has only four digits in float64.
    torch.testing.assert_close(weights * counts / (weights * counts)[0], torch.ones(3).double())
    assert weights.sum().item() == pytest.approx(3.0)


def test_a_class_without_examples_and_a_single_class(caplog):
    loss = build_loss("ClassBalancedCE", num_classes=3, class_counts=[0, 1, 500])
    assert "1 of 3 classes have no training example" in caplog.text
    assert loss.class_weights[0] == loss.class_weights[1] > loss.class_weights[2]
    single = build_loss("ClassBalancedCE", num_classes=1, class_counts=[4])
    assert single(torch.rand(3, 1), torch.zeros(3, dtype=torch.int64))["loss_cls"] == 0


def test_the_background_weighs_like_the_largest_class_unless_told():
    loss = build_loss("ClassBalancedCE", num_classes=3, has_background=True, class_counts=[9, 1, 5])
    assert loss.class_weights[3] == loss.class_weights[0]
    told = build_loss(
        "ClassBalancedCE",
        num_classes=3,
        has_background=True,
        class_counts=[9, 1, 5],
        background_count=1,
    )
    assert told.class_weights[3] == told.class_weights[1]


def test_a_beta_of_one_is_an_error():
    with pytest.raises(ValueError, match=r"beta=1.0.*\[0, 1\)"):
        build_loss("ClassBalancedCE", num_classes=2, class_counts=[5, 1], beta=1.0)
    with pytest.raises(ValueError, match="ClassBalancedCE needs class_counts"):
        build_loss("ClassBalancedCE", num_classes=2)
