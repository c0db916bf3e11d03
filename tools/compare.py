#!/usr/bin/env python
"""Compare two runs: what differs beyond the noise of the test images.

    python tools/compare.py output/softmax output/eqlv2
    python tools/compare.py --a runs/softmax_seed* --b runs/eqlv2_seed*   # several seeds a side
    python tools/compare.py A B --top 40 --json comparison.json > comparison.md

A paired bootstrap: both sides are seen on the same resampled test images, B minus A. It needs run
folders with what their evaluation has left in inference/; of result records alone, or of runs that
were evaluated by an earlier version, values and their spread over seeds are shown. With several
runs a side the seeds are resampled as well.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from command_line import output_file
from show_results import record_files

from lt_det.errors import DataError, LtDetError, MissingFileError
from lt_det.evaluation.bootstrap import (
    ALL,
    FALSE_DISCOVERY_RATE,
    MIN_IMAGES,
    metric_name,
    paired_bootstrap,
)
from lt_det.evaluation.groups import GROUP_WORDS, GROUPS
from lt_det.evaluation.per_image import read_images_of_record
from lt_det.evaluation.results import (
    LAST,
    atomic_file,
    class_values,
    column_title,
    default_label,
    markdown,
    mean_and_spread,
    metric,
    read_record,
    selection,
)

CONFIDENCE = 0.95
TOO_FEW = "too few test images to judge"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="A and B: run folders or records")
    parser.add_argument("--a", nargs="+", default=[], metavar="RUN", help="runs of A, by seed")
    parser.add_argument("--b", nargs="+", default=[], metavar="RUN", help="runs of B, by seed")
    parser.add_argument("--resamples", type=int, default=1000, help="of the test images")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    parser.add_argument("--top", type=int, default=20, help="classes to list")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all numbers here")
    args = parser.parse_args(argv)
    if bool(args.runs) == bool(args.a or args.b):
        parser.error("give either two runs, or runs with --a and --b")
    if args.runs:
        if len(args.runs) != 2:
            parser.error(f"two runs are compared, got {len(args.runs)}; --a and --b take several")
        args.a, args.b = [args.runs[0]], [args.runs[1]]
    if not (args.a and args.b):
        parser.error("each side needs a run: --a RUN --b RUN")
    for name, least in (("resamples", 2), ("seed", 0), ("top", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    return args


# ------------------------------------------------------------------ reading


def run_records(path):
    """Files of the records of a run, or the record itself.

    Of a run folder those of the last evaluation; that of a best epoch is named as a file.
    """
    path = Path(path)
    files = record_files(path)
    if path.is_dir():
        files = [f for f in files if not f.name.endswith(".best.json")] or files
    return files


def read_run(path):
    """{data set: (record, folder with what its evaluation has left, None without one)}."""
    found = {}
    for file in run_records(path):
        record = read_record(file)
        in_run = file.resolve().parent.name == "results"
        folder = file.resolve().parents[1] / "inference" / record["dataset"]
        found[record["dataset"]] = (record, folder if in_run else None)
    return found


def check_given_once(paths):
    """Raise DataError if two runs of a side are one, which would be two seeds that agree."""
    given = {}
    for k, path in enumerate(paths):
        for file in run_records(path):
            number, first = given.setdefault(file.resolve(), (k, path))
            if number != k:
                raise DataError(
                    f"{first} and {path} are one run (both have the record {file.resolve()}); "
                    "the runs of a side must be different ones, e.g. of other seeds"
                )


def read_sides(paths_a, paths_b):
    """(data set, runs of A, runs of B) for each test set that all have been evaluated on.

    Raises:
        DataError: there is no such set, the runs cannot be compared, or a side has a run twice.
    """
    for paths in (paths_a, paths_b):
        check_given_once(paths)
    sides = [[read_run(path) for path in paths] for paths in (paths_a, paths_b)]
    runs = [run for side in sides for run in side]
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    if not shared:
        sets = ("; ".join(", ".join(run) for run in side) for side in sides)
        raise DataError("no test set is common to all runs: A has {}, B has {}".format(*sets))
    for name in shared:
        check_comparable([run[name][0] for run in runs])
    return [(name, *([run[name] for run in side] for side in sides)) for name in shared]


def check_comparable(records):
    """Raise DataError for the first thing that records must share and do not."""
    first = conditions(records[0])
    for record in records[1:]:
        own = conditions(record)
        for field in {**first, **own}:
            # An entry of the protocol that a record lacks is None where it does not apply.
            one, other = first.get(field), own.get(field)
            if one != other:
                raise DataError(
                    f"the runs cannot be compared on {record['dataset']}, they differ in {field}: "
                    f"{_short(one, other)}"
                )


def conditions(record):
    chosen = selection(record)
    return {
        "task": record["task"],
        "class names": record["per_class"].get("name"),
        "groups": record["per_class"].get("group"),
        # A record that does not state it is taken for one of the last iteration.
        "selection of the epoch": LAST if chosen is None else chosen,
        **{f"protocol ({key})": value for key, value in record["protocol"].items()},
    }


def _short(one, other):
    """Two values that differ, or the first entries in which two lists do."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        k = next(k for k, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        return f"{one[k]!r} and {other[k]!r} for class {k}"
    if isinstance(one, list) and isinstance(other, list):
        return f"{len(one)} and {len(other)} entries"
    texts = (f"{len(v)} entries" if isinstance(v, list) else repr(v) for v in (one, other))
    return " and ".join(texts)


