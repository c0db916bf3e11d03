"""Hooks of the trainer."""

from __future__ import annotations

import glob
import json
import logging
import math
import os
from collections.abc import Callable, Sequence

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from lt_det.evaluation.groups import group_means
from lt_det.losses import Accumulators, GradStats, set_progress

logger = logging.getLogger(__name__)

STATISTICS_FILE = "gradient_statistics.jsonl"


class ProgressHook(HookBase):
    """Tells the losses that follow a schedule how far training has come, before every step.

    The progress of iteration k (from 0) is ``k / max_iter``. Needed on every rank.

    Args:
        model: holds the losses.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def before_step(self):
        """Set it."""
        set_progress(self.model, self.trainer.iter / self.trainer.max_iter)


class CheckpointHook(HookBase):
    """Saves every `period` iterations and after the last one.

    It runs on every rank, because the random state of all ranks belongs to the checkpoint.

    Args:
        checkpointer: see ``lt_det.engine.checkpoint``.
        period: iterations.
    """

    def __init__(self, checkpointer, period: int):
        self.checkpointer, self.period = checkpointer, period

    def after_step(self):
        """Save if it is time."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self._save("model_final")
        elif done % self.period == 0:
            self._save(f"model_{self.trainer.iter:07d}")

    def _save(self, name: str) -> None:
        self.trainer.before_save()
        self.checkpointer.save(name, iteration=self.trainer.iter)


class BestCheckpointHook(HookBase):
    """Keeps the checkpoint with the highest value of a metric as ``model_best.pth``.

    The value stands in ``model_best.json`` beside it, so a resumed run goes on from there.
    Runs on rank 0, after the evaluation hook.

    Args:
        checkpointer: see ``lt_det.engine.checkpoint``.
        metric: name in the event storage, e.g. "segm/APr".
        keep_results: called when a new best checkpoint has been saved.
    """

    def __init__(self, checkpointer, metric: str, keep_results: Callable[[], None] | None = None):
        self.checkpointer, self.metric = checkpointer, metric
        self.keep_results = keep_results
        self.path = os.path.join(checkpointer.save_dir, "model_best.json")
        self.best = -math.inf
        self.seen = -1

    def before_train(self):
        """Take up the best value of a resumed run; forget that of an older one."""
        if not os.path.exists(self.path):
            return
        if self.trainer.start_iter == 0:
            os.remove(self.path)
            return
        with open(self.path) as file:
            best = json.load(file)
        if best["metric"] == self.metric:
            self.best, self.seen = best["value"], best["iteration"]

    def after_step(self):
        """Compare, if there was an evaluation."""
        self._compare()

    def after_train(self):
        """Compare the last evaluation."""
        if self.trainer.iter < self.trainer.max_iter:
            return  # training failed
        self._compare()
        if self.seen < 0:
            known = sorted(name for name in self.trainer.storage.latest() if "/" in name)
            logger.warning(
                "TEST.LT.BEST_METRIC %r was never measured, so no best checkpoint is kept. "
                "Measured: %s",
                self.metric,
                ", ".join(known) or "nothing",
            )

    def _compare(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (None, -1))
        if value is None or iteration <= self.seen:
            return
        self.seen = iteration
        if not value > self.best:  # also when it is NaN
            return
        self.best = value
        self.checkpointer.save("model_best", tag=False, iteration=self.trainer.iter)
        with open(self.path, "w") as file:
            json.dump({"metric": self.metric, "value": value, "iteration": iteration}, file)
        if self.keep_results is not None:
            self.keep_results()
        logger.info("Best %s so far: %.2f, kept as model_best.pth", self.metric, value)


