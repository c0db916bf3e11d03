"""Label-aware smoothing: golden vectors, the target distribution, masks."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss
from lt_det.losses.label_smoothing import SHAPES, label_aware_smoothing_loss
from tests.losses.golden_classification import golden_files

COUNTS = torch.tensor([500, 3, 60, 9])


def inputs():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 4, (12,), generator=generator)


def build(counts=COUNTS, **params):
    return build_loss("LabelAwareSmoothing", num_classes=len(counts), class_counts=counts, **params)


@golden_files("label_aware_smoothing")
def test_golden(golden):
    for k, variant in enumerate(golden.variants):
        counts = golden["class_counts"]
        loss = build(counts, **variant)
        golden.check_grad(loss.smoothing.to(golden["logits"].dtype), f"v{k}_smooth")
        function = partial(label_aware_smoothing_loss, class_counts=counts, **variant)
        for call in (function, loss):
            logits = golden.leaf("logits")
            value = call(logits, golden["labels"])
            value = value if call is function else value["loss_cls"]
            value.backward()
            golden.check_loss(value, f"v{k}_loss")
            golden.check_grad(logits.grad, f"v{k}_grad_logits")


def test_it_is_cross_entropy_with_smoothed_targets():
    logits, targets = inputs()
    loss = build()
    share = loss.smoothing[targets][:, None]
    soft = (1 - share) * F.one_hot(targets, 4) + share / 4
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], F.cross_entropy(logits, soft))


def test_a_masked_class_has_no_share_of_the_smoothing():
    """As if the class were not there."""
    logits, _ = inputs()
    targets = torch.tensor([0, 1, 3] * 4)
    mask = torch.tensor([True, True, False, True])
    kept = torch.tensor([0, 1, 3])
    masked = logits.clone().requires_grad_()
    loss = build()
    value = loss(masked, targets, class_mask=mask)["loss_cls"]
    value.backward()
    share = loss.smoothing[targets][:, None]
    soft = (1 - share) * F.one_hot(targets, 4)[:, kept] + share / 3
    fewer = logits[:, kept].requires_grad_()
    expected = F.cross_entropy(fewer, soft)
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(masked.grad[:, kept], fewer.grad)
    assert (masked.grad[:, 2] == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_runs_from_tail_to_head(shape):
    smoothing = build(shape=shape, smooth_head=0.35, smooth_tail=0.05).smoothing
    assert smoothing[0].item() == pytest.approx(0.35)
    assert smoothing[1].item() == pytest.approx(0.05)
    assert smoothing[2] > smoothing[3] > smoothing[1]


def test_no_smoothing_is_cross_entropy():
    logits, targets = inputs()
    value = build(smooth_head=0.0, smooth_tail=0.0)(logits, targets)["loss_cls"]
    torch.testing.assert_close(value, F.cross_entropy(logits, targets))


def test_equal_counts_are_smoothed_like_the_head():
    logits, targets = inputs()
    value = build(torch.full((4,), 8))(logits, targets)["loss_cls"]
    expected = F.cross_entropy(logits, targets, label_smoothing=0.4)
    torch.testing.assert_close(value, expected)


def test_a_class_without_examples_and_a_single_class(caplog):
    loss = build(torch.tensor([0, 1, 500]))
    assert "1 of 3 classes have no training example" in caplog.text
    torch.testing.assert_close(loss.smoothing, torch.tensor([0.1, 0.1, 0.4]).double())
    single = build(torch.tensor([4]))
    assert single(torch.rand(3, 1), torch.zeros(3, dtype=torch.int64))["loss_cls"] == 0


def test_wrong_parameters_are_errors():
    for params, message in [
        ({"shape": "concav"}, "shape='concav'.*concave, linear, convex, exp"),
        ({"smooth_head": 1.2}, "smooth_head=1.2"),
        ({"power": 0}, "power=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(**params)
    with pytest.raises(ValueError, match="LabelAwareSmoothing needs class_counts"):
        build_loss("LabelAwareSmoothing", num_classes=2)
