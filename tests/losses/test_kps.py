"""KPS: golden vectors, ranks against positions, the closed-form gradient, the GA phase."""

import math

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss, set_progress
from lt_det.losses.kps import kps_loss, kps_vectors
from tests.losses.golden_classification import golden_files

SCRIPT = dict(scale=15.0, max_margin=0.2, max_scale=50.0)


def unweighted(golden):
    """Variants without class weights, which KPS has none of."""
    return [(k, v) for k, v in enumerate(golden.variants) if not v.get("class_weights")]


def golden_arguments(variant):
    return dict(
        scale=variant["s"],
        max_margin=variant["max_m"],
        adjust=variant["weighted"],
        max_scale=50.0,
    )


def by_position(cosine, targets, factor, margin, row_scale):
    """The definition with vectors given from outside."""
    own = F.one_hot(targets, len(factor)).to(cosine.dtype)
    z = row_scale[targets][:, None] * (factor * cosine - margin * own)
    return F.cross_entropy(z, targets)


@golden_files("kps")
def test_golden(golden):
    for k, variant in unweighted(golden):
        cosine = golden.leaf("logits")
        value = kps_loss(
            cosine, golden["labels"], golden["class_counts"], **golden_arguments(variant)
        )
        value.backward()
        if "unsorted" in golden.name:
            # The original attaches margins and scales by position, to the wrong classes.
            assert abs(value.item() / golden[f"v{k}_loss"].item() - 1) > 1e-3
            continue
        golden.check_loss(value, f"v{k}_loss")
        golden.check_grad(cosine.grad, f"v{k}_grad_logits")


@golden_files("kps")
def test_golden_vectors(golden):
    for k, v in unweighted(golden):
        vectors = kps_vectors(
            golden["class_counts"].double(), scale=v["s"], max_margin=v["max_m"], max_scale=50.0
        )
        golden.check_grad(vectors.factor.to(golden["logits"]), f"v{k}_s_list")
        if "unsorted" not in golden.name:
            golden.check_grad(vectors.margin.to(golden["logits"]), f"v{k}_m_list")
            if v["weighted"]:
                adjusted = vectors.adjusted_scale.to(golden["logits"])
                golden.check_grad(adjusted, f"v{k}_batch_s")


@golden_files("kps", "*unsorted*")
def test_reversing_by_position_is_what_the_release_does(golden):
    for k, v in unweighted(golden):
        factor = golden[f"v{k}_s_list"]
        margin = v["max_m"] * factor.flip(0) / factor.max()
        adjusted = (v["s"] * factor.flip(0)).clamp(v["s"], 50)
        scale = adjusted if v["weighted"] else torch.full_like(factor, v["s"])
        value = by_position(golden["logits"], golden["labels"], factor, margin, scale)
        golden.check_loss(value, f"v{k}_loss")


