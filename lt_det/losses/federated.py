"""Federated annotation: which classes take part in which row.

In LVIS an image is annotated for some classes only: those found in it, and those verified to be
absent. About every other class nothing is known, so a region without a label of that class is no
negative of it. The masks made here go into ``class_mask`` of any loss: one-vs-all losses drop the
entry, softmax losses take the class out of the denominator, accumulators do not see it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_det.losses.base import check_class_counts
from lt_det.losses.noise import NoiseSource


def verified_classes(
    positive: Tensor, negative: Tensor, not_exhaustive: Tensor, num_classes: int
) -> Tensor:
    """Classes of which every object of an image is known, so that the rest is negative.

    ``(positive or negative) and not not_exhaustive``. A class that is present but was not
    annotated exhaustively may be what an unlabelled region shows: it acts as a negative nowhere
    in the image, as LVIS's evaluation ignores its unmatched detections there.

    Args:
        positive: (any,) int64 ids of the classes with an annotation in the image.
        negative: (any,) int64 ids of the classes verified to be absent.
        not_exhaustive: (any,) int64 ids of the classes with unannotated objects.
        num_classes: C.

    Returns:
        (C,) bool.
    """
    verified = torch.zeros(num_classes, dtype=torch.bool, device=positive.device)
    verified[positive] = True
    verified[negative] = True
    verified[not_exhaustive] = False
    return verified


def annotated_mask(targets: Tensor, verified: Tensor) -> Tensor:
    """The mask of exact federation: a class takes part where its absence is known.

    And in the rows labelled with it, whether or not it was annotated exhaustively: the label
    itself is certain.

    Args:
        targets: (M,) int64, 0..C-1; C = background; -1 = ignored.
        verified: (M, C) bool, the :func:`verified_classes` of the image of each row.

    Returns:
        (M, C) bool.
    """
    classes = torch.arange(verified.shape[1], device=targets.device)
    return verified | (classes == targets[:, None])


def sampled_mask(targets: Tensor, weights: Tensor, uniform: Tensor, num_sampled: int) -> Tensor:
    """The classes present among the targets, and sampled ones up to `num_sampled`.

    The classes that are not present are drawn without replacement, one after the other, each
    with probability proportional to its weight among those left: the `num_sampled` smallest of
    the exponential variables ``-log(u_j) / w_j`` are such a draw, without waiting for the
    device. With more than `num_sampled` classes present, all of them take part and no other.

    Args:
        targets: (M,) int64, 0..C-1; C = background; -1 = ignored.
        weights: (C,) float, at least 0; a class of weight 0 is never drawn.
        uniform: (C,) float in [0, 1), the random numbers u.
        num_sampled: how many classes take part in all, at least 1.

    Returns:
        (C,) bool.
    """
    num_classes = len(weights)
    # Ignored rows and background share a slot beyond the classes.
    slot = targets.masked_fill(targets < 0, num_classes)
    present = torch.zeros(num_classes + 1, dtype=torch.bool, device=targets.device)
    present = present.index_fill(0, slot, True)[:num_classes]
    # 1 - u lies in (0, 1], where the logarithm is finite.
    arrival = -torch.log1p(-uniform) / weights
    arrival = arrival.masked_fill(weights == 0, float("inf")).masked_fill(present, -1.0)
    first = arrival.topk(min(num_sampled, num_classes), largest=False)
    # Rather fewer classes than one of weight 0.
    drawn = torch.zeros_like(present).scatter(0, first.indices, first.values.isfinite())
    return present | drawn


class AnnotatedClasses(nn.Module):
    """Exact federation as a module: :func:`annotated_mask`. Without state."""

    needs_verified = True
    """Whether ``verified`` must be given."""

    def forward(self, targets: Tensor, verified: Tensor) -> Tensor:
        """(M,) targets and (M, C) verified classes to a (M, C) mask."""
        return annotated_mask(targets, verified)


class SampledClasses(nn.Module):
    """Classes of a batch and sampled negatives, the federated loss: :func:`sampled_mask`.

    For data without lists of verified classes, or as a regulariser. One draw for all rows of a
    call; every rank sees its own rows, so every rank draws for itself.

    The random numbers come from a :class:`~lt_det.losses.noise.NoiseSource`, whose state is in
    the state_dict.

    Source: Zhou, Koltun, Krähenbühl, "Probabilistic two-stage detection", 2021, and the
    ``use_fed_loss`` of Detectron2's main branch. Deviation: there the background counts as one
    of the `num_sampled` classes.

    Args:
        num_classes: C.
        class_counts: (C,) training examples; a class without any is never drawn.
        num_sampled: classes that take part in all, 50 in the source.
        power: weight of a class = count^power, 0.5 in the source; with 0 all that have an
            example are drawn alike.
        seed: the same on every rank.

    Raises:
        ValueError: no counts, or not C of them, `num_sampled` below 1, a negative power.
    """

    needs_verified = False

    def __init__(
        self,
        num_classes: int,
        class_counts: Tensor | None,
        num_sampled: int = 50,
        power: float = 0.5,
        *,
        seed: int = 0,
    ):
        super().__init__()
        if class_counts is None:
            raise ValueError(
                "sampling negative classes needs class counts: MODEL.LT.CLASS_COUNTS, filled "
                "from DATASETS.TRAIN at the start of a training"
            )
        check_class_counts(class_counts, num_classes)
        if not (num_sampled >= 1 and power >= 0):
            raise ValueError(
                f"num_sampled={num_sampled} must be at least 1 and power={power} at least 0"
            )
        self.num_sampled, self.power = num_sampled, power
        self.noise = NoiseSource(seed)
        weights = torch.where(class_counts > 0, class_counts.double() ** power, 0.0)
        # They follow from the counts, so they stay out of the state_dict.
        self.register_buffer("weights", weights.float(), persistent=False)

    @torch.no_grad()
    def forward(self, targets: Tensor, verified: Tensor | None = None) -> Tensor:
        """(M,) targets to a (C,) mask, another in every call; `verified` is not used."""
        uniform = self.noise.uniform(self.weights.shape, device=self.weights.device)
        return sampled_mask(targets, self.weights, uniform, self.num_sampled)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"num_sampled={self.num_sampled}, power={self.power}"
