"""A run that is killed and resumed equals one that was not, through tools/train_net.py."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.runs import differences

ROOT = Path(__file__).parents[2]
ITERATIONS, PERIOD = 10, 4
# Its sampler rounds repeat factors anew in every epoch; the tiny set has 24 images.
CONFIG = "configs/quick/lvis_eqlv2_cben.yaml"


def command(output: Path, options: list[str], *flags: str) -> list[str]:
    return [
        *(sys.executable, "-W", "ignore", "tools/train_net.py"),
        *("--config-file", CONFIG, *flags),
        *("OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", str(ITERATIONS)),
        *("SOLVER.CHECKPOINT_PERIOD", str(PERIOD), "TEST.EVAL_PERIOD", "5", *options),
    ]


def environment() -> dict:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(output: Path, options: list[str], *flags: str) -> None:
    done = subprocess.run(
        command(output, options, *flags),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def run_and_kill(output: Path, options: list[str], iteration: int) -> None:
    """SIGKILL the run as soon as it has logged that iteration."""
    process = subprocess.Popen(
        command(output, options),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = output / "gradient_statistics.jsonl"
    deadline = time.monotonic() + 300
    try:
        while not (log.exists() and f'"iteration": {iteration},' in log.read_text()):
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline, "the run did not get that far in five minutes"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # loader workers, too
        process.wait()


def final_state(output: Path) -> dict:
    return torch.load(output / "model_final.pth", weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_options) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    run(output, [*tiny_options, "DATALOADER.NUM_WORKERS", "0"])
    return output


def test_sigkill_and_resume_is_bit_exact(uninterrupted, tmp_path, tiny_options):
    """Killed between checkpoints, after an evaluation, with workers that had prefetched.

    Weights, optimiser, schedule, loss scale, gradient statistics, data position and random
    state are all compared; the run without interruption had no workers.
    """
    output = tmp_path / "run"
    options = [*tiny_options, "DATALOADER.NUM_WORKERS", "2"]
    run_and_kill(output, options, iteration=6)
    assert (output / "last_checkpoint").read_text() == f"model_{PERIOD - 1:07d}.pth"
    # What a process leaves that dies while it writes the next checkpoint.
    (output / "model_0000007.pth.partial").write_bytes(b"half a checkpoint")
    run(output, options, "--resume")

    whole, resumed = final_state(uninterrupted), final_state(output)
    assert {"optimizer", "grad_scaler"} <= whole["trainer"]["_trainer"].keys()
    assert {"ranks", "hooks", "iteration"} <= whole["trainer"].keys()
    assert differences(whole, resumed) == []
    stats = "roi_heads.box_predictor.cls_loss.stats."
    assert whole["model"][stats + "steps"] == ITERATIONS
    loader = whole["trainer"]["ranks"][0]["data_loader"]
    assert loader["order"].startswith("cben, ") and loader["position"] > 0

    # The logs read as if nothing had happened, and so do the results.
    for name in ("gradient_statistics.jsonl", "metrics.json"):
        iterations = [
            json.loads(line).get("iteration") for line in (output / name).read_text().splitlines()
        ]
        numbered = [k for k in iterations if k is not None]
        assert len(numbered) == len(set(numbered)) > 0, name
    lines = (output / "gradient_statistics.jsonl").read_text()
    assert lines == (uninterrupted / "gradient_statistics.jsonl").read_text()
    record = json.loads((output / "results" / "tiny_val.json").read_text())
    expected = json.loads((uninterrupted / "results" / "tiny_val.json").read_text())
    assert record["metrics"] == expected["metrics"]


def test_noise_and_schedule_resume_bit_exactly(tmp_path, tiny_options):
    """GCL draws the noise that an uninterrupted run would have drawn."""
    options = [
        *tiny_options,
        *("MODEL.LT.LOSS.NAME", "GCL", "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0"),
        *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"),
    ]
    base = ("--config-file", "configs/quick/base/lvis_mask_rcnn_r18_fpn.yaml")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    # Later options win over those that command() gives.
    run(whole, options, *base)
    resumed.mkdir()
    shutil.copy(whole / "model_0000001.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    run(resumed, options, *base, "--resume")
    assert differences(final_state(whole), final_state(resumed)) == []
    noise = final_state(whole)["model"]["roi_heads.box_predictor.cls_loss.noise._extra_state"]
    assert noise.tolist() == [1, 4]  # seed of the run, draws


def test_without_resume_the_statistics_of_a_checkpoint_start_from_zero(
    uninterrupted, tmp_path, tiny_options
):
    output = tmp_path / "fine_tuned"
    weights = ["MODEL.WEIGHTS", str(uninterrupted / "model_final.pth"), "SOLVER.MAX_ITER", "1"]
    run(output, [*tiny_options, *weights, "DATASETS.TEST", "()"])
    model = final_state(output)["model"]
    stats = "roi_heads.box_predictor.cls_loss.stats."
    assert model[stats + "steps"] == 1
    assert "all start from zero" in (output / "log.txt").read_text()


def test_evaluation_of_the_final_checkpoint_repeats_the_result(
    uninterrupted, tmp_path, tiny_options
):
    output = tmp_path / "evaluated"
    weights = ["MODEL.WEIGHTS", str(uninterrupted / "model_final.pth")]
    run(output, [*tiny_options, *weights], "--eval-only")
    record = json.loads((output / "results" / "tiny_val.json").read_text())
    expected = json.loads((uninterrupted / "results" / "tiny_val.json").read_text())
    assert record["metrics"] == expected["metrics"]
    for column in ("bbox/AP", "segm/AP"):
        assert record["per_class"][column] == expected["per_class"][column]
    assert record["run"]["config"] == CONFIG
    assert record["run"]["weights"] == str(uninterrupted / "model_final.pth")


def test_two_ranks_under_torchrun_agree_and_keep_both_random_states(tmp_path, tiny_options):
    """The trainer itself compares the statistics of the ranks before it saves."""
    output = tmp_path / "two"
    arguments = command(output, [*tiny_options, "SOLVER.MAX_ITER", "3", "DATASETS.TEST", "()"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What torchrun sets.
    group = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    group.update(MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    processes = [
        subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**environment(), **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(o[-2000:] for o in outputs)
    state = final_state(output)
    first, second = state["trainer"]["ranks"]
    assert not torch.equal(first["rng"]["torch"], second["rng"]["torch"])
    assert first["data_loader"]["world_size"] == second["data_loader"]["world_size"] == 2
    assert state["model"]["roi_heads.box_predictor.cls_loss.stats.steps"] == 3


def test_random_state_round_trip():
    from lt_det.engine.rng import get_rng_state, preserved_rng, set_rng_state

    np.random.seed(3)
    np.random.standard_normal()  # leaves half a pair behind, which is state as well
    state = get_rng_state()
    first = np.random.standard_normal(3).tolist(), torch.rand(3).tolist()
    set_rng_state(state)
    assert (np.random.standard_normal(3).tolist(), torch.rand(3).tolist()) == first
    with preserved_rng():
        before = torch.get_rng_state()
        torch.rand(7), np.random.rand(7)
    assert torch.equal(torch.get_rng_state(), before)
