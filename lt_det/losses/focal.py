"""Focal loss, one-vs-all and softmax; the one-pass kernel of all sigmoid focal losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_det.losses.base import LongTailLoss, LossInput, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.one_pass import (
    Sums,
    cross_entropy_block_,
    mask_classes_,
    one_pass,
    rows_of,
    set_column,
)
from lt_det.losses.params import check_at_least, check_at_most
from lt_det.losses.sigmoid_bce import (
    one_vs_all_columns,
    one_vs_all_scores,
    softplus,
    softplus_given_sigmoid,
)

FORMS = ("sigmoid", "softmax")


def weighted_sigmoid_focal(
    logits: Tensor,
    columns: Tensor,
    *,
    gamma: Tensor,
    pos_weight: Tensor,
    neg_weight: Tensor,
    row_weight: Tensor,
    mask: Tensor | None = None,
    quality: Tensor | None = None,
) -> Sums:
    """Sigmoid focal loss with an exponent and two weights per column.

    ``sum_i a_i sum_j m_ij w_ij F_ij`` with p = sigmoid(z) and

    - in the row's own column ``w = v_j``, ``F = |q_i - p|^gamma_j BCE(p, q_i)``; without
      quality, q = 1, that is ``(1 - p)^gamma_j (-log p)``;
    - elsewhere ``w = r_j``, ``F = p^gamma_j (-log(1 - p))``.

    Powers and logarithms come from softplus(z) = -log(1 - p), so that value and gradient are
    right for every finite logit. The gradient, with l = -log of the probability of the label,
    is ``-w (1-p)^gamma (gamma p l + 1 - p)`` in the own column and
    ``w p^gamma (gamma (1-p) l + p)`` elsewhere. One pass over blocks of rows; no one-hot
    targets, no other (M, L) tensor than the gradient.

    Args:
        logits: (M, L) float32 or float64.
        columns: (M,) int64, the positive column of a row; -1 = none.
        gamma: (L,) at least 0.
        pos_weight: (L,) v.
        neg_weight: (L,) r.
        row_weight: (M,) a.
        mask: (M, L) or (1, L) bool m, or None.
        quality: (M,) q in [0, 1], or None.
    """

    def block(z, rows, grad):
        return _focal_block(
            z,
            columns[rows],
            (gamma, pos_weight, neg_weight),
            row_weight[rows],
            rows_of(mask, rows),
            None if quality is None else quality[rows],
            grad,
        )

    return one_pass(logits, block)


def _focal_block(logits, columns, column_terms, row_weight, mask, quality, grad):
    gamma, pos_weight, neg_weight = column_terms
    has_own = columns >= 0
    own = columns.clamp(min=0)[:, None]
    own_weight = row_weight * pos_weight[own[:, 0]] * has_own
    if mask is not None:
        own_weight = own_weight * mask.expand(len(logits), -1).gather(1, own)[:, 0]
    own_logit = logits.gather(1, own)[:, 0]
    if quality is None:
        own_loss, own_grad = _positives(own_logit, gamma[own[:, 0]])
    else:
        # Nothing but the class of the row has a quality.
        quality = torch.where(has_own, quality, 1)
        own_loss, own_grad = _quality_positives(own_logit, quality, gamma[own[:, 0]])
    own_grad = own_grad * own_weight

    # Every entry as a negative. nll = -log(1 - p), log p = z - nll.
    prob = torch.sigmoid(logits) if grad is None else torch.sigmoid(logits, out=grad)
    nll = softplus_given_sigmoid(logits, prob)
    power = torch.sub(logits, nll).mul_(gamma).exp_()
    if mask is not None:
        power *= mask
    set_column(power, own, has_own)
    slope = torch.rsub(prob, 1).mul_(nll).mul_(gamma).add_(prob)
    nll *= power
    prob = torch.mul(slope, power, out=prob)

    loss = torch.dot(nll @ neg_weight, row_weight) + torch.dot(own_loss, own_weight)
    pos = torch.zeros_like(neg_weight, dtype=torch.float64)
    pos.index_add_(0, own[:, 0], own_grad.abs().double())
    neg = ((row_weight @ prob) * neg_weight).double()
    if grad is not None:  # prob is grad
        grad.mul_(neg_weight).mul_(row_weight[:, None])
        grad.scatter_add_(1, own, own_grad[:, None])
    return (loss.double(),), pos, neg


def _positives(logit, gamma):
    """Focal loss of a positive and its derivative, for (n,) logits."""
    nll, prob = softplus(-logit), torch.sigmoid(logit)
    missing = torch.sigmoid(-logit)
    power = torch.exp((-logit - nll) * gamma)  # log(1 - p) = -z - softplus(-z)
    return power * nll, -power * (gamma * (prob * nll) + missing)


def _quality_positives(logit, quality, gamma):
    """Quality focal loss of a positive and its derivative, for (n,) logits."""
    prob, missing = torch.sigmoid(logit), torch.sigmoid(-logit)
    # q - p, without cancellation at q = 1.
    gap = missing - (1 - quality)
    nll = quality * softplus(-logit) + (1 - quality) * softplus(logit)
    size = gap.abs()
    power = size**gamma
    # At gap 0 the derivative of |gap|^gamma is taken as 0, also for gamma < 1.
    steep = torch.where(size > 0, gamma * size.clamp_min(1e-30) ** (gamma - 1), 0)
    grad = -power * gap - steep * gap.sign() * (prob * missing * nll)
    return power * nll, grad


def softmax_focal(
    logits: Tensor,
    columns: Tensor,
    *,
    gamma: float,
    row_weight: Tensor,
    class_weight: Tensor | None = None,
    detach: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Softmax focal loss, ``sum_i a_i (1 - exp(-l_i))^gamma l_i``.

    ``l_i = c_y (-log softmax(z_i)_y)``, the cross-entropy with the class weight inside, so that
    the weight also enters the focal factor.

    Args:
        logits: (M, L) float32 or float64.
        columns: (M,) int64 column y, -1 = ignored.
        gamma: exponent, at least 0.
        row_weight: (M,) a.
        class_weight: (L,) c, or None.
        detach: whether the factor is a constant in the gradient.
        mask: (M, C) or (1, C) bool, False = not in the denominator, or None.

    Returns:
        Scalar.
    """

    def block(z, rows, grad):
        z = z.clone() if grad is None else grad.copy_(z)
        own = columns[rows].clamp(min=0)
        weight = row_weight[rows]
        if mask is not None:
            weight = mask_classes_(z, rows_of(mask, rows), own, weight)
        factor = 1 if class_weight is None else class_weight[own]

        def transform(nll):
            value, slope = _focal_transform(nll * factor, gamma, detach)
            return value, slope * factor

        loss, pos, neg = cross_entropy_block_(z, own, weight, transform)
        return (loss,), pos, neg

    return one_pass(logits, block).loss


