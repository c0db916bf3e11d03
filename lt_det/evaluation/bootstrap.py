"""Confidence intervals over test images, for a result and for a difference of results.

The bootstrap (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979): as many test
images as there are, drawn with replacement, again and again; the spread of the metric over these
resamples stands for its spread over test sets of this size. Intervals are percentile intervals,
with confidence 0.95 from the 2.5th to the 97.5th percentile of the resamples, moved so that the
mean of the resamples is the value.

They are moved because AP is not the same on average for all sizes of a set: where a class has
few objects, its AP is higher the fewer images without it there are to fire on, and a resample
has fewer different images. Where classes have one object each, the resamples can lie above the
value altogether, while their spread is about right.

What an interval covers and what not:

- It covers the choice of the test images. It does not cover the seed of the training: two runs
  of one recipe may differ beyond it. Give several runs for that, see :func:`paired_bootstrap`.
- In the group mean of a resample a class counts as often as its images are drawn: its weight is
  the number of drawn images that hold it over the number of images that hold it. So a class that
  is not drawn drops out. Without these weights the mean over classes of one image each would vary
  too little, for it would be a mean over those drawn, each once.
- A class that few test images hold has an interval that is too narrow, for its resamples repeat
  those images: with one image it has no width. No verdict is given below `MIN_IMAGES`. Where many
  classes of a group are such classes, the interval of the group is somewhat narrow too, see
  :attr:`Difference.narrow`.
- Percentiles of few images are a little narrow, so that a little more than the expected share of
  classes that differ by chance alone are beyond noise.
- It is about test sets of this size. A set of another size has another AP on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch

from lt_det.errors import DataError
from lt_det.evaluation.classification_metrics import SHOTS
from lt_det.evaluation.groups import GROUPS, check_groups
from lt_det.evaluation.per_image import PerImage
from lt_det.evaluation.sem_seg_metrics import SIZES
from lt_det.evaluation.weighted_ap import WeightSums

# The mean over all classes, among the groups.
ALL = "all"
# By the sign test five images of one opinion have p = 2 / 2^5 = 0.06, six 0.03.
MIN_IMAGES = 6
# From this share of classes with fewer images on, the interval of a group is called narrow: they
# have most of the variance of its mean long before they are most of its classes.
_MANY_FEW = 0.25
# Share of wrong verdicts among those that `Comparison.controlled` gives.
FALSE_DISCOVERY_RATE = 0.05
# Weights of a block of resamples: 16 MB of float32.
_BLOCK = 2**22
_MAX_RESAMPLES_OF_BLOCK = 500
# What the groups are called in the metrics of a record.
_DETECTION = {ALL: "AP", **{letter: f"AP{letter}" for letter in GROUPS}}
_METRICS = {
    "bbox": _DETECTION,
    "segm": _DETECTION,
    "classification": {ALL: "mean_class", **{letter: name for name, letter in SHOTS.items()}},
    "sem_seg": {ALL: "mIoU", **{letter: f"mIoU_{name}" for name, letter in SIZES.items()}},
}


class Interval(NamedTuple):
    """A value in percent and its interval; NaN: no class of the group has a value."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """Of B minus A, in percent points.

    Attributes:
        difference: of the values on the whole test set.
        low, high: its interval.
        beyond_noise: judged, and the interval leaves out zero.
        value_a, value_b: the values, means over the runs of a side.
        judged: at least `MIN_IMAGES` test images hold a class of the group.
        classes: of the group, that some test image holds; 0 where it is no mean over classes.
        few_images: of these classes, those that fewer than `MIN_IMAGES` test images hold.
    """

    difference: float
    low: float
    high: float
    beyond_noise: bool
    value_a: float
    value_b: float
    judged: bool
    classes: int
    few_images: int

    @property
    def narrow(self) -> bool:
        """So many classes have few test images that the interval is somewhat narrow."""
        return self.few_images > 0 and self.few_images >= _MANY_FEW * self.classes


@dataclass
class Comparison:
    """Two sides, B minus A, by group and by class.

    Attributes:
        groups: "all", "r", "c", "f" and metrics that are no mean over classes, e.g. "top1".
        difference, low, high: (C,) percent points, as in :class:`Difference`; NaN: no ground
            truth.
        p_value: (C,) how often so large a difference would be seen if there were none: the
            larger of twice the share of resamples on the other side of zero and that of a normal
            distribution with the standard deviation of the resamples. NaN: not judged.
        images: (C,) int64 test images that hold the class.
        judged: (C,) bool, at least `MIN_IMAGES` of them.
        beyond_noise: (C,) bool, judged, and the interval leaves out zero. Of C judged classes
            that do not differ at all, ``(1 - confidence) * C`` are expected to be so by chance.
        controlled: (C,) bool, those that remain if at most `FALSE_DISCOVERY_RATE` of them may be
            by chance (Benjamini and Hochberg, "Controlling the False Discovery Rate", 1995).
        runs: of A and of B.
    """

    groups: dict[str, Difference]
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    images: np.ndarray
    judged: np.ndarray
    beyond_noise: np.ndarray
    controlled: np.ndarray
    runs: tuple[int, int]


# ---------------------------------------------------------------------------------------------
# One result
# ---------------------------------------------------------------------------------------------


def bootstrap_groups(
    images: PerImage,
    groups: Sequence[str] | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of the mean over all classes and over each group; see the module.

    Args:
        images: what the test images contribute.
        groups: (C,) letters of `GROUPS`; None: there are no groups.
        resamples: how many, at least 2.
        seed: of the resamples; the same seed draws the same images.
        confidence: of the interval, in (0, 1).

    Returns:
        {"all", "r", "c", "f"} -> interval, and metrics that are no mean over classes ("top1").

    Raises:
        ValueError: an argument is out of its range, or there is not one group per class.
    """
    _check_arguments(resamples, confidence)
    values = _means(*_whole(images), groups)
    shares = _drawn_shares(images, resamples, seed)
    drawn = _means(*_resampled(images, resamples, seed), groups, shares)
    return {
        name: Interval(
            float(value[0]), *_ends(value[0], drawn[name], confidence).clip(0, 100).tolist()
        )
        for name, value in values.items()
    }


