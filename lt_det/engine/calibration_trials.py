"""What a post-hoc calibration does to the results of a model, strength by strength.

Three kinds of :class:`~lt_det.evaluation.strength_search.Trials`. Detectors and segmentors run
once over the images for all strengths; for image classification the saved scores are enough.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
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
from lt_det.engine.replay import before_logits, replayed
from lt_det.engine.trainer import LongTailTrainer
from lt_det.errors import ConfigError, DataError
from lt_det.evaluation.classification import LongTailClassificationEvaluator
from lt_det.evaluation.classification_predictions import (
    FEATURES_FILE,
    PREDICTIONS_FILE,
    read_class_predictions,
    read_features,
)
from lt_det.evaluation.lvis import LongTailLVISEvaluator
from lt_det.evaluation.sem_seg import LongTailSemSegEvaluator
from lt_det.evaluation.strength_search import PARTS, Choice
from lt_det.losses import LongTailLoss
from lt_det.modeling.calibration import (
    METHODS,
    method_shift,
    rescore,
    rescore_detections,
    score_form,
    set_strength,
)
from lt_det.modeling.classifier import tau_normalized_logits
from lt_det.registry import unknown_name

# ---------------------------------------------------------------------------------------------
# Image classification: saved scores
# ---------------------------------------------------------------------------------------------


class ClassificationTrials:
    """From the ``predictions.npz`` of two evaluations, or of one and a choice of its images.

    The scores that a model gives with the calibration switched on, up to the rounding of the
    saved ones to float32.

    Args:
        parts: part -> {"image_ids", "labels", "scores": S tensors (N, C)}.
        strengths: (S,).
        dataset: name, for the records.
        class_names: (C,).
        groups: (C,) or None.
        image_counts: (C,) training images, or None.
    """

    def __init__(
        self,
        parts: Mapping[str, Mapping],
        strengths: Sequence[float],
        *,
        dataset: str,
        class_names: Sequence[str],
        groups: Sequence[str] | None,
        image_counts: Sequence[int] | None,
    ):
        self.strengths, self._parts = strengths, parts
        self.num_images = {part: len(x["labels"]) for part, x in self._parts.items()}
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
        own, evaluator = self._parts[part], self._evaluator()
        images = [
            {"image_id": i, "label": label}
            for i, label in zip(own["image_ids"].tolist(), own["labels"].tolist(), strict=True)
        ]
        evaluator.process(images, [{"scores": row} for row in own["scores"][k]])
        evaluator.evaluate()
        return evaluator.record


def saved_image_scores(
    folder: str,
    loss: LongTailLoss,
    method: str,
    strengths: Sequence[float],
    class_counts: Sequence[float],
) -> dict[str, np.ndarray | list[torch.Tensor]]:
    """Scores of saved images under every strength.

    Args:
        folder: what an evaluation without calibration has written to.
        loss: that the model was trained with.
        method: of `METHODS`.
        strengths: (S,).
        class_counts: (C,) as ``MODEL.LT.CLASS_COUNTS``; not read by "TauNorm".

    Returns:
        {"image_ids" (N,), "labels" (N,), "scores": S tensors (N, C)}.

    Raises:
        MissingFileError, DataError: there are no such files, or scores were not kept (of more than
            1000 classes none are).
        ConfigError: "TauNorm" of another than a linear classifier.
    """
    path = os.path.join(folder, PREDICTIONS_FILE)
    saved = read_class_predictions(path, loss.num_classes)
    if "scores" not in saved:
        raise DataError(
            f"{path} has the best five scores of an image alone (more than 1000 classes): the "
            "others are needed to calibrate them. Evaluate with MODEL.LT.CALIBRATION set instead"
        )
    scores = torch.as_tensor(saved["scores"])
    if method == "TauNorm":
        features = read_features(os.path.join(folder, FEATURES_FILE), loss.num_classes)
        by_strength = [_tau_scores(loss, features, s) if s else scores for s in strengths]
    else:
        form = score_form(loss)
        by_strength = [
            rescore(scores, method_shift(method, class_counts, s), form) if s else scores
            for s in strengths
        ]
    return {"image_ids": saved["image_ids"], "labels": saved["labels"], "scores": by_strength}


def _tau_scores(loss: LongTailLoss, saved: Mapping[str, np.ndarray], tau: float) -> torch.Tensor:
    if "weights" not in saved or loss.classifier != "linear":
        raise ConfigError(
            f"TauNorm needs the weights of a linear classifier in {FEATURES_FILE} "
            "(TEST.LT.KEEP_FEATURES True)"
        )
    features, weights = (torch.as_tensor(saved[name]) for name in ("features", "weights"))
    return loss.scores(tau_normalized_logits(features, weights, tau))


def chosen_images(saved: Mapping, places: np.ndarray) -> dict:
    """The images of :func:`saved_image_scores` at (K,) int `places`."""
    return {
        "image_ids": saved["image_ids"][places],
        "labels": saved["labels"][places],
        "scores": [x[torch.as_tensor(places)] for x in saved["scores"]],
    }


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
    model = LongTailTrainer.build_model(cfg)
    checkpointer = LongTailCheckpointer(model, loss=cfg.MODEL.LT.LOSS.NAME, strict=True)
    checkpointer.load(weights, checkpointables=[])
    return model.eval()


@torch.no_grad()
def outputs_by_strength(
    model: nn.Module, loader, strengths: Sequence[float]
) -> Iterator[tuple[list[dict], int, list[dict]]]:
    """(inputs, index of the strength, outputs) of each batch and strength, batch by batch.

    Outputs are those of the model with this strength switched on; what comes before the logits is
    computed once.
    """
    with replayed(before_logits(model)) as replay:
        for inputs in loader:
            for k, strength in replay.rounds(list(enumerate(strengths))):
                set_strength(model, strength)
                yield inputs, k, model(inputs)


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
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES

        def read_labels(x: dict) -> np.ndarray:
            return read_record_classes(x, num_classes, (x["height"], x["width"]))

        self._evaluators = {
            part: [
                LongTailSemSegEvaluator(
                    dataset_name=name,
                    class_names=sem_seg_class_names(name),
                    read_labels=read_labels,
                    groups=None if counts is None else counts.groups,
                    group_source=group_source,
                    class_counts=None
                    if counts is None
                    else {"images": counts.images.tolist(), "pixels": counts.pixels.tolist()},
                    distributed=False,
                )
                for _ in strengths
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


# ---------------------------------------------------------------------------------------------
# Detection
# ---------------------------------------------------------------------------------------------


@dataclass
class GroundTruthFile:
    """An annotation file and what an evaluation on it needs beside it.

    Attributes:
        name: of the data set, for the records.
        path: LVIS or COCO format.
        class_names, category_ids: (C,).
        groups: (C,), None = those of the file.
        class_counts: {"images", "instances": (C,)} of the training set, or {}.
    """

    name: str
    path: str
    class_names: list[str]
    category_ids: list[int]
    groups: list[str] | None
    class_counts: dict[str, list[int]]


def training_ground_truth(name: str, counts: ClassCounts | None) -> GroundTruthFile:
    """Of a registered test set, with the counts and groups of the training set if known."""
    info = dataset_info(name)
    known = {}
    if counts is not None:
        known = {"images": counts.images.tolist(), "instances": counts.instances.tolist()}
    groups = None if counts is None or info.frequency else list(counts.groups)
    return GroundTruthFile(
        name, info.json_file, list(info.class_names), list(info.category_ids), groups, known
    )


class Detections:
    """Detections of some images, in columns; masks as RLE where there are any."""

    def __init__(self):
        self._images: list[tuple[int, int]] = []  # id, number of detections
        self._columns: list[tuple[np.ndarray, ...]] = []  # class, score, box
        self._masks: list[dict] = []

    def add(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Of a batch."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.numpy().copy()
            boxes[:, 2:] -= boxes[:, :2]  # in float32, as Detectron2 does it
            classes = instances.pred_classes.numpy().astype(np.int32)
            self._images.append((image["image_id"], len(instances)))
            self._columns.append((classes, instances.scores.numpy(), boxes))
            if instances.has("pred_masks"):
                found = instances_to_coco_json(instances, image["image_id"])
                self._masks += [p["segmentation"] for p in found]

    def results(self, category_ids: Sequence[int]) -> list[dict]:
        """In the results format of LVIS."""
        image_ids = itertools.chain.from_iterable(itertools.repeat(*i) for i in self._images)
        columns = (np.concatenate(x).tolist() for x in zip(*self._columns, strict=True))
        masks = self._masks or itertools.repeat(None)
        return [
            {"image_id": i, "category_id": category_ids[k], "score": s, "bbox": b}
            | ({} if m is None else {"segmentation": m})
            for i, k, s, b, m in zip(image_ids, *columns, masks, strict=False)
        ]


class DetectionTrials:
    """Evaluation of detections that were made or re-scored for each strength.

    Args:
        strengths: (S,).
        truth: part -> ground truth of the set that holds it.
        image_ids: part -> ids of its images.
        results: part -> S callables that give predictions in the results format of LVIS; those of
            other images are left out.
        tasks: of "bbox" and "segm".
        max_detections: per image.
    """

    def __init__(self, strengths, truth, image_ids, results, *, tasks, max_detections=300):
        self.strengths = strengths
        self.num_images = {part: len(ids) for part, ids in image_ids.items()}
        self._truth, self._image_ids, self._results = truth, image_ids, results
        self.tasks, self._max_detections = tasks, max_detections
        self._folder = tempfile.TemporaryDirectory()  # goes with this object

    def results(self, k: int, part: str) -> list[dict]:
        """Predictions of strength k on the images of `part`, in the results format of LVIS."""
        wanted = set(self._image_ids[part])
        return [p for p in self._results[part][k]() if p["image_id"] in wanted]

    def record(self, k: int, part: str) -> dict:
        """See :class:`~lt_det.evaluation.strength_search.Trials`."""
        truth = self._truth[part]
        evaluator = LongTailLVISEvaluator(
            dataset_name=truth.name,
            json_file=self._annotations(part),
            class_names=truth.class_names,
            category_ids=truth.category_ids,
            groups=truth.groups,
            tasks=self.tasks,
            max_detections=self._max_detections,
            class_counts=truth.class_counts,
            distributed=False,
        )
        evaluator.evaluate_predictions(self.results(k, part))
        return evaluator.record

    def _annotations(self, part: str) -> str:
        """A file with the ground truth of the images of `part`."""
        path = os.path.join(self._folder.name, f"{part}.json")
        if not os.path.exists(path):
            write_subset(self._truth[part].path, set(self._image_ids[part]), path)
        return path


def write_subset(source: str, image_ids: set, path: str) -> None:
    """Write what an annotation file says of some of its images."""
    with open(source, encoding="utf-8") as f:
        content = json.load(f)
    content["images"] = [x for x in content["images"] if x["id"] in image_ids]
    content["annotations"] = [
        a for a in content.get("annotations", ()) if a["image_id"] in image_ids
    ]
    with open(path, "w", encoding="utf-8") as f:
        json.dump(content, f)


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
    found = {part: [Detections() for _ in strengths] for part in PARTS}
    image_ids: dict[str, list] = {part: [] for part in PARTS}
    truth = {part: training_ground_truth(name, counts) for part, name in choice.sets.items()}
    for part in PARTS:
        loader = loader_of(cfg, choice.sets[part], choice.places[part])
        for inputs, k, outputs in outputs_by_strength(model, loader, strengths):
            found[part][k].add(inputs, outputs)
            if k == 0:
                image_ids[part] += [x["image_id"] for x in inputs]
    results = {
        part: [partial(d.results, truth[part].category_ids) for d in found[part]] for part in PARTS
    }
    return DetectionTrials(
        strengths,
        truth,
        image_ids,
        results,
        tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def rescored_results(
    predictions: Sequence[dict],
    category_ids: Sequence[int],
    class_counts: Sequence[float],
    method: str,
    strength: float,
    *,
    form: str,
) -> list[dict]:
    """Predictions of a results file with other scores; see :func:`rescore_detections`.

    Args:
        predictions: in the results format of LVIS; not modified.
        category_ids: (C,) of the classes.
        class_counts: (C,).
        method: "NorCal" or "LogitAdjustment".
        strength: 0 = the predictions as they are.
        form: "softmax": detections of one image with equal boxes are of one region, which is so
            where boxes are regressed without regard to the class. "sigmoid": each is on its own.

    Raises:
        DataError: a category that is not among the classes, or a score that is no probability.
    """
    if strength == 0:
        return list(predictions)
    place = {i: k for k, i in enumerate(category_ids)}
    unknown = next((p for p in predictions if p["category_id"] not in place), None)
    if unknown is not None:
        raise DataError(
            f"image {unknown['image_id']!r}: predicted category id {unknown['category_id']!r} is "
            f"not among the {len(place)} of the annotation file"
        )
    scores = np.array([p["score"] for p in predictions], dtype=np.float64)
    bad = ~((scores >= 0) & (scores <= 1))
    if bad.any():
        k = int(bad.argmax())
        raise DataError(f"prediction {k}: score {scores[k]} is no probability in [0, 1]")
    classes = torch.tensor([place[p["category_id"]] for p in predictions])
    regions = torch.from_numpy(regions_of(predictions)) if form == "softmax" else None
    shift = method_shift(method, class_counts, strength)
    new = rescore_detections(torch.from_numpy(scores), classes, shift, regions)
    return [p | {"score": s} for p, s in zip(predictions, new.tolist(), strict=True)]


def regions_of(predictions: Sequence[dict]) -> np.ndarray:
    """(N,) int64 from 0, the same for predictions of one image with the same box.

    Those without a box are alone.
    """
    numbers: dict = {}
    keys = ((p["image_id"], *p["bbox"]) if "bbox" in p else (k,) for k, p in enumerate(predictions))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


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
