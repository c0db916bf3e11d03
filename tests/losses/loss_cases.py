"""How the shared loss test-suite calls each registered loss.

A new loss needs an entry here only if its constructor cannot do with the defaults below, or if
other parameters take another path through it (VARIANTS).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from lt_det.losses import LOSS_REGISTRY, Accumulators, build_loss

# The compiler of torch 2.4 cannot put a custom autograd function with blocks into one graph; the
# releases between that and 2.14 were not tried.
needs_new_compiler = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14), reason="needs torch 2.14"
)

NUM_CLASSES = 7
COUNTS = torch.tensor([3, 500, 40, 1, 120, 9, 60])  # not sorted


@dataclass
class LossCase:
    """One way to build one loss."""

    name: str
    has_background: bool
    params: dict = field(default_factory=dict)

    def build(self):
        return build_loss(
            self.name,
            num_classes=NUM_CLASSES,
            has_background=self.has_background,
            class_counts=COUNTS,
            **self.params,
        )

    def without_noise(self):
        """The same loss with its random noise scaled to zero.

        For tests that compare calls whose rows or classes stand in another order or number: a
        stochastic loss draws for rows as they come.
        """
        parameter = LOSS_REGISTRY.get(self.name).noise_parameter
        if parameter is None:
            return self
        return LossCase(self.name, self.has_background, {**self.params, parameter: 0.0})

    def inputs(self, rows: int, seed: int = 0, dtype=torch.float64):
        """Random logits, targets (all kinds of labels) and features."""
        loss = self.build()
        generator = torch.Generator().manual_seed(seed)
        scale = 1.0 if loss.classifier == "cosine" else 2.0
        logits = torch.randn(rows, loss.num_logits, generator=generator, dtype=dtype) * scale
        if loss.classifier == "cosine":
            logits = logits.tanh()
        highest = NUM_CLASSES + int(self.has_background)
        targets = torch.randint(0, highest, (rows,), generator=generator)
        features = torch.randn(rows, 5, generator=generator, dtype=dtype)
        return logits, targets, features

    def __str__(self):
        params = "".join(f"-{key}={value}" for key, value in self.params.items())
        return f"{self.name}-{'bg' if self.has_background else 'nobg'}{params}"


# Phases that the schedule reaches late, and forms that are an option.
VARIANTS = [
    ("KPS", {"adjust_from": 0.0}),
    ("LDAM", {"reweight_from": 0.0}),
    ("FBL", {"curriculum": "constant"}),
    ("GCL", {"angular": True, "margin": 0.1}),
    ("GCL", {"focal_gamma": 1.0, "margin": 0.1}),
    ("FocalLoss", {"form": "softmax"}),
    ("SoftmaxEQL", {"form": "share", "tau": 0.5}),
    ("SoftmaxEQL", {"indicator": "ratio"}),
    ("SoftmaxEQL", {"adjust_background": False}),
]

ALL_CASES = [
    LossCase(name, bg, params)
    for name, params in [*((name, {}) for name in LOSS_REGISTRY), *VARIANTS]
    for bg in (False, True)
]


def accumulators(loss) -> Accumulators | None:
    """The accumulators of a loss, if it has any."""
    return next((m for m in loss.modules() if isinstance(m, Accumulators)), None)


STATEFUL_CASES = [c for c in ALL_CASES if accumulators(c.build()) is not None]


def total(terms: dict) -> torch.Tensor:
    return sum(terms.values())


def call(loss, logits, targets, features, **kwargs):
    """The training loss; features go only to the losses that ask for them."""
    return total(
        loss(logits, targets, features=features if loss.needs_features else None, **kwargs)
    )
