"""What a new training from old weights must not inherit."""

import torch
from torch import nn

from lt_det.losses import build_loss, reset_run_state, set_progress
from lt_det.losses.dense_normalizer import DenseNormalizer
from lt_det.losses.federated import SampledClasses


def model(seed=0):
    counts = torch.tensor([5, 1, 9])
    parts = {
        name: build_loss(name, num_classes=3, class_counts=counts, **params)
        for name, params in [
            ("EFL", {}),
            ("Seesaw", {}),
            ("KPS", {}),
            ("GCL", {"seed": seed}),
            ("SoftmaxCE", {}),
        ]
    }
    mask = SampledClasses(3, counts, 2, seed=seed)
    return nn.ModuleDict({**parts, "mask": mask, "normalizer": DenseNormalizer()})


def used(seed):
    losses = model(seed)
    set_progress(losses, 0.7)
    targets = torch.tensor([0, 1, 2])
    inputs = {"mask": (targets,), "normalizer": (torch.tensor(7),)}
    for name, module in losses.items():
        module(*inputs.get(name, (torch.rand(3, 3), targets)))
    return losses


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_everything_that_a_training_leaves_behind_goes_back_to_its_start():
    fresh, losses = model(seed=1), model(seed=1)
    losses.load_state_dict(used(seed=5).state_dict())
    # EFL, Seesaw, the progress of KPS, the noise of GCL and of the mask, the normaliser.
    assert reset_run_state(losses) == 6
    expected = state(fresh)
    assert state(losses).keys() == expected.keys()
    for key, value in state(losses).items():
        assert torch.equal(value, expected[key]), key
    assert reset_run_state(losses) == 0


def test_the_seed_is_that_of_the_new_training():
    losses = model(seed=1)
    losses.load_state_dict(used(seed=5).state_dict())
    assert losses["GCL"].noise.seed == 5  # a resumed run goes on with its own
    reset_run_state(losses)
    assert losses["GCL"].noise.seed == 1 and losses["mask"].noise.seed == 1
