"""The registry of losses and the one function that builds them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch

from lt_det.registry import Registry, unknown_name

LOSS_REGISTRY = Registry("loss", config_key="MODEL.LT.LOSS.NAME")

# What every loss takes; the rest of a constructor's arguments are the loss's own parameters.
_COMMON = ("self", "num_classes", "has_background", "class_counts")


def loss_parameters(name: str) -> dict[str, object]:
    """The own parameters of a registered loss and their defaults.

    A constructor that ends in ``**kwargs`` passes them on to its base class, so the parameters
    of the base classes count too.
    """
    found: dict[str, object] = {}
    for cls in LOSS_REGISTRY.get(name).__mro__:
        parameters = inspect.signature(cls.__init__).parameters.values()
        for p in parameters:
            if p.name not in _COMMON and p.kind is inspect.Parameter.KEYWORD_ONLY:
                found.setdefault(p.name, p.default)
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def build_loss(
    name: str,
    *,
    num_classes: int,
    has_background: bool = False,
    class_counts: torch.Tensor | Sequence[int] | None = None,
    **params,
):
    """Build a registered loss.

    Args:
        name: a name of ``LOSS_REGISTRY``.
        num_classes: C, the number of foreground classes.
        has_background: whether a target may be C, the background.
        class_counts: (C,) training examples of each class, or None. Losses that depend on
            them say so when they are missing.
        **params: parameters of the loss, see :func:`loss_parameters`.

    Raises:
        ValueError: unknown loss or parameter (the known ones are listed), or a wrong
            number of counts.
    """
    loss_class = LOSS_REGISTRY.get(name)
    known = loss_parameters(name)
    for key in params:
        if key not in known:
            kind = f"parameter of loss {name}"
            raise ValueError(unknown_name(kind, key, known, "MODEL.LT.LOSS.PARAMS"))
    if class_counts is not None:
        class_counts = torch.as_tensor(class_counts)
        if class_counts.numel() == 0:
            class_counts = None
    return loss_class(
        num_classes=num_classes,
        has_background=has_background,
        class_counts=class_counts,
        **params,
    )
