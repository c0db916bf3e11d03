"""Gradient statistics on two processes."""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from lt_det.dist import sum_over_ranks, world_size
from lt_det.losses import LOSS_REGISTRY, build_loss
from tests.gloo import run_on_ranks

GOLDEN = Path(__file__).parent / "golden" / "equalization" / "eqlv2_2ranks_C10_N32.npz"
NUM_CLASSES = 6
COUNTS = [3, 500, 40, 1, 120, 9]
# Rows of each rank in each step: uneven, none on one rank, none on any.
ROWS = [(5, 9), (7, 0), (0, 0), (0, 4), (3, 3)]


def test_without_a_process_group_nothing_happens():
    x = torch.tensor([1.0, 2.0])
    assert sum_over_ranks(x) is x
    assert world_size() == 1


def step_rows(step: int, num_logits: int):
    """All rows of a step, those of rank 0 first."""
    generator = torch.Generator().manual_seed(step)
    rows = sum(ROWS[step])
    features = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, NUM_CLASSES + 1, (rows,), generator=generator)
    return features, targets


class Head(torch.nn.Module):
    """A classifier and its loss, as a detection head holds them."""

    def __init__(self, name: str):
        super().__init__()
        parameter = LOSS_REGISTRY.get(name).noise_parameter
        self.loss = build_loss(
            name,
            num_classes=NUM_CLASSES,
            has_background=True,
            class_counts=COUNTS,
            # Noise differs between ranks, on purpose: see tests/losses/test_gcl.py.
            **({parameter: 0.0} if parameter else {}),
        )
        self.classifier = torch.nn.Linear(4, self.loss.num_logits).double()
        with torch.no_grad():
            weight = torch.linspace(-1, 1, self.classifier.weight.numel(), dtype=torch.float64)
            self.classifier.weight.copy_(weight.view_as(self.classifier.weight))
            self.classifier.bias.zero_()

    def forward(self, features, targets, normalizer):
        terms = self.loss(
            self.classifier(features), targets, features=features, normalizer=normalizer
        )
        return sum(terms.values())


def train(name: str, rank: int | None):
    """SGD over all steps on one rank's rows, or on all rows when `rank` is None."""
    head = Head(name)
    model = head if rank is None else DistributedDataParallel(head, broadcast_buffers=False)
    # DDP averages gradients over two ranks; twice the rate makes that the sum over all. Half the
    # divisor would too, but some losses accumulate gradients with the divisor in them.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5 if rank is None else 1.0)
    for step, rows in enumerate(ROWS):
        features, targets = step_rows(step, head.loss.num_logits)
        normalizer = max(1, sum(rows))
        if rank is not None:
            own = slice(0, rows[0]) if rank == 0 else slice(rows[0], None)
            features, targets = features[own], targets[own]
        optimizer.zero_grad()
        model(features, targets, normalizer).backward()
        optimizer.step()
    return {k: v.clone() for k, v in head.state_dict().items()}


def train_all(rank: int):
    return {name: train(name, rank) for name in sorted(LOSS_REGISTRY)}


def test_two_ranks_with_uneven_rows_equal_one_process():
    """Weights and statistics of every loss, also with no rows on a rank or on any."""
    ranks = run_on_ranks(train_all, 2)
    for name in LOSS_REGISTRY:
        alone = train(name, None)
        for key, expected in alone.items():
            assert torch.equal(ranks[0][name][key], ranks[1][name][key]), (name, key)
            # Sums in another order: float64 rounding.
            torch.testing.assert_close(ranks[0][name][key], expected, rtol=1e-10, atol=1e-12)
        for stats in ("loss.stats.", "loss.counts."):
            if stats + "steps" in alone:
                assert alone[stats + "steps"] == len(ROWS)
                sums = [v for k, v in alone.items() if k.startswith(stats) and v.dim()]
                assert all((total > 0).any() for total in sums)


def run_golden(rank: int):
    data = np.load(GOLDEN)
    hparams = json.loads(str(data["hparams"]))
    loss = build_loss(
        "EQLv2",
        num_classes=hparams["num_classes"],
        has_background=True,
        **{k: hparams[k] for k in ("gamma", "mu", "alpha")},
    )
    steps = []
    for t in range(int(data["num_steps"])):
        logits = torch.as_tensor(data[f"r{rank}_s{t}_logits"]).double().requires_grad_()
        value = loss(logits, torch.as_tensor(data[f"r{rank}_s{t}_labels"]))["loss_cls"]
        value.backward()
        steps.append((value.detach(), logits.grad, loss.stats.pos.clone(), loss.stats.neg.clone()))
    return steps


def test_golden_on_two_ranks():
    data = np.load(GOLDEN)
    for rank, steps in run_on_ranks(run_golden, 2).items():
        for t, (value, grad, pos, neg) in enumerate(steps):
            expected = {
                f"r{rank}_s{t}_loss_f64": value,
                f"r{rank}_s{t}_grad_f64": grad,
                f"s{t}_pos_grad_f64": pos,
                f"s{t}_neg_grad_f64": neg,
            }
            for key, ours in expected.items():
                torch.testing.assert_close(
                    ours, torch.as_tensor(data[key]).reshape(ours.shape), rtol=1e-9, atol=1e-12
                )


def skip_on_one_rank(rank: int):
    loss = build_loss("SigmoidEQL", num_classes=2)
    logits = torch.ones(2, 2, requires_grad=True)
    loss(logits, torch.tensor([0, 1]))
    bad = logits * float("nan") if rank == 1 else logits
    loss(bad, torch.tensor([0, 1]))
    return {k: v.clone() for k, v in loss.stats.state_dict().items()}


def test_a_value_that_is_not_finite_on_one_rank_is_dropped_on_both():
    ranks = run_on_ranks(skip_on_one_rank, 2)
    for key in ranks[0]:
        assert torch.equal(ranks[0][key], ranks[1][key])
    assert ranks[0]["steps"] == 1 and ranks[0]["skipped"] == 1
