"""What an epoch consists of."""

import random

import numpy as np
import pytest

from lt_det.data.class_sets import class_sets_from_labels, class_sets_from_pairs
from lt_det.data.epochs import (
    ClassAwareOrder,
    DrawOrder,
    RepeatOrder,
    class_aware_images,
    repeat_images,
)
from tests.data.golden import golden_arrays


def rng(seed=0):
    return np.random.default_rng(seed)


def mean_composition(order, epochs=400, epoch=0):
    """How often each image comes in an epoch, averaged."""
    generator = rng()
    drawn = [order.draw(generator, epoch) for _ in range(epochs)]
    return np.bincount(np.concatenate(drawn), minlength=order.num_images) / epochs


@pytest.mark.parametrize("data", golden_arrays("repeat_factors_*"))
def test_rounding_equals_detectron2s(data):
    images = repeat_images(data["v6_repeat_factors"], data["round_uniforms"])
    np.testing.assert_array_equal(images, data["round_indices"])


def test_an_epoch_holds_every_image_floor_or_ceiling_of_its_factor():
    factors = np.array([1, 1.25, 2.5, 3, 0.2], np.float32)
    order = RepeatOrder(lambda epoch: factors, 5)
    for seed in range(50):
        repeats = np.bincount(order.draw(rng(seed), 0), minlength=5)
        assert (np.floor(factors) <= repeats).all() and (repeats <= np.ceil(factors)).all()
    # 400 roundings: the standard deviation of a mean is at most 0.5 / 20 = 0.025.
    np.testing.assert_allclose(mean_composition(order), factors, atol=0.1)
    np.testing.assert_array_equal(order.expected(0), factors.astype(float))


def test_an_epoch_is_shuffled():
    order = RepeatOrder(lambda epoch: np.ones(50, np.float32), 50)
    a, b = order.draw(rng(1), 0), order.draw(rng(2), 0)
    assert sorted(a) == sorted(b) == list(range(50))
    assert not np.array_equal(a, b) and not np.array_equal(a, np.arange(50))


def test_draws_have_the_given_probabilities_and_weight_zero_never_comes():
    weights = np.array([0.0, 3, 1, 0, 2, 0])
    order = DrawOrder(lambda epoch: weights, 6)
    composition = mean_composition(order, epochs=3000)
    assert (composition[weights == 0] == 0).all()
    # 18,000 draws: the standard deviation of a count per epoch is below 0.022.
    np.testing.assert_allclose(composition, 6 * weights / 6, atol=0.1)
    assert order.expected(0).sum() == pytest.approx(6)


def test_orders_may_change_with_the_epoch():
    order = RepeatOrder(lambda epoch: np.array([1, 1 + epoch], np.float32), 2)
    assert len(order.draw(rng(), 0)) == 2 and len(order.draw(rng(), 3)) == 5


class Lazy:
    """Turns of a list, shuffled by Python's generator whenever a new turn begins."""

    def __init__(self, items):
        self.items, self.at = list(items), len(items) - 1
        self.given = []

    def take(self):
        self.at += 1
        if self.at == len(self.items):
            self.at = 0
            random.shuffle(self.items)
        self.given.append(self.items[self.at])
        return self.items[self.at]


@pytest.mark.parametrize("data", golden_arrays("class_aware_sampler_*"))
def test_class_aware_images_equal_the_released_sampler(data):
    """With the turns that the released code takes from Python's generator."""
    k, labels = data["meta"]["num_samples_cls"], data["targets"]
    state = random.getstate()
    random.seed(0)
    classes = Lazy(range(len(data["class_counts"])))
    images = [Lazy(np.flatnonzero(labels == c).tolist()) for c in range(len(classes.items))]
    for _ in range(data["length"] // k):
        lazy = images[classes.take()]
        for _ in range(k):
            lazy.take()
    random.setstate(state)
    ours = class_aware_images(
        np.array(classes.given),
        k,
        np.concatenate([lazy.given for lazy in images]),
        np.array([len(lazy.given) for lazy in images]),
    )
    np.testing.assert_array_equal(ours, data["indices"])


@pytest.mark.parametrize("k", [1, 4])
def test_class_aware_turns(k):
    labels = np.repeat([0, 1, 3], [20, 5, 2])  # class 2 has no image
    order = ClassAwareOrder(class_sets_from_labels(labels, 4), k)
    drawn = order.draw(rng(5), 0)
    assert len(drawn) == 27
    turns = labels[drawn][: 27 // k * k].reshape(-1, k)
    assert (turns == turns[:, :1]).all()
    for cycle in range(len(turns) // 3):
        assert sorted(turns[3 * cycle : 3 * cycle + 3, 0]) == [0, 1, 3]
    for c, number in ((0, 20), (1, 5), (3, 2)):
        own = drawn[labels[drawn] == c]
        for start in range(0, len(own) - number + 1, number):
            assert len(set(own[start : start + number])) == number
    assert not np.array_equal(drawn, order.draw(rng(6), 0))


def test_class_aware_composition_for_images_of_several_classes():
    # Images 0..5; class 0 in 0, 1, 2, 3; class 1 in 3; class 2 in 3, 4. Image 5 holds nothing.
    pairs = np.array([[0, 0], [1, 0], [2, 0], [3, 0], [3, 1], [3, 2], [4, 2]])
    sets = class_sets_from_pairs(pairs[:, 0], pairs[:, 1], 6, 3)
    order = ClassAwareOrder(sets, 1, length=60)
    np.testing.assert_allclose(order.expected(0), [5, 5, 5, 5 + 20 + 10, 10, 0])
    # Whole turns leave no spread at all here: 60 draws are 20 turns of each class.
    np.testing.assert_array_equal(mean_composition(order, epochs=3), order.expected(0))
