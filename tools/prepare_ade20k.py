#!/usr/bin/env python
"""Prepare ADE20K: from ADEChallengeData2016 as downloaded to what training reads.

    python tools/prepare_ade20k.py
    python tools/prepare_ade20k.py --root /data/ADEChallengeData2016 --workers 8

Reads images/{training,validation}/*.jpg and annotations/{training,validation}/*.png (0 =
everything else, 1..150 = classes) and writes annotations_detectron2/{training,validation}/*.png
(0..149 = classes, 255 = ignored), which ade20k_sem_seg_train and ade20k_sem_seg_val read. Every
file is checked. A run that was stopped goes on where it was; one that found faults has converted
everything sound and ends with exit code 1.
"""

import argparse
import sys
from pathlib import Path

import command_line  # noqa: F401  a warning

from lt_det.data.datasets.ade20k import EXPECTED, default_root, find_pairs, prepare_split
from lt_det.data.datasets.parallel import default_workers
from lt_det.errors import LtDetError

SHOWN = 20  # faults printed one by one


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=default_root(),
        help="the ADEChallengeData2016 folder; by default in $DETECTRON2_DATASETS, or in datasets",
    )
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="processes (default: %(default)s)"
    )
    return parser.parse_args(argv)


def print_report(report):
    print(
        f"{report.split}: {report.converted} converted, {report.kept} kept, "
        f"{len(report.faults)} faulty"
    )
    expected = EXPECTED[report.split]
    if report.images != expected:
        print(f"warning: {report.split} has {report.images} images, the release has {expected}")


def print_faults(faults, root):
    print(f"{len(faults)} faulty files:", file=sys.stderr)
    for fault in faults[:SHOWN]:
        print(f"  {fault.file.relative_to(root)} {fault.reason}", file=sys.stderr)
    if len(faults) > SHOWN:
        print(f"  and {len(faults) - SHOWN} more", file=sys.stderr)


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        for split in EXPECTED:  # both, before hours of work on one
            find_pairs(args.root, split)
        reports = [prepare_split(args.root, split, workers=args.workers) for split in EXPECTED]
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for report in reports:
        print_report(report)
    faults = [fault for report in reports for fault in report.faults]
    if faults:
        print_faults(faults, args.root)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
