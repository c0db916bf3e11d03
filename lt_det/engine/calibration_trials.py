"""What a post-hoc calibration does to the results of a model, strength by strength.

Three kinds of :class:`~lt_det.evaluation.strength_search.Trials`. Detectors and segmentors run
once over the images for all strengths; for image classification the saved scores are enough.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from lt_det.data import ClassCounts, dataset_info, get_records
from lt_det.data.build import build_test_loader
from lt_det.data.datasets.sem_seg_sets import (
    find_sem_seg_set,
    sem_seg_class_names,
    sem_seg_records,
)
from lt_det.data.sem_seg_mapper import read_record_classes
from lt_det.engine.checkpoint import LongTailCheckpointer
from lt_det.engine.config import check_calibrated_head
from lt_det.engine.inference import masks_in_boxes
from lt_det.engine.replay import before_logits, replayed
from lt_det.engine.trainer import LongTailTrainer
from lt_det.errors import ConfigError, DataError
from lt_det.evaluation.classification import LongTailClassificationEvaluator
from lt_det.evaluation.classification_metrics import top_k_classes
from lt_det.evaluation.classification_predictions import (
    FEATURES_FILE,
    PREDICTIONS_FILE,
    read_class_predictions,
    read_features,
)
from lt_det.evaluation.instance_columns import instance_columns
from lt_det.evaluation.lvis_api import LVISResult, evaluate_lvis
from lt_det.evaluation.lvis_ground_truth import GroundTruth, load_ground_truth, positions
from lt_det.evaluation.per_image import (
    ClassificationImages,
    DetectionImages,
    PerImage,
    read_per_image,
)
from lt_det.evaluation.predictions import Predictions, concatenate
from lt_det.evaluation.sem_seg import LongTailSemSegEvaluator
from lt_det.evaluation.strength_search import PARTS, REPORTING, Choice
from lt_det.losses import LongTailLoss
from lt_det.modeling.calibration import (
    METHODS,
    rescore,
    rescore_detections,
    score_form,
    set_strength,
    unit_shift,
)
from lt_det.modeling.classifier import tau_normalized_logits
from lt_det.registry import unknown_name

# Images whose scores are changed at once: 33 MB of float64 for 1000 classes.
_BATCH = 4096

# ---------------------------------------------------------------------------------------------
# Image classification: saved scores
# ---------------------------------------------------------------------------------------------


@dataclass
class SavedImages:
    """What evaluations without calibration have kept of N images.

    Attributes:
        image_ids: (N,) ints or text, ascending.
        labels: (N,) int64.
        scores: (N, C) float32.
        features: (N, D) float32, what the classifier was given; None = not read.
        weights: (C, D) float32 rows of the classifier; None = not read.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    scores: torch.Tensor
    features: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, places: np.ndarray) -> SavedImages:
        """The images at (K,) int `places`."""
        rows = torch.as_tensor(places)
        return replace(
            self,
            image_ids=self.image_ids[places],
            labels=self.labels[places],
            scores=self.scores[rows],
            features=None if self.features is None else self.features[rows],
        )

    def batches(self) -> Iterator[SavedImages]:
        """All in turn, few enough to be re-scored at once."""
        for start in range(0, len(self), _BATCH):
            yield self.select(np.arange(start, min(start + _BATCH, len(self))))


