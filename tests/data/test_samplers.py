"""The order of training images."""

import itertools

import numpy as np
import pytest

from lt_det.data.class_sets import class_sets_from_labels
from lt_det.data.epochs import RepeatOrder
from lt_det.data.records import ListRecords
from lt_det.data.rules import SAMPLING_RULES, build_rule
from lt_det.data.samplers import (
    GroupedBatchSampler,
    LongTailSampler,
    SampleKey,
    aspect_ratio_groups,
)

GROUPS = np.array([0, 1, 1, 0, 0, 1, 0])
FACTORS = np.array([1, 1.5, 1, 2.25, 1, 1, 1], np.float32)
ORDER = RepeatOrder(lambda epoch: FACTORS, 7)


def stream(order=ORDER, *, seed=5, **kwargs):
    return LongTailSampler(order, seed=seed, **kwargs)


def take(iterable, count):
    return list(itertools.islice(iterable, count))


def test_an_epoch_depends_on_seed_and_number_alone():
    sampler = stream()
    third = sampler.epoch_images(3)
    sampler.epoch_images(0)
    np.testing.assert_array_equal(sampler.epoch_images(3), third)
    np.testing.assert_array_equal(stream().epoch_images(3), third)
    lists = [stream(seed=s).epoch_images(e).tolist() for s in (5, 6) for e in (2, 3)]
    assert len({tuple(images) for images in lists}) == 4


@pytest.mark.parametrize("rule", list(SAMPLING_RULES))
def test_the_stream_of_every_rule_continues_from_any_place(rule):
    sets = class_sets_from_labels(np.repeat(np.arange(3), [11, 4, 2]), 3)
    built = build_rule(rule)
    for form in built.forms:
        order = built.order(sets, form=form, total_images=100)
        whole = take(stream(order), 100)
        for place in (0, 1, 16, 17, 60):
            start = whole[place].epoch, whole[place].position
            assert take(stream(order, start=start), 100 - place) == whole[place:]
        # The end of an epoch is a place too.
        last = max(k.position for k in whole if k.epoch == 0)
        second = [k for k in whole if k.epoch > 0]
        assert take(stream(order, start=(0, last + 1)), len(second)) == second


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_the_ranks_share_every_epoch_without_rest(world_size):
    ranks = [
        [k for k in take(stream(rank=r, world_size=world_size), 60) if k.epoch < 5]
        for r in range(world_size)
    ]
    for epoch in range(5):
        parts = [[k.index for k in keys if k.epoch == epoch] for keys in ranks]
        whole = stream().epoch_images(epoch).tolist()
        assert sorted(itertools.chain(*parts)) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        rotated = [parts[(r - epoch) % world_size] for r in range(world_size)]
        assert rotated == [whole[k::world_size] for k in range(world_size)]


def test_more_ranks_than_images_leave_no_rank_waiting():
    order = RepeatOrder(lambda epoch: np.ones(2, np.float32), 2)
    for rank in range(5):
        assert len(take(stream(order, rank=rank, world_size=5), 6)) == 6


def batches(count, *, size=3, groups=GROUPS, state=None):
    state = state or {"epoch": 0, "position": 0, "begun": []}
    sampler = GroupedBatchSampler(
        stream(start=(state["epoch"], state["position"])),
        size,
        groups=groups,
        begun=[SampleKey(*key) for key in state["begun"]],
    )
    given = take(sampler, count)
    return given, list(sampler.states)


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["one group", "two groups"])
def test_batches_continue_from_the_state_of_any_batch(groups):
    whole, states = batches(20, groups=groups)
    assert len(states) == 20
    for place in (0, 1, 6, 13):
        rest, _ = batches(19 - place, groups=groups, state=states[place])
        assert rest == whole[place + 1 :]


def test_batches_are_of_one_group_and_full():
    for batch in batches(30)[0]:
        assert len({GROUPS[key.index] for key in batch}) == 1
        assert len(batch) == 3


def test_without_groups_the_stream_is_cut_as_it_comes():
    flat = [key for batch in batches(7, groups=None)[0] for key in batch]
    assert flat == take(stream(), 21)


def test_grouping_loses_and_repeats_nothing():
    """Every place of the stream is in exactly one batch, or begun."""
    given, states = batches(40)
    begun = [SampleKey(*key) for key in states[-1]["begun"]]
    seen = sorted([k for batch in given for k in batch] + begun, key=lambda k: k[1:])
    assert seen == take(stream(), len(seen))
    assert len(begun) <= 4


def test_wide_images_are_group_zero():
    records = [dict(width=3, height=2), dict(width=2, height=2), dict(width=1, height=2)]
    assert aspect_ratio_groups(ListRecords(records)).tolist() == [0, 1, 1]
