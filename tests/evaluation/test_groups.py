import numpy as np
import pytest
import torch

from lt_det.errors import ConfigError
from lt_det.evaluation.groups import (
    GROUPS,
    group_means,
    group_sizes,
    groups_by_rank,
    groups_from_counts,
)


def test_borders_belong_to_the_rarer_group_and_unseen_classes_are_rare():
    # LVIS: rare 1..10, common 11..100, frequent above.
    counts = [0, 1, 10, 11, 100, 101, 57_000]
    assert groups_from_counts(counts) == ["r", "r", "r", "c", "c", "f", "f"]
    assert groups_from_counts(counts, borders=(1, 11)) == ["r", "r", "c", "c", "f", "f", "f"]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda c: np.float64(c)])
def test_counts_may_be_any_sequence_of_whole_numbers(kind):
    assert groups_from_counts(kind([3, 30, 300])) == ["r", "c", "f"]


def test_a_larger_count_never_gives_a_rarer_group():
    counts = np.sort(np.random.default_rng(0).integers(0, 200, size=500))
    groups = groups_from_counts(counts, borders=(17, 90))
    assert groups == sorted(groups, key=GROUPS.index)
    assert groups.count("r") == np.sum(counts <= 17) and groups.count("f") == np.sum(counts > 90)


@pytest.mark.parametrize(
    "borders", [(10,), (10, 100, 1000), (100, 10), (10, 10), (0, 10), (1.5, 9), (True, 9), None, 7]
)
def test_unusable_borders_name_the_configuration_key(borders):
    with pytest.raises(ConfigError, match=r"DATASETS\.LT\.GROUP_BORDERS") as error:
        groups_from_counts([1, 2], borders=borders)
    assert repr(borders) in str(error.value)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, -1], "class 1 has -1"),
        ([2.5, 1], "class 0 has 2.5"),
        ([1, 2, float("nan")], "class 2 has nan"),
        ([float("inf")], "class 0 has inf"),
        ([[1, 2]], r"shape \(1, 2\)"),
    ],
)
def test_unusable_counts_name_the_class(counts, message):
    with pytest.raises(ValueError, match=message):
        groups_from_counts(counts)


def test_group_means_leave_out_classes_without_a_value():
    nan = float("nan")
    means = group_means([10.0, nan, 30.0, 7.0, nan], ["r", "r", "r", "c", "f"])
    assert means["r"] == 20.0 and means["c"] == 7.0
    assert np.isnan(means["f"])


def test_group_mean_weighted_by_group_size_is_the_mean_of_all_classes():
    rng = np.random.default_rng(1)
    values = np.where(rng.random(60) < 0.3, np.nan, rng.random(60))
    groups = list(rng.choice(list(GROUPS), size=60))
    means, sizes = group_means(values, groups), group_sizes(groups, values)
    total = sum(means[g] * sizes[g] for g in GROUPS) / sum(sizes.values())
    assert total == pytest.approx(np.nanmean(values), abs=1e-12)
    assert sum(group_sizes(groups).values()) == 60


def test_groups_must_fit_the_values():
    with pytest.raises(ValueError, match="2 groups for 3 classes"):
        group_means([1, 2, 3], ["r", "c"])
    with pytest.raises(ValueError, match="'x'.*r, c, f"):
        group_means([1, 2], ["r", "x"])


# ---- by rank ---------------------------------------------------------------------------------


def test_ranks_are_cut_in_thirds():
    assert groups_by_rank([5, 0, 9, 7, 1, 3]) == ["c", "r", "f", "f", "r", "c"]
    assert groups_by_rank([0.5, 2.5, 1.5]) == ["r", "f", "c"]
    assert groups_by_rank([]) == []


@pytest.mark.parametrize("num_classes", [1, 2, 3, 7, 8, 9, 119, 150])
def test_a_group_has_one_class_more_at_most_and_the_larger_ones_come_first(num_classes):
    amounts = np.random.default_rng(num_classes).integers(0, 50, num_classes)
    groups = groups_by_rank(amounts)
    sizes = [groups.count(g) for g in "fcr"]
    assert sizes == [(num_classes + k) // 3 for k in (2, 1, 0)]
    # Nobody in a rarer group has more.
    by_group = [[int(n) for n, g in zip(amounts, groups, strict=True) if g == x] for x in "fcr"]
    for frequent, rarer in zip(by_group, by_group[1:], strict=False):
        assert not rarer or min(frequent) >= max(rarer)


def test_of_equal_amounts_the_lower_class_id_is_the_more_frequent_one():
    assert groups_by_rank([4] * 6) == ["f", "f", "c", "c", "r", "r"]
    assert groups_by_rank([0, 4, 4, 0]) == ["c", "f", "f", "r"]


def test_ranks_move_with_the_classes():
    rng = np.random.default_rng(3)
    amounts, order = rng.permutation(40), rng.permutation(40)
    groups = np.array(groups_by_rank(amounts))
    assert groups_by_rank(amounts[order]) == groups[order].tolist()


@pytest.mark.parametrize("amounts", [[1, -1, 2], [1.0, float("nan")], [[1, 2], [3, 4]]])
def test_amounts_that_cannot_be_ranked_are_refused(amounts):
    with pytest.raises(ValueError, match="amounts must be one row of numbers >= 0"):
        groups_by_rank(amounts)
