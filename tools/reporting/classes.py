"""Classes of a report: their results against their size, and those that moved most."""

from collections.abc import Sequence

import numpy as np

from reporting.charts import (
    BOTTOM,
    HEIGHT,
    TOP,
    WIDTH,
    Mark,
    Point,
    Scale,
    interval_chart,
    linear_range,
    scatter,
)
from reporting.html import NO_VALUE, Html, count, element, figure, fixed, note, signed, table
from reporting.noise import Noise, class_verdicts
from reporting.parts import (
    WIDE,
    Section,
    chip,
    class_text,
    groups_with_classes,
    legend,
    part,
    parts_switch,
    size_axis,
    size_title,
)
from reporting.runs import Measure, Run

# Classes in the list of those that moved most, and pixels of its chart.
MOVED, MOVED_WIDTH = 12, 500
# Runs that have such a list; tools/compare.py makes it for any two.
MOVED_RUNS = 3


def classes_section(runs: Sequence[Run], noise: Noise) -> Section:
    """Results of each class against its size, the classes that moved most, all classes."""
    first = runs[0]
    if not first.measures:
        return Section("classes", "Classes", "Classes", [note("The record has no class results.")])
    content = [finder(first), parts_switch(first.measures)]
    for measure in first.measures:
        content.append(part(measure, class_scatters(runs, measure)))
    for run in runs[1 : 1 + MOVED_RUNS]:
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


def class_scatters(runs: Sequence[Run], measure: Measure) -> list:
    """One scatter a run, on the same axes."""
    known = np.concatenate([v[~np.isnan(v)] for v in (run.values(measure) for run in runs)])
    if not len(known):
        return [note(f"No class has a value in {measure.title}.")]
    y = Scale(*_value_range(known), HEIGHT - BOTTOM, TOP)
    cells = []
    for run in runs:
        title = element("h4", run.label) if len(runs) > 1 else None
        chart = class_scatter(run, measure, y, WIDE if len(runs) == 1 else WIDTH)
        cells.append(figure([title, chart], class_="cell"))
    caption = (
        "One mark is a class; a bar is the mean of a group. Point at a mark, or go through them "
        "with the arrow keys, to see its name."
    )
    return [
        legend(runs[0]) if runs[0].groups else None,
        element("div", cells, class_="cells" if len(cells) > 1 else "wide"),
        element("p", caption, class_="muted"),
    ]


def class_scatter(run: Run, measure: Measure, y: Scale, width: int) -> Html:
    """The values of the classes of a run against their sizes."""
    if run.size_column() is None:
        return note("The record has no numbers of training examples to draw classes against.")
    size, x = size_axis(run, width)
    values = run.values(measure)
    points = [
        Point(
            key=k,
            x=size[k],
            y=values[k],
            group=run.groups[k] if run.groups else "",
            name=run.names[k],
            text=class_text(run, k, f"{measure.title} {fixed(values[k])}"),
        )
        for k in np.flatnonzero(~np.isnan(values) & ~np.isnan(size)).tolist()
    ]
    label = f"{measure.title} of each class against its {size_title(run)}, {run.label}"
    levels, title = _levels(run, size, values), f"{measure.title} (%)"
    return scatter(points, x, y, size_title(run), title, label=label, levels=levels)


def _value_range(known: np.ndarray) -> tuple[float, float]:
    """From 0 where values are as low, in percent at most 102."""
    low, high = linear_range(known)
    return min(low, 0 if known.min() >= 0 else low) - 1.5, min(high, 102)


def _levels(run: Run, size: np.ndarray, values: np.ndarray) -> list:
    levels = []
    for letter in groups_with_classes(run):
        own = (np.array(run.groups) == letter) & ~np.isnan(values) & ~np.isnan(size)
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
    chart = interval_chart(rows, title, label=label, joined=True, left=left, width=MOVED_WIDTH)
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
