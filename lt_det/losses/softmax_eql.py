"""Softmax-EQL: softmax cross-entropy adjusted by the accumulated gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_det.losses.base import LongTailLoss, LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.grad_stats import RATIO_EPS, GradStats
from lt_det.losses.one_pass import (
    Sums,
    cross_entropy_block_,
    mask_classes_,
    one_pass,
    rows_of,
)
from lt_det.losses.params import check_at_least, check_positive

FORMS = ("ratio", "share")
INDICATORS = ("pos", "neg", "ratio", "pos_and_neg")


def softmax_adjustment(indicator: Tensor, *, form: str, tau: float, eps: float) -> Tensor:
    """What is added to the logits.

    ``form="ratio"``: ``tau log max(I_j, eps)``;
    ``form="share"``: ``log((I_j / (sum_k I_k + eps))^tau + 1e-9)``.

    Args:
        indicator: (L,) I, at least 0.
        form: "ratio" or "share".
        tau: strength.
        eps: floor of the indicator, or of the sum.

    Returns:
        (L,) of the indicator's dtype.
    """
    if form == "ratio":
        return tau * indicator.clamp(min=eps).log()
    return ((indicator / (indicator.sum() + eps)) ** tau + 1e-9).log()


def adjusted_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    adjustment: Tensor,
    *,
    row_weight: Tensor,
    mask: Tensor | None = None,
    plain_column: int | None = None,
) -> Sums:
    """``sum_i a_i CE(z_i + adjustment, y_i)``, its gradient and per-column sums in one pass.

    Args:
        logits: (M, L) float32 or float64.
        targets: (M,) int64 column y, -1 = ignored; or (M, C) soft labels, C <= L.
        adjustment: (L,).
        row_weight: (M,) a, at least 0.
        mask: (M, C) or (1, C) bool, False = not in the denominator, or None. A row whose own
            class is masked has no loss.
        plain_column: a column that no adjustment separates from any other: rows labelled with
            it are not adjusted, in other rows it is shifted by as much as the row's own class,
            so that their difference stays that of the logits. None = all are adjusted.
    """
    soft = targets.dim() == 2

    def block(z, rows, grad):
        labels, weight, keep = targets[rows], row_weight[rows], rows_of(mask, rows)
        if soft and keep is not None:
            labels = labels * keep
        z = _adjust(z, labels, adjustment, plain_column, out=grad)
        if soft:
            if keep is not None:
                mask_classes_(z, keep)
            return _soft_block_(z, labels, weight)
        own = labels.clamp(min=0)
        if keep is not None:
            weight = mask_classes_(z, keep, own, weight)
        loss, pos, neg = cross_entropy_block_(z, own, weight)
        return (loss,), pos, neg

    return one_pass(logits, block)


def _adjust(z, labels, adjustment, plain_column, *, out):
    """Logits plus adjustment, in `out` if that is given."""
    if plain_column is None:
        return torch.add(z, adjustment, out=out)
    if labels.dim() == 1:
        own = adjustment[labels.clamp(min=0)]
        adjusted = (labels != plain_column).to(z.dtype)
        z = torch.addr(z, adjusted, adjustment, out=out)
        shift = own * adjusted
    else:
        shift = labels @ adjustment[: labels.shape[1]]
        z = torch.add(z, adjustment, out=out)
        adjusted = 1
    z[:, plain_column] += shift - adjustment[plain_column] * adjusted
    return z


def _soft_block_(z, labels, row_weight):
    """Cross-entropy with soft labels (n, C) of a block; `z` (n, L) becomes its gradient."""
    if labels.shape[1] < z.shape[1]:
        labels = F.pad(labels, (0, z.shape[1] - labels.shape[1]))
    mass = labels.sum(dim=1)
    z -= z.amax(dim=1, keepdim=True)
    inner = (labels * z).sum(dim=1)
    total = z.exp_().sum(dim=1)
    loss = torch.dot(mass * total.log() - inner, row_weight).double()
    z.mul_((mass / total)[:, None]).sub_(labels).mul_(row_weight[:, None])
    size = z.abs()
    pos = (size * labels).sum(dim=0).double()
    neg = (size * (1 - labels)).sum(dim=0).double()
    return (loss,), pos, neg


@LOSS_REGISTRY.register()
class SoftmaxEQL(LongTailLoss):
    """Gradient-driven softmax equalization loss over C classes, and the background.

    ``L = (1/normalizer) sum_i weight_i CE(z_i + adjustment, y_i)``, see
    :func:`softmax_adjustment`; a constant on all columns of a row changes nothing, so
    ``form="ratio"`` is the margin ``tau log(max(I_k, eps) / max(I_y, eps))`` on every other
    class k. The indicator I comes from the sums of the steps before this one:
    ``P_j = sum |dL/dz_ij|`` over positives and ``Q_j`` over negatives (soft labels:
    ``|dL/dz_ij| y_ij`` and ``|dL/dz_ij| (1 - y_ij)``), over all ranks. In the first step all
    are equal: plain cross-entropy. Scores: softmax of the plain logits.

    Divided by the number of rows that are not ignored unless ``normalizer`` is given. P and Q
    hold the gradient **with** row weight and 1/normalizer, as released, because the absolute
    size of I matters wherever it is compared with ``eps``: with ``form="ratio"`` a class counts
    as never seen until its indicator passes eps. With W ranks that divide by their own rows
    the sums are W times as large as those of one process. A factor on the loss that should
    enter the sums, as the release's loss weight does, goes into the normaliser.

    Source: Tan et al., "The Equalization Losses", TPAMI 2023, as released in
    ModelTC/United-Perception, 52aaeb9: ``form="ratio"`` is its `softmax_eql`, ``form="share"``
    its `softmax_eqlv2`. The release uses a cosine classifier with factor 30 and no bias
    (MODEL.LT.CLASSIFIER.NAME cosine, SCALE 30). Deviations:

    - the gradient is closed-form, so no hook can miss a call and the loss scale of mixed
      precision does not enter the sums.
    - **with a background column (ours; nothing was released)** the background is one more
      class of the softmax with sums of its own (``stats.extra_pos``, ``stats.extra_neg``).
      ``adjust_background=False`` leaves it out of the adjustment: there is no margin between
      background and any class, and background rows have plain cross-entropy; shares are then
      taken among the classes.
    - weights, ignored rows and masks work in both forms and count in the sums; soft labels work
      in both forms; no rows give zero, in the release NaN.

    Args:
        form: "ratio" or "share".
        tau: strength; 0 gives plain cross-entropy.
        eps: floor of the indicator ("ratio") or of the sum of indicators ("share").
        indicator: "pos" P, "neg" Q, "ratio" P / (Q + 1e-10), or "pos_and_neg", which as
            released is ratio + Q.
        adjust_background: whether the background takes part in the adjustment.
        **kwargs: see :class:`~lt_det.losses.base.LongTailLoss`.

    Raises:
        ValueError: see :class:`~lt_det.losses.base.LongTailLoss`; unknown form or indicator,
            tau below 0, eps not above 0.
    """

    accepts_soft_labels = True

    def __init__(
        self,
        *,
        form: str = "ratio",
        tau: float = 1.0,
        eps: float = 1e-4,
        indicator: str = "pos",
        adjust_background: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for key, value, known in (("form", form, FORMS), ("indicator", indicator, INDICATORS)):
            if value not in known:
                raise ValueError(
                    f"{key}={value!r} in MODEL.LT.LOSS.PARAMS: accepted are {', '.join(known)}"
                )
        check_at_least(0, tau=tau)
        check_positive(eps=eps)
        self.form, self.tau, self.eps, self.indicator = form, tau, eps, indicator
        self.adjust_background = adjust_background
        self.stats = GradStats(
            self.num_classes,
            kwargs.get("class_counts"),
            num_extra=int(self.has_background),
            passes="mean",
        )

    @property
    def num_logits(self) -> int:
        """C, or C+1 with the background last."""
        return self.num_classes + int(self.has_background)

    def adjustment(self) -> Tensor:
        """(L,) float64, what the next step adds to the logits; 0 for a background left out."""
        pos, neg = self.stats.columns()
        if self.indicator == "pos":
            indicator = pos
        elif self.indicator == "neg":
            indicator = neg
        else:
            indicator = pos / (neg + RATIO_EPS)
            if self.indicator == "pos_and_neg":
                indicator = indicator + neg
        if self._plain_column is not None:
            indicator = indicator[: self.num_classes]
        found = softmax_adjustment(indicator, form=self.form, tau=self.tau, eps=self.eps)
        return F.pad(found, (0, self.num_logits - len(found)))

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}; updates ``stats``."""
        sums = adjusted_cross_entropy(
            x.logits,
            x.targets,
            self.adjustment().to(x.logits.dtype),
            row_weight=x.weight,
            mask=x.class_mask,
            plain_column=self._plain_column,
        )
        if self.training and torch.is_grad_enabled():
            self.stats.update(sums.pos / x.normalizer, sums.neg / x.normalizer)
        return {"loss_cls": sums.loss / x.normalizer}

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """(M, L) softmax."""
        return F.softmax(widen(logits), dim=1)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        own = f", form={self.form}, tau={self.tau}, eps={self.eps}, indicator={self.indicator}"
        return super().extra_repr() + own

    @property
    def _plain_column(self) -> int | None:
        left_out = self.has_background and not self.adjust_background
        return self.num_classes if left_out else None