def record_intervals(
    parts: Sequence[PerImage],
    groups: Sequence[str] | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict:
    """The "intervals" of a result record, see :mod:`lt_det.evaluation.results`.

    Args:
        parts: of one evaluation, e.g. boxes and masks.
        groups: see :func:`bootstrap_groups`.
        resamples: see there.
        seed: see there.
        confidence: see there.

    Returns:
        {"method", "resamples", "seed", "confidence", "metrics": {part: {metric: [low, high]}}}.
    """
    metrics = {}
    for images in parts:
        found = bootstrap_groups(
            images, groups, resamples=resamples, seed=seed, confidence=confidence
        )
        names = _METRICS[images.part]
        metrics[images.part] = {names.get(g, g): [i.low, i.high] for g, i in found.items()}
    return {
        "method": "percentile bootstrap over test images",
        "resamples": resamples,
        "seed": seed,
        "confidence": confidence,
        "metrics": metrics,
    }


def metric_name(part: str, group: str) -> str:
    """What the record calls the result of a group: "APr" for "bbox" and "r"."""
    return _METRICS[part].get(group, group)


# ---------------------------------------------------------------------------------------------
# Two results
# ---------------------------------------------------------------------------------------------


def paired_bootstrap(
    a: PerImage | Sequence[PerImage],
    b: PerImage | Sequence[PerImage],
    groups: Sequence[str] | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Comparison:
    """Difference B - A with intervals; both sides are seen on the same resampled images.

    With several runs (seeds) of a side the value is their mean, and the runs are drawn with
    replacement as the images are, so that the interval covers the training as well. The spread
    of the mean of n runs drawn from n is too small by a factor of ``sqrt((n - 1) / n)``, which
    is made up for. So is that a spread known from few runs may be too small by chance: what the
    runs are off their mean counts t / z times, the quantiles of Student's t with ``n_a + n_b - 2``
    degrees of freedom and of the normal distribution for this confidence, 2.2 times for two runs
    a side and 95 %. With one run on either side that side's training is not covered.

    The p-values of classes are those of a normal distribution with this larger spread. They are
    right about ``1 - confidence``; much smaller ones are too small where there are few runs.

    Args:
        a: run or runs of a side.
        b: the other side.
        groups: see :func:`bootstrap_groups`.
        resamples: see there.
        seed: see there.
        confidence: see there.

    Raises:
        DataError: test images, classes or ground truth differ, or a side has no run.
        ValueError: see :func:`bootstrap_groups`.
    """
    _check_arguments(resamples, confidence)
    sides = [_side(a), _side(b)]
    first = sides[0][0]
    for other in [*sides[0][1:], *sides[1]]:
        check_same_images(first, other)
    draws = np.random.default_rng([seed, 1])  # other numbers than those of the images
    widening = _widening(len(sides[0]) + len(sides[1]) - 2, confidence)
    whole_a, whole_b = (_mean_of_runs([_whole(r) for r in runs], None) for runs in sides)
    drawn_a, drawn_b = (
        _mean_of_runs(
            [_resampled(run, resamples, seed) for run in runs],
            _run_weights(len(runs), resamples, draws, widening),
        )
        for runs in sides
    )
    shares = _drawn_shares(first, resamples, seed)
    values_a, values_b = _means(*whole_a, groups), _means(*whole_b, groups)
    means_a, means_b = (_means(*drawn, groups, shares) for drawn in (drawn_a, drawn_b))
    found = {}
    for name, value in values_a.items():
        own, other = float(value[0]), float(values_b[name][0])
        low, high = _ends(other - own, means_b[name] - means_a[name], confidence).tolist()
        held = _held(first, groups, name)
        beyond = held["judged"] and (low > 0 or high < 0)
        found[name] = Difference(other - own, low, high, beyond, own, other, **held)
    by_class = _class_differences(
        (whole_b[0] - whole_a[0])[:, 0], drawn_b[0] - drawn_a[0], first, confidence
    )
    return Comparison(groups=found, **by_class, runs=(len(sides[0]), len(sides[1])))


def check_same_images(a: PerImage, b: PerImage) -> None:
    """Raise DataError unless two results are of the same images, classes and ground truth."""
    if a.part != b.part:
        raise DataError(f"results of {a.part} and of {b.part} cannot be compared")
    if a.num_classes != b.num_classes:
        raise DataError(f"results of {a.num_classes} and of {b.num_classes} classes")
    if not np.array_equal(a.image_ids, b.image_ids):
        only_a = np.setdiff1d(a.image_ids, b.image_ids)
        only_b = np.setdiff1d(b.image_ids, a.image_ids)
        example = (only_a if len(only_a) else only_b)[:1].tolist()
        raise DataError(
            f"the test images differ: {len(only_a)} are only in the first result and "
            f"{len(only_b)} only in the second, e.g. {example}; a paired comparison needs the same"
        )
    for one, other in ((a.truth_image, b.truth_image), (a.truth_class, b.truth_class)):
        if not np.array_equal(one, other):
            raise DataError("the ground truth differs: other classes in the same test images")


def _side(runs) -> list[PerImage]:
    runs = list(runs) if isinstance(runs, Sequence) else [runs]
    if not runs:
        raise DataError("each side of a comparison needs at least one run")
    return runs


def _run_weights(
    runs: int, resamples: int, draws: np.random.Generator, widening: float
) -> np.ndarray:
    """(runs, B) share of each run in each resample; see :func:`paired_bootstrap`."""
    if runs == 1:
        return np.ones((1, resamples))
    drawn = draws.multinomial(runs, np.full(runs, 1 / runs), size=resamples).T / runs
    return 1 / runs + widening * math.sqrt(runs / (runs - 1)) * (drawn - 1 / runs)


def _widening(freedom: int, confidence: float) -> float:
    """The t / z of :func:`paired_bootstrap`; 1 without degrees of freedom, for one run a side."""
    if freedom == 0:
        return 1.0
    return t_quantile(confidence, freedom) / NormalDist().inv_cdf((1 + confidence) / 2)


def t_quantile(confidence: float, freedom: int) -> float:
    """The t that Student's t with `freedom` degrees of freedom stays below in absolute value.

    With ``t = sqrt(freedom) tan(x)`` the density is proportional to ``cos(x)^(freedom - 1)`` on
    (-pi/2, pi/2), which the trapezoidal rule sums up. To five digits for confidences up to 0.999.

    Args:
        confidence: its probability, in (0, 1).
        freedom: at least 1.
    """
    x = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(x) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(np.interp(confidence, below / below[-1], x))


def _mean_of_runs(values: list[tuple], weights: np.ndarray | None) -> tuple:
    """(C, B) class values and {name: (B,)} of a side; `weights` None: all runs alike."""
    if weights is None:
        weights = np.full((len(values), 1), 1 / len(values))
    classes = sum(w * v for w, (v, _) in zip(weights, values, strict=True))
    overall = {
        name: sum(w * v[name] for w, (_, v) in zip(weights, values, strict=True))
        for name in values[0][1]
    }
    return classes, overall


def _class_differences(
    difference: np.ndarray, drawn: np.ndarray, images: PerImage, confidence: float
) -> dict[str, np.ndarray]:
    """The columns of :class:`Comparison`, from (C,) differences and (C, B) resampled ones."""
    held = _images_of_classes(images)
    low, high = _ends(difference, drawn, confidence).T
    judged = (held >= MIN_IMAGES) & np.isfinite(difference)
    p_value = np.where(judged, _p_values(difference, drawn), np.nan)
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "p_value": p_value,
        "images": held,
        "judged": judged,
        "beyond_noise": judged & ((low > 0) | (high < 0)),
        "controlled": benjamini_hochberg(p_value, FALSE_DISCOVERY_RATE),
    }


def _p_values(difference: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """(C,), of (C,) differences and (C, B) resampled ones; see :class:`Comparison`."""
    valid = np.maximum(np.isfinite(drawn).sum(axis=1), 1)
    deviations = drawn - _mean_of_valid(drawn.T)[:, None]
    moved = deviations + difference[:, None]
    side = np.minimum((moved <= 0).sum(axis=1), (moved >= 0).sum(axis=1))
    spread = np.sqrt(np.nansum(deviations**2, axis=1) / valid)
    # All resamples alike: no chance in a difference, and none needed for no difference.
    certain = np.where(difference == 0, 0.0, np.inf)
    z = np.divide(np.abs(difference), spread, out=certain, where=spread > 0)
    normal = torch.erfc(torch.from_numpy(z / math.sqrt(2))).numpy()
    return np.maximum(np.minimum(2 * side / valid, 1), normal)


def benjamini_hochberg(p_values: np.ndarray, rate: float) -> np.ndarray:
    """(N,) bool, those of (N,) p-values that hold at a false discovery `rate`; NaN: no test."""
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    limits = rate * np.arange(1, len(order) + 1) / max(len(order), 1)
    below = np.flatnonzero(p_values[order] <= limits)
    chosen = np.zeros(len(p_values), dtype=bool)
    if len(below):
        chosen[order[: below[-1] + 1]] = True
    return chosen


# ---------------------------------------------------------------------------------------------
# Resamples
# ---------------------------------------------------------------------------------------------


def resample_weights(num_images: int, resamples: int, seed: int) -> Iterator[torch.Tensor]:
    """How often each image is drawn: (I, b) float32 blocks, `resamples` columns in all.

    Each column is drawn after the one before it, so that the size of the blocks changes nothing.
    """
    draws = np.random.default_rng(seed)
    at_once = min(max(1, _BLOCK // max(num_images, 1)), _MAX_RESAMPLES_OF_BLOCK)
    for start in range(0, resamples, at_once):
        columns = [
            np.bincount(draws.integers(num_images, size=num_images), minlength=num_images)
            for _ in range(min(at_once, resamples - start))
        ]
        block = np.array(columns, dtype=np.float32)
        yield torch.from_numpy(np.ascontiguousarray(block.T))


def _whole(images: PerImage) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(C, 1) class values and {name: (1,)} overall values of the test set itself, in float64."""
    weights = torch.ones(len(images.image_ids), 1, dtype=torch.float64)
    return images.class_values(weights), images.overall_values(weights)


def _resampled(images: PerImage, resamples: int, seed: int):
    """(C, B) class values and {name: (B,)} overall values of the resamples."""
    blocks, overall = [], []
    for weights in resample_weights(len(images.image_ids), resamples, seed):
        blocks.append(images.class_values(weights).astype(np.float32))
        overall.append(images.overall_values(weights))
    names = overall[0]
    return (
        np.concatenate(blocks, axis=1),
        {name: np.concatenate([o[name] for o in overall]) for name in names},
    )


def _drawn_shares(images: PerImage, resamples: int, seed: int) -> np.ndarray:
    """(C, B) drawn images that hold a class over those that hold it; 1: no image holds it."""
    images_of = WeightSums(images.truth_class, images.truth_image, images.num_classes)
    blocks = resample_weights(len(images.image_ids), resamples, seed)
    drawn = np.concatenate([images_of(weights) for weights in blocks], axis=1)
    held = _images_of_classes(images)[:, None]
    return np.divide(drawn, held, out=np.ones_like(drawn), where=held > 0)


def _means(
    values: np.ndarray,
    overall: dict[str, np.ndarray],
    groups: Sequence[str] | None,
    shares: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """{"all", "r", "c", "f": (B,) means of (C, B) values without NaN} and the `overall` ones.

    The classes are weighted with (C, B) `shares`; None: all alike.
    """
    means = {ALL: _mean_of_valid(values, shares)}
    for group, members in _members(groups, len(values)).items():
        own = None if shares is None else shares[members]
        means[group] = _mean_of_valid(values[members], own)
    return {**means, **overall}


def _members(groups: Sequence[str] | None, num_classes: int) -> dict[str, np.ndarray]:
    """{group: (C,) bool}; {} without groups."""
    if groups is None:
        return {}
    check_groups(groups, num_classes)
    letters = np.asarray(groups, dtype=object)
    return {group: letters == group for group in GROUPS}


def _mean_of_valid(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(B,) float64 means of the columns of (N, B) values, without NaN; NaN: nothing else.

    The values are weighted with (N, B) `weights`; None: all alike.
    """
    valid = np.isfinite(values)
    weights = valid if weights is None else np.where(valid, weights, 0)
    counts = weights.sum(axis=0, dtype=np.float64)
    sums = np.nansum(values * weights, axis=0, dtype=np.float64)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _held(images: PerImage, groups: Sequence[str] | None, name: str) -> dict:
    """How many images hold a group, as in :class:`Difference`; other names: all classes."""
    every = np.ones(images.num_classes, dtype=bool)
    means = {ALL: every, **_members(groups, images.num_classes)}
    members = means.get(name, every)
    holding = np.unique(images.truth_image[members[images.truth_class]])
    held = _images_of_classes(images)[members] if name in means else np.zeros(0, dtype=int)
    return {
        "judged": len(holding) >= MIN_IMAGES,
        "classes": int((held > 0).sum()),
        "few_images": int(((held > 0) & (held < MIN_IMAGES)).sum()),
    }


def _images_of_classes(images: PerImage) -> np.ndarray:
    """(C,) int64 test images that hold each class."""
    return np.bincount(images.truth_class, minlength=images.num_classes)


def _ends(value, drawn: np.ndarray, confidence: float) -> np.ndarray:
    """(..., 2) ends of the intervals around (...) values, of (..., B) resamples, without NaN.

    NaN: no resample has a value. See the module.
    """
    tail = (1 - confidence) / 2
    drawn = np.atleast_2d(drawn)
    ends = np.full((len(drawn), 2), np.nan)
    some = np.isfinite(drawn).any(axis=1)
    for side, share in enumerate((tail, 1 - tail)):
        ends[some, side] = np.nanquantile(drawn[some], share, axis=1)
    ends += np.reshape(value - _mean_of_valid(drawn.T), (-1, 1))
    return ends.reshape(*np.shape(value), 2)


def _check_arguments(resamples: int, confidence: float) -> None:
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
