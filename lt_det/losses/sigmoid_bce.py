"""One-vs-all sigmoid losses: the shared one-pass kernel, and plain binary cross-entropy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_det.losses.base import IGNORED, LongTailLoss, LossInput, append_zero_background, widen
from lt_det.losses.build import LOSS_REGISTRY

# Elements of one block. On a CPU 2**18 float32 numbers (1 MiB) stay in the second-level cache
# with the few temporaries beside them; on an accelerator launches cost more than memory traffic
# inside a block, so blocks are as large as memory allows without doubling the logits.
_BLOCK_CPU = 2**18
_BLOCK_ACCELERATOR = 2**25


class SigmoidSums(NamedTuple):
    """Result of :func:`weighted_sigmoid_bce`.

    Attributes:
        loss: scalar, sum over rows and columns; carries the graph.
        pos: (L,) float64, sum of |dL/dz_ij| over rows positive for column j.
        neg: (L,) float64, the same over rows negative for column j.
    """

    loss: Tensor
    pos: Tensor
    neg: Tensor


def weighted_sigmoid_bce(
    logits: Tensor,
    columns: Tensor,
    *,
    pos_weight: Tensor,
    neg_weight: Tensor,
    row_weight: Tensor,
    mask: Tensor | None = None,
) -> SigmoidSums:
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
    """
    return SigmoidSums(
        *_WeightedSigmoidBCE.apply(logits, columns, pos_weight, neg_weight, row_weight, mask)
    )


class _WeightedSigmoidBCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, columns, pos_weight, neg_weight, row_weight, mask):
        args = (logits, columns, pos_weight, neg_weight, row_weight, mask)
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        loss, pos, neg = _one_pass(*args, grad)
        ctx.args = tuple(a.detach() if a is not None else None for a in args)
        ctx.grad = grad
        ctx.mark_non_differentiable(pos, neg)
        return loss, pos, neg

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, _grad_pos, _grad_neg):
        grad, ctx.grad = ctx.grad, None
        if grad is None:  # a second backward through a retained graph
            grad = torch.empty_like(ctx.args[0])
            _one_pass(*ctx.args, grad)
        # In place: the buffer is ours and is handed out once.
        return grad.mul_(grad_loss), None, None, None, None, None


def _one_pass(logits, columns, pos_weight, neg_weight, row_weight, mask, grad):
    """Loss, positive and negative sums; fills `grad` (M, L) unless it is None."""
    num_rows, num_columns = logits.shape
    loss = logits.new_zeros((), dtype=torch.float64)
    pos = logits.new_zeros(num_columns, dtype=torch.float64)
    neg = logits.new_zeros(num_columns, dtype=torch.float64)
    block = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK_ACCELERATOR
    step = max(1, block // max(1, num_columns))
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        block_mask = mask if mask is None or len(mask) == 1 else mask[rows]
        out = None if grad is None else grad[rows]
        sums = _one_block(
            logits[rows], columns[rows], pos_weight, neg_weight, row_weight[rows], block_mask, out
        )
        loss += sums[0]
        pos += sums[1]
        neg += sums[2]
    return loss.to(logits.dtype), pos, neg


def _one_block(logits, columns, pos_weight, neg_weight, row_weight, mask, grad):
    has_own = columns >= 0
    own = columns.clamp(min=0)[:, None]
    own_weight = row_weight * pos_weight[own[:, 0]] * has_own
    if mask is not None:
        own_weight = own_weight * mask.expand(len(logits), -1).gather(1, own)[:, 0]
    own_logit = logits.gather(1, own)[:, 0]

    # Every entry as a negative, then the row's own column taken out: set to zero, because
    # subtracting softplus(z) loses all digits of the rest at z = 1e4.
    nll = _softplus(logits)
    prob = torch.sigmoid(logits) if grad is None else torch.sigmoid(logits, out=grad)
    if mask is not None:
        nll *= mask
        prob *= mask
    for entries in (nll, prob):
        kept = entries.gather(1, own).masked_fill_(has_own[:, None], 0)
        entries.scatter_(1, own, kept)

    row_nll = nll @ neg_weight
    # softplus(-z) has the derivative -sigmoid(-z), exact where sigmoid(z) - 1 is not.
    own_nll, own_prob = _softplus(-own_logit), torch.sigmoid(-own_logit)
    own_grad = own_weight * own_prob
    loss = (torch.dot(row_nll, row_weight) + torch.dot(own_nll, own_weight)).double()
    pos = torch.zeros_like(neg_weight, dtype=torch.float64)
    pos.index_add_(0, own[:, 0], own_grad.double())
    neg = ((row_weight @ prob) * neg_weight).double()

    if grad is not None:  # prob is grad
        grad.mul_(neg_weight).mul_(row_weight[:, None])
        grad.scatter_add_(1, own, -own_grad[:, None])
    return loss, pos, neg


def _softplus(x: Tensor) -> Tensor:
    # torch's default threshold of 20 is off by 2e-9 there; at 40 nothing is left in float64.
    return F.softplus(x, threshold=40)


def one_vs_all_columns(targets: Tensor, num_columns: int) -> Tensor:
    """Targets as columns: -1 for ignored rows and for a background without a column."""
    return targets.masked_fill(targets >= num_columns, IGNORED)


def pad_mask(mask: Tensor | None, num_logits: int) -> Tensor | None:
    """(., C) class mask -> (., L) column mask; extra columns always take part."""
    if mask is None:
        return None
    return F.pad(mask, (0, num_logits - mask.shape[1]), value=True)


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
        )
        return {"loss_cls": sums.loss / x.normalizer}

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """(M, C) sigmoid; with background a last column of zeros."""
        scores = torch.sigmoid(widen(logits))
        return append_zero_background(scores) if self.has_background else scores