@pytest.mark.parametrize("adjust", [False, True])
def test_classes_in_another_order_give_the_same_loss(adjust):
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([5000, 900, 120, 30, 7])
    cosine = torch.rand(20, 5, generator=generator, dtype=torch.float64) * 2 - 1
    targets = torch.randint(0, 5, (20,), generator=generator)
    order = torch.tensor([3, 0, 4, 2, 1])
    label = torch.argsort(order)
    a = kps_loss(cosine, targets, counts, adjust=adjust, **SCRIPT)
    b = kps_loss(cosine[:, order], label[targets], counts[order], adjust=adjust, **SCRIPT)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_the_gradient_has_the_closed_form():
    """dL/dcos_ij = S_i f_j (p_ij - [j == y_i]) / N."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.tensor([20, 5000, 300, 50])
    cosine = (torch.rand(9, 4, generator=generator, dtype=torch.float64) * 2 - 1).requires_grad_()
    targets = torch.randint(0, 4, (9,), generator=generator)
    kps_loss(cosine, targets, counts, adjust=True, **SCRIPT).backward()
    factor, margin, adjusted = kps_vectors(counts.double(), **SCRIPT)
    own = F.one_hot(targets, 4)
    p = torch.softmax(adjusted[targets][:, None] * (factor * cosine - margin * own), dim=1)
    expected = adjusted[targets][:, None] * factor * (p - own) / 9
    torch.testing.assert_close(cosine.grad, expected.detach(), rtol=1e-12, atol=1e-15)


def test_known_values_of_cifar10_with_imbalance_100():
    counts = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]).double()
    vectors = kps_vectors(counts, **SCRIPT)
    assert vectors.factor[0].item() == pytest.approx(1 + math.log(100) / math.log(50))
    assert vectors.factor[-1] == 1
    assert vectors.margin[-1].item() == pytest.approx(0.2)
    assert vectors.adjusted_scale[0] == 15
    assert vectors.adjusted_scale[-1].item() == pytest.approx(15 * vectors.factor[0].item())


@pytest.mark.parametrize("adjust", [False, True])
def test_equal_counts_without_margin_are_scaled_cross_entropy(adjust):
    cosine = torch.rand(6, 3, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    value = kps_loss(
        cosine,
        targets,
        torch.full((3,), 80),
        scale=15.0,
        max_margin=0.0,
        adjust=adjust,
        max_scale=50.0,
    )
    torch.testing.assert_close(value, F.cross_entropy(15 * cosine, targets))


def test_a_single_class_has_no_loss():
    value = kps_loss(
        torch.rand(4, 1),
        torch.zeros(4, dtype=torch.int64),
        torch.tensor([7]),
        adjust=True,
        **SCRIPT,
    )
    assert value == 0


def test_a_class_without_examples_counts_as_one(caplog):
    counts = [0, 1, 500]
    loss = build_loss("KPS", num_classes=3, class_counts=counts)
    assert caplog.text.count("1 of 3 classes have no training example") == 1
    assert "CLASS_COUNTS" in caplog.text
    one = build_loss("KPS", num_classes=3, class_counts=[1, 1, 500])
    cosine, targets = torch.rand(5, 3), torch.tensor([0, 1, 2, 0, 2])
    assert torch.equal(loss(cosine, targets)["loss_cls"], one(cosine, targets)["loss_cls"])
    assert caplog.text.count("no training example") == 1  # not once more for every step


def test_the_adjustment_starts_exactly_at_its_progress():
    counts = torch.tensor([500, 20, 3])
    loss = build_loss("KPS", num_classes=3, class_counts=counts)  # 0.6
    never = build_loss("KPS", num_classes=3, class_counts=counts, adjust_from=1.0)
    cosine = torch.rand(6, 3, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    off = kps_loss(cosine, targets, counts, adjust=False, **SCRIPT)
    on = kps_loss(cosine, targets, counts, adjust=True, **SCRIPT)
    assert abs(on - off) > 0.01
    # Iterations 119 and 120 of 200.
    for progress, expected in [(0.0, off), (119 / 200, off), (120 / 200, on), (1.0, on)]:
        set_progress(loss, progress)
        set_progress(never, progress)
        torch.testing.assert_close(loss(cosine, targets)["loss_cls"], expected)
        torch.testing.assert_close(never(cosine, targets)["loss_cls"], off)


def test_scores_have_neither_factor_nor_margin():
    loss = build_loss("KPS", num_classes=3, class_counts=[500, 20, 3])
    cosine = torch.rand(4, 3)
    torch.testing.assert_close(loss.scores(cosine), torch.softmax(15 * cosine, 1))


def test_the_background_is_one_more_class():
    counts = torch.tensor([500, 20, 3])
    cosine = torch.rand(5, 4, dtype=torch.float64)
    targets = torch.tensor([3, 0, 1, 2, 3])
    for background, count in [(None, 500), (10, 10)]:
        params = {} if background is None else {"background_count": background}
        loss = build_loss("KPS", num_classes=3, has_background=True, class_counts=counts, **params)
        all_counts = torch.cat([counts, torch.tensor([count])])
        expected = kps_loss(cosine, targets, all_counts, adjust=False, **SCRIPT)
        torch.testing.assert_close(loss(cosine, targets)["loss_cls"], expected)


def test_wrong_parameters_are_errors():
    def build(**params):
        build_loss("KPS", num_classes=2, **{"class_counts": [5, 1], **params})

    with pytest.raises(ValueError, match="KPS needs class_counts.*MODEL.LT.CLASS_COUNTS.*TRAIN"):
        build(class_counts=None)
    with pytest.raises(ValueError, match="max_scale=10.*at least 15"):
        build(max_scale=10)
    with pytest.raises(ValueError, match="adjust_from=1.5.*1 = never"):
        build(adjust_from=1.5)
    with pytest.raises(ValueError, match="scale=0.*positive"):
        build(scale=0)
    with pytest.raises(ValueError, match="background_count=3.*no background"):
        build(background_count=3)
    with pytest.raises(ValueError, match="background_count=0.*positive"):
        build(background_count=0, has_background=True)