# ------------------------------------------------------------------ comparing


def compare(runs_a, runs_b, *, resamples, seed):
    """The parts (box, mask, ...) of one test set.

    Returns:
        List of namespaces: `part`, `records` (of A, of B), `comparison`, which is None without
        what the evaluations leave, and `missing`, what is not there.
    """
    records = tuple([record for record, _ in runs] for runs in (runs_a, runs_b))
    parts = [
        p for p in records[0][0]["metrics"] if all(p in r["metrics"] for r in sum(records, []))
    ]
    missing = None
    try:
        images = [[_images_by_part(*run) for run in runs] for runs in (runs_a, runs_b)]
    except MissingFileError as error:
        missing = str(error)
    found = []
    for part in parts:
        comparison = None
        if missing is None:
            a, b = ([run[part] for run in side] for side in images)
            groups = records[0][0]["per_class"].get("group")
            comparison = paired_bootstrap(
                a, b, groups, resamples=resamples, seed=seed, confidence=CONFIDENCE
            )
        found.append(
            SimpleNamespace(part=part, records=records, comparison=comparison, missing=missing)
        )
    return found


def _images_by_part(record, folder):
    if folder is None:
        raise MissingFileError("a record outside of its run folder has no per-image results")
    return {images.part: images for images in read_images_of_record(folder, record)}


# ------------------------------------------------------------------ Markdown


def summary_text(parts):
    """What differs beyond noise, in one line; "" where nothing is known."""
    found = [
        (column_title(f"{found.part}/{metric_name(found.part, name)}"), group)
        for found in parts
        if found.comparison is not None
        for name, group in found.comparison.groups.items()
        if not math.isnan(group.difference)
    ]
    judged = [(title, group) for title, group in found if group.judged]
    if not judged:
        return f"**No verdicts: {TOO_FEW}.**" if found else ""
    left = f"{len(found) - len(judged)} not judged: {TOO_FEW}"
    beyond = [f"{title} {group.difference:+.2f}" for title, group in judged if group.beyond_noise]
    words = [f"of {len(judged)} metrics"] + [left] * (len(judged) < len(found))
    if not beyond:
        words[0] = f"None {words[0]} differs beyond noise"
        return f"**{'; '.join(words)}.**"
    words.append(f"by chance alone about {(1 - CONFIDENCE) * len(judged):.1f} would be")
    return f"**Beyond noise, B - A: {', '.join(beyond)}** ({'; '.join(words)})."


def side_text(name, runs):
    """ "A: softmax (2 runs, seed 1, 2)" """
    labels = list(dict.fromkeys(default_label(record) for record, _ in runs))
    seeds = ", ".join(str(record["run"].get("seed")) for record, _ in runs)
    text = f"{name}: {', '.join(labels)} ({len(runs)} run{'s' * (len(runs) > 1)}, seed {seeds})"
    hashes = {record["run"].get("config_hash") for record, _ in runs} - {None}
    return f"{text}; their configurations differ in more than the seed" if len(hashes) > 1 else text


def group_values(found):
    """{group: (values of the runs of A, of B)}, from the records; groups without any left out."""
    part, (a, b) = found.part, found.records
    names = [ALL, *GROUPS] if a[0]["per_class"].get("group") else [ALL]
    if part == "classification":
        names.insert(0, "top1")
    columns = {name: f"{part}/{metric_name(part, name)}" for name in names}
    values = {n: tuple([metric(r, c) for r in side] for side in (a, b)) for n, c in columns.items()}
    return {name: own for name, own in values.items() if not np.isnan(sum(own, [])).all()}


