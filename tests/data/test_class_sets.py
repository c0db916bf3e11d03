"""Class sets against plain loops over lists."""

import numpy as np
import pytest

from lt_det.data.class_sets import (
    ClassSets,
    class_sets_from_labels,
    class_sets_from_pairs,
    instances_of_pairs,
)
from lt_det.data.records import ListRecords
from lt_det.errors import DataError

# Images without classes first, in the middle (two in a row), last, everywhere, nowhere.
LAYOUTS = {
    "first": [[], [0, 3], [1]],
    "middle": [[2], [], [], [0, 1, 3]],
    "last": [[1, 2], [3], []],
    "around": [[], [], [2], [], []],
    "all": [[], [], []],
    "none": [[0], [3, 1], [2]],
    "no image": [],
}
layouts = pytest.mark.parametrize("images", LAYOUTS.values(), ids=LAYOUTS)


def sets_of(images, num_classes=4):
    pairs = [(i, c) for i, classes in enumerate(images) for c in classes]
    index, classes = zip(*pairs, strict=True) if pairs else ((), ())
    return class_sets_from_pairs(index, classes, len(images), num_classes)


def lists(sets):
    return [sets[i].tolist() for i in range(len(sets))]


def random_images(seed, number=60, num_classes=9):
    rng = np.random.default_rng(seed)
    return [
        rng.choice(num_classes, rng.integers(0, 4), replace=False).tolist() for _ in range(number)
    ]


# ---- making ----------------------------------------------------------------------------------


@layouts
def test_sets_are_ascending_lists_per_image(images):
    sets = sets_of(images)
    assert lists(sets) == [sorted(image) for image in images]
    assert sets.sizes.tolist() == [len(image) for image in images]
    assert sets.image_of_pair().tolist() == [i for i, image in enumerate(images) for _ in image]
    assert sets.offsets.dtype == sets.classes.dtype == np.int64


@pytest.mark.parametrize("seed", range(3))
def test_pairs_may_come_in_any_order_and_several_times(seed):
    images = random_images(seed)
    pairs = np.array([(i, c) for i, image in enumerate(images) for c in image])
    rng = np.random.default_rng(seed)
    mixed = pairs[rng.integers(0, len(pairs), 3 * len(pairs))]
    mixed = rng.permutation(np.concatenate([mixed, pairs]))
    sets = class_sets_from_pairs(mixed[:, 0], mixed[:, 1], len(images), 9)
    assert lists(sets) == [sorted(image) for image in images]


@pytest.mark.parametrize("number", [1, 2, 3, 1000])
def test_class_and_image_are_told_apart_for_any_number_of_classes(number):
    sets = class_sets_from_pairs([2, 0, 2], [number - 1, 0, 0], 4, number)
    assert lists(sets) == [[0], [], sorted({0, number - 1}), []]


def test_one_label_per_image():
    sets = class_sets_from_labels([2, 0, 2], 4)
    assert lists(sets) == [[2], [0], [2]]
    assert sets.image_counts().tolist() == [1, 0, 2, 0]


def test_records_with_crowds_repeats_and_nothing():
    records = [
        {"annotations": [{"category_id": 2}, {"category_id": 0}, {"category_id": 2}]},
        {},
        {"annotations": []},
        {"annotations": [{"category_id": 1, "iscrowd": 1}, {"category_id": 3, "iscrowd": 0}]},
    ]
    records = ListRecords(records)
    sets = records.class_sets(4)
    assert lists(sets) == [[0, 2], [], [], [3]]
    assert instances_of_pairs(*records.pairs(), sets).tolist() == [1, 2, 1]


@pytest.mark.parametrize("seed", range(3))
def test_instances_of_pairs_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, 9, rng.integers(0, 8)).tolist() for _ in range(40)]
    images = np.repeat(np.arange(40), [len(image) for image in drawn])
    classes = np.array([c for image in drawn for c in image])
    sets = class_sets_from_pairs(images, classes, 40, 9)
    expected = [image.count(c) for image in drawn for c in sorted(set(image))]
    assert instances_of_pairs(images, classes, sets).tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_image_counts(seed):
    images = random_images(seed)
    expected = [sum(c in image for image in images) for c in range(9)]
    assert sets_of(images, 9).image_counts().tolist() == expected


@pytest.mark.parametrize(
    "images, classes, message",
    [
        ([0, 3], [0, 0], r"image index 3 \(entry 1\) is not in 0..2"),
        ([-1], [0], r"image index -1 \(entry 0\) is not in 0..2"),
        ([0, 0, 1], [0, 1, 4], r"class id 4 \(entry 2\) is not in 0..3"),
        ([0], [-2], r"class id -2 \(entry 0\) is not in 0..3"),
    ],
)
def test_pairs_out_of_range_are_named(images, classes, message):
    with pytest.raises(DataError, match=message):
        class_sets_from_pairs(images, classes, 3, 4)


def test_labels_and_records_out_of_range_are_named():
    with pytest.raises(DataError, match=r"label 4 \(entry 1\) is not in 0..3"):
        class_sets_from_labels([0, 4], 4)
    record = {"file_name": "b.png", "image_id": 7, "annotations": [{"category_id": 4}]}
    with pytest.raises(DataError, match=r"category id 4 of image b.png \(image id 7\)"):
        ListRecords([{}, record]).class_sets(4)


# ---- values of images ------------------------------------------------------------------------


@layouts
def test_largest_against_a_loop(images):
    values = np.array([0.5, -2.0, 7.0, 1.25])
    sets = sets_of(images)
    largest = [max(values[c] for c in image) if image else -9.0 for image in images]
    assert sets.largest(values, -9.0).tolist() == largest


@pytest.mark.parametrize("seed", range(5))
def test_largest_of_random_sets(seed):
    images, values = random_images(seed), np.random.default_rng(seed).normal(size=9)
    sets = sets_of(images, 9)
    expected = [max((values[c] for c in image), default=3.0) for image in images]
    assert sets.largest(values, 3.0).tolist() == expected


def test_largest_keeps_the_type_of_the_values():
    sets = sets_of([[], [1]])
    assert sets.largest(np.array([1, 2, 3, 4], dtype=np.float32), 1).dtype == np.float32


@pytest.mark.parametrize("values", [np.ones(3), np.ones(5), np.ones((4, 1)), 1.0])
def test_values_must_be_one_per_class(values):
    with pytest.raises(ValueError, match="values for 4 classes"):
        sets_of([[0]]).largest(values, 0)


# ---- selecting -------------------------------------------------------------------------------


@layouts
def test_select_takes_images_in_any_order_and_again(images):
    sets = sets_of(images)
    index = np.random.default_rng(0).integers(0, len(images), 11) if images else np.arange(0)
    chosen = sets.select(index)
    assert lists(chosen) == [sorted(images[i]) for i in index]
    assert chosen.num_classes == 4
    assert len(sets.select([])) == 0


def test_length_is_the_number_of_images():
    assert len(ClassSets(np.array([0, 0, 2]), np.array([0, 1]), 2)) == 2