def read_saved_images(folder: str | os.PathLike, num_classes: int, method: str) -> SavedImages:
    """From the folder of an evaluation of image classification; features for "TauNorm" alone.

    Raises:
        MissingFileError, DataError: there are no such files, or scores were not kept (of more than
            1000 classes none are).
        ConfigError: there are no weights of a classifier.
    """
    path = os.path.join(folder, PREDICTIONS_FILE)
    saved = read_class_predictions(path, num_classes)
    if "scores" not in saved:
        raise DataError(
            f"{path} has the best five scores of an image alone (more than 1000 classes): the "
            "others are needed to calibrate them. Evaluate with MODEL.LT.CALIBRATION set instead"
        )
    scores = torch.as_tensor(saved["scores"])
    images = SavedImages(saved["image_ids"], saved["labels"], scores)
    if method != "TauNorm":
        return images
    kept = read_features(os.path.join(folder, FEATURES_FILE), num_classes)
    if "weights" not in kept:
        raise ConfigError(
            f"TauNorm needs the weights of a linear classifier in {FEATURES_FILE} "
            "(TEST.LT.KEEP_FEATURES True)"
        )
    if not np.array_equal(kept["labels"], saved["labels"]):
        raise DataError(
            f"{folder}: {FEATURES_FILE} and {PREDICTIONS_FILE} are of different images; evaluate "
            "again with TEST.LT.KEEP_FEATURES True"
        )
    features, weights = (torch.as_tensor(kept[name]) for name in ("features", "weights"))
    return replace(images, features=features, weights=weights)


def image_rescoring(
    loss: LongTailLoss, method: str, class_counts: Sequence[float]
) -> Callable[[SavedImages, float], torch.Tensor]:
    """Gives the (N, C) scores that images have under a strength above 0.

    Args:
        loss: that the model was trained with.
        method: of `METHODS`.
        class_counts: (C,) as ``MODEL.LT.CLASS_COUNTS``; not read by "TauNorm".

    Raises:
        ConfigError: "TauNorm" of a loss with another than a linear classifier.
    """
    if method == "TauNorm":
        if loss.classifier != "linear":
            raise ConfigError(
                f"TauNorm is for linear classifiers, and loss {type(loss).__name__} has a "
                f"{loss.classifier} one"
            )
        return lambda images, tau: loss.scores(
            tau_normalized_logits(images.features, images.weights, tau)
        )
    form, shift = score_form(loss), unit_shift(method, class_counts)
    return lambda images, strength: rescore(images.scores, strength * shift, form)


class ClassificationTrials:
    """From the scores that evaluations have kept.

    They become those of the model with the calibration switched on, up to the rounding of the
    saved ones to float32.

    Args:
        parts: part -> its images.
        rescored: of :func:`image_rescoring`.
        strengths: (S,).
        dataset: name, for the records.
        class_names: (C,).
        groups: (C,) or None.
        image_counts: (C,) training images, or None.
    """

    def __init__(
        self,
        parts: Mapping[str, SavedImages],
        rescored: Callable[[SavedImages, float], torch.Tensor],
        strengths: Sequence[float],
        *,
        dataset: str,
        class_names: Sequence[str],
        groups: Sequence[str] | None,
        image_counts: Sequence[int] | None,
    ):
        self.strengths, self._parts, self._rescored = strengths, parts, rescored
        self.num_images = {part: len(images) for part, images in parts.items()}
        self._num_classes = len(class_names)
        self._evaluator = partial(
            LongTailClassificationEvaluator,
            dataset_name=dataset,
            class_names=class_names,
            groups=groups,
            class_counts=None if image_counts is None else {"images": image_counts},
            distributed=False,
        )

    def record(self, k: int, part: str) -> dict:
        """See :class:`~lt_det.evaluation.strength_search.Trials`."""
        evaluator = self._evaluator()
        for images in self._parts[part].batches():
            pairs = zip(images.image_ids.tolist(), images.labels.tolist(), strict=True)
            inputs = [{"image_id": i, "label": label} for i, label in pairs]
            evaluator.process(inputs, [{"scores": row} for row in self._scores(images, k)])
        evaluator.evaluate()
        return evaluator.record

    def images(self, k: int) -> list[PerImage]:
        """See :class:`~lt_det.evaluation.strength_search.Trials`."""
        whole = self._parts[REPORTING]
        best = [top_k_classes(self._scores(b, k), 1)[:, 0].numpy() for b in whole.batches()]
        correct = np.concatenate(best) == whole.labels
        return [ClassificationImages(whole.image_ids, whole.labels, correct, self._num_classes)]

    def _scores(self, images: SavedImages, k: int) -> torch.Tensor:
        strength = self.strengths[k]
        return self._rescored(images, strength) if strength else images.scores


