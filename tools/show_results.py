#!/usr/bin/env python
"""Print tables of result records.

tools/show_results.py output/eqlv2
tools/show_results.py EQLv2=runs/a EQLv2=runs/b Seesaw=runs/c    # mean ± std over seeds
tools/show_results.py output/eqlv2 --per-class
tools/show_results.py output/eqlv2 --intervals                   # 21.3 [19.9, 22.8]
"""

import argparse
import sys
from pathlib import Path

from lt_det.errors import LtDetError, MissingFileError
from lt_det.evaluation.results import (
    default_label,
    format_rows,
    per_class_table,
    read_record,
    selection,
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[LABEL=]RUN",
        help="the output directory of a run, or a result record (JSON)",
    )
    parser.add_argument(
        "--group-by",
        choices=("label", "config", "none"),
        default="label",
        help="runs that share this are one row, mean ± sample standard deviation over seeds. "
        "label: the LABEL given (a run without one is a row of its own); config: the name of the "
        "configuration file; none: one row per run",
    )
    parser.add_argument(
        "--intervals",
        action="store_true",
        help="the confidence interval of a single run, where its record has one (tools/compare.py "
        "has those of differences)",
    )
    parser.add_argument("--per-class", action="store_true", help="one row per class as well")
    parser.add_argument(
        "--columns", nargs="+", metavar="PART/METRIC", help="metrics to show, e.g. bbox/AP segm/APr"
    )
    parser.add_argument("--digits", type=int, default=1, help="after the decimal point")
    return parser.parse_args(argv)


def split_label(run: str) -> tuple[str | None, Path]:
    """ "LABEL=PATH" in two; a path that exists as it stands has no label."""
    label, equals, path = run.partition("=")
    return (label, Path(path)) if equals and not Path(run).exists() else (None, Path(run))


def record_files(path: Path) -> list[Path]:
    """The record itself, or the records of a run: one per test set."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MissingFileError(f"no run directory or result record {path}")
    files = sorted(path.glob("results/*.json"))
    if not files:
        raise MissingFileError(
            f"no result records in {path / 'results'}; tools/train_net.py writes one per test set "
            "after an evaluation"
        )
    return files


def collect(runs: list[str], group_by: str) -> dict[tuple, tuple[str, list[dict]]]:
    """Rows: key -> (label, records), one row for each test set and selection of the epoch."""
    rows = {}
    for run in runs:
        label, path = split_label(run)
        for file in record_files(path):
            record = read_record(file)
            name = label or (path.resolve().name if path.is_dir() else default_label(record))
            if group_by == "config":
                name = default_label(record)
            alone = group_by == "none" or (group_by == "label" and label is None)
            key = (name, record["dataset"], selection(record), str(file) if alone else None)
            rows.setdefault(key, (name, []))[1].append(record)
    return rows


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        rows = collect(args.runs, args.group_by)
        table = format_rows(
            list(rows.values()),
            columns=args.columns,
            digits=args.digits,
            intervals=args.intervals,
        )
        print(table)
        for name, records in rows.values() if args.per_class else ():
            epoch = selection(records[0])
            print(f"\n{name}, {records[0]['dataset']}{f', epoch: {epoch}' if epoch else ''}\n")
            print(per_class_table(records, digits=args.digits))
    except LtDetError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
