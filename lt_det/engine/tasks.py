"""What differs between detection, classification and segmentation: classes, counts, evaluator."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils import comm

from lt_det.data import ClassCounts, dataset_info, get_class_counts, get_records
from lt_det.data.build import check_loading, images_per_pass
from lt_det.data.datasets.image_sets import (
    find_image_set,
    image_class_names,
    image_records,
    image_set_counts,
)
from lt_det.data.datasets.sem_seg_sets import (
    find_sem_seg_set,
    sem_seg_class_names,
    sem_seg_records,
)
from lt_det.data.image_records import check_image_records
from lt_det.data.sem_seg_counts import check_sem_seg_files, sem_seg_class_counts
from lt_det.data.sem_seg_mapper import read_record_classes
from lt_det.engine.inference import prediction_fingerprint
from lt_det.engine.optimizer import max_grad_norm
from lt_det.errors import ConfigError
from lt_det.evaluation.classification import LongTailClassificationEvaluator
from lt_det.evaluation.lvis import LongTailLVISEvaluator
from lt_det.evaluation.lvis_metrics import METRICS
from lt_det.evaluation.sem_seg import LongTailSemSegEvaluator, check_save
from lt_det.evaluation.sem_seg_metrics import SIZES
from lt_det.evaluation.sem_seg_predictions import remove_predictions
from lt_det.losses import LongTailLoss
from lt_det.modeling.build import loss_from_config
from lt_det.modeling.dense import dense_loss_from_config
from lt_det.modeling.fcos import check_fcos
from lt_det.modeling.segmentor import check_head_name, check_views
from lt_det.modeling.sem_seg import PixelHead, pixel_loss_from_config


class Detection:
    """Detection and instance segmentation on files in LVIS or COCO form.

    Attributes:
        name: in result records.
        classes_key: configuration key of the number of classes.
        units: what ``MODEL.LT.COUNT_UNIT`` may count, the smallest first.
    """

    name = "instance"
    classes_key = "MODEL.ROI_HEADS.NUM_CLASSES"
    units = ("instances", "images")

    @staticmethod
    def num_classes(cfg) -> int:
        """C."""
        return cfg.MODEL.ROI_HEADS.NUM_CLASSES

    @staticmethod
    def has_our_loss(cfg) -> bool:
        """Whether the head takes its loss from ``MODEL.LT.LOSS``."""
        return "LongTail" in cfg.MODEL.ROI_HEADS.NAME

    @staticmethod
    def loss(cfg) -> LongTailLoss:
        """Of ``MODEL.LT.LOSS``."""
        return loss_from_config(
            cfg, num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES, has_background=True
        )

    @staticmethod
    def counts(cfg) -> ClassCounts:
        """Of ``DATASETS.TRAIN``."""
        return get_class_counts(
            cfg.DATASETS.TRAIN,
            cache_dir=cfg.DATASETS.LT.CACHE_DIR or None,
            borders=cfg.DATASETS.LT.GROUP_BORDERS,
        )

    @staticmethod
    def test_classes(cfg, name: str) -> list[str]:
        """Class names of a test set, after checks that need no model."""
        return dataset_info(name).class_names

    @staticmethod
    def check_test_files(cfg, name: str) -> None:
        """A missing image folder is found before the training, not after it."""
        get_records(name)

    @staticmethod
    def metrics(cfg) -> list[str]:
        """What an evaluation measures, as the event storage calls it."""
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        return [f"{task}/{metric}" for task in tasks for metric in METRICS]

    @staticmethod
    def evaluator(
        cfg,
        name: str,
        counts: ClassCounts | None,
        model: torch.nn.Module,
        weights: str | None = None,
    ):
        """Of a test set, with the groups and counts of the training set.

        Args:
            cfg: prepared.
            name: of ``DATASETS.TEST``.
            counts: of the training set, None if it is not at hand.
            model: what is evaluated.
            weights: checkpoint that `model` holds; None: it is being trained.
        """
        info = dataset_info(name)
        known = None
        if counts is not None:
            known = {"images": counts.images.tolist(), "instances": counts.instances.tolist()}
        return LongTailLVISEvaluator(
            dataset_name=name,
            json_file=info.json_file,
            class_names=info.class_names,
            category_ids=info.category_ids,
            groups=None if counts is None or info.frequency else counts.groups,
            tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            output_dir=_output_dir(cfg, name),
            class_counts=known,
            group_borders=cfg.DATASETS.LT.GROUP_BORDERS,
            fingerprint=prediction_fingerprint(
                cfg, weights, counts.fingerprint if counts else None, info.json_file
            ),
        )


class DenseDetection(Detection):
    """Detection by a dense head: boxes only."""

    classes_key = "MODEL.RETINANET.NUM_CLASSES"

    @staticmethod
    def num_classes(cfg) -> int:
        """C."""
        return cfg.MODEL.RETINANET.NUM_CLASSES

    @staticmethod
    def has_our_loss(cfg) -> bool:
        """Whether the head takes its loss from ``MODEL.LT.LOSS``."""
        return cfg.MODEL.META_ARCHITECTURE.startswith("LongTail")

    @staticmethod
    def loss(cfg) -> LongTailLoss:
        """Of ``MODEL.LT.LOSS``."""
        if cfg.MODEL.META_ARCHITECTURE == "LongTailFCOS":
            check_fcos()
        return dense_loss_from_config(cfg)


class Classification:
    """One label per image, from list files.

    Attributes:
        name: in result records.
        classes_key: configuration key of the number of classes.
        units: what ``MODEL.LT.COUNT_UNIT`` may count, the smallest first.
    """

    name = "classification"
    classes_key = "MODEL.LT.NUM_CLASSES"
    units = ("instances", "images")

    @staticmethod
    def num_classes(cfg) -> int:
        """C."""
        return cfg.MODEL.LT.NUM_CLASSES

    @staticmethod
    def has_our_loss(cfg) -> bool:
        """Always."""
        return True

    @staticmethod
    def loss(cfg) -> LongTailLoss:
        """Of ``MODEL.LT.LOSS``."""
        return loss_from_config(cfg, num_classes=cfg.MODEL.LT.NUM_CLASSES, has_background=False)

    @staticmethod
    def counts(cfg) -> ClassCounts:
        """Of the one list in ``DATASETS.TRAIN``."""
        for name in cfg.DATASETS.TRAIN:
            _check_image_set(name, "TRAIN")
        return image_set_counts(
            cfg.DATASETS.TRAIN[0], cfg.MODEL.LT.NUM_CLASSES, cfg.DATASETS.LT.GROUP_BORDERS
        )

    @staticmethod
    def test_classes(cfg, name: str) -> list[str]:
        """Class names of a test set."""
        _check_image_set(name, "TEST")
        return image_class_names(name, cfg.MODEL.LT.NUM_CLASSES)

    @staticmethod
    def check_test_files(cfg, name: str) -> None:
        """Labels, image folder and first image."""
        check_image_records(image_records(name), cfg.MODEL.LT.NUM_CLASSES, may_be_empty=True)

    @staticmethod
    def metrics(cfg) -> list[str]:
        """What an evaluation measures, as the event storage calls it."""
        names = ("top1", "top5", "mean_class", "many", "medium", "few", "ece")
        return [f"classification/{name}" for name in names]

    @staticmethod
    def evaluator(
        cfg,
        name: str,
        counts: ClassCounts | None,
        model: torch.nn.Module,
        weights: str | None = None,
    ):
        """Of a test set, with the groups and counts of the training set.

        Args:
            cfg: prepared.
            name: of ``DATASETS.TEST``.
            counts: of the training set, None if it is not at hand.
            model: what is evaluated.
            weights: checkpoint that `model` holds; None: it is being trained.
        """
        keep = cfg.TEST.LT.KEEP_FEATURES
        return LongTailClassificationEvaluator(
            dataset_name=name,
            class_names=image_class_names(name, cfg.MODEL.LT.NUM_CLASSES),
            class_counts=None if counts is None else {"images": counts.images.tolist()},
            group_borders=cfg.DATASETS.LT.GROUP_BORDERS,
            output_dir=_output_dir(cfg, name),
            keep_features=keep,
            classifier_weights=_classifier_weights(model) if keep else None,
        )


class Segmentation:
    """Semantic segmentation: one class a pixel, from label maps.

    Attributes:
        name: in result records.
        classes_key: configuration key of the number of classes.
        units: what ``MODEL.LT.COUNT_UNIT`` may count, the smallest first.
    """

    name = "sem_seg"
    classes_key = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    units = ("pixels", "images")

    @staticmethod
    def num_classes(cfg) -> int:
        """C."""
        return cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES

    @staticmethod
    def has_our_loss(cfg) -> bool:
        """Always."""
        return True

    @staticmethod
    def counts(cfg) -> ClassCounts:
        """Of ``DATASETS.TRAIN``."""
        for name in cfg.DATASETS.TRAIN:
            _check_sem_seg_set(name, "TRAIN")
        return sem_seg_class_counts(
            cfg.DATASETS.TRAIN,
            group_by=cfg.DATASETS.LT.SEM_SEG.GROUP_BY,
            borders=cfg.DATASETS.LT.GROUP_BORDERS,
            cache_dir=cfg.DATASETS.LT.CACHE_DIR or None,
        )

    @staticmethod
    def loss(cfg) -> LongTailLoss:
        """Of ``MODEL.LT.LOSS``."""
        check_head_name(cfg.MODEL.SEM_SEG_HEAD.NAME)
        return pixel_loss_from_config(cfg)

    @staticmethod
    def test_classes(cfg, name: str) -> list[str]:
        """Class names of a test set."""
        _check_sem_seg_set(name, "TEST")
        return sem_seg_class_names(name)

    @staticmethod
    def check_test_files(cfg, name: str) -> None:
        """Every image has a label map that can be read, and ``TEST.LT.SEM_SEG`` makes sense."""
        node = cfg.TEST.LT.SEM_SEG
        check_views(node.WINDOW, node.STRIDE, node.SCALES)
        check_save(node.SAVE, [record["file_name"] for record in sem_seg_records(name)])
        check_sem_seg_files(name, cache_dir=cfg.DATASETS.LT.CACHE_DIR or None)

    @staticmethod
    def metrics(cfg) -> list[str]:
        """What an evaluation measures, as the event storage calls it."""
        names = ["mIoU", "fwIoU", "mACC", "pACC"]
        names += [f"{metric}_{size}" for metric in ("mIoU", "mACC") for size in SIZES]
        names += ["boundary_mIoU"] * cfg.TEST.LT.SEM_SEG.BOUNDARY
        return [f"sem_seg/{name}" for name in names]

    @staticmethod
    def evaluator(
        cfg,
        name: str,
        counts: ClassCounts | None,
        model: torch.nn.Module,
        weights: str | None = None,
    ):
        """Of a test set, with the groups and counts of the training set.

        Args:
            cfg: prepared.
            name: of ``DATASETS.TEST``.
            counts: of the training set, None if it is not at hand.
            model: what is evaluated.
            weights: checkpoint that `model` holds; None: it is being trained.
        """
        known = None
        if counts is not None:
            known = {"images": counts.images.tolist(), "pixels": counts.pixels.tolist()}
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if comm.is_main_process():
            remove_predictions(_output_dir(cfg, name))
        comm.synchronize()
        return LongTailSemSegEvaluator(
            dataset_name=name,
            class_names=sem_seg_class_names(name),
            read_labels=partial(_read_labels, num_classes),
            groups=None if counts is None else counts.groups,
            group_source=_sem_seg_groups(cfg),
            class_counts=known,
            boundary=cfg.TEST.LT.SEM_SEG.BOUNDARY,
            save=cfg.TEST.LT.SEM_SEG.SAVE,
            output_dir=_output_dir(cfg, name),
        )


# The task of a meta-architecture; detection where it is not listed.
TASKS = {
    "LongTailATSS": DenseDetection,
    "LongTailClassifier": Classification,
    "LongTailFCOS": DenseDetection,
    "LongTailRetinaNet": DenseDetection,
    "LongTailSegmentor": Segmentation,
    "RetinaNet": DenseDetection,
}


def task_of(cfg) -> type[Detection] | type[Classification] | type[Segmentation]:
    """The task of ``MODEL.META_ARCHITECTURE``."""
    return TASKS.get(cfg.MODEL.META_ARCHITECTURE, Detection)


def check_training(cfg, ranks: int | None = None) -> None:
    """Raise a ConfigError for values that only the training loader would find wrong."""
    images_per_pass(cfg, ranks)
    check_loading(cfg)
    max_grad_norm(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        _check_panoptic(cfg)
    if task_of(cfg) is DenseDetection and cfg.SOLVER.LT.ACCUMULATION_STEPS > 1:
        raise ConfigError(
            f"SOLVER.LT.ACCUMULATION_STEPS is {cfg.SOLVER.LT.ACCUMULATION_STEPS}, but a dense "
            "detector divides each pass by its own positives, so that several passes are not one "
            "large batch; accepted is 1"
        )


def check_architecture(cfg) -> None:
    """Raise a ConfigError for a model that would leave out what the configuration asks for."""
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        raise ConfigError(
            "MODEL.META_ARCHITECTURE is SemanticSegmentor; LongTailSegmentor is that with an "
            "auxiliary head, windows and scales"
        )


def _check_panoptic(cfg) -> None:
    if issubclass(SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME), PixelHead):
        pixel_loss_from_config(cfg)
    for name in cfg.DATASETS.TRAIN:
        if "sem_seg_file_name" not in get_records(name)[0]:
            raise ConfigError(
                f"DATASETS.TRAIN {name} has boxes but no label maps, of which a PanopticFPN needs "
                "both; Detectron2's coco_2017_train_panoptic_separated has them"
            )


def _output_dir(cfg, name: str) -> str:
    return os.path.join(cfg.OUTPUT_DIR, "inference", name)


def _check_image_set(name: str, key: str) -> None:
    if find_image_set(name) is None:
        raise ConfigError(
            f"DATASETS.{key} {name} is no list of image classification, which "
            "MODEL.META_ARCHITECTURE LongTailClassifier needs; own lists are registered with "
            "DATASETS.LT.REGISTER"
        )


def _check_sem_seg_set(name: str, key: str) -> None:
    if find_sem_seg_set(name) is None:
        raise ConfigError(
            f"DATASETS.{key} {name} has no label maps, which semantic segmentation needs; own sets "
            "are registered with DATASETS.LT.REGISTER"
        )


def _read_labels(num_classes: int, record: dict):
    """(H, W) uint8 classes of a sample of the test loader, 255 = ignored."""
    return read_record_classes(record, num_classes, (record["height"], record["width"]))


def _sem_seg_groups(cfg) -> str:
    """How head, common and tail classes are told apart, in words."""
    node = cfg.DATASETS.LT
    if node.SEM_SEG.GROUP_BY == "borders":
        low, high = node.GROUP_BORDERS
        return f"tail up to {low} training images, common up to {high}, head above"
    return f"thirds of the classes by training {node.SEM_SEG.GROUP_BY}"


def _classifier_weights(model: torch.nn.Module) -> Callable[[], torch.Tensor]:
    """Gives the (C, D) weights of the classifier at the time of the call."""
    inner = getattr(model, "module", model)  # under DistributedDataParallel

    def weights() -> torch.Tensor:
        return inner.classifier.weight[: inner.cls_loss.num_classes]

    return weights
