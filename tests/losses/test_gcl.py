"""GCL: golden vectors with injected noise, and the noise's own source."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss
from lt_det.losses.gcl import gcl_loss
from lt_det.losses.noise import NoiseSource
from tests.gloo import run_on_ranks
from tests.losses.golden_classification import golden_files

COUNTS = torch.tensor([500, 3, 60, 9])


def plain(**params):
    return {"scale": 30.0, "margin": 0.0, "noise_multiplier": 0.5, "focal_gamma": 0.0, **params}


def inputs(rows=12, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cosine = torch.rand(rows, 4, generator=generator, dtype=dtype) * 2 - 1
    return cosine, torch.randint(0, 4, (rows,), generator=generator)


def golden_arguments(variant):
    return dict(scale=variant["s"], margin=variant["m"], focal_gamma=variant["gamma"])


@golden_files("gcl")
def test_golden(golden):
    for k, variant in enumerate(golden.variants):
        if variant.get("class_weights"):
            continue  # inside the focal factor there; ours has no class weights
        cosine = golden.leaf("logits")
        value = gcl_loss(
            cosine,
            golden["labels"],
            golden["class_counts"],
            golden["noise_raw"],
            noise_multiplier=variant["noise_mul"],
            **golden_arguments(variant),
        )
        value.backward()
        golden.check_loss(value, f"v{k}_loss")
        golden.check_grad(cosine.grad, f"v{k}_grad_logits")


@golden_files("gcl")
def test_golden_amplitude(golden):
    counts = golden["class_counts"]
    loss = build_loss("GCL", num_classes=len(counts), class_counts=counts)
    golden.check_grad(loss.amplitude.to(golden["logits"].dtype), "amplitude")


@golden_files("gcl_mixup")
def test_golden_mixup_is_two_calls_with_two_draws(golden):
    (variant,) = golden.variants
    cosine = golden.leaf("logits")
    parts = [
        gcl_loss(
            cosine,
            golden[f"labels_{k}"],
            golden["class_counts"],
            golden[f"noise_raw_{k}"],
            noise_multiplier=variant["noise_mul"],
            **golden_arguments(variant),
        )
        for k in "ab"
    ]
    lam = golden["lam"].to(cosine.dtype)
    value = lam * parts[0] + (1 - lam) * parts[1]
    value.backward()
    golden.check_loss(value, "loss")
    golden.check_grad(cosine.grad, "grad_logits")


@golden_files("gcl_angular")
def test_golden_angular(golden):
    for k, variant in enumerate(golden.variants):
        cosine = golden.leaf("logits")
        value = gcl_loss(
            cosine,
            golden["labels"],
            golden["class_counts"],
            golden["noise_raw"],
            noise_multiplier=variant["epsilon"],
            angular=True,
            easy_margin=variant["easy_margin"],
            **golden_arguments(variant),
        )
        value.backward()
        golden.check_loss(value, f"v{k}_loss")
        golden.check_grad(cosine.grad, f"v{k}_grad_logits")


@pytest.mark.parametrize("angular", [False, True])
@pytest.mark.parametrize(
    "counts,noise_multiplier", [(COUNTS, 0.0), (torch.full((4,), 20), 0.5)], ids=["none", "equal"]
)
def test_without_cloud_and_margin_it_is_scaled_cross_entropy(angular, counts, noise_multiplier):
    cosine, targets = inputs()
    noise = torch.randn(12, 4, dtype=torch.float64)
    params = plain(noise_multiplier=noise_multiplier, angular=angular)
    value = gcl_loss(cosine, targets, counts, noise, **params)
    torch.testing.assert_close(value, F.cross_entropy(30 * cosine, targets))


def test_noise_is_made_positive_and_clipped_at_one():
    cosine, targets = inputs()
    noise = torch.full((12, 4), 0.4)
    noise[::2] = 5.0
    flipped = -noise.clamp(max=1)
    assert gcl_loss(cosine, targets, COUNTS, noise, **plain()) == gcl_loss(
        cosine, targets, COUNTS, flipped, **plain()
    )


def test_the_focal_factor_is_constant_to_the_gradient():
    cosine, targets = inputs()
    cosine.requires_grad_()
    rows = F.cross_entropy(30 * cosine, targets, reduction="none")
    factor = (1 - torch.exp(-rows.detach())) ** 2
    (expected,) = torch.autograd.grad((factor * rows).mean(), cosine)
    value = gcl_loss(cosine, targets, COUNTS, None, **plain(focal_gamma=2.0))
    (grad,) = torch.autograd.grad(value, cosine)
    torch.testing.assert_close(value, (factor * rows).mean())
    torch.testing.assert_close(grad, expected)


def test_the_most_frequent_class_alone_is_never_perturbed():
    loss = build_loss("GCL", num_classes=4, class_counts=COUNTS)
    assert loss.amplitude[0] == 0 and loss.amplitude[1] == 1
    assert ((loss.amplitude[2:] > 0) & (loss.amplitude[2:] < 1)).all()


@pytest.mark.parametrize("angular", [False, True])
def test_a_single_class_has_no_loss(angular):
    loss = build_loss("GCL", num_classes=1, class_counts=[7], angular=angular)
    cosine = torch.rand(3, 1, requires_grad=True)
    value = loss(cosine, torch.zeros(3, dtype=torch.int64))["loss_cls"]
    value.backward()
    assert value == 0 and (cosine.grad == 0).all()


def test_a_class_without_examples_counts_as_one(caplog):
    loss = build_loss("GCL", num_classes=3, class_counts=[0, 1, 500])
    assert "1 of 3 classes have no training example" in caplog.text
    assert loss.amplitude.tolist() == [1.0, 1.0, 0.0]


def test_the_angular_gradient_is_finite_at_an_angle_of_zero():
    loss = build_loss("GCL", num_classes=4, class_counts=COUNTS, angular=True, margin=0.2)
    cosine = torch.tensor([[1.0, -1.0, 0.0, 1.0]], requires_grad=True)
    loss(cosine, torch.tensor([0]))["loss_cls"].backward()
    assert torch.isfinite(cosine.grad).all()


def test_every_call_in_training_draws_again_and_eval_draws_nothing():
    loss = build_loss("GCL", num_classes=4, class_counts=COUNTS)
    cosine, targets = inputs()
    first, second = (loss(cosine, targets)["loss_cls"] for _ in range(2))
    assert first != second
    loss.eval()
    quiet = F.cross_entropy(30 * cosine, targets)
    torch.testing.assert_close(loss(cosine, targets)["loss_cls"], quiet)
    assert loss.noise.draws == 2


def test_the_module_draws_normal_numbers_of_standard_deviation_one_third():
    loss = build_loss("GCL", num_classes=4, class_counts=COUNTS)
    cosine, targets = inputs()
    noise = copy.deepcopy(loss.noise).normal((12, 4), std=1 / 3, device=torch.device("cpu"))
    expected = gcl_loss(cosine, targets, COUNTS, noise, **plain())
    assert loss(cosine, targets)["loss_cls"] == expected
    many = NoiseSource().normal((1000, 1000), std=1 / 3, device=torch.device("cpu"))
    # 1e6 draws: standard errors 3.3e-4 of the mean, 2.4e-4 of the deviation, 4.8e-4 of a share.
    assert abs(many.mean()) < 2e-3 and abs(many.std() - 1 / 3) < 1e-3
    beyond = (many.abs() > 1 / 3).float().mean()
    assert abs(beyond - math.erfc(math.sqrt(0.5))) < 2.5e-3


def test_draws_are_independent():
    source = NoiseSource()
    a, b = (source.normal((1000, 100), std=1.0, device=torch.device("cpu")) for _ in range(2))
    other = NoiseSource(seed=1).normal((1000, 100), std=1.0, device=torch.device("cpu"))
    for x, y in [(a, b), (a, other), (b, other)]:
        # Correlation of 1e5 pairs: standard error 3.2e-3.
        assert abs((x * y).mean()) < 0.015


def test_noise_leaves_the_global_generator_alone():
    loss = build_loss("GCL", num_classes=4, class_counts=COUNTS)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    loss(*inputs())
    assert torch.equal(torch.rand(3), expected)


def test_noise_goes_on_where_the_checkpoint_stopped():
    a = build_loss("GCL", num_classes=4, class_counts=COUNTS)
    cosine, targets = inputs()
    values = [a(cosine, targets)["loss_cls"].item() for _ in range(6)]
    b = build_loss("GCL", num_classes=4, class_counts=COUNTS)
    for _ in range(3):
        b(cosine, targets)
    c = build_loss("GCL", num_classes=4, class_counts=COUNTS, seed=9)
    c.load_state_dict(b.state_dict())
    assert [c(cosine, targets)["loss_cls"].item() for _ in range(3)] == values[3:]


def draw_on_rank(rank: int):
    source = NoiseSource()
    source.normal((1,), std=1.0, device=torch.device("cpu"))
    state = source.get_extra_state()
    restored = NoiseSource(seed=5)
    restored.set_extra_state(state)
    draw = [s.normal((500,), std=1.0, device=torch.device("cpu")) for s in (source, restored)]
    return state, *draw


def test_noise_differs_between_ranks_and_one_state_restores_them_all():
    ranks = run_on_ranks(draw_on_rank, 2)
    assert torch.equal(ranks[0][0], ranks[1][0])
    for _, draw, again in ranks.values():
        assert torch.equal(draw, again)
    # Correlation of 500 pairs: standard error 0.045.
    assert abs((ranks[0][1] * ranks[1][1]).mean()) < 0.2


def test_wrong_parameters_are_errors():
    with pytest.raises(ValueError, match="noise_multiplier=-1.*at least 0"):
        build_loss("GCL", num_classes=2, class_counts=[5, 1], noise_multiplier=-1)
    with pytest.raises(ValueError, match="GCL needs class_counts.*CLASS_COUNTS"):
        build_loss("GCL", num_classes=2)
