"""Long-tailed subsets of a balanced set: how many images a class keeps, and which.

The definition that the CIFAR-LT experiments share (``imbalance_cifar.py`` of kaidic/LDAM-DRW,
used unchanged by the repositories that followed), so the same seed gives the same images.
"""

from __future__ import annotations

import math

import numpy as np

from lt_det.errors import ConfigError, DataError

PROFILES = ("exp", "step")
ORDERS = ("label", "count")


def profile(n_max: int, num_classes: int, imbalance: float, kind: str = "exp") -> np.ndarray:
    """Images per class, from the largest class to the smallest.

    With ``rho = 1 / imbalance``::

        exp    n_j = int(n_max * rho ** (j / (C - 1))),  j = 0..C-1
        step   n_j = n_max for the first C // 2 classes, int(n_max * rho) for the rest

    ``int`` cuts off, so the ratio that is reached can be larger than `imbalance`: 500 images and
    200 give 2 in the last class, a ratio of 250.

    Source: kaidic/LDAM-DRW, ``get_img_num_per_cls``. Deviation: with an odd C its step profile
    has one entry too few; here the middle class is a small one. A class without an image is an
    error here.

    Args:
        n_max: images of the largest class.
        num_classes: C, at least 2.
        imbalance: n_max over the size of the smallest class, at least 1.
        kind: "exp" or "step".

    Returns:
        (C,) int64, not increasing.

    Raises:
        ConfigError: a value outside these ranges, or a class that would be left empty.
    """
    if kind not in PROFILES:
        raise ConfigError(f"unknown profile {kind!r}; accepted: {', '.join(PROFILES)}")
    if num_classes < 2:
        raise ConfigError(f"a long tail needs at least 2 classes, got {num_classes}")
    if not (math.isfinite(imbalance) and imbalance >= 1):
        raise ConfigError(f"the imbalance factor must be a number from 1, got {imbalance}")
    if n_max < 1:
        raise ConfigError(f"the largest class must have at least 1 image, got {n_max}")
    # Python's floats in this order of operations: the integer depends on the last bit.
    rho = 1 / imbalance
    if kind == "exp":
        counts = [int(n_max * rho ** (j / (num_classes - 1))) for j in range(num_classes)]
    else:
        head = num_classes // 2
        counts = [n_max] * head + [int(n_max * rho)] * (num_classes - head)
    if counts[-1] < 1:
        raise ConfigError(
            f"{n_max} images in the largest class and an imbalance factor of {imbalance:g} leave "
            f"{counts.count(0)} of {num_classes} classes without an image; lower the factor"
        )
    return np.array(counts, dtype=np.int64)


def assign(sizes: np.ndarray, available: np.ndarray, order: str = "label") -> np.ndarray:
    """Give the sizes of a profile to classes.

    Args:
        sizes: (C,) from `profile`.
        available: (C,) images each class has.
        order: "label": class 0 is the largest, as in the published code; "count": the class with
            the most images is (of a tie, the lower label).

    Returns:
        (C,) int64, images wanted of class 0..C-1.

    Raises:
        ConfigError: unknown order.
    """
    if order not in ORDERS:
        raise ConfigError(f"unknown order {order!r}; accepted: {', '.join(ORDERS)}")
    if order == "label":
        return sizes.copy()
    wanted = np.empty_like(sizes)
    wanted[np.argsort(-available, kind="stable")] = sizes
    return wanted


def select(labels: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Indices of the images that are kept.

    One legacy ``RandomState(seed)``; class by class in ascending order the indices of the class
    are shuffled and the first `counts` of them kept. The result is in that order, classes one
    after the other, as the published data sets are.

    Source: kaidic/LDAM-DRW, ``gen_imbalanced_data``.

    Args:
        labels: (N,) int64, 0..C-1.
        counts: (C,) int64, images wanted of each class.
        seed: 0..2**32 - 1.

    Returns:
        (sum of counts,) int64.

    Raises:
        ConfigError: a seed that numpy does not take.
        DataError: a label outside 0..C-1, or a class with fewer images than wanted.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"the seed must be in 0..{2**32 - 1}, got {seed}")
    outside = labels[(labels < 0) | (labels >= len(counts))]
    if len(outside):
        raise DataError(f"label {outside[0]} is not in 0..{len(counts) - 1}")
    random = np.random.RandomState(seed)
    kept = []
    for label, wanted in enumerate(counts):
        indices = np.flatnonzero(labels == label)
        if len(indices) < wanted:
            raise DataError(
                f"class {label} should keep {wanted} images but has {len(indices)}; lower the "
                "number of images of the largest class"
            )
        random.shuffle(indices)
        kept.append(indices[:wanted])
    return np.concatenate(kept)
