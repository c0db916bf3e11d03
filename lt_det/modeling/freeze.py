"""Parts of a model that a second stage of training leaves alone, or starts anew."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lt_det.errors import ConfigError

# What the batch normalisation inside of frozen parts does. "eval": uses its running statistics.
# "update": normalises by the batch and goes on updating them, with frozen scale and shift (the
# "shifted batch normalisation" of MiSLAS).
NORM_MODES = ("eval", "update")


def find_modules(model: nn.Module, names: Sequence[str], key: str) -> list[nn.Module]:
    """The sub-modules of these dotted names.

    Args:
        model: to look in.
        names: "backbone", "backbone.res5.2", ...
        key: configuration key that the names are from, for the message.

    Raises:
        ConfigError: no module has that name; the message lists those beside it.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules or not name:
            parent = name.rpartition(".")[0]
            while parent and parent not in modules:
                parent = parent.rpartition(".")[0]
            beside = [n for n, _ in modules[parent].named_children()]
            where = f"under {parent!r}" if parent else "at the top of the model"
            raise ConfigError(f"{key}: there is no module {name!r}; {where}: {', '.join(beside)}")
    return [modules[name] for name in names]


class FrozenParts:
    """Keeps parts of a model as they are while the rest trains.

    Args:
        model: its parameters in these parts stop requiring gradients.
        names: dotted names of the parts.
        norm: see ``NORM_MODES``.

    Raises:
        ConfigError: unknown name or mode.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], norm: str = "eval"):
        if norm not in NORM_MODES:
            raise ConfigError(
                f"MODEL.LT.FREEZE_NORM is {norm!r}; accepted are {', '.join(NORM_MODES)}"
            )
        self.parts = find_modules(model, names, "MODEL.LT.FREEZE")
        self.norm = norm
        for part in self.parts:
            part.requires_grad_(False)

    def set_modes(self) -> None:
        """Call after ``model.train()``: dropout and normalisation in the parts as said."""
        for part in self.parts:
            part.eval()
            if self.norm == "update":
                for module in part.modules():
                    if isinstance(module, _BatchNorm):
                        module.train()
