"""ATSS: assignment against a loop over objects, IoU branch, quality targets."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from fvcore.nn import giou_loss
from torch.nn import functional as F

from lt_det.errors import ConfigError
from lt_det.modeling import atss
from lt_det.modeling.atss import atss_assign
from lt_det.modeling.dense import paired_iou
from tests.modeling.dense_cases import CLASSES, config, detector, image


def iou_by_hand(a, b):
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return overlap / (sum(areas) - overlap)


def assign_by_loop(anchors, level_sizes, boxes, topk):
    """Algorithm 1 of the paper, one object after the other."""
    best = [(0.0, -1)] * len(anchors)
    for g, box in enumerate(boxes):
        candidates, start = [], 0
        for size in level_sizes:
            distances = []
            for k in range(start, start + size):
                dx = (anchors[k][0] + anchors[k][2] - box[0] - box[2]) / 2
                dy = (anchors[k][1] + anchors[k][3] - box[1] - box[3]) / 2
                distances.append((dx * dx + dy * dy, k))
            candidates += [k for _, k in sorted(distances)[:topk]]
            start += size
        overlaps = [iou_by_hand(anchors[k], box) for k in candidates]
        mean = sum(overlaps) / len(overlaps)
        spread = sum((x - mean) ** 2 for x in overlaps) / max(1, len(overlaps) - 1)
        for k, overlap in zip(candidates, overlaps, strict=True):
            x, y = (anchors[k][0] + anchors[k][2]) / 2, (anchors[k][1] + anchors[k][3]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= mean + math.sqrt(spread) and inside and overlap > best[k][0]:
                best[k] = (overlap, g)
    return [g for _, g in best], [overlap for overlap, _ in best]


def random_case(seed, num_objects, level_sizes=(60, 20, 5)):
    """Float64, so that the loop's sums and ours decide alike."""
    generator = torch.Generator().manual_seed(seed)
    levels = []
    for level, size in enumerate(level_sizes):
        middle = torch.rand(size, 2, generator=generator, dtype=torch.float64) * 100
        side = 12 * 2**level * (0.8 + 0.4 * torch.rand(size, 2, generator=generator))
        levels.append(torch.cat([middle - side / 2, middle + side / 2], dim=1))
    corner = torch.rand(num_objects, 2, generator=generator, dtype=torch.float64) * 70
    extent = 5 + 40 * torch.rand(num_objects, 2, generator=generator)
    return torch.cat(levels), list(level_sizes), torch.cat([corner, corner + extent], dim=1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("topk", [1, 4, 9, 40])
def test_assignment_is_that_of_a_loop_over_objects(seed, topk):
    anchors, sizes, boxes = random_case(seed, num_objects=1 + 6 * seed)
    matched, iou = atss_assign(anchors, sizes, boxes, topk)
    expected, overlaps = assign_by_loop(anchors.tolist(), sizes, boxes.tolist(), topk)
    assert matched.tolist() == expected
    assert iou.tolist() == pytest.approx(overlaps)
    assert any(g >= 0 for g in expected) or seed == 0


def test_blocks_of_objects_change_nothing(monkeypatch):
    anchors, sizes, boxes = random_case(3, num_objects=20)
    expected = atss_assign(anchors, sizes, boxes, 9)
    monkeypatch.setattr(atss, "_PAIRS", 100)
    for ours, right in zip(atss_assign(anchors, sizes, boxes, 9), expected, strict=True):
        assert torch.equal(ours, right)


def squares(*entries):
    """(x, y, side) of the centre to boxes."""
    return torch.tensor([[x - s / 2, y - s / 2, x + s / 2, y + s / 2] for x, y, s in entries])


def test_assignment_by_hand():
    """One object of side 10 at (20, 20), two nearest anchors of each of two levels.

    IoUs of the candidates: 1, 50/150 = 1/3 (shifted by half its side); 100/400, 100/400 (both
    contain it): mean 0.458, deviation 0.362: only the first is above 0.82.
    """
    anchors = squares(
        *((20, 20, 10), (25, 20, 10), (40, 20, 10)), *((20, 20, 20), (22, 20, 20), (60, 60, 20))
    )
    matched, iou = atss_assign(anchors, [3, 3], squares((20, 20, 10)), 2)
    assert matched.tolist() == [0, -1, -1, -1, -1, -1]
    assert iou.tolist() == [1, 0, 0, 0, 0, 0]


def test_a_centre_on_the_border_is_outside():
    anchors = squares((15, 20, 10))
    assert atss_assign(anchors, [1], squares((20, 20, 10)), 1)[0].tolist() == [-1]
    assert atss_assign(anchors, [1], squares((19.9, 20, 10)), 1)[0].tolist() == [0]


def test_an_anchor_goes_to_the_object_it_overlaps_most_and_then_to_the_first():
    anchors = squares((20, 20, 10))
    assert atss_assign(anchors, [1], squares((21, 20, 14), (20, 20, 11)), 1)[0].tolist() == [1]
    assert atss_assign(anchors, [1], squares((20, 20, 11), (20, 20, 11)), 1)[0].tolist() == [0]


def test_objects_in_another_order_keep_their_anchors():
    anchors, sizes, boxes = random_case(7, num_objects=12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    matched, iou = atss_assign(anchors, sizes, boxes, 9)
    other, other_iou = atss_assign(anchors, sizes, boxes[order], 9)
    assert torch.equal(iou, other_iou)
    assert torch.equal(torch.where(other >= 0, order[other], -1), matched)


def test_no_object_and_a_degenerate_one_have_no_anchor():
    anchors, sizes, _ = random_case(8, num_objects=1)
    for boxes in (anchors[:0], torch.tensor([[10.0, 10, 10, 40]], dtype=torch.float64)):
        matched, iou = atss_assign(anchors, sizes, boxes, 9)
        assert (matched == -1).all() and (iou == 0).all()


def test_paired_iou():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1], [3, 3, 3, 3], [4, 4, 2, 2]])
    b = torch.tensor([[1.0, 1, 3, 3], [0, 0, 1, 1], [5, 5, 6, 6], [3, 3, 3, 3], [2, 2, 4, 4]])
    assert paired_iou(a, b).tolist() == pytest.approx([1 / 7, 1, 0, 0, 0])