# ---------------------------------------------------------------------------------------------
# Models that run once for all strengths
# ---------------------------------------------------------------------------------------------


def calibrated_model(cfg, method: str, weights: str) -> nn.Module:
    """The model of `cfg` with this method switched on at strength 0, for :func:`set_strength`.

    Raises:
        ConfigError: an unknown method, or one that the model cannot have.
        CheckpointError: the weights do not fit.
    """
    cfg.MODEL.LT.CALIBRATION.NAME, cfg.MODEL.LT.CALIBRATION.STRENGTH = method, 0.0
    check_calibrated_head(cfg)
    model = LongTailTrainer.build_model(cfg)
    checkpointer = LongTailCheckpointer(model, loss=cfg.MODEL.LT.LOSS.NAME, strict=True)
    checkpointer.load(weights, checkpointables=[])
    return model.eval()


@torch.no_grad()
def outputs_by_strength(
    model: nn.Module, loader, strengths: Sequence[float]
) -> Iterator[tuple[list[dict], int, list[dict]]]:
    """(inputs, index of the strength, outputs) of each batch and strength, batch by batch.

    Outputs are those of the model with this strength switched on, masks inside their boxes; what
    comes before the logits is computed once.
    """
    infer = masks_in_boxes(model)
    with replayed(before_logits(model)) as replay:
        for inputs in loader:
            for k, strength in replay.rounds(list(enumerate(strengths))):
                set_strength(model, strength)
                yield inputs, k, infer(inputs)


def image_number(dataset: str) -> int:
    """Images of a registered set of detection or segmentation."""
    is_sem_seg = find_sem_seg_set(dataset) is not None
    return len(sem_seg_records(dataset) if is_sem_seg else get_records(dataset))


def loader_of(cfg, dataset: str, chosen: Sequence[int]):
    """The test loader over some images of a set, by their places in it; one image a batch."""
    whole = build_test_loader(cfg, dataset).dataset
    return DataLoader(
        Subset(whole, list(chosen)), num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=list
    )


# ---------------------------------------------------------------------------------------------
# Semantic segmentation
# ---------------------------------------------------------------------------------------------


class SegmentationTrials:
    """A confusion matrix for each strength and part, from one run of the model over each image.

    Args:
        cfg: prepared.
        model: of :func:`calibrated_model`.
        choice: the images.
        strengths: (S,).
        counts: of the training set, None = unknown.
        group_source: how its groups were drawn, for the records.
    """

    def __init__(
        self,
        cfg,
        model: nn.Module,
        choice: Choice,
        strengths: Sequence[float],
        counts: ClassCounts | None,
        group_source: str,
    ):
        self.strengths = strengths
        self.num_images = {part: len(places) for part, places in choice.places.items()}
        self._num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self._folder = tempfile.TemporaryDirectory()  # goes with this object
        self._evaluators = {
            part: [
                pixel_evaluator(cfg, name, counts, group_source, self._place(part, k))
                for k in range(len(strengths))
            ]
            for part, name in choice.sets.items()
        }
        for part in PARTS:
            loader = loader_of(cfg, choice.sets[part], choice.places[part])
            for inputs, k, outputs in outputs_by_strength(model, loader, strengths):
                self._evaluators[part][k].process(inputs, outputs)

    def record(self, k: int, part: str) -> dict:
        """See :class:`~lt_det.evaluation.strength_search.Trials`."""
        evaluator = self._evaluators[part][k]
        if evaluator.record is None:
            evaluator.evaluate()
        return evaluator.record

    def images(self, k: int) -> list[PerImage]:
        """See :class:`~lt_det.evaluation.strength_search.Trials`."""
        self.record(k, REPORTING)
        return read_per_image(self._place(REPORTING, k), self._num_classes)

    def _place(self, part: str, k: int) -> str:
        """Where the evaluator leaves what each image contributes."""
        return os.path.join(self._folder.name, f"{part}_{k}")


