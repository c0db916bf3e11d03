"""Imbalance factor, Gini coefficient and shares: closed forms and invariances."""

import numpy as np
import pytest

from lt_det.data.imbalance import gini, group_shares, imbalance_factor, top_share


def random_counts(seed, number=40):
    return np.random.default_rng(seed).integers(0, 1000, number)


def mean_difference(counts):
    """Gini by its definition, pair by pair."""
    pairs = [abs(a - b) for a in counts.tolist() for b in counts.tolist()]
    return np.mean(pairs) / (2 * np.mean(counts))


@pytest.mark.parametrize("seed", range(5))
def test_gini_is_half_the_relative_mean_difference(seed):
    counts = random_counts(seed)
    assert gini(counts) == pytest.approx(mean_difference(counts), rel=1e-12)


@pytest.mark.parametrize("number", [1, 2, 7, 100])
def test_gini_of_equal_counts_is_0_and_of_one_class_with_all_is_largest(number):
    assert gini(np.full(number, 13)) == pytest.approx(0, abs=1e-15)
    alone = np.zeros(number)
    alone[number // 2] = 4
    assert gini(alone) == pytest.approx((number - 1) / number)


@pytest.mark.parametrize("a, b", [(1, 3), (0, 5), (7, 7), (1, 999)])
def test_gini_of_two_classes(a, b):
    assert gini([b, a]) == pytest.approx((b - a) / (2 * (a + b)))


def test_gini_of_1_to_n():
    assert gini(range(1, 11)) == pytest.approx((10 - 1) / (3 * 10))


@pytest.mark.parametrize("seed", range(3))
def test_order_and_scale_do_not_matter(seed):
    counts = random_counts(seed)
    changed = np.random.default_rng(9).permutation(counts) * 7
    for number in (gini, imbalance_factor, lambda c: top_share(c, 4)):
        assert number(changed) == pytest.approx(number(counts))


def test_every_class_twice_has_the_same_gini():
    counts = random_counts(1)
    assert gini(np.tile(counts, 2)) == pytest.approx(gini(counts))


def test_classes_without_any_count_raise_gini_but_not_the_imbalance_factor():
    assert imbalance_factor([50, 0, 5, 10]) == imbalance_factor([50, 5, 10]) == 10
    assert gini([50, 0, 5, 10]) > gini([50, 5, 10])
    assert imbalance_factor([0, 3]) == 1


def test_taking_from_the_rich_lowers_gini():
    assert gini([1, 2, 9]) > gini([1, 3, 8]) > gini([2, 3, 7]) > gini([4, 4, 4]) - 1e-15


def test_shares_of_the_top():
    counts = [10, 60, 0, 30]
    assert [top_share(counts, k) for k in range(5)] == pytest.approx([0, 0.6, 0.9, 1, 1])


def test_shares_of_groups_add_up_to_one():
    shares = group_shares([10, 60, 0, 30], "rfrf")
    assert shares == pytest.approx({"r": 0.1, "c": 0, "f": 0.9})
    counts = random_counts(4)
    shares = group_shares(counts, np.random.default_rng(0).choice(["r", "c", "f"], len(counts)))
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "counts, message",
    [
        ([0, 0], "none of the 2 classes"),
        ([], "none of the 0 classes"),
        ([1, -2], "class 1 has -2"),
        ([np.nan, 1], "class 0 has nan"),
        ([1, np.inf], "class 1 has inf"),
        ([[1, 2]], r"got shape \(1, 2\)"),
    ],
)
@pytest.mark.parametrize("function", [gini, imbalance_factor, lambda c: top_share(c, 0)])
def test_counts_that_are_none_are_refused(function, counts, message):
    with pytest.raises(ValueError, match=message):
        function(counts)


def test_wrong_groups_and_numbers_are_refused():
    with pytest.raises(ValueError, match="1 groups for 2 classes"):
        group_shares([1, 2], "r")
    with pytest.raises(ValueError, match="top 3 of 2 classes"):
        top_share([1, 2], 3)
