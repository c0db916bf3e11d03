"""The result record: everything that an evaluation produces, in one JSON file.

Reports, tables and comparisons read records and nothing else. A record is a dict::

    format_version  1
    task            "instance", "sem_seg" or "classification"
    dataset         name of the test set, which is the split
    protocol        {...} how it was measured, e.g. {"rules": "lvis", "max_detections": 300}
    metrics         {part: {metric: number}}, e.g. {"bbox": {"AP": 21.3}}; AP in percent
    per_class       {column: (C,) list}: "name", and if known "group" ("r", "c", "f"),
                    "train_images", "train_instances", "train_pixels", "test_images",
                    "test_instances", "test_pixels", and results as "<part>/<metric>"
    group_sizes     {"r": classes, "c": classes, "f": classes}
    run             {"iteration", "seed", "config", "config_hash", "weights", "versions",
                    "counts_fingerprint", "selection", "date", "loss", "calibration",
                    "seconds_per_iteration"}; {} until `add_run_info`
    intervals       confidence intervals, only if they were computed: {"method", "resamples",
                    "seed", "confidence", "metrics": {part: {metric: [low, high]}}} in percent,
                    see :mod:`lt_det.evaluation.bootstrap`

"config_hash" names the configuration without what differs between seeds of a recipe: runs of one
hash are repetitions. "date" is that of the evaluation, UTC, as "2025-01-31T23:59:59+00:00".
Records that an earlier version wrote have neither.

"selection" says how the evaluated weights were chosen among those of the training: "last", or
"best on <split>", the epoch with the best figure on that split, as :func:`best_on` writes it.
Where that split is the test set itself, as in many published scripts, the figure is better than
that of any rule that does not look at the test labels. Tables name it and never average the two.

No value (NaN elsewhere) is None, so that a record is strict JSON as it stands and
``read_record`` returns what ``write_record`` was given.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import numbers
import os
import platform
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone

import numpy as np

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.groups import GROUP_WORDS, GROUPS

FORMAT_VERSION = 1
# Field -> type of its value.
_FIELDS = {
    "format_version": int,
    "task": str,
    "dataset": str,
    "protocol": dict,
    "metrics": dict,
    "per_class": dict,
    "group_sizes": dict,
    "run": dict,
}
# Entry of "run" -> type of its value, which may be None.
_RUN_FIELDS = {
    "iteration": int,
    "seed": int,
    "config": str,
    "config_hash": str,
    "weights": str,
    "versions": dict,
    "counts_fingerprint": str,
    "date": str,
    "loss": str,
    "seconds_per_iteration": (int, float),
}
LAST = "last"
_BEST = "best on "
# Words for the parts and metrics in column titles.
_PART_WORDS = {"bbox": "box", "segm": "mask", "classification": "", "sem_seg": ""}
_METRIC_WORDS = {
    "classification/top1": "top-1",
    "classification/top5": "top-5",
    "classification/mean_class": "class mean",
    "classification/ece": "ECE",
    "sem_seg/mIoU_head": "head",
    "sem_seg/mIoU_common": "common",
    "sem_seg/mIoU_tail": "tail",
    "sem_seg/boundary_mIoU": "boundary mIoU",
    "sem_seg/boundary_IoU": "boundary IoU",
    "sem_seg/mACC_head": "mACC head",
    "sem_seg/mACC_common": "mACC common",
    "sem_seg/mACC_tail": "mACC tail",
}
INSTANCE_COLUMNS = tuple(
    f"{part}/{metric}"
    for part in ("bbox", "segm")
    for metric in ("AP", "AP50", "AP75", "APr", "APc", "APf")
)
CLASSIFICATION_COLUMNS = tuple(
    f"classification/{metric}"
    for metric in ("top1", "top5", "many", "medium", "few", "mean_class", "ece")
)
SEM_SEG_COLUMNS = tuple(
    f"sem_seg/{metric}"
    for metric in (
        *("mIoU", "mIoU_head", "mIoU_common", "mIoU_tail"),
        *("mACC", "pACC", "fwIoU", "boundary_mIoU"),
    )
)


# ---------------------------------------------------------------------------------------------
# Making
# ---------------------------------------------------------------------------------------------


def make_record(
    *,
    task: str,
    dataset: str,
    protocol: Mapping,
    metrics: Mapping[str, Mapping[str, float]],
    per_class: Mapping[str, Sequence] | None = None,
    group_sizes: Mapping[str, int] | None = None,
) -> dict:
    """A record without its "run" part; see the module for the fields.

    Numbers may be Python, numpy or 0-d tensors, columns any 1-d sequence; NaN becomes None.

    Raises:
        DataError: a part has another shape than described; the message names the field.
    """
    record = {
        "format_version": FORMAT_VERSION,
        "task": task,
        "dataset": dataset,
        "protocol": protocol,
        "metrics": metrics,
        "per_class": per_class or {},
        "group_sizes": group_sizes or {},
        "run": {},
    }
    record = _plain(record)
    check_record(record)
    return record


def add_run_info(
    record: Mapping,
    *,
    iteration: int | None,
    seed: int | None,
    config: str | None,
    weights: str | None,
    counts_fingerprint: str | None = None,
    selection: str | None = None,
    config_hash: str | None = None,
    **more,
) -> dict:
    """A copy of `record` that says which run it is from.

    Args:
        record: see the module.
        iteration: optimiser steps behind the weights.
        seed: the run's seed.
        config: path of the configuration file.
        weights: path of the checkpoint that was evaluated.
        counts_fingerprint: of the class counts that the loss was built with.
        selection: `LAST` or :func:`best_on` a split; None: not stated.
        config_hash: of the configuration, see the module.
        **more: further entries of the "run" part.

    Raises:
        DataError: `record` is not a record, or `selection` is something else.
    """
    run = {
        "iteration": iteration,
        "seed": seed,
        "config": config,
        "config_hash": config_hash,
        "weights": weights,
        "versions": versions(),
        "counts_fingerprint": counts_fingerprint,
        "selection": selection,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **more,
    }
    record = {**_plain(record), "run": _plain(run)}
    check_record(record)
    return record


def best_on(split: str) -> str:
    """The selection "best on <split>"; `split` is the data set that chose the epoch."""
    return f"{_BEST}{split}"


def record_path(folder: str | os.PathLike, record: Mapping) -> str:
    """Where a run folder holds `record`; that of a best epoch does not replace the last one's.

    Returns:
        ``<folder>/results/<dataset>.json``, of a best epoch ``<dataset>.best.json``.
    """
    best = "" if selection(record) in (None, LAST) else ".best"
    return os.path.join(os.fspath(folder), "results", f"{record['dataset']}{best}.json")


def selection(record: Mapping) -> str | None:
    """How the evaluated weights were chosen, see the module; None: the record does not say."""
    return record["run"].get("selection")


def versions() -> dict[str, str | None]:
    """Versions of lt_det, detectron2, torch, numpy and Python; None: not installed."""
    from lt_det import __version__

    found = {"lt_det": __version__}
    for name in ("detectron2", "torch", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {**found, "python": platform.python_version()}


def _plain(value):
    """`value` in the types of JSON; NaN becomes None.

    Raises:
        DataError: infinity, or a type that JSON does not have.
    """
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if math.isinf(value):
            raise DataError("a record cannot hold an infinite number")
        return None if math.isnan(value) else float(value)
    raise DataError(f"a record cannot hold a {type(value).__name__}: {value!r}")


# ---------------------------------------------------------------------------------------------
# Checking, reading, writing
# ---------------------------------------------------------------------------------------------


def check_record(record: Mapping) -> None:
    """Raise DataError, naming the field, unless `record` has the shape of the module."""
    if not isinstance(record, Mapping):
        raise DataError(f"a record is a JSON object, not a {type(record).__name__}")
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"format_version is {version!r}; this lt_det reads {FORMAT_VERSION}")
    for name, kind in _FIELDS.items():
        if name not in record:
            raise DataError(f"field {name!r} is missing")
        if not isinstance(record[name], kind):
            got = type(record[name]).__name__
            raise DataError(f"field {name!r} must be a {kind.__name__}, not a {got}")
    for part, values in record["metrics"].items():
        if not isinstance(values, Mapping):
            raise DataError(f"field 'metrics.{part}' must be a dict of numbers")
        for metric, value in values.items():
            if not _is_number_or_none(value):
                raise DataError(f"field 'metrics.{part}.{metric}' must be a number, not {value!r}")
    for name in ("images", "max_detections"):
        value = record["protocol"].get(name)
        if value is not None and not _is_count(value):
            raise DataError(f"field 'protocol.{name}' must be a number >= 0, not {value!r}")
    _check_per_class(record["per_class"])
    _check_run(record["run"])
    if "intervals" in record:
        _check_intervals(record["intervals"])


def _check_per_class(columns: Mapping) -> None:
    if columns and "name" not in columns:
        raise DataError("field 'per_class' has no column 'name'")
    for name, column in columns.items():
        if not isinstance(column, list):
            raise DataError(f"field 'per_class.{name}' must be a list")
        if len(column) != len(columns["name"]):
            raise DataError(
                f"field 'per_class.{name}' has {len(column)} entries for "
                f"{len(columns['name'])} class names"
            )
        valid, what = _kind_of_column(name)
        bad = [v for v in column if not valid(v)]
        if bad:
            raise DataError(f"field 'per_class.{name}' must hold {what}, not {bad[0]!r}")


def _kind_of_column(name: str) -> tuple[Callable[[object], bool], str]:
    """What says whether a value may be in a column, and the words for those that may."""
    if name == "name":
        return (lambda v: isinstance(v, str)), "names"
    if name == "group":
        return GROUPS.__contains__, ", ".join(GROUPS)
    if name.startswith(("train_", "test_")):
        return (lambda v: v is None or _is_count(v)), "numbers >= 0"
    return _is_number_or_none, "numbers"


def _check_run(run: Mapping) -> None:
    for name, kind in _RUN_FIELDS.items():
        value = run.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            word = "number" if isinstance(kind, tuple) else kind.__name__
            raise DataError(f"field 'run.{name}' must be a {word}, not {value!r}")
    _check_selection(run.get("selection"))


def _check_intervals(intervals) -> None:
    metrics = intervals.get("metrics") if isinstance(intervals, Mapping) else None
    if not isinstance(metrics, Mapping):
        raise DataError("field 'intervals' must be a dict with 'metrics'")
    for part, values in metrics.items():
        if not isinstance(values, Mapping):
            raise DataError(f"field 'intervals.metrics.{part}' must be a dict of [low, high]")
        for metric, ends in values.items():
            pair = isinstance(ends, list) and len(ends) == 2 and all(map(_is_number_or_none, ends))
            if not pair:
                raise DataError(
                    f"field 'intervals.metrics.{part}.{metric}' must be [low, high], not {ends!r}"
                )


def _check_selection(value) -> None:
    if value is None or value == LAST:
        return
    if not (isinstance(value, str) and value.startswith(_BEST) and value != _BEST):
        raise DataError(
            f"field 'run.selection' must be {LAST!r} or '{_BEST}<split>', not {value!r}"
        )


def _is_number_or_none(value) -> bool:
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return value is None
    # JSON as Python reads it has NaN, and integers that no float holds.
    return value != value or abs(value) <= sys.float_info.max


def _is_count(value) -> bool:
    return value is not None and _is_number_or_none(value) and value >= 0


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, *, binary: bool = False) -> Iterator:
    """A file to write, text unless `binary`, that takes the place of `path` once all is written.

    Until then it has a name that no other process uses and that does not end as `path` does.
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    # Not `tempfile`, whose files only their owner may read: folders are shared.
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        # "+" for writers that read back what they have written.
        with open(temporary, "w+b") if binary else open(temporary, "w", encoding="utf-8") as f:
            yield f
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def write_record(path: str | os.PathLike, record: Mapping) -> None:
    """Write `record` as JSON; `path` holds the old content or all of the new one.

    Raises:
        DataError: `record` is not a record; nothing is written.
    """
    record = _plain(record)
    check_record(record)
    with atomic_file(path) as f:
        json.dump(record, f, indent=1, allow_nan=False)
        f.write("\n")


