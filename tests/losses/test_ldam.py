"""LDAM: golden vectors, deferred re-weighting, identities."""

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss, set_progress
from lt_det.losses.counts import effective_number_weights
from lt_det.losses.ldam import ldam_loss, ldam_margins
from tests.losses.golden_classification import golden_files

COUNTS = torch.tensor([500, 3, 60, 0])


def inputs():
    generator = torch.Generator().manual_seed(0)
    cosine = torch.rand(12, 4, generator=generator, dtype=torch.float64) * 2 - 1
    return cosine, torch.randint(0, 4, (12,), generator=generator)


@golden_files("ldam")
def test_golden(golden):
    for k, variant in enumerate(golden.variants):
        cosine = golden.leaf("logits")
        weights = golden["drw_weights"] if variant["class_weights"] else None
        value = ldam_loss(
            cosine,
            golden["labels"],
            golden["class_counts"],
            scale=variant["s"],
            max_margin=variant["max_m"],
            class_weights=weights,
        )
        value.backward()
        golden.check_loss(value, f"v{k}_loss")
        golden.check_grad(cosine.grad, f"v{k}_grad_logits")
        margins = ldam_margins(golden["class_counts"].double(), variant["max_m"])
        golden.check_grad(margins.to(cosine.dtype), f"v{k}_m_list")


@golden_files("ldam")
def test_golden_module_before_and_after_reweighting(golden):
    counts = golden["class_counts"]
    loss = build_loss("LDAM", num_classes=len(counts), class_counts=counts)
    for k, progress in [(0, 0.0), (1, 0.8)]:
        set_progress(loss, progress)
        cosine = golden.leaf("logits")
        value = loss(cosine, golden["labels"])["loss_cls"]
        value.backward()
        golden.check_loss(value, f"v{k}_loss")
        golden.check_grad(cosine.grad, f"v{k}_grad_logits")


def test_reweighting_starts_exactly_at_its_progress():
    counts = COUNTS.clamp(min=1)
    loss = build_loss("LDAM", num_classes=4, class_counts=counts)
    never = build_loss("LDAM", num_classes=4, class_counts=counts, reweight_from=1.0)
    weights = effective_number_weights(counts.double(), 0.9999)
    # Iterations 159 and 160 of 200.
    for progress, on in [(0.0, False), (159 / 200, False), (160 / 200, True), (1.0, True)]:
        set_progress(loss, progress)
        set_progress(never, progress)
        expected = weights if on else torch.ones_like(weights)
        assert torch.equal(loss.class_weights(), expected)
        assert torch.equal(never.class_weights(), torch.ones_like(weights))


def test_the_divisor_is_the_sum_of_label_weights():
    cosine, targets = inputs()
    weights = torch.tensor([0.5, 3.0, 1.0, 2.0], dtype=torch.float64)
    params = dict(scale=30.0, max_margin=0.0, class_weights=weights)
    expected = F.cross_entropy(30 * cosine, targets, weight=weights)
    counts = COUNTS.clamp(min=1)
    torch.testing.assert_close(ldam_loss(cosine, targets, counts, **params), expected)
    ignored = targets.clone()
    ignored[:5] = -1
    expected = F.cross_entropy(30 * cosine, ignored, weight=weights, ignore_index=-1)
    torch.testing.assert_close(ldam_loss(cosine, ignored, counts, **params), expected)
    given = ldam_loss(cosine, targets, counts, normalizer=12, **params)
    rows = F.cross_entropy(30 * cosine, targets, reduction="none")
    torch.testing.assert_close(given, (rows * weights[targets]).mean())


def test_equal_counts_have_one_margin_and_one_weight():
    loss = build_loss("LDAM", num_classes=4, class_counts=[9] * 4, reweight_from=0.0)
    torch.testing.assert_close(loss.margins, torch.full((4,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(loss.class_weights(), torch.ones(4, dtype=torch.float64))


def test_without_margin_it_is_scaled_cross_entropy():
    cosine, targets = inputs()
    loss = build_loss("LDAM", num_classes=4, class_counts=[5, 1, 8, 2], max_margin=0.0, scale=10.0)
    expected = F.cross_entropy(10 * cosine, targets)
    torch.testing.assert_close(loss(cosine, targets)["loss_cls"], expected)


def test_a_class_without_examples_and_a_single_class(caplog):
    loss = build_loss("LDAM", num_classes=4, class_counts=COUNTS, reweight_from=0.0)
    assert "1 of 4 classes have no training example" in caplog.text
    one = build_loss("LDAM", num_classes=4, class_counts=COUNTS.clamp(min=1), reweight_from=0.0)
    cosine, targets = inputs()
    assert loss(cosine, targets)["loss_cls"] == one(cosine, targets)["loss_cls"]
    single = build_loss("LDAM", num_classes=1, class_counts=[4])
    assert single(torch.rand(3, 1), torch.zeros(3, dtype=torch.int64))["loss_cls"] == 0


def test_wrong_parameters_are_errors():
    for params, message in [
        ({"beta": 1.0}, "beta=1.0"),
        ({"reweight_from": -0.1}, "reweight_from=-0.1"),
        ({"max_margin": -1}, "max_margin=-1"),
        ({"class_counts": None}, "LDAM needs class_counts"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_loss("LDAM", num_classes=2, **{"class_counts": [5, 1], **params})
