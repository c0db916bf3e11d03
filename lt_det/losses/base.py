"""The contract that every loss keeps, whatever head calls it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

IGNORED = -1


@dataclass
class LossInput:
    """What a loss computes on: validated, in float32 or wider.

    Attributes:
        logits: (M, L).
        targets: (M,) int64 in 0..C, -1 = ignored; or (M, C) floats, soft labels.
        weight: (M,) of the logits' dtype, 0 on ignored rows.
        class_mask: (M, C) or (1, C) bool, False = class takes no part; None = all do.
        features: (M, D) or None.
        normalizer: 0-dim; the sum of the row losses is divided by it.
        quality: (M,) of the logits' dtype, or None.
    """

    logits: Tensor
    targets: Tensor
    weight: Tensor
    class_mask: Tensor | None
    features: Tensor | None
    normalizer: Tensor
    quality: Tensor | None = None

    @property
    def soft(self) -> bool:
        """Whether the targets are soft labels."""
        return self.targets.dim() == 2


class LongTailLoss(nn.Module):
    """Base of all losses: checks the input, then calls :meth:`terms`.

    A subclass sets the class attributes below, implements :meth:`terms` and
    :meth:`scores`, and nothing else needs to know about it.

    Args:
        num_classes: C, the number of foreground classes, at least 1.
        has_background: whether a target may be C, the background.
        class_counts: (C,) training examples of each class, or None.

    Raises:
        ValueError: C < 1, or not C counts, or a count that is negative or NaN.
    """

    classifier = "linear"
    """The classifier whose output the loss expects: "linear" or "cosine"."""
    prior_prob: float | None = None
    """Probability that a linear classifier's bias should start every output at."""
    needs_features = False
    """Whether ``features`` must be given."""
    accepts_soft_labels = False
    """Whether targets may be (M, C) floats."""
    accepts_quality = False
    """Whether ``quality`` may be given."""
    exact_gradient_with: dict = {}
    """Parameters that switch off every factor which the loss, by its definition, holds constant
    in the gradient; with them the gradient is the derivative of the value."""
    weight_enters_statistics = True
    """Whether a row of weight 2 counts twice in what the loss accumulates."""
    noise_parameter: str | None = None
    """Parameter that scales the random noise of a stochastic loss; at 0 there is none."""

    def __init__(
        self,
        *,
        num_classes: int,
        has_background: bool = False,
        class_counts: Tensor | None = None,
    ):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; a loss needs at least one class")
        if class_counts is not None:
            check_class_counts(class_counts, num_classes)
        self.num_classes = num_classes
        self.has_background = has_background

    @property
    def num_logits(self) -> int:
        """L, the number of outputs that the classifier must have."""
        return self.num_classes

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        weight: Tensor | None = None,
        class_mask: Tensor | None = None,
        features: Tensor | None = None,
        normalizer: Tensor | float | None = None,
        quality: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the loss; the training loss is their sum.

        Args:
            logits: (M, L) in any float dtype; computed in float32 or wider.
            targets: (M,) int64: class 0..C-1; C = background if ``has_background``;
                -1 = ignored row (no loss, no statistics). Or (M, C) floats in [0, 1] for the
                losses that accept soft labels.
            weight: (M,) factor of each row; None = 1.
            class_mask: (M, C) or (C,) bool. False: the class takes no part in the row, for
                one-vs-all losses its output has no loss, for softmax losses it leaves the
                denominator. A row whose own class is masked has no loss there. The background
                column is never masked.
            features: (M, D), what the classifier saw; for losses that need it.
            normalizer: what the sum of row losses is divided by; None = the number of rows
                that are not ignored, at least 1.
            quality: (M,) in [0, 1], the value that the own class's probability is drawn to
                (overlap of the predicted box, say); None = 1. Rows without a class may hold
                anything. For losses with a quality target.

        Returns:
            {name: scalar}. With no rows, zeros that carry a graph.

        Raises:
            ValueError: shapes or values outside of the above.
        """
        self._check(logits, targets, weight, class_mask, features)
        self._check_quality(quality, len(logits))
        with torch.autocast(logits.device.type, enabled=False):
            x = self._prepare(logits, targets, weight, class_mask, features, normalizer)
            if quality is not None:
                x.quality = quality.detach().to(x.logits.dtype)
            return self.terms(x)

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """The loss proper, on checked input. Called on every rank in every step."""
        raise NotImplementedError

    def scores(self, logits: Tensor) -> Tensor:
        """Scores for inference from (M, L) logits.

        Returns:
            (M, C), or (M, C+1) with the background last if ``has_background``; float32 or
            wider, in [0, 1].
        """
        raise NotImplementedError

    def default_normalizer(self, targets: Tensor) -> Tensor:
        """What the sum of row losses is divided by unless ``normalizer`` is given.

        0-dim: the number of rows that are not ignored, at least 1. A loss that divides by
        something else overrides this.
        """
        if targets.dim() == 2:
            return targets.new_tensor(max(1, len(targets)))
        return (targets != IGNORED).sum().clamp(min=1)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"num_classes={self.num_classes}, has_background={self.has_background}"

    def _apply(self, fn, recurse: bool = True):
        # Buffers of a loss are state and constants: they follow the model to another device,
        # never to another dtype, so that model.half() loses nothing.
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def _prepare(self, logits, targets, weight, class_mask, features, normalizer) -> LossInput:
        logits = widen(logits)
        if targets.dim() == 2:
            valid = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
            targets = targets.to(logits.dtype)
        else:
            valid = targets != IGNORED
        row_weight = valid.to(logits.dtype)
        if weight is not None:
            # where, not a product: the weight of an ignored row may be anything, NaN included.
            row_weight = torch.where(valid, weight.detach().to(logits.dtype), row_weight)
        if normalizer is None:
            normalizer = self.default_normalizer(targets)
        normalizer = torch.as_tensor(normalizer, dtype=logits.dtype, device=logits.device)
        if class_mask is not None and class_mask.dim() == 1:
            class_mask = class_mask[None]
        if features is not None:
            features = widen(features)
        return LossInput(logits, targets, row_weight, class_mask, features, normalizer)

    def _check(self, logits, targets, weight, class_mask, features) -> None:
        name = type(self).__name__
        if logits.dim() != 2 or logits.shape[1] != self.num_logits:
            raise ValueError(
                f"{name} wants logits of shape (M, {self.num_logits}) for {self.num_classes} "
                f"classes{' and background' if self.has_background else ''}, got "
                f"{tuple(logits.shape)}. See MODEL.LT.LOSS.NAME and the number of classes of "
                "the head (MODEL.ROI_HEADS.NUM_CLASSES, for one-stage detectors "
                "MODEL.RETINANET.NUM_CLASSES)."
            )
        if not logits.is_floating_point():
            raise ValueError(f"{name} wants floating-point logits, got {logits.dtype}")
        rows = len(logits)
        if targets.dim() == 2:
            self._check_soft(targets, rows)
        else:
            self._check_hard(targets, rows)
        if weight is not None and weight.shape != (rows,):
            raise ValueError(f"{name}: weight is {tuple(weight.shape)}, expected ({rows},)")
        if class_mask is not None:
            allowed = ((self.num_classes,), (rows, self.num_classes))
            if class_mask.dtype != torch.bool or tuple(class_mask.shape) not in allowed:
                raise ValueError(
                    f"{name}: class_mask is {class_mask.dtype} {tuple(class_mask.shape)}, "
                    f"expected bool of shape {allowed[0]} or {allowed[1]}"
                )
        if features is not None and (features.dim() != 2 or len(features) != rows):
            raise ValueError(f"{name}: features are {tuple(features.shape)}, expected ({rows}, D)")
        if features is None and self.needs_features:
            raise ValueError(f"{name} needs features=(M, D), the input of the classifier")

    def _check_quality(self, quality: Tensor | None, rows: int) -> None:
        if quality is None:
            return
        name = type(self).__name__
        if not self.accepts_quality:
            raise ValueError(f"{name} has no quality target; see MODEL.LT.LOSS.NAME")
        if quality.shape != (rows,) or not quality.is_floating_point():
            raise ValueError(
                f"{name}: quality is {quality.dtype} {tuple(quality.shape)}, expected floats of "
                f"shape ({rows},)"
            )

    def _check_hard(self, targets: Tensor, rows: int) -> None:
        name = type(self).__name__
        if targets.dtype != torch.int64 or targets.shape != (rows,):
            raise ValueError(
                f"{name}: targets are {targets.dtype} {tuple(targets.shape)}, "
                f"expected int64 of shape ({rows},)"
            )
        highest = self.num_classes if self.has_background else self.num_classes - 1
        if targets.device.type == "cpu" and not torch.compiler.is_compiling():
            if rows and (int(targets.min()) < IGNORED or int(targets.max()) > highest):
                raise ValueError(
                    f"{name}: targets run from {int(targets.min())} to {int(targets.max())}; "
                    f"accepted are -1 (ignored) and 0..{highest} for num_classes="
                    f"{self.num_classes}, has_background={self.has_background}"
                )
        else:
            # On an accelerator looking at the values would wait for the device, and a compiler
            # cannot do it at all.
            ok = ((targets >= IGNORED) & (targets <= highest)).all()
            torch._assert_async(ok, f"{name}: a target is outside of -1..{highest}")

    def _check_soft(self, targets: Tensor, rows: int) -> None:
        name = type(self).__name__
        if not self.accepts_soft_labels:
            raise ValueError(f"{name} takes hard labels of shape ({rows},), not soft ones")
        if targets.shape != (rows, self.num_classes) or not targets.is_floating_point():
            raise ValueError(
                f"{name}: soft labels are {targets.dtype} {tuple(targets.shape)}, "
                f"expected floats of shape ({rows}, {self.num_classes})"
            )


def widen(x: Tensor) -> Tensor:
    """`x` in float32 if it is narrower, else unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_class_counts(class_counts: Tensor, num_classes: int) -> None:
    """Raise a ValueError unless there are `num_classes` counts, none negative or NaN."""
    if tuple(class_counts.shape) != (num_classes,):
        raise ValueError(
            f"class_counts has shape {tuple(class_counts.shape)} but the loss has "
            f"{num_classes} classes. Counts and classes must come from the same data set: see "
            "DATASETS.TRAIN, MODEL.LT.CLASS_COUNTS and the number of classes of the head "
            "(MODEL.ROI_HEADS.NUM_CLASSES, for one-stage detectors MODEL.RETINANET.NUM_CLASSES)."
        )
    if not (class_counts >= 0).all():  # also when one is NaN
        raise ValueError(f"class_counts holds {class_counts.min().item()}; counts are at least 0")


def append_zero_background(scores: Tensor) -> Tensor:
    """(M, C) one-vs-all scores -> (M, C+1) with a background column of zeros.

    One-vs-all losses without a background column have no score for "nothing"; Detectron2 drops
    the last column before non-maximum suppression, so its value is never used.
    """
    return torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)
