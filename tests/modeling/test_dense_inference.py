"""Selection of candidates and non-maximum suppression, against a naive reference."""

import pytest
import torch
import torchvision
from detectron2.modeling.box_regression import Box2BoxTransform
from torchvision.ops import nms

from lt_det.modeling import dense_inference
from lt_det.modeling.dense_inference import Candidates, detect, largest, level_candidates


@pytest.mark.parametrize("k", [1, 7, 64, 1000])
@pytest.mark.parametrize("block", [16, 50, 10**6])
def test_largest_is_a_sort_cut_off(monkeypatch, k, block):
    monkeypatch.setattr(dense_inference, "_BLOCK_CPU", block)
    generator = torch.Generator().manual_seed(k)
    x = torch.randperm(500, generator=generator).float()  # no two alike
    values, indices = largest(x, k)
    expected = x.sort(descending=True)
    assert torch.equal(values, expected.values[:k])
    assert torch.equal(indices, expected.indices[:k])


def test_largest_of_ascending_and_of_equal_values(monkeypatch):
    monkeypatch.setattr(dense_inference, "_BLOCK_CPU", 10)
    values, indices = largest(torch.arange(95.0), 12)
    assert values.tolist() == list(range(94, 82, -1)) == indices.tolist()
    values, indices = largest(torch.zeros(95), 12)
    assert (values == 0).all() and len(set(indices.tolist())) == 12
    nothing = torch.tensor([float("nan"), -float("inf"), 2.0])
    assert largest(nothing, 3)[1].tolist() == [2]
    assert len(largest(torch.empty(0), 3)[0]) == 0


A, C, H, W = 2, 5, 3, 4


