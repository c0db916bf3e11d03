"""What speaks for and against the results of a report, and which differences are beyond noise."""

import math
from collections.abc import Sequence

import numpy as np

from lt_det.errors import LtDetError
from lt_det.evaluation.results import LAST, selection
from reporting.charts import Mark, interval_chart
from reporting.html import count, element, figure, note, sentence, signed
from reporting.noise import Noise, verdict
from reporting.parts import (
    Section,
    group_value,
    group_word,
    groups_with_classes,
    mark_group,
    run_legend,
)
from reporting.runs import Measure, Run, said_of
from reporting.saturation import saturation

# Of checks, the most important first.
LEVELS = ("warn", "info", "good")
DIFFERENCES = (
    "Both runs are measured on the same resampled test images. A filled mark is beyond noise: its "
    "95 % interval leaves out zero. A hollow one is not, or too few images hold it. Another seed "
    "of the training may move results further than this."
)
# A class measured on fewer test images than this says little on its own.
FEW_TEST_IMAGES = 10


def trust_section(runs: Sequence[Run], noise: Noise) -> Section:
    """What speaks for and against the numbers, and which differences are beyond noise.

    Args:
        runs: at least one.
        noise: of the runs.
    """
    found = sorted(checks(runs), key=lambda check: LEVELS.index(check[0]))
    items = [element("li", text, class_=level) for level, text in found]
    content = [element("ul", items, class_="checks")]
    if len(runs) > 1:
        content += [element("h3", f"Differences to {runs[0].label}"), *differences(runs, noise)]
    return Section("trust", "Can it be trusted?", "Trust", content)


def checks(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(level, sentence): "warn" speaks against the result, "info" limits it, "good" is in order."""
    found = [(run, level, text) for run in runs for level, text in _checks_of(run)]
    found += [(run, level, text) for run in runs for level, text in saturation(run)]
    told = []
    for level in LEVELS:
        own = [(run, text) for run, at, text in found if at == level]
        told += [(level, text) for text in said_of(own, runs)]
    return told + (_checks_between(runs) if len(runs) > 1 else [])


def _checks_of(run: Run) -> list[tuple[str, str]]:
    found = [_selection_check(run), *_end_check(run)]
    seed = run.record["run"].get("seed")
    if seed is None or seed < 0:
        found.append(("info", "no seed was set, so the training cannot be repeated exactly."))
    values = run.values(run.measures[0]) if run.measures else np.array([])
    missing = int(np.isnan(values).sum())
    if missing:
        found.append(
            (
                "info",
                f"{count(missing, 'class has', 'classes have')} no value, because the test set "
                f"does not hold {'it' if missing == 1 else 'them'}; means leave "
                f"{'it' if missing == 1 else 'them'} out.",
            )
        )
    found += _test_size_check(run)
    try:
        losses = run.scalars.get("total_loss", (None, np.array([])))[1]
    except LtDetError:
        return found
    if len(losses) and not np.isfinite(losses).all():
        found.append(("warn", "the training loss was not finite at some iterations."))
    return found


def _selection_check(run: Run) -> tuple[str, str]:
    chosen = selection(run.record)
    if chosen is None and _steps(run) is not None and _steps(run) == _planned_steps(run):
        chosen = LAST
    if chosen is None:
        return "info", "the record does not say how the weights were chosen among the epochs."
    if chosen == LAST:
        return "good", "the evaluated weights are the last of the training."
    if chosen.endswith(f" {run.record['dataset']}"):
        return "warn", (
            "the epoch was chosen on the test set itself. Its figure is higher than one whose "
            "choice does not look at the test labels."
        )
    return "good", f"the epoch was chosen as {chosen}, which is not the test set."


def _steps(run: Run) -> int | None:
    return run.record["run"].get("iteration")


def _planned_steps(run: Run) -> int | None:
    try:
        steps = run.config["SOLVER"]["MAX_ITER"]
    except (LtDetError, KeyError, TypeError):
        return None
    return steps if isinstance(steps, int) else None


def _end_check(run: Run) -> list[tuple[str, str]]:
    done, wanted = _steps(run), _planned_steps(run)
    if None in (done, wanted) or done >= wanted or selection(run.record) not in (None, LAST):
        return []
    return [("warn", f"evaluated after {done:,} of {wanted:,} iterations.")]


def _test_size_check(run: Run) -> list[tuple[str, str]]:
    columns = run.record["per_class"]
    if "test_images" not in columns or not run.groups:
        return []
    images, found = np.array(columns["test_images"], float), []
    for letter in groups_with_classes(run):
        own = images[np.array(run.groups) == letter]
        few = int((own[own > 0] < FEW_TEST_IMAGES).sum())
        if 2 * few > len(own):
            found.append(
                (
                    "info",
                    f"{few} of {len(own)} {group_word(run, letter)} classes are measured on fewer "
                    f"than {FEW_TEST_IMAGES} test images: their own values say little.",
                )
            )
    return found


def _checks_between(runs: Sequence[Run]) -> list[tuple[str, str]]:
    found = []
    for what, values in (
        ("protocol", [r.record["protocol"] for r in runs]),
        ("training class counts", [r.record["run"].get("counts_fingerprint") for r in runs]),
        ("groups of classes", [r.groups for r in runs]),
    ):
        others = [r.label for r, v in zip(runs, values, strict=True) if v != values[0]]
        if others:
            found.append(("warn", f"{', '.join(others)}: not the {what} of {runs[0].label}."))
        elif values[0] is not None:
            found.append(("good", f"All runs have the same {what}."))
    return found


def differences(runs: Sequence[Run], noise: Noise) -> list:
    """Charts of the differences of each further run to the first, by group."""
    first, letters = runs[0], ["all", *groups_with_classes(runs[0])]
    charts, reasons = [], {}
    for measure in first.measures:
        rows = []
        for letter in letters:
            found = [_difference(first, run, measure, letter, noise) for run in runs[1:]]
            marks = [
                Mark(value, low, high, f"run-{k % 6} {fill}", run.label, text, mark_group(letter))
                for k, (run, (value, low, high, fill, text)) in enumerate(
                    zip(runs[1:], found, strict=True), 1
                )
            ]
            aside = signed(found[0][0]) if len(runs) == 2 else ""
            rows.append((group_word(first, letter), marks, aside))
        title = f"difference in {measure.title} (points)"
        charts.append(figure(interval_chart(rows, title, label=title, zero=True), class_="cell"))
        for run in runs[1:]:
            reasons |= dict.fromkeys([noise.why_no_comparison(first, run, measure)])
    content = [run_legend(runs) if len(runs) > 2 else None, element("div", charts, class_="cells")]
    if None in reasons:
        content.append(element("p", DIFFERENCES, class_="muted"))
    return content + [
        note(f"No intervals of differences: {sentence(r, False)}") for r in reasons if r
    ]


def _difference(first: Run, run: Run, measure: Measure, letter: str, noise: Noise) -> tuple:
    """Value, ends of its interval or None, style and text of a difference."""
    value = group_value(run, measure, letter) - group_value(first, measure, letter)
    text = f"{signed(value)} points in {measure.title}"
    comparison = noise.comparison(first, run, measure)
    found = comparison and comparison.groups.get(letter)
    if not found or math.isnan(found.low):
        return value, None, None, "", text
    text += f", 95 % from {signed(found.low)} to {signed(found.high)}: {verdict(found)}"
    return value, found.low, found.high, "" if found.beyond_noise else "hollow", text
