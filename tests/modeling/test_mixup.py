"""Mixup of images and of losses."""

import numpy as np
import pytest
import torch

from lt_det.errors import ConfigError
from lt_det.losses import LOSS_REGISTRY, build_loss
from lt_det.modeling.mixup import Mixup, mixed_terms

COUNTS = torch.tensor([50, 20, 9, 4, 1])
# Parameters that a loss cannot do without.
PARAMS = {"EQL": {"num_images": 84}}


def batch(rows=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 5, generator=generator, dtype=torch.float64).tanh()
    targets = torch.randint(0, 5, (2, rows), generator=generator)
    features = torch.rand(rows, 3, generator=generator, dtype=torch.float64) + 0.1
    return logits, targets[0], targets[1], features


def test_images_are_mixed_by_one_weight_with_a_permutation():
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    mixed, order, lam = Mixup(1.0)(images)
    assert sorted(order.tolist()) == list(range(5)) and 0 <= lam <= 1
    torch.testing.assert_close(mixed, lam * images + (1 - lam) * images[order])


def test_weights_are_beta_distributed():
    for alpha in (0.2, 1.0):
        mixup = Mixup(alpha, seed=3)
        lams = np.array([mixup(torch.zeros(2, 1, 1, 1))[2] for _ in range(4000)])
        # Variance of Beta(alpha, alpha); 4000 draws know it within a few percent.
        assert lams.mean() == pytest.approx(0.5, abs=0.02)
        assert lams.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_a_restored_source_goes_on_with_the_same_draws():
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    first = Mixup(1.0, seed=5)
    first(images)
    state = first.state_dict()
    expected = first(images)
    second = Mixup(1.0, seed=9)
    second.load_state_dict(state)
    mixed, order, lam = second(images)
    assert torch.equal(mixed, expected[0]) and torch.equal(order, expected[1])
    assert lam == expected[2]


# EQLv2 is for detectors, GCL draws noise, and Seesaw counts the labels of a call before it uses
# the counts, here those of both halves.
EXACT = [n for n in LOSS_REGISTRY if n not in ("EQLv2", "GCL", "Seesaw")]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_mixed_terms_are_the_mixture_of_two_losses(name, lam):
    logits, targets, partners, features = batch()

    def loss():
        return build_loss(name, num_classes=5, class_counts=COUNTS, **PARAMS.get(name, {}))

    def value(*args, **kwargs):
        return sum(loss()(*args, features=features, **kwargs).values())

    mixed = sum(mixed_terms(loss(), logits, targets, partners, lam, features).values())
    expected = lam * value(logits, targets) + (1 - lam) * value(logits, partners)
    torch.testing.assert_close(mixed, expected, rtol=1e-9, atol=1e-12)


def test_gcl_draws_noise_for_both_halves():
    logits, targets, _, _ = batch()
    loss = build_loss("GCL", num_classes=5, class_counts=COUNTS)
    plain = build_loss("GCL", num_classes=5, class_counts=COUNTS, noise_multiplier=0.0)
    base = sum(plain(logits, targets).values())
    halves = [
        sum(mixed_terms(loss, logits, targets, targets, lam).values()) - base for lam in (1.0, 0.0)
    ]
    assert halves[0] != halves[1] and loss.noise.draws == 2


def test_statistics_are_updated_once_and_weigh_by_the_mixture():
    logits, targets, partners, _ = batch()
    losses = [build_loss("SigmoidEQL", num_classes=5) for _ in range(3)]
    mixed_terms(losses[0], logits, targets, partners, 0.3)
    losses[1](logits, targets)
    losses[2](logits, partners)
    pos = [loss.stats.pos for loss in losses]
    assert losses[0].stats.steps == 1
    torch.testing.assert_close(pos[0], 0.3 * pos[1] + 0.7 * pos[2], rtol=1e-9, atol=1e-12)


def test_alpha_must_be_positive():
    with pytest.raises(ConfigError, match="MODEL.LT.MIXUP is -1"):
        Mixup(-1.0)