def level(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(A * C, H, W, generator=generator, dtype=dtype) * 2
    deltas = torch.randn(A * 4, H, W, generator=generator) * 0.3
    corner = torch.rand(H * W * A, 2, generator=generator) * 60
    anchors = torch.cat(
        [corner, corner + 8 + torch.rand(H * W * A, 2, generator=generator) * 30], 1
    )
    quality = torch.randn(A, H, W, generator=generator)
    return logits, deltas, anchors, quality


def naive(logits, deltas, anchors, quality=None):
    """(score, class, anchor, deltas) of every pair, best first, one after the other."""
    found = []
    for y in range(H):
        for x in range(W):
            for a in range(A):
                for c in range(C):
                    score = logits[a * C + c, y, x].float().sigmoid()
                    if quality is not None:
                        score = score * quality[a, y, x].sigmoid()
                    anchor = anchors[(y * W + x) * A + a]
                    found.append((score.item(), c, anchor, deltas[4 * a : 4 * a + 4, y, x]))
    return sorted(found, key=lambda entry: -entry[0])


@pytest.mark.parametrize("with_quality", [False, True])
@pytest.mark.parametrize("topk, threshold", [(9, 0.0), (1000, 0.3), (9, 0.6), (3, 0.9999)])
def test_candidates_are_those_of_a_loop_over_all_pairs(with_quality, topk, threshold):
    logits, deltas, anchors, quality = level(0)
    quality = quality if with_quality else None
    expected = [e for e in naive(logits, deltas, anchors, quality)[:topk] if e[0] > threshold]
    found = level_candidates(
        logits, deltas, anchors, quality, num_classes=C, topk=topk, threshold=threshold
    )
    assert found.scores.tolist() == pytest.approx([e[0] for e in expected])
    assert found.classes.tolist() == [e[1] for e in expected]
    for k, (_, _, anchor, own) in enumerate(expected):
        assert torch.equal(found.anchors[k], anchor) and torch.equal(found.deltas[k], own)
    assert (topk, threshold) != (3, 0.9999) or len(expected) == 0


def test_quality_writes_the_scores_over_the_logits_and_nothing_else_does():
    logits, deltas, anchors, quality = level(1)
    before = logits.clone()
    options = dict(num_classes=C, topk=5, threshold=0.0)
    level_candidates(logits, deltas, anchors, **options)
    assert torch.equal(logits, before)
    level_candidates(logits, deltas, anchors, quality, **options)
    expected = before.sigmoid() * quality.sigmoid().repeat_interleave(C, dim=0)
    torch.testing.assert_close(logits, expected)


def test_logits_in_channels_last_memory_give_the_same():
    logits, deltas, anchors, quality = level(2)
    options = dict(num_classes=C, topk=20, threshold=0.0)
    for q in (None, quality):
        strided = [
            None if x is None else x.clone()[None].to(memory_format=torch.channels_last)[0]
            for x in (logits, deltas)
        ]
        ours = level_candidates(*strided, anchors, q, **options)
        expected = level_candidates(logits.clone(), deltas, anchors, q, **options)
        assert torch.equal(ours.scores, expected.scores)
        assert torch.equal(ours.deltas, expected.deltas)


@pytest.mark.parametrize("max_candidates", [0, 40])
def test_suppression_is_that_of_a_loop_over_classes(max_candidates):
    transform = Box2BoxTransform(weights=(1, 1, 1, 1))
    levels, pairs = [], []
    for seed in (3, 4):
        logits, deltas, anchors, _ = level(seed)
        levels.append(
            level_candidates(logits, deltas, anchors, num_classes=C, topk=60, threshold=0.0)
        )
        pairs += naive(logits, deltas, anchors)[:60]
    pairs = sorted(pairs, key=lambda e: -e[0])[: max_candidates or None]
    boxes = [transform.apply_deltas(e[3][None], e[2][None])[0] for e in pairs]
    kept = []
    for c in range(C):
        own = [k for k, e in enumerate(pairs) if e[1] == c]
        scores = torch.tensor([pairs[k][0] for k in own])
        kept += [own[i] for i in nms(torch.stack([boxes[k] for k in own]), scores, 0.3).tolist()]
    kept = sorted(kept, key=lambda k: -pairs[k][0])[:20]
    found = detect(
        levels,
        transform,
        (90, 90),
        max_candidates=max_candidates,
        nms_threshold=0.3,
        max_detections=20,
    )
    assert 10 < len(found) == len(kept) < len(pairs)
    assert found.pred_classes.tolist() == [pairs[k][1] for k in kept]
    torch.testing.assert_close(found.scores, torch.tensor([pairs[k][0] for k in kept]))
    torch.testing.assert_close(found.pred_boxes.tensor, torch.stack([boxes[k] for k in kept]))


def far_boxes(count=400, classes=1203):
    """Candidates of many classes around four places, some of them far beyond the image."""
    generator = torch.Generator().manual_seed(7)
    boxes = torch.tensor([[10.0, 10, 30, 40], [50, 20, 80, 60], [-50000, -9, 50000, 80]])
    anchors = boxes[torch.arange(count) % 3] + torch.rand(count, 4, generator=generator)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    labels = classes - 1 - torch.arange(count) % 25
    return Candidates(scores, labels, anchors, torch.zeros(count, 4))


@pytest.mark.parametrize("device_limit", ["classes one by one", "classes moved apart"])
def test_huge_boxes_and_many_classes_do_not_blur_the_suppression(device_limit, monkeypatch):
    """In float32 a box of class 1200 would be placed to 4 or 8 pixels."""
    many = far_boxes()
    if device_limit == "classes moved apart":  # what torchvision does with more boxes on CUDA
        monkeypatch.setattr(
            dense_inference,
            "batched_nms",
            torchvision.ops.boxes._batched_nms_coordinate_trick,
        )
    options = {"max_candidates": 0, "nms_threshold": 0.5, "max_detections": 1000}
    found = detect([many], Box2BoxTransform(weights=(1, 1, 1, 1)), (90, 90), **options)
    kept = []
    for c in many.classes.unique():
        own = (many.classes == c).nonzero()[:, 0]
        kept += own[nms(many.anchors[own], many.scores[own], 0.5)].tolist()
    assert 75 <= len(kept) < 200
    torch.testing.assert_close(found.scores, many.scores[sorted(kept)])


def test_clipped_boxes_are_suppressed_as_they_are_seen():
    """Two boxes that differ only beyond the image are one there; one outside of it is none."""
    anchors = torch.tensor([[10.0, 10, 200, 50], [10, 10, 60, 50], [100, 10, 160, 50]])
    some = Candidates(
        torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64), anchors, torch.zeros(3, 4)
    )
    options = {"max_candidates": 0, "nms_threshold": 0.5, "max_detections": 10}
    transform = Box2BoxTransform(weights=(1, 1, 1, 1))
    clipped = detect([some], transform, (64, 64), clip=True, **options)
    assert clipped.pred_boxes.tensor.tolist() == [[10, 10, 64, 50]]
    assert len(detect([some], transform, (64, 64), **options)) == 3


def test_half_precision_ranks_as_float32_does():
    """float16 has few values near 1: scores are computed from logits in float32."""
    logits, deltas, anchors, quality = level(5)
    narrow = [(x / 4 + 6).half() for x in (logits, quality)]
    options = {"num_classes": C, "topk": 30, "threshold": 0.0}
    ours = level_candidates(narrow[0].clone(), deltas, anchors, narrow[1], **options)
    wide = level_candidates(narrow[0].float(), deltas, anchors, narrow[1].float(), **options)
    assert ours.scores.dtype == torch.float32 and torch.equal(ours.scores, wide.scores)
    assert torch.equal(ours.classes, wide.classes) and torch.equal(ours.anchors, wide.anchors)


def test_no_candidate_gives_no_detection():
    nothing = Candidates(
        torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, 4), torch.empty(0, 4)
    )
    found = detect(
        [nothing],
        Box2BoxTransform(weights=(1, 1, 1, 1)),
        (9, 9),
        max_candidates=5,
        nms_threshold=0.5,
        max_detections=5,
    )
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
