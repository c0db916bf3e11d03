#!/usr/bin/env python
"""Plot the gradient ratio of each class over a training with a gradient-driven loss.

    python tools/plot_gradient_ratio.py --run output/lvis_eqlv2
    python tools/plot_gradient_ratio.py --run output/eqlv2 output/softmax_eql --output ratios.png

The ratio is the positive over the negative gradient that a class has received since the start of
the training: 1 is balance, and a class far below is pushed down more than it is held up.
Left: the classes from frequent to rare, over bars of their training counts; grey lines are
earlier iterations. Right: the means of the three groups of classes over the training.
One row per run, and per stage of a cascade; all rows have the same scale.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lt_det.errors import DataError, LtDetError, MissingFileError
from lt_det.evaluation.groups import GROUP_WORDS, GROUPS, check_groups, group_means
from lt_det.losses import LOSS_REGISTRY, build_loss
from lt_det.losses.grad_stats import RATIO_EPS

FILE = "gradient_statistics.jsonl"
PICTURE = "gradient_ratio.png"
# Blue, orange and red keep apart for colour-blind readers.
COLORS = {"r": "#c8364a", "c": "#e08a1e", "f": "#3b76af"}
# More class names than this cannot be read side by side.
NAMED_CLASSES = 40
EARLIER_LINES = 4


@dataclass(frozen=True)
class Statistics:
    """The file of a run.

    Attributes:
        names, groups: (C,).
        counts: (C,) training examples.
        unit: what `counts` are, "instances" or "pixels".
        task: key of `GROUP_WORDS`.
        losses: name ("" or "stage0", ...) -> ((T,) iterations, (T, C) positive sums,
            (T, C) negative sums).
    """

    names: list[str]
    groups: list[str]
    counts: np.ndarray
    unit: str
    task: str
    losses: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


# ---- reading ---------------------------------------------------------------------------------


def read_statistics(path: Path) -> Statistics:
    """Read ``gradient_statistics.jsonl``; a last line that a killed run cut short is left out.

    Raises:
        MissingFileError: no such file; the message says which losses write it.
        DataError: a line that is not as ``GradientStatisticsHook`` writes it, or no statistics.
    """
    if not path.is_file():
        raise MissingFileError(
            f"no gradient statistics {path}; tools/train_net.py writes them if MODEL.LT.LOSS.NAME "
            f"is a gradient-driven loss: {', '.join(gradient_driven_losses())}"
        )
    lines = _parse_lines(path)
    try:
        header = lines[0]
        names, groups, counts = header["names"], header["groups"], np.array(header["counts"])
        check_groups(groups, len(names))
        if counts.shape != (len(names),):
            raise ValueError(f"{len(counts)} counts for {len(names)} classes")
        # Older files have neither.
        unit, task = header.get("unit", "instances"), header.get("task", "instance")
        if task not in GROUP_WORDS:
            raise ValueError(f"task {task!r}; known are {', '.join(GROUP_WORDS)}")
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: the first line has no names, groups and counts: {error}"
        ) from error
    rows = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            sums = np.array([line["pos"], line["neg"]], dtype=np.float64)
            rows.setdefault(line["loss"], []).append((int(line["iteration"]), *sums))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: line {number} has no statistics: {error!r}") from error
        if sums.shape != (2, len(names)):
            raise DataError(f"{path}: line {number} is not for {len(names)} classes")
    if not rows:
        raise DataError(f"{path} holds no statistics yet: the run ended before its first iteration")
    losses = {name: tuple(map(np.array, zip(*r, strict=True))) for name, r in rows.items()}
    return Statistics(names, groups, counts, unit, task, losses)


def _parse_lines(path: Path) -> list:
    texts = path.read_text(encoding="utf-8").splitlines()
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                raise DataError(f"{path}: line {number} is not JSON: {error}") from error
    return lines


def gradient_driven_losses() -> list[str]:
    """Names of the losses that keep gradient statistics."""
    losses = {name: build_loss(name, num_classes=2, class_counts=[2, 1]) for name in LOSS_REGISTRY}
    return [name for name, loss in losses.items() if hasattr(loss, "stats")]


# ---- numbers ---------------------------------------------------------------------------------


def ratio_over_time(pos: np.ndarray, neg: np.ndarray) -> np.ndarray:
    """(T, C) accumulated gradient ratio, as ``GradStats.ratio`` has it; 0 without positives."""
    return pos / (neg + RATIO_EPS)


def group_ratio_over_time(ratio: np.ndarray, groups: list[str]) -> dict[str, np.ndarray]:
    """Group -> (T,) mean of (T, C) ratios over its classes; NaN for a group without classes."""
    means = [group_means(row, groups) for row in ratio]
    return {g: np.array([m[g] for m in means]) for g in GROUPS}


def class_order(counts: np.ndarray) -> np.ndarray:
    """(C,) class ids from the most frequent class to the rarest; ties by id."""
    return np.argsort(-np.asarray(counts), kind="stable")


def earlier_rows(iterations: np.ndarray, lines: int = EARLIER_LINES) -> list[int]:
    """Indices of logged iterations to show beside the last, halving the distance to the start.

    The ratio changes most at the start, so rows at equal distances would show the same line.
    """
    last = len(iterations) - 1
    wanted = [(iterations[-1] + 1) / 2**k for k in range(lines, 0, -1)]
    nearest = [int(np.abs(iterations + 1 - w).argmin()) for w in wanted]
    return sorted(set(nearest) - {last})


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """(C,) median of `width` neighbours, fewer at the ends; `width` is odd."""
    padded = np.pad(values.astype(np.float64), width // 2, constant_values=np.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


# ---- drawing ---------------------------------------------------------------------------------


def plot_runs(runs: list[tuple[str, Statistics]]) -> Figure:
    """One row per run and loss of it.

    Args:
        runs: (title, statistics).
    """
    rows = [(title, s, loss) for title, s in runs for loss in s.losses]
    figure = Figure(figsize=(13.5, 4.2 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(rows),
        2,
        squeeze=False,
        sharey=True,
        width_ratios=(2.6, 1),
        subplot_kw={"yscale": "log"},
    )
    for ax in grid.flat:
        ax.axhline(1, color="0.35", lw=0.9, ls=(0, (4, 3)), zorder=1)
        ax.grid(axis="y", color="0.9", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelleft=True)
        ax.yaxis.set_major_formatter("{x:g}")
    for (classes, means), (title, statistics, loss) in zip(grid, rows, strict=True):
        plot_classes(classes, statistics, loss)
        plot_group_means(means, statistics, loss)
        name = f"{title}, {loss}" if loss else title
        classes.set_title(name, loc="left", fontweight="bold", fontsize=11)
    return figure


def plot_classes(ax, statistics: Statistics, loss: str) -> None:
    """Ratio of every class at the last iteration and some before, over the training counts."""
    iterations, pos, neg = statistics.losses[loss]
    order = class_order(statistics.counts)
    colors = [COLORS[statistics.groups[k]] for k in order]
    named = len(order) <= NAMED_CLASSES
    ratio = ratio_over_time(pos, neg)[:, order]
    x = np.arange(len(order))
    # The line through 1203 points is a grey area; its course is not.
    width = 1 if named else 2 * (len(order) // 80) + 1
    shown = [*earlier_rows(iterations), len(ratio) - 1]
    shades = [*np.linspace(0.85, 0.5, len(shown) - 1), 0]
    for row, shade in zip(shown, shades, strict=True):
        label = f"{'iteration ' if row == shown[0] else ''}{iterations[row] + 1:,}"
        line = drawable(running_median(ratio[row], width))
        ax.plot(x, line, color=str(shade), lw=1.2, label=label, zorder=2)
    ax.scatter(x, drawable(ratio[-1]), c=colors, s=34 if named else 7, lw=0, zorder=3)
    _mark_zeros(ax, np.flatnonzero(ratio[-1] == 0), colors)
    _plot_counts(ax, x, statistics, order, colors, 0.8 if named else 1)
    ax.set(xlim=(-0.8, len(order) - 0.2), ylabel="positive / negative gradient")
    if named:
        names = [statistics.names[k] for k in order]
        ax.set_xticks(x, names, rotation=55, ha="right", rotation_mode="anchor", fontsize=8)
        for tick, color in zip(ax.get_xticklabels(), colors, strict=True):
            tick.set_color(color)
    else:
        ax.set_xlabel("classes, from frequent to rare")
    _legend_above(ax, ncols=len(shown) + 1)


def plot_group_means(ax, statistics: Statistics, loss: str) -> None:
    """Mean ratio of each group over the training."""
    iterations, pos, neg = statistics.losses[loss]
    means = group_ratio_over_time(ratio_over_time(pos, neg), statistics.groups)
    words = GROUP_WORDS[statistics.task]
    marker = "o" if len(iterations) == 1 else None  # one point makes no line
    for group, values in means.items():
        if not np.isnan(values).all():
            style = {"color": COLORS[group], "label": words[group], "marker": marker, "lw": 1.8}
            ax.plot(iterations + 1, drawable(values), **style)
    ax.set(xlabel="iterations", ylabel="group mean")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.get_major_locator().set_params(integer=True)
    _legend_above(ax, ncols=3)


def drawable(ratio: np.ndarray) -> np.ndarray:
    """NaN for what a log axis has no place for.

    0 (no positive gradient yet), and the ratio of a class without negative gradient, which is
    the positive sum over `RATIO_EPS`.
    """
    return np.where((ratio > 0) & (ratio < 1e-3 / RATIO_EPS), ratio, np.nan)


def _mark_zeros(ax, places: np.ndarray, colors: list[str]) -> None:
    if len(places):
        # y in parts of the axis: 0 lies below any log scale.
        marks = {"marker": "v", "s": 26, "lw": 0, "transform": ax.get_xaxis_transform()}
        ax.scatter(places, [0.02] * len(places), c=[colors[i] for i in places], **marks)
        ax.scatter([], [], color="0.4", marker="v", s=26, lw=0, label="0 so far")


def _plot_counts(ax, x, statistics, order, colors, width: float) -> None:
    counts, twin = statistics.counts[order], ax.twinx()
    twin.bar(x, counts, width=width, color=colors, alpha=0.16, lw=0)
    # From below 1, so that one instance has a bar; the room above keeps bars under most points.
    twin.set(yscale="log", ylim=(0.5, max(10, counts.max()) ** 1.5))
    twin.set_ylabel(f"training {statistics.unit}")
    decades = range(len(str(counts.max())))
    twin.set_yticks([10**k for k in decades], [f"{10**k:,}" for k in decades], fontsize=8)
    twin.minorticks_off()
    twin.yaxis.label.set_color("0.55")
    twin.tick_params(axis="y", colors="0.55")
    twin.spines[:].set_visible(False)
    ax.set_zorder(twin.get_zorder() + 1)
    ax.patch.set_visible(False)


def _legend_above(ax, ncols: int) -> None:
    place = {"loc": "lower right", "bbox_to_anchor": (1, 0.99), "borderaxespad": 0.2}
    ax.legend(
        **place, ncols=ncols, frameon=False, fontsize=8.5, handlelength=1.2, columnspacing=1.2
    )


# ---- command line ----------------------------------------------------------------------------


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        required=True,
        metavar="RUN_DIR",
        help="output directories of runs",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"PNG to write; default {PICTURE} in the (first) RUN_DIR",
    )
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        runs = [(run.resolve().name, read_statistics(run / FILE)) for run in args.run]
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    output = args.output or args.run[0] / PICTURE
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_runs(runs).savefig(output, format="png")
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
