"""What a sampling rule does to the class distribution, in expected values, before any training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lt_det.data.build import sampling_rule
from lt_det.data.class_sets import expected_per_class
from lt_det.data.examine import Examined
from lt_det.data.imbalance import gini, group_shares, imbalance_factor
from lt_det.data.rules import SAMPLING_RULES, build_rule, rule_parameters
from lt_det.data.rules.base import PARAMS_KEY
from lt_det.errors import ConfigError
from lt_det.evaluation.groups import GROUPS
from lt_det.evaluation.results import markdown
from lt_det.registry import unknown_name

RULES_OPTION = "--rules"
# Beyond the last epoch of any training: rules that change have come to their end.
LAST_EPOCH = 10**9
# Training warns of a rule that leaves more than this part of the imbalance factor.
HARDLY = 0.9


@dataclass(frozen=True)
class RuleSpec:
    """A rule to look at.

    Attributes:
        label: as it was asked for.
        name: of `SAMPLING_RULES`.
        form: "repeat" or "draw".
        epoch: from 0; matters to rules that change from epoch to epoch.
        params: of the rule.
        key: where they are from, for messages.
    """

    label: str
    name: str
    form: str
    epoch: int = 0
    params: Mapping[str, object] = field(default_factory=dict)
    key: str = PARAMS_KEY


def parse_rule(text: str, form: str = "repeat") -> RuleSpec:
    """A rule from ``NAME`` or ``NAME:key=value,key=value``.

    Args:
        text: the keys are the parameters of the rule, `form` and `epoch`; of a parameter that has
            names itself, ``end_params.cap``.
        form: unless the text gives one; a rule that does not have it is taken in its first.

    Raises:
        ConfigError: an unknown rule or key, a key that comes twice, a form that the rule does not
            have, an epoch that is not a whole number from 0, a part without "=", a value that
            the rule does not take.
    """
    name, _, rest = text.partition(":")
    if name not in SAMPLING_RULES:
        raise ConfigError(unknown_name("sampling rule", name, SAMPLING_RULES, RULES_OPTION))
    known = {"form": form, "epoch": 0, **rule_parameters(name)}
    values: dict = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ConfigError(f"rule {text!r}: expected NAME:key=value,..., got {part!r}")
        _add(values, key, _value(value), known, text)
    forms = SAMPLING_RULES.get(name).forms
    form = values.pop("form", form if form in forms else forms[0])
    epoch = values.pop("epoch", 0)
    if form not in forms:
        raise ConfigError(f"rule {text!r}: form {form!r}, but it has {', '.join(forms)}")
    if not isinstance(epoch, int) or epoch < 0:
        raise ConfigError(f"rule {text!r}: epoch {epoch!r} is not a whole number from 0")
    build_rule(name, values, key=RULES_OPTION)  # now, rather than when all data are read
    return RuleSpec(text, name, form, epoch, values, RULES_OPTION)


def _add(values: dict, key: str, value, known: Mapping[str, object], text: str) -> None:
    """Add a key of a rule, checked, to `values`; ``a.b`` goes to the dict of ``a``."""
    outer, dot, inner = key.partition(".")
    if outer not in known or (dot and known[outer] is not None):
        name = text.partition(":")[0]
        raise ConfigError(unknown_name(f"key of rule {name}", key, known, RULES_OPTION))
    if known[outer] is None and not inner:
        raise ConfigError(f"rule {text!r}: {outer} has names itself, as in {outer}.cap=10")
    if isinstance(known[outer], (int, float)) and isinstance(value, str):
        raise ConfigError(f"rule {text!r}: {key} must be a number, got {value!r}")
    place, last = (values.setdefault(outer, {}), inner) if dot else (values, key)
    if last in place:
        raise ConfigError(f"rule {text!r}: key {key} comes twice")
    place[last] = value


def configured_rule(cfg) -> RuleSpec | None:
    """The rule that a configuration trains with; None if that is instance sampling.

    Raises:
        ConfigError: unknown sampler.
    """
    name, params, form = sampling_rule(cfg)
    if name == "instance":
        return None
    parts = ",".join(_parameter_texts(params))
    label = f"{name}{':' if parts else ''}{parts} (config)"
    ours = cfg.DATALOADER.SAMPLER_TRAIN == "LongTailSampler"
    key = PARAMS_KEY if ours else "DATALOADER.REPEAT_THRESHOLD"
    return RuleSpec(label, name, form, params=params, key=key)


def _parameter_texts(params: Mapping[str, object], outer: str = "") -> list[str]:
    """``key=value`` of each parameter, as `parse_rule` reads it."""
    texts = []
    for key, value in params.items():
        if isinstance(value, Mapping):
            texts += _parameter_texts(value, f"{outer}{key}.")
        else:
            texts.append(f"{outer}{key}={value}")
    return texts


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


def preview_rule(found: Examined, spec: RuleSpec, total_images: int | None = None) -> dict:
    """What one epoch of a rule holds on average, in plain Python types.

    Args:
        found: the data, as training reads them: see `examine.annotated_only`.
        spec: the rule.
        total_images: that the whole training will see; None: not known, which rules that change
            on the way may not take.

    Returns:
        label, rule, form, epoch, params: of `spec`.
        epoch_length: images in an epoch.
        length_ratio: to the number of images, which is an epoch of instance sampling.
        most_repeats: how often the image comes that comes most often.
        largest_factor: largest ratio, over the classes, of the images in the epoch that hold
            the class to those in the data.
        imbalance_factor, gini: of the images that hold each class.
        final_imbalance_factor: the same of the last epoch, for rules that change.
        groups: {"r", "c", "f": {unit: part, 0..1, of the unit's amounts of all classes}}; a unit
            is "images" and, if the data have it, "instances" or "pixels".
        expected_images: (C,) images in the epoch that hold the class.

    Raises:
        ConfigError, DataError: see the rule.
    """
    sets, counts = found.class_sets, found.counts
    try:
        rule = build_rule(spec.name, spec.params, key=spec.key)
        order = rule.order(sets, form=spec.form, total_images=total_images)
    except ConfigError as error:
        # Rules name the usual key.
        raise ConfigError(str(error).replace(PARAMS_KEY, spec.key)) from None
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
        "final_imbalance_factor": imbalance_factor(
            expected_per_class(sets, order.expected(LAST_EPOCH))
        ),
        "gini": gini(images),
        "groups": {g: {unit: shares[unit][g] for unit in shares} for g in GROUPS},
        "expected_images": images.tolist(),
    }


def preview_rules(
    found: Examined, specs: Sequence[RuleSpec], total_images: int | None = None
) -> list[dict]:
    """`preview_rule` of instance sampling, which is the data as they are, and of each of `specs`.

    A label that comes again is left out.

    Raises:
        ConfigError, DataError: see `preview_rule`.
    """
    by_label = {"instance": RuleSpec("instance", "instance", "repeat")}
    for spec in specs:
        by_label.setdefault(spec.label, spec)
    return [preview_rule(found, spec, total_images) for spec in by_label.values()]


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


def preview_notes(previews: Sequence[Mapping]) -> list[str]:
    """A sentence on each rule that does next to nothing, or that changes from epoch to epoch.

    Args:
        previews: of `preview_rules`, instance sampling first.
    """
    data = previews[0]["imbalance_factor"]
    notes = []
    for p in previews[1:]:
        if p["rule"] == "instance":
            continue
        last = p["final_imbalance_factor"]
        if last > HARDLY * data > 1:
            notes.append(
                f"{p['label']} hardly changes how often classes come: the imbalance factor stays "
                f"at {last:,.1f}, that of the data is {data:,.1f}."
            )
        elif not math.isclose(last, p["imbalance_factor"]):
            notes.append(
                f"{p['label']} changes: shown is epoch {p['epoch']}, in the end the imbalance "
                f"factor is {last:,.1f}."
            )
    return notes
