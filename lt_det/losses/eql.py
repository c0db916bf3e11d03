"""EQL, the first equalization loss: no negatives for rare classes from rows of other classes."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from lt_det.losses.base import LongTailLoss, LossInput
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.params import check_positive
from lt_det.losses.sigmoid_bce import one_vs_all_columns, one_vs_all_scores, weighted_sigmoid_bce

logger = logging.getLogger(__name__)


def tail_classes(class_counts: Tensor, num_images: float, lambda_: float) -> Tensor:
    """Classes whose image frequency is below a threshold.

    ``class_counts / num_images < lambda_``, strictly, both sides rounded to float32 as in the
    released code.

    Args:
        class_counts: (C,) images that hold the class.
        num_images: images with annotations.
        lambda_: threshold.

    Returns:
        (C,) bool.
    """
    frequency = (class_counts.double() / num_images).float()
    return frequency < torch.tensor(lambda_, dtype=torch.float32, device=frequency.device)


@LOSS_REGISTRY.register()
class EQL(LongTailLoss):
    """Equalization loss (v1) over C one-vs-all outputs; a background row is all zeros.

    ``L = (1/normalizer) sum_i weight_i sum_j w_ij BCE(sigmoid(z_ij), y_ij)`` with
    ``w_ij = 1 - E_i T_j (1 - y_ij)``: E_i = 1 on foreground rows, 0 on background rows, and
    T_j = 1 for the classes of :func:`tail_classes`. So a rare class is a negative on background
    rows only.

    Divided by the number of rows that are not ignored unless ``normalizer`` is given. Scores:
    sigmoid, and a zero background column.

    Source: Tan et al., "Equalization Loss for Long-Tailed Object Recognition", CVPR 2020, and
    its form in tztztztztz/eqlv2, 907fad9. Deviations: weights, ignored rows and masks work.

    Args:
        lambda_: frequency threshold. 1.77e-3 is the release's for LVIS v0.5, 1.1e-3 for LVIS v1.
        num_images: number of images with annotations, which `class_counts` is divided by. None
            takes the sum of the counts, which is right where every image has one label. For
            detectors count images (MODEL.LT.COUNT_UNIT: images) and give their number; without
            it a warning says so.
        **kwargs: see :class:`~lt_det.losses.base.LongTailLoss`.

    Raises:
        ValueError: see :class:`~lt_det.losses.base.LongTailLoss`; no class counts; num_images
            or lambda_ not positive.
    """

    prior_prob = 0.001

    def __init__(self, *, lambda_: float = 1.77e-3, num_images: float | None = None, **kwargs):
        super().__init__(**kwargs)
        class_counts = kwargs.get("class_counts")
        if class_counts is None:
            raise ValueError("EQL needs class_counts (MODEL.LT.CLASS_COUNTS): images of each class")
        if num_images is None:
            num_images = max(1.0, float(class_counts.sum()))
            if self.has_background:
                logger.warning(
                    "EQL divides the class counts by their sum, %.0f. Images hold several classes: "
                    "give the number of annotated images in MODEL.LT.LOSS.PARAMS.num_images.",
                    num_images,
                )
        check_positive(lambda_=lambda_, num_images=num_images)
        self.lambda_, self.num_images = lambda_, num_images
        # Follows from the data set, so it is not part of a checkpoint.
        tail = tail_classes(class_counts, num_images, lambda_)
        self.register_buffer("tail", tail, persistent=False)

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        ones = x.logits.new_ones(self.num_classes)
        sums = weighted_sigmoid_bce(
            x.logits,
            one_vs_all_columns(x.targets, self.num_classes),
            pos_weight=ones,
            neg_weight=ones.masked_fill(self.tail, 0),
            neg_weight_without_own=ones,
            row_weight=x.weight,
            mask=x.class_mask,
        )
        return {"loss_cls": sums.loss / x.normalizer}

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """(M, C) sigmoid; with background a last column of zeros."""
        return one_vs_all_scores(logits, self.has_background)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + f", lambda_={self.lambda_}, num_images={self.num_images}"
