"""Starting a training from parts of another one."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Sequence

import torch
import yaml
from torch import nn

from lt_det.errors import CheckpointError, ConfigError
from lt_det.losses import LongTailLoss
from lt_det.modeling.freeze import find_modules

logger = logging.getLogger(__name__)

# What a backbone's weights mean something with.
BACKBONE_KEYS = (
    "INPUT.FORMAT",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.RESNETS.NORM",
)

# Where a backbone's parameters are: below an FPN, or at the top.
BACKBONE_PREFIXES = ("backbone.bottom_up.", "backbone.")


def check_stage_keys(cfg) -> None:
    """Raise a ConfigError for keys of which one would undo the other, or that have no effect."""
    node = cfg.MODEL.LT
    if node.FIRST_STAGE and node.BACKBONE_WEIGHTS:
        raise ConfigError(
            "MODEL.LT.FIRST_STAGE and MODEL.LT.BACKBONE_WEIGHTS are both set; the first holds a "
            "backbone as well"
        )
    if cfg.MODEL.META_ARCHITECTURE != "LongTailClassifier":
        used = {
            "MODEL.LT.FREEZE": node.FREEZE,
            "MODEL.LT.MIXUP": node.MIXUP,
            "MODEL.LT.CLASS_SCALE": node.CLASS_SCALE,
            "TEST.LT.TAU_NORM": cfg.TEST.LT.TAU_NORM,
            "TEST.LT.KEEP_FEATURES": cfg.TEST.LT.KEEP_FEATURES,
        }
        for key, value in used.items():
            if value:
                raise ConfigError(
                    f"{key} is {value!r}, which only MODEL.META_ARCHITECTURE LongTailClassifier "
                    f"has; this is {cfg.MODEL.META_ARCHITECTURE}"
                )
    if node.START_ANEW and not node.FIRST_STAGE:
        raise ConfigError("MODEL.LT.START_ANEW is set, but there is no MODEL.LT.FIRST_STAGE")


def first_stage_file(path: str) -> str:
    """The final checkpoint of a run folder, or `path` itself.

    Raises:
        CheckpointError: there is none.
    """
    if os.path.isdir(path):
        folder, path = path, os.path.join(path, "model_final.pth")
        if not os.path.isfile(path):
            raise CheckpointError(
                f"MODEL.LT.FIRST_STAGE {folder} holds no finished training (model_final.pth): "
                f"train the first stage to its end with OUTPUT_DIR {folder}, or name another run, "
                "or one of its checkpoints"
            )
    if not os.path.isfile(path):
        raise CheckpointError(
            f"MODEL.LT.FIRST_STAGE: there is no checkpoint {path}: train the first stage first"
        )
    return path


def load_first_stage(model: nn.Module, path: str, start_anew: Sequence[str] = ()) -> None:
    """Load the parameters of another run's model.

    Args:
        model: the modules below its losses keep their own state (statistics, noise, progress),
            mixup its own noise.
        path: run folder or checkpoint.
        start_anew: dotted names of modules that keep their own start.

    Raises:
        CheckpointError: no such file; a parameter that is missing or of another shape.
        ConfigError: a name in `start_anew` that is no module.
    """
    file = first_stage_file(path)
    stored = read_parameters(file)
    find_modules(model, start_anew, "MODEL.LT.START_ANEW")
    losses = [name for name, m in model.named_modules() if isinstance(m, LongTailLoss)]
    scale = "class_scale.scale"
    if scale in stored and scale not in model.state_dict():
        raise CheckpointError(
            f"{file} has a factor for each class ({scale}), without which its classifier is not "
            "the one that was trained: set MODEL.LT.CLASS_SCALE True"
        )
    fresh = [*start_anew, *losses, "mixup", *(["class_scale"] if scale not in stored else [])]
    own = tuple(f"{name}." for name in fresh)
    wanted = {k: v for k, v in model.state_dict().items() if not k.startswith(own)}
    _copy(wanted, stored, file)
    logger.info("First stage: %d tensors from %s", len(wanted), file)


def load_backbone(model: nn.Module, file: str) -> None:
    """Load the backbone alone, from a detector or a classifier of any head.

    Args:
        model: has a ``backbone``.
        file: checkpoint.

    Raises:
        CheckpointError: no such file or no backbone in it; a parameter that is missing or of
            another shape.
    """
    if not os.path.isfile(file):
        raise CheckpointError(f"MODEL.LT.BACKBONE_WEIGHTS: there is no checkpoint {file}")
    stored, wanted = _below_backbone(read_parameters(file)), _below_backbone(model.state_dict())
    if not stored:
        raise CheckpointError(
            f"MODEL.LT.BACKBONE_WEIGHTS {file} holds no backbone of a detector or classifier; "
            "MODEL.WEIGHTS takes backbones on their own"
        )
    # Detectron2's frozen batch normalisation does not count batches.
    wanted = {k: v for k, v in wanted.items() if not k.endswith("num_batches_tracked")}
    _copy(wanted, stored, file)
    logger.info("Backbone: %d tensors from %s", len(wanted), file)


def report_backbone_differences(cfg, file: str) -> None:
    """Warn of what a backbone was trained with that differs here, though its weights fit.

    Args:
        cfg: of this run.
        file: checkpoint; the configuration beside it is compared.
    """
    beside = os.path.join(os.path.dirname(file), "config.yaml")
    if not os.path.isfile(beside):
        logger.warning(
            "There is no %s to compare with: %s should be what %s was trained with.",
            *(beside, ", ".join(BACKBONE_KEYS), file),
        )
        return
    with open(beside) as f:
        theirs = yaml.safe_load(f)
    for key in BACKBONE_KEYS:
        node, own = theirs, cfg
        for part in key.split("."):
            node, own = (x.get(part) if hasattr(x, "get") else None for x in (node, own))
        if node is not None and _plain(node) != _plain(own):
            logger.warning("%s is %r, but the backbone of %s has %r.", key, own, file, node)


def _plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value


def read_parameters(file: str) -> dict[str, torch.Tensor]:
    """Tensors by name of a checkpoint: ours, Detectron2's (``.pth``, or ``.pkl`` of its zoo).

    Raises:
        CheckpointError: it cannot be read, or holds no parameters.
    """
    try:
        if file.endswith(".pkl"):
            with open(file, "rb") as f:
                content = pickle.load(f, encoding="latin1")  # written by Python 2
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own for a bad file
        # Without the text, which advises to load files that may run code.
        raise CheckpointError(f"cannot read checkpoint {file}: {type(error).__name__}") from error
    stored = content.get("model") if isinstance(content, dict) else None
    if not isinstance(stored, dict):
        raise CheckpointError(f"{file} is not a checkpoint: it holds no parameters")
    return {k: torch.as_tensor(v) for k, v in stored.items() if hasattr(v, "shape")}


def _below_backbone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The backbone's tensors, by name without the part that says where it is."""
    for prefix in BACKBONE_PREFIXES:
        found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        if found:
            return found
    return {}


@torch.no_grad()
def _copy(wanted: dict[str, torch.Tensor], stored: dict[str, torch.Tensor], file: str) -> None:
    """Copy into `wanted`, all or nothing."""
    for name, tensor in wanted.items():
        if name not in stored:
            raise CheckpointError(f"{file} has no {name}, which this model needs")
        if stored[name].shape != tensor.shape:
            raise CheckpointError(
                f"{file}: {name} is {tuple(stored[name].shape)}, the model's is "
                f"{tuple(tensor.shape)}"
            )
    for name, tensor in wanted.items():
        tensor.copy_(stored[name])
