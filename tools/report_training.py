"""What tools/report.py shows of a training: gradient ratios, when they saturate, and curves."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from plot_gradient_ratio import drawable, group_ratio_over_time, ratio_over_time
from report_charts import (
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
from report_html import Html, count, element, figure, note, sentence
from report_results import (
    Section,
    class_text,
    group_word,
    groups_with_classes,
    legend,
    of_run,
    run_legend,
    size_axis,
    size_title,
)
from report_runs import Run

from lt_det.errors import LtDetError, MissingFileError
from lt_det.losses import build_loss
from lt_det.losses.eqlv2 import SigmoidEQL, equalization_weights
from lt_det.losses.equalized_focal import EFL, EQFL
from lt_det.losses.softmax_eql import SoftmaxEQL, softmax_adjustment

# A class with less than this part of the full re-weighting is trained by the plain loss.
LITTLE = 0.1
# More classes than this have a line of few points, so that the page stays small.
MANY_LINES, FEW_POINTS = 60, 24
# Small charts of the training curves.
SMALL = {"width": 380, "height": 230}


# ---- saturation ------------------------------------------------------------------------------


def loss_of(run: Run):
    """The loss of a run as `build_loss` makes it; None: the record or configuration lacks it."""
    name = run.record["run"].get("loss")
    try:
        params = run.config["MODEL"]["LT"]["LOSS"]["PARAMS"]
        return build_loss(name, num_classes=2, class_counts=torch.tensor([2, 1]), **params)
    except (LtDetError, KeyError, TypeError, ValueError):
        return None


def strength_left(loss, ratio: np.ndarray) -> np.ndarray | None:
    """How much of its full re-weighting a class still gets, from its gradient ratio.

    1: that of a class without positive gradient, 0: the plain loss. In `EQLv2` and `SigmoidEQL`
    1 - f(g), in `EFL` and `EQFL` 1 - g inside [0, 1].

    Args:
        loss: of the run.
        ratio: (..., C) ratios.

    Returns:
        In [0, 1], shaped as `ratio`; None: no loss whose ratio saturates.
    """
    if isinstance(loss, SigmoidEQL):
        _, negatives = equalization_weights(
            torch.as_tensor(ratio), gamma=loss.gamma, mu=loss.mu, alpha=loss.alpha
        )
        return 1 - negatives.numpy()
    if isinstance(loss, (EFL, EQFL)):
        return 1 - np.clip(ratio, 0, 1)
    return None


def saturation_ratio(loss) -> float | None:
    """The gradient ratio at which `strength_left` is `LITTLE`; None: there is none."""
    if isinstance(loss, SigmoidEQL) and loss.gamma > 0:
        return loss.mu + math.log(1 / LITTLE - 1) / loss.gamma
    return 1 - LITTLE if isinstance(loss, (EFL, EQFL)) else None


def saturated_since(iterations: np.ndarray, strength: np.ndarray) -> int | None:
    """The iteration from which on most classes are trained by the plain loss; None: never.

    Args:
        iterations: (T,).
        strength: (T, C) of `strength_left`.
    """
    most = (strength < LITTLE).mean(axis=1) > 0.5
    if not len(most) or not most[-1]:
        return None
    return int(iterations[len(most) - int(np.argmin(most[::-1])) if not most.all() else 0])


def saturation(run: Run) -> list[tuple[str, str]]:
    """(level, sentence) about tail groups that the re-weighting no longer helps, for each loss.

    "warn" if the rarest of them is among those, "info" if only the next one is.
    """
    try:
        statistics = run.statistics
    except LtDetError:
        return []
    loss, found = loss_of(run), []
    for name, (iterations, pos, neg) in statistics.losses.items():
        where = f" ({name})" if name else ""
        strength = strength_left(loss, ratio_over_time(pos, neg))
        if strength is None:
            continue
        told = {}
        for letter in ("r", "c"):
            own = np.array(statistics.groups) == letter
            since = saturated_since(iterations, strength[:, own]) if own.any() else None
            if since is not None:
                now = int((strength[-1, own] < LITTLE).sum())
                told[letter] = (
                    f"{now} of {own.sum()} {group_word(run, letter)} classes, most of them since "
                    f"iteration {since + 1:,}"
                )
        kept = f"{run.record['run']['loss']} keeps less than {LITTLE:.0%} of its re-weighting"
        if told:
            level = "warn" if "r" in told else "info"
            text = f"the gradient ratio is saturated{where}: {kept} for {'; '.join(told.values())}."
            found.append((level, text))
        else:
            text = f"{run.record['run']['loss']} still re-weights most tail classes{where}: their "
            found.append(("good", text + "gradient ratios are not saturated."))
    return found


def adjustment_text(run: Run) -> str | None:
    """What Softmax-EQL adds to the logits at the end; None: another loss or form."""
    loss = loss_of(run)
    if not isinstance(loss, SoftmaxEQL) or loss.form != "ratio" or loss.indicator != "pos":
        return None
    texts = []
    for name, (_, pos, _neg) in run.statistics.losses.items():
        last = torch.as_tensor(pos[-1])
        added = softmax_adjustment(last, form=loss.form, tau=loss.tau, eps=loss.eps).numpy()
        counts = np.maximum(run.statistics.counts, 1)
        text = (
            f"{name + ': ' if name else ''}the logit adjustment of the most and the least seen "
            f"class differ by {np.ptp(added):.1f}; the logarithms of their training "
            f"{run.statistics.unit} by {np.ptp(np.log(counts)):.1f}."
        )
        floor = int((last <= loss.eps).sum())
        if floor:
            text += (
                f" {count(floor, 'class is', 'classes are')} still at the floor eps = "
                f"{loss.eps:g}, which decides about their margin instead of the data."
            )
        texts.append(text)
    return sentence(" ".join(texts))


# ---- gradient ratio --------------------------------------------------------------------------


def gradient_section(runs: Sequence[Run]) -> Section:
    """History of the gradient ratio by group and class, and where it ended."""
    content, missing = [], []
    for run in runs:
        try:
            charts = _ratio_charts(run)
        except LtDetError as error:
            missing.append(note(of_run(run, runs, str(error))))
            continue
        content += [element("h3", run.label) if len(runs) > 1 else None, *charts]
    if content:
        intro = (
            "The gradient ratio of a class is the positive over the negative gradient that its "
            "classifier has received since the start: 1 is balance, and a class far below is "
            "pushed down more than it is held up."
        )
        content.insert(0, element("p", intro, class_="muted"))
    return Section("gradients", "Why: gradient ratio", "Gradient ratio", content + missing)


def _ratio_charts(run: Run) -> list:
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
        charts = [_history(run, iterations, ratio, line), _last_ratios(run, ratio[-1], line)]
        cells = [figure([title, chart], class_="cell") for chart in charts if chart is not None]
        content.append(element("div", cells, class_="cells"))
        content.append(element("p", f"Dashed: a ratio of {line:.3g}, {meaning}.", class_="muted"))
        missing = int((ratio[-1] == 0).sum())
        if missing:
            text = (
                f"{count(missing, 'class has', 'classes have')} had no positive gradient so far; "
            )
            content.append(note(text + "a logarithmic axis has no place for a ratio of 0."))
    return content


def _history(run: Run, iterations: np.ndarray, ratio: np.ndarray, line: float) -> Html | None:
    statistics, steps = run.statistics, np.arange(len(iterations))
    if ratio.shape[1] > MANY_LINES and len(steps) > FEW_POINTS:
        # The ratio changes most at the start.
        steps = np.unique(np.geomspace(1, len(steps), FEW_POINTS).round().astype(int) - 1)
    drawn = []
    for k, (name, group) in enumerate(zip(statistics.names, statistics.groups, strict=True)):
        style = f"thin g-{group}"
        drawn.append(Line(name, iterations[steps] + 1, drawable(ratio[steps, k]), style, k, 3))
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
        for k in known.tolist()
    ]
    label = f"last gradient ratio of each class against its {size_title(run)}"
    title = "ratio at the end"
    return scatter(points, x, y, size_title(run), title, label=label, references=[line])


# ---- curves ----------------------------------------------------------------------------------


def training_section(runs: Sequence[Run]) -> Section:
    """Losses, learning rate and results over the iterations, all runs in one chart each."""
    content, read = [run_legend(runs)], []
    for k, run in enumerate(runs):
        try:
            read.append((k, run, run.scalars))
        except LtDetError as error:
            content.append(note(of_run(run, runs, str(error))))
    losses = _names(read, lambda n: n.startswith("loss_") or "/loss_" in n)
    cells = [_curve(read, n, n.replace("_", " ")) for n in ["total_loss", *losses]]
    cells.append(_curve(read, "lr", "learning rate", zero_based=True))
    cells = [c for c in cells if c is not None]
    if cells:
        content.append(element("div", cells, class_="cells small"))
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
