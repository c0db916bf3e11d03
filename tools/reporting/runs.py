"""What tools/report.py reads of runs: records, training curves, configurations."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml
from plot_gradient_ratio import FILE as STATISTICS_FILE
from plot_gradient_ratio import Statistics, read_statistics
from show_results import split_label

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.groups import GROUP_WORDS, GROUPS
from lt_det.evaluation.results import LAST, class_values, metric, read_record, selection
from reporting.html import sentence

METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"
# What the size of a class is measured in, by task; the first that a record has.
SIZES = {
    "instance": ("train_images", "train_instances"),
    "classification": ("train_images",),
    "sem_seg": ("train_pixels", "train_images"),
}


@dataclass(frozen=True)
class Measure:
    """A result that a class has, and its mean over the classes of a group.

    Attributes:
        column: of `per_class`.
        title: in headings.
        total: metric over all classes.
        groups: letter -> metric of the group.
        others: further metrics that a table shows -> their titles.
    """

    column: str
    title: str
    total: str
    groups: dict[str, str]
    others: dict[str, str]

    @property
    def part(self) -> str:
        """Of the record's metrics, such as "bbox"."""
        return self.column.split("/")[0]


def _boxes_or_masks(part: str, word: str) -> Measure:
    groups = {g: f"{part}/AP{g}" for g in GROUPS}
    others = {f"{part}/{m}": m for m in ("AP50", "AP75")}
    return Measure(f"{part}/AP", f"{word} AP", f"{part}/AP", groups, others)


# Task of a record -> its measures.
MEASURES = {
    "instance": (_boxes_or_masks("bbox", "box"), _boxes_or_masks("segm", "mask")),
    "classification": (
        Measure(
            "classification/accuracy",
            "accuracy",
            "classification/mean_class",
            {g: f"classification/{GROUP_WORDS['classification'][g]}" for g in GROUPS},
            {
                "classification/top1": "top-1",
                "classification/top5": "top-5",
                "classification/ece": "ECE",
            },
        ),
    ),
    "sem_seg": (
        Measure(
            "sem_seg/IoU",
            "IoU",
            "sem_seg/mIoU",
            {g: f"sem_seg/mIoU_{GROUP_WORDS['sem_seg'][g]}" for g in GROUPS},
            {
                **{f"sem_seg/{m}": m for m in ("mACC", "pACC", "fwIoU")},
                "sem_seg/boundary_mIoU": "boundary mIoU",
            },
        ),
    ),
}


