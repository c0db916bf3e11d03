"""What tools/report.py shows of a training: gradient ratios, when they saturate, and curves."""

from collections.abc import Sequence

import numpy as np
from plot_gradient_ratio import Statistics, drawable, group_ratio_over_time, ratio_over_time

from lt_det.errors import LtDetError, MissingFileError
from reporting.charts import (
    BOTTOM,
    HEIGHT,
    TOP,
    Line,
    Point,
    Scale,
    line_chart,
    log_range,
    scatter,
)
from reporting.html import Html, count, element, figure, note, sentence
from reporting.parts import (
    Section,
    class_text,
    group_word,
    groups_with_classes,
    legend,
    run_legend,
    size_axis,
    size_title,
)
from reporting.runs import Run, said_of
from reporting.saturation import adjustment_text, loss_of, saturation, saturation_ratio

# More classes than this have a line of few points, so that the page stays small.
MANY_LINES, FEW_POINTS = 60, 24
# More lines than this, of all runs, and classes have none.
MOST_LINES = 3000
# Small charts of the training curves.
SMALL = {"width": 380, "height": 230}


# ---- gradient ratio --------------------------------------------------------------------------


def gradient_section(runs: Sequence[Run]) -> Section:
    """History of the gradient ratio by group and class, and where it ended."""
    content, missing = [], []
    for run in runs:
        try:
            charts = _ratio_charts(run, len(runs) * len(run.names) <= MOST_LINES)
        except LtDetError as error:
            missing.append((run, str(error)))
            continue
        content += [element("h3", run.label) if len(runs) > 1 else None, *charts]
    if content:
        intro = (
            "The gradient ratio of a class is the positive over the negative gradient that its "
            "classifier has received since the start: 1 is balance, and a class far below is "
            "pushed down more than it is held up."
        )
        content.insert(0, element("p", intro, class_="muted"))
    notes = [note(text) for text in said_of(missing, runs)]
    return Section("gradients", "Why: gradient ratio", "Gradient ratio", content + notes)


def _ratio_charts(run: Run, classes: bool) -> list:
    loss = loss_of(run)
    if loss is not None and not hasattr(loss, "stats"):
        name = run.record["run"]["loss"]
        raise MissingFileError(f"{name} is not a gradient-driven loss: it keeps no such statistics")
    statistics, limit = run.statistics, saturation_ratio(loss)
    line = 1.0 if limit is None else limit
    meaning = (
        "balance"
        if limit is None
        else f"above it {run.record['run']['loss']} is nearly the plain loss"
    )
    content = [element("p", sentence(text), class_=level) for level, text in saturation(run)]
    text = adjustment_text(run)
    content += [element("p", text) if text else None, legend(run) if run.groups else None]
    for name, (iterations, pos, neg) in statistics.losses.items():
        ratio = ratio_over_time(pos, neg)
        title = element("h4", name) if name else None
        charts = [
            _history(run, iterations, ratio, line, classes),
            _last_ratios(run, ratio[-1], line),
        ]
        cells = [figure([title, chart], class_="cell") for chart in charts if chart is not None]
        content.append(element("div", cells, class_="cells"))
        content.append(element("p", f"Dashed: a ratio of {line:.3g}, {meaning}.", class_="muted"))
        missing = int((ratio[-1] == 0).sum())
        if missing:
            text = (
                f"{count(missing, 'class has', 'classes have')} had no positive gradient so far; "
            )
            content.append(note(f"{text}a logarithmic axis has no place for a ratio of 0."))
    return content


def _history(run: Run, iterations, ratio: np.ndarray, line: float, classes: bool) -> Html | None:
    """Lines of the means of groups, and of classes."""
    statistics = run.statistics
    drawn = _class_lines(statistics, iterations, ratio) if classes else []
    means = group_ratio_over_time(ratio, statistics.groups)
    for group, values in means.items():
        if not np.isnan(values).all():
            name = f"mean of {group_word(run, group)}"
            drawn.append(Line(name, iterations + 1, drawable(values), f"thick g-{group}", None, 3))
    return line_chart(
        drawn,
        "positive / negative gradient",
        label="gradient ratio of classes and means of groups over the training",
        log=True,
        references=[line],
    )


