"""EQL v1: golden vectors, who is in the tail, and what the tail is spared."""

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss
from lt_det.losses.eql import tail_classes
from tests.losses.golden import DTYPE, TOLERANCE, assert_matches, equalization, read


def build(num_classes, counts, **params):
    return build_loss(
        "EQL", num_classes=num_classes, has_background=True, class_counts=counts, **params
    )


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("path", equalization("eqlv1_*"), ids=lambda p: p.stem)
def test_golden(path, precision):
    data, hparams = read(path)
    # The case gives frequencies: counts of one image.
    loss = build(
        hparams["num_classes"],
        torch.as_tensor(data["freq"]),
        num_images=1,
        lambda_=hparams["lambda_"],
    )
    for t in range(int(data["num_steps"])):
        logits = torch.as_tensor(data[f"s{t}_logits"]).to(DTYPE[precision]).requires_grad_()
        value = loss(logits, torch.as_tensor(data[f"s{t}_labels"]))["loss_cls"]
        value.backward()
        for key, ours in (("loss", value.detach()), ("grad", logits.grad)):
            assert_matches(ours, data[f"s{t}_{key}_{precision}"], TOLERANCE[precision], key)


def rows():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    return logits, torch.tensor([0, 1, 2, 3, 4, 4, 0, 2, -1, 4])


def test_rare_classes_are_negatives_on_background_rows_only():
    logits, targets = rows()
    loss = build(4, [1, 500, 2, 900], num_images=1000, lambda_=0.01)
    loss(logits, targets)["loss_cls"].backward()
    tail = torch.tensor([True, False, True, False])
    foreground = (targets >= 0) & (targets < 4)
    own = targets[:, None] == torch.arange(4)
    spared = foreground[:, None] & tail & ~own
    assert (logits.grad[spared] == 0).all()
    assert (logits.grad[(targets >= 0)[:, None] & ~spared] != 0).all()


def test_it_is_the_formula():
    logits, targets = rows()
    loss = build(4, [1, 500, 2, 900], num_images=1000, lambda_=0.01)
    y = F.one_hot(targets.clamp(min=0), 5)[:, :4].double()
    tail = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    foreground = (targets < 4).double()[:, None]
    weight = (1 - foreground * tail * (1 - y)) * (targets >= 0)[:, None]
    entries = F.binary_cross_entropy_with_logits(logits, y, weight, reduction="sum")
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], entries / 9)


def test_without_a_tail_it_is_binary_cross_entropy():
    logits, targets = rows()
    common = dict(num_classes=4, has_background=True)
    plain = build_loss("SigmoidBCE", **common)(logits, targets)["loss_cls"]
    value = build(4, [10, 20, 30, 40], num_images=100)(logits, targets)["loss_cls"]
    torch.testing.assert_close(value, plain)


def test_the_comparison_is_strict_and_in_float32():
    # 177 of 100000 is 1.77e-3 in exact arithmetic and in float32, so the class is not in the tail.
    counts = torch.tensor([176, 177, 178])
    assert tail_classes(counts, 100_000, 1.77e-3).tolist() == [True, False, False]
    # In float64 1.77e-3 + 1e-12 would be above the frequency.
    assert tail_classes(counts, 100_000, 1.77e-3 + 1e-12).tolist() == [True, False, False]


def test_counts_are_needed():
    with pytest.raises(ValueError, match="EQL needs class_counts.*MODEL.LT.CLASS_COUNTS"):
        build_loss("EQL", num_classes=3)


def test_without_a_number_of_images_detectors_are_warned(caplog):
    loss = build_loss("EQL", num_classes=2, class_counts=[1, 999])
    assert loss.num_images == 1000 and loss.tail.tolist() == [True, False]
    assert not caplog.text
    build(2, [1, 999])
    assert "PARAMS.num_images" in caplog.text


@pytest.mark.parametrize("params", [{"lambda_": 0.0}, {"num_images": 0}])
def test_parameters_that_are_not_positive_are_an_error(params):
    with pytest.raises(ValueError, match="must be positive"):
        build(2, [1, 2], **params)
