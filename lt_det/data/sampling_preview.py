"""What a sampling rule does to the class distribution, in expected values, before any training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lt_det.data.class_sets import expected_per_class
from lt_det.data.examine import Examined
from lt_det.data.imbalance import gini, group_shares, imbalance_factor
from lt_det.data.rules import SAMPLING_RULES, build_rule, rule_parameters
from lt_det.errors import ConfigError
from lt_det.evaluation.groups import GROUPS
from lt_det.evaluation.results import markdown
from lt_det.registry import unknown_name


@dataclass(frozen=True)
class RuleSpec:
    """A rule to look at.

    Attributes:
        label: as it was asked for.
        name: of `SAMPLING_RULES`.
        form: "repeat" or "draw".
        epoch: from 0; matters to rules that change from epoch to epoch.
        params: of the rule.
    """

    label: str
    name: str
    form: str
    epoch: int = 0
    params: Mapping[str, object] = field(default_factory=dict)


def parse_rule(text: str, form: str = "repeat") -> RuleSpec:
    """A rule from ``NAME`` or ``NAME:key=value,key=value``.

    Args:
        text: the keys are the parameters of the rule, `form` and `epoch`.
        form: unless the text gives one; a rule that does not have it is taken in its first.

    Raises:
        ConfigError: an unknown rule or key, a form that the rule does not have, an epoch that is
            not a whole number from 0, a part without "=".
    """
    name, _, rest = text.partition(":")
    values = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"rule {text!r}: expected NAME:key=value,..., got {part!r}")
        values[key.strip()] = _value(value.strip())
    if name not in SAMPLING_RULES:
        raise ConfigError(unknown_name("sampling rule", name, SAMPLING_RULES, "--rules"))
    known = {"form": form, "epoch": 0, **rule_parameters(name)}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(unknown_name(f"key of rule {name}", key, known, "--rules"))
        if isinstance(known[key], (int, float)) and isinstance(value, str):
            raise ConfigError(f"rule {text!r}: {key} must be a number, got {value!r}")
    forms = SAMPLING_RULES.get(name).forms
    form = values.pop("form", form if form in forms else forms[0])
    epoch = values.pop("epoch", 0)
    if form not in forms:
        raise ConfigError(f"rule {text!r}: form {form!r}, but it has {', '.join(forms)}")
    if not isinstance(epoch, int) or epoch < 0:
        raise ConfigError(f"rule {text!r}: epoch {epoch!r} is not a whole number from 0")
    return RuleSpec(text, name, form, epoch, values)


def _value(text: str) -> int | float | str:
    """The finite number that `text` is, else `text`."""
    for convert in (int, float):
        try:
            value = convert(text)
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    return text


def preview_rule(found: Examined, spec: RuleSpec) -> dict:
    """What one epoch of a rule holds on average, in plain Python types.

    Returns:
        label, rule, form, epoch, params: of `spec`.
        epoch_length: images in an epoch.
        length_ratio: to the number of images, which is an epoch of instance sampling.
        most_repeats: how often the image comes that comes most often.
        largest_factor: largest ratio, over the classes, of the images in the epoch that hold
            the class to those in the data.
        imbalance_factor, gini: of the images that hold each class.
        groups: {"r", "c", "f": {unit: part, 0..1, of the unit's amounts of all classes}}; a unit
            is "images" and, if the data have it, "instances" or "pixels".
        expected_images: (C,) images in the epoch that hold the class.

    Raises:
        ConfigError, DataError: see the rule.
    """
    sets, counts = found.class_sets, found.counts
    order = build_rule(spec.name, spec.params).order(sets, form=spec.form)
    repeats = order.expected(spec.epoch)
    images = expected_per_class(sets, repeats)
    amounts = {"images": images}
    for unit in found.amounts.keys() - amounts.keys():
        amounts[unit] = expected_per_class(sets, repeats, found.amount_of_pair)
    shares = {unit: group_shares(n, counts.groups) for unit, n in amounts.items()}
    present = counts.images > 0
    return {
        "label": spec.label,
        "rule": spec.name,
        "form": spec.form,
        "epoch": spec.epoch,
        "params": dict(spec.params),
        "epoch_length": float(repeats.sum()),
        "length_ratio": float(repeats.sum() / len(sets)),
        "most_repeats": float(repeats.max()),
        "largest_factor": float((images[present] / counts.images[present]).max()),
        "imbalance_factor": imbalance_factor(images),
        "gini": gini(images),
        "groups": {g: {unit: shares[unit][g] for unit in shares} for g in GROUPS},
        "expected_images": images.tolist(),
    }


def preview_rules(found: Examined, specs: Sequence[RuleSpec]) -> list[dict]:
    """`preview_rule` of instance sampling, which is the data as they are, and of each of `specs`.

    A label that comes again is left out.
    """
    by_label = {"instance": RuleSpec("instance", "instance", "repeat")}
    for spec in specs:
        by_label.setdefault(spec.label, spec)
    return [preview_rule(found, spec) for spec in by_label.values()]


def preview_tables(previews: Sequence[Mapping]) -> str:
    """Two Markdown tables with a row per rule: the epoch, and what the groups have of it."""
    units = list(previews[0]["groups"]["r"])
    epochs = [
        [
            "rule",
            "form",
            "images/epoch",
            "x data",
            "most repeats",
            "largest factor",
            "imbalance",
            "Gini",
        ]
    ]
    shares = [["share of", "", *(f"{g} {unit}" for unit in units for g in GROUPS)]]
    for p in previews:
        epochs.append(
            [
                p["label"],
                p["form"],
                f"{p['epoch_length']:,.0f}",
                f"{p['length_ratio']:.2f}",
                f"{p['most_repeats']:,.2f}",
                f"{p['largest_factor']:,.2f}",
                f"{p['imbalance_factor']:,.1f}",
                f"{p['gini']:.3f}",
            ]
        )
        parts = [f"{100 * p['groups'][g][unit]:.1f} %" for unit in units for g in GROUPS]
        shares.append([p["label"], p["form"], *parts])
    return f"{markdown(epochs, left=2)}\n\n{markdown(shares, left=2)}"
