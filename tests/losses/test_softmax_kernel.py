"""The one-pass softmax kernel against its definition in plain operations."""

import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss, one_pass
from lt_det.losses.count_softmax import CountSoftmaxLoss
from lt_det.losses.softmax_kernel import SoftmaxTerms, shifted_cross_entropy
from tests.losses.loss_cases import needs_new_compiler

ROWS, COLUMNS = 13, 5
PARTS = [
    "column_scale",
    "row_scale",
    "column_bias",
    "direction",
    "noise",
    "own_shift",
    "smoothing",
    "focal_gamma",
    "mask",
]
COMPILED = ["SoftmaxCE", "BalancedSoftmax", "ClassBalancedCE", "KPS", "LDAM", "LabelAwareSmoothing"]


def everything():
    g = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    targets = torch.randint(0, COLUMNS, (ROWS,), generator=g)
    mask = rand(ROWS, COLUMNS) > 0.3
    mask[torch.arange(ROWS), targets] = True
    targets[::4] = -1
    mask[4] = False  # no class takes part in an ignored row
    parts = {
        "column_scale": rand(COLUMNS) + 0.5,
        "row_scale": rand(ROWS) + 0.5,
        "column_bias": rand(COLUMNS) - 0.5,
        "direction": rand(COLUMNS) - 0.5,
        "noise": torch.randn(ROWS, COLUMNS, generator=g, dtype=torch.float64),
        "own_shift": rand(ROWS) - 0.5,
        "smoothing": rand(ROWS),
        "focal_gamma": 1.5,
        "mask": mask,
    }
    logits = torch.randn(ROWS, COLUMNS, generator=g, dtype=torch.float64)
    return parts, rand(COLUMNS), logits, rand(ROWS) * 3, targets


def definition(logits, targets, row_shift, t: SoftmaxTerms):
    z = logits
    if t.column_scale is not None:
        z = z * t.column_scale
    if t.row_scale is not None:
        z = z * t.row_scale[:, None]
    if t.column_bias is not None:
        z = z + t.column_bias
    if t.direction is not None:
        z = z + row_shift[:, None] * t.direction
    if t.noise is not None:
        z = z - t.noise.abs().clamp(max=1) * t.amplitude
    valid = targets >= 0
    one_hot = F.one_hot(targets.clamp(min=0), COLUMNS)
    if t.own_shift is not None:
        z = z + t.own_shift[:, None] * one_hot
    mask = torch.ones_like(z, dtype=torch.bool) if t.mask is None else t.mask
    # Rows that do not count are left out before anything could be NaN.
    z, one_hot, mask = z[valid], one_hot[valid], mask[valid]
    log_p = torch.log_softmax(z.masked_fill(~mask, float("-inf")), dim=1).masked_fill(~mask, 0)
    own = -(log_p * one_hot).sum(1)
    loss = own
    if t.smoothing is not None:
        u = t.smoothing[valid]
        loss = (1 - u) * own + u * -log_p.sum(1) / mask.sum(1)
    factor = (1 - torch.exp(-own)).detach() ** t.focal_gamma
    return torch.zeros(ROWS, dtype=z.dtype).masked_scatter(valid, factor * loss)


@pytest.mark.parametrize("rows_per_block", [1, 4, ROWS])
@pytest.mark.parametrize(
    "parts", [[], *([p] for p in PARTS), ["smoothing", "mask"], PARTS], ids=str
)
def test_value_and_gradients_follow_the_definition(parts, rows_per_block, monkeypatch):
    monkeypatch.setattr(one_pass, "_BLOCK_CPU", rows_per_block * COLUMNS)
    all_parts, amplitude, logits, row_shift, targets = everything()
    terms = SoftmaxTerms(amplitude=amplitude, **{name: all_parts[name] for name in parts})
    shift = row_shift if "direction" in parts else None
    upstream = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    results = []
    for function in (
        lambda z, t: shifted_cross_entropy(z, targets, terms, t),
        lambda z, t: definition(z, targets, t, terms),
    ):
        leaves = [logits.clone().requires_grad_()]
        if shift is not None:
            leaves.append(shift.clone().requires_grad_())
        rows = function(leaves[0], leaves[1] if shift is not None else None)
        results.append((rows.detach(), *torch.autograd.grad(rows, leaves, upstream)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-13)


def test_the_input_is_left_alone():
    all_parts, amplitude, logits, row_shift, targets = everything()
    before = logits.clone(), all_parts["noise"].clone()
    for name in PARTS:
        terms = SoftmaxTerms(amplitude=amplitude, **{name: all_parts[name]})
        shift = row_shift if name == "direction" else None
        shifted_cross_entropy(logits.requires_grad_(), targets, terms, shift).sum().backward()
    assert torch.equal(logits, before[0]) and torch.equal(all_parts["noise"], before[1])


def test_the_only_tensor_of_the_size_of_the_logits_is_the_gradient(monkeypatch):
    """Blocks of one row: whatever else is made has a row's size."""
    monkeypatch.setattr(one_pass, "_BLOCK_CPU", 1)
    logits = torch.randn(50, 40, requires_grad=True)
    targets = torch.zeros(50, dtype=torch.int64)
    terms = SoftmaxTerms(column_scale=torch.ones(40), row_scale=torch.ones(50))
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() == logits.numel():
                sizes.append(out.untyped_storage().data_ptr())
            return out

    with Watch():
        shifted_cross_entropy(logits, targets, terms).sum().backward()
    assert len(set(sizes) - {logits.untyped_storage().data_ptr()}) == 1


@needs_new_compiler
@pytest.mark.parametrize("name", COMPILED)
def test_it_compiles_into_one_graph(name):
    loss = build_loss(name, num_classes=5, class_counts=[50, 4, 30, 2, 1])
    targets = torch.tensor([0, 1, 2, 3, 4, -1])
    values = []
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for function in (loss, compiled):
        logits = torch.linspace(-1, 1, 30).view(6, 5).requires_grad_()
        value = function(logits, targets)["loss_cls"]
        value.backward()
        values.append((value.detach(), logits.grad))
    for ours, expected in zip(*values, strict=True):
        torch.testing.assert_close(ours, expected)


def test_every_loss_of_the_family_says_what_it_scales_by():
    for cls in CountSoftmaxLoss.__subclasses__():
        loss = build_loss(cls.__name__, num_classes=3, class_counts=[5, 3, 1])
        assert (loss.scale != 1) == (loss.classifier == "cosine")
