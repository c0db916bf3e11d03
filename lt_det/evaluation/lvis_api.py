"""Evaluation under the rules of LVIS, of files or of what is in memory; needs no Detectron2.

>>> from lt_det.evaluation import evaluate_lvis
>>> result = evaluate_lvis("lvis_v1_val.json", "lvis_instances_results.json")
>>> result.metrics["bbox"]["APr"]
"""

from __future__ import annotations

import hashlib
import logging
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.annotation_masks import AnnotationError
from lt_det.evaluation.groups import GROUPS, check_groups, group_sizes
from lt_det.evaluation.json_files import gc_paused, read_json
from lt_det.evaluation.lvis_ground_truth import (
    GroundTruth,
    load_ground_truth,
    prepare_ground_truth,
)
from lt_det.evaluation.lvis_matching import Matches, choose_candidates, match
from lt_det.evaluation.lvis_metrics import (
    METRICS,
    metrics_from_arrays,
    per_class_ap,
    precision_and_recall,
)
from lt_det.evaluation.lvis_predictions import read_predictions
from lt_det.evaluation.predictions import (
    Predictions,
    check_masks,
    check_sizes,
    has_masks,
    is_finite,
)
from lt_det.evaluation.results import make_record

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")
TASK_WORDS = {"bbox": "box", "segm": "mask"}


@dataclass(frozen=True)
class Protocol:
    """Which detections are evaluated; they are chosen by score.

    Attributes:
        rules: the name in records.
        max_detections: of each image, over all classes; None: all.
        max_per_class: of each class, over all images; None: all.
    """

    rules: str
    max_detections: int | None
    max_per_class: int | None


# Fixed AP: Dave et al., "Evaluating Large-Vocabulary Object Detectors: The Devil is in the
# Details", 2021: with a limit per image, a class is better off if others are detected less.
PROTOCOLS = {
    "standard": Protocol("lvis", 300, None),
    "fixed_ap": Protocol("lvis, fixed AP", None, 10_000),
}


@dataclass(frozen=True, eq=False)
class LVISResult:
    """What an evaluation found.

    Attributes:
        class_names: (C,) names, in the order of all arrays.
        groups: (C,) "r", "c" or "f"; None: not known.
        protocol: how it was measured, for the record.
        metrics: {task: {metric: percent}}, see `METRICS`; NaN: no ground truth.
        class_ap: {task: (C,) float64 AP in percent}; NaN: no ground truth.
        precision: {task: (T, R, C, A)}, as ``LVISEval.eval["precision"]``: 10 IoU thresholds
            0.50, 0.55, ...; 101 recalls 0, 0.01, ...; areas all, small, medium, large. -1: no
            ground truth.
        recall: {task: (T, C, A)}, as ``LVISEval.eval["recall"]``.
        matches: {task: Matches}.
    """

    class_names: list[str]
    groups: list[str] | None
    protocol: dict
    metrics: dict[str, dict[str, float]]
    class_ap: dict[str, np.ndarray]
    precision: dict[str, np.ndarray]
    recall: dict[str, np.ndarray]
    matches: dict[str, Matches]

    def record(self, dataset: str, class_counts: Mapping[str, Sequence[int]] | None = None) -> dict:
        """The result record, without its "run" part; see :mod:`lt_det.evaluation.results`.

        Args:
            dataset: name of the test set.
            class_counts: {"images": (C,), "instances": (C,)} of the training set, or some.
        """
        per_class = {"name": self.class_names}
        if self.groups is not None:
            per_class["group"] = self.groups
        per_class.update({f"train_{unit}": n for unit, n in (class_counts or {}).items()})
        if self.matches:
            per_class.update(next(iter(self.matches.values())).test_counts())
        return make_record(
            task="instance",
            dataset=dataset,
            protocol=self.protocol,
            metrics=self.metrics,
            per_class={**per_class, **{f"{t}/AP": ap for t, ap in self.class_ap.items()}},
            group_sizes=group_sizes(self.groups) if self.groups else {},
        )

    def table(self) -> str:
        """The metrics in percent, in Markdown, and how many classes of each group they are of."""
        rows = [[TASK_WORDS[t], *(m[name] for name in METRICS)] for t, m in self.metrics.items()]
        text = tabulate(rows, ["", *METRICS], tablefmt="pipe", floatfmt=".2f")
        if not self.groups or not self.class_ap:
            return text
        sizes = group_sizes(self.groups)
        valid = group_sizes(self.groups, next(iter(self.class_ap.values())))
        counts = ", ".join(f"{g} {valid[g]} of {sizes[g]}" for g in GROUPS)
        return f"{text}\n\nClasses with ground truth: {counts}"

    def save_matches(self, folder: str | os.PathLike) -> None:
        """Write ``matches_<task>.npz`` of each task."""
        for task, matches in self.matches.items():
            matches.save(matches_path(folder, task))


