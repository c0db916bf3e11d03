#!/usr/bin/env python
"""Plot the AP of each class, from frequent to rare, for runs side by side.

    python tools/plot_class_ap.py softmax=runs/a softmax=runs/b "EQL v2=runs/c" "EQL v2=runs/d"

Runs with one label are averaged; thin lines are their smallest and largest value. Up to 40
classes are shown one by one, more as means of neighbours in the order of frequency.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lt_det.errors import DataError, LtDetError
from lt_det.evaluation.results import class_values, default_label, read_record, selection

# Grey for the first, which is usually the baseline; the others keep apart for colour-blind readers.
COLORS = ("#9aa0a6", "#3b76af", "#c8364a", "#e08a1e", "#5a9e6f")
GROUP_COLORS = {"r": "#f7dfe2", "c": "#fbeedd", "f": "#dfe8f2"}
GROUP_WORDS = {"r": "rare", "c": "common", "f": "frequent"}
MAX_BARS = 40


def collect(runs):
    """{label: records} of ``[LABEL=]PATH`` arguments; a folder stands for its only record.

    Raises:
        DataError: a folder without exactly one record, records of different class lists, or of
            the last and the best epoch under one label.
    """
    rows = {}
    for run in runs:
        label, equals, path = run.partition("=")
        path = Path(path if equals and not Path(run).exists() else run)
        files = sorted(path.glob("results/*.json")) if path.is_dir() else [path]
        if len(files) != 1:
            raise DataError(f"{path} has {len(files)} result records; name the one to draw")
        record = read_record(files[0])
        name = label if equals else default_label(record)
        rows.setdefault(name, []).append(record)
    for name, records in rows.items():
        epochs = {selection(r) for r in records}
        if len(epochs) > 1:
            raise DataError(f"the records of {name!r} are of different epochs: {epochs}")
    names = {tuple(r["per_class"]["name"]) for records in rows.values() for r in records}
    if len(names) > 1:
        raise DataError("the runs were evaluated on different class lists")
    return rows


def frequency_order(record):
    """Class indices from the most to the fewest training images (of a tie, the lower first)."""
    return np.argsort(-class_values(record, "train_images"), kind="stable")


def pooled(values, bars):
    """Means of (..., C) values over `bars` runs of neighbours; NaN entries are left out."""
    parts = np.array_split(np.arange(values.shape[-1]), bars)
    with np.errstate(invalid="ignore"):
        return np.stack([np.nanmean(values[..., part], axis=-1) for part in parts], axis=-1)


def draw(rows, column):
    """The figure."""
    first = next(iter(rows.values()))[0]
    order = frequency_order(first)
    bars = min(len(order), MAX_BARS)
    groups = np.array(first["per_class"]["group"])[order]
    figure = Figure(figsize=(11, 4), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = np.arange(bars)
    width = 0.8 / len(rows)
    for k, (label, records) in enumerate(rows.items()):
        values = pooled(np.stack([class_values(r, column)[order] for r in records]), bars)
        place = x + (k - (len(rows) - 1) / 2) * width
        color = COLORS[k % len(COLORS)]
        seeds = f" ({len(records)} seeds)" if len(records) > 1 else ""
        axes.bar(place, values.mean(0), width, color=color, label=label + seeds)
        axes.vlines(place, values.min(0), values.max(0), color="#333333", linewidth=0.8)
    shade_groups(axes, groups, len(order) / bars)
    if bars == len(order):
        counts = class_values(first, "train_images").astype(int)
        names = first["per_class"]["name"]
        axes.set_xticks(x, [f"{names[j]}  {counts[j]}" for j in order], rotation=60, ha="right")
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel("class and its number of training images")
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(order)} classes from frequent to rare, {bars} bars")
    axes.set_xlim(-0.6, bars - 0.4)
    axes.set_ylabel(column.replace("bbox", "box").replace("segm", "mask").replace("/", " "))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.tight_layout()
    return figure


def shade_groups(axes, groups, classes_per_bar):
    """Colour the background by group and name it."""
    for group, color in GROUP_COLORS.items():
        places = np.flatnonzero(groups == group)
        if len(places):
            left, right = (places[[0, -1]] + [0, 1]) / classes_per_bar - 0.5
            axes.axvspan(left, right, color=color, zorder=0)
            axes.text(
                (left + right) / 2,
                1.01,
                GROUP_WORDS[group],
                ha="center",
                transform=axes.get_xaxis_transform(),
            )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN", help="run folder or record")
    parser.add_argument("--column", default="bbox/AP", help="bbox/AP or segm/AP")
    parser.add_argument("--output", default="class_ap.png", help="picture to write")
    args = parser.parse_args(argv)
    try:
        draw(collect(args.runs), args.column).savefig(args.output)
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
