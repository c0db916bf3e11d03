"""Checkpoints are whole or not there, and say what does not fit."""

import pickle

import pytest
import torch
from torch import nn

from lt_det.engine import LongTailCheckpointer
from lt_det.errors import CheckpointError


def model(classes=3):
    layer = nn.Module()
    layer.cls_score = nn.Linear(2, classes)
    return layer


def test_a_save_that_dies_leaves_the_previous_checkpoint_in_force(tmp_path, monkeypatch):
    net = model()
    checkpointer = LongTailCheckpointer(net, str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    real = torch.save

    def dies_half_way(data, file):
        real(data, file)
        file.truncate(file.tell() // 2)
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", dies_half_way)
    with torch.no_grad():
        net.cls_score.weight.add_(1)
    with pytest.raises(OSError, match="No space"):
        checkpointer.save("model_0000002", iteration=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    monkeypatch.undo()
    fresh = model()
    loaded = LongTailCheckpointer(fresh, str(tmp_path)).resume_or_load("", resume=True)
    assert loaded["iteration"] == 1
    assert torch.equal(fresh.cls_score.weight + 1, net.cls_score.weight)


def test_overwriting_a_checkpoint_never_shows_half_of_it(tmp_path, monkeypatch):
    net = model()
    checkpointer = LongTailCheckpointer(net, str(tmp_path))
    checkpointer.save("model_best", iteration=1)
    seen = []
    real = torch.save

    def look_while_writing(data, file):
        seen.append(torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"])
        real(data, file)

    monkeypatch.setattr(torch, "save", look_while_writing)
    checkpointer.save("model_best", iteration=2)
    assert seen == [1]
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 2


def test_the_best_checkpoint_is_not_what_resume_continues(tmp_path):
    checkpointer = LongTailCheckpointer(model(), str(tmp_path))
    checkpointer.save("model_0000009")
    checkpointer.save("model_best", tag=False)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000009.pth")


def test_another_class_number_is_an_error_when_strict_and_skipped_when_not(tmp_path):
    LongTailCheckpointer(model(5), str(tmp_path)).save("old")
    path = str(tmp_path / "old.pth")
    net = model(3)
    before = net.cls_score.weight.clone()
    LongTailCheckpointer(net).load(path)
    assert torch.equal(net.cls_score.weight, before)
    with pytest.raises(
        CheckpointError,
        match=r"old.pth.*\n.*cls_score.weight: \(5, 2\) in the file, \(3, 2\) in the model"
        r"(.|\n)*MODEL.ROI_HEADS.NUM_CLASSES",
    ):
        LongTailCheckpointer(net, strict=True).load(path)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    checkpointer = LongTailCheckpointer(model())
    with pytest.raises(CheckpointError, match="nowhere.pth"):
        checkpointer.load(str(tmp_path / "nowhere.pth"))
    LongTailCheckpointer(model(), str(tmp_path)).save("whole")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="half.pth"):
        checkpointer.load(str(tmp_path / "half.pth"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", pickle.dumps([1, 2])])
def test_files_that_are_no_checkpoints_are_named(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="other.pth"):
        LongTailCheckpointer(model()).load(str(path))


def test_a_checkpoint_that_lacks_parameters_is_an_error_when_strict(tmp_path):
    torch.save({"model": {"cls_score.bias": torch.zeros(3)}}, tmp_path / "part.pth")
    LongTailCheckpointer(model()).load(str(tmp_path / "part.pth"))
    with pytest.raises(CheckpointError, match="part.pth lacks 1 .*cls_score.weight"):
        LongTailCheckpointer(model(), strict=True).load(str(tmp_path / "part.pth"))


def test_a_checkpoint_of_another_loss_is_an_error_when_strict(tmp_path):
    """Softmax and EQL v2 classifiers have the same shapes, and scores that mean nothing else."""
    LongTailCheckpointer(model(), str(tmp_path), loss="SoftmaxCE").save("ce")
    path = str(tmp_path / "ce.pth")
    LongTailCheckpointer(model(), loss="EQLv2").load(path)
    LongTailCheckpointer(model(), loss="SoftmaxCE", strict=True).load(path)
    with pytest.raises(CheckpointError, match="loss SoftmaxCE, but MODEL.LT.LOSS.NAME is EQLv2"):
        LongTailCheckpointer(model(), loss="EQLv2", strict=True).load(path)
