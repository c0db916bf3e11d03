"""tools/run_cifar10_lt.py: which runs it starts, with which schedule, and what it keeps."""

import ast
import json
from types import SimpleNamespace

import pytest

from lt_det.evaluation.results import make_record
from tests.tools.load import load_tool

tool = load_tool("run_cifar10_lt")


@pytest.fixture
def runs(monkeypatch):
    """Commands that were started; each run writes its records, unless it is to fail."""
    started = SimpleNamespace(options=[], fail_on=None, stop=None)

    def fake(command, cwd):
        options = dict(zip(command[5::2], command[6::2], strict=True))
        started.options.append({"config": command[3], **options})
        folder = tool.Path(options["OUTPUT_DIR"])
        if folder.name == started.fail_on:
            return SimpleNamespace(returncode=3)
        (folder / "results").mkdir(parents=True, exist_ok=True)
        (folder / "model_final.pth").write_bytes(b"")
        ended = folder.name != started.stop
        for name, chosen in (
            ("cifar10_test.json", "last"),
            ("cifar10_test.best.json", "best on x"),
        ):
            record = make_record(
                task="classification", dataset=folder.name, protocol={}, metrics={}
            )
            record["run"] = {"selection": chosen if ended else None}
            (folder / "results" / name).write_text(json.dumps(record))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(tool.subprocess, "run", fake)
    return started


def arguments(tmp_path, *more):
    return ["--workdir", str(tmp_path / "work"), "--records", str(tmp_path / "records"), *more]


def test_every_method_runs_once_and_second_stages_after_their_first(tmp_path, runs):
    assert tool.main(arguments(tmp_path, "--seeds", "4")) == 0
    names = [tool.Path(o["OUTPUT_DIR"]).name for o in runs.options]
    assert names == [f"{method}_200_epochs_seed4" for method in tool.METHODS]
    for options in runs.options:
        method = tool.Path(options["OUTPUT_DIR"]).name.removesuffix("_200_epochs_seed4")
        assert options["config"].endswith(f"configs/cifar10_lt_{method}.yaml")
        assert options["SEED"] == "4"
        first = options.get("MODEL.LT.FIRST_STAGE")
        if method in tool.FIRST_STAGES:
            assert names.index(tool.Path(first).name) < names.index(f"{method}_200_epochs_seed4")
        else:
            assert first is None
    kept = sorted(p.name for p in (tmp_path / "records").iterdir())
    wanted = [f"{m}_seed4{s}.json" for m in tool.METHODS for s in ("", ".best")]
    assert kept == sorted(wanted)
    record = json.loads((tmp_path / "records/ce_seed4.json").read_text())
    assert record["dataset"] == "ce_200_epochs_seed4"
    # Finished runs are left out.
    assert tool.main(arguments(tmp_path, "--seeds", "4")) == 0
    assert len(runs.options) == len(tool.METHODS)


def test_a_short_schedule_is_the_same_share_of_everything(tmp_path, runs):
    methods = ["--methods", "ce", "gcl", "gcl_cben"]
    assert tool.main(arguments(tmp_path, *methods, "--epochs", "40", "SEED", "9")) == 0
    ce, _, second = runs.options
    assert int(ce["SOLVER.MAX_ITER"]) == round(38769 / 5)
    assert ast.literal_eval(ce["SOLVER.STEPS"]) == (round(31015 / 5), round(34892 / 5))
    assert int(ce["SOLVER.WARMUP_ITERS"]) == round(969 / 5)
    assert int(second["SOLVER.MAX_ITER"]) == round(5815 / 5)
    assert ce["SEED"] == "9"  # what stands at the end wins


def test_a_run_that_fails_stops_the_script(tmp_path, runs, capsys):
    runs.fail_on = "mixup_200_epochs_seed1"
    assert tool.main(arguments(tmp_path, "--methods", "ce", "mixup", "mislas")) == 1
    assert len(runs.options) == 2
    assert "error: mixup, seed 1 ended with 3" in capsys.readouterr().err


def test_a_run_without_its_last_evaluation_is_not_finished(tmp_path, runs, capsys):
    """The final checkpoint is written before the evaluation."""
    runs.stop = "ce_200_epochs_seed1"
    assert tool.main(arguments(tmp_path, "--methods", "ce")) == 1
    assert not (tmp_path / "records").exists()
    runs.stop = None
    assert tool.main(arguments(tmp_path, "--methods", "ce")) == 0
    assert len(runs.options) == 2
