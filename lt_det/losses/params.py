"""Checks of the parameters of a loss. Every one of them refuses NaN."""

from __future__ import annotations

import math


def check_at_least(minimum: float, **params: float) -> None:
    """Raise a ValueError that names the parameters which are below `minimum`."""
    for name, value in params.items():
        if not value >= minimum:
            raise _error(name, value, f"at least {minimum:g}")


def check_at_most(maximum: float, **params: float) -> None:
    """Raise a ValueError that names the parameters which are above `maximum`."""
    for name, value in params.items():
        if not value <= maximum:
            raise _error(name, value, f"at most {maximum:g}")


def check_positive(**params: float) -> None:
    """Raise a ValueError that names the parameters which are not above zero."""
    for name, value in params.items():
        if not value > 0:
            raise _error(name, value, "positive")


def check_finite(**params: float) -> None:
    """Raise a ValueError that names the parameters which are not finite."""
    for name, value in params.items():
        if not math.isfinite(value):
            raise _error(name, value, "finite")


def _error(name: str, value: float, wanted: str) -> ValueError:
    return ValueError(f"{name}={value} in MODEL.LT.LOSS.PARAMS must be {wanted}")
