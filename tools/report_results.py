"""What tools/report.py says first: results by group, what speaks against them, and the classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from report_charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Mark,
    Point,
    Scale,
    interval_chart,
    linear_range,
    log_range,
    scatter,
)
from report_html import NO_VALUE, Html, count, element, figure, fixed, note, sentence, signed, table
from report_noise import Noise, class_verdicts, verdict
from report_runs import Measure, Run, said_of
from report_saturation import saturation

from lt_det.errors import LtDetError
from lt_det.evaluation.groups import GROUP_WORDS, GROUPS
from lt_det.evaluation.results import LAST, column_title, selection

# Pixels of a chart that stands alone.
WIDE = 860
# Of checks, the most important first.
LEVELS = ("warn", "info", "good")
DIFFERENCES = (
    "Both runs are measured on the same resampled test images. A filled mark is beyond noise: its "
    "95 % interval leaves out zero. A hollow one is within noise. Another seed of the training may "
    "move results further than this."
)
# Classes in the list of those that moved most.
MOVED = 12
# A class measured on fewer test images than this says little on its own.
FEW_TEST_IMAGES = 10


@dataclass(frozen=True)
class Section:
    """Part of the page: its id in links, its title, its short title in the contents."""

    key: str
    title: str
    short: str
    content: Sequence


def group_word(run: Run, letter: str) -> str:
    """Such as "rare"; "all" for all classes."""
    return GROUP_WORDS[run.task].get(letter, letter)


def chip(run: Run, letter: str) -> Html:
    """The name of a group with its mark."""
    if letter == "all":
        return Html("all")
    mark = element("i", class_=f"chip g-{letter}")
    return element("span", mark, group_word(run, letter), class_="group")


def groups_with_classes(run: Run) -> list[str]:
    """Letters of the groups that have classes, in the order of the tables."""
    return [g for g in GROUPS if run.groups and g in run.groups]


def legend(run: Run) -> Html:
    """What the marks of the groups stand for, with the number of their classes."""
    parts = [
        element("li", chip(run, g), element("span", str(run.groups.count(g)), class_="muted"))
        for g in groups_with_classes(run)
    ]
    return element("ul", parts, class_="legend")


def run_legend(runs: Sequence[Run]) -> Html | None:
    """The colour of each run, where there are several."""
    if len(runs) == 1:
        return None
    rows = [
        element("li", element("i", class_=f"stroke run-{k % 6}"), run.label)
        for k, run in enumerate(runs)
    ]
    return element("ul", rows, class_="legend")


def parts_switch(measures: Sequence[Measure]) -> Html | None:
    """Buttons that choose what is shown, where there are boxes and masks."""
    if len(measures) == 1:
        return None
    buttons = [
        element(
            "button", m.title, type="button", data_part=m.column, aria_pressed=str(not k).lower()
        )
        for k, m in enumerate(measures)
    ]
    return element("div", buttons, class_="switch", role="group", aria_label="what is shown")


def part(measure: Measure, *content) -> Html:
    """What belongs to one measure; the switch hides the others."""
    return element("div", content, data_shown=measure.column)


# ---- result ----------------------------------------------------------------------------------


def result_section(runs: Sequence[Run], noise: Noise) -> Section:
    """Tables and charts of the groups.

    Args:
        runs: at least one.
        noise: of the runs.
    """
    content = result_tables(runs, noise)
    charts = [result_chart(runs, measure, noise) for measure in runs[0].measures]
    content += [run_legend(runs), element("div", charts, class_="cells")]
    content.append(noise.explanation(runs))
    listed = element("details", element("summary", "All metrics"), metrics_table(runs))
    content.append(listed)
    return Section("result", "Result", "Result", content)


def result_tables(runs: Sequence[Run], noise: Noise) -> list:
    """One run: a table with a row a measure. Several: a table a measure with a row a run."""
    measures = runs[0].measures
    if len(runs) == 1:
        lines = [(m.title, runs[0], m) for m in measures]
        return [result_table("", lines, noise)] if lines else []
    content = []
    for measure in measures:
        lines = [
            ([element("i", class_=f"stroke run-{k % 6}"), run.label], run, measure)
            for k, run in enumerate(runs)
        ]
        content += [element("h3", measure.title) if len(measures) > 1 else None]
        content.append(result_table("run", lines, noise))
    return content


def result_table(title: str, lines: Sequence[tuple], noise: Noise) -> Html:
    """All classes, each group, further metrics.

    Args:
        title: of the first column.
        lines: (name, run, measure) of each row. The best of runs in one measure is bold.
        noise: of the runs.
    """
    first = lines[0][1]
    letters = ["all", *groups_with_classes(first)]
    others = dict.fromkeys(
        word for _, run, m in lines for o, word in m.others.items() if not math.isnan(run.total(o))
    )
    compared = len({run.label for _, run, _ in lines}) > 1
    best = {g: max(_value(r, m, g) for _, r, m in lines) if compared else None for g in letters}
    rows = []
    for name, run, measure in lines:
        cells = [_group_cell(run, measure, g, noise, best[g]) for g in letters]
        by_word = {word: run.total(o) for o, word in measure.others.items()}
        more = [element("td", fixed(by_word.get(w)), class_="number side") for w in others]
        rows.append([name, *cells, *more])
    return table([title, *(_group_head(first, g) for g in letters), *others], rows, class_="result")


def metrics_table(runs: Sequence[Run]) -> Html:
    """Every metric of the records, a column a run."""
    names = dict.fromkeys(
        f"{part}/{name}" for r in runs for part, own in r.record["metrics"].items() for name in own
    )
    rows = [[column_title(n), *(fixed(r.total(n), 2) for r in runs)] for n in names]
    return table(["", *(r.label for r in runs)], rows)


def _group_head(run: Run, letter: str) -> list:
    number = len(run.names) if letter == "all" else run.groups.count(letter)
    return [chip(run, letter), element("small", count(number, "class", "classes"))]


def _value(run: Run, measure: Measure, letter: str) -> float:
    return run.total(measure.total if letter == "all" else measure.groups[letter])


def _group_cell(run: Run, measure: Measure, letter: str, noise: Noise, best: float | None) -> Html:
    value = _value(run, measure, letter)
    number = element("b" if value == best else "span", fixed(value))
    interval = noise.interval(run, measure).get(letter)
    below = element("small", f"{fixed(interval[0])} to {fixed(interval[1])}") if interval else None
    return element("td", number, below, class_="number main")


def result_chart(runs: Sequence[Run], measure: Measure, noise: Noise) -> Html:
    """The same as values on an axis."""
    letters = ["all", *groups_with_classes(runs[0])]
    rows = []
    for letter in letters:
        marks = []
        for k, run in enumerate(runs):
            value = _value(run, measure, letter)
            low, high = noise.interval(run, measure).get(letter, (None, None))
            own = _own(letter)
            style = f"run-{k % 6}" if len(runs) > 1 else f"g-{own}"
            text = f"{measure.title} {fixed(value)}"
            text += "" if low is None else f", 95 % from {fixed(low)} to {fixed(high)}"
            name = run.label if len(runs) > 1 else group_word(run, letter)
            marks.append(Mark(value, low, high, style, name, text, own))
        rows.append((group_word(runs[0], letter), marks, ""))
    title = f"{measure.title} (%)"
    chart = interval_chart(rows, title, label=f"{measure.title} by group", from_zero=True)
    return figure(chart, class_="cell")


# ---- trust -----------------------------------------------------------------------------------


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
        return run.config["SOLVER"]["MAX_ITER"]
    except (LtDetError, KeyError, TypeError):
        return None


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
    for what, fields in (("protocol", "protocol"), ("training class counts", "counts_fingerprint")):
        values = [
            r.record["protocol"] if fields == "protocol" else r.record["run"].get(fields)
            for r in runs
        ]
        others = [r.label for r, v in zip(runs, values, strict=True) if v != values[0]]
        if others:
            found.append(("warn", f"{', '.join(others)}: another {what} than {runs[0].label}."))
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
                Mark(value, low, high, f"run-{k % 6} {fill}", run.label, text, _own(letter))
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
    value = _value(run, measure, letter) - _value(first, measure, letter)
    text = f"{signed(value)} points in {measure.title}"
    comparison = noise.comparison(first, run, measure)
    found = comparison and comparison.groups.get(letter)
    if not found or math.isnan(found.low):
        return value, None, None, "", text
    text += f", 95 % from {signed(found.low)} to {signed(found.high)}: {verdict(found)}"
    return value, found.low, found.high, "" if found.beyond_noise else "hollow", text


def _own(letter: str) -> str:
    return "" if letter == "all" else letter


# ---- classes ---------------------------------------------------------------------------------


def classes_section(runs: Sequence[Run], noise: Noise) -> Section:
    """Results of each class against its size, the classes that moved most, all classes."""
    first = runs[0]
    if not first.measures:
        return Section("classes", "Classes", "Classes", [note("The record has no class results.")])
    content = [finder(first), parts_switch(first.measures)]
    for measure in first.measures:
        content.append(part(measure, class_scatters(runs, measure)))
    for run in runs[1:]:
        content.append(element("h3", f"Classes that moved most: {first.label} to {run.label}"))
        content += [part(m, moved_classes(first, run, m, noise)) for m in first.measures]
    listed = class_table(runs)
    title = f"All {count(len(first.names), 'class', 'classes')}, to sort by a click on a title"
    content.append(element("details", element("summary", title), listed))
    return Section("classes", "Which classes?", "Classes", content)


def finder(run: Run) -> Html:
    """A field that lights up a class in all charts."""
    options = [element("option", value=name) for name in sorted(set(run.names))]
    field = element(
        "input", type="search", id="finder", list="class-names", placeholder="find a class"
    )
    names = element("datalist", options, id="class-names")
    label = element("label", "Light up a class in all charts", for_="finder", class_="unseen")
    return element("div", label, field, names, class_="finder noprint")


def class_text(run: Run, k: int, rest: str) -> str:
    """What is shown of class `k`: group, size, and `rest`."""
    parts = [group_word(run, run.groups[k])] if run.groups else []
    if run.size_column():
        size = run.record["per_class"][run.size_column()][k]
        parts.append(f"{size:,.0f} {size_title(run)}")
    return ", ".join([*parts, rest])


def size_title(run: Run) -> str:
    """Such as "training images"."""
    return run.size_column().replace("train_", "training ")


def class_scatters(runs: Sequence[Run], measure: Measure) -> list:
    """One scatter a run, on the same axes."""
    first = runs[0]
    if first.size_column() is None:
        return [note("The record has no numbers of training examples to draw classes against.")]
    values = [run.values(measure) for run in runs]
    known = np.concatenate([v[~np.isnan(v)] for v in values])
    if not len(known):
        return [note(f"No class has a value in {measure.title}.")]
    y = Scale(*_value_range(known), HEIGHT - BOTTOM, TOP)
    charts = []
    for run, own in zip(runs, values, strict=True):
        size, x = size_axis(run, WIDE if len(runs) == 1 else WIDTH)
        points = [
            Point(
                key=k,
                x=size[k],
                y=own[k],
                group=run.groups[k] if run.groups else "",
                name=run.names[k],
                text=class_text(run, k, f"{measure.title} {fixed(own[k])}"),
            )
            for k in np.flatnonzero(~np.isnan(own)).tolist()
        ]
        chart = scatter(
            points,
            x,
            y,
            size_title(run),
            f"{measure.title} (%)",
            label=f"{measure.title} of each class against its {size_title(run)}, {run.label}",
            levels=_levels(run, size, own),
        )
        title = element("h4", run.label) if len(runs) > 1 else None
        charts.append(figure([title, chart], class_="cell"))
    caption = None
    if first.groups:
        caption = element(
            "p",
            "One mark is a class; a bar is the mean of a group. ",
            "Point at a mark, or go through them with the arrow keys, to see its name.",
            class_="muted",
        )
    wide = "cells" if len(charts) > 1 else "wide"
    return [legend(first) if first.groups else None, element("div", charts, class_=wide), caption]


def size_axis(run: Run, width: int = WIDTH) -> tuple[np.ndarray, Scale]:
    """(C,) sizes and their axis; a class without training examples stands at one half."""
    size = run.sizes()
    positive = size[size > 0]
    zero = 0.5 if (size == 0).any() else None
    low, high = log_range(positive if len(positive) else np.array([1.0, 10.0]))
    return size, Scale(zero * 0.8 if zero else low, high, LEFT, width - RIGHT, True, zero)


def _value_range(known: np.ndarray) -> tuple[float, float]:
    """From 0 where values are as low, in percent at most 102."""
    low, high = linear_range(known)
    return min(low, 0 if known.min() >= 0 else low) - 1.5, min(high, 102)


def _levels(run: Run, size: np.ndarray, values: np.ndarray) -> list:
    levels = []
    for letter in groups_with_classes(run):
        own = (np.array(run.groups) == letter) & ~np.isnan(values)
        if own.any():
            levels.append((letter, size[own].min(), size[own].max(), float(values[own].mean())))
    return levels


def moved_classes(first: Run, other: Run, measure: Measure, noise: Noise) -> list:
    """The classes with the largest differences, from the best to the worst."""
    before, after = first.values(measure), other.values(measure)
    change = after - before
    known = np.flatnonzero(~np.isnan(change))
    if not len(known):
        return [note("No class has a value in both runs.")]
    order = known[np.argsort(-np.abs(change[known]), kind="stable")][:MOVED]
    order = order[np.argsort(-change[order], kind="stable")].tolist()
    comparison = noise.comparison(first, other, measure)
    sure = np.zeros(len(change), bool) if comparison is None else comparison.controlled
    rows = []
    for k in order:
        letter = first.groups[k] if first.groups else ""
        marks = [
            Mark(
                value=value,
                low=None,
                high=None,
                style=f"g-{letter} {fill}",
                name=first.names[k],
                text=f"{run.label}: {measure.title} {fixed(value)}",
                group=letter,
                key=k,
            )
            for value, run, fill in ((before[k], first, "hollow"), (after[k], other, ""))
        ]
        rows.append((first.names[k], marks, signed(change[k]) + (" *" if sure[k] else "  ")))
    title = f"{measure.title} (%)"
    left = min(180, 30 + 7 * max(len(first.names[k]) for k in order))
    label = f"classes that moved most, {title}"
    chart = interval_chart(rows, title, label=label, joined=True, left=left, width=WIDTH)
    caption = f"Hollow: {first.label}. Filled: {other.label}. "
    caption += "" if comparison is None else class_verdicts(comparison)
    listed = moved_table(first, order, before, after, comparison)
    return [
        figure(chart, caption, class_="narrow"),
        element("details", element("summary", "As a table"), listed),
    ]


def moved_table(run: Run, order: Sequence[int], before, after, comparison) -> Html:
    """Differences of classes with their intervals.

    Args:
        run: one of both, for names and groups.
        order: class ids.
        before, after: (C,) values.
        comparison: None: not known.
    """
    head = ["class", "group", "change", "from", "to"]
    head += [] if comparison is None else ["95 % interval", "test images", "p"]
    lines = []
    for k in order:
        group = chip(run, run.groups[k]) if run.groups else NO_VALUE
        change = signed(after[k] - before[k])
        line = [run.names[k], group, change, fixed(before[k]), fixed(after[k])]
        if comparison is not None:
            line += [
                f"{signed(comparison.low[k])} to {signed(comparison.high[k])}",
                f"{comparison.images[k]:,}",
                fixed(comparison.p_value[k], 3),
            ]
        lines.append(line)
    return table(head, lines, text_columns=2)


def class_table(runs: Sequence[Run]) -> Html:
    """Every class, from frequent to rare, with its results in every run."""
    first = runs[0]
    sizes = [c for c in first.record["per_class"] if c.startswith(("train_", "test_"))]
    head = ["class", "group", *(c.replace("_", " ") for c in sizes)]
    for run in runs:
        name = f"{run.label}: " if len(runs) > 1 else ""
        head += [name + m.title for m in run.measures]
    order = range(len(first.names))
    if first.size_column():
        order = np.argsort(-first.sizes(), kind="stable").tolist()
    values = [run.values(m) for run in runs for m in run.measures]
    rows = []
    for k in order:
        group = chip(first, first.groups[k]) if first.groups else NO_VALUE
        about = [_number(first.record["per_class"][c][k]) for c in sizes]
        rows.append([first.names[k], group, *about, *(fixed(v[k]) for v in values)])
    return table(head, rows, text_columns=2, class_="sortable")


def _number(value) -> str:
    return NO_VALUE if value is None else f"{value:,.0f}"
