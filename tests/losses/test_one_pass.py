"""The driver that runs a loss over blocks of rows."""

import pytest
import torch

from lt_det.losses import build_loss, one_pass
from tests.losses.loss_cases import needs_new_compiler

LOSSES = [
    ("SigmoidBCE", {}),
    ("SigmoidEQL", {}),
    ("EQLv2", {}),
    ("EQL", {"num_images": 40}),
    ("FocalLoss", {}),
    ("FocalLoss", {"form": "softmax"}),
    ("EFL", {}),
    ("EQFL", {"dynamic_normalizer": True}),
    ("SoftmaxEQL", {}),
    ("SoftmaxEQL", {"adjust_background": False}),
    ("Seesaw", {}),
]
each_loss = pytest.mark.parametrize("name, params", LOSSES, ids=str)


def build(name, params):
    counts = [1, 50, 0, 7, 3, 200]
    return build_loss(name, num_classes=6, has_background=True, class_counts=counts, **params)


def rows(num_logits, seed, count=53):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, num_logits, generator=generator, dtype=torch.float64) * 2
    targets = torch.randint(-1, 7, (count,), generator=generator)
    mask = torch.rand(count, 6, generator=generator) > 0.2
    return logits.requires_grad_(), targets, mask


def run(name, params):
    """Values, gradients and state of three steps."""
    loss, found = build(name, params), []
    for seed in range(3):
        logits, targets, mask = rows(loss.num_logits, seed)
        value = sum(loss(logits, targets, class_mask=mask).values())
        value.backward()
        found += [value.detach(), logits.grad]
    return found + list(loss.state_dict().values())


@each_loss
def test_small_blocks_give_what_one_block_gives(name, params, monkeypatch):
    whole = run(name, params)
    monkeypatch.setattr(one_pass, "_BLOCK_CPU", 40)  # five or six rows, and a rest
    for ours, expected in zip(run(name, params), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_blocks_cover_every_row_once(monkeypatch):
    monkeypatch.setattr(one_pass, "_BLOCK_CPU", 40)
    for shape in ((0, 6), (1, 6), (12, 6), (13, 6), (3, 100)):
        blocks = one_pass.row_blocks(torch.empty(shape))
        covered = [row for rows in blocks for row in range(rows.start, rows.stop)]
        assert covered == list(range(shape[0]))


@each_loss
def test_the_gradient_is_the_only_tensor_of_the_size_of_the_logits(name, params, monkeypatch):
    """Nothing else of M rows and more than one column is made, forward or backward."""
    monkeypatch.setattr(one_pass, "_BLOCK_CPU", 40)
    loss = build(name, params)
    logits, targets, _ = rows(loss.num_logits, 0)

    made = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() >= logits.nbytes:
                    made.add(x.untyped_storage().data_ptr())
            return out

    with Watch():
        sum(loss(logits, targets).values()).backward()
    assert made - {logits.data_ptr()} == {logits.grad.data_ptr()}


@needs_new_compiler
@each_loss
def test_it_compiles_into_one_graph(name, params):
    """In evaluation mode, where no state is updated."""
    loss = build(name, params).eval()
    logits, targets, _ = rows(loss.num_logits, 0)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    grads = []
    for function in (loss, compiled):
        value = sum(function(logits, targets).values())
        grads += [value.detach(), *torch.autograd.grad(value, logits)]
    torch.testing.assert_close(grads[:2], grads[2:])
