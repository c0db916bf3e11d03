"""Sampling rules: golden vectors, closed forms, and what holds for each of them."""

import math

import numpy as np
import pytest
from detectron2.data.samplers import RepeatFactorTrainingSampler

from lt_det.data.class_sets import (
    class_sets_from_labels,
    class_sets_from_pairs,
    expected_per_class,
)
from lt_det.data.rules import SAMPLING_RULES, build_rule, rule_parameters
from lt_det.data.rules.cben import class_based_beta
from lt_det.data.rules.effective import effective_number
from lt_det.errors import ConfigError, DataError
from tests.data.golden import golden_arrays

COUNTS = np.array([40, 900, 7, 310, 15, 5])
SAMPLER_FILES = golden_arrays("samplers_*")
REPEAT_FILES = golden_arrays("repeat_factors_*")
# Name in the files -> rule and its parameters.
RELEASED = {
    "balanced": ("balanced", {}),
    "effective": ("effective", {"beta": 0.9999}),
    "cben_clean_f64": ("cben", {}),
    "sqrt": ("sqrt", {}),
    "reverse": ("reverse", {}),
}


def sets_with(*images, num_classes=None):
    """Class sets of images given as lists of class ids."""
    index = [k for k, ids in enumerate(images) for _ in ids]
    ids = [c for image in images for c in image]
    return class_sets_from_pairs(index, ids, len(images), num_classes or 1 + max(ids))


def labels_of(counts):
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("data", SAMPLER_FILES)
def test_class_weights_equal_the_released_samplers(data, name):
    rule = build_rule(RELEASED[name][0], RELEASED[name][1])
    counts = data["class_counts"]
    weights = rule.class_weights(counts, counts.sum())
    np.testing.assert_allclose(weights, data[f"{name}_per_cls_weights"], rtol=1e-9)


@pytest.mark.parametrize("name", [*RELEASED, "cben"])
@pytest.mark.parametrize("data", SAMPLER_FILES)
def test_image_and_class_probabilities_equal_the_released_samplers(data, name):
    counts, labels = data["class_counts"], data["targets"]
    rule = build_rule(*RELEASED.get(name, ("cben", {})))
    order = rule.order(class_sets_from_labels(labels, len(counts)), form="draw")
    probabilities = order.probabilities(0)
    # The released CBEN computes beta in float32.
    tolerance = 6e-5 if name == "cben" else 1e-9
    if name != "cben_clean_f64":
        expected = data[f"{name}_sample_probs"]
        np.testing.assert_allclose(probabilities, expected, rtol=tolerance)
    of_class = np.bincount(labels, probabilities)
    np.testing.assert_allclose(of_class, data[f"{name}_class_probs"], rtol=tolerance)


@pytest.mark.parametrize("data", REPEAT_FILES)
def test_repeat_factors_equal_detectron2s_bit_for_bit(data):
    images = np.repeat(np.arange(len(data["image_ptr"]) - 1), np.diff(data["image_ptr"]))
    ids = data["category_ids"]
    sets = class_sets_from_pairs(images, ids, len(data["image_ptr"]) - 1, 1 + ids.max())
    for k, variant in enumerate(data["meta"]["variants"]):
        exponent = 0.5 if variant["sqrt"] else 1.0
        rule = build_rule("power", {"threshold": variant["repeat_thresh"], "exponent": exponent})
        factors = rule.image_factors(sets)
        assert factors.dtype == np.float32
        np.testing.assert_array_equal(factors, data[f"v{k}_repeat_factors"])
        if exponent == 0.5:
            short = build_rule("sqrt", {"threshold": variant["repeat_thresh"]})
            np.testing.assert_array_equal(short.image_factors(sets), factors)


def test_sqrt_equals_the_installed_detectron2():
    rng = np.random.default_rng(0)
    # Zipf-like classes: some in most images, some in one.
    ids = [np.minimum(rng.zipf(1.6, rng.integers(0, 9)) - 1, 49).tolist() for _ in range(500)]
    records = [{"annotations": [{"category_id": c} for c in image]} for image in ids]
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.05)
    ours = build_rule("sqrt", {"threshold": 0.05}).image_factors(sets_with(*ids, num_classes=50))
    assert ours.max() > 2
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_cben_repeats_by_the_rarest_class_of_an_image():
    sets = sets_with([0], [0, 1], [1, 2, 0], [], [0], [0], num_classes=4)
    counts = np.array([5, 2, 1])
    t = np.log(5 / counts) / np.log(5)
    beta = 0.9999 + 1e-5 * t
    effective = (1 - beta**counts) / (1 - beta)
    factor = effective[0] / effective
    expected = [1, factor[1], factor[2], 1, 1, 1]
    factors = build_rule("cben").image_factors(sets)
    # 1 - beta ** n in float64 keeps 12 digits at beta 0.9999.
    np.testing.assert_allclose(factors, expected, rtol=1e-6)
    assert factors[2] == pytest.approx(5, rel=1e-3)