@dataclass(frozen=True, eq=False)
class Run:
    """A result record with the folder of its run.

    Attributes:
        label: what the page calls the run.
        file: of the record.
        record: see `lt_det.evaluation.results`.
        folder: of the run; None: the record stands alone.
    """

    label: str
    file: Path
    record: dict
    folder: Path | None

    @property
    def task(self) -> str:
        return self.record["task"]

    @property
    def names(self) -> list[str]:
        return self.record["per_class"]["name"]

    @property
    def groups(self) -> list[str] | None:
        """(C,) letters; None: the record has none."""
        return self.record["per_class"].get("group")

    @property
    def measures(self) -> list[Measure]:
        """Those that the record has for each class."""
        return [m for m in MEASURES[self.task] if m.column in self.record["per_class"]]

    @property
    def inference(self) -> Path:
        """Folder of what the evaluation kept.

        Raises:
            MissingFileError: there is no run folder, or what it holds is of other weights.
        """
        last = self.in_folder(f"results/{self.record['dataset']}.json")
        own = self.record["run"].get("iteration")
        if last.is_file():
            kept = read_record(last)["run"].get("iteration")
            if kept != own:
                raise MissingFileError(
                    f"the predictions in {self.folder} are those of iteration {kept}; this record "
                    f"is of iteration {own} ({selection(self.record)})"
                )
        return self.folder / "inference" / self.record["dataset"]

    def in_folder(self, name: str) -> Path:
        """Path of a file of the run.

        Raises:
            MissingFileError: there is no run folder.
        """
        if self.folder is None:
            raise MissingFileError(
                f"{self.file} is a record without its run folder, in which {name} would lie"
            )
        return self.folder / name

    @cached_property
    def config(self) -> dict:
        """The configuration, as nested dicts.

        Raises:
            MissingFileError, DataError: no such file, or it is not YAML.
        """
        path = self.in_folder(CONFIG_FILE)
        if not path.is_file():
            raise MissingFileError(f"no configuration {path}")
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not YAML: {error}") from error
        if not isinstance(config, dict):
            raise DataError(f"{path} holds no configuration")
        return config

    @cached_property
    def scalars(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Training curves, see `read_scalars`."""
        return read_scalars(self.in_folder(METRICS_FILE))

    @cached_property
    def statistics(self) -> Statistics:
        """Gradient statistics, see `plot_gradient_ratio.read_statistics`."""
        path = self.in_folder(STATISTICS_FILE)
        try:
            return read_statistics(path)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not a text file: {error}") from error

    def size_column(self) -> str | None:
        """The column that says how large a class is; None: the record has none with a value."""
        columns = self.record["per_class"]
        known = (c for c in SIZES[self.task] if any(v is not None for v in columns.get(c, ())))
        return next(known, None)

    def sizes(self) -> np.ndarray:
        """(C,) sizes of the classes, NaN: not known; only if `size_column` is not None."""
        return class_values(self.record, self.size_column())

    def values(self, measure: Measure) -> np.ndarray:
        """(C,) values; NaN: a class without one, and all classes of a record without any."""
        if measure.column not in self.record["per_class"]:
            return np.full(len(self.names), np.nan)
        return class_values(self.record, measure.column)

    def total(self, column: str) -> float:
        """A metric; NaN: the record has none."""
        return metric(self.record, column)


# ---- reading ---------------------------------------------------------------------------------


def read_scalars(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scalar -> ((T,) iterations, ascending, (T,) values) of a ``metrics.json``.

    A resumed run repeats iterations: the last line of an iteration counts. A last line that a
    killed run cut short is left out.

    Raises:
        MissingFileError: no such file.
        DataError: another line that is not JSON, or a file that is no text.
    """
    if not path.is_file():
        raise MissingFileError(f"no training curves {path}; tools/train_net.py writes them")
    found: dict[str, dict[int, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file: {error}") from error
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            iteration = int(line.pop("iteration"))
            values = {k: float(v) for k, v in line.items() if isinstance(v, (int, float))}
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
            if number == len(lines):
                continue
            raise DataError(f"{path}: line {number} is no line of scalars: {error!r}") from error
        for name, value in values.items():
            found.setdefault(name, {})[iteration] = value
    return {
        name: (np.array(sorted(values)), np.array([values[i] for i in sorted(values)], float))
        for name, values in found.items()
    }


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """Runs of ``[LABEL=]PATH`` arguments: run folders or records.

    Raises:
        MissingFileError: a path that is not there, a folder without records.
        DataError: a broken record, or runs that cannot stand on one page.
    """
    found = []
    for argument in arguments:
        label, path = split_label(argument)
        file = _record_file(path)
        record = read_record(file)
        if record["task"] not in MEASURES:
            raise DataError(f"{file}: task {record['task']!r}; known are {', '.join(MEASURES)}")
        if not record["per_class"]:
            raise DataError(f"{file} has no results of classes")
        folder = path if path.is_dir() else _folder_of(file)
        found.append((label, file, record, folder))
    labels = _labels(found)
    runs = [Run(name, *entry[1:]) for name, entry in zip(labels, found, strict=True)]
    for run in runs[1:]:
        _check_same_classes(runs[0], run)
    return runs


def _record_file(path: Path) -> Path:
    """A record itself, or the one of a run folder: of its first test set, of the last epoch."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingFileError(f"no run folder or result record {path}")
    files = sorted(path.glob("results/*.json"))
    if not files:
        raise MissingFileError(
            f"no result records in {path / 'results'}; tools/train_net.py writes one per test set "
            "after an evaluation, also with --eval-only"
        )
    first = _first_test_set(path)

    def order(file):
        record = read_record(file)
        return record["dataset"] != first, selection(record) not in (None, LAST)

    return min(files, key=order)


def _first_test_set(folder: Path) -> str | None:
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))["DATASETS"]["TEST"][0]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, IndexError, TypeError):
        return None  # Run.config says what is wrong with it


def _folder_of(file: Path) -> Path | None:
    """The run folder of a record in its ``results``; a copied record has none."""
    folder = file.resolve().parent.parent
    inside = file.resolve().parent.name == "results" and (folder / CONFIG_FILE).is_file()
    return folder if inside else None


def _labels(found: Sequence[tuple]) -> list[str]:
    """One label a run: as given, else the name of folder or record; the path if two share it.

    Raises:
        DataError: a label is given twice, or a run.
    """
    paths = [str(folder or file) for _, file, _, folder in found]
    names = [folder.resolve().name if folder else file.stem for _, file, _, folder in found]
    named = [label or name for (label, *_), name in zip(found, names, strict=True)]
    labels = [
        path if label is None and named.count(name) > 1 else name
        for (label, *_), name, path in zip(found, named, paths, strict=True)
    ]
    twice = next((own for own in labels if labels.count(own) > 1), None)
    if twice:
        raise DataError(
            f"two runs are called {twice!r}; give each its own LABEL=RUN. tools/compare.py takes "
            "several seeds of a recipe together"
        )
    return labels


def _check_same_classes(first: Run, other: Run) -> None:
    for what in ("task", "dataset"):
        if first.record[what] != other.record[what]:
            raise DataError(
                f"{first.file} and {other.file} cannot stand on one page, they differ in {what}: "
                f"{first.record[what]!r} and {other.record[what]!r}"
            )
    if first.names != other.names:
        raise DataError(
            f"{first.file} and {other.file} cannot stand on one page: their class lists differ"
        )


# ---- speaking of ---------------------------------------------------------------------------


def said_of(found: Sequence[tuple[Run, str]], runs: Sequence[Run]) -> list[str]:
    """Sentences about some of `runs`: one for all runs that the same is said of.

    Args:
        found: what is said of a run, beginning with a small letter.
        runs: all of them. Labels are left out if there is only one.
    """
    labels: dict[str, list[str]] = {}
    for run, text in found:
        labels.setdefault(text, []).append(run.label)
    if len(runs) == 1:
        return [sentence(text) for text in labels]
    return [
        f"{'All runs' if len(own) == len(runs) else ', '.join(own)}: {sentence(text, False)}"
        for text, own in labels.items()
    ]


# ---- comparing -------------------------------------------------------------------------------


def flat_config(config: dict, above: str = "") -> dict[str, object]:
    """Dotted key -> value."""
    flat = {}
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value:
            flat |= flat_config(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def config_differences(configs: Sequence[dict]) -> dict[str, list]:
    """Dotted key -> its value in each configuration (None: not there), where they differ."""
    flat = [flat_config(c) for c in configs]
    keys = sorted(set().union(*flat))
    rows = {key: [f.get(key) for f in flat] for key in keys}
    return {k: values for k, values in rows.items() if any(v != values[0] for v in values)}
