"""How the shared loss test-suite calls each registered loss.

A new loss needs an entry here only if its constructor cannot do with the defaults below.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lt_det.losses import LOSS_REGISTRY, build_loss

NUM_CLASSES = 7
COUNTS = torch.tensor([3, 500, 40, 1, 120, 9, 60])  # not sorted


@dataclass
class LossCase:
    """One way to build one loss."""

    name: str
    has_background: bool
    params: dict = field(default_factory=dict)

    def build(self, dtype=torch.float64):
        return build_loss(
            self.name,
            num_classes=NUM_CLASSES,
            has_background=self.has_background,
            class_counts=COUNTS,
            **self.params,
        )

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
        return f"{self.name}-{'bg' if self.has_background else 'nobg'}"


ALL_CASES = [LossCase(name, bg) for name in LOSS_REGISTRY for bg in (False, True)]
STATEFUL_CASES = [c for c in ALL_CASES if hasattr(c.build(), "stats")]


def total(terms: dict) -> torch.Tensor:
    return sum(terms.values())


def call(loss, logits, targets, features, **kwargs):
    """The training loss; features go only to the losses that ask for them."""
    return total(
        loss(logits, targets, features=features if loss.needs_features else None, **kwargs)
    )