def pixel_evaluator(
    cfg, name: str, counts: ClassCounts | None, group_source: str, output_dir: str
) -> LongTailSemSegEvaluator:
    """For images of a test set, in this process."""
    known, num_classes = None, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if counts is not None:
        known = {"images": counts.images.tolist(), "pixels": counts.pixels.tolist()}

    def read_labels(x: dict) -> np.ndarray:
        return read_record_classes(x, num_classes, (x["height"], x["width"]))

    return LongTailSemSegEvaluator(
        dataset_name=name,
        class_names=sem_seg_class_names(name),
        read_labels=read_labels,
        groups=None if counts is None else counts.groups,
        group_source=group_source,
        class_counts=known,
        output_dir=output_dir,
        distributed=False,
    )


# ---------------------------------------------------------------------------------------------
# Detection
# ---------------------------------------------------------------------------------------------


@dataclass
class Truth:
    """Ground truth of a data set, and what its records have beside it.

    Attributes:
        name: of the data set.
        ground_truth: all its images.
        class_names: (C,).
        groups: (C,); None = those of the file.
        group_source: where they are from; None = the file.
        class_counts: {"images", "instances": (C,)} of the training set, or {}.
    """

    name: str
    ground_truth: GroundTruth
    class_names: Sequence[str]
    groups: Sequence[str] | None
    group_source: str | None
    class_counts: Mapping[str, Sequence[int]]


def registered_truth(name: str, counts: ClassCounts | None) -> Truth:
    """Of a registered test set, with the counts and groups of the training set if known."""
    info = dataset_info(name)
    ground_truth = load_ground_truth(info.json_file, info.category_ids)
    known = {}
    if counts is not None:
        known = {"images": counts.images.tolist(), "instances": counts.instances.tolist()}
    if counts is None or info.frequency:
        return Truth(name, ground_truth, info.class_names, None, None, known)
    return Truth(name, ground_truth, info.class_names, list(counts.groups), "given", known)


class DetectionTrials:
    """Evaluation of detections that were made or re-scored for each strength.

    Args:
        strengths: (S,).
        truth: part -> ground truth of the set that holds it.
        image_ids: part -> ids of its images.
        predictions: part -> S callables that give the predictions; those of other images of the
            set are left out.
        tasks: of "bbox" and "segm".
        max_detections: per image.
    """

    def __init__(
        self,
        strengths: Sequence[float],
        truth: Mapping[str, Truth],
        image_ids: Mapping[str, Sequence[int]],
        predictions: Mapping[str, Sequence[Callable[[], Predictions]]],
        *,
        tasks: Sequence[str],
        max_detections: int = 300,
    ):
        self.strengths, self.predictions = strengths, predictions
        self.num_images = {part: len(ids) for part, ids in image_ids.items()}
        self._truth, self._tasks, self._max_detections = truth, tasks, max_detections
        self._reported: dict[int, LVISResult] = {}
        self._ground_truth = {
            part: truth[part].ground_truth.restrict_images(ids)
            for part, ids in image_ids.items()
            if len(ids)
        }

    def record(self, k: int, part: str) -> dict:
        """See :class:`~lt_det.evaluation.strength_search.Trials`."""
        truth = self._truth[part]
        return self._result(k, part).record(truth.name, truth.class_counts)

    def images(self, k: int) -> list[PerImage]:
        """See :class:`~lt_det.evaluation.strength_search.Trials`."""
        return [DetectionImages(m) for m in self._result(k, REPORTING).matches.values()]

    def _result(self, k: int, part: str) -> LVISResult:
        """Of an evaluation; kept for the few strengths that are reported."""
        if part == REPORTING and k in self._reported:
            return self._reported[k]
        truth = self._truth[part]
        result = evaluate_lvis(
            self._ground_truth[part],
            self.predictions[part][k](),
            self._tasks,
            max_detections=self._max_detections,
            class_names=truth.class_names,
            groups=truth.groups,
            group_source=truth.group_source,
        )
        if part == REPORTING:
            self._reported[k] = result
        return result


