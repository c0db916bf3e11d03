#!/usr/bin/env python
"""Count images, instances or pixels per class of any data: tables, JSON and a plot.

    python tools/class_counts.py lvis_v1_train --plot lvis.png
    python tools/class_counts.py my_train --config-file configs/mine.yaml --json counts.json
    python tools/class_counts.py annotations/train.json
    python tools/class_counts.py ADEChallengeData2016/annotations/training \\
        --zero-is-unlabelled --classes ADEChallengeData2016/objectInfo150.txt
    python tools/class_counts.py ImageNet_LT_train.txt --classes names.txt

The fields of the JSON file are described in lt_det/data/class_report.py. Counts of annotation
files and label maps are kept and used again as long as the data stay the same.
"""

import argparse
import json
import logging
import os
import sys

import numpy as np
from command_line import output_file, picture_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lt_det.data import register_from_config
from lt_det.data.class_report import (
    class_report,
    class_table,
    frequency_order,
    group_words,
    shown_classes,
    summary_text,
    units_of,
)
from lt_det.data.datasets.lvis_format import FORMATS
from lt_det.data.examine import LABEL_MAPS, LVIS_BORDERS, examine
from lt_det.errors import ConfigError, LtDetError
from lt_det.evaluation.results import atomic_file

# As in plot_class_ap.py.
GROUP_COLORS = {"f": "#dfe8f2", "c": "#fbeedd", "r": "#f7dfe2"}
BAR_COLOR, DOT_COLOR = "#9aa0a6", "#c8364a"
MAX_NAMES = 80


def add_input_arguments(parser):
    """The target and the options that say how to open it."""
    parser.add_argument(
        "target",
        help="registered data set, annotation file (LVIS or COCO form), folder of label maps (PNG),"
        " or list file of image classification ('path label' per line)",
    )
    parser.add_argument("--config-file", help="register the data sets of its DATASETS.LT.REGISTER")
    parser.add_argument("--classes", help="class list of label maps or a list file (JSON or text)")
    parser.add_argument("--format", choices=FORMATS, help="of an annotation file; else guessed")
    parser.add_argument(
        "--zero-is-unlabelled",
        action="store_true",
        help="label maps: value 0 is no class and value 1 the first class, as in ADE20K",
    )
    parser.add_argument(
        "--borders",
        nargs=2,
        type=int,
        metavar=("R", "C"),
        help="last image count of the groups r and c. Default: the groups of the annotation file "
        "if it has them, else DATASETS.LT.GROUP_BORDERS of --config-file, else 10 100; for list "
        "files 19 100 (few, medium, many shots) unless the file has other ones than 10 100; for "
        "label maps thirds of the classes by pixels, or as DATASETS.LT.SEM_SEG.GROUP_BY says",
    )
    parser.add_argument("--cache-dir", help="default: $DETECTRON2_DATASETS/lt_det_cache")


def load_input_config(args):
    """The configuration of --config-file, its data sets registered; None without."""
    if not args.config_file:
        return None
    from lt_det.engine import load_config

    cfg = load_config(args.config_file)
    register_from_config(cfg)
    return cfg


def open_input(args, cfg=None):
    """What the arguments of `add_input_arguments` name; `cfg` is `load_input_config` of them."""
    if args.borders and not 0 < args.borders[0] < args.borders[1]:
        raise ConfigError(f"--borders must be 0 < R < C, got {args.borders[0]} {args.borders[1]}")
    options = {"borders": args.borders, "own_groups": not args.borders}
    cache_dir = args.cache_dir
    if cfg is not None:
        cache_dir = cache_dir or cfg.DATASETS.LT.CACHE_DIR
        if not args.borders:
            options["group_by"] = cfg.DATASETS.LT.SEM_SEG.GROUP_BY
            # The default is no choice: list files keep their own borders then.
            if tuple(cfg.DATASETS.LT.GROUP_BORDERS) != LVIS_BORDERS:
                options["borders"] = cfg.DATASETS.LT.GROUP_BORDERS
    return examine(
        args.target,
        class_file=args.classes,
        file_format=args.format,
        zero_is_unlabelled=args.zero_is_unlabelled,
        cache_dir=cache_dir,
        **options,
    )


