"""Confidence intervals over images: of a result, and of the difference of two."""

import numpy as np
import pytest
import torch

from lt_det.errors import DataError
from lt_det.evaluation import bootstrap
from lt_det.evaluation.bootstrap import (
    Interval,
    benjamini_hochberg,
    bootstrap_groups,
    paired_bootstrap,
    record_intervals,
    resample_weights,
    t_quantile,
)
from lt_det.evaluation.groups import group_means
from lt_det.evaluation.per_image import ClassificationImages, DetectionImages
from tests.evaluation.test_per_image import C, random_matches, repeated_aps

GROUPS = list("rrrcccfff")


def classified(correct, labels, num_classes, ids=None):
    ids = np.arange(len(labels)) if ids is None else ids
    return ClassificationImages(ids, np.asarray(labels), np.asarray(correct), num_classes)


def random_run(seed, num_classes, per_class, accuracy):
    """Images of each class in turn, each correct with a probability of its own."""
    labels = np.tile(np.arange(num_classes), per_class)
    return classified(np.random.default_rng(seed).random(len(labels)) < accuracy, labels, C)


def group_mean(values, weights, images, members):
    """Mean of the classes that are drawn, each weighted with the share of its images drawn."""
    total = count = 0.0
    for k in members:
        own = weights[images.truth_image[images.truth_class == k]]
        if own.sum():
            total, count = total + values[k] * own.mean(), count + own.mean()
    return total / count


# ------------------------------------------------------------------ resamples


def test_resamples_draw_as_many_images_and_do_not_depend_on_the_blocks(monkeypatch):
    whole = torch.cat(list(resample_weights(30, 11, seed=3)), dim=1)
    assert whole.shape == (30, 11) and (whole.sum(dim=0) == 30).all()
    monkeypatch.setattr(bootstrap, "_MAX_RESAMPLES_OF_BLOCK", 4)
    blocks = list(resample_weights(30, 11, seed=3))
    assert [b.shape[1] for b in blocks] == [4, 4, 3]
    assert torch.equal(torch.cat(blocks, dim=1), whole)
    assert not torch.equal(torch.cat(list(resample_weights(30, 11, seed=4)), dim=1), whole)


def test_images_are_drawn_alike():
    weights = torch.cat(list(resample_weights(5, 4000, seed=0)), dim=1)
    # Of 4000 draws of 5 images each; the standard deviation of a mean is 0.9 / 63 = 0.014.
    assert weights.mean(dim=1).tolist() == pytest.approx([1] * 5, abs=0.06)
    # Binomial of 5 draws at 1/5: variance 0.8; its standard deviation is about 0.03.
    assert weights.var(dim=1).tolist() == pytest.approx([0.8] * 5, abs=0.12)


# ------------------------------------------------------------------ one result


def test_values_are_those_of_the_set_and_intervals_those_of_repeated_images():
    matches = random_matches(1)
    images = DetectionImages(matches)
    found = bootstrap_groups(images, GROUPS, resamples=40, seed=5)
    whole = repeated_aps(matches, np.ones(12, int))
    weights = torch.cat(list(resample_weights(12, 40, seed=5)), dim=1).numpy().astype(int)
    drawn = np.stack([repeated_aps(matches, w) for w in weights.T])
    assert list(found) == ["all", "r", "c", "f"]
    for group, interval in found.items():
        members = [k for k, g in enumerate(GROUPS) if group in ("all", g)]
        value = np.nanmean(whole[members])
        means = np.array(
            [group_mean(own, w, images, members) for own, w in zip(drawn, weights.T, strict=True)]
        )
        low, high = np.quantile(means, [0.025, 0.975]) + value - means.mean()
        # Single precision, in percent.
        assert interval == pytest.approx((value, low, high), abs=1e-4)
        assert interval.value == pytest.approx(value, abs=1e-9)


def test_a_proportion_has_its_known_spread():
    images = classified(np.arange(400) < 100, np.zeros(400, int), 1)
    interval = bootstrap_groups(images, None, resamples=4000)["top1"]
    # 1.96 sqrt(p (1 - p) / n) = 4.24 percent points; ends of 4000 resamples are good to 0.1.
    assert interval == pytest.approx((25, 25 - 4.24, 25 + 4.24), abs=0.4)
    narrow = bootstrap_groups(images, None, resamples=4000, confidence=0.5)["top1"]
    assert narrow.high - 25 == pytest.approx(0.674 * 2.165, abs=0.3)


