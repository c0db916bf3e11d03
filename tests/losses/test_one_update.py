"""Several passes as one update of the statistics, for gradient accumulation."""

import pytest
import torch
from torch import nn

from lt_det.losses import build_loss, one_update
from tests.gloo import run_on_ranks
from tests.losses.loss_cases import STATEFUL_CASES, accumulators, call

TIGHT = dict(rtol=1e-12, atol=1e-14)
HELD_CASES = [c for c in STATEFUL_CASES if accumulators(c.build()).passes != "each"]


def step(case, loss, seed, num_passes):
    """Gradient of the mean over passes, and the sums afterwards."""
    logits, targets, features = case.inputs(8, seed=seed)
    logits.requires_grad_()
    with one_update(nn.ModuleList([loss]), num_passes):
        for rows in torch.arange(8).chunk(num_passes):
            value = call(loss, logits[rows], targets[rows], features[rows])
            (value / num_passes).backward()
    return logits.grad, {k: v.clone() for k, v in accumulators(loss).state_dict().items()}


@pytest.mark.parametrize("num_passes", [2, 4])
@pytest.mark.parametrize("case", HELD_CASES, ids=str)
def test_passes_are_one_large_batch(case, num_passes):
    whole, parts = case.build(), case.build()
    for seed in range(3):
        grad, sums = step(case, whole, seed, 1)
        grad_of_parts, sums_of_parts = step(case, parts, seed, num_passes)
        torch.testing.assert_close(grad_of_parts, grad, **TIGHT)
        assert sums_of_parts["steps"] == seed + 1
        torch.testing.assert_close(sums_of_parts, sums, **TIGHT)


def test_seesaw_counts_each_pass_before_its_loss():
    together, apart = (build_loss("Seesaw", num_classes=2) for _ in range(2))
    passes = [torch.tensor([0, 0]), torch.tensor([1, 0])]
    with one_update(together, 2):
        ours = [together(torch.ones(2, 2), targets)["loss_cls"] for targets in passes]
    assert ours == [apart(torch.ones(2, 2), targets)["loss_cls"] for targets in passes]
    assert together.counts.samples.tolist() == [3, 1] and together.counts.steps == 2


def test_a_pass_that_is_not_finite_drops_the_step():
    loss = build_loss("SigmoidEQL", num_classes=2)
    with one_update(loss, 2):
        for value in (1.0, float("nan")):
            loss(torch.full((2, 2), value, requires_grad=True), torch.tensor([0, 1]))
    assert (loss.stats.pos == 0).all()
    assert loss.stats.steps == 0 and loss.stats.skipped == 1


def test_a_step_that_raises_leaves_nothing_behind():
    loss = build_loss("SigmoidEQL", num_classes=2)
    inputs = torch.ones(2, 2, requires_grad=True), torch.tensor([0, 1])
    with pytest.raises(KeyboardInterrupt):
        with one_update(loss, 2):
            loss(*inputs)
            raise KeyboardInterrupt
    assert loss.stats.steps == 0 and (loss.stats.pos == 0).all()
    loss(*inputs)
    assert loss.stats.steps == 1 and (loss.stats.pos > 0).all()


def two_ranks(rank: int):
    losses = nn.ModuleList(build_loss(name, num_classes=2) for name in ("EFL", "EQLv2"))
    with one_update(losses, 2):
        for loss in losses:
            for _ in range(2 if rank == 0 else 0):  # nothing on rank 1
                loss(torch.ones(2, 2, requires_grad=True), torch.tensor([0, 1]))
    return [{k: v.clone() for k, v in loss.stats.state_dict().items()} for loss in losses]


def test_ranks_agree_also_where_one_has_no_pass():
    ranks = run_on_ranks(two_ranks, 2)
    assert [s["steps"] for s in ranks[0]] == [1, 1]
    for expected, alone in zip(ranks[0], two_ranks(0), strict=True):
        torch.testing.assert_close(alone, expected)
    for ours, theirs in zip(ranks[0], ranks[1], strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