def draw(report):
    """The long tail: images per class as bars, instances or pixels as dots."""
    order, units = frequency_order(report), units_of(report)
    images = np.array(report["per_class"]["images"])[order]
    named = len(order) <= MAX_NAMES
    figure = Figure(figsize=(11, 5 if named else 4.2), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    # From half of the smallest, so that it has a bar too, and with room for the legend.
    axes.set_ylim(images[images > 0].min() / 2, images.max() * 3)
    axes.set_ylabel("images")
    x = np.arange(len(order))
    if named:
        handles = [axes.bar(x, images, 0.8, color=BAR_COLOR, label="images")]
    else:
        handles = [axes.fill_between(x, images, step="mid", color=BAR_COLOR, label="images", lw=0)]
    for unit in units[1:]:
        handles.append(draw_dots(axes, unit, np.array(report["per_class"][unit])[order]))
    handles += shade_groups(axes, report, order)
    axes.set_xlim(-0.6, len(order) - 0.4)
    label_classes(axes, report, order)
    factors = [f"{report['imbalance_factor'][u]:,.0f} by {u}" for u in units]
    axes.set_title(f"{short_source(report)}: imbalance factor {', '.join(factors)}", fontsize=11)
    for each in figure.axes:
        each.spines["top"].set_visible(False)
        each.spines["right"].set_visible(len(figure.axes) > 1)
    # On the topmost axes, so that no dot lies over the legend.
    figure.axes[-1].legend(handles=handles, loc="upper right", fontsize=9, framealpha=1)
    figure.tight_layout()
    return figure


def short_source(report):
    """File name or, since folders are called "training" everywhere, the last two folders."""
    parts = os.path.normpath(report["source"]).split(os.sep)
    return "/".join(parts[-2:] if report["kind"] == LABEL_MAPS else parts[-1:])


def draw_dots(axes, unit, values):
    """Dots of the second unit; pixels, being so many, on an axis of their own."""
    present = np.flatnonzero(values)
    if unit == "pixels":
        axes, label = axes.twinx(), "pixels (right axis)"
        axes.set_yscale("log")
        axes.set_ylim(values[present].min() / 2, values.max() * 3)
        axes.set_ylabel(unit, color=DOT_COLOR)
    else:
        label = unit
        axes.set_ylim(top=values.max() * 3)
        axes.set_ylabel(f"images, {unit}")
    # Points squared: apart for a hundred classes, still seen for a thousand.
    size = np.clip(1500 / len(values), 4, 20)
    return axes.scatter(
        present, values[present], s=size, color=DOT_COLOR, label=label, zorder=3, linewidths=0
    )


def shade_groups(axes, report, order):
    """Colour the background by group; returns what the legend shows of it."""
    groups, words = np.array(report["per_class"]["group"])[order], group_words(report)
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    for left, right in zip(starts, np.r_[starts[1:], len(groups)], strict=True):
        axes.axvspan(left - 0.5, right - 0.5, color=GROUP_COLORS[groups[left]], zorder=0, lw=0)
    sizes = {g: int((groups == g).sum()) for g in GROUP_COLORS}
    return [
        Patch(facecolor=color, edgecolor="#bbbbbb", label=f"{words[g]}: {_classes(sizes[g])}")
        for g, color in GROUP_COLORS.items()
        if sizes[g]
    ]


def _classes(number):
    return f"{number:,} class{'es' if number != 1 else ''}"


def label_classes(axes, report, order):
    """Names of few classes, ranks of many; classes without images are told apart."""
    missing = report["num_classes_without_images"]
    note = f"; the last {missing} are in no image" if missing else ""
    if len(order) > MAX_NAMES:
        axes.set_xlabel(f"rank of {len(order):,} classes by images{note}")
        return
    names = [report["per_class"]["name"][k] for k in order]
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
    # 40 names fit side by side aslant, 80 upright at 7 points.
    style = {"rotation": 45, "ha": "right", "rotation_mode": "anchor", "fontsize": 9}
    if len(order) > MAX_NAMES // 2:
        style = {"rotation": 90, "fontsize": 7}
    axes.set_xticks(range(len(order)), names, **style)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(f"classes from frequent to rare{note}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_arguments(parser)
    parser.add_argument("--sort", choices=("count", "id"), default="count", help="of the table")
    parser.add_argument(
        "--top",
        type=int,
        metavar="N",
        help="show the N most frequent and the N rarest classes; 0: all. Default: all of up to 40 "
        "classes, else 10",
    )
    parser.add_argument("--json", type=output_file, help="file to write everything to")
    parser.add_argument("--plot", type=picture_file, help="picture of the long tail to write")
    args = parser.parse_args(argv)
    if args.top is not None and args.top < 0:
        parser.error(f"--top must be 0 or more, got {args.top}")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lt_det").setLevel(logging.INFO)
    try:
        report = class_report(open_input(args, load_input_config(args)))
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    classes = shown_classes(report, args.top)
    print(summary_text(report), end="\n\n")
    print(class_table(report, sorted(classes) if args.sort == "id" else classes))
    if len(classes) < report["num_classes"]:
        print(f"\n{len(classes)} of {report['num_classes']} classes; --top 0 shows all")
    if args.json:
        with atomic_file(args.json) as file:
            json.dump(report, file, indent=1, allow_nan=False)
            file.write("\n")
    if args.plot:
        draw(report).savefig(args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