def test_classes_without_ground_truth_and_groups_without_classes():
    images = classified([True, False, True], [0, 0, 1], 4)
    found = bootstrap_groups(images, ["f", "f", "c", "c"], resamples=50)
    assert found["f"].value == 75 and np.isnan(found["c"]).all() and np.isnan(found["r"]).all()
    # A single image of class 1: a resample without it leaves the class out.
    only = bootstrap_groups(images, ["c", "f", "r", "r"], resamples=50)["f"]
    assert only == Interval(100, 100, 100)


@pytest.mark.parametrize("per_class", [1, 2, 7])
def test_where_classes_have_equally_many_images_their_mean_is_the_accuracy_of_the_images(per_class):
    # Each class counts by its drawn images, also where most classes are not drawn at all.
    labels = np.repeat(np.arange(60), per_class)
    right = np.random.default_rng(3).random((2, len(labels))) < 0.5
    runs = [classified(own, labels, 60) for own in right]
    found = bootstrap_groups(runs[0], None, resamples=100)
    # Single precision, in percent.
    assert found["all"] == pytest.approx(found["top1"], abs=1e-4)
    groups = paired_bootstrap(*runs, None, resamples=100).groups
    assert groups["all"][:3] == pytest.approx(groups["top1"][:3], abs=1e-4)


def test_intervals_stay_within_zero_and_one_hundred():
    # One of two images: resamples have 0, 50 or 100.
    images = classified([True, True, True, False], [0] * 4, 1)
    assert bootstrap_groups(images, None, resamples=200)["all"].high == 100