def step(model, batch):
    with EventStorage(0):
        return model(batch)


def outputs_of(model, batch):
    features = model.backbone(model.preprocess_image(batch).tensor)
    features = [features[name] for name in model.head_in_features]
    return model.anchor_generator(features), model.head(features)


def positives_by_hand(model, batch):
    """(image, row, anchor, object, class) of every positive."""
    anchors, outputs = outputs_of(model, batch)
    labels, boxes = model.label_anchors(anchors, [x["instances"] for x in batch])
    everything = torch.cat([level.tensor for level in anchors])
    found = []
    for i, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        for row in ((label >= 0) & (label < CLASSES)).nonzero()[:, 0].tolist():
            found.append((i, row, everything[row], box[row], label[row].item()))
    return found, outputs


def at_row(levels, image, row, columns):
    """The outputs of one anchor, found by counting through levels, cells and anchors."""
    for level in levels:
        channels, height, width = level.shape[1:]
        anchors = channels // columns
        if row < height * width * anchors:
            cell, a = divmod(row, anchors)
            y, x = divmod(cell, width)
            return level[image, a * columns : (a + 1) * columns, y, x]
        row -= height * width * anchors
    raise AssertionError(row)


@pytest.mark.parametrize(("name", "by_iou"), [("EFL", True), ("EQFL", False)])
def test_the_terms_are_sums_over_positives_one_by_one(name, by_iou):
    """IoU branch, GIoU loss and, with EQFL, the quality target; normaliser as said."""
    options = ["MODEL.LT.LOSS.NAME", name, "MODEL.LT.DENSE.IOU_WEIGHT", 0.5]
    options += ["MODEL.LT.DENSE.BOX_WEIGHT", 3.0, "MODEL.LT.DENSE.BOX_WEIGHT_BY_IOU", by_iou]
    model = detector("atss", *options)
    torch.nn.init.normal_(model.head.bbox_pred.weight, std=0.2)
    batch = [image([0, 3, 1]), image([2], seed=1), image([])]
    terms = step(model, batch)
    found, (logits, deltas, iou_logits) = positives_by_hand(model, batch)
    assert len(found) > 10
    iou_loss, box_loss, quality = 0.0, 0.0, {}
    for i, row, anchor, box, _ in found:
        own = at_row(deltas, i, row, 4)
        predicted = model.box2box_transform.apply_deltas(own[None], anchor[None])[0].tolist()
        overlap = iou_by_hand(predicted, box.tolist())
        quality[i, row] = overlap
        hull = [min(predicted[0], box[0]), min(predicted[1], box[1])]
        hull += [max(predicted[2], box[2]), max(predicted[3], box[3])]
        area = float((hull[2] - hull[0]) * (hull[3] - hull[1]))
        areas = [float((x[2] - x[0]) * (x[3] - x[1])) for x in (predicted, box)]
        union = sum(areas) / (1 + overlap)
        box_loss += (1 - overlap + (area - union) / area) * (overlap if by_iou else 1)
        z = at_row(iou_logits, i, row, 1)[0].item()
        iou_loss += -overlap * math.log(1 / (1 + math.exp(-z)))
        iou_loss -= (1 - overlap) * math.log(1 / (1 + math.exp(z)))
    assert terms["loss_iou"].item() == pytest.approx(0.5 * iou_loss / len(found), rel=1e-4)
    divisor = max(1, sum(quality.values())) if by_iou else len(found)
    assert terms["loss_box_reg"].item() == pytest.approx(3.0 * box_loss / divisor, rel=1e-4)

    expected = 0.0  # the first step: plain focal, or quality focal, loss
    labels = {(i, row): label for i, row, _, _, label in found}
    rows = sum(x.shape[1] // CLASSES * x.shape[2] * x.shape[3] for x in logits)
    for i in range(3):
        for row in range(rows):
            p = at_row(logits, i, row, CLASSES).double().sigmoid()
            for c in range(CLASSES):
                q = quality[i, row] if labels.get((i, row)) == c else 0.0
                positive = labels.get((i, row)) == c
                if name == "EQFL":
                    bce = F.binary_cross_entropy(p[c], torch.tensor(q, dtype=torch.float64))
                    expected += ((q - p[c]) ** 2 * bce).item()
                else:
                    right = p[c] if positive else 1 - p[c]
                    alpha = 0.25 if positive else 0.75
                    expected += (-alpha * (1 - right) ** 2 * right.log()).item()
    assert terms["loss_cls"].item() == pytest.approx(expected / len(found), rel=1e-4)


def test_the_weight_by_iou_is_no_way_to_a_lower_box_loss():
    """The gradient is that of fixed weights: not of boxes made worse to count for less."""
    model = detector("atss")
    batch = [image([0, 3]), image([1], seed=1)]
    step(model, batch)["loss_box_reg"].backward()
    found = model.head.bbox_pred.weight.grad
    anchors, outputs = outputs_of(model, batch)
    targets = [x["instances"] for x in batch]
    labels, boxes = (torch.stack(x) for x in model.label_anchors(anchors, targets))
    positives = model._positives(anchors, outputs[1], boxes, labels < CLASSES)
    weights = positives.iou / positives.iou.sum().clamp(min=1)
    expected = (giou_loss(positives.predicted, positives.boxes) * weights).sum()
    assert not positives.iou.requires_grad
    (grad,) = torch.autograd.grad(expected, model.head.bbox_pred.weight)
    torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-7)  # float32 sums


