"""Rare, common and frequent classes.

LVIS (Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019)
groups its classes by the number of training *images* that hold them: rare 1..10,
common 11..100, frequent above. Class-wise results are averaged in these groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lt_det.errors import ConfigError

# In the order of the tables: rare, common, frequent.
GROUPS = ("r", "c", "f")
# What tables and pictures call the groups, by task of a result record. Files hold the letters.
GROUP_WORDS = {
    "instance": {"r": "rare", "c": "common", "f": "frequent"},
    "classification": {"r": "few", "c": "medium", "f": "many"},
    "sem_seg": {"r": "tail", "c": "common", "f": "head"},
}
BORDERS_KEY = "DATASETS.LT.GROUP_BORDERS"


def groups_from_counts(
    image_counts: Sequence[int], borders: Sequence[int] = (10, 100)
) -> list[str]:
    """The group of each class.

    Args:
        image_counts: (C,) ints >= 0, training images that hold the class.
        borders: the last count of "r" and the last count of "c".

    Returns:
        C letters: "r" up to the first border, "c" up to the second, "f" above. A class without
        any training image is "r": there is no rarer group.

    Raises:
        ConfigError: `borders` is not two ints with 0 < first < second.
        ValueError: `image_counts` is not one row of whole numbers >= 0.
    """
    low, high = _checked_borders(borders)
    counts = np.asarray(image_counts)
    if counts.ndim != 1:
        raise ValueError(f"image_counts must have one number per class, got shape {counts.shape}")
    # `not >=` rather than `<`, so that NaN is refused as well.
    bad = [i for i, n in enumerate(counts.tolist()) if not n >= 0 or n % 1 != 0]
    if bad:
        raise ValueError(
            f"image_counts must be whole numbers >= 0; class {bad[0]} has {counts[bad[0]]}"
        )
    return [GROUPS[int(n > low) + int(n > high)] for n in counts.tolist()]


def groups_by_rank(amounts: Sequence[float]) -> list[str]:
    """The group of each class by its rank: three groups of as equal a size as there can be.

    Where the number of classes is no multiple of three, "f" and then "c" get one class more.

    Args:
        amounts: (C,) numbers >= 0, such as training pixels or training images.

    Returns:
        C letters: "f" for the classes with the largest amounts (head), "c" (common) and "r"
        (tail) for the others. Of equal amounts the lower class id is the more frequent one.

    Raises:
        ValueError: `amounts` is not one row of numbers >= 0.
    """
    amounts = np.asarray(amounts)
    if amounts.ndim != 1 or not (amounts >= 0).all():
        raise ValueError(f"amounts must be one row of numbers >= 0, got {amounts}")
    # numpy gives the remainder to the first parts.
    thirds = np.array_split(np.argsort(-amounts, kind="stable"), 3)
    groups = np.empty(len(amounts), dtype=object)
    for letter, classes in zip(reversed(GROUPS), thirds, strict=True):
        groups[classes] = letter
    return groups.tolist()


def group_means(values: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """Mean of `values` in each group.

    Args:
        values: (C,) one number per class; NaN = the class has no value and is left out.
        groups: (C,) letters of `GROUPS`.

    Returns:
        {"r": mean, "c": mean, "f": mean}; NaN for a group in which no class has a value.

    Raises:
        ValueError: different lengths, or an unknown letter.
    """
    values = np.asarray(values, dtype=np.float64)
    check_groups(groups, len(values))
    letters = np.asarray(groups, dtype=object)
    means = {}
    for group in GROUPS:
        chosen = values[(letters == group) & ~np.isnan(values)]
        means[group] = float(chosen.mean()) if len(chosen) else float("nan")
    return means


def group_sizes(groups: Sequence[str], values: Sequence[float] | None = None) -> dict[str, int]:
    """Number of classes in each group; with (C,) `values`, of those whose value is not NaN."""
    check_groups(groups, len(groups) if values is None else len(values))
    valid = np.ones(len(groups), dtype=bool) if values is None else ~np.isnan(values)
    counted = [letter for letter, ok in zip(groups, valid, strict=True) if ok]
    return {g: counted.count(g) for g in GROUPS}


def check_groups(groups: Sequence[str], num_classes: int) -> None:
    """Raise ValueError unless `groups` is one of r, c, f for each of `num_classes` classes."""
    if len(groups) != num_classes:
        raise ValueError(f"{len(groups)} groups for {num_classes} classes")
    unknown = sorted({str(g) for g in groups} - set(GROUPS))
    if unknown:
        raise ValueError(f"unknown group {unknown[0]!r}; a group is one of {', '.join(GROUPS)}")


def _checked_borders(borders: Sequence[int]) -> tuple[int, int]:
    wanted = f"{BORDERS_KEY} must be two whole numbers with 0 < first < second, got {borders!r}"
    try:
        low, high = borders
    except (TypeError, ValueError):
        raise ConfigError(wanted) from None
    for border in (low, high):
        if isinstance(border, bool) or not isinstance(border, (int, np.integer)):
            raise ConfigError(wanted)
    if not 0 < low < high:
        raise ConfigError(wanted)
    return int(low), int(high)
