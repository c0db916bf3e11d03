"""One pass over the logits, in blocks of rows: loss, gradient and per-class sums together.

A loss written with elementwise operations keeps several tensors of the size of the logits, and
needs a second pass for gradient statistics. Here a *block function* sees a few rows at a time
and writes their gradient into its final place, so that the gradient is the only new tensor of
the size of the logits and everything else stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of one block. On a CPU 1.5 MiB of float32 stay in the cache with the temporaries beside
# them: the time is flat from 2**18 to 2**19 elements on two cores and rises beyond, and extra
# memory grows with the block. On an accelerator launches cost more than memory traffic inside a
# block, so blocks are as large as memory allows without doubling the logits.
_BLOCK_CPU = 3 * 2**17
_BLOCK_ACCELERATOR = 2**25


class Sums(NamedTuple):
    """Result of :func:`one_pass`.

    Attributes:
        pos: (L,) float64, sum of |dL/dz_ij| over rows positive for column j; no gradient.
        neg: (L,) float64, the same over rows negative for column j.
        losses: one scalar for each group of columns; they carry the graph.
    """

    pos: Tensor
    neg: Tensor
    losses: tuple[Tensor, ...]

    @property
    def loss(self) -> Tensor:
        """The only loss, or the sum of the groups'."""
        return self.losses[0] if len(self.losses) == 1 else sum(self.losses)


Block = Callable[[Tensor, slice, Tensor | None], tuple[Sequence[Tensor], Tensor, Tensor]]
"""``block(logits, rows, grad) -> (losses, pos, neg)`` of the rows in the slice `rows`.

`logits` (n, L) are those rows; `grad` (n, L) is to be filled with d loss / d logits unless it is
None. It is called without gradients.
"""


def one_pass(logits: Tensor, block: Block, *, group_ends: Sequence[int] = ()) -> Sums:
    """Apply a block function to all rows.

    Args:
        logits: (M, L) float32 or float64.
        block: see :data:`Block`. What it closes over is treated as constant.
        group_ends: ends of the groups of columns when the loss has several terms, each on
            columns of its own; () = one term on all columns.
    """
    pos, neg, *losses = _OnePass.apply(logits, block, tuple(group_ends) or (logits.shape[1],))
    return Sums(pos, neg, tuple(losses))


def row_blocks(logits: Tensor) -> list[slice]:
    """Slices that cover the rows of (M, L) `logits`."""
    num_rows, num_columns = logits.shape
    size = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK_ACCELERATOR
    step = max(1, size // max(1, num_columns))
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, block, group_ends):
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        losses, pos, neg = _over_blocks(logits, block, len(group_ends), grad)
        ctx.save_for_backward(logits)
        ctx.block, ctx.group_ends, ctx.grad = block, group_ends, grad
        ctx.mark_non_differentiable(pos, neg)
        return pos, neg, *losses.to(logits.dtype).unbind()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, _grad_pos, _grad_neg, *grad_losses):
        grad, ctx.grad = ctx.grad, None
        if grad is None:  # a second backward through a retained graph
            (logits,) = ctx.saved_tensors
            grad = torch.empty_like(logits)
            _over_blocks(logits, ctx.block, len(ctx.group_ends), grad)
        # In place: the buffer is ours and is handed out once.
        start = 0
        for end, grad_loss in zip(ctx.group_ends, grad_losses, strict=True):
            if not _is_one(grad_loss):
                grad[:, start:end].mul_(grad_loss)
            start = end
        return grad, None, None


def _is_one(factor: Tensor) -> bool:
    """Whether multiplying by `factor` can be left out; False where looking would cost time."""
    if factor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return factor.item() == 1


def _over_blocks(logits, block, num_losses, grad):
    """(K,) losses, (L,) positive and negative sums; fills `grad` (M, L) unless it is None."""
    losses = logits.new_zeros(num_losses, dtype=torch.float64)
    pos = logits.new_zeros(logits.shape[1], dtype=torch.float64)
    neg = torch.zeros_like(pos)
    for rows in row_blocks(logits):
        block_losses, block_pos, block_neg = block(
            logits[rows], rows, None if grad is None else grad[rows]
        )
        losses += torch.stack(list(block_losses))
        pos += block_pos
        neg += block_neg
    return losses, pos, neg


def rows_of(mask: Tensor | None, rows: slice) -> Tensor | None:
    """The rows of an (M, .) mask; a (1, .) mask holds for all rows; None stays None."""
    return mask if mask is None or len(mask) == 1 else mask[rows]


def set_column(entries: Tensor, own: Tensor, chosen: Tensor, value: float = 0.0) -> None:
    """Set the entry of column ``own`` (n, 1) to `value` in the rows with ``chosen`` (n,)."""
    kept = entries.gather(1, own).masked_fill_(chosen[:, None], value)
    entries.scatter_(1, own, kept)


# What a masked logit is set to: its exp is exactly 0, its product with a label mass of 0 too.
MASKED = -1e30


def mask_classes_(
    logits: Tensor, mask: Tensor, own: Tensor | None = None, row_weight: Tensor | None = None
) -> Tensor | None:
    """Take masked classes out of the softmax of a block, in place.

    Args:
        logits: (n, L), overwritten with a large negative number at masked classes.
        mask: (n, C) or (1, C) bool, C <= L; columns beyond C are never masked.
        own: (n,) int64 in 0..L-1.
        row_weight: (n,).

    Returns:
        `row_weight`, 0 in the rows whose own class is masked.
    """
    num_classes = mask.shape[1]
    logits[:, :num_classes].masked_fill_(~mask, MASKED)
    if own is None:
        return row_weight
    mine = mask.expand(len(logits), -1).gather(1, own.clamp(max=num_classes - 1)[:, None])[:, 0]
    return row_weight * (mine | (own >= num_classes))


def cross_entropy_block_(
    logits: Tensor,
    own: Tensor,
    row_weight: Tensor,
    transform: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted softmax cross-entropy of a block; `logits` become its gradient.

    Args:
        logits: (n, L), overwritten with ``a_i h'(l_i) (softmax(z_i)_j - [j == own_i])``.
        own: (n,) int64 in 0..L-1, whatever it is in rows of weight 0.
        row_weight: (n,) a, at least 0.
        transform: l -> h(l), h'(l), with h' at least 0; None = the identity.

    Returns:
        The float64 sum of ``a_i h(l_i)``, ``l_i = -log softmax(z_i)[own_i]``, and the (L,)
        float64 sums of the absolute gradient over positives and over negatives.
    """
    own = own[:, None]
    logits -= logits.amax(dim=1, keepdim=True)
    own_logit = logits.gather(1, own)[:, 0]
    total = logits.exp_().sum(dim=1)
    row_loss = total.log() - own_logit
    slope = row_weight
    if transform is not None:
        row_loss, derivative = transform(row_loss)
        slope = row_weight * derivative
    # where, not a product: an ignored row may hold anything.
    row_loss = torch.where(row_weight > 0, row_loss, 0)
    loss = torch.dot(row_loss, row_weight).double()
    logits.mul_((slope / total)[:, None])
    # 1 - p of the own column as the sum of the others: no cancellation.
    logits.scatter_(1, own, 0.0)
    rest = logits.sum(dim=1)
    neg = logits.sum(dim=0).double()
    logits.scatter_(1, own, -rest[:, None])
    pos = torch.zeros_like(neg).index_add_(0, own[:, 0], rest.double())
    return loss, pos, neg