def matches_path(folder: str | os.PathLike, task: str) -> str:
    """Where an evaluation leaves the matches of a task."""
    return os.path.join(os.fspath(folder), f"matches_{task}.npz")


@gc_paused()
def evaluate_lvis(
    ground_truth: str | os.PathLike | dict | GroundTruth,
    predictions: str | os.PathLike | Sequence[dict] | Predictions,
    tasks: Sequence[str] | None = None,
    *,
    protocol: str = "standard",
    max_detections: int | None = 300,
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    group_source: str | None = None,
) -> LVISResult:
    """Evaluate detections under the rules of LVIS.

    The numbers are those of ``lvis.LVISEval`` 0.5.3; what differs is said in
    :mod:`lt_det.evaluation.lvis`.

    Args:
        ground_truth: annotations in LVIS or COCO format: a file, its content, or of
            :func:`load_ground_truth`.
        predictions: in the results format: a file, its content, or columns; a file or folder of
            columns. Those whose score or box is not finite are left out, with a warning. Of a list
            of dicts the masks are read, and checked, only of the detections that take part.
        tasks: of "bbox" and "segm". None: those that the predictions have boxes or masks for;
            both, with AP 0, if there are no predictions.
        protocol: "standard": each image keeps `max_detections`. "fixed_ap": each class keeps
            10,000 over all images, and images keep all.
        max_detections: per image, over all classes, by score; for "standard" alone.
        image_ids: the images to evaluate, such as those of a minival set. None: all.
        category_ids: (C,) category id of each class, for `ground_truth` that is read here. None:
            all of the file, in ascending order.
        class_names: (C,) names for the record. None: those of the file.
        groups: (C,) "r", "c" or "f". None: `frequency` of the file; if it has none, there are no
            groups and APr, APc and APf are NaN.
        group_source: where `groups` are from, for the record.

    Raises:
        ValueError: an unknown task or protocol, a limit that is no whole number above 0, groups or
            names that do not fit, or `category_ids` that has an id twice or is given with a
            `GroundTruth`.
        MissingFileError: a file is not there.
        DataError: ground truth, predictions or images that cannot be used or do not fit; the
            message names the file if there is one.
    """
    limits = choose_protocol(protocol, max_detections)
    columns, listed = _predictions(predictions, tasks)
    tasks = _tasks(tasks, columns, listed)
    gt = _ground_truth(ground_truth, category_ids, "segm" in tasks)
    if image_ids is not None:
        gt = gt.restrict_images(image_ids)
    if groups is None:
        groups, group_source = gt.groups, "none" if gt.groups is None else "frequency of the file"
    else:
        check_groups(groups, gt.num_classes)
    if class_names is None:
        class_names = [str(c.get("name", c["id"])) for c in gt.categories]
    elif len(class_names) != gt.num_classes:
        raise ValueError(f"{len(class_names)} class_names for {gt.num_classes} classes")
    parts = {name: {} for name in ("metrics", "class_ap", "precision", "recall", "matches")}
    try:
        found = _match(gt, columns, listed, tasks, limits)
    except AnnotationError as e:
        raise AnnotationError(f"{_file_prefix(ground_truth)}{e}") from e
    except DataError as e:
        raise DataError(f"{_file_prefix(predictions)}{e}") from e
    for task, matches in found.items():
        precision, recall = precision_and_recall(matches)
        parts["matches"][task] = matches
        parts["precision"][task], parts["recall"][task] = precision, recall
        parts["metrics"][task] = metrics_from_arrays(precision, recall, groups)
        parts["class_ap"][task] = per_class_ap(precision)
    return LVISResult(
        class_names=list(class_names),
        groups=None if groups is None else list(groups),
        protocol=_describe(limits, gt, group_source or "given"),
        **parts,
    )


def _match(
    gt: GroundTruth,
    predictions: Predictions,
    listed: Sequence[dict] | None,
    tasks: Sequence[str],
    limits: Protocol,
) -> dict[str, Matches]:
    """The matches of each task, after checks of the predictions."""
    check_sizes(predictions)
    if "segm" in tasks:
        check_masks(predictions)
    _note_non_finite(predictions)
    candidates = choose_candidates(
        gt,
        predictions,
        max_detections=limits.max_detections,
        max_per_class=limits.max_per_class,
    )
    return {task: match(gt, predictions, candidates, task, listed) for task in tasks}


def _file_prefix(source) -> str:
    """What a message about `source` begins with."""
    return f"{os.fspath(source)}: " if isinstance(source, (str, os.PathLike)) else ""