class GradientStatisticsHook(HookBase):
    """Logs the gradient ratio of each frequency group; keeps the sums of each class in a file.

    Scalars ``grad_ratio/{r,c,f}`` (``grad_ratio/stage0/r`` ... for a cascade) are means over the
    classes of a group. ``gradient_statistics.jsonl`` begins with a line of names, training
    counts, groups and task; each further line holds iteration, name of the loss, and the positive
    and negative sums of all classes. ``tools/plot_gradient_ratio.py`` draws it. Rank 0 only.

    Args:
        stats: name -> GradStats of the model, see :func:`named_grad_stats`.
        names, groups: (C,).
        counts: (C,) training examples.
        unit: what `counts` are, "instances" or "pixels".
        task: "instance", "classification" or "sem_seg", as in a result record.
        output_dir: of the run.
        period: iterations between scalars.
        file_period: iterations between lines of the file.
    """

    def __init__(
        self,
        stats: dict[str, GradStats],
        *,
        names: Sequence[str],
        groups: Sequence[str],
        counts: Sequence[int],
        unit: str = "instances",
        task: str = "instance",
        output_dir: str,
        period: int = 20,
        file_period: int,
    ):
        self.stats, self.groups = stats, list(groups)
        self.header = {
            "names": list(names),
            "groups": self.groups,
            "counts": [int(n) for n in counts],
            "unit": unit,
            "task": task,
        }
        self.path = os.path.join(output_dir, STATISTICS_FILE)
        self.period, self.file_period = period, file_period
        self.warned = False

    def before_train(self):
        """Start the file, or continue that of a resumed run."""
        if self.trainer.start_iter and os.path.exists(self.path):
            drop_lines_from(self.path, self.trainer.start_iter)
            return
        with open(self.path, "w") as file:
            file.write(json.dumps(self.header) + "\n")

    def after_step(self):
        """Log."""
        done = self.trainer.iter + 1
        last = done == self.trainer.max_iter
        if done % self.period == 0 or last:
            self._log_scalars()
        if done % self.file_period == 0 or last or done == 1:
            self._append()

    def _log_scalars(self) -> None:
        for name, stats in self.stats.items():
            prefix = f"grad_ratio/{name}/" if name else "grad_ratio/"
            means = group_means(stats.ratio().tolist(), self.groups)
            for group, value in means.items():
                if not math.isnan(value):
                    self.trainer.storage.put_scalar(prefix + group, value, smoothing_hint=False)
            if int(stats.skipped) and not self.warned:
                self.warned = True
                logger.warning(
                    "Gradient statistics %s: %d updates were not finite and were left out.",
                    name,
                    int(stats.skipped),
                )

    def _append(self) -> None:
        with open(self.path, "a") as file:
            for name, stats in self.stats.items():
                sums = torch.stack([stats.pos, stats.neg]).tolist()
                line = {
                    "iteration": self.trainer.iter,
                    "loss": name,
                    "pos": sums[0],
                    "neg": sums[1],
                }
                file.write(json.dumps(line) + "\n")


def named_grad_stats(model: torch.nn.Module) -> dict[str, GradStats]:
    """Every GradStats of `model` under a short name.

    "" for the only one, "stage0", "stage1", ... of a cascade, "aux" of an auxiliary head,
    "sem_seg" of the segmentation head of a model that is a detector as well.
    """
    found = {path: m for path, m in model.named_modules() if isinstance(m, GradStats)}
    boxes = any("roi_heads" in path.split(".") for path, _ in model.named_modules())
    beside = {"auxiliary_head": "aux"} | ({"sem_seg_head": "sem_seg"} if boxes else {})
    result, main = {}, []
    for path, stats in found.items():
        name = next((beside[part] for part in path.split(".") if part in beside), None)
        if name is None:
            main.append(stats)
        else:
            result[name] = stats
    names = [""] if len(main) == 1 else [f"stage{k}" for k in range(len(main))]
    return {**dict(zip(names, main, strict=True)), **result}


def check_ranks_agree(model: torch.nn.Module) -> None:
    """Raise a RuntimeError unless all ranks hold the same sums in every accumulator.

    Detectron2 does not broadcast buffers, so equality is the losses' own doing. Call it on every
    rank.
    """
    sums = [
        [total.sum().item() for total in module.sums().values()]
        for module in model.modules()
        if isinstance(module, Accumulators)
    ]
    of_ranks = comm.all_gather(sums)
    if any(other != of_ranks[0] for other in of_ranks):
        raise RuntimeError(f"the statistics of the losses differ between ranks: sums {of_ranks}")


def set_aside(path: str) -> None:
    """Keep the file of an earlier run in the same folder as ``<name>.previous``. Rank 0 only."""
    if os.path.exists(path) and comm.is_main_process():
        os.replace(path, path + ".previous")


def set_aside_results(output_dir: str) -> None:
    """`set_aside` what tables and tools read of a run. Rank 0 only."""
    for pattern in ("metrics.json", "results/*.json", "model_best.*"):
        for path in glob.glob(os.path.join(glob.escape(output_dir), pattern)):
            if not path.endswith(".previous"):
                set_aside(path)


def drop_lines_from(path: str, iteration: int) -> None:
    """Drop the lines of a JSON-lines file that a killed run wrote after its last checkpoint.

    Lines with an ``iteration`` at or beyond `iteration`, and a last line cut short, go; lines
    without one stay. Rank 0 only, before the file is opened for appending.
    """
    if not os.path.exists(path) or not comm.is_main_process():
        return
    kept = []
    with open(path) as file:
        for line in file:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry.get("iteration", -1) < iteration:
                kept.append(line)
    partial = path + ".partial"
    with open(partial, "w") as file:
        file.writelines(kept)
    os.replace(partial, path)
