#!/usr/bin/env python
"""What sampling rules do to the classes and to the length of an epoch, before any training.

    python tools/preview_sampling.py lvis_v1_train --rules sqrt cben --plot rules.png
    python tools/preview_sampling.py my_train --config-file configs/mine.yaml \\
        --rules sqrt:threshold=0.01 power:exponent=1,threshold=0.01 balanced:cap=4
    python tools/preview_sampling.py ImageNet_LT_train.txt --form draw \\
        --rules sqrt balanced class_aware progressive:epochs=90,epoch=45,end_params.cap=10

All numbers are expected values; nothing is drawn. Instance sampling, the data as they are, comes
first; with --config-file the rule that it trains with comes next. Images without annotations, or
without a labelled pixel, are left out, as in training. The target and its options are those of
tools/class_counts.py. The JSON file has the fields of that tool's report that say what the data
are, "num_images_left_out", and "rules": a list of what preview_rule of
lt_det/data/sampling_preview.py returns.
"""

import argparse
import json
import logging
import sys

import numpy as np
from class_counts import (
    add_input_arguments,
    label_classes,
    load_input_config,
    open_input,
    shade_groups,
    short_source,
)
from command_line import output_file, picture_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lt_det.data.build import training_images
from lt_det.data.class_report import class_report, frequency_order, group_rule
from lt_det.data.examine import IMAGE_LIST, annotated_only
from lt_det.data.rules import SAMPLING_RULES
from lt_det.data.sampling_preview import (
    configured_rule,
    parse_rule,
    preview_notes,
    preview_rules,
    preview_tables,
)
from lt_det.errors import LtDetError
from lt_det.evaluation.results import atomic_file

# They keep apart for colour-blind readers.
COLORS = ("#3b76af", "#c8364a", "#e08a1e", "#5a9e6f", "#8c5fa8", "#2aa5a0")
INSTANCE_COLOR = "#70757a"
# Dashes let a line below show through. No divisor of the number of colours: 30 rules differ.
DASHES = ("-", (0, (6, 3)), (0, (2, 2)), (0, (9, 2, 2, 2)), (0, (4, 5)))
MARKERS = "osD^vPX"
RULES = ("sqrt", "cben", "balanced")
# Classes up to which each one has a marker.
MAX_MARKERS = 80
# Characters that fit side by side in the legend, and what an entry needs besides its label.
LEGEND_WIDTH, LEGEND_MARGIN = 150, 8


def open_as_trained(args, cfg):
    """The data without images that training leaves out, and how many these are."""
    found = open_input(args, cfg)
    keep = args.keep_empty or (cfg is not None and not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    if keep or found.kind == IMAGE_LIST:  # where every image has a class
        return found, 0
    return annotated_only(found), found.counts.empty_images


def header(content):
    numbers = f"{content['num_images']:,} images, {content['num_classes']:,} classes"
    text = f"{content['source']}: {numbers}"
    if content["num_images_left_out"]:
        text += (
            f"; {content['num_images_left_out']:,} images without annotations are left out, as in "
            "training (--keep-empty keeps them)"
        )
    return f"{text}; {group_rule(content)}"


def collect(found, left_out, specs, total_images=None):
    """The content of the JSON file, and the data's report."""
    report = class_report(found)
    keys = ("source", "kind", "fingerprint", "num_images", "num_classes", "group_by", "borders")
    keys += ("per_class",)
    content = {"format_version": 1, **{key: report[key] for key in keys}}
    content["num_images_left_out"] = left_out
    return {**content, "rules": preview_rules(found, specs, total_images)}, report


def line_style(k, markers):
    """How the line of rule k looks; 0 is instance sampling.

    Lines that lie on top of each other get thinner, and their markers smaller, so that each shows.
    """
    style = {"color": INSTANCE_COLOR, "linewidth": 5, "linestyle": "-"}
    if k:
        style["color"] = COLORS[(k - 1) % len(COLORS)]
        style["linestyle"] = DASHES[k % len(DASHES)]
        style["linewidth"] = max(1.2, 3.2 - 0.25 * k)
    if markers:
        style.update(marker=MARKERS[k % len(MARKERS)], markersize=max(3, 9 - 0.7 * k))
    return style


def legend_columns(labels):
    """As many columns of the longest label as fit, at most three."""
    return max(1, min(3, LEGEND_WIDTH // (max(map(len, labels)) + LEGEND_MARGIN)))


def shortened(text, width=LEGEND_WIDTH - LEGEND_MARGIN):
    return text if len(text) <= width else f"{text[: width - 1]}…"


def draw(rules, report):
    """Images of each class per 100 images of an epoch, a line per rule."""
    order = frequency_order(report)
    order = order[: len(order) - report["num_classes_without_images"]]
    ratios = [f"{r['length_ratio']:.2f} x {report['num_images']:,} images" for r in rules]
    labels = [
        f"{shortened(r['label'], LEGEND_WIDTH - LEGEND_MARGIN - len(ratio) - 2)}: {ratio}"
        for r, ratio in zip(rules, ratios, strict=True)
    ]
    columns = legend_columns(labels)
    rows = -(-(len(rules) + 3) // columns)
    figure = Figure(figsize=(11, 4.4 + 0.2 * rows), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    for k, rule in enumerate(rules):
        percent = 100 * np.array(rule["expected_images"])[order] / rule["epoch_length"]
        style = line_style(k, markers=len(order) <= MAX_MARKERS)
        axes.plot(percent, label=labels[k], **style)
    groups = shade_groups(axes, report, order)
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set_ylabel("% of the images of an epoch")
    label_classes(axes, {**report, "num_classes_without_images": 0}, order)
    axes.set_title(f"{short_source(report)}: classes in an epoch, by sampling rule", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the names, since no corner is free under every rule.
    handles = [*axes.lines, *groups]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        fontsize=9,
        frameon=False,
        handlelength=3.5,
    )
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
        "rule's parameters, form and epoch; of a progressive rule also start_params.KEY and "
        "end_params.KEY",
    )
    parser.add_argument(
        "--form",
        choices=("repeat", "draw"),
        default="repeat",
        help="of rules without a form of their own: every image as often as its factor says, or "
        "draws with replacement. Default: repeat",
    )
    parser.add_argument(
        "--keep-empty",
        action="store_true",
        help="keep images without annotations; training leaves them out unless "
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS is False",
    )
    parser.add_argument("--json", type=output_file, help="file to write everything to")
    parser.add_argument("--plot", type=picture_file, help="picture to write")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lt_det").setLevel(logging.INFO)
    try:
        specs = [parse_rule(text, args.form) for text in args.rules]
        cfg = load_input_config(args)
        configured = None if cfg is None else configured_rule(cfg)
        if configured is not None:
            specs.insert(0, configured)
        total = None if cfg is None else training_images(cfg)
        content, report = collect(*open_as_trained(args, cfg), specs, total)
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(header(content))
    print(f"\n{preview_tables(content['rules'])}")
    for note in preview_notes(content["rules"]):
        print(f"\n{note}")
    if args.json:
        with atomic_file(args.json) as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")
    if args.plot:
        draw(content["rules"], report).savefig(args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