def choose_protocol(name: str, max_detections: int | None) -> Protocol:
    """One of `PROTOCOLS`, "standard" with this limit.

    Raises:
        ValueError: no such protocol, or a limit that is no whole number above 0.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    if name != "standard":
        return PROTOCOLS[name]
    if max_detections is not None and (
        not isinstance(max_detections, numbers.Integral)
        or isinstance(max_detections, bool)
        or max_detections < 1
    ):
        raise ValueError(
            f"max_detections must be at least 1 and a whole number, or None for all; "
            f"got {max_detections!r}"
        )
    return Protocol(PROTOCOLS[name].rules, max_detections, None)


def read_image_list(path: str | os.PathLike) -> list[int]:
    """Image ids of a file.

    Args:
        path: JSON, a list of ids or of objects with "id", or an object with "images", such a
            list of objects, as annotation files have it; or text, with an id in each line.

    Raises:
        MissingFileError: no such file.
        DataError: something else; the message names the file.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise MissingFileError(f"no list of images {path}")
    if path.endswith(".json"):
        ids = _listed_ids(path)
    else:
        try:
            with open(path, encoding="utf-8") as f:
                lines = [line.strip() for line in f]
        except UnicodeDecodeError as e:
            raise DataError(f"{path} is not text: byte {e.start}") from e
        ids = [int(line) if line.isdecimal() else line for line in lines if line]
    bad = [i for i in ids if not isinstance(i, int) or isinstance(i, bool)]
    if bad or not ids:
        found = f"{bad[0]!r:.60}" if bad else "nothing"
        raise DataError(f"{path}: expected image ids, which are whole numbers; got {found}")
    return ids


def _listed_ids(path: str) -> list:
    """What stands in the place of ids in a JSON list of images."""
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise DataError(
            f"{path}: expected a list of image ids, or an object with a list of objects as "
            f"'images'; got {content!r:.60}"
        )
    objects = [entry for entry in entries if isinstance(entry, dict)]
    if isinstance(content, dict) and len(objects) < len(entries):
        raise DataError(f"{path}: 'images' must be a list of objects, got {entries!r:.60}")
    return [entry.get("id") if isinstance(entry, dict) else entry for entry in entries]


def _ground_truth(source, category_ids: Sequence[int] | None, masks: bool) -> GroundTruth:
    if isinstance(source, GroundTruth):
        if category_ids is not None:
            raise ValueError(
                "category_ids is for ground truth that is read here, not a GroundTruth"
            )
        return source
    if isinstance(source, dict):
        gt, name = prepare_ground_truth(source, category_ids), "annotations"
    else:
        gt, name = load_ground_truth(source, category_ids, masks), source
    for note in gt.notes:
        logger.info(f"{name}: {note}")
    return gt


def _predictions(source, tasks) -> tuple[Predictions, Sequence[dict] | None]:
    """Columns, and the dicts of which the masks are still to be read."""
    if isinstance(source, Predictions):
        return source, None
    if isinstance(source, (str, os.PathLike)):
        return read_predictions(source, masks=tasks is None or "segm" in tasks), None
    results = source if isinstance(source, Sequence) else list(source)
    # Most detections are of a class that the lists of their image do not name: their masks would
    # be copied for nothing.
    return Predictions.from_results(results, masks=False), results


def _tasks(
    tasks: Sequence[str] | None, predictions: Predictions, listed: Sequence[dict] | None
) -> list[str]:
    if tasks is None:
        there = predictions.tasks | ({"segm"} if has_masks(listed) else set())
        return [t for t in TASKS if t in there or not len(predictions)]
    check_tasks(tasks)
    return [t for t in TASKS if t in tasks]


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise ValueError unless `tasks` are of `TASKS`, at least one."""
    if not tasks or any(t not in TASKS for t in tasks):
        raise ValueError(f"tasks must be of {', '.join(TASKS)}, got {list(tasks)}")


def _note_non_finite(predictions: Predictions) -> None:
    dropped = len(predictions) - int(np.count_nonzero(is_finite(predictions)))
    if dropped:
        logger.warning(
            f"{dropped} of {len(predictions)} predictions have a score or box that is not "
            "finite; they are dropped"
        )


def _describe(limits: Protocol, gt: GroundTruth, group_source: str) -> dict:
    """The protocol as records have it."""
    described = {"rules": limits.rules, "max_detections": limits.max_detections}
    if limits.max_per_class is not None:
        described["max_detections_per_class"] = limits.max_per_class
    described["federated"] = gt.federated
    described["images"] = len(gt.image_ids)
    if len(gt.left_out_images):
        # Two subsets of the same size are not to be taken for one.
        described["images_hash"] = hashlib.sha256(gt.image_ids.tobytes()).hexdigest()[:12]
    described["groups"] = group_source
    return described
