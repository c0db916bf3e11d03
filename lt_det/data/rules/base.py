"""The contract of sampling rules, and the registry.

A rule says how often the images of each class are wanted, in one of two forms:

- "repeat": a factor per image. An epoch holds every image that often, fractions rounded by
  chance, so nothing is left out while factors are at least 1. For images with many classes.
- "draw": a weight per image. An epoch is N draws with replacement. The form of the
  classification literature.

An image of several classes takes the largest of their factors or weights; one without any
class counts like one of the most frequent class (factor 1).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import numpy as np

from lt_det.data.class_sets import ClassSets
from lt_det.data.epochs import DrawOrder, EpochOrder, PerEpoch, RepeatOrder
from lt_det.errors import ConfigError, DataError
from lt_det.registry import Registry, unknown_name

RULE_KEY = "DATALOADER.LT.SAMPLER.RULE"
PARAMS_KEY = "DATALOADER.LT.SAMPLER.PARAMS"
FORM_KEY = "DATALOADER.LT.SAMPLER.FORM"

SAMPLING_RULES = Registry("sampling rule", config_key=RULE_KEY)

# A rule that balances completely would repeat the only image of a class more than a thousand
# times an epoch on LVIS, and it would be learnt by heart. With 100, on class sizes like LVIS's
# (337 classes in 1 to 10 images, 461 in up to 100, 405 in up to 1,950), the most repeated image
# comes seven times as often as the average one, which is what repeat-factor sampling with its
# threshold of 0.001 does there; with 10, nearly all that these rules add for rare classes is cut
# off.
DEFAULT_CAP = 100.0


# Images of an epoch, as a multiple of the images there are, beyond which something is wrong.
MAX_EPOCH = 1000


class SamplingRule:
    """From class counts to factors or weights of images.

    A rule overrides :meth:`class_weights`; one that is made for repeating also
    :meth:`class_factors`.

    Args:
        cap: largest factor in the form "repeat"; 0 = none. Ours: the published rules draw, and
            need none. Weights are never capped.

    Attributes:
        forms: those that the rule has.
        name: registered name.
    """

    forms: tuple[str, ...] = ("repeat", "draw")
    name = ""

    def __init__(self, *, cap: float = DEFAULT_CAP):
        if not (cap == 0 or cap >= 1):
            raise ConfigError(f"cap={cap} in {PARAMS_KEY} must be 0 (none) or at least 1")
        self.cap = cap

    def class_weights(self, counts: np.ndarray, num_images: int) -> np.ndarray:
        """Weight of one image of each class.

        Args:
            counts: (C',) int64 >= 1, images that hold each class; only classes that are there.
            num_images: N.

        Returns:
            (C',) float64 > 0; only ratios mean anything.
        """
        raise NotImplementedError

    def class_factors(self, counts: np.ndarray, num_images: int) -> np.ndarray:
        """Repeat factor of each class: the weights, such that the most frequent class has 1.

        Args and shapes as in :meth:`class_weights`.
        """
        weights = self.class_weights(counts, num_images)
        return weights / weights[counts.argmax()]

    def image_factors(self, sets: ClassSets) -> np.ndarray:
        """(N,) float32 repeat factors. An image without classes has 1.

        Raises:
            ConfigError: an epoch would have more than 1000 times as many images as there are.
        """
        counts = sets.image_counts()
        present = counts > 0
        factors = np.ones(sets.num_classes)
        if present.any():
            factors[present] = self.class_factors(counts[present], len(sets))
        if self.cap:
            factors = np.minimum(factors, self.cap)
        values = sets.largest(factors, 1.0)
        if not values.sum() <= MAX_EPOCH * len(sets):
            raise ConfigError(
                f"rule {self.name} would repeat {len(sets)} images {values.sum():.3g} times in an "
                f"epoch, more than {MAX_EPOCH} times each; lower `cap` in {PARAMS_KEY}"
            )
        return values.astype(np.float32)

    def image_weights(self, sets: ClassSets) -> np.ndarray:
        """(N,) float64 weights. An image without classes has the most frequent class's."""
        counts = sets.image_counts()
        present = counts > 0
        if not present.any():
            return np.ones(len(sets))
        weights = np.zeros(sets.num_classes)
        weights[present] = self.class_weights(counts[present], len(sets))
        return sets.largest(weights, weights[counts.argmax()])

    def over_epochs(self, sets: ClassSets, form: str, total_images: int | None) -> PerEpoch:
        """Epoch -> (N,) factors or weights; here the same in every epoch.

        Args:
            sets: classes of each image.
            form: "repeat" or "draw".
            total_images: see :meth:`order`.
        """
        values = self.image_factors(sets) if form == "repeat" else self.image_weights(sets)
        return lambda epoch: values

    def order(
        self, sets: ClassSets, *, form: str = "repeat", total_images: int | None = None
    ) -> EpochOrder:
        """What the epochs of this rule consist of.

        Args:
            sets: classes of each image.
            form: "repeat" or "draw".
            total_images: that the whole training will see, for rules that change on the way.

        Raises:
            ConfigError: the rule has no such form.
            DataError: there is no image.
        """
        self.check_form(form)
        if not len(sets):
            raise DataError("there is no image to sample")
        order = RepeatOrder if form == "repeat" else DrawOrder
        return order(self.over_epochs(sets, form, total_images), len(sets))

    def check_form(self, form: str) -> None:
        """Raise a ConfigError unless the rule has that form."""
        if form not in self.forms:
            raise ConfigError(
                f"{FORM_KEY} is {form!r}; sampling rule {self.name} has {', '.join(self.forms)}"
            )


def rule_parameters(name: str) -> dict[str, object]:
    """The parameters of a registered rule and their defaults.

    Raises:
        ValueError: no rule has that name.
    """
    parameters = inspect.signature(SAMPLING_RULES.get(name)).parameters.values()
    return {p.name: p.default for p in parameters}


def build_rule(
    name: str,
    params: Mapping[str, object] | None = None,
    *,
    key: str = PARAMS_KEY,
    name_key: str = RULE_KEY,
) -> SamplingRule:
    """Build a registered rule.

    Args:
        name: a name of ``SAMPLING_RULES``.
        params: see :func:`rule_parameters`.
        key: where the parameters are from, for messages.
        name_key: where the name is from.

    Raises:
        ConfigError: unknown rule or parameter (the known ones are listed), or a value of another
            type or out of range.
    """
    if not isinstance(name, str) or name not in SAMPLING_RULES:
        raise ConfigError(unknown_name("sampling rule", str(name), SAMPLING_RULES, name_key))
    known = rule_parameters(name)
    params = _checked_mapping(params, "parameters", key)
    for parameter, value in params.items():
        if parameter not in known:
            raise ConfigError(unknown_name(f"parameter of rule {name}", parameter, known, key))
        _check_type(parameter, value, known[parameter], key)
    try:
        rule = SAMPLING_RULES.get(name)(**params)
    except ConfigError as error:
        # Rules name the usual key.
        raise ConfigError(str(error).replace(PARAMS_KEY, key)) from None
    rule.name = name
    return rule


def _checked_mapping(value, what: str, key: str) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} in {key} must be {{name: value}}, got {value!r}")
    return dict(value)


def _check_type(name: str, value: object, default: object, key: str) -> None:
    """A parameter has the kind of its default: a number, a text, or {name: value}."""
    if default is None:
        _checked_mapping(value, name, key)
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise ConfigError(f"{name}={value!r} in {key} must be a text")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name}={value!r} in {key} must be a number")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise a ConfigError unless low <= value <= high (NaN never is)."""
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} in {PARAMS_KEY} must lie in [{low:g}, {high:g}]")