def model_detection_trials(
    cfg, model: nn.Module, choice: Choice, strengths: Sequence[float], counts: ClassCounts | None
) -> DetectionTrials:
    """From one run of the model over each image: what comes after the logits is done per strength.

    Args:
        cfg: prepared.
        model: of :func:`calibrated_model`.
        choice: the images.
        strengths: (S,).
        counts: of the training set, None = unknown.
    """
    truths = {name: registered_truth(name, counts) for name in set(choice.sets.values())}
    truth = {part: truths[name] for part, name in choice.sets.items()}
    image_ids: dict[str, list] = {part: [] for part in PARTS}
    predictions: dict[str, list] = {}
    for part in PARTS:
        found: list[list[Predictions]] = [[] for _ in strengths]
        category_ids = truth[part].ground_truth.category_ids
        loader = loader_of(cfg, choice.sets[part], choice.places[part])
        for inputs, k, outputs in outputs_by_strength(model, loader, strengths):
            for image, output in zip(inputs, outputs, strict=True):
                columns = instance_columns(output["instances"], image["image_id"], category_ids)
                found[k].append(columns)
            if k == 0:
                image_ids[part] += [x["image_id"] for x in inputs]
        predictions[part] = [partial(concatenate, parts) for parts in found]
    return DetectionTrials(
        strengths,
        truth,
        image_ids,
        predictions,
        tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def rescored_predictions(
    predictions: Predictions,
    category_ids: np.ndarray,
    shift: torch.Tensor,
    *,
    form: str,
) -> Predictions:
    """Saved predictions with other scores; see :func:`rescore_detections`.

    Args:
        predictions: in any order.
        category_ids: (C,) of the classes.
        shift: (C,) strength times :func:`unit_shift`; zeros = the predictions as they are.
        form: "softmax": detections of one image with equal boxes are of one region, which is so
            where boxes are regressed without regard to the class. "sigmoid": each is on its own.

    Raises:
        DataError: a category that is not among the classes, or a score that is no probability.
    """
    if not shift.any():
        return predictions
    classes, scores = positions(predictions.category_ids, category_ids), predictions.scores
    unknown = classes < 0
    if unknown.any():
        k = int(unknown.argmax())
        raise DataError(
            f"prediction {k}: category id {predictions.category_ids[k]} is not among the "
            f"{len(category_ids)} of the annotation file"
        )
    bad = ~((scores >= 0) & (scores <= 1))
    if bad.any():
        k = int(bad.argmax())
        raise DataError(f"prediction {k}: score {scores[k]} is no probability in [0, 1]")
    regions = torch.from_numpy(regions_of(predictions)) if form == "softmax" else None
    new = rescore_detections(torch.from_numpy(scores), torch.from_numpy(classes), shift, regions)
    return replace(predictions, scores=new.numpy())


def regions_of(predictions: Predictions) -> np.ndarray:
    """(N,) int64 from 0, the same for predictions of one image with the same box.

    Those without a box are alone.
    """
    if predictions.boxes is None:
        return np.arange(len(predictions))
    images = np.unique(predictions.image_ids, return_inverse=True)[1]  # float64 holds their places
    rows = np.column_stack([images, predictions.boxes])
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def method_of(name: str) -> str:
    """A method by any spelling: "norcal", "logit-adjustment", "TauNorm".

    Raises:
        ConfigError: an unknown one; the known ones are listed.
    """
    plain = name.lower().replace("-", "").replace("_", "")
    found = next((m for m in METHODS if m.lower() == plain), None)
    if found is None:
        raise ConfigError(unknown_name("calibration", name, METHODS, "--method"))
    return found
