"""One-vs-all sigmoid losses: the shared one-pass kernel, and plain binary cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_det.losses.base import IGNORED, LongTailLoss, LossInput, append_zero_background, widen
from lt_det.losses.build import LOSS_REGISTRY
from lt_det.losses.one_pass import Sums, one_pass, rows_of, set_column


def weighted_sigmoid_bce(
    logits: Tensor,
    columns: Tensor,
    *,
    pos_weight: Tensor,
    neg_weight: Tensor,
    row_weight: Tensor,
    mask: Tensor | None = None,
    neg_weight_without_own: Tensor | None = None,
    divisor: Tensor | None = None,
) -> Sums:
    """Sigmoid cross-entropy with one weight per column for positives and one for negatives.

    ``sum_i a_i sum_j m_ij [ y_ij q_j softplus(-z_ij) + (1 - y_ij) r_j softplus(z_ij) ]`` with
    ``y_ij = [j == columns_i]``. Loss, gradient and per-column sums come from one pass over
    blocks of rows: no one-hot targets, no other (M, L) tensor than the gradient.

    Args:
        logits: (M, L) float32 or float64.
        columns: (M,) int64, the positive column of a row; -1 = none.
        pos_weight: (L,) q.
        neg_weight: (L,) r.
        row_weight: (M,) a.
        mask: (M, L) or (1, L) bool m, or None.
        neg_weight_without_own: (L,) r of the rows without a positive column; None = r.
        divisor: 0-dim, divides the loss and its gradient but not the sums; None = 1. Here it
            costs nothing, afterwards one more pass over the gradient.
    """
    neg_weights = (neg_weight, neg_weight_without_own)
    scale = 1 if divisor is None else 1 / divisor

    def block(z, rows, grad):
        return _bce_block(
            z,
            columns[rows],
            pos_weight,
            neg_weights,
            row_weight[rows],
            rows_of(mask, rows),
            scale,
            grad,
        )

    return one_pass(logits, block)


def _bce_block(logits, columns, pos_weight, neg_weights, row_weight, mask, scale, grad):
    has_own = columns >= 0
    own = columns.clamp(min=0)[:, None]
    own_weight = row_weight * pos_weight[own[:, 0]] * has_own
    if mask is not None:
        own_weight = own_weight * mask.expand(len(logits), -1).gather(1, own)[:, 0]
    own_logit = logits.gather(1, own)[:, 0]

    # Every entry as a negative, then the row's own column taken out: set to zero, because
    # subtracting softplus(z) loses all digits of the rest at z = 1e4.
    prob = torch.sigmoid(logits) if grad is None else torch.sigmoid(logits, out=grad)
    nll = softplus_given_sigmoid(logits, prob)
    if mask is not None:
        nll *= mask
        prob *= mask
    for entries in (nll, prob):
        set_column(entries, own, has_own)

    # softplus(-z) has the derivative -sigmoid(-z), exact where sigmoid(z) - 1 is not.
    own_nll, own_prob = softplus(-own_logit), torch.sigmoid(-own_logit)
    own_grad = own_weight * own_prob
    loss = torch.dot(own_nll, own_weight).double()
    pos = torch.zeros_like(pos_weight, dtype=torch.float64)
    pos.index_add_(0, own[:, 0], own_grad.double())

    neg_weight, without_own = neg_weights
    if without_own is None:
        neg_loss, neg = _negatives(nll, prob, neg_weight, row_weight)
    else:
        neg_loss, neg = _negatives(nll, prob, neg_weight, row_weight * has_own)
        other_loss, other_neg = _negatives(nll, prob, without_own, row_weight * ~has_own)
        neg_loss, neg = neg_loss + other_loss, neg + other_neg
        neg_weight = torch.where(has_own[:, None], neg_weight, without_own)
    if grad is not None:  # prob is grad
        grad.mul_(neg_weight).mul_((row_weight * scale)[:, None])
        grad.scatter_add_(1, own, -(own_grad * scale)[:, None])
    return ((loss + neg_loss) * scale,), pos, neg


def _negatives(nll, prob, neg_weight, row_weight):
    """Weighted sum of (n, L) `nll`, and the (L,) of `prob`."""
    loss = torch.dot(nll @ neg_weight, row_weight).double()
    return loss, ((row_weight @ prob) * neg_weight).double()


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``, to the last digits for every finite x; no gradient."""
    if x.device.type != "cpu":
        # torch's default threshold of 20 is off by 2e-9 there; at 40 nothing is left in float64.
        return F.softplus(x, threshold=40)
    # max(x, 0) + log1p(u), u = exp(-|x|). torch's own softplus and log1p take 10 to 20 times as
    # long as its log on a CPU. log(w) with w = 1 + u rounded, plus what the rounding lost:
    # log1p(u) = log(w) + log(1 + (u - (w - 1)) / w), the last part being u - (w - 1) within
    # half a unit in the last place.
    lost = x.abs().neg_().exp_()
    rounded = lost + 1
    out = rounded.log()
    lost -= rounded.sub_(1)
    out += lost
    return out.add_(x.clamp(min=0))


