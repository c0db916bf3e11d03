#!/usr/bin/env python
"""What sampling rules do to the classes and to the length of an epoch, before any training.

    python tools/preview_sampling.py lvis_v1_train --rules sqrt cben --plot rules.png
    python tools/preview_sampling.py my_train --config-file configs/mine.yaml \\
        --rules sqrt:threshold=0.01 power:exponent=1,threshold=0.01 balanced:cap=4
    python tools/preview_sampling.py ImageNet_LT_train.txt --form draw \\
        --rules sqrt balanced class_aware progressive:epochs=90,epoch=45

All numbers are expected values; nothing is drawn. Instance sampling, the data as they are, comes
first. The target and its options are those of tools/class_counts.py. The JSON file has the fields
of that tool's report that say what the data are, and "rules": a list of what preview_rule of
lt_det/data/sampling_preview.py returns.
"""

import argparse
import json
import logging
import sys

import numpy as np
from class_counts import add_input_arguments, label_classes, open_input, shade_groups, short_source
from command_line import output_file, picture_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lt_det.data.class_report import class_report, frequency_order
from lt_det.data.rules import SAMPLING_RULES
from lt_det.data.sampling_preview import parse_rule, preview_rules, preview_tables
from lt_det.errors import LtDetError
from lt_det.evaluation.results import atomic_file

# Grey for instance sampling; the others keep apart for colour-blind readers.
COLORS = ("#70757a", "#3b76af", "#c8364a", "#e08a1e", "#5a9e6f", "#8c5fa8", "#2aa5a0")
RULES = ("sqrt", "cben", "balanced")
# Classes up to which each one has a marker.
MAX_MARKERS = 80


def collect(found, specs):
    """The content of the JSON file, and the data's report."""
    report = class_report(found)
    keys = ("source", "kind", "fingerprint", "num_images", "num_classes", "borders", "per_class")
    content = {"format_version": 1, **{key: report[key] for key in keys}}
    return {**content, "rules": preview_rules(found, specs)}, report


def draw(rules, report):
    """Images of each class per 100 images of an epoch, a line per rule."""
    order = frequency_order(report)
    order = order[: len(order) - report["num_classes_without_images"]]
    figure = Figure(figsize=(11, 5), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    marker = "o" if len(order) <= MAX_MARKERS else None
    for k, rule in enumerate(rules):
        percent = 100 * np.array(rule["expected_images"])[order] / rule["epoch_length"]
        axes.plot(
            percent,
            color=COLORS[k % len(COLORS)],
            marker=marker,
            markersize=4,
            # Narrower and narrower, so that a line on top of another shows both.
            linewidth=max(1, 3.5 - 0.7 * k),
            label=f"{rule['label']}: {rule['length_ratio']:.2f} x {report['num_images']:,} images",
        )
    groups = shade_groups(axes, np.array(report["per_class"]["group"])[order])
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set_ylabel("% of the images of an epoch")
    label_classes(axes, {**report, "num_classes_without_images": 0}, order)
    axes.set_title(f"{short_source(report)}: classes in an epoch, by sampling rule", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the names, since no corner is free under every rule.
    handles = [*axes.lines, *groups]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.set_layout_engine("constrained")
    return figure


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_arguments(parser)
    parser.add_argument(
        "--rules",
        nargs="+",
        default=RULES,
        metavar="NAME[:KEY=VALUE,...]",
        help=f"default: {' '.join(RULES)}. Names: {', '.join(sorted(SAMPLING_RULES))}; keys: the "
        "rule's parameters, form and epoch",
    )
    parser.add_argument(
        "--form",
        choices=("repeat", "draw"),
        default="repeat",
        help="of rules without a form of their own: every image as often as its factor says, or "
        "draws with replacement. Default: repeat",
    )
    parser.add_argument("--json", type=output_file, help="file to write everything to")
    parser.add_argument("--plot", type=picture_file, help="picture to write")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lt_det").setLevel(logging.INFO)
    try:
        specs = [parse_rule(text, args.form) for text in args.rules]
        content, report = collect(open_input(args), specs)
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{report['source']}: {report['num_images']:,} images, {report['num_classes']:,} classes")
    print(f"\n{preview_tables(content['rules'])}")
    if args.json:
        with atomic_file(args.json) as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")
    if args.plot:
        draw(content["rules"], report).savefig(args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
