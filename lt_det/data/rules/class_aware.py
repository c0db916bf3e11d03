"""Class-aware sampling."""

from __future__ import annotations

from lt_det.data.class_sets import ClassSets
from lt_det.data.epochs import ClassAwareOrder, EpochOrder
from lt_det.data.rules.base import PARAMS_KEY, SAMPLING_RULES, SamplingRule
from lt_det.errors import ConfigError, DataError

# More images of one class in a row than any batch has.
MAX_K = 10_000


@SAMPLING_RULES.register("class_aware")
class ClassAware(SamplingRule):
    """Classes in turn, `k` images of each; every class goes through its images in turn.

    Both turns are in a new random order each time. An image of several classes comes in the
    turn of each of them, one without any never.

    Source: facebookresearch/classifier-balancing (cRT with k = 4), also in MiSLAS. Deviation: an
    epoch has N images rather than C n_max, and each epoch begins new turns, so that it depends
    on nothing but the seed and its number.

    Args:
        k: images per drawn class.
    """

    forms = ("draw",)

    def __init__(self, *, k: int = 4):
        super().__init__(cap=0)
        if not 1 <= k <= MAX_K or k != int(k):
            raise ConfigError(f"k={k} in {PARAMS_KEY} must be a whole number from 1 to {MAX_K}")
        self.k = int(k)

    def order(
        self, sets: ClassSets, *, form: str = "draw", total_images: int | None = None
    ) -> EpochOrder:
        """See :class:`lt_det.data.epochs.ClassAwareOrder`.

        Raises:
            ConfigError: a form other than "draw".
            DataError: no image holds a class.
        """
        self.check_form(form)
        if not len(sets.classes):
            raise DataError("rule class_aware: no image holds a class")
        return ClassAwareOrder(sets, self.k)
