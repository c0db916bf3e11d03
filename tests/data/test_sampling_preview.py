"""What sampling rules do, in expected values: against counts by hand and against drawing."""

import json

import numpy as np
import pytest

from lt_det.data.class_sets import class_sets_from_labels, class_sets_from_pairs
from lt_det.data.examine import examine
from lt_det.data.rules import SAMPLING_RULES, build_rule
from lt_det.data.sampling_preview import (
    RuleSpec,
    expected_per_class,
    parse_rule,
    preview_rule,
    preview_rules,
    preview_tables,
)
from lt_det.errors import ConfigError
from tests.data.small_sets import annotation, random_set, write_set


@pytest.fixture
def single(tmp_path):
    """A list of 160, 40 and 10 images of classes 0, 1 and 2; class 3 of 4 names has none."""
    path = tmp_path / "list.txt"
    labels = np.repeat([0, 1, 2], [160, 40, 10])
    path.write_text("".join(f"{i}.jpg {k}\n" for i, k in enumerate(labels)))
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    return examine(path, class_file=tmp_path / "names.txt", cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def several(tmp_path):
    """12 images with several of 9 classes and several instances each."""
    path, _ = write_set(tmp_path, random_set(3))
    return examine(path, cache_dir=str(tmp_path / "cache"))


def preview(found, text, **options):
    return preview_rule(found, parse_rule(text, **options))


# ---- expected values -------------------------------------------------------------------------


def test_expected_counts_by_hand():
    # Image 0 holds classes 0 and 2, image 1 nothing, image 2 class 2.
    sets = class_sets_from_pairs([0, 0, 2], [0, 2, 2], 3, 4)
    repeats = np.array([2.0, 5.0, 0.5])
    assert expected_per_class(sets, repeats).tolist() == [2.0, 0.0, 2.5, 0.0]
    amounts = np.array([3, 1, 4])
    assert expected_per_class(sets, repeats, amounts).tolist() == [6.0, 0.0, 4.0, 0.0]


def test_ones_give_the_counts(several):
    ones = np.ones(12)
    sets, counts = several.class_sets, several.counts
    assert expected_per_class(sets, ones).tolist() == counts.images.tolist()
    instances = expected_per_class(sets, ones, several.amount_of_pair)
    assert instances.tolist() == counts.instances.tolist()


@pytest.mark.parametrize("form", ["repeat", "draw"])
@pytest.mark.parametrize("name", sorted(SAMPLING_RULES))
def test_expected_values_are_means_of_drawn_epochs(several, name, form):
    spec = parse_rule(f"{name}:epochs=5,epoch=2" if name == "progressive" else name, form)
    found = preview_rule(several, spec)
    sets = several.class_sets
    order = build_rule(name, spec.params).order(sets, form=spec.form)
    rng = np.random.default_rng(0)
    drawn = np.stack([np.bincount(order.draw(rng, spec.epoch), minlength=12) for _ in range(3000)])
    mean = drawn.mean(axis=0)
    # 3000 epochs: the standard error of a mean is below 2 % of an epoch's 12 images and more.
    np.testing.assert_allclose(drawn.sum(axis=1).mean(), found["epoch_length"], rtol=0.02)
    np.testing.assert_allclose(expected_per_class(sets, mean), found["expected_images"], rtol=0.1)
    assert mean.max() == pytest.approx(found["most_repeats"], rel=0.1)


# ---- rules -----------------------------------------------------------------------------------


def test_instance_sampling_is_the_data(single):
    found = preview(single, "instance")
    assert found["epoch_length"] == 210 and found["length_ratio"] == found["most_repeats"] == 1
    assert found["expected_images"] == [160, 40, 10, 0]
    assert found["imbalance_factor"] == 16 and found["largest_factor"] == 1


def test_balanced_draws_are_even(single):
    found = preview(single, "balanced:form=draw")
    assert found["expected_images"] == pytest.approx([70, 70, 70, 0])
    assert found["imbalance_factor"] == pytest.approx(1)
    assert found["most_repeats"] == found["largest_factor"] == pytest.approx(7)
    assert found["groups"]["r"]["images"] == pytest.approx(1 / 3)
    # Three classes of four share evenly: (4 - 3) / 4.
    assert found["gini"] == pytest.approx(1 / 4)


def test_square_root_draws_have_the_root_of_the_imbalance(single):
    assert preview(single, "sqrt", form="draw")["imbalance_factor"] == pytest.approx(4)
    assert preview(single, "power:exponent=2", form="draw")["expected_images"][2] > 140


def test_repeats_make_the_epoch_longer_and_the_cap_holds(single):
    found = preview(single, "balanced:cap=0")
    assert found["expected_images"] == pytest.approx([160, 160, 160, 0])
    assert found["epoch_length"] == pytest.approx(480)
    found = preview(single, "balanced:cap=10")
    assert found["expected_images"] == pytest.approx([160, 160, 100, 0])
    assert found["most_repeats"] == found["largest_factor"] == pytest.approx(10)
    assert found["length_ratio"] == pytest.approx(420 / 210)


def test_thresholds_matter_to_repeat_factors(single):
    factors = np.sqrt(0.5 / (np.array([160, 40, 10]) / 210)).clip(min=1)
    found = preview(single, "sqrt:threshold=0.5")
    assert found["expected_images"][:3] == pytest.approx(factors * [160, 40, 10], rel=1e-6)


def test_a_progressive_rule_goes_from_one_to_the_other(single):
    epochs = [
        preview(single, f"progressive:epochs=5,epoch={t}", form="draw")["expected_images"]
        for t in range(5)
    ]
    assert epochs[0] == pytest.approx([160, 40, 10, 0])
    assert epochs[4] == pytest.approx([70, 70, 70, 0])
    assert epochs[2] == pytest.approx(np.mean([epochs[0], epochs[4]], axis=0))


def test_images_are_shared_with_the_other_classes_that_they_hold(tmp_path):
    """A rare class in an image of a frequent one takes it along."""
    data = random_set(0, num_images=3, num_classes=4, num_annotations=0)
    ids = [image["id"] for image in data["images"]]
    pairs = [(ids[0], 1), (ids[1], 1), (ids[2], 1), (ids[2], 2)]
    data["annotations"] = [annotation(k, i, c) for k, (i, c) in enumerate(pairs)]
    found = examine(write_set(tmp_path, data)[0], cache_dir=str(tmp_path / "cache"))
    result = preview(found, "balanced")
    assert result["expected_images"] == [5, 3, 0, 0]
    assert result["epoch_length"] == 5 and result["largest_factor"] == 3


# ---- specs and tables ------------------------------------------------------------------------


def test_specs():
    assert parse_rule("sqrt") == RuleSpec("sqrt", "sqrt", "repeat", 0, {}, "--rules")
    spec = parse_rule("power:exponent=1, threshold=1e-2,form=draw,epoch=3")
    assert (spec.name, spec.form, spec.epoch) == ("power", "draw", 3)
    assert spec.params == {"exponent": 1, "threshold": 0.01}
    assert parse_rule("class_aware").form == "draw"
    assert parse_rule("progressive:start=sqrt").params == {"start": "sqrt"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("sqr", "sampling rule 'sqr'.*--rules.*Did you mean 'sqrt'"),
        ("sqrt:treshold=1", "key of rule sqrt 'treshold'.*--rules.*'threshold'"),
        ("sqrt:0.1", "expected NAME:key=value,..., got '0.1'"),
        ("class_aware:form=repeat", "form 'repeat', but it has draw"),
        ("sqrt:threshold=much", "threshold must be a number, got 'much'"),
        ("balanced:cap=inf", "cap must be a number, got 'inf'"),
        ("sqrt:threshold=", "threshold must be a number, got ''"),
        ("sqrt:form=sideways", "form 'sideways', but it has repeat, draw"),
        ("sqrt:epoch=-1", "epoch -1 is not a whole number"),
        ("sqrt:threshold=1,threshold=2", "key threshold comes twice"),
        ("sqrt:form=draw,form=repeat", "key form comes twice"),
        ("progressive:end_params=3", "end_params has names itself, as in end_params.cap=10"),
        ("progressive:end=cben,end_params.cap=1,end_params.cap=2", "end_params.cap comes twice"),
        ("progressive:end=cben,end_params.gap=1", "'gap' in --rules end_params"),
        ("progressive:epochs.cap=10", "key of rule progressive"),
        ("sqrt:threshold.cap=10", "key of rule sqrt"),
        ("sqrt:epoch=0.5", "epoch 0.5 is not a whole number"),
    ],
)
def test_specs_that_cannot_be_are_named(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_rule(text)


def test_parameters_of_the_rules_of_a_rule(single):
    spec = parse_rule("progressive:epochs=10,end=cben,end_params.cap=10,end_params.a=0.99", "draw")
    expected = {"epochs": 10, "end": "cben", "end_params": {"cap": 10, "a": 0.99}}
    assert spec.params == expected
    order = build_rule("progressive", expected).order(single.class_sets, form="draw")
    last = preview(single, f"{spec.label},epoch=9", form="draw")
    assert last["most_repeats"] == pytest.approx(order.expected(9).max())


def test_values_out_of_range_are_the_rules_business(single):
    with pytest.raises(ConfigError, match="exponent=9 in --rules"):
        preview(single, "power:exponent=9")
    with pytest.raises(ConfigError, match="progressive needs `epochs`"):
        preview(single, "progressive")


def test_instance_sampling_comes_first_and_labels_once(single):
    specs = [parse_rule(text) for text in ("sqrt", "instance", "sqrt", "sqrt:form=draw")]
    previews = preview_rules(single, specs)
    assert [p["label"] for p in previews] == ["instance", "sqrt", "sqrt:form=draw"]
    assert json.loads(json.dumps(previews, allow_nan=False)) == previews


def test_tables(several):
    previews = preview_rules(several, [parse_rule("balanced")])
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in preview_tables(previews).splitlines()
        if line and "---" not in line
    ]
    assert rows[1][:5] == ["instance", "repeat", "12", "1.00", "1.00"]
    shares = rows[3:]
    assert shares[0][2:] == [f"{g} {unit}" for unit in ("images", "instances") for g in "rcf"]
    for row in shares[1:]:
        values = [float(cell.rstrip("% ")) for cell in row[2:]]
        # Six values of one digit each.
        assert sum(values[:3]) == pytest.approx(100, abs=0.2)
        assert sum(values[3:]) == pytest.approx(100, abs=0.2)


def test_one_label_per_image_gives_the_factor_of_its_class():
    sets = class_sets_from_labels([0, 0, 1], 2)
    assert expected_per_class(sets, np.array([1.0, 2.0, 4.0])).tolist() == [3.0, 4.0]