def group_lines(found):
    """Rows of the table of groups."""
    record = found.records[0][0]
    sizes = {ALL: len(record["per_class"].get("name", ())), **record["group_sizes"]}
    lines = [["metric", "classes", "A", "B", "B - A", f"{CONFIDENCE:.0%} interval", "verdict"]]
    for name, values in group_values(found).items():
        difference = np.mean(values[1]) - np.mean(values[0])
        title = column_title(f"{found.part}/{metric_name(found.part, name)}")
        line = [title, str(sizes.get(name, "-"))]
        line += [mean_and_spread(side, 2) for side in values] + [f"{difference:+.2f}"]
        lines.append(line + verdict_cells(found.comparison, name))
    return lines


def verdict_cells(comparison, name):
    if comparison is None:
        return ["-", "-"]
    group = comparison.groups[name]
    words = "beyond noise" if group.beyond_noise else "no difference beyond noise"
    return [ends(group.low, group.high), words if group.judged else TOO_FEW]


def narrow_text(found):
    """Groups whose intervals are somewhat narrow; "" where there are none."""
    groups = {} if found.comparison is None else found.comparison.groups
    lines = [
        f"{column_title(f'{found.part}/{metric_name(found.part, name)}')}: {group.few_images} of "
        f"{group.classes} classes have fewer than {MIN_IMAGES} test images: the interval is "
        "somewhat narrow."
        for name, group in groups.items()
        if group.judged and group.narrow
    ]
    return "  \n".join(lines)


def ends(low, high, digits=2):
    return "-" if math.isnan(low) else f"{low:+.{digits}f} to {high:+.{digits}f}"


def chance_text(comparison):
    """How many classes are beyond noise, and how many would be by chance."""
    judged, beyond = int(comparison.judged.sum()), int(comparison.beyond_noise.sum())
    expected = (1 - CONFIDENCE) * judged
    kept = int(comparison.controlled.sum())
    return (
        f"{beyond} of {judged} classes with at least {MIN_IMAGES} test images are beyond noise one "
        f"by one; by chance alone about {expected:.1f} would be. "
        f"{kept} remain{'s' if kept == 1 else ''} if at most {FALSE_DISCOVERY_RATE:.0%} of them "
        "may be by chance (Benjamini-Hochberg)."
    )


def class_order(comparison):
    """Judged classes that moved, those that moved most first."""
    judged = np.flatnonzero(comparison.judged & (comparison.difference != 0))
    moved = np.abs(comparison.difference[judged])
    return judged[np.argsort(-moved, kind="stable")]


def class_column(found):
    """The column of the class values of a part that all records have, None without one."""
    first, *others = sum(found.records, [])
    columns = [c for c in first["per_class"] if c.startswith(f"{found.part}/")]
    return next((c for c in columns if all(c in r["per_class"] for r in others)), None)


def class_means(found, column):
    """(C,) class values of A and of B, means over the runs of a side."""
    return [np.mean([class_values(r, column) for r in side], axis=0) for side in found.records]


def class_lines(found, top):
    """Rows of the table of classes."""
    comparison, record = found.comparison, found.records[0][0]
    words = GROUP_WORDS.get(record["task"], {})
    groups = record["per_class"].get("group") or ["-"] * len(comparison.difference)
    a, b = class_means(found, class_column(found))
    lines = [["class", "group", "test images", "A", "B", "B - A", "interval", "beyond noise"]]
    for k in class_order(comparison)[:top].tolist():
        beyond = "yes, controlled" if comparison.controlled[k] else "yes"
        lines.append(
            [
                record["per_class"]["name"][k],
                words.get(groups[k], groups[k]),
                str(comparison.images[k]),
                f"{a[k]:.1f}",
                f"{b[k]:.1f}",
                f"{comparison.difference[k]:+.1f}",
                ends(comparison.low[k], comparison.high[k], 1),
                beyond if comparison.beyond_noise[k] else "no",
            ]
        )
    return lines