def test_the_cap_holds_factors_and_leaves_weights_alone():
    labels = labels_of([1000, 30, 2])
    sets = class_sets_from_labels(labels, 3)
    for name in ("cben", "effective", "balanced", "reverse"):
        capped, free = build_rule(name, {"cap": 4.0}), build_rule(name, {"cap": 0})
        factors = free.image_factors(sets)
        assert factors.max() > 300
        np.testing.assert_array_equal(capped.image_factors(sets), np.minimum(factors, 4))
        np.testing.assert_array_equal(capped.image_weights(sets), free.image_weights(sets))
    assert build_rule("cben").image_factors(sets).max() == 100


def test_power_goes_from_instance_to_reversed():
    sets = class_sets_from_labels(labels_of(COUNTS), len(COUNTS))

    def class_share(rule):
        shares = np.bincount(sets.classes, rule.order(sets, form="draw").expected(0))
        return shares / shares.sum()

    for exponent in (0, 0.5, 1, 2):
        share = class_share(build_rule("power", {"exponent": exponent}))
        wanted = COUNTS ** (1.0 - exponent)
        np.testing.assert_allclose(share, wanted / wanted.sum(), rtol=1e-12)
    np.testing.assert_allclose(class_share(build_rule("balanced")), 1 / len(COUNTS), rtol=1e-12)
    natural = class_share(build_rule("instance"))
    np.testing.assert_allclose(natural, COUNTS / COUNTS.sum(), rtol=1e-12)


