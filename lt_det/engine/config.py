"""From command line to a checked configuration, before anything is written."""

from __future__ import annotations

import logging
import os

import torch
from detectron2.config import CfgNode, get_cfg

import lt_det.modeling  # noqa: F401  registers the heads
from lt_det.config import add_lt_config, open_loss_params
from lt_det.data import ClassCounts, dataset_info, get_class_counts, register_from_config
from lt_det.data.build import images_per_pass
from lt_det.errors import ConfigError, LtDetError, MissingFileError
from lt_det.modeling.build import federated_from_config, loss_from_config

logger = logging.getLogger(__name__)

COUNT_UNITS = ("instances", "images")


def load_config(config_file: str = "", opts: list[str] | None = None) -> CfgNode:
    """Detectron2's defaults, ours, the YAML file and the overrides, in this order.

    Args:
        config_file: YAML; "" = none.
        opts: KEY VALUE pairs.

    Raises:
        MissingFileError: no such file.
        ConfigError: a key that does not exist, or a value of the wrong type.
    """
    opts = list(opts or [])
    if len(opts) % 2:
        raise ConfigError(f"options come as KEY VALUE pairs, got {' '.join(opts)}")
    cfg = add_lt_config(get_cfg())
    if config_file and not os.path.isfile(config_file):
        raise MissingFileError(f"no configuration file {config_file}")
    try:
        if config_file:
            cfg.merge_from_file(config_file)
        open_loss_params(cfg, opts)
        cfg.merge_from_list(opts)
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(f"{config_file or 'options'}: {error}") from error
    return cfg


def prepare_config(cfg: CfgNode, *, training: bool = True) -> ClassCounts | None:
    """Register the data sets of `cfg`, check it, and fill in ``MODEL.LT.CLASS_COUNTS``.

    Everything that can be found wrong without building the model is found here, before the
    output folder is made.

    Args:
        cfg: changed in place.
        training: False = the training set may be missing.

    Returns:
        The class counts of ``DATASETS.TRAIN``; None where they are not to be had, which only
        an evaluation may go on without.

    Raises:
        LtDetError: the value, the accepted ones and the key are named.
    """
    check_device(cfg)
    register_from_config(cfg)
    if training:
        images_per_pass(cfg)
    counts = _class_counts(cfg, required=training)
    if counts is not None:
        check_num_classes(cfg, cfg.DATASETS.TRAIN[0], len(counts.names))
        _fill_class_counts(cfg, counts)
    for name in cfg.DATASETS.TEST:
        check_num_classes(cfg, name, len(dataset_info(name).class_names))
    if "LongTail" in cfg.MODEL.ROI_HEADS.NAME:
        loss_from_config(cfg, num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES, has_background=True)
        federated_from_config(cfg, num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    return counts


def check_device(cfg: CfgNode) -> None:
    """Raise a ConfigError if ``MODEL.DEVICE`` is CUDA and there is none."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "MODEL.DEVICE is cuda but torch finds no CUDA device; to run on the CPU add "
            "MODEL.DEVICE cpu to the command"
        )


def check_num_classes(cfg: CfgNode, dataset: str, found: int) -> None:
    """Raise a ConfigError unless the head has as many classes as the data set."""
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES != found:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES} but data set "
            f"{dataset} has {found} classes"
        )


def _class_counts(cfg: CfgNode, required: bool) -> ClassCounts | None:
    if not cfg.DATASETS.TRAIN:
        if required:
            raise ConfigError("DATASETS.TRAIN is empty")
        return None
    try:
        return get_class_counts(
            cfg.DATASETS.TRAIN,
            cache_dir=cfg.DATASETS.LT.CACHE_DIR or None,
            borders=cfg.DATASETS.LT.GROUP_BORDERS,
        )
    except LtDetError:
        if required:
            raise
        return None


def _fill_class_counts(cfg: CfgNode, counts: ClassCounts) -> None:
    """Write the counts into `cfg`, or check those that are there already."""
    unit = cfg.MODEL.LT.COUNT_UNIT
    if unit not in COUNT_UNITS:
        raise ConfigError(f"MODEL.LT.COUNT_UNIT is {unit!r}; accepted are {', '.join(COUNT_UNITS)}")
    found = [int(n) for n in getattr(counts, unit)]
    if not cfg.MODEL.LT.CLASS_COUNTS:
        cfg.MODEL.LT.CLASS_COUNTS = found
    elif list(cfg.MODEL.LT.CLASS_COUNTS) != found:
        logger.warning(
            "MODEL.LT.CLASS_COUNTS is set and is not what DATASETS.TRAIN %s holds (%s); the "
            "loss is built with what is set.",
            counts.source,
            unit,
        )
