"""The one-pass kernel of the softmax losses that scale, shift or perturb their logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lt_det.losses.base import IGNORED
from lt_det.losses.one_pass import row_blocks, rows_of

# A probability below e^-70 = 4e-31 counts as that in the gradient, where the row's other entries
# are of order 1: vectorised exp is fifteen times slower where its result is subnormal, and scaled
# losses reach that everywhere.
_LOWEST_LOG_P = {torch.float32: -70.0, torch.float64: -600.0}


@dataclass
class SoftmaxTerms:
    """What :func:`shifted_cross_entropy` does to the logits and to the loss of a row.

    Everything is of the logits' dtype and device; None leaves a part out.

    Attributes:
        column_scale: (L,) or a number, s.
        row_scale: (M,) r.
        column_bias: (L,) b.
        direction: (L,) d, what ``row_shift`` multiplies.
        noise: (M, L) e.
        amplitude: (L,) a, factor of the noise.
        own_shift: (M,) o, added at the target.
        smoothing: (M,) label smoothing u.
        focal_gamma: exponent g of the focal factor.
        mask: (M, L) or (1, L) bool, False = not in the denominator.
        curve: maps logits and angles, both (n, L), to (f, df/dx). With it ``z_ij = s_j f(x_ij,
            min(|e_ij|, 1) a_j + o_i [j == y_i])``, and r, b, t are not looked at.
    """

    column_scale: Tensor | float | None = None
    row_scale: Tensor | None = None
    column_bias: Tensor | None = None
    direction: Tensor | None = None
    noise: Tensor | None = None
    amplitude: Tensor | None = None
    own_shift: Tensor | None = None
    smoothing: Tensor | None = None
    focal_gamma: float = 0.0
    mask: Tensor | None = None
    curve: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def block(self, rows: slice) -> SoftmaxTerms:
        """The same for some of the rows."""
        ours = {name: _of_rows(getattr(self, name), rows) for name in _PER_ROW}
        return dataclasses.replace(self, mask=rows_of(self.mask, rows), **ours)


_PER_ROW = ("row_scale", "noise", "own_shift", "smoothing")


def shifted_cross_entropy(
    logits: Tensor, targets: Tensor, terms: SoftmaxTerms, row_shift: Tensor | None = None
) -> Tensor:
    """Softmax cross-entropy of ``z``, a function of the logits ``x``, of each row.

    ``z_ij = r_i s_j x_ij + b_j + t_i d_j - min(|e_ij|, 1) a_j + o_i [j == y_i]``

    ``L_i = (1 - p_i)^g ((1 - u_i) (-log p_iy) + u_i mean_j(-log p_ij))`` with
    ``p_i = softmax(z_i)``, the focal factor ``(1 - p_iy)^g`` being a constant to the gradient
    and the mean running over the classes in the denominator.

    Value and gradient come from one pass over blocks of rows; the only (M, L) tensor made is
    the gradient. Differentiable (once) in the logits and in `row_shift`.

    Args:
        logits: (M, L) x, float32 or float64.
        targets: (M,) int64 column y, -1 = ignored. A target that the mask hides must be -1.
        terms: s, r, b, d, e, a, o, u, g.
        row_shift: (M,) t or None.

    Returns:
        (M,), 0 on ignored rows.
    """
    return _ShiftedCrossEntropy.apply(logits, row_shift, targets, terms)


class _ShiftedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, row_shift, targets, terms):
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad = torch.empty_like(logits) if wanted else None
        ctx.save_for_backward(logits, row_shift)
        ctx.targets, ctx.terms = targets, terms
        rows, shift_grad = _one_pass(logits, row_shift, targets, terms, grad)
        ctx.grads = None if grad is None else (grad, shift_grad)
        return rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_rows):
        grads, ctx.grads = ctx.grads, None
        if grads is None:  # a second backward through a retained graph
            logits, row_shift = ctx.saved_tensors
            grad = torch.empty_like(logits)
            grads = (grad, _one_pass(logits, row_shift, ctx.targets, ctx.terms, grad)[1])
        grad, shift_grad = grads
        shift_grad = None if shift_grad is None else shift_grad * grad_rows
        # In place: the buffer is ours and is handed out once.
        return grad.mul_(grad_rows[:, None]), shift_grad, None, None


def _one_pass(logits, row_shift, targets, terms, grad):
    """Row losses and the gradient of `row_shift`; fills `grad` (M, L) unless it is None."""
    losses = logits.new_empty(len(logits))
    wanted = row_shift is not None and grad is not None
    shift_grad = torch.empty_like(losses) if wanted else None
    for rows in row_blocks(logits):
        part = terms.block(rows)
        valid = targets[rows] != IGNORED
        own = targets[rows].clamp(min=0)[:, None]
        if part.curve is None:
            z, slope = _perturbed(logits[rows], _of_rows(row_shift, rows), own, part), None
        else:
            z, slope = _curved(logits[rows], own, part)
        if part.mask is not None:
            z = z.masked_fill(~part.mask, float("-inf"))
        log_p = torch.log_softmax(z, dim=1)
        factor, losses[rows] = _row_losses(log_p, own, valid, part)
        if grad is None:
            continue
        out = _gradient(log_p, own, factor, part, out=grad[rows])
        if wanted:
            shift_grad[rows] = out @ part.direction
        if part.column_scale is not None:
            out.mul_(part.column_scale)
        if part.row_scale is not None:
            out.mul_(part.row_scale[:, None])
        if slope is not None:
            out.mul_(slope)
    return losses, shift_grad


def _perturbed(logits, row_shift, own, terms):
    """The perturbed logits z before the mask; `own` are the targets as an index (n, 1)."""
    z = logits
    # Whatever comes first makes the block, the rest works in it.
    if terms.column_scale is not None:
        z = z * terms.column_scale
    if terms.row_scale is not None:
        z = _mul(z, terms.row_scale[:, None], fresh=z is not logits)
    if terms.column_bias is not None:
        z = _add(z, terms.column_bias, fresh=z is not logits)
    if row_shift is not None:
        if z is logits:
            z = z.clone()
        z.addcmul_(row_shift[:, None], terms.direction)
    if terms.noise is not None:
        cloud = _cloud(terms, z.dtype)
        z = torch.sub(z, cloud, out=cloud) if z is logits else z.sub_(cloud)
    if terms.own_shift is not None:
        if z is logits:
            z = z.clone()
        z.scatter_add_(1, own, terms.own_shift[:, None])
    return z


def _curved(logits, own, terms):
    """The perturbed logits z before the mask, and its derivative without the column scale."""
    angle = torch.zeros_like(logits) if terms.noise is None else _cloud(terms, logits.dtype)
    if terms.own_shift is not None:
        angle.scatter_add_(1, own, terms.own_shift[:, None])
    z, slope = terms.curve(logits, angle)
    return z if terms.column_scale is None else z * terms.column_scale, slope


def _cloud(terms, dtype):
    """The amplitude of each entry, a new tensor."""
    return terms.noise.to(dtype, copy=True).abs_().clamp_(max=1).mul_(terms.amplitude)


def _row_losses(log_p, own, valid, terms):
    """Factor of the gradient and the loss of each row, both 0 on ignored rows."""
    loss = own_nll = -log_p.gather(1, own)[:, 0]
    if terms.smoothing is not None:
        if terms.mask is None:
            mean = -log_p.mean(dim=1)
        else:
            mean = -log_p.masked_fill(~terms.mask, 0).sum(dim=1) / _num_classes(log_p, terms)
        loss = (1 - terms.smoothing) * own_nll + terms.smoothing * mean
    factor = valid.to(log_p.dtype)
    if terms.focal_gamma:
        factor = factor * (-torch.expm1(-own_nll)).pow(terms.focal_gamma)
        factor = torch.where(valid, factor, 0)
    return factor, torch.where(valid, factor * loss, 0)


def _gradient(log_p, own, factor, terms, *, out):
    """D loss / d z of each row, into `out`."""
    torch.clamp(log_p, min=_LOWEST_LOG_P[log_p.dtype], out=out)
    out.exp_().mul_(factor[:, None])
    if terms.smoothing is None:
        own_grad = factor
    else:
        own_grad = factor * (1 - terms.smoothing)
        out.sub_((factor * terms.smoothing / _num_classes(log_p, terms))[:, None])
    out.scatter_add_(1, own, -own_grad[:, None])
    if terms.mask is not None:
        # Also clears what a row without any class left behind.
        out.masked_fill_(~terms.mask, 0)
    return out


def _num_classes(log_p, terms):
    """How many classes are in the denominator: a number, or (M,)."""
    if terms.mask is None:
        return log_p.shape[1]
    return terms.mask.sum(dim=1).clamp(min=1).to(log_p.dtype)


def _of_rows(x, rows):
    return None if x is None else x[rows]


def _mul(x, y, *, fresh):
    return x.mul_(y) if fresh else x * y


def _add(x, y, *, fresh):
    return x.add_(y) if fresh else x + y