def softplus_given_sigmoid(x: Tensor, prob: Tensor) -> Tensor:
    """:func:`softplus` where ``prob = sigmoid(x)`` is at hand: fewer passes on a CPU; no gradient.

    softplus(x) = -log(u), u = sigmoid(-x). For negative x, u is close to 1 and rounded; what the
    rounding lost, prob - (1 - u), is added back.
    """
    if x.device.type != "cpu" or x.numel() == 0 or torch.compiler.is_compiling():
        return softplus(x)
    u = torch.neg(x).sigmoid_()
    if not u.amin() > 0:  # x above 88 in float32, or NaN
        return softplus(x)
    out = torch.rsub(u, 1)
    return torch.sub(prob, out, out=out).sub_(u.log_())


def one_vs_all_columns(targets: Tensor, num_columns: int) -> Tensor:
    """Targets as columns: -1 for ignored rows and for a background without a column."""
    return targets.masked_fill(targets >= num_columns, IGNORED)


def pad_mask(mask: Tensor | None, num_logits: int) -> Tensor | None:
    """(., C) class mask -> (., L) column mask; extra columns always take part."""
    if mask is None:
        return None
    return F.pad(mask, (0, num_logits - mask.shape[1]), value=True)


def one_vs_all_scores(logits: Tensor, has_background: bool) -> Tensor:
    """(M, C) logits -> (M, C) sigmoid; with background a last column of zeros."""
    scores = torch.sigmoid(widen(logits))
    return append_zero_background(scores) if has_background else scores


@LOSS_REGISTRY.register()
class SigmoidBCE(LongTailLoss):
    """Binary cross-entropy over C one-vs-all outputs; a background row is all zeros.

    ``L = (1/normalizer) sum_i weight_i sum_j BCE(sigmoid(z_ij), y_ij)``

    Summed over classes, divided by the number of rows that are not ignored unless
    ``normalizer`` is given. Scores: sigmoid.

    Raises:
        ValueError: see :class:`~lt_det.losses.base.LongTailLoss`.
    """

    prior_prob = 0.001
    accepts_soft_labels = True

    def terms(self, x: LossInput) -> dict[str, Tensor]:
        """{"loss_cls": scalar}."""
        if x.soft:
            entries = F.binary_cross_entropy_with_logits(x.logits, x.targets, reduction="none")
            if x.class_mask is not None:
                entries = entries * x.class_mask
            return {"loss_cls": (entries.sum(1) * x.weight).sum() / x.normalizer}
        ones = x.logits.new_ones(self.num_classes)
        sums = weighted_sigmoid_bce(
            x.logits,
            one_vs_all_columns(x.targets, self.num_classes),
            pos_weight=ones,
            neg_weight=ones,
            row_weight=x.weight,
            mask=x.class_mask,
            divisor=x.normalizer,
        )
        return {"loss_cls": sums.loss}

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """(M, C) sigmoid; with background a last column of zeros."""
        return one_vs_all_scores(logits, self.has_background)