def test_the_record_holds_intervals_by_metric():
    images = random_run(0, C, 8, 0.5)
    found = record_intervals([images], GROUPS, resamples=30, seed=2, confidence=0.9)
    groups = bootstrap_groups(images, GROUPS, resamples=30, seed=2, confidence=0.9)
    names = {"mean_class": "all", "few": "r", "medium": "c", "many": "f", "top1": "top1"}
    expected = {name: list(groups[group][1:]) for name, group in names.items()}
    assert found["metrics"] == {"classification": expected}
    assert (found["resamples"], found["seed"], found["confidence"]) == (30, 2, 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resamples": 1}, "resamples must be at least 2, got 1"),
        ({"confidence": 95}, r"confidence must be in \(0, 1\), got 95"),
        ({"groups": ["r"]}, f"1 groups for {C} classes"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_groups(random_run(0, C, 2, 0.5), **{"groups": GROUPS, **arguments})


# ------------------------------------------------------------------ two results


def test_a_run_does_not_differ_from_itself():
    images = DetectionImages(random_matches(2))
    comparison = paired_bootstrap(images, images, GROUPS, resamples=30)
    for found in comparison.groups.values():
        assert found[:4] == (0, 0, 0, False) and found.value_a == found.value_b
    assert not comparison.beyond_noise.any() and not comparison.controlled.any()
    assert (comparison.p_value[comparison.judged] == 1).all()


def test_differences_are_those_on_the_same_resamples():
    a, b = random_run(1, C, 20, 0.5), random_run(2, C, 20, 0.6)
    comparison = paired_bootstrap(a, b, GROUPS, resamples=60, seed=4)
    weights = torch.cat(list(resample_weights(180, 60, seed=4)), dim=1)
    drawn = b.class_values(weights) - a.class_values(weights)
    whole = b.class_values(torch.ones(180, 1)) - a.class_values(torch.ones(180, 1))
    for group in "rcf":
        members = [k for k, g in enumerate(GROUPS) if g == group]
        columns = zip(drawn.T, weights.numpy().T, strict=True)
        means = np.array([group_mean(own, w, a, members) for own, w in columns])
        value = whole[members].mean()
        low, high = np.quantile(means, [0.025, 0.975]) + value - means.mean()
        assert comparison.groups[group][:3] == pytest.approx((value, low, high), abs=1e-4)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1) + whole[:, 0] - drawn.mean(axis=1)
    np.testing.assert_allclose(comparison.difference, whole[:, 0], atol=1e-4)
    np.testing.assert_allclose(comparison.low, low, atol=1e-4)
    np.testing.assert_allclose(comparison.high, high, atol=1e-4)


def test_sides_that_change_places_change_the_sign():
    a, b = random_run(1, C, 20, 0.5), random_run(2, C, 20, 0.6)
    there, back = (paired_bootstrap(*s, GROUPS, resamples=60) for s in ((a, b), (b, a)))
    for group, found in there.groups.items():
        other = back.groups[group]
        assert found[:3] == pytest.approx((-other.difference, -other.high, -other.low))
        assert (found.value_a, found.value_b) == (other.value_b, other.value_a)
    np.testing.assert_allclose(there.p_value, back.p_value)


def test_what_differs_in_every_image_is_beyond_noise_and_chance_is_not():
    a = random_run(1, C, 60, 0.5)
    labels = np.tile(np.arange(C), 60)
    hits = np.random.default_rng(1).random(len(labels)) < 0.5
    worse = classified(hits & ~((labels == 0) & (np.arange(len(labels)) % 2 == 0)), labels, C)
    comparison = paired_bootstrap(a, worse, GROUPS, resamples=500)
    assert comparison.controlled.tolist() == [True] + [False] * (C - 1)
    assert comparison.groups["r"].beyond_noise and comparison.groups["r"].difference < 0
    assert not comparison.groups["c"].beyond_noise and not comparison.groups["f"].beyond_noise


def test_runs_that_do_not_differ_are_beyond_noise_as_often_as_the_confidence_says():
    classes, per_class = 400, 40
    labels = np.repeat(np.arange(classes), per_class)
    hits = np.random.default_rng(7).random((2, len(labels))) < 0.6
    a, b = (classified(own, labels, classes) for own in hits)
    comparison = paired_bootstrap(a, b, None, resamples=400)
    assert comparison.judged.all()
    # 5 % of 400 with a standard deviation of 1.1 %; percentiles of 40 images are a bit narrow.
    assert 0.02 < comparison.beyond_noise.mean() < 0.1
    assert comparison.controlled.sum() <= 1
    assert not comparison.groups["all"].beyond_noise


def test_classes_and_groups_that_few_images_hold_are_not_judged():
    labels = np.repeat([0, 1], [5, 6])
    never, always = np.zeros(11, bool), np.ones(11, bool)
    comparison = paired_bootstrap(
        classified(never, labels, 2), classified(always, labels, 2), ["r", "f"], resamples=50
    )
    assert comparison.images.tolist() == [5, 6]
    assert comparison.judged.tolist() == comparison.beyond_noise.tolist() == [False, True]
    assert np.isnan(comparison.p_value[0]) and comparison.p_value[1] == 0
    assert comparison.groups["r"][:4] == (100, 100, 100, False)
    assert comparison.groups["f"].beyond_noise
    judged = {name: group.judged for name, group in comparison.groups.items()}
    assert judged == {"all": True, "r": False, "c": False, "f": True, "top1": True}


def test_a_group_with_many_classes_that_few_images_hold_is_called_narrow():
    # Class 9 is held by no image and does not count; of group f every fourth has few images.
    images = [5, 6, 6, 6, 6, 5, 6, 6, 6, 0]
    labels = np.repeat(np.arange(10), images)
    run = classified(np.ones(len(labels), bool), labels, 10)
    groups = paired_bootstrap(run, run, list("rrrrrfffff"), resamples=5).groups
    counts = {name: (g.few_images, g.classes, g.narrow) for name, g in groups.items()}
    assert counts == {
        "all": (2, 9, False),
        "r": (1, 5, False),
        "c": (0, 0, False),
        "f": (1, 4, True),
        "top1": (0, 0, False),
    }
    assert not groups["c"].judged


def test_runs_of_a_side_are_drawn_too():
    labels = np.zeros(20, int)
    none, all_ = (classified(np.full(20, hit), labels, 1) for hit in (False, True))
    comparison = paired_bootstrap([none, none], [none, all_], None, resamples=400)
    found = comparison.groups["all"]
    # A mean of two runs drawn from 0 and 100 is 0, 50 or 100; what it is off 50 counts sqrt(2)
    # times, so that the variance is that of a mean of two runs, 5000 / 2, and t / z times. Its
    # mean over 400 resamples, which the interval is moved by, has a standard deviation of 4.
    off = 50 * 2**0.5 * 4.302653 / 1.959964
    assert found[:3] == pytest.approx((50, 50 - off, 50 + off), abs=12)
    assert found.high - found.low == pytest.approx(2 * off, abs=0.01)
    assert not found.beyond_noise and comparison.runs == (2, 2)
    assert paired_bootstrap(none, all_, None, resamples=20).groups["all"].beyond_noise
    # Two runs of one side alone have one degree of freedom; at 0.8 the quantiles are 3.08, 1.28.
    one = paired_bootstrap(none, [none, all_], None, resamples=400, confidence=0.8).groups["all"]
    assert one.high - one.low == pytest.approx(2 * 50 * 2**0.5 * 3.077684 / 1.281552, abs=0.01)


@pytest.mark.parametrize(
    ("confidence", "freedom", "t"),
    # From tables.
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.30265),
        (0.95, 4, 2.77645),
        (0.95, 30, 2.04227),
        (0.99, 3, 5.84091),
        (0.999, 1, 636.619),
        (0.5, 7, 0.711142),
    ],
)
def test_quantiles_of_t_are_those_of_tables(confidence, freedom, t):
    assert t_quantile(confidence, freedom) == pytest.approx(t, rel=1e-5)


