#!/usr/bin/env python
"""Write one HTML page about a run, or about several side by side.

    python tools/report.py output/lvis_eqlv2                       # output/lvis_eqlv2/report.html
    python tools/report.py softmax=output/a "EQL v2=output/b" -o report.html

A RUN is the output folder of a training or evaluation, or a result record. All runs must be of one
task and test set; the first is what the others are compared with. The page needs no network and
no other file: results by group with intervals, what speaks against them, every class against
its size, errors, gradient ratios, training curves, pictures of tail classes, and how it was made.
What a run did not keep is named on the page and left out. A few seconds, for sets of the size of
LVIS some minutes, most of which are the intervals.
"""

import argparse
import sys
from pathlib import Path

import command_line
from reporting.classes import classes_section
from reporting.detections import DetectionPictures
from reporting.errors import errors_section
from reporting.maps import MapPictures
from reporting.mistakes import MistakePictures
from reporting.noise import Noise
from reporting.page import page
from reporting.pictures import pictures_section
from reporting.provenance import provenance_section
from reporting.results import result_section
from reporting.runs import read_runs
from reporting.training import gradient_section, training_section
from reporting.trust import trust_section
from show_results import split_label

from lt_det.errors import LtDetError
from lt_det.evaluation.results import atomic_file

REPORT = "report.html"
PICTURES = {
    "instance": DetectionPictures,
    "classification": MistakePictures,
    "sem_seg": MapPictures,
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[LABEL=]RUN",
        help="output folder of a run, or a result record (JSON)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=command_line.output_file,
        metavar="FILE",
        help=f"page to write; default {REPORT} in the first RUN, or here for a record",
    )
    parser.add_argument("--title", help="of the page; default: the labels of the runs")
    args = parser.parse_args(argv)
    if args.output is None:
        try:
            args.output = command_line.output_file(default_output(args.runs[0]))
        except argparse.ArgumentTypeError as error:
            parser.error(f"{error}; --output names another file")
    return args


def default_output(run: str) -> Path:
    """`REPORT` in a run folder; for a record, in the current one."""
    _, path = split_label(run)
    return path / REPORT if path.is_dir() else Path(REPORT)


def report(arguments: list[str], title: str | None = None) -> str:
    """The page about runs, as text.

    Args:
        arguments: ``[LABEL=]PATH`` of run folders or records.
        title: of the page; None: the labels of the runs.

    Raises:
        MissingFileError, DataError: see `reporting.runs.read_runs`.
    """
    runs = read_runs(arguments)
    noise = Noise()
    sections = [
        result_section(runs, noise),
        trust_section(runs, noise),
        classes_section(runs, noise),
        errors_section(runs),
        gradient_section(runs),
        training_section(runs),
        pictures_section(runs, PICTURES),
        provenance_section(runs),
    ]
    return page(runs, sections, title)


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        text = report(args.runs, args.title)
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with atomic_file(args.output) as file:
        file.write(text)
    print(f"{args.output} ({len(text.encode()) / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
