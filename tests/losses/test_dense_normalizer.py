"""The normaliser: its rules, its state, and what an empty batch does to the statistics."""

import pytest
import torch

from lt_det.losses import build_loss
from lt_det.losses.dense_normalizer import DenseNormalizer
from tests.gloo import run_on_ranks


def values(kind, empty, counts):
    normalizer = DenseNormalizer(kind, empty)
    return [normalizer(torch.tensor(n)).item() for n in counts], normalizer


def test_one_rank_divides_by_its_positives_and_an_empty_batch_by_one_or_the_mean():
    mean = 0.9 * (0.9 * 100 + 0.1 * 40) + 0.1 * 20
    for kind in ("ranks", "local"):
        assert values(kind, "one", [40, 0, 20])[0] == [40, 1, 20]
        found, normalizer = values(kind, "running", [40, 20, 0, 0])
        assert found == pytest.approx([40, 20, mean, mean])
        assert normalizer.running.item() == pytest.approx(mean)


def test_running_is_the_moving_average_of_detectron2():
    """100 at first, momentum 0.9, never less than 1 for a batch."""
    expected, mean = [], 100.0
    for count in [40, 0, 7]:
        mean = 0.9 * mean + 0.1 * max(count, 1)
        expected.append(mean)
    assert values("running", "one", [40, 0, 7])[0] == pytest.approx(expected)
    assert values("running", "running", [40, 0])[0] == pytest.approx([94, 94])


def test_evaluation_leaves_the_mean_alone():
    normalizer = DenseNormalizer("running").eval()
    normalizer(torch.tensor(3))
    assert normalizer.running == 100


def test_the_mean_survives_a_checkpoint_and_half_precision_and_can_start_anew():
    _, trained = values("ranks", "running", [31, 17, 5])
    resumed = DenseNormalizer()
    resumed.load_state_dict(trained.state_dict())
    assert resumed.half().running.dtype == torch.float64
    for count in (0, 8, 0):
        assert resumed(torch.tensor(count)) == trained(torch.tensor(count))
    assert torch.equal(resumed.running, trained.running)
    assert resumed.reset() and not resumed.reset()
    assert resumed.running == 100


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ("rank", "one"),
            "MODEL.LT.DENSE.NORMALIZER is 'rank'; accepted are ranks, running, local",
        ),
        (("ranks", "mean"), "MODEL.LT.DENSE.EMPTY_BATCH is 'mean'; accepted are running, one"),
    ],
)
def test_unknown_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DenseNormalizer(*options)


COUNTS = [(6, 2), (5, 0), (0, 0), (0, 3)]


def run_ranks(rank: int):
    found = {}
    for kind, empty in [("ranks", "running"), ("ranks", "one"), ("running", "one")]:
        normalizer = DenseNormalizer(kind, empty)
        found[kind, empty] = [normalizer(torch.tensor(n[rank])).item() for n in COUNTS]
    return found


def test_ranks_agree_and_share_the_positives():
    by_rank = run_on_ranks(run_ranks, 2)
    assert by_rank[0] == by_rank[1]
    assert by_rank[0]["ranks", "one"] == [4, 2.5, 0.5, 1.5]
    running = by_rank[0]["ranks", "running"]
    assert running[:2] + running[3:] == [4, 2.5, 1.5]
    assert running[2] == pytest.approx(0.9 * (0.9 * 100 + 0.4) + 0.25)
    moving, mean = [], 100.0
    for n in [4, 2.5, 0.5, 1.5]:
        mean = 0.9 * mean + 0.1 * n
        moving.append(mean)
    assert by_rank[0]["running", "one"] == pytest.approx(moving)


def negative_share(empty_batch, steps=100):
    """Share of the accumulated negative gradient that comes from empty batches, 2 in 100."""
    generator = torch.Generator().manual_seed(0)
    loss = build_loss("EFL", num_classes=3, has_background=True)
    normalizer = DenseNormalizer("ranks", empty_batch)
    from_empty = 0.0
    for step in range(steps):
        empty = step % 50 == 49
        targets = torch.full((2000,), 3)
        if not empty:
            targets[:150] = torch.randint(0, 3, (150,), generator=generator)
        logits = torch.randn(2000, 3, generator=generator) - 3
        before = loss.stats.neg.sum()
        loss(logits.requires_grad_(), targets, normalizer=normalizer((targets < 3).sum()))
        from_empty += (loss.stats.neg.sum() - before).item() * empty
    return from_empty / loss.stats.neg.sum().item()


def test_two_empty_batches_in_a_hundred_are_two_percent_of_the_statistics():
    """As released they are most of them: 2 batches of weight 150 against 98 of weight 1."""
    assert negative_share("running") == pytest.approx(0.02, abs=0.005)
    assert negative_share("one") > 0.6
