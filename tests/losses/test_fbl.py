"""FBL: golden vectors, gradient of the norm, curricula."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss, set_progress
from lt_det.losses.fbl import CURRICULA, fbl_loss
from tests.losses.golden_classification import GOLDEN, golden_files

COUNTS = torch.tensor([500, 3, 60])


def inputs(rows=10, classes=3):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    features = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return logits, features, torch.randint(0, classes, (rows,), generator=generator)


@golden_files("fbl")
def test_golden(golden):
    for k, variant in enumerate(golden.variants):
        strength = variant["curr"] * variant["lambda_"]
        score, features = golden.leaf("score"), golden.leaf("features")
        value = fbl_loss(
            score, features, golden["labels"], golden["class_counts"], strength=strength
        )
        value.backward()
        golden.check_loss(value, f"v{k}_loss")
        golden.check_grad(score.grad, f"v{k}_grad_score")
        golden.check_grad(features.grad, f"v{k}_grad_feature_direct")


@golden_files("fbl")
def test_golden_through_the_classifier(golden):
    for k, variant in enumerate(golden.variants):
        features, weight, bias = (golden.leaf(name) for name in ("features", "weight", "bias"))
        value = fbl_loss(
            features @ weight + bias,
            features,
            golden["labels"],
            golden["class_counts"],
            strength=variant["curr"] * variant["lambda_"],
        )
        value.backward()
        golden.check_grad(features.grad, f"v{k}_grad_feature_total")
        golden.check_grad(weight.grad, f"v{k}_grad_weight")
        golden.check_grad(bias.grad, f"v{k}_grad_bias")


@golden_files("fbl")
def test_golden_rarity(golden):
    counts = golden["class_counts"]
    loss = build_loss("FBL", num_classes=len(counts), class_counts=counts)
    golden.check_grad(loss.rarity.to(golden["score"].dtype), "lam_list")


def test_gradient_by_autograd():
    logits, features, targets = inputs()

    def value(z, f):
        return fbl_loss(z, f, targets, COUNTS, strength=5.0)

    assert torch.autograd.gradcheck(value, (logits.requires_grad_(), features.requires_grad_()))


def test_a_rare_class_wants_longer_features():
    logits, features, _ = inputs()
    features.requires_grad_()
    fbl_loss(logits, features, torch.full((10,), 1), COUNTS, strength=60.0).backward()
    # Descending the gradient lengthens every feature.
    assert ((features.grad * features).sum(1) < 0).all()


@pytest.mark.parametrize(
    "counts,strength", [(COUNTS, 0.0), (torch.full((3,), 9), 60.0)], ids=["no strength", "equal"]
)
def test_without_stimulus_it_is_cross_entropy(counts, strength):
    logits, features, targets = inputs()
    value = fbl_loss(logits, features, targets, counts, strength=strength)
    torch.testing.assert_close(value, F.cross_entropy(logits, targets))


def test_a_single_class_has_no_loss():
    logits, features, _ = inputs(classes=1)
    loss = build_loss("FBL", num_classes=1, class_counts=[4], curriculum="constant")
    value = loss(logits, torch.zeros(10, dtype=torch.int64), features=features)["loss_cls"]
    assert value == 0


def test_a_class_without_examples_counts_as_one(caplog):
    loss = build_loss("FBL", num_classes=3, class_counts=[0, 1, 500])
    assert "1 of 3 classes have no training example" in caplog.text
    assert loss.rarity.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "curriculum,array",
    [
        ("parabolic", "fbl_curriculum_200"),
        ("linear", "fbl_curriculum_alt_linear"),
        ("cosine", "fbl_curriculum_alt_cosine"),
        ("sine", "fbl_curriculum_alt_sine"),
    ],
)
@pytest.mark.parametrize("clip", [True, False])
def test_golden_curriculum(curriculum, array, clip):
    """Over the 200 epochs of the release, the progress being epoch / 200."""
    expected = np.load(GOLDEN / "schedules.npz", allow_pickle=False)[array]
    if clip:
        expected = expected.clip(max=1)
    loss = build_loss("FBL", num_classes=3, class_counts=COUNTS, curriculum=curriculum, clip=clip)
    for epoch, alpha in enumerate(expected):
        set_progress(loss, epoch / 200)
        assert loss.alpha().item() == pytest.approx(alpha, rel=1e-12, abs=1e-15)


def test_alpha_reaches_one_and_goes_beyond_only_unclipped():
    for curriculum in CURRICULA:
        loss = build_loss("FBL", num_classes=3, class_counts=COUNTS, curriculum=curriculum)
        set_progress(loss, 1.0)
        assert loss.alpha().item() == pytest.approx(1.0)
    released = build_loss("FBL", num_classes=3, class_counts=COUNTS, clip=False)
    set_progress(released, 199 / 200)
    assert released.alpha().item() == pytest.approx(1.0969806094)


def test_the_module_applies_the_curriculum_in_training_only():
    logits, features, targets = inputs()
    loss = build_loss("FBL", num_classes=3, class_counts=COUNTS, strength=20.0)

    def value():
        return loss(logits, targets, features=features)["loss_cls"]

    plain = F.cross_entropy(logits, targets)
    torch.testing.assert_close(value(), plain)  # alpha(0) = 0
    set_progress(loss, 0.475)  # alpha = 1/4
    expected = fbl_loss(logits, features, targets, COUNTS, strength=5.0)
    torch.testing.assert_close(value(), expected)
    assert abs(expected - plain) > 0.01
    loss.eval()
    torch.testing.assert_close(value(), plain)


def test_wrong_parameters_are_errors():
    with pytest.raises(ValueError, match="curriculum='parabola'.*parabolic, linear, cosine"):
        build_loss("FBL", num_classes=3, class_counts=COUNTS, curriculum="parabola")
    with pytest.raises(ValueError, match="FBL needs class_counts"):
        build_loss("FBL", num_classes=3)
    with pytest.raises(ValueError, match="FBL needs features"):
        build_loss("FBL", num_classes=3, class_counts=COUNTS)(
            torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64)
        )
