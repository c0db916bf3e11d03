"""Federated masks in whole detectors: the class lists reach the loss of every kind of head."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from lt_det.data.mappers import ImageClasses
from lt_det.engine import load_config
from lt_det.engine.checkpoint import LongTailCheckpointer
from lt_det.engine.hooks import named_grad_stats
from lt_det.errors import ConfigError
from lt_det.modeling import LongTailOutputLayers
from lt_det.modeling.build import federated_from_config
from tests.modeling.test_full_models import HEADS, detector, image

BACKGROUND = 4


def ids(*values):
    return torch.tensor(values, dtype=torch.int64)


def with_lists(sample, negative, not_exhaustive=()):
    """The sample as the mapper makes it from a record with LVIS's lists."""
    instances = sample["instances"]
    positive = instances.gt_classes.unique()
    lists = (positive, ids(*negative), ids(*not_exhaustive))
    instances.image_classes = ImageClasses(*lists, len(instances))
    return sample


@pytest.fixture
def seen(monkeypatch):
    """(labels, mask, image of each row) of every call of a predictor's loss."""
    calls = []
    original = LongTailOutputLayers._class_mask

    def spy(self, gt_classes, proposals):
        mask = original(self, gt_classes, proposals)
        rows = torch.tensor([len(p) for p in proposals])
        calls.append((gt_classes, mask, torch.arange(len(rows)).repeat_interleave(rows)))
        return mask

    monkeypatch.setattr(LongTailOutputLayers, "_class_mask", spy)
    return calls


def train_step(model, batch):
    with EventStorage(0):
        losses = model(batch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("loss", ["EQLv2", "SoftmaxCE"])
@pytest.mark.parametrize("head", list(HEADS))
def test_rows_of_two_images_follow_the_lists_of_their_image(seen, head, loss):
    """Image 0 holds 0 and 3, 3 not exhaustively, without 1; image 1 holds none, without 1."""
    model = detector(head, loss, "annotated")
    batch = [with_lists(image([0, 3]), [1], [3]), with_lists(image([]), [1])]
    train_step(model, batch)
    assert len(seen) == (3 if "Cascade" in head else 1)
    verified = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    for labels, mask, image_of_row in seen:
        expected = verified[image_of_row].clone()
        expected[labels == 3, 3] = True  # its own rows, and these alone
        assert torch.equal(mask, expected)
        assert set(image_of_row.tolist()) == {0, 1}
    # Refined boxes of a random regressor may match less than the proposals.
    assert set(seen[0][0].tolist()) == {0, 3, BACKGROUND}
    # Class 2 takes part nowhere, class 3 is a positive only.
    for state, (labels, _, _) in zip(named_grad_stats(model).values(), seen, strict=False):
        assert state.neg[2] == state.neg[3] == state.pos[1] == state.pos[2] == 0
        assert state.pos[3] > 0 or 3 not in labels
        assert (state.neg[[0, 1]] > 0).all()
    weights = [p for n, p in model.named_parameters() if n.endswith("cls_score.weight")]
    for weight, (labels, _, _) in zip(weights, seen, strict=True):
        moved = weight.grad.abs().sum(1) > 0
        assert moved.tolist() == [True, True, False, 3 in labels, True]


def test_a_set_without_lists_takes_part_with_all_classes(seen):
    model = detector("LongTailROIHeads", "EQLv2", "annotated")
    train_step(model, [image([0, 3]), with_lists(image([1], seed=1), [])])
    labels, mask, image_of_row = seen[0]
    assert mask[image_of_row == 0].all()
    assert torch.equal(
        mask[image_of_row == 1], torch.tensor([False, True, False, False]).expand(16, -1)
    )


@pytest.mark.parametrize("loss", ["EQLv2", "SoftmaxCE"])
@pytest.mark.parametrize("head", list(HEADS))
def test_sampled_classes_hold_those_present_and_are_the_same_for_all_rows(seen, head, loss):
    model = detector(head, loss, "sampled", num_sampled=3, counts=[9, 100, 0, 1])
    losses = train_step(model, [image([0, 3]), image([])])
    assert all(torch.isfinite(value) for value in losses.values())
    assert len(seen) == (3 if "Cascade" in head else 1)
    for labels, mask, _ in seen:
        assert set(labels.tolist()) <= {0, 3, BACKGROUND}
        # Class 2 has no example, so the other three are all there is.
        assert mask.tolist() == [True, True, False, True]
    for state in named_grad_stats(model).values():
        assert (state.neg == 0).tolist() == [False, False, True, False]
    keys = [key for key in model.state_dict() if "federated" in key]
    assert len(keys) == len(seen)


def test_without_a_mode_there_is_no_mask(seen):
    train_step(detector("LongTailROIHeads", "EQLv2"), [with_lists(image([0]), [1])])
    assert seen[0][1] is None


def test_the_field_follows_its_instances():
    lists = ImageClasses(ids(0, 3), ids(1), ids(), 3)
    item = Instances((9, 9), gt_boxes=Boxes(torch.zeros(3, 4)), image_classes=lists)
    for part, length in [
        (item[torch.tensor([True, False, True])], 2),
        (item[torch.tensor([1, 1, 2, 0])], 4),
        (item[0], 1),
        (item[:0], 0),
        (item.to("cpu"), 3),
    ]:
        assert len(part.image_classes) == len(part) == length
        for ours, right in zip(part.image_classes.lists, lists.lists, strict=True):
            assert torch.equal(ours, right)


def test_an_unknown_mode_lists_the_accepted_ones():
    with pytest.raises(ConfigError, match="MODE is 'anotated'; accepted are annotated, sampled"):
        detector("LongTailROIHeads", "EQLv2", "anotated")


def test_sampling_without_counts_is_an_error_that_names_the_key():
    with pytest.raises(ConfigError, match="MODEL.LT.FEDERATED.*MODEL.LT.CLASS_COUNTS"):
        detector("LongTailROIHeads", "EQLv2", "sampled")


def test_the_draws_go_on_from_a_detectron2_checkpoint(tmp_path):
    model = detector("LongTailROIHeads", "EQLv2", "sampled", num_sampled=3, counts=[9, 100, 0, 1])
    batch = [image([0, 3])]
    train_step(model, batch)
    LongTailCheckpointer(model, str(tmp_path)).save("model")
    other = detector("LongTailROIHeads", "EQLv2", "sampled", num_sampled=3, counts=[9, 100, 0, 1])
    LongTailCheckpointer(other, str(tmp_path)).load(str(tmp_path / "model.pth"))
    assert other.roi_heads.box_predictor.federated.noise.draws == 1


def test_the_run_seed_seeds_the_draws():
    options = ["MODEL.LT.FEDERATED.MODE", "sampled", "MODEL.LT.CLASS_COUNTS", [1, 2, 3]]
    seeds = [
        federated_from_config(load_config("", [*options, "SEED", seed]), num_classes=3).noise.seed
        for seed in (7, -1)
    ]
    assert seeds == [7, 0]
