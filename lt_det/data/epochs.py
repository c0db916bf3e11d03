"""What one pass over the training images consists of.

An epoch order says how often each image comes in an epoch, on average, and draws the list of
one epoch. All randomness comes from the generator it is given.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lt_det.data.class_sets import ClassSets

# Epoch (from 0) -> (N,) factors or weights.
PerEpoch = Callable[[int], np.ndarray]


class EpochOrder:
    """Base of the orders below.

    Attributes:
        num_images: N.
    """

    num_images: int

    def expected(self, epoch: int) -> np.ndarray:
        """(N,) float64, how often each image comes in that epoch, on average."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, epoch: int) -> np.ndarray:
        """(any,) int64 image indices of that epoch, in order."""
        raise NotImplementedError


class RepeatOrder(EpochOrder):
    """Every image comes as often as its factor says; fractions are rounded by chance.

    Args:
        factors: epoch -> (N,) float32 >= 0.
        num_images: N.
    """

    def __init__(self, factors: PerEpoch, num_images: int):
        self.factors, self.num_images = factors, num_images

    def expected(self, epoch: int) -> np.ndarray:
        """The factors."""
        return self.factors(epoch).astype(np.float64)

    def draw(self, rng: np.random.Generator, epoch: int) -> np.ndarray:
        """Rounded anew in each epoch, then shuffled."""
        uniforms = rng.random(self.num_images, dtype=np.float32)
        return rng.permutation(repeat_images(self.factors(epoch), uniforms))


def repeat_images(factors: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Image i repeated floor(r_i) times, and once more if ``u_i < r_i - floor(r_i)``.

    Args:
        factors: (N,) float32 >= 0.
        uniforms: (N,) float32 from [0, 1).

    Returns:
        (any,) int64 image indices, ascending; image i comes r_i times on average.
    """
    whole = np.floor(factors)
    repeats = whole + (uniforms < factors - whole)
    return np.repeat(np.arange(len(factors)), repeats.astype(np.int64))


class DrawOrder(EpochOrder):
    """N draws with replacement, each image with a probability in proportion to its weight.

    Args:
        weights: epoch -> (N,) float64 >= 0, not all zero.
        num_images: N.
    """

    def __init__(self, weights: PerEpoch, num_images: int):
        self.weights, self.num_images = weights, num_images

    def probabilities(self, epoch: int) -> np.ndarray:
        """(N,) float64, sum 1."""
        weights = self.weights(epoch)
        return weights / weights.sum()

    def expected(self, epoch: int) -> np.ndarray:
        """N times the probability."""
        return self.num_images * self.probabilities(epoch)

    def draw(self, rng: np.random.Generator, epoch: int) -> np.ndarray:
        """As above."""
        edges = np.cumsum(self.probabilities(epoch))
        # Draws are below 1, but rounding may leave the last edge below a draw. Scaled to it, a
        # draw cannot pass the last image, nor land on trailing images of weight zero.
        draws = rng.random(self.num_images) * edges[-1]
        return np.searchsorted(edges, draws, side="right").astype(np.int64)


class ClassAwareOrder(EpochOrder):
    """Classes in turn, `images_per_class` images of each, every class's images in turn.

    Args:
        sets: classes of each image; images without a class never come.
        images_per_class: consecutive images of a drawn class.
        length: images of an epoch; N unless given.
    """

    def __init__(self, sets: ClassSets, images_per_class: int = 1, length: int | None = None):
        self.num_images, self.images_per_class = len(sets), images_per_class
        self.length = len(sets) if length is None else length
        # Images class by class; classes without an image have no place in the turn.
        self.images = sets.image_of_pair()[_stable_order(sets.classes, sets.num_classes)]
        counts = sets.image_counts()
        self.present = np.flatnonzero(counts)
        self.counts = counts[self.present]

    def expected(self, epoch: int) -> np.ndarray:
        """An equal share of the epoch for each class, split evenly over its images."""
        share = self.length / max(len(self.present), 1)
        weights = np.repeat(share / self.counts, self.counts)
        return np.bincount(self.images, weights, minlength=self.num_images)

    def draw(self, rng: np.random.Generator, epoch: int) -> np.ndarray:
        """Each turn of the classes, and each turn of a class's images, in a new random order."""
        number = len(self.present)
        turns = -(-self.length // self.images_per_class)  # classes to draw, rounded up
        cycles = rng.permuted(np.tile(np.arange(number), (-(-turns // number), 1)), axis=1)
        classes = cycles.ravel()[:turns]
        draws = np.bincount(classes, minlength=number) * self.images_per_class
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        rounds = -(-draws // self.counts)
        # One row per (class, round, image), sorted by the first two and by chance.
        block = np.repeat(np.arange(number), rounds * self.counts)
        rank = _rank_in_run(rounds * self.counts)
        key = np.lexsort((rng.random(len(block)), rank // self.counts[block], block))
        orders = self.images[(starts[block] + rank % self.counts[block])[key]]
        sequence = class_aware_images(classes, self.images_per_class, orders, rounds * self.counts)
        return sequence[: self.length]


def class_aware_images(
    classes: np.ndarray, images_per_class: int, orders: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Hand out each class's images in their order, as its turns come.

    Source: class-aware sampling as in facebookresearch/classifier-balancing.

    Args:
        classes: (T,) int64, the class of each turn.
        images_per_class: k, consecutive images of a turn.
        orders: (sum of sizes,) int64 image indices: those of class 0 in the order in which they
            are wanted, those of class 1, ...
        sizes: (C,) int64, how many of `orders` belong to each class; at least k times the turns
            of the class.

    Returns:
        (T k,) int64 image indices.
    """
    sequence = np.repeat(classes, images_per_class)
    by_class = _stable_order(sequence, len(sizes))
    rank = np.empty_like(by_class)
    rank[by_class] = _rank_in_run(np.bincount(sequence, minlength=len(sizes)))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return orders[starts[sequence] + rank]


def _stable_order(values: np.ndarray, number: int) -> np.ndarray:
    """Stable argsort of ints 0..number-1; numpy sorts 16-bit ones by radix, ten times as fast."""
    return np.argsort(values.astype(np.uint16) if number <= 2**16 else values, kind="stable")


def _rank_in_run(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ..., lengths[0] - 1, 0, 1, ..., lengths[1] - 1, ..."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(starts, lengths)
