"""Long-tailed semantic segmentation: IoU and accuracy of pixels by class and by class size.

The measures are functions of label maps in :mod:`lt_det.evaluation.sem_seg_metrics`; here they
are taken over a test set, on one process or several. What is held is a confusion matrix, the
names of the images and, if there is an output directory, the areas of the few classes in each.
"""

from __future__ import annotations

import itertools
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from lt_det.errors import ConfigError, DataError
from lt_det.evaluation.groups import check_groups, group_sizes
from lt_det.evaluation.results import make_record
from lt_det.evaluation.sem_seg_metrics import (
    BOUNDARY_SHARE,
    IGNORED,
    SIZES,
    Areas,
    areas,
    boundary_areas,
    boundary_distance,
    by_size,
    class_accuracy,
    class_iou,
    confusion_matrix,
    mean_iou,
    overall,
    top_class,
)
from lt_det.evaluation.sem_seg_predictions import (
    IMAGES_FILE,
    PREDICTIONS_FILE,
    PREDICTIONS_FOLDER,
    join_parts,
    json_lines,
    present_areas,
    write_image_areas,
    write_label_png,
)

logger = logging.getLogger(__name__)

TASK = "sem_seg"
SAVE_KEY = "TEST.LT.SEM_SEG.SAVE"
SAVE_FORMS = ("", "png", "json")


