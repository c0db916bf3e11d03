"""The first section of a report: results by group, with their intervals."""

import math
from collections.abc import Sequence

from lt_det.evaluation.results import column_title
from reporting.charts import Mark, interval_chart
from reporting.html import Html, count, element, figure, fixed, table
from reporting.noise import Noise
from reporting.parts import (
    Section,
    chip,
    group_value,
    group_word,
    groups_with_classes,
    mark_group,
    run_legend,
)
from reporting.runs import Measure, Run


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
    best = {
        g: max(group_value(r, m, g) for _, r, m in lines) if compared else None for g in letters
    }
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


def _group_cell(run: Run, measure: Measure, letter: str, noise: Noise, best: float | None) -> Html:
    value = group_value(run, measure, letter)
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
            value = group_value(run, measure, letter)
            low, high = noise.interval(run, measure).get(letter, (None, None))
            own = mark_group(letter)
            style = f"run-{k % 6}" if len(runs) > 1 else f"g-{own}"
            text = f"{measure.title} {fixed(value)}"
            text += "" if low is None else f", 95 % from {fixed(low)} to {fixed(high)}"
            name = run.label if len(runs) > 1 else group_word(run, letter)
            marks.append(Mark(value, low, high, style, name, text, own))
        rows.append((group_word(runs[0], letter), marks, ""))
    title = f"{measure.title} (%)"
    chart = interval_chart(rows, title, label=f"{measure.title} by group", from_zero=True)
    return figure(chart, class_="cell")
