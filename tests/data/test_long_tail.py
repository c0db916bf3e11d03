"""Long-tailed subsets: the published numbers and selections, and what cannot be had."""

import json
from pathlib import Path

import numpy as np
import pytest

from lt_det.data.datasets.long_tail import assign, profile, select
from lt_det.errors import ConfigError, DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "classification"
PROFILES = {
    name: counts
    for name, counts in np.load(GOLDEN / "cifar_lt_profiles.npz").items()
    if name != "meta"
}


def kind_of(name):
    """ "c10_exp_0.01" -> images of the largest class, number of classes, kind, rho."""
    classes, kind, rho = name.split("_")
    return 50000 // int(classes[1:]), int(classes[1:]), kind, float(rho)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_the_published_ones(name):
    n_max, num_classes, kind, rho = kind_of(name)
    # As on the command line, and as published.
    for imbalance in (round(1 / rho), 1 / rho):
        counts = profile(n_max, num_classes, imbalance, kind)
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, PROFILES[name])


@pytest.mark.parametrize(
    "n_max, classes, total, smallest",
    [
        (5000, 10, {10: 20431, 50: 13996, 100: 12406, 200: 11203}, [500, 100, 50, 25]),
        (500, 100, {10: 19573, 50: 12608, 100: 10847, 200: 9502}, [50, 10, 5, 2]),
    ],
)
def test_totals_of_cifar_lt(n_max, classes, total, smallest):
    counts = [profile(n_max, classes, imbalance) for imbalance in total]
    assert [c.sum() for c in counts] == list(total.values())
    assert [c.min() for c in counts] == smallest


def test_step_profile_with_an_odd_number_of_classes():
    assert profile(40, 5, 10, "step").tolist() == [40, 40, 4, 4, 4]


def test_imbalance_of_one_keeps_all():
    assert profile(7, 4, 1).tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((10, 1, 10), "at least 2 classes, got 1"),
        ((10, 3, 0.5), "from 1, got 0.5"),
        ((10, 3, float("nan")), "from 1, got nan"),
        ((10, 3, float("inf")), "from 1, got inf"),
        ((0, 3, 1), "at least 1 image, got 0"),
        ((10, 3, 2, "linear"), "'linear'; accepted: exp, step"),
        ((100, 3, 1000), "factor of 1000 leave 1 of 3 classes"),
        ((100, 5, 1000, "step"), "factor of 1000 leave 3 of 5 classes"),
    ],
)
def test_profiles_that_cannot_be_had(arguments, message):
    with pytest.raises(ConfigError, match=message):
        profile(*arguments)


@pytest.mark.parametrize("name", ["r0", "r666"])
def test_selection_is_the_published_one(name):
    data = np.load(GOLDEN / f"cifar_lt_selection_c10_{name}.npz")
    meta = json.loads(str(data["meta"]))
    counts = profile(100, 10, 1 / meta["imb_factor"])
    np.testing.assert_array_equal(counts, data["class_counts"])
    kept = select(data["balanced_targets"], counts, meta["rand_number"])
    np.testing.assert_array_equal(kept, data["selected_indices"])


def test_selection_leaves_the_random_state_of_numpy_alone():
    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    select(np.array([0, 1, 0, 1]), np.array([2, 1]), seed=0)
    assert np.random.rand() == expected


def test_too_few_images_names_class_wanted_and_present():
    with pytest.raises(DataError, match="class 1 should keep 3 images but has 2"):
        select(np.array([0, 0, 0, 1, 1]), np.array([3, 3]), seed=0)


def test_labels_and_seeds_out_of_range():
    with pytest.raises(DataError, match=r"label 2 is not in 0\.\.1"):
        select(np.array([0, 1, 2]), np.array([1, 1]), seed=0)
    with pytest.raises(ConfigError, match="got -1"):
        select(np.array([0, 1]), np.array([1, 1]), seed=-1)


def test_order_by_count_gives_the_largest_size_to_the_class_with_most_images():
    sizes, available = np.array([9, 5, 2]), np.array([9, 20, 9])
    assert assign(sizes, available, "label").tolist() == [9, 5, 2]
    assert assign(sizes, available, "count").tolist() == [5, 9, 2]
    with pytest.raises(ConfigError, match="'name'; accepted: label, count"):
        assign(sizes, available, "name")
