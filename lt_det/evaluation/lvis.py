"""Instance detection and segmentation under the rules of LVIS.

The rules (Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019)
are those of ``lvis.LVISEval``, to which the numbers are equal: at most 300 detections per image;
a detection counts only if its class is known to be present or absent in the image; an unmatched
detection of a class that is not exhaustively annotated in the image is ignored; a class without
ground truth has no AP and enters no mean.

Deviations from ``lvis.LVISEval``:

- a class or group without ground truth has NaN, not -1;
- no predictions give AP 0, not an error;
- what it takes for anything else is an error: predictions of unknown classes, boxes of negative
  size, masks of another size than the image or with broken run lengths; predictions that are not
  finite are left out, with a warning;
- ground truth is numbered anew: an annotation whose id is 0 can never be matched there;
- only (image, class) pairs that hold anything are visited, all of them at once, which needs a
  fraction of the time and memory;
- nothing that is handed in (predictions, annotation file, root logger, numpy) is modified.

The evaluation itself is :func:`lt_det.evaluation.evaluate_lvis`; here predictions are collected
while a model runs.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from lt_det.errors import LtDetError
from lt_det.evaluation.groups import check_groups, groups_from_counts
from lt_det.evaluation.instance_columns import instance_columns
from lt_det.evaluation.lvis_api import (
    TASK_WORDS,
    TASKS,
    check_tasks,
    choose_protocol,
    evaluate_lvis,
)
from lt_det.evaluation.lvis_ground_truth import GroundTruth, load_ground_truth
from lt_det.evaluation.lvis_predictions import PREDICTIONS_FILE, write_predictions
from lt_det.evaluation.prediction_files import (
    FOLDER,
    Part,
    PredictionFiles,
    join_parts,
    read_part,
)
from lt_det.evaluation.predictions import Predictions, is_finite

logger = logging.getLogger(__name__)


class LongTailLVISEvaluator(DatasetEvaluator):
    """Box and mask AP under the rules of LVIS, per class and per frequency group.

    For LVIS files and for COCO files; how the latter are read is said in
    :func:`lt_det.evaluation.lvis_ground_truth.prepare_ground_truth`.

    While inference runs, each rank writes its predictions below ``<output_dir>/predictions``, see
    :mod:`lt_det.evaluation.prediction_files`, so that memory does not grow with the set. Rank 0
    then reads them all, writes them to ``<output_dir>/lvis_instances_results.json`` and evaluates
    them. What the matching found is written beside them, see
    :class:`lt_det.evaluation.Matches`. Without an output directory all stay in memory and are
    gathered.

    Attributes:
        record: the result record of the last evaluation, without its "run" part; None before
            the first one and on other ranks. See :mod:`lt_det.evaluation.results`.
    """

    def __init__(
        self,
        *,
        dataset_name: str,
        json_file: str,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        groups: Sequence[str] | None = None,
        tasks: Sequence[str] = TASKS,
        max_detections: int = 300,
        output_dir: str | None = None,
        class_counts: dict[str, Sequence[int]] | None = None,
        group_borders: Sequence[int] = (10, 100),
        distributed: bool = True,
        fingerprint: str = "",
    ):
        """Check the arguments and, on rank 0, the annotation file.

        Args:
            dataset_name: name for logs and the record.
            json_file: annotations in LVIS or COCO format.
            class_names: (C,) names, in the order of the model's classes.
            category_ids: (C,) the file's category id of each class.
            groups: (C,) "r", "c" or "f". None: `frequency` of the file; if it has none, from
                `class_counts["images"]`; without these either, there are no groups and APr, APc
                and APf are NaN.
            tasks: of "bbox" and "segm". "segm" is left out if the model predicts no masks.
            max_detections: per image, over all classes.
            output_dir: where predictions are written; None: nowhere.
            class_counts: {"images": (C,), "instances": (C,)} of the *training* set, for the
                record.
            group_borders: see :func:`lt_det.evaluation.groups.groups_from_counts`.
            distributed: gather the predictions of all ranks; every rank must then call
                :meth:`evaluate`. False: evaluate in this process what it has processed.
            fingerprint: says what the predictions are made with, for :meth:`resume`; "" = not
                known.

        Raises:
            ValueError: arguments of different lengths, an unknown task, a repeated category.
            MissingFileError, DataError: see :func:`load_ground_truth`. With several ranks only
                rank 0 reads the file.
        """
        num_classes = len(class_names)
        _check_classes(num_classes, category_ids, class_counts)
        check_tasks(tasks)
        choose_protocol("standard", max_detections)
        if groups is not None:
            check_groups(groups, num_classes)
        self._dataset_name = dataset_name
        self._json_file = str(json_file)
        self._class_names = list(class_names)
        self._category_ids = [int(i) for i in category_ids]
        self._tasks = [t for t in TASKS if t in tasks]
        self._max_detections = int(max_detections)
        self._output_dir = output_dir
        self._counts = {k: [int(n) for n in v] for k, v in (class_counts or {}).items()}
        self._distributed = distributed
        self.record = None
        self._gt = None
        self._groups, self._group_source = None, "none"
        if groups is not None:
            self._groups, self._group_source = list(groups), "given"
        elif "images" in self._counts:
            self._groups = groups_from_counts(self._counts["images"], group_borders)
            self._group_source = "training images"
        # What cannot be used should end the run before inference, not after it.
        if not distributed or comm.is_main_process():
            self._ground_truth()
        self._resumed = False
        self._files = PredictionFiles(
            os.path.join(output_dir, FOLDER) if output_dir else None,
            rank=comm.get_rank() if distributed else 0,
            ranks=comm.get_world_size() if distributed else 1,
            fingerprint=fingerprint,
        )

    def reset(self):
        """Forget what was processed, but not what :meth:`resume` has just found."""
        if not self._resumed:
            self._files.start()
        self._resumed = False

    def resume(self) -> set[int]:
        """Go on with the predictions that a run with the same fingerprint has left.

        All ranks must call it, and then not process the images whose ids it returns. Predictions
        of other fingerprints are removed.
        """
        names = self._files.resume()
        if self._distributed and any(other != names for other in comm.all_gather(names)):
            logger.warning(
                f"{self._dataset_name}: the machines do not share the folder of the predictions; "
                "inference starts anew"
            )
            self._files.start()
            names = []
        self._resumed = True
        return self._files.images(names)

    def process(self, inputs, outputs):
        """Keep the predictions of a batch, masks as RLE.

        Args:
            inputs: list of dicts with "image_id".
            outputs: list of dicts with "instances", see
                :func:`lt_det.evaluation.instance_columns.instance_columns`.

        Raises:
            DataError: a class that the model should not have.
        """
        for image, output in zip(inputs, outputs, strict=True):
            image_id = image["image_id"]
            columns = instance_columns(output["instances"], image_id, self._category_ids)
            self._files.add(image_id, columns)

    def evaluate(self) -> OrderedDict:
        """Gather, write and evaluate what was processed.

        Returns:
            {"bbox": {...}, "segm": {...}} with `METRICS` in percent (NaN: no ground truth);
            {} on ranks other than 0.

        Raises:
            DataError: a prediction that does not fit the annotation file.
            RuntimeError: the evaluation failed. In both cases the message names the file with
                the predictions, if there is an output directory.
        """
        self.record = None
        found = self._gather()
        if found is None:
            return OrderedDict()
        predictions = self._finite(found.predictions)
        path = self._write(predictions)
        where = f"; the predictions are kept in {path}" if path else ""
        try:
            self._check_coverage(found.images)
            tasks = self._possible_tasks(found.predictions.tasks)
            return self._evaluate(predictions, tasks, self._output_dir)
        except LtDetError as e:
            raise type(e)(f"{e}{where}") from e
        except Exception as e:
            raise RuntimeError(f"the evaluation of {self._dataset_name} failed: {e}{where}") from e

    def evaluate_predictions(self, predictions: Predictions | list[dict]) -> OrderedDict:
        """Evaluate predictions: columns, or the results format of LVIS.

        Nothing is gathered or written. The tasks are those that the predictions have boxes or
        masks for; no predictions at all get AP 0 in every task.

        Returns, Raises: see :meth:`evaluate`.
        """
        if not isinstance(predictions, Predictions):
            predictions = Predictions.from_results(predictions)
        predictions = self._finite(predictions)
        return self._evaluate(predictions, self._possible_tasks(predictions.tasks), None)

    def _gather(self) -> Part | None:
        """What all ranks have processed, on rank 0; None on the others.

        Rank 0 reads the files of all. Those that it cannot see, because they are on a disk of
        another machine, are read there and sent, as are predictions without a file.
        """
        parts = self._files.parts()
        if not self._distributed:
            return join_parts(parts)
        gathered = comm.gather(parts)
        unseen = comm.all_gather([any(map(_is_unseen, of_rank)) for of_rank in gathered])[0]
        if any(unseen):
            own = [read_part(part) for part in parts] if unseen[comm.get_rank()] else None
            sent = comm.gather(own)
            gathered = [b if a is None else a for a, b in zip(sent, gathered, strict=False)]
        try:
            if comm.is_main_process():
                return join_parts([part for of_rank in gathered for part in of_rank])
            return None
        finally:
            # The next evaluation may remove the files, but not before they are read.
            comm.synchronize()

    def _evaluate(
        self, predictions: Predictions, tasks: list[str], folder: str | None
    ) -> OrderedDict:
        gt = self._ground_truth()
        if not len(gt.gt_row):
            logger.warning(f"{self._dataset_name} has no ground truth: no metric has a value")
        result = evaluate_lvis(
            gt,
            predictions,
            tasks,
            max_detections=self._max_detections,
            class_names=self._class_names,
            groups=self._groups,
            group_source=self._group_source,
        )
        if folder:
            result.save_matches(folder)
        self.record = result.record(self._dataset_name, self._counts)
        logger.info(f"Results of {self._dataset_name} (percent):\n{result.table()}")
        return OrderedDict(result.metrics)

    def _ground_truth(self) -> GroundTruth:
        if self._gt is None:
            self._gt = load_ground_truth(
                self._json_file, self._category_ids, masks="segm" in self._tasks
            )
            for note in self._gt.notes:
                logger.info(f"{self._dataset_name}: {note}")
            if self._group_source != "given" and self._gt.groups is not None:
                self._groups, self._group_source = self._gt.groups, "frequency of the file"
            if self._groups is None:
                logger.warning(
                    f"{self._dataset_name}: no class has a frequency group; no APr, APc and APf"
                )
        return self._gt

    def _finite(self, predictions: Predictions) -> Predictions:
        finite = is_finite(predictions)
        if finite.all():
            return predictions
        logger.warning(
            f"{np.count_nonzero(~finite)} of {len(predictions)} predictions have a score or box "
            "that is not finite; they are dropped"
        )
        return predictions.select(finite)

    def _check_coverage(self, image_ids: np.ndarray) -> None:
        known = self._ground_truth().image_ids
        absent = np.setdiff1d(known, image_ids)
        if len(absent):
            logger.warning(
                f"{len(absent)} of {len(known)} images of {self._dataset_name} were not "
                "processed; they count as images without detections"
            )

    def _possible_tasks(self, predicted: set[str]) -> list[str]:
        """The wanted tasks that there are predictions for; all if nothing was predicted."""
        left_out = [t for t in self._tasks if predicted and t not in predicted]
        for task in left_out:
            logger.info(f"no {TASK_WORDS[task]} results: the model predicts none")
        return [t for t in self._tasks if t not in left_out]

    def _write(self, predictions: Predictions) -> str | None:
        if not self._output_dir:
            return None
        os.makedirs(self._output_dir, exist_ok=True)
        path = os.path.join(self._output_dir, PREDICTIONS_FILE)
        write_predictions(path, predictions)
        logger.info(f"wrote {len(predictions)} predictions to {path}")
        return path


def _is_unseen(part: str | Part) -> bool:
    return isinstance(part, str) and not os.path.isfile(part)


def _check_classes(num_classes: int, category_ids: Sequence[int], class_counts) -> None:
    if num_classes == 0:
        raise ValueError("class_names is empty")
    if len(category_ids) != num_classes:
        raise ValueError(f"{len(category_ids)} category_ids for {num_classes} class_names")
    repeated = [i for i, n in Counter(category_ids).items() if n > 1]
    if repeated:
        raise ValueError(f"category id {repeated[0]} belongs to more than one class")
    for unit, counts in (class_counts or {}).items():
        if unit not in ("images", "instances"):
            raise ValueError(f"class_counts has 'images' and 'instances', not {unit!r}")
        if len(counts) != num_classes:
            raise ValueError(f"{len(counts)} class_counts[{unit!r}] for {num_classes} class_names")