@pytest.mark.parametrize("runs", [2, 3])
def test_recipes_that_differ_by_their_seeds_alone_are_seldom_beyond_noise(runs):
    draws, labels, beyond = np.random.default_rng(0), np.zeros(200, int), 0
    for _ in range(300):
        # The seed moves the accuracy by 15 points, the choice of 200 images by 3.5.
        chances = np.clip(draws.normal(0.5, 0.15, (2, runs)), 0, 1)
        a, b = (
            [classified(draws.random(200) < chance, labels, 1) for chance in side]
            for side in chances
        )
        beyond += paired_bootstrap(a, b, None, resamples=60).groups["all"].beyond_noise
    # 5 % of 300, standard deviation 1.3 %; without t it is 15 % here.
    assert 0.01 < beyond / 300 < 0.09


def test_other_images_or_ground_truth_are_an_error():
    a = random_run(0, C, 2, 0.5)
    labels = np.tile(np.arange(C), 2)
    other = classified(np.ones(18, bool), labels, C, ids=np.arange(1, 19))
    with pytest.raises(DataError, match=r"1 are only in the first .* 1 only in the second.*\[0\]"):
        paired_bootstrap(a, other, GROUPS, resamples=5)
    with pytest.raises(DataError, match="the ground truth differs"):
        paired_bootstrap(a, classified(np.ones(18, bool), labels[::-1], C), GROUPS, resamples=5)
    with pytest.raises(DataError, match="of 9 and of 4 classes"):
        paired_bootstrap(a, classified([True], [0], 4), GROUPS, resamples=5)
    with pytest.raises(DataError, match="of classification and of bbox"):
        paired_bootstrap(a, DetectionImages(random_matches(0)), GROUPS, resamples=5)
    with pytest.raises(DataError, match="at least one run"):
        paired_bootstrap([], a, GROUPS, resamples=5)


# ------------------------------------------------------------------ many classes


def test_false_discoveries_are_controlled_as_by_hand():
    # Limits 0.01, 0.02, 0.03, 0.04, 0.05: the third holds and takes the second along.
    values = np.array([0.041, 0.005, np.nan, 0.029, 0.025, 0.9])
    assert benjamini_hochberg(values, 0.05).tolist() == [False, True, False, True, True, False]
    assert not benjamini_hochberg(np.array([np.nan, np.nan]), 0.05).any()
    assert benjamini_hochberg(np.array([0.0, np.nan]), 0.05).tolist() == [True, False]


def test_group_values_are_the_means_of_the_tables():
    images = DetectionImages(random_matches(3))
    whole = repeated_aps(random_matches(3), np.ones(12, int))
    found = bootstrap_groups(images, GROUPS, resamples=5)
    expected = group_means(whole, GROUPS)
    assert {g: found[g].value for g in "rcf"} == pytest.approx(expected, abs=1e-9)
