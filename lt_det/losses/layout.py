"""From the outputs of a head to the rows that a loss takes, and back.

A loss sees (M, L) logits and (M,) targets. These functions bring dense heads, segmentation heads
and image classifiers into that form; RoI heads have it already. All keep the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lt_det.losses.base import IGNORED


def dense_rows(levels: Sequence[Tensor], num_columns: int) -> Tensor:
    """Outputs of a dense head on all levels as rows.

    Channel ``a * L + c`` of a level is column c of anchor a: the order of Detectron2's
    RetinaNet head, and of a convolution reshaped to (B, A, L, H, W).

    Args:
        levels: one (B, A*L, H_l, W_l) for each level.
        num_columns: L, ``loss.num_logits``.

    Returns:
        (B*K, L), images outermost, K = sum_l H_l W_l A ordered level, h, w, anchor. A copy: the
        levels are separate tensors.

    Raises:
        ValueError: no level, or a number of channels that L does not divide.
    """
    if not levels:
        raise ValueError("dense_rows needs at least one level")
    rows = []
    for x in levels:
        batch, channels, height, width = x.shape
        if channels % num_columns:
            raise ValueError(
                f"a level has {channels} channels, which is not a multiple of the {num_columns} "
                "outputs per anchor; see MODEL.RETINANET.NUM_CLASSES and MODEL.LT.LOSS.NAME"
            )
        anchors = channels // num_columns
        x = x.view(batch, anchors, num_columns, height, width).permute(0, 3, 4, 1, 2)
        rows.append(x.reshape(batch, -1, num_columns))
    return torch.cat(rows, dim=1).flatten(0, 1)


def dense_levels(rows: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The inverse of :func:`dense_rows` for scores, gradients or targets.

    Args:
        rows: (B*K, L) or (B*K,), ordered as there.
        shapes: (B, A, H_l, W_l) of each level.

    Returns:
        For each level (B, A*L, H_l, W_l), channel a*L + c; or (B, A, H_l, W_l) for (B*K,) rows.

    Raises:
        ValueError: the shapes do not add up to the number of rows.
    """
    batch = shapes[0][0]
    sizes = [a * h * w for _, a, h, w in shapes]
    if batch * sum(sizes) != len(rows):
        raise ValueError(
            f"{len(rows)} rows do not make levels of shapes {list(map(tuple, shapes))}"
        )
    parts = rows.view(batch, sum(sizes), -1).split(sizes, dim=1)
    return [
        part.view(batch, h, w, a, -1).permute(0, 3, 4, 1, 2).reshape(batch, -1, h, w)
        for part, (_, a, h, w) in zip(parts, shapes, strict=True)
    ]


def dense_targets(levels: Sequence[Tensor]) -> Tensor:
    """Labels given as one (B, A, H_l, W_l) for each level -> (B*K,), ordered as the rows.

    Labels that are (B, K) already are flattened with ``labels.flatten()``.
    """
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in levels], dim=1).flatten()


def segmentation_rows(
    logits: Tensor, labels: Tensor, ignore_label: int = 255
) -> tuple[Tensor, Tensor]:
    """Outputs and labels of a segmentation head as rows, one for each pixel.

    Args:
        logits: (B, L, H, W).
        labels: (B, H, W) of any integer dtype, 0..C-1.
        ignore_label: label of pixels without one.

    Returns:
        (B*H*W, L) and (B*H*W,) int64 with -1 at ignored pixels, ordered image, h, w. The first
        is a view where the memory allows it: logits in channels-last format, or a single image
        (rows then have stride 1 and columns stride H*W). For several images in the standard
        format it is a copy.

    Raises:
        ValueError: logits and labels of different sizes.
    """
    batch, _, height, width = logits.shape
    if labels.shape != (batch, height, width):
        raise ValueError(
            f"logits are {tuple(logits.shape)}, so labels should be {(batch, height, width)}, "
            f"got {tuple(labels.shape)}: upsample the logits or resize the labels first"
        )
    rows = logits.permute(0, 2, 3, 1).reshape(batch * height * width, -1)
    targets = labels.reshape(-1).long()
    return rows, targets.masked_fill(targets == ignore_label, IGNORED)


def segmentation_map(rows: Tensor, height: int, width: int) -> Tensor:
    """(B*H*W, L) rows -> (B, L, H, W), a view in channels-last format."""
    return rows.view(-1, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def image_rows(logits: Tensor) -> Tensor:
    """Outputs of an image classifier, (N, L) or (N, L, 1, 1), as (N, L); a view.

    Raises:
        ValueError: another shape.
    """
    if logits.dim() < 2 or logits.shape[2:].numel() != 1:
        raise ValueError(
            f"an image classifier gives (N, L) or (N, L, 1, 1), got {tuple(logits.shape)}"
        )
    return logits.flatten(1)
