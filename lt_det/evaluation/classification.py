"""Long-tailed image classification: accuracy by class and by class size, and calibration.

The measures are functions of arrays in :mod:`lt_det.evaluation.classification_metrics`; here
they are taken over a test set that is processed in batches, on one process or several.
"""

from __future__ import annotations

import itertools
import logging
import operator
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from lt_det.errors import DataError
from lt_det.evaluation.arrays import write_arrays
from lt_det.evaluation.classification_metrics import (
    ECE_BINS,
    are_probabilities,
    class_accuracy,
    expected_calibration_error,
    mean_over_classes,
    shot_accuracy,
    top_k_classes,
)
from lt_det.evaluation.classification_predictions import (
    FEATURES_FILE,
    PREDICTIONS_FILE,
)
from lt_det.evaluation.groups import check_groups, group_sizes, groups_from_counts
from lt_det.evaluation.results import make_record

logger = logging.getLogger(__name__)

TASK = "classification"
TOP_K = 5
# The last count of "few" and of "medium": few < 20, medium 20-100, many > 100.
KANG_BORDERS = (19, 100)
# More classes than this and the scores of all images are no longer a file to keep: 50,000 images
# of 1000 classes take 200 MB.
MAX_SCORED_CLASSES = 1000


class LongTailClassificationEvaluator(DatasetEvaluator):
    """Top-1, top-5, accuracy per class and per class size, and calibration of one label per image.

    Metrics, in percent:

    - ``top1``, ``top5``: images whose label is the class of the highest score, or among the five
      highest. Of equal scores the lower class id ranks first. Fewer than five classes have no
      ``top5``.
    - ``mean_class``: mean of the class accuracies (top-1). A class without test images has none,
      which is NaN and enters no mean.
    - ``many``, ``medium``, ``few``: the same over the classes of a group, see
      :func:`~lt_det.evaluation.classification_metrics.shot_accuracy`; NaN without groups.
    - ``ece``: expected calibration error. The confidence of an image is its highest score, which
      must be a probability: softmax or sigmoid, as the loss says. NaN, with a warning, if a
      score is not in [0, 1]: the other metrics need only the order of the scores.

    Of the scores only the best five and the lowest leave the device, unless all are kept. With
    ``output_dir`` the files of :mod:`lt_det.evaluation.classification_predictions` are written
    there.

    Attributes:
        record: the result record of the last evaluation, without its "run" part; None before
            the first one and on other ranks. See :mod:`lt_det.evaluation.results`.
    """

    def __init__(
        self,
        *,
        dataset_name: str,
        class_names: Sequence[str],
        class_counts: dict[str, Sequence[int]] | None = None,
        groups: Sequence[str] | None = None,
        group_borders: Sequence[int] = KANG_BORDERS,
        output_dir: str | None = None,
        keep_predictions: bool = True,
        keep_features: bool = False,
        classifier_weights: Callable[[], torch.Tensor] | None = None,
        distributed: bool = True,
    ):
        """Check the arguments.

        Args:
            dataset_name: the split, for logs and the record.
            class_names: (C,) names, in the order of the model's classes.
            class_counts: {"images": (C,)} of the *training* set.
            groups: (C,) "f" = many, "c" = medium, "r" = few training images. None: from
                `class_counts`; without these either, there are no groups.
            group_borders: last count of "few" and of "medium"; (19, 100) is Kang et al.,
                (20, 99) the OLTR code.
            output_dir: where files are written; None: nowhere.
            keep_predictions: write ``predictions.npz``, with all scores up to 1000 classes.
            keep_features: write ``features.npz``; the outputs must then hold "features".
            classifier_weights: gives the (C, D) weights at the time of :meth:`evaluate`, kept
                with the features.
            distributed: gather the results of all ranks; every rank must then call
                :meth:`evaluate`. False: evaluate in this process what it has processed.

        Raises:
            ValueError: arguments of different lengths, an unknown group.
            ConfigError: `group_borders` is not two ints with 0 < first < second.
        """
        num_classes = len(class_names)
        if num_classes == 0:
            raise ValueError("class_names is empty")
        for unit, counts in (class_counts or {}).items():
            if len(counts) != num_classes:
                raise ValueError(f"{len(counts)} counts of {unit} for {num_classes} class_names")
        if keep_features and not output_dir:
            raise ValueError("keep_features needs an output_dir to write them to")
        self._dataset_name = dataset_name
        self._class_names = list(class_names)
        self._counts = {k: [int(n) for n in v] for k, v in (class_counts or {}).items()}
        self._groups, self._group_source = None, "none"
        if groups is not None:
            check_groups(groups, num_classes)
            self._groups, self._group_source = list(groups), "given"
        elif "images" in self._counts:
            self._groups = groups_from_counts(self._counts["images"], group_borders)
            self._group_source = "training images"
        self._borders = list(group_borders) if self._group_source == "training images" else None
        self._output_dir = output_dir
        self._keep_predictions = bool(output_dir) and keep_predictions
        self._keep_scores = self._keep_predictions and num_classes <= MAX_SCORED_CLASSES
        self._keep_features = keep_features
        self._classifier_weights = classifier_weights
        self._distributed = distributed
        self._top_k = min(TOP_K, num_classes)
        self.record = None
        self.reset()

    def reset(self):
        """Forget what was processed."""
        self._image_ids: list[int | str] = []
        # Arrays by name, each of the images of one batch.
        self._batches: list[dict[str, np.ndarray]] = []

    def process(self, inputs, outputs):
        """Keep what the metrics need of a batch.

        Args:
            inputs: list of dicts with "image_id" (int or str, unique) and "label" (int, 0..C-1).
            outputs: list of dicts with "scores": (C,) float tensor, higher is more likely; with
                `keep_features` also "features": (D,).

        Raises:
            DataError: a label that is not a class, NaN scores, or scores of another length; the
                message names the image.
        """
        if len(inputs) != len(outputs):
            raise ValueError(f"{len(outputs)} outputs for {len(inputs)} inputs")
        if not inputs:
            return
        ids = [image["image_id"] for image in inputs]
        labels = [self._label(image) for image in inputs]
        scores = self._stacked(ids, outputs)
        top = top_k_classes(scores, self._top_k)
        # The lowest score is NaN if any is, and says with the highest whether all are in [0, 1].
        values = torch.cat([scores.gather(1, top), scores.amin(dim=1, keepdim=True)], dim=1)
        values = values.cpu().numpy()
        bad = np.isnan(values[:, -1])
        if bad.any():
            raise DataError(f"image {ids[bad.argmax()]!r}: its scores hold NaN")
        batch = {
            "labels": np.array(labels, dtype=np.int64),
            "top_classes": top.cpu().numpy(),
            "top_scores": values[:, :-1],
            "lowest": values[:, -1],
        }
        if self._keep_scores:
            batch["scores"] = scores.float().cpu().numpy()
        if self._keep_features:
            features = torch.stack([output["features"] for output in outputs])
            batch["features"] = features.detach().float().cpu().numpy()
        self._image_ids.extend(ids)
        self._batches.append(batch)

    def evaluate(self) -> OrderedDict:
        """Gather, write and evaluate what was processed.

        Returns:
            {"classification": {"top1", "top5", "mean_class", "many", "medium", "few", "ece"}} in
            percent; {} on ranks other than 0.

        Raises:
            DataError: no image was processed, or two images of one id have different labels.
        """
        self.record = None
        ids, batches = self._image_ids, self._batches
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((ids, batches), dst=0)
            if not comm.is_main_process():
                return OrderedDict()
            ids = list(itertools.chain.from_iterable(g[0] for g in gathered))
            batches = list(itertools.chain.from_iterable(g[1] for g in gathered))
        if not batches:
            raise DataError(f"no image of {self._dataset_name} was processed")
        arrays = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        arrays = self._without_repeats({"image_ids": _id_array(ids), **arrays})
        self._write(arrays)
        correct = arrays["top_classes"] == arrays["labels"][:, None]
        accuracy = 100 * class_accuracy(arrays["labels"], correct[:, 0], len(self._class_names))
        results = self._metrics(correct, accuracy, self._calibration_error(arrays, correct[:, 0]))
        self.record = self._make_record(results, accuracy, arrays["labels"])
        self._log(results)
        return OrderedDict({TASK: results})

    def _label(self, image: dict) -> int:
        try:
            label = operator.index(image["label"])
        except (KeyError, TypeError):
            raise DataError(
                f"image {image['image_id']!r}: a label must be one whole number, got "
                f"{image.get('label')!r}"
            ) from None
        if not 0 <= label < len(self._class_names):
            raise DataError(
                f"image {image['image_id']!r}: label {label} is not in "
                f"0..{len(self._class_names) - 1}, the classes of {self._dataset_name}"
            )
        return label

    def _stacked(self, ids: list, outputs: list[dict]) -> torch.Tensor:
        """(N, C) float32 or float64 scores, on their device."""
        for image_id, output in zip(ids, outputs, strict=True):
            shape = tuple(output["scores"].shape)
            if shape != (len(self._class_names),):
                raise DataError(
                    f"image {image_id!r}: scores of shape {shape}, but {self._dataset_name} has "
                    f"{len(self._class_names)} classes"
                )
        scores = torch.stack([output["scores"] for output in outputs]).detach()
        return scores if scores.dtype == torch.float64 else scores.float()

    def _without_repeats(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row per image, by ascending id: a sampler that pads gives images to two ranks."""
        ids, labels = arrays["image_ids"], arrays["labels"]
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        other = np.flatnonzero(labels != labels[first[inverse]])
        if len(other):
            image = other[0]
            raise DataError(
                f"two images of {self._dataset_name} have the id {ids[image].item()!r} but labels "
                f"{labels[first[inverse[image]]]} and {labels[image]}; ids must be unique"
            )
        if len(first) < len(ids):
            logger.warning(
                f"{len(ids) - len(first)} images were processed more than once; "
                "their first predictions are used"
            )
        return {name: array[first] for name, array in arrays.items()}

    def _write(self, arrays: dict[str, np.ndarray]) -> None:
        kept = {}
        if self._keep_predictions:
            names = ("image_ids", "labels", "top_classes", "top_scores", "scores")
            kept[PREDICTIONS_FILE] = {n: arrays[n] for n in names if n in arrays}
        if self._keep_features:
            own = {n: arrays[n] for n in ("image_ids", "labels", "features")}
            if self._classifier_weights is not None:
                weights = self._classifier_weights().detach().float().cpu().numpy()
                own["weights"] = self._checked_weights(weights)
            kept[FEATURES_FILE] = own
        for file, own in kept.items():
            path = os.path.join(self._output_dir, file)
            write_arrays(path, **own)
            logger.info(f"wrote {len(arrays['labels'])} images to {path}")

    def _checked_weights(self, weights: np.ndarray) -> np.ndarray:
        if weights.ndim != 2 or len(weights) != len(self._class_names):
            raise DataError(
                f"classifier_weights of shape {weights.shape} for {len(self._class_names)} "
                "classes; one row per class is needed"
            )
        return weights

    def _calibration_error(self, arrays: dict[str, np.ndarray], correct: np.ndarray) -> float:
        confidence, lowest = arrays["top_scores"][:, 0], arrays["lowest"]
        if not (are_probabilities(confidence) & are_probabilities(lowest)).all():
            logger.warning(
                f"{self._dataset_name}: scores from {lowest.min():g} to {confidence.max():g} are "
                "no probabilities; no calibration error"
            )
            return float("nan")
        return expected_calibration_error(confidence, correct, ECE_BINS)

    def _metrics(self, correct: np.ndarray, accuracy: np.ndarray, ece: float) -> dict[str, float]:
        shots = dict.fromkeys(("many", "medium", "few"), float("nan"))
        if self._groups is not None:
            shots = shot_accuracy(accuracy, self._groups)
        top5 = {"top5": 100 * float(correct.any(axis=1).mean())} if self._top_k == TOP_K else {}
        return {
            "top1": 100 * float(correct[:, 0].mean()),
            **top5,
            "mean_class": mean_over_classes(accuracy),
            **shots,
            "ece": 100 * ece,
        }

    def _make_record(self, results: dict, accuracy: np.ndarray, labels: np.ndarray) -> dict:
        per_class = {"name": self._class_names}
        if self._groups is not None:
            per_class["group"] = self._groups
        for unit in ("images", "instances"):
            if unit in self._counts:
                per_class[f"train_{unit}"] = self._counts[unit]
        per_class["test_images"] = np.bincount(labels, minlength=len(self._class_names))
        return make_record(
            task=TASK,
            dataset=self._dataset_name,
            protocol={
                "split": self._dataset_name,
                "images": len(labels),
                "groups": self._group_source,
                "borders": self._borders,
                "top_k": self._top_k if self._top_k == TOP_K else None,
                "tie": "lower class id first",
                "confidence": "highest score",
                "ece_bins": ECE_BINS,
            },
            metrics={TASK: results},
            per_class={**per_class, f"{TASK}/accuracy": accuracy},
            group_sizes=group_sizes(self._groups) if self._groups else {},
        )

    def _log(self, results: dict) -> None:
        table = tabulate([list(results.values())], list(results), tablefmt="pipe", floatfmt=".2f")
        logger.info(f"Results of {self._dataset_name} (percent):\n{table}")


def _id_array(ids: list) -> np.ndarray:
    """(N,) int64, or text if any id is not an int."""
    if all(isinstance(i, (int, np.integer)) for i in ids):
        return np.array(ids, dtype=np.int64)
    return np.array([str(i) for i in ids])
