"""The adapters from head outputs to rows; the dense golden case is in test_equalized_focal.py."""

import pytest
import torch

from lt_det.losses import build_loss
from lt_det.losses.layout import (
    dense_levels,
    dense_rows,
    dense_targets,
    image_rows,
    segmentation_map,
    segmentation_rows,
)

SIZES = [(4, 5), (2, 3), (1, 2)]
BATCH, ANCHORS, CLASSES = 2, 3, 4


def dense_position(image, level, h, w, a):
    """Row of one anchor, counted out."""
    anchors = [height * width * ANCHORS for height, width in SIZES]
    within = (h * SIZES[level][1] + w) * ANCHORS + a
    return image * sum(anchors) + sum(anchors[:level]) + within


def test_dense_rows_stand_where_counting_puts_them():
    levels = [torch.randn(BATCH, ANCHORS * CLASSES, h, w) for h, w in SIZES]
    rows = dense_rows(levels, CLASSES)
    assert rows.shape == (BATCH * 84, CLASSES)
    for image, level, h, w, a in [
        (0, 0, 0, 0, 0),
        (1, 0, 3, 4, 2),
        (0, 1, 1, 0, 1),
        (1, 2, 0, 1, 2),
    ]:
        for c in range(CLASSES):
            expected = levels[level][image, a * CLASSES + c, h, w]
            assert rows[dense_position(image, level, h, w, a), c] == expected


def test_dense_targets_follow_the_rows():
    """A label per anchor, made into logits of one class: the same rows."""
    labels = [torch.randint(-1, CLASSES, (BATCH, ANCHORS, h, w)) for h, w in SIZES]
    targets = dense_targets(labels)
    assert targets.dtype == torch.int64
    assert torch.equal(targets, dense_rows(labels, 1)[:, 0])


def test_dense_levels_are_the_inverse():
    levels = [torch.randn(BATCH, ANCHORS * CLASSES, h, w) for h, w in SIZES]
    labels = [torch.randint(0, 9, (BATCH, ANCHORS, h, w)) for h, w in SIZES]
    shapes = [(BATCH, ANCHORS, h, w) for h, w in SIZES]
    for x, back in zip(levels, dense_levels(dense_rows(levels, CLASSES), shapes), strict=True):
        assert torch.equal(x, back)
    for x, back in zip(labels, dense_levels(dense_targets(labels), shapes), strict=True):
        assert torch.equal(x, back)
    with pytest.raises(ValueError, match="5 rows"):
        dense_levels(torch.zeros(5, CLASSES), shapes)


def test_dense_gradient_goes_to_the_channel_of_its_anchor_and_class():
    level = torch.zeros(1, ANCHORS * CLASSES, 1, 1, requires_grad=True)
    loss = build_loss("SigmoidBCE", num_classes=CLASSES, has_background=True)
    targets = torch.tensor([CLASSES, 2, CLASSES])  # anchor 1 shows class 2
    loss(dense_rows([level], CLASSES), targets)["loss_cls"].backward()
    positive = level.grad.flatten() < 0
    assert positive.nonzero().flatten().tolist() == [1 * CLASSES + 2]


def test_channels_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="10 channels.*4 outputs"):
        dense_rows([torch.zeros(1, 10, 2, 2)], 4)
    with pytest.raises(ValueError, match="at least one level"):
        dense_rows([], 4)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_segmentation_rows_are_pixels(batch, channels_last, dtype):
    logits = torch.randn(batch, 6, 4, 3)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 6, (batch, 4, 3)).to(dtype)
    labels[0, 1, 2] = 255
    rows, targets = segmentation_rows(logits, labels)
    assert rows.shape == (batch * 12, 6) and targets.dtype == torch.int64
    assert targets[1 * 3 + 2] == -1 and (targets == -1).sum() == 1
    last = batch - 1
    assert torch.equal(rows[last * 12 + 3 * 3 + 1], logits[last, :, 3, 1])
    assert targets[last * 12 + 3 * 3 + 1] == labels[last, 3, 1]
    assert torch.equal(segmentation_map(rows, 4, 3), logits)
    is_view = rows.data_ptr() == logits.data_ptr()
    assert is_view == (channels_last or batch == 1)


@pytest.mark.parametrize("channels_last", [False, True])
def test_segmentation_loss_is_that_of_torch(channels_last):
    logits = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    logits.requires_grad_()
    labels = torch.randint(0, 5, (2, 7, 6))
    labels[:, 0] = 255
    value = build_loss("SoftmaxEQL", num_classes=5)(*segmentation_rows(logits, labels))["loss_cls"]
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(value, expected)
    (ours,) = torch.autograd.grad(value, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)


def test_a_single_image_is_computed_in_its_own_memory_order():
    """The view of one image has columns of stride H*W; every loss must cope."""
    logits = torch.randn(1, 5, 8, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (1, 8, 4))
    for name in ("SoftmaxEQL", "EFL", "SigmoidEQL", "Seesaw", "FocalLoss"):
        rows, targets = segmentation_rows(logits, labels)
        loss = build_loss(name, num_classes=5)
        value = sum(loss(rows, targets).values())
        copy = rows.detach().contiguous().requires_grad_()
        expected = sum(build_loss(name, num_classes=5)(copy, targets).values())
        torch.testing.assert_close(value, expected)
        (ours,) = torch.autograd.grad(value, logits)
        (theirs,) = torch.autograd.grad(expected, copy)
        torch.testing.assert_close(segmentation_rows(ours, labels)[0], theirs)


def test_sizes_that_differ_are_an_error_that_names_them():
    with pytest.raises(ValueError, match=r"\(1, 5, 8, 4\).*\(1, 8, 4\).*\(1, 16, 8\)"):
        segmentation_rows(torch.zeros(1, 5, 8, 4), torch.zeros(1, 16, 8).long())


def test_image_rows():
    logits = torch.randn(3, 7)
    assert torch.equal(image_rows(logits), logits)
    assert torch.equal(image_rows(logits[:, :, None, None]), logits)
    with pytest.raises(ValueError, match=r"\(3, 7, 2, 2\)"):
        image_rows(torch.zeros(3, 7, 2, 2))