def _focal_transform(nll, gamma, detach):
    """(1 - exp(-l))^gamma l, and its derivative."""
    missing = -torch.expm1(-nll)
    power = missing**gamma
    if detach or gamma == 0:
        return power * nll, power
    # At probability 1 the second part is 0 for every gamma > 0.
    steep = torch.where(missing > 0, missing.clamp_min(1e-30) ** (gamma - 1), 0)
    return power * nll, power + gamma * steep * torch.exp(-nll) * nll


@LOSS_REGISTRY.register()
class FocalLoss(LongTailLoss):
    """Focal loss in two forms.

    ``form="sigmoid"``, over C one-vs-all outputs, a background row being all zeros:
    ``L = (1/normalizer) sum_i weight_i sum_j alpha_t (1 - p_t)^gamma (-log p_t)`` with
    p_t = p, alpha_t = alpha for the row's class and p_t = 1 - p, alpha_t = 1 - alpha elsewhere.
    Scores: sigmoid.

    ``form="softmax"``, over C classes and the background where there is one:
    ``L = (1/normalizer) sum_i weight_i (1 - p_iy)^gamma (-log p_iy)``, p = softmax(z).
    Scores: softmax.

    Divided by the number of rows that are not ignored unless ``normalizer`` is given. RetinaNet
    divides by the number of positives: a dense head must hand that number in.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5. The
    softmax form is the baseline of the long-tailed classification repositories: the factor
    carries gradient in kaidic/LDAM-DRW (``detach=False``) and is a constant in Keke921's
    (``detach=True``). Their class weights are in :func:`softmax_focal`.

    Args:
        gamma: exponent; 0 gives (alpha-weighted) cross-entropy.
        alpha: weight of positives, 1 - alpha of negatives; negative = both weigh 1. Sigmoid only.
        form: "sigmoid" or "softmax".
        detach: softmax only.
        **kwargs: see :class:`~lt_det.losses.base.LongTailLoss`.

    Raises:
        ValueError: see :class:`~lt_det.losses.base.LongTailLoss`; unknown form, gamma below 0,
            alpha above 1, ``detach`` with the sigmoid form.
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: float = 0.25,
        form: str = "sigmoid",
        detach: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if form not in FORMS:
            raise ValueError(
                f"form={form!r} in MODEL.LT.LOSS.PARAMS: accepted are {', '.join(FORMS)}"
            )
        check_at_least(0, gamma=gamma)
        check_at_most(1, alpha=alpha)
        if detach and form == "sigmoid":
            raise ValueError("detach=True in MODEL.LT.LOSS.PARAMS belongs to form='softmax'")
        self.gamma, self.alpha, self.form, self.detach = gamma, alpha, form, detach
        self.prior_prob = 0.001 if form == "sigmoid" else None

    @property
    def num_logits(self) -> int:
        """C; with the softmax form and a background C+1, the background last."""
        return self.num_classes + int(self.has_background and self.form == "softmax")

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        if self.form == "softmax":
            loss = softmax_focal(
                x.logits,
                x.targets,
                gamma=self.gamma,
                row_weight=x.weight,
                detach=self.detach,
                mask=x.class_mask,
            )
            return {"loss_cls": loss / x.normalizer}
        ones = x.logits.new_ones(self.num_classes)
        positive, negative = alpha_weights(self.alpha)
        sums = weighted_sigmoid_focal(
            x.logits,
            one_vs_all_columns(x.targets, self.num_classes),
            gamma=ones * self.gamma,
            pos_weight=ones * positive,
            neg_weight=ones * negative,
            row_weight=x.weight,
            mask=x.class_mask,
        )
        return {"loss_cls": sums.loss / x.normalizer}

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """(M, C) sigmoid, with background a last column of zeros; or (M, L) softmax."""
        if self.form == "softmax":
            return F.softmax(widen(logits), dim=1)
        return one_vs_all_scores(logits, self.has_background)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return super().extra_repr() + f", form={self.form}, gamma={self.gamma}, alpha={self.alpha}"


def alpha_weights(alpha: float) -> tuple[float, float]:
    """Weights of positives and negatives; a negative alpha switches both off."""
    return (1.0, 1.0) if alpha < 0 else (alpha, 1 - alpha)
