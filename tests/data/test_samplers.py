"""The order of training images."""

import itertools

import numpy as np
from detectron2.data.samplers import TrainingSampler

from lt_det.data.records import ListRecords
from lt_det.data.samplers import GroupedBatchSampler, aspect_ratio_groups

GROUPS = np.array([0, 1, 1, 0, 0, 1, 0])


def batches(count, *, size=3, groups=GROUPS, skip=0, seed=5):
    sampler = GroupedBatchSampler(
        TrainingSampler(len(GROUPS), seed=seed), size, groups=groups, skip=skip
    )
    return list(itertools.islice(sampler, count))


def test_skipping_continues_the_same_stream():
    whole = batches(20)
    for skip in (0, 1, 7, 13):
        assert batches(20 - skip, skip=skip) == whole[skip:]


def test_batches_are_of_one_group_and_full():
    for batch in batches(30):
        assert len({GROUPS[key.index] for key in batch}) == 1
        assert len(batch) == 3


def test_without_groups_the_stream_is_cut_as_it_comes():
    indices = list(itertools.islice(TrainingSampler(len(GROUPS), seed=5), 21))
    flat = [key for batch in batches(7, groups=None) for key in batch]
    assert [key.index for key in flat] == indices
    assert [key.position for key in flat] == list(range(21))


def test_grouping_loses_and_repeats_nothing():
    """Every position of the stream is in exactly one batch, but for what is still open."""
    positions = sorted(key.position for batch in batches(40) for key in batch)
    assert len(set(positions)) == len(positions) == 120
    # At most two open batches of up to two images are missing from the front of the stream.
    assert positions[-1] - len(positions) + 1 <= 4


def test_wide_images_are_group_zero():
    records = [dict(width=3, height=2), dict(width=2, height=2), dict(width=1, height=2)]
    assert aspect_ratio_groups(ListRecords(records)).tolist() == [0, 1, 1]