def test_effective_number_has_its_limits():
    n = np.array([1, 7, 100])
    np.testing.assert_allclose(effective_number(n, 0.9), (1 - 0.9**n) / (1 - 0.9), rtol=1e-12)
    np.testing.assert_array_equal(effective_number(n, 1.0), n)
    np.testing.assert_array_equal(effective_number(n, 0.0), [1, 1, 1])
    # Continuous at the limit: 1 - beta ** n alone would have lost eleven digits here.
    np.testing.assert_allclose(effective_number(n, 1 - 1e-12), n, rtol=1e-9)
    each = effective_number(n, np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(each, [1, (1 - 0.5**7) / 0.5, 100], rtol=1e-12)


def test_equal_counts_are_the_most_frequent_class_to_cben():
    """The released code divides zero by zero here."""
    np.testing.assert_array_equal(class_based_beta(np.array([7, 7]), 0.9999, 1e-5), 0.9999)
    sets = class_sets_from_labels(labels_of([7, 7]), 2)
    np.testing.assert_array_equal(build_rule("cben").image_factors(sets), 1)


DRAWN = [name for name in SAMPLING_RULES if name != "progressive"]
REPEATED = [name for name in DRAWN if "repeat" in SAMPLING_RULES.get(name).forms]


@pytest.mark.parametrize("name", REPEATED)
def test_factors_do_not_depend_on_the_order_of_classes_or_images(name):
    rng = np.random.default_rng(3)
    images = [rng.choice(12, size=rng.integers(0, 5), p=zipf(12)).tolist() for _ in range(80)]
    rule = build_rule(name)
    factors = rule.image_factors(sets_with(*images, num_classes=12))
    assert (factors >= 1).all()
    classes, order = rng.permutation(12), rng.permutation(80)
    moved = [[classes[c] for c in images[k]] for k in order]
    np.testing.assert_array_equal(
        rule.image_factors(sets_with(*moved, num_classes=12)), factors[order]
    )
    # Classes that no image holds change nothing.
    np.testing.assert_array_equal(rule.image_factors(sets_with(*images, num_classes=40)), factors)


def zipf(classes):
    weights = 1 / np.arange(1, classes + 1)
    return weights / weights.sum()


@pytest.mark.parametrize("name", REPEATED)
def test_an_image_without_classes_counts_like_the_most_frequent_class(name):
    sets = sets_with([0], [0], [], [1, 0], num_classes=2)
    rule = build_rule(name)
    assert rule.image_factors(sets)[2] == 1
    weights = rule.image_weights(sets)
    assert weights[2] == weights[0]
    nothing = sets_with([], [], [], num_classes=5)
    assert rule.image_factors(nothing).tolist() == [1, 1, 1]
    assert np.unique(rule.image_weights(nothing)).size == 1


@pytest.mark.parametrize("name", DRAWN)
def test_rarer_classes_are_never_wanted_less(name):
    sets = class_sets_from_labels(labels_of(COUNTS), len(COUNTS))
    rule = build_rule(name)
    for form in rule.forms:
        expected = rule.order(sets, form=form).expected(0)
        per_class = expected[np.searchsorted(sets.classes, np.arange(len(COUNTS)))]
        assert (np.diff(per_class[np.argsort(-COUNTS)]) >= -1e-12).all(), form


@pytest.mark.parametrize("form", ["repeat", "draw"])
def test_progressive_moves_from_the_first_rule_to_the_second(form):
    sets = class_sets_from_labels(labels_of([60, 9, 3]), 3)
    params = {"start": "sqrt", "end": "balanced", "epochs": 5}
    params |= {"start_params": {"threshold": 0.3}, "end_params": {"cap": 6.0}}
    mixed = build_rule("progressive", params).order(sets, form=form)
    first = build_rule("sqrt", {"threshold": 0.3}).order(sets, form=form).expected(0)
    last = build_rule("balanced", {"cap": 6.0}).order(sets, form=form).expected(0)
    for epoch in range(7):
        share = min(epoch / 4, 1)
        # Factors are float32.
        expected = (1 - share) * first + share * last
        np.testing.assert_allclose(mixed.expected(epoch), expected, rtol=1e-6)


def test_progressive_takes_its_epochs_from_the_length_of_training():
    sets = class_sets_from_labels(labels_of([60, 9, 3]), 3)
    rule = build_rule("progressive")
    order = rule.order(sets, form="draw", total_images=10 * 72)
    np.testing.assert_allclose(
        order.expected(9), build_rule("balanced").order(sets, form="draw").expected(0)
    )
    assert order.expected(8)[0] > order.expected(9)[0]
    # A training that is shorter than an epoch still comes to the second rule.
    assert rule.order(sets, form="repeat", total_images=9).expected(1)[-1] == 20
    # Repeated images make epochs longer: 72 in the first, three times 60 in the last.
    order = rule.order(sets, form="repeat", total_images=5 * (72 + 180) // 2)
    assert order.expected(4)[-1] == 20 > order.expected(3)[-1]
    with pytest.raises(ConfigError, match="progressive needs `epochs`.*SAMPLER.PARAMS"):
        rule.order(sets, form="draw")


WRONG = [
    ("cbne", {}, "'cbne'.*SAMPLER.RULE.*Did you mean 'cben'.*class_aware"),
    ("cben", {"beta": 0.9}, "'beta'.*SAMPLER.PARAMS.*a, b, cap"),
    ("cben", {"b": 0.1}, "a=0.9999 and b=0.1 .*exceed 1"),
    ("sqrt", {"threshold": 0}, r"threshold=0 .*\(0, 1\]"),
    ("sqrt", {"threshold": math.nan}, "threshold=nan"),
    ("sqrt", {"threshold": 1.5}, "threshold=1.5"),
    ("sqrt", {"threshold": "abc"}, "threshold='abc' .*a number"),
    ("sqrt", {"threshold": True}, "threshold=True .*a number"),
    ("class_aware", {"k": "abc"}, "k='abc' .*a number"),
    ("class_aware", {"k": 10**20}, "k=1.* to 10000"),
    ("progressive", {"end_params": 3}, "end_params .*{name: value}, got 3"),
    ("progressive", {"start": [1]}, r"start=\[1\] .*a text"),
    ("progressive", {"end": "cbn"}, "'cbn' in DATALOADER.LT.SAMPLER.PARAMS end.*'cben'"),
    ("progressive", {"end": "cben", "end_params": {"cap": 0.1}}, "cap=0.1 in .*end_params"),
    ("progressive", {"epochs": 1}, "epochs=1 .*from 2"),
    ("power", {"exponent": -1}, r"exponent=-1 .*\[0, 4\]"),
    ("effective", {"beta": 1.1}, r"beta=1.1 .*\[0, 1\]"),
    ("balanced", {"cap": 0.5}, "cap=0.5 .*at least 1"),
    ("class_aware", {"k": 0}, "k=0 .*from 1"),
    ("class_aware", {"k": 1.5}, "k=1.5"),
    ("progressive", {"epochs": -2}, "epochs=-2"),
    ("progressive", {"end": "class_aware"}, "class_aware .*cannot be mixed"),
    ("progressive", {"start": "balansed"}, "'balansed'.*balanced"),
    ("progressive", {"end_params": {"gamma": 1}}, "'gamma'"),
]


@pytest.mark.parametrize("name,params,message", WRONG)
def test_wrong_rules_and_parameters_are_named(name, params, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        build_rule(name, params)


def test_forms_that_a_rule_has_not_and_empty_sets_are_errors():
    sets = class_sets_from_labels([0, 1], 2)
    with pytest.raises(ConfigError, match="FORM is 'repeat'.*class_aware has draw"):
        build_rule("class_aware").order(sets, form="repeat")
    with pytest.raises(ConfigError, match="FORM is 'reapeat'.*repeat, draw"):
        build_rule("sqrt").order(sets, form="reapeat")
    with pytest.raises(DataError, match="no image to sample"):
        build_rule("sqrt").order(class_sets_from_labels([], 3))
    with pytest.raises(DataError, match="no image holds a class"):
        build_rule("class_aware").order(sets_with([], [], num_classes=2), form="draw")


def test_every_parameter_has_a_default_that_the_rule_takes():
    sets = class_sets_from_labels(labels_of([9, 2]), 2)
    for name in SAMPLING_RULES:
        given, plain = build_rule(name, rule_parameters(name)), build_rule(name)
        for form in plain.forms:
            a, b = (r.order(sets, form=form, total_images=99).expected(1) for r in (given, plain))
            np.testing.assert_array_equal(a, b)


def test_messages_name_where_the_parameters_are_from():
    with pytest.raises(ConfigError, match="cap=0.5 in --rules must"):
        build_rule("cben", {"cap": 0.5}, key="--rules")
    with pytest.raises(ConfigError, match="'cbne' in --rules"):
        build_rule("cbne", name_key="--rules")


def test_an_epoch_without_end_is_refused():
    sets = class_sets_from_labels(labels_of([100_000, 1]), 2)
    rule = build_rule("power", {"threshold": 1.0, "exponent": 4.0})
    with pytest.raises(ConfigError, match="power would repeat 100001 images 1e[+]20 times.*`cap`"):
        rule.image_factors(sets)


def sets_like_lvis():
    """Class sizes like LVIS's: 337 classes in 1-10 images, 461 in up to 100, 405 in up to 1,950."""
    rng = np.random.default_rng(0)
    edges = [(1, 11, 337), (11, 101, 461), (101, 1950, 405)]
    counts = np.concatenate([np.exp(rng.uniform(*np.log(e[:2]), e[2])).astype(int) for e in edges])
    share = rng.gamma(1.2, 1, 100_170)  # crowded and empty scenes
    images = rng.choice(len(share), counts.sum(), p=share / share.sum())
    _, images = np.unique(images, return_inverse=True)
    return class_sets_from_pairs(images, labels_of(counts), images.max() + 1, len(counts))


def test_the_reason_for_the_default_cap():
    """Stands at ``DEFAULT_CAP``."""
    sets = sets_like_lvis()
    rare = sets.image_counts() <= 10

    def of(rule):
        factors = rule.image_factors(sets)
        images = expected_per_class(sets, factors)
        return factors.max() / factors.mean(), images[rare].sum() / images.sum()

    usual, low, none = (build_rule("cben", params) for params in ({}, {"cap": 10}, {"cap": 0}))
    assert of(usual)[0] == pytest.approx(7, abs=0.5)
    assert of(build_rule("sqrt"))[0] == pytest.approx(7.7, abs=0.5)
    natural = sets.image_counts()[rare].sum() / len(sets.classes)
    # With 10 the share of the rare classes grows by less than a twentieth of what no cap gives.
    assert of(low)[1] - natural < (of(none)[1] - natural) / 20