def few_images_text(found, top):
    """What cannot be judged."""
    comparison = found.comparison
    few = np.flatnonzero(~comparison.judged & np.isfinite(comparison.difference))
    if not len(few):
        return ""
    names = found.records[0][0]["per_class"]["name"]
    moved = few[np.argsort(-np.abs(comparison.difference[few]), kind="stable")]
    listed = ", ".join(
        f"{names[k]} ({comparison.difference[k]:+.1f}, {comparison.images[k]})"
        for k in moved[: max(1, top // 4)].tolist()
        if comparison.difference[k]
    )
    text = f"{len(few)} classes have fewer than {MIN_IMAGES} test images and are not judged."
    return f"{text} Those that moved most (difference, images): {listed}." if listed else text


def noise_text(found):
    """What the intervals cover."""
    if found.comparison is None:
        return f"No intervals and no verdicts: {found.missing}."
    single = [name for name, n in zip("AB", found.comparison.runs, strict=True) if n == 1]
    covered = "Intervals cover the choice of the test images"
    if single:
        return (
            f"{covered}, not the seed of the training: {' and '.join(single)} "
            f"{'is one run' if len(single) == 1 else 'are one run each'}. What is beyond noise may "
            "be of the seed, which several runs a side would show."
        )
    return f"{covered} and the seed of the training, as far as these runs show it."


def report(dataset, runs_a, runs_b, parts, top):
    """Markdown of one test set."""
    protocol = ", ".join(f"{k} {v}" for k, v in runs_a[0][0]["protocol"].items() if v is not None)
    sides = f"{side_text('A', runs_a)}  \n{side_text('B', runs_b)}"
    blocks = [block for block in (f"# {dataset}", sides, protocol, summary_text(parts)) if block]
    for found in parts:
        columns = found.records[0][0]["per_class"]
        sections = [f"## {found.part}", markdown(group_lines(found), left=1)]
        sections += [narrow_text(found), noise_text(found)]
        if found.comparison is not None and columns:
            sections += [chance_text(found.comparison)]
            lines = class_lines(found, top)
            if len(lines) > 1:
                sections += ["Classes that moved most:", markdown(lines, left=2)]
            sections += [few_images_text(found, top)]
        blocks += [section for section in sections if section]
    return "\n\n".join(blocks)


# ------------------------------------------------------------------ JSON


def as_json(dataset, runs_a, runs_b, parts, args):
    """All numbers of one test set; None: no value. Without comparison see `_values_json`."""
    return {
        "dataset": dataset,
        "protocol": runs_a[0][0]["protocol"],
        "a": [record["run"] for record, _ in runs_a],
        "b": [record["run"] for record, _ in runs_b],
        "resamples": args.resamples,
        "seed": args.seed,
        "confidence": CONFIDENCE,
        "parts": {
            found.part: _part_json(found) if found.comparison else _values_json(found)
            for found in parts
        },
    }


def _part_json(found):
    comparison = found.comparison
    names = ("difference", "low", "high", "p_value", "images", "judged", "beyond_noise")
    columns = {name: _plain(getattr(comparison, name)) for name in (*names, "controlled")}
    judged = int(comparison.judged.sum())
    return {
        "groups": {
            metric_name(found.part, name): {k: _plain(v) for k, v in group._asdict().items()}
            for name, group in comparison.groups.items()
        },
        "classes": {"name": found.records[0][0]["per_class"]["name"], **columns},
        "expected_by_chance": (1 - CONFIDENCE) * judged,
    }


def _values_json(found):
    """What the records alone have; "missing" says why there are no intervals and no verdicts."""
    groups = {
        metric_name(found.part, name): [float(np.mean(side)) for side in values]
        for name, values in group_values(found).items()
    }
    column = class_column(found)
    classes = {}
    if column is not None:
        a, b = class_means(found, column)
        classes = {
            "name": found.records[0][0]["per_class"].get("name"),
            "difference": _plain(b - a),
        }
    return {
        "missing": found.missing,
        "groups": {
            name: {"difference": _plain(b - a), "value_a": _plain(a), "value_b": _plain(b)}
            for name, (a, b) in groups.items()
        },
        "classes": classes,
    }


def _plain(value):
    value = np.asarray(value)
    if value.dtype.kind == "f":
        return np.where(np.isnan(value), None, value).tolist()
    return value.tolist()


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        results = []
        for dataset, runs_a, runs_b in read_sides(args.a, args.b):
            parts = compare(runs_a, runs_b, resamples=args.resamples, seed=args.seed)
            print(report(dataset, runs_a, runs_b, parts, args.top), end="\n\n")
            results.append(as_json(dataset, runs_a, runs_b, parts, args))
        if args.json:
            with atomic_file(args.json) as f:
                json.dump(results, f, indent=1, allow_nan=False)
                f.write("\n")
    except LtDetError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
