"""From command line to a checked configuration, before anything is written."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.utils.file_io import PathManager

import lt_det.modeling  # noqa: F401  registers the heads
from lt_det.config import OPEN_PARAMS, add_lt_config, node_at, open_params
from lt_det.data import ClassCounts, register_from_config, report_absent_classes
from lt_det.engine.stages import check_stage_keys, first_stage_file
from lt_det.engine.tasks import check_architecture, check_training, task_of
from lt_det.errors import ConfigError, LtDetError, MissingFileError
from lt_det.modeling.build import classifier_from_config, federated_from_config
from lt_det.modeling.calibration import check_calibration
from lt_det.registry import unknown_name

logger = logging.getLogger(__name__)


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
    cfg = get_cfg()
    add_deeplab_config(cfg)  # backbones, heads and the poly schedule of semantic segmentation
    add_lt_config(cfg)
    if config_file and not os.path.isfile(config_file):
        raise MissingFileError(f"no configuration file {config_file}")
    try:
        if config_file:
            merge_file(cfg, config_file)
        forget_params_of_another(cfg, opts)
        opts = open_params(cfg, opts)
        cfg.merge_from_list(floats_as_floats(cfg, opts))
    # What yacs and PyYAML raise for unknown keys, wrong types, broken files and missing bases.
    except (
        *(AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError),
        yaml.YAMLError,
    ) as error:
        raise ConfigError(f"{config_file or 'options'}: {error}") from error
    return cfg


def merge_file(cfg: CfgNode, path: str) -> None:
    """As ``cfg.merge_from_file``, with :func:`read_yaml` for files of today's form."""
    try:
        content = read_yaml(path)
    except yaml.constructor.ConstructorError:  # Python objects, which Detectron2 allows
        content = {"VERSION": None}
    if content.get("VERSION", cfg.VERSION) == cfg.VERSION:
        cfg.merge_from_other_cfg(CfgNode(content))
    else:
        cfg.merge_from_file(path)


def read_yaml(path: str) -> dict:
    """A YAML file merged over its ``_BASE_``.

    As Detectron2 does it, but parameters belong to a loss or rule: where a file names another
    one than its base, the base's parameters do not apply.
    """
    with PathManager.open(path) as file:
        own = yaml.safe_load(file)
    if not isinstance(own, dict):
        raise TypeError(f"{path} holds {own!r} instead of keys")
    bases = own.pop("_BASE_", [])
    merged: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        base = os.path.expanduser(base)
        if not base.startswith(("/", "https://", "http://")):
            base = os.path.join(os.path.dirname(path), base)
        _merge(read_yaml(base), merged)
    _merge(own, merged)
    return merged


def _merge(above: dict, below: dict) -> None:
    """Put `above` over `below`, in place."""
    for params_key, name_key in OPEN_PARAMS.items():
        names = [_entry(content, name_key) for content in (above, below)]
        if None not in names and names[0] != names[1]:
            _entry(below, params_key.rpartition(".")[0]).pop("PARAMS", None)
    _merge_dicts(above, below)


def _merge_dicts(above: dict, below: dict) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge_dicts(value, below[key])
        else:
            below[key] = value


def _entry(content: dict, key: str):
    """The value of a dotted key, None if it is not there."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def forget_params_of_another(cfg: CfgNode, opts: list[str]) -> None:
    """When `opts` name another loss or rule than the file, the file's parameters do not apply."""
    given = dict(zip(opts[0::2], opts[1::2], strict=True))
    for params_key, name_key in OPEN_PARAMS.items():
        before, params = node_at(cfg, name_key), node_at(cfg, params_key)
        after = given.get(name_key, before)
        if after != before and params:
            logger.info(
                "%s %s replaces %s, whose parameters %s are left out",
                *(name_key, after, before, dict(params)),
            )
            params.clear()


def floats_as_floats(cfg: CfgNode, opts: list[str]) -> list[str]:
    """`opts` with a whole number written as a float where one of our keys holds a float.

    yacs takes 10 for 10.0 as a wrong type.
    """
    result = list(opts)
    for k in range(0, len(opts), 2):
        node = cfg
        for part in opts[k].split("."):
            node = node.get(part) if isinstance(node, CfgNode) else None
        ours = ".LT." in opts[k]
        if ours and isinstance(node, float) and re.fullmatch(r"[+-]?\d+", str(opts[k + 1])):
            result[k + 1] = f"{opts[k + 1]}.0"
    return result


def prepare_config(
    cfg: CfgNode, *, training: bool = True, ranks: int | None = None
) -> ClassCounts | None:
    """Register the data sets of `cfg`, check it, and fill in ``MODEL.LT.CLASS_COUNTS``.

    Everything that can be found wrong without building the model is found here, before the
    output folder is made.

    Args:
        cfg: changed in place.
        training: False = the training set may be missing.
        ranks: processes of the run; None = of the process group.

    Returns:
        The class counts of ``DATASETS.TRAIN``; None where they are not to be had, which only
        an evaluation may go on without.

    Raises:
        LtDetError: the value, the accepted ones and the key are named.
    """
    check_device(cfg)
    register_from_config(cfg)
    check_stage_keys(cfg)
    check_architecture(cfg)
    task = task_of(cfg)
    if training:
        check_training(cfg, ranks)
        resumable = os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
        if cfg.MODEL.LT.FIRST_STAGE and not resumable:
            first_stage_file(cfg.MODEL.LT.FIRST_STAGE)
    check_best_metric(cfg)
    check_bootstrap(cfg)
    check_calibrated_head(cfg)
    counts = _class_counts(cfg, required=training)
    if counts is not None:
        check_num_classes(cfg, cfg.DATASETS.TRAIN[0], len(counts.names))
        _fill_class_counts(cfg, counts)
        if training:
            report_absent_classes(counts)
    for name in cfg.DATASETS.TEST:
        class_names = task.test_classes(cfg, name)
        check_num_classes(cfg, name, len(class_names))
        check_same_classes(name, class_names, counts)
        task.check_test_files(cfg, name)
    if task.has_our_loss(cfg):
        classifier_from_config(cfg, task.loss(cfg), in_features=1)
        federated_from_config(cfg, num_classes=task.num_classes(cfg))
    return counts


