"""Hooks: gradient statistics, best checkpoint, log files of resumed runs."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from lt_det.engine.hooks import (
    BestCheckpointHook,
    GradientStatisticsHook,
    ProgressHook,
    check_ranks_agree,
    drop_lines_from,
    named_grad_stats,
    set_aside,
)
from lt_det.losses import build_loss, set_progress


def model_with_history():
    model = nn.Module()
    model.loss = build_loss("SigmoidEQL", num_classes=4)
    model.loss.stats.pos.copy_(torch.tensor([1.0, 2.0, 3.0, 0.0]))
    model.loss.stats.neg.copy_(torch.tensor([2.0, 2.0, 1.0, 5.0]))
    return model


def statistics_hook(tmp_path, model, **kwargs):
    return GradientStatisticsHook(
        named_grad_stats(model),
        names=["a", "b", "c", "d"],
        groups=["r", "f", "f", "r"],
        counts=[1, 200, 300, 5],
        output_dir=str(tmp_path),
        **{"period": 2, "file_period": 2, **kwargs},
    )


def run_hook(hook, first, last, max_iter=10):
    """Scalars logged over iterations first..last-1."""
    with EventStorage(first) as storage:
        hook.trainer = SimpleNamespace(
            iter=first, start_iter=first, max_iter=max_iter, storage=storage
        )
        hook.before_train()
        for k in range(first, last):
            hook.trainer.iter = storage.iter = k
            hook.after_step()
    return storage.latest()


def test_group_means_of_the_ratio_are_logged(tmp_path):
    logged = run_hook(statistics_hook(tmp_path, model_with_history()), 0, 2)
    assert logged["grad_ratio/r"][0] == pytest.approx((0.5 + 0.0) / 2)
    assert logged["grad_ratio/f"][0] == pytest.approx((1.0 + 3.0) / 2)
    assert "grad_ratio/c" not in logged  # no class is common


def test_the_file_holds_the_sums_and_a_resumed_run_continues_it(tmp_path):
    model = model_with_history()
    path = tmp_path / "gradient_statistics.jsonl"
    run_hook(statistics_hook(tmp_path, model), 0, 6)
    header, *lines = map(json.loads, path.read_text().splitlines())
    assert header == {
        "names": list("abcd"),
        "groups": list("rffr"),
        "counts": [1, 200, 300, 5],
        "unit": "instances",
        "task": "instance",
    }
    assert [line["iteration"] for line in lines] == [0, 1, 3, 5]
    assert lines[0]["pos"] == [1.0, 2.0, 3.0, 0.0] and lines[0]["neg"] == [2.0, 2.0, 1.0, 5.0]
    run_hook(statistics_hook(tmp_path, model), 4, 8)
    _, *lines = map(json.loads, path.read_text().splitlines())
    assert [line["iteration"] for line in lines] == [0, 1, 3, 5, 7]


def test_dropped_updates_are_reported_once(tmp_path, caplog):
    model = model_with_history()
    model.loss.stats.skipped.fill_(3)
    run_hook(statistics_hook(tmp_path, model), 0, 6)
    assert caplog.text.count("3 updates were not finite") == 1


class Saves:
    def __init__(self, folder):
        self.save_dir, self.saved = str(folder), []

    def save(self, name, **kwargs):
        self.saved.append((name, kwargs))


def best_of(tmp_path, values, start=0):
    """What a run saves whose evaluations give those values (None = no evaluation)."""
    checkpointer = Saves(tmp_path)
    hook = BestCheckpointHook(checkpointer, "segm/APr")
    with EventStorage(start) as storage:
        hook.trainer = SimpleNamespace(iter=start, start_iter=start, max_iter=99, storage=storage)
        hook.before_train()
        for k, value in enumerate(values, start):
            hook.trainer.iter = storage.iter = k
            if value is not None:
                storage.put_scalar("segm/APr", value, smoothing_hint=False)
            hook.after_step()
    return [kwargs["iteration"] for _, kwargs in checkpointer.saved]


def test_the_best_checkpoint_is_saved_when_the_metric_rises(tmp_path):
    assert best_of(tmp_path, [1.0, None, 3.0, 2.0, math.nan, 3.0, 4.0]) == [0, 2, 6]


def test_a_resumed_run_remembers_the_best_value_and_a_new_one_does_not(tmp_path):
    best_of(tmp_path, [1.0, 5.0])
    assert best_of(tmp_path, [4.0, 6.0], start=2) == [3]
    assert best_of(tmp_path, [2.0]) == [0]


def test_a_metric_that_is_never_measured_is_reported_with_those_that_are(tmp_path, caplog):
    hook = BestCheckpointHook(Saves(tmp_path), "segm/APrare")
    with EventStorage(5) as storage:
        storage.put_scalar("segm/APr", 3.0)
        hook.trainer = SimpleNamespace(iter=5, start_iter=0, max_iter=5, storage=storage)
        hook.after_train()
    assert "'segm/APrare' was never measured" in caplog.text and "segm/APr" in caplog.text


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    lines = ['{"names": []}', '{"iteration": 1}', '{"iteration": 4}', '{"iteration": 5}']
    path.write_text("\n".join(lines) + '\n{"iterat')
    drop_lines_from(str(path), 5)
    assert path.read_text().splitlines() == lines[:3]


def test_an_earlier_log_is_kept_aside(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    set_aside(str(path))
    assert not path.exists() and (tmp_path / "metrics.json.previous").read_text() == "old"


def test_ranks_that_differ_are_an_error(monkeypatch):
    """In any accumulator of any loss: the last sum of the last loss differs."""
    model = model_with_history()
    model.other = build_loss("Seesaw", num_classes=4)
    check_ranks_agree(model)

    def all_gather(sums):
        assert sums == [[6.0, 10.0], [0.0]]
        return [sums, [*sums[:-1], [sums[-1][0] + 1]]]

    monkeypatch.setattr("lt_det.engine.hooks.comm.all_gather", all_gather)
    with pytest.raises(RuntimeError, match=r"differ between ranks.*\[\[6.0, 10.0\], \[1.0\]\]"):
        check_ranks_agree(model)


def test_losses_with_a_schedule_know_the_progress_before_every_step():
    model = nn.ModuleList(
        build_loss(name, num_classes=3, class_counts=[5, 1, 9]) for name in ("KPS", "FBL", "GCL")
    )
    hook = ProgressHook(model)
    for iteration, expected in [(0, 0.0), (1, 0.125), (7, 0.875)]:
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=8)
        hook.before_step()
        assert [loss.progress.item() for loss in model[:2]] == [expected, expected]
    assert not hasattr(model[2], "progress")


def test_a_progress_outside_of_the_training_is_an_error():
    with pytest.raises(ValueError, match="progress is 1.5"):
        set_progress(nn.Module(), 1.5)