def _class_lines(statistics: Statistics, iterations, ratio: np.ndarray) -> list[Line]:
    steps, style = np.arange(len(iterations)), "thin"
    if ratio.shape[1] > MANY_LINES:
        # The ratio changes most at the start.
        few = np.geomspace(1, len(steps), min(FEW_POINTS, len(steps))).round().astype(int)
        steps, style = np.unique(few) - 1, "thin many"
    return [
        Line(name, iterations[steps] + 1, drawable(ratio[steps, k]), f"{style} g-{group}", k, 3)
        for k, (name, group) in enumerate(zip(statistics.names, statistics.groups, strict=True))
    ]


def _last_ratios(run: Run, ratio: np.ndarray, line: float) -> Html | None:
    values = drawable(ratio)
    known = np.flatnonzero(~np.isnan(values))
    if run.size_column() is None or not len(known) or len(values) != len(run.names):
        return None
    size, x = size_axis(run)
    y = Scale(*log_range(np.append(values[known], line)), HEIGHT - BOTTOM, TOP, True)
    groups = run.groups or [""] * len(run.names)
    points = [
        Point(
            k,
            size[k],
            values[k],
            groups[k],
            run.names[k],
            class_text(run, k, f"ratio {values[k]:.3g}"),
        )
        for k in known[~np.isnan(size[known])].tolist()
    ]
    label = f"last gradient ratio of each class against its {size_title(run)}"
    title = "ratio at the end"
    return scatter(points, x, y, size_title(run), title, label=label, references=[line])


# ---- curves ----------------------------------------------------------------------------------


def training_section(runs: Sequence[Run]) -> Section:
    """Losses, learning rate and results over the iterations, all runs in one chart each."""
    content, read, missing = [], [], []
    for k, run in enumerate(runs):
        try:
            read.append((k, run, run.scalars))
        except LtDetError as error:
            missing.append((run, str(error)))
    losses = _names(read, lambda n: n.startswith("loss_") or "/loss_" in n)
    cells = [_curve(read, n, n.replace("_", " ")) for n in ["total_loss", *losses]]
    cells.append(_curve(read, "lr", "learning rate", zero_based=True))
    cells = [c for c in cells if c is not None]
    if cells:
        content += [run_legend(runs), element("div", cells, class_="cells small")]
    content += [note(text) for text in said_of(missing, runs)]
    content += _evaluations(runs, read)
    return Section("training", "Why: training", "Training", content)


def _names(read, wanted) -> list[str]:
    return sorted({n for _, _, scalars in read for n in scalars if wanted(n)})


def _curve(read, name: str, title: str, **how) -> Html | None:
    lines = [
        Line(run.label, scalars[name][0] + 1, scalars[name][1], f"run-{k % 6}")
        for k, run, scalars in read
        if name in scalars
    ]
    chart = line_chart(lines, title, label=f"{title} over the training", **SMALL, **how)
    return None if chart is None else figure(chart, class_="cell")


def _evaluations(runs: Sequence[Run], read) -> list:
    """Results of the groups over the iterations of a training that was evaluated on its way."""
    if not read:
        return []
    first, cells = runs[0], []
    for measure in first.measures:
        for letter in ["all", *groups_with_classes(first)]:
            name = measure.total if letter == "all" else measure.groups[letter]
            lines = [
                Line(run.label, x, y, f"run-{k % 6}", marks=len(x) < 30)
                for k, run, (x, y) in ((k, run, s[name]) for k, run, s in read if name in s)
                if len(x) > 1
            ]
            title = f"{measure.title}, {group_word(first, letter)}"
            chart = line_chart(lines, title, label=f"{title} over the training", **SMALL)
            if chart is not None:
                cells.append(figure(chart, class_="cell"))
    if cells:
        return [
            element("h3", "Evaluations on the way"),
            element("div", cells, class_="cells small"),
        ]
    return [note("Evaluated at the end only; TEST.EVAL_PERIOD draws results over the training.")]
