import numpy as np
import pytest
import torch

from lt_det.errors import ConfigError
from lt_det.evaluation.groups import GROUPS, group_means, group_sizes, groups_from_counts


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