class LongTailSemSegEvaluator(DatasetEvaluator):
    """IoU and accuracy of pixels: over all classes, per class, and per class size.

    Metrics, in percent:

    - ``mIoU``, ``fwIoU``, ``mACC``, ``pACC``: as Detectron2's `SemSegEvaluator`, see
      :func:`~lt_det.evaluation.sem_seg_metrics.overall`.
    - ``mIoU_head``, ``mIoU_common``, ``mIoU_tail`` and the same of ``mACC``: over the classes of
      a group, see :func:`~lt_det.evaluation.sem_seg_metrics.by_size`; NaN without groups.
    - ``boundary_mIoU``, with `boundary`: the mean taken as ``mIoU`` is, over the pixels along the
      boundaries, see :func:`~lt_det.evaluation.sem_seg_metrics.boundary_areas`.

    Pixels with the label 255 count nowhere. Unlike Detectron2's evaluator this one keeps and
    codes no prediction unless asked to. Into `output_dir` goes ``sem_seg_images.npz``, with the
    areas of each image.

    Attributes:
        record: the result record of the last evaluation, without its "run" part; None before
            the first one and on other ranks. See :mod:`lt_det.evaluation.results`.
    """

    def __init__(
        self,
        *,
        dataset_name: str,
        class_names: Sequence[str],
        read_labels: Callable[[dict], np.ndarray],
        groups: Sequence[str] | None = None,
        group_source: str = "given",
        class_counts: dict[str, Sequence[int]] | None = None,
        boundary: bool = False,
        save: str = "",
        output_dir: str | None = None,
        distributed: bool = True,
    ):
        """Check the arguments.

        Args:
            dataset_name: the split, for logs and the record.
            class_names: (C,) names, in the order of the model's classes; at most 255.
            read_labels: gives the (H, W) uint8 label map of an input of :meth:`process`: class
                ids 0..C-1, 255 where it is ignored.
            groups: (C,) "f" = head, "c" = common, "r" = tail; None: there are no groups.
            group_source: how the groups were drawn, for the record.
            class_counts: {"images": (C,), "pixels": (C,)} of the *training* set, or one of them.
            boundary: measure Boundary IoU too.
            save: predictions to write into `output_dir`: "" = none, "png" = a label map for each
                image, "json" = the run lengths that Detectron2 writes, with the class id as
                "category_id". See :mod:`lt_det.evaluation.sem_seg_predictions`.
            output_dir: where files are written; None: nowhere.
            distributed: add up the results of all ranks; every rank must then call
                :meth:`evaluate`. False: evaluate in this process what it has processed.

        Raises:
            ValueError: arguments of different lengths, no or more than 255 classes, an unknown
                group, or predictions to save and no `output_dir`.
            ConfigError: `save` is something else.
        """
        num_classes = len(class_names)
        if not 1 <= num_classes <= IGNORED:
            raise ValueError(f"class_names must be 1 to {IGNORED}, got {num_classes}")
        for unit, counts in (class_counts or {}).items():
            if len(counts) != num_classes:
                raise ValueError(f"{len(counts)} counts of {unit} for {num_classes} class_names")
        if groups is not None:
            check_groups(groups, num_classes)
        check_save(save)
        if save and not output_dir:
            raise ValueError("save needs an output_dir to write predictions to")
        self._dataset_name = dataset_name
        self._class_names = list(class_names)
        self._read_labels = read_labels
        self._groups = None if groups is None else list(groups)
        self._group_source = "none" if groups is None else group_source
        self._counts = {k: [int(n) for n in v] for k, v in (class_counts or {}).items()}
        self._boundary = boundary
        self._save = save
        self._output_dir = output_dir
        self._distributed = distributed
        self._part, self._part_path = None, None
        self.record = None
        self.reset()

    def reset(self):
        """Forget what was processed."""
        num_classes = len(self._class_names)
        self._matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._boundary_areas = np.zeros((3, num_classes), dtype=np.int64)
        self._images_of_class = np.zeros(num_classes, dtype=np.int64)
        # What must differ between images -> file of the image.
        self._images: dict[str, str] = {}
        # Areas of the classes in each of them, if they are to be written.
        self._present: list[np.ndarray] = []
        unfinished = self._finished_part()
        if unfinished:
            os.remove(unfinished)

    def process(self, inputs, outputs):
        """Count the pixels of a batch, and write its predictions if asked to.

        Args:
            inputs: list of dicts with "file_name", and what `read_labels` needs.
            outputs: list of dicts with "sem_seg": (C, H, W) float scores, higher is more likely,
                or an (H, W) map of class ids (ints), both in the size of the label map. Of equal
                scores the lower class id is predicted.

        Raises:
            DataError: NaN scores, a prediction of another size than the label map or with an id
                that is no class, or an image that was processed before; the message names the
                file.
        """
        for image, output in zip(inputs, outputs, strict=True):
            file_name = image["file_name"]
            labels = self._read_labels(image)
            try:
                predicted = self._label_map(output["sem_seg"])
                self._add(labels, predicted)
            except ValueError as e:
                raise DataError(f"{file_name}: {e}") from e
            self._remember(self._images, self._identity(file_name), file_name)
            self._write(file_name, predicted)

    def evaluate(self) -> OrderedDict:
        """Add up and evaluate what was processed.

        Returns:
            {"sem_seg": metrics} in percent; {} on ranks other than 0.

        Raises:
            DataError: no image was processed, or one by two ranks.
        """
        self.record = None
        own = (self._images, self._matrix, self._boundary_areas, self._images_of_class)
        gathered = [(*own, self._present, self._finished_part())]
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(gathered[0], dst=0)
            if not comm.is_main_process():
                return OrderedDict()
        images: dict[str, str] = {}
        for rank in gathered:
            for identity, file_name in rank[0].items():
                self._remember(images, identity, file_name)
        if not images:
            raise DataError(f"no image of {self._dataset_name} was processed")
        matrix, boundary, images_of_class = (sum(r[k] for r in gathered) for k in (1, 2, 3))
        if self._output_dir:
            present = list(itertools.chain.from_iterable(rank[4] for rank in gathered))
            path = os.path.join(self._output_dir, IMAGES_FILE)
            write_image_areas(path, list(images.values()), present, matrix)
        parts = [rank[5] for rank in gathered if rank[5]]
        if parts:
            join_parts(os.path.join(self._output_dir, PREDICTIONS_FILE), parts)
        whole, boundary = areas(matrix), Areas(*boundary)
        results = self._metrics(whole, boundary)
        self.record = self._make_record(results, whole, boundary, len(images), images_of_class)
        self._log(results)
        return OrderedDict({TASK: results})

    def _label_map(self, output: torch.Tensor) -> np.ndarray:
        """(H, W) class ids: uint8 from scores, as they are from a map."""
        if output.ndim == 3:
            if len(output) != len(self._class_names):
                raise ValueError(
                    f"scores of {len(output)} classes, but {self._dataset_name} has "
                    f"{len(self._class_names)}"
                )
            output = top_class(output.detach())
        return output.cpu().numpy()

    def _add(self, labels: np.ndarray, predicted: np.ndarray) -> None:
        matrix = confusion_matrix(labels, predicted, len(self._class_names))
        self._matrix += matrix
        self._images_of_class += matrix.any(axis=1)
        if self._output_dir:
            self._present.append(present_areas(areas(matrix)))
        if self._boundary:
            distance = boundary_distance(*labels.shape)
            self._boundary_areas += boundary_areas(labels, predicted, len(matrix), distance)

    def _identity(self, file_name: str) -> str:
        """What two images cannot share: the name of the prediction, if there is one each."""
        return _stem(file_name) if self._save == "png" else file_name

    def _remember(self, images: dict[str, str], identity: str, file_name: str) -> None:
        """Add an image to `images`; what was counted twice cannot be taken back."""
        if identity not in images:
            images[identity] = file_name
        elif images[identity] == file_name:
            raise DataError(f"{file_name} was processed twice for {self._dataset_name}")
        else:
            raise DataError(_same_name(images[identity], file_name))

    def _write(self, file_name: str, predicted: np.ndarray) -> None:
        if self._save == "png":
            path = os.path.join(self._output_dir, PREDICTIONS_FOLDER, f"{_stem(file_name)}.png")
            write_label_png(path, predicted.astype(np.uint8, copy=False))
        elif self._save == "json":
            self._open_part().write(json_lines(file_name, predicted))

    def _open_part(self):
        """The file that this rank writes to until all are joined."""
        if self._part is None:
            os.makedirs(self._output_dir, exist_ok=True)
            # A new name each time: rank 0 may still be reading the last one.
            name = f"{PREDICTIONS_FILE}.{uuid.uuid4().hex}.part"
            self._part_path = os.path.join(self._output_dir, name)
            self._part = open(self._part_path, "w", encoding="utf-8")  # noqa: SIM115
        return self._part

    def _finished_part(self) -> str | None:
        """Close the file of this rank and leave it to the caller; None: there is none."""
        path = self._part_path
        if path:
            self._part.close()
        self._part, self._part_path = None, None
        return path

    def _metrics(self, whole: Areas, boundary: Areas) -> dict[str, float]:
        groups = {f"{m}_{s}": float("nan") for m in ("mIoU", "mACC") for s in SIZES}
        if self._groups is not None:
            groups = by_size(whole, self._groups)
        fractions = {**overall(whole), **groups}
        if self._boundary:
            fractions["boundary_mIoU"] = mean_iou(boundary)
        return {metric: 100 * value for metric, value in fractions.items()}

    def _make_record(
        self,
        results: dict[str, float],
        whole: Areas,
        boundary: Areas,
        images: int,
        images_of_class: np.ndarray,
    ) -> dict:
        columns = {"name": self._class_names}
        if self._groups is not None:
            columns["group"] = self._groups
        for unit in ("images", "pixels"):
            if unit in self._counts:
                columns[f"train_{unit}"] = self._counts[unit]
        columns |= {"test_images": images_of_class, "test_pixels": whole.labelled}
        columns[f"{TASK}/IoU"] = 100 * class_iou(whole)
        columns[f"{TASK}/ACC"] = 100 * class_accuracy(whole)
        if self._boundary:
            columns[f"{TASK}/boundary_IoU"] = 100 * class_iou(boundary)
        return make_record(
            task=TASK,
            dataset=self._dataset_name,
            protocol={
                "split": self._dataset_name,
                "images": images,
                "groups": self._group_source,
                "ignored": IGNORED,
                "mean": "IoU: classes in labels or prediction; ACC: classes in labels",
                "tie": "lower class id first",
                "boundary": _boundary_rule() if self._boundary else None,
            },
            metrics={TASK: results},
            per_class=columns,
            group_sizes=group_sizes(self._groups) if self._groups else {},
        )

    def _log(self, results: dict) -> None:
        table = tabulate([list(results.values())], list(results), tablefmt="pipe", floatfmt=".2f")
        logger.info(f"Results of {self._dataset_name} (percent):\n{table}")


def check_save(save: str, file_names: Sequence[str] = ()) -> None:
    """Raise a ConfigError for a value that ``TEST.LT.SEM_SEG.SAVE`` cannot have.

    Args:
        save: the value.
        file_names: of the images; a prediction kept as PNG is called like its image.
    """
    if save not in SAVE_FORMS:
        raise ConfigError(f"{SAVE_KEY} must be '', 'png' or 'json', got {save!r}")
    seen: dict[str, str] = {}
    for file_name in file_names if save == "png" else ():
        if seen.setdefault(_stem(file_name), file_name) != file_name:
            raise ConfigError(_same_name(seen[_stem(file_name)], file_name))


def _same_name(first: str, second: str) -> str:
    return (
        f"{first} and {second} would both be kept as {_stem(first)}.png; set {SAVE_KEY} to 'json'"
    )


def _stem(file_name: str) -> str:
    return os.path.splitext(os.path.basename(file_name))[0]


def _boundary_rule() -> str:
    return f"{BOUNDARY_SHARE:g} of the diagonal, at least 1 pixel"
