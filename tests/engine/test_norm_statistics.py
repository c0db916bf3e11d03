"""Batch normalisation over several ranks."""

import torch
from torch import nn

from lt_det.engine.norm_statistics import average_norm_statistics
from tests.gloo import run_on_ranks


def statistics_of(rank):
    """Running statistics of a model that has seen this rank's batch, and after averaging."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False))
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.zero_()
    generator = torch.Generator().manual_seed(rank)
    model(torch.randn(3, 1, 4, 4, generator=generator) + 5 * rank)

    def statistics():
        return [s.clone() for m in model[1:] for s in (m.running_mean, m.running_var)]

    before = statistics()
    average_norm_statistics(model)
    return before, statistics()


def test_every_rank_has_the_mean_of_all():
    results = run_on_ranks(statistics_of, 2)
    before, after = ([results[rank][k] for rank in (0, 1)] for k in (0, 1))
    assert not torch.equal(before[0][0], before[1][0])
    for a, b, x, y in zip(*before, *after, strict=True):
        assert torch.equal(x, y)
        torch.testing.assert_close(x, (a + b) / 2)


def test_one_process_changes_nothing():
    before, after = statistics_of(0)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
