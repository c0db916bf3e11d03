"""Choosing a strength: by the tuning images alone, ties to the smaller, halves by the seed."""

import numpy as np
import pytest

from lt_det.errors import ConfigError, DataError
from lt_det.evaluation.per_image import ClassificationImages
from lt_det.evaluation.strength_search import (
    REPORTING,
    TUNING,
    choose_images,
    differences,
    halves,
    search,
    strength_grid,
)

NAN = float("nan")


class Known:
    """Trials whose metric is known."""

    def __init__(self, tuning, reporting):
        self.strengths = [k / 10 for k in range(len(tuning))]
        self.num_images = {TUNING: 3, REPORTING: 4}
        self.values = {TUNING: tuning, REPORTING: reporting}
        self.asked = []

    def record(self, k, part):
        self.asked.append((k, part))
        return {"part": part, "k": k, "metrics": {"bbox": {"AP": self.values[part][k]}}}


@pytest.mark.parametrize(
    "tuning, best",
    [([1, 5, 3], 1), ([2, 2, 2], 0), ([1, 4, 4], 1), ([3, 2, 1], 0), ([NAN, 1, NAN], 1)],
)
def test_the_tuning_images_alone_choose(tuning, best):
    """The reporting images would choose the last strength."""
    trials = Known(tuning, [1, 2, 9])
    found = search(trials, "bbox/AP")
    assert found.best == best
    np.testing.assert_array_equal(found.values, tuning)
    for part in (TUNING, REPORTING):
        places = [(found.records[part][when]["k"]) for when in ("before", "after")]
        assert places == [0, best]
        assert {found.records[part][when]["part"] for when in ("before", "after")} == {part}
    assert {k for k, part in trials.asked if part == REPORTING} == {0, best}


def test_what_cannot_choose_is_named():
    with pytest.raises(ConfigError, match=r"'bbox/APx'.*--metric.*bbox/AP"):
        search(Known([1, 2], [1, 2]), "bbox/APx")
    with pytest.raises(DataError, match="bbox/AP has no value on the 3 images"):
        search(Known([NAN, NAN], [1, 2]), "bbox/AP")


class Counted:
    """Classification of eight images under two strengths."""

    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    correct = (np.array([1, 1, 1, 0, 0, 0, 1, 0]), np.array([1, 1, 0, 1, 1, 0, 1, 0]))

    def images(self, k):
        return [ClassificationImages(np.arange(8), self.labels, self.correct[k] == 1, 3)]


def test_differences_are_those_of_the_metrics_with_intervals_around_them():
    found = differences(Counted(), 1, ["f", "c", "r"], resamples=200)
    expected = {"many": -100 / 3, "medium": 200 / 3, "few": 0, "mean_class": 100 / 9, "top1": 12.5}
    assert {k.removeprefix("classification/") for k in found} == set(expected)
    for name, value in expected.items():
        one = found[f"classification/{name}"]
        assert one.difference == pytest.approx(value, abs=1e-9)
        assert one.low <= one.difference + 1e-9 and one.difference - 1e-9 <= one.high
    assert found["classification/top1"].value_a == 50.0
    same = differences(Counted(), 0, None, resamples=200)
    assert all(d.difference == d.low == d.high == 0 and not d.beyond_noise for d in same.values())


def test_strengths_are_tried_once_in_order_and_none_first():
    assert strength_grid([0.6, 0.2, 0.6]) == [0.0, 0.2, 0.6]
    assert strength_grid([0, 1]) == [0.0, 1.0]
    for bad in (-0.1, NAN, float("inf")):
        with pytest.raises(ConfigError, match="at least 0"):
            strength_grid([0.5, bad])


@pytest.mark.parametrize("number", [2, 5, 100])
def test_halves(number):
    chosen = halves(number, seed=3)
    assert chosen.sum() == number // 2 and len(chosen) == number
    np.testing.assert_array_equal(chosen, halves(number, seed=3))
    if number == 100:
        assert (chosen != halves(number, seed=4)).any()
        # Not the first half: of 50 draws without replacement 25 are expected there, deviation 2.5.
        assert 12 < chosen[:50].sum() < 38
    with pytest.raises(DataError, match="1 images cannot be halved"):
        halves(1, seed=3)


def test_halves_of_one_set_are_apart():
    sets = {TUNING: "a", REPORTING: "a"}
    places = choose_images(sets, {TUNING: 11, REPORTING: 11}, seed=1).places
    assert sorted([*places[TUNING], *places[REPORTING]]) == list(range(11))
    assert len(places[TUNING]) == 5
    some = choose_images(sets, {TUNING: 11, REPORTING: 11}, limit=6, seed=1).places
    both = [*some[TUNING], *some[REPORTING]]
    assert len(set(both)) == 6 and len(some[TUNING]) == 3 and max(both) < 11


def test_two_sets_are_taken_whole():
    sets = {TUNING: "a", REPORTING: "b"}
    choice = choose_images(sets, {TUNING: 3, REPORTING: 5})
    assert choice.places[TUNING].tolist() == [0, 1, 2] and choice.sets[TUNING] == "a"
    assert choice.places[REPORTING].tolist() == [0, 1, 2, 3, 4]


def test_a_given_strength_is_reported_on_all():
    sets = {TUNING: "a", REPORTING: "a"}
    choice = choose_images(sets, {TUNING: 0, REPORTING: 5})
    assert choice.places[TUNING].tolist() == [] and choice.places[REPORTING].tolist() == [*range(5)]