def config_hash(cfg: CfgNode) -> str:
    """SHA-256 of a configuration without `SEED` and `OUTPUT_DIR`: seeds of a recipe share it."""
    own = cfg.clone()
    own.defrost()
    own.SEED, own.OUTPUT_DIR = 0, ""
    return hashlib.sha256(own.dump().encode()).hexdigest()


def check_same_classes(
    dataset: str, class_names: Sequence[str], counts: ClassCounts | None
) -> None:
    """Raise a ConfigError unless a test set has the classes of the training set, in order."""
    if counts is None or list(counts.names) == list(class_names):
        return
    pairs = zip(counts.names, class_names, strict=True)
    k, (train, test) = next((k, p) for k, p in enumerate(pairs) if p[0] != p[1])
    raise ConfigError(
        f"DATASETS.TEST {dataset} and DATASETS.TRAIN {counts.source} have different class lists: "
        f"class {k} is {test!r} in the first and {train!r} in the second"
    )


def check_best_metric(cfg: CfgNode) -> None:
    """Raise a ConfigError for a ``TEST.LT.BEST_METRIC`` that will never be measured."""
    name = cfg.TEST.LT.BEST_METRIC
    if not name:
        return
    known = task_of(cfg).metrics(cfg)
    if len(cfg.DATASETS.TEST) > 1:  # then Detectron2 puts the name of the set in front
        known = [f"{dataset}/{metric}" for dataset in cfg.DATASETS.TEST for metric in known]
    if name not in known:
        raise ConfigError(unknown_name("metric", name, known, "TEST.LT.BEST_METRIC"))
    if cfg.TEST.EVAL_PERIOD <= 0:
        raise ConfigError(
            f"TEST.LT.BEST_METRIC is {name} but TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}: "
            "without evaluations on the way the last checkpoint is the only candidate"
        )


def check_bootstrap(cfg: CfgNode) -> None:
    """Raise a ConfigError for a ``TEST.LT.BOOTSTRAP`` that gives no interval."""
    if cfg.TEST.LT.BOOTSTRAP < 0 or cfg.TEST.LT.BOOTSTRAP == 1:
        raise ConfigError(
            f"TEST.LT.BOOTSTRAP is {cfg.TEST.LT.BOOTSTRAP}; accepted is a number of resamples of "
            "at least 2, or 0 for no confidence intervals"
        )


def check_calibrated_head(cfg: CfgNode) -> None:
    """Raise a ConfigError for a calibration that is wrong, or that no head would apply."""
    name = check_calibration(cfg)
    # Of a PanopticFPN the head of the pixels may be ours alone.
    ours = task_of(cfg).has_our_loss(cfg) or cfg.MODEL.META_ARCHITECTURE == "PanopticFPN"
    if name and not ours:
        raise ConfigError(
            f"MODEL.LT.CALIBRATION.NAME is {name}, which Detectron2's own heads know nothing of; "
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, MODEL.ROI_HEADS.NAME "
            f"{cfg.MODEL.ROI_HEADS.NAME}. Ours have LongTail in their name"
        )


def check_device(cfg: CfgNode) -> None:
    """Raise a ConfigError if ``MODEL.DEVICE`` is CUDA and there is none."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "MODEL.DEVICE is cuda but torch finds no CUDA device; to run on the CPU add "
            "MODEL.DEVICE cpu to the command"
        )


def check_num_classes(cfg: CfgNode, dataset: str, found: int) -> None:
    """Raise a ConfigError unless the head has as many classes as the data set."""
    task = task_of(cfg)
    if task.num_classes(cfg) != found:
        raise ConfigError(
            f"{task.classes_key} is {task.num_classes(cfg)} but data set {dataset} has {found} "
            "classes"
        )


def _class_counts(cfg: CfgNode, required: bool) -> ClassCounts | None:
    if not cfg.DATASETS.TRAIN:
        if required:
            raise ConfigError("DATASETS.TRAIN is empty")
        return None
    try:
        return task_of(cfg).counts(cfg)
    except LtDetError:
        if required:
            raise
        return None


def _fill_class_counts(cfg: CfgNode, counts: ClassCounts) -> None:
    """Write the counts into `cfg`, or check those that are there already."""
    unit, units = cfg.MODEL.LT.COUNT_UNIT, task_of(cfg).units
    if unit not in units:
        raise ConfigError(
            f"MODEL.LT.COUNT_UNIT is {unit!r}; accepted with MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE} are {', '.join(units)}"
        )
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