def test_quality_targets_carry_no_gradient():
    """EQFL's class loss moves the box head in no way, nor does the IoU branch's target."""
    model = detector("atss", "MODEL.LT.LOSS.NAME", "EQFL")
    terms = step(model, [image([0, 3]), image([1], seed=1)])
    (terms["loss_cls"] + terms["loss_iou"]).backward()
    assert model.head.bbox_pred.weight.grad is None
    assert model.head.iou_pred.weight.grad.abs().sum() > 0


def test_the_score_is_class_times_iou():
    model = detector("atss").eval()
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.3)
    torch.nn.init.normal_(model.head.iou_pred.weight, std=0.3)
    batch = [image([]), image([], seed=3)]
    with torch.no_grad():
        found = model(batch)
        _, (logits, _, iou) = outputs_of(model, batch)
    for k, own in enumerate(found):
        products = [
            x[k].sigmoid().view(-1, CLASSES, *x.shape[2:]) * y[k].sigmoid().unsqueeze(1)
            for x, y in zip(logits, iou, strict=True)
        ]
        everything = torch.cat([x.flatten() for x in products])
        scores = own["instances"].scores
        torch.testing.assert_close(scores[0], everything.max())
        # Every score is that of some pair, up to the rounding of a product.
        assert (scores[:, None] - everything).abs().amin(dim=1).max() < 1e-6


def test_without_the_branch_the_score_is_that_of_the_class():
    model = detector("atss", "MODEL.LT.DENSE.IOU_BRANCH", False)
    assert "loss_iou" not in step(model, [image([1]), image([])])
    model.eval()
    found = model([image([])])[0]["instances"]
    _, (logits, _) = outputs_of(model, [image([])])
    best = max(x.max().sigmoid().item() for x in logits)
    assert found.scores[0].item() == pytest.approx(best)


def test_a_topk_below_one_is_an_error_that_names_the_key():
    with pytest.raises(ConfigError, match="MODEL.LT.DENSE.ATSS_TOPK is 0"):
        detector("atss", "MODEL.LT.DENSE.ATSS_TOPK", 0)
    assert config("atss").MODEL.LT.DENSE.ATSS_TOPK == 18
