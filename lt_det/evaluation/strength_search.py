"""The strength of a post-hoc calibration, found on some images and reported on others.

A task hands over its results as :class:`Trials`: a result record for every strength that is tried,
on the images for tuning and on those for reporting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lt_det.errors import ConfigError, DataError
from lt_det.evaluation.bootstrap import Difference, metric_name, paired_bootstrap
from lt_det.evaluation.per_image import PerImage
from lt_det.evaluation.results import metric
from lt_det.registry import unknown_name

TUNING, REPORTING = PARTS = ("tuning", "reporting")
# What a strength is chosen by, by task of a result record.
DEFAULT_METRICS = {
    "instance": "bbox/AP",
    "sem_seg": "sem_seg/mIoU",
    "classification": "classification/mean_class",
}


class Trials(Protocol):
    """Results of one method on two parts of the images.

    Attributes:
        strengths: (S,) that were tried, ascending, the first is 0.
        num_images: images of each part.
    """

    strengths: Sequence[float]
    num_images: Mapping[str, int]

    def record(self, k: int, part: str) -> dict:
        """Result record of strength k on the images of `part`, without its "run" part."""
        ...

    def images(self, k: int) -> list[PerImage]:
        """What each image for reporting contributes to the record of strength k."""
        ...


@dataclass
class Found:
    """What a search has found.

    Attributes:
        best: index of the strength.
        values: (S,) of the metric on the images for tuning.
        records: part -> {"before", "after"}: records without calibration and with the strength.
    """

    best: int
    values: list[float]
    records: dict[str, dict[str, dict]]


def halves(num_images: int, seed: int) -> np.ndarray:
    """(N,) bool: True = for tuning, half of the images by chance, rounded down.

    Raises:
        DataError: fewer than two images.
    """
    if num_images < 2:
        raise DataError(f"{num_images} images cannot be halved for tuning and reporting")
    chosen = np.zeros(num_images, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(num_images)[: num_images // 2]] = True
    return chosen


def search(trials: Trials, name: str) -> Found:
    """The strength with the highest metric on the images for tuning; of equals the smallest.

    Args:
        trials: of one method.
        name: "<part>/<metric>" of the records.

    Raises:
        ConfigError: the records have no such metric; theirs are listed.
        DataError: it has no value at any strength.
    """
    records = [trials.record(k, TUNING) for k in range(len(trials.strengths))]
    known = [f"{part}/{key}" for part, found in records[0]["metrics"].items() for key in found]
    if name not in known:
        raise ConfigError(unknown_name("metric", name, known, "--metric"))
    values = [metric(record, name) for record in records]
    if np.isnan(values).all():
        raise DataError(f"{name} has no value on the {trials.num_images[TUNING]} images for tuning")
    best = int(np.nanargmax(values))
    reported = [trials.record(k, REPORTING) for k in (0, best)]
    return Found(
        best,
        values,
        {
            TUNING: {"before": records[0], "after": records[best]},
            REPORTING: {"before": reported[0], "after": reported[1]},
        },
    )


def differences(
    trials: Trials, k: int, groups: Sequence[str] | None, resamples: int = 1000
) -> dict[str, Difference]:
    """What strength k changes on the images for reporting, with intervals over these images.

    See :func:`~lt_det.evaluation.bootstrap.paired_bootstrap`. The strength must not have been
    chosen on these images.

    Args:
        trials: of one method.
        k: of the strength.
        groups: (C,) of the classes; None: there are none.
        resamples: of the images.

    Returns:
        "<part>/<metric>" -> strength k minus strength 0, in percent points.
    """
    found = {}
    for before, after in zip(trials.images(0), trials.images(k), strict=True):
        compared = paired_bootstrap(before, after, groups, resamples=resamples).groups
        for group, difference in compared.items():
            found[f"{before.part}/{metric_name(before.part, group)}"] = difference
    return found


def strength_grid(strengths: Sequence[float]) -> list[float]:
    """Ascending, each once, with 0.

    Raises:
        ConfigError: a strength that is no number of at least 0.
    """
    bad = [s for s in strengths if not 0 <= s < float("inf")]
    if bad:
        raise ConfigError(f"strength {bad[0]}: a strength is a number of at least 0")
    return sorted({0.0, *map(float, strengths)})


@dataclass
class Choice:
    """Images of one or two sets for the two parts.

    Attributes:
        sets: part -> name of the data set.
        places: part -> (N,) places of the images in it.
    """

    sets: dict[str, str]
    places: dict[str, np.ndarray]


def choose_images(
    sets: Mapping[str, str], num_images: Mapping[str, int], *, limit: int = 0, seed: int = 0
) -> Choice:
    """Halves of one set by chance, or all of two sets.

    Args:
        sets: part -> data set.
        num_images: part -> images of its set; 0 = the part takes none, and the other all.
        limit: take no more of each set, by chance; 0 = all.
        seed: of what is left to chance.

    Raises:
        DataError: fewer than two images to halve.
    """
    rng = np.random.default_rng(seed)
    places = {p: np.sort(rng.permutation(n)[: limit or n]) for p, n in num_images.items()}
    if sets[TUNING] == sets[REPORTING] and num_images[TUNING]:
        whole = places[REPORTING]
        first = halves(len(whole), seed)
        places = {TUNING: whole[first], REPORTING: whole[~first]}
    return Choice(dict(sets), places)
