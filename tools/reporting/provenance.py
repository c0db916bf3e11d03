"""How the runs of tools/report.py were made: protocol, data, seed, versions, configuration."""

from collections.abc import Sequence

import numpy as np
import yaml

from lt_det.errors import LtDetError
from reporting.html import NO_VALUE, Html, element, note, sentence, table
from reporting.parts import Section, size_title
from reporting.runs import Run, config_differences

# Title -> key of the "run" part of a record.
FIELDS = {
    "loss": "loss",
    "iterations": "iteration",
    "epoch": "selection",
    "seed": "seed",
    "configuration": "config",
    "configuration hash": "config_hash",
    "checkpoint": "weights",
    "class counts": "counts_fingerprint",
    "date": "date",
    "seconds an iteration": "seconds_per_iteration",
}
# Keys that differ between any two runs.
PLACES = ("OUTPUT_DIR", "SEED", "VERSION")
# Characters of a fingerprint that are shown.
SHORT = 12


def provenance_section(runs: Sequence[Run]) -> Section:
    """Tables of what the records say, differences of the configurations, and these in full."""
    content = [provenance_table(runs)]
    if len(runs) > 1:
        content += [element("h3", "Where the configurations differ"), *_differences(runs)]
    for run in runs:
        title = f"Configuration of {run.label}" if len(runs) > 1 else "Configuration"
        try:
            text = yaml.safe_dump(run.config, sort_keys=True, allow_unicode=True)
            code = element("pre", text)
            content.append(element("details", element("summary", title), code))
        except LtDetError as error:
            content.append(note(sentence(f"{title}: {error}")))
    return Section("provenance", "How was it made?", "Provenance", content)


def provenance_table(runs: Sequence[Run]) -> Html:
    """A column a run."""
    rows = [
        ["test data", *(r.record["dataset"] for r in runs)],
        ["training data", *map(_training_sets, runs)],
        ["largest and smallest class", *map(_extremes, runs)],
    ]
    for title, key in FIELDS.items():
        values = [r.record["run"].get(key) for r in runs]
        if any(v is not None for v in values):
            rows.append([title, *(_shown(key, v) for v in values)])
    packages = dict.fromkeys(p for r in runs for p in _versions(r))
    for package in packages:
        rows.append([package, *(_versions(r).get(package) or NO_VALUE for r in runs)])
    for name in dict.fromkeys(key for r in runs for key in r.record["protocol"]):
        cells = [_text(r.record["protocol"].get(name)) for r in runs]
        rows.append([f"protocol: {name.replace('_', ' ')}", *cells])
    rows.append(["record", *(str(r.file) for r in runs)])
    head = ["", *(r.label for r in runs)]
    return table(head, rows, text_columns=len(head), class_="facts")


def _training_sets(run: Run) -> str:
    try:
        return _text(run.config["DATASETS"]["TRAIN"])
    except (LtDetError, KeyError, TypeError):
        return NO_VALUE


def _extremes(run: Run) -> str:
    if run.size_column() is None:
        return NO_VALUE
    size = run.sizes()
    return f"{np.nanmax(size):,.0f} and {np.nanmin(size):,.0f} {size_title(run)}"


def _versions(run: Run) -> dict:
    return run.record["run"].get("versions") or {}


def _shown(key: str, value) -> str | Html:
    if value is None:
        return NO_VALUE
    if key in ("counts_fingerprint", "config_hash"):
        return element("code", str(value)[:SHORT], title=str(value))
    if key == "seconds_per_iteration":
        return f"{value:.3g}"
    return f"{value:,}" if key == "iteration" else str(value)


def _text(value) -> str:
    if value is None:
        return NO_VALUE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _differences(runs: Sequence[Run]) -> list:
    try:
        found = config_differences([run.config for run in runs])
    except LtDetError as error:
        return [note(sentence(str(error)))]
    rows = [
        [element("code", key), *(_text(v) for v in values)]
        for key, values in found.items()
        if key not in PLACES
    ]
    if not rows:
        return [note(f"In nothing but {' and '.join(PLACES[:2])}.")]
    return [
        table(["key", *(r.label for r in runs)], rows, text_columns=1 + len(runs), class_="facts")
    ]
