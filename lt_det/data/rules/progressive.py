"""From one rule to another in the course of training."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lt_det.data.class_sets import ClassSets
from lt_det.data.epochs import PerEpoch
from lt_det.data.rules.base import PARAMS_KEY, SAMPLING_RULES, SamplingRule, build_rule
from lt_det.errors import ConfigError


@SAMPLING_RULES.register("progressive")
class Progressive(SamplingRule):
    """A mixture of two rules whose weight moves from the first to the second.

    In epoch t of T (from 0) the share of the second is ``t / (T - 1)``, at most 1; what is mixed
    are probabilities in the form "draw" and factors in the form "repeat".

    Source: "progressively-balanced sampling" of Kang et al., ICLR 2020, section 3.2 (instance to
    balanced, in the form "draw").

    Args:
        start: name of the first rule.
        end: name of the second rule.
        epochs: T; 0 = as many as the training has, at least 2.
        start_params: parameters of the first rule.
        end_params: parameters of the second rule.
    """

    def __init__(
        self,
        *,
        start: str = "instance",
        end: str = "balanced",
        epochs: int = 0,
        start_params: Mapping[str, object] | None = None,
        end_params: Mapping[str, object] | None = None,
    ):
        super().__init__(cap=0)
        if not 0 <= epochs < math.inf or epochs != int(epochs) or epochs == 1:
            raise ConfigError(
                f"epochs={epochs} in {PARAMS_KEY} must be a whole number from 2, or 0"
            )
        self.epochs = int(epochs)
        self.rules = tuple(
            build_rule(
                name, params, key=f"{PARAMS_KEY} {which}_params", name_key=f"{PARAMS_KEY} {which}"
            )
            for which, name, params in (("start", start, start_params), ("end", end, end_params))
        )
        for name, rule in zip((start, end), self.rules, strict=True):
            if type(rule).order is not SamplingRule.order or isinstance(rule, Progressive):
                raise ConfigError(f"rule {name} in {PARAMS_KEY} cannot be mixed with another")

    def over_epochs(self, sets: ClassSets, form: str, total_images: int | None) -> PerEpoch:
        """The mixture; see the class.

        Raises:
            ConfigError: no `epochs`, and `total_images` is not known.
        """
        first, second = (rule.over_epochs(sets, form, None)(0) for rule in self.rules)
        if form == "draw":
            first, second = first / first.sum(), second / second.sum()
        epochs = self.epochs or self._epochs_of(total_images, first, second, form)

        def mixture(epoch: int) -> np.ndarray:
            share = min(1.0, epoch / (epochs - 1))
            return (first + share * (second - first)).astype(first.dtype)

        return mixture

    @staticmethod
    def _epochs_of(total: int | None, first: np.ndarray, second: np.ndarray, form: str) -> int:
        if total is None:
            raise ConfigError(f"rule progressive needs `epochs` in {PARAMS_KEY} here")
        # The mean length of an epoch: factors are mixed linearly.
        length = (first.sum() + second.sum()) / 2 if form == "repeat" else len(first)
        return max(2, math.ceil(total / length))