def read_record(path: str | os.PathLike) -> dict:
    """Read a record.

    Raises:
        MissingFileError: no such file.
        DataError: not a record; the message names the file and the field.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise MissingFileError(f"no result record {path}; an evaluation writes it")
    with open(path, encoding="utf-8") as f:
        try:
            record = json.load(f)
        except ValueError as e:
            raise DataError(f"{path} is not a JSON file: {e}") from e
    try:
        check_record(record)
    except DataError as e:
        raise DataError(f"{path}: {e}") from e
    return record


# ---------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------


def metric(record: Mapping, column: str) -> float:
    """The metric "<part>/<name>" of a record; NaN if it has none."""
    part, _, name = column.partition("/")
    value = record["metrics"].get(part, {}).get(name)
    return float("nan") if value is None else float(value)


def interval(record: Mapping, column: str) -> tuple[float, float]:
    """Ends of the confidence interval of "<part>/<metric>"; NaN: the record has none."""
    part, _, name = column.partition("/")
    ends = record.get("intervals", {}).get("metrics", {}).get(part, {}).get(name, (None, None))
    return tuple(float("nan") if end is None else float(end) for end in ends)


def class_values(record: Mapping, column: str) -> np.ndarray:
    """(C,) float64 column of `per_class`; NaN: no value.

    Raises:
        DataError: the record has no such column; the message lists its columns.
    """
    columns = record["per_class"]
    if column not in columns:
        raise DataError(
            f"the record of {record['dataset']} has no per-class {column!r}; it has "
            f"{', '.join(columns) or 'none'}"
        )
    return np.array([np.nan if v is None else v for v in columns[column]], dtype=np.float64)


def format_table(
    records: Sequence[Mapping],
    columns: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    digits: int = 1,
) -> str:
    """A Markdown table of metrics.

    Args:
        records: runs.
        columns: see :func:`format_rows`.
        labels: the name of each record. Records with the same label, data set and selection
            are runs of one recipe with different seeds and share a row. None: one row per
            record, named after its configuration file or data set.
        digits: after the decimal point.

    Raises:
        ValueError: no record, or not one label per record.
        DataError: records that share a row differ in protocol.
    """
    if labels is None:
        return format_rows([(default_label(r), [r]) for r in records], columns, digits)
    if len(labels) != len(records):
        raise ValueError(f"{len(labels)} labels for {len(records)} records")
    rows: dict = {}
    for label, record in zip(labels, records, strict=True):
        key = (label, record["dataset"], selection(record))
        rows.setdefault(key, (label, []))[1].append(record)
    return format_rows(list(rows.values()), columns, digits)


def format_rows(
    rows: Sequence[tuple[str, Sequence[Mapping]]],
    columns: Sequence[str] | None = None,
    digits: int = 1,
    intervals: bool = False,
) -> str:
    """A Markdown table of metrics with given rows.

    Args:
        rows: (label, records). Several records give the mean ± the sample standard deviation
            (n - 1) over those that have the metric.
        columns: "<part>/<metric>". None: those of `INSTANCE_COLUMNS`, `SEM_SEG_COLUMNS` and
            `CLASSIFICATION_COLUMNS` that a record has or, if none has any, all metrics of the
            records.
        digits: after the decimal point.
        intervals: put the confidence interval behind the value of a single record that has one,
            "21.3 [19.9, 22.8]".

    Returns:
        The table; "-" where no record has the metric. It has a column for the data set if there
        are several, one for the protocol if records of one task differ in the rules or limits of
        detections, or those of one data set in anything else of it, one for the epoch ("last" or
        "best on <split>") if a record states it, and one for the number of runs if a row has
        several.

    Raises:
        ValueError: no record.
        DataError: records of one row differ in data set, protocol or selection.
    """
    records = [r for _, runs in rows for r in runs]
    if not records:
        raise ValueError("a table needs at least one record")
    for label, runs in rows:
        _check_comparable(label, runs)
    columns = list(columns or _default_columns(records))
    several_sets = len({r["dataset"] for r in records}) > 1
    protocols = _protocol_words([runs[0] for _, runs in rows])
    several_protocols = any(protocols)
    stated = any(selection(r) for r in records)
    several_runs = any(len(runs) > 1 for _, runs in rows)
    head = ["run", *["data set"] * several_sets, *["protocol"] * several_protocols]
    head += [*["epoch"] * stated, *["runs"] * several_runs]
    lines = [head + [column_title(c) for c in columns]]
    for (label, runs), protocol in zip(rows, protocols, strict=True):
        start = [label, *[runs[0]["dataset"]] * several_sets]
        start += [protocol or "-"] * several_protocols
        start += [*[selection(runs[0]) or "-"] * stated, *[str(len(runs))] * several_runs]
        cells = [mean_and_spread([metric(r, c) for r in runs], digits) for c in columns]
        if intervals and len(runs) == 1:
            ends = [interval(runs[0], c) for c in columns]
            cells = [_with_ends(*own, digits) for own in zip(cells, ends, strict=True)]
        lines.append(start + cells)
    return markdown(lines, left=len(head) - several_runs)


# Entry of a protocol -> what records share where a difference in it is told. The others, such as
# the number of images, are told of one data set: between two of them they differ by nature.
_TOLD_WITHIN = {
    "rules": (),
    "max_detections": ("rules",),
    "max_detections_per_class": ("rules",),
    "images_hash": ("dataset", "images"),
}
_ENTRY_WORDS = {
    "max_detections": "{} detections an image",
    "max_detections_per_class": "{} detections a class",
    "images": "{} images",
    "images_hash": "list {}",
}


def _protocol_words(records: Sequence[Mapping]) -> list[str]:
    """What each protocol has that others of the task have not, in short; "" if there is nothing."""
    known = [{**r["protocol"], "dataset": r["dataset"], "task": r["task"]} for r in records]
    keys = [k for p in known for k in p if k not in ("dataset", "task")]
    words: list[list[str]] = [[] for _ in records]
    for key in dict.fromkeys([*_TOLD_WITHIN, *keys]):
        values: dict = {}
        within = [(p["task"], *map(p.get, _TOLD_WITHIN.get(key, ("dataset",)))) for p in known]
        for place, protocol in zip(within, known, strict=True):
            values.setdefault(place, set()).add(json.dumps(protocol.get(key)))
        for place, protocol, own in zip(within, known, words, strict=True):
            if len(values[place]) > 1:
                own += _entry_words(key, protocol.get(key))
    return [", ".join(own) for own in words]


def _entry_words(key: str, value) -> list[str]:
    """An entry of a protocol in short; nothing where there is no value and that says nothing."""
    if value is None:
        return {"max_detections": ["all detections"], "images_hash": ["no list"]}.get(key, [])
    if key == "rules":
        # "fixed AP" of "lvis, fixed AP".
        return [str(value).rsplit(", ", 1)[-1]]
    if key == "federated":
        return ["federated" if value else "exhaustive"]
    return [_ENTRY_WORDS.get(key, f"{key.replace('_', ' ')}: {{}}").format(value)]


def per_class_table(records: Sequence[Mapping], digits: int = 1) -> str:
    """A Markdown table with one row per class, from the most to the fewest training examples.

    Args:
        records: runs of one recipe; each number is their mean ± standard deviation.
        digits: after the decimal point.

    Raises:
        ValueError: no record.
        DataError: the records have no or different classes, or cannot be averaged.
    """
    if not records:
        raise ValueError("a table needs at least one record")
    first = records[0]["per_class"]
    for record in records:
        if not first or record["per_class"].get("name") != first["name"]:
            raise DataError(f"the records of {record['dataset']} have no or different classes")
    _check_comparable(records[0]["dataset"], records)
    if "group" in first:
        words = GROUP_WORDS.get(records[0]["task"], {})
        first = {**first, "group": [words.get(g, g) for g in first["group"]]}
    about = ("name", "group", *(f"train_{unit}" for unit in ("images", "instances", "pixels")))
    about += ("test_images", "test_instances", "test_pixels")
    about = [c for c in about if c in first]
    numbers_ = [c for c in first if "/" in c]
    order = range(len(first["name"]))
    # A stable sort: the last unit that is there decides.
    for unit in ("train_instances", "train_images", "train_pixels"):
        if unit in first:
            order = sorted(order, key=lambda k, unit=unit: -(first[unit][k] or 0))
    values = {c: np.stack([class_values(r, c) for r in records]) for c in numbers_}
    lines = [[c.replace("_", " ") for c in about] + [column_title(c) for c in numbers_]]
    for k in order:
        cells = [mean_and_spread(values[c][:, k], digits) for c in numbers_]
        lines.append([str(first[c][k]) for c in about] + cells)
    return markdown(lines, left=sum(c in ("name", "group") for c in about))


def markdown(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first of `lines` is the head, the first `left` columns are text.

    What would end a cell or a row is escaped, a line break becomes a space.
    """
    lines = [[_cell_text(cell) for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]

    def row(line):
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([row(lines[0]), row(rule), *(row(line) for line in lines[1:])])


def _cell_text(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", "\\|")


def default_label(record: Mapping) -> str:
    """Name of the configuration file without its ending, else the data set.

    A run's own copy is always called config.yaml; it goes by the name of its directory.
    """
    config = record["run"].get("config")
    if not config:
        return record["dataset"]
    folder, file = os.path.split(config)
    return (
        os.path.basename(folder) if file == "config.yaml" and folder else os.path.splitext(file)[0]
    )


def _default_columns(records: Sequence[Mapping]) -> list[str]:
    present = list(
        dict.fromkeys(
            f"{part}/{name}" for r in records for part, m in r["metrics"].items() for name in m
        )
    )
    usual = INSTANCE_COLUMNS + SEM_SEG_COLUMNS + CLASSIFICATION_COLUMNS
    return [c for c in usual if c in present] or present


def _check_comparable(label: str, runs: Sequence[Mapping]) -> None:
    first = _conditions(runs[0])
    for run in runs[1:]:
        for field, value in _conditions(run).items():
            if value != first[field]:
                raise DataError(
                    f"runs labelled {label!r} cannot be averaged, they differ in {field}: "
                    f"{first[field]!r} and {value!r}"
                )


def _conditions(record: Mapping) -> dict:
    """What records must share to be averaged."""
    return {
        "dataset": record["dataset"],
        "protocol": record["protocol"],
        "selection": selection(record),
    }


def column_title(column: str) -> str:
    """What tables call a column: "box AP" for "bbox/AP"."""
    part, _, name = column.partition("/")
    name = _METRIC_WORDS.get(column, name)
    return f"{_PART_WORDS.get(part, part)} {name}".strip()


def _with_ends(cell: str, ends: tuple[float, float], digits: int) -> str:
    if any(map(math.isnan, ends)):
        return cell
    return f"{cell} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± sample standard deviation (n - 1) of those that are not NaN; "-" if there is none."""
    valid = [v for v in values if not math.isnan(v)]
    if not valid:
        return "-"
    mean = f"{np.mean(valid):.{digits}f}"
    return mean if len(valid) == 1 else f"{mean} ± {np.std(valid, ddof=1):.{digits}f}"
