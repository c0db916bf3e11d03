"""The trainer: Detectron2's ``DefaultTrainer`` that resumes exactly and knows the tail."""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

import torch
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from lt_det.data import ClassCounts
from lt_det.data.build import build_test_loader, build_train_loader
from lt_det.engine.checkpoint import LongTailCheckpointer
from lt_det.engine.config import config_hash
from lt_det.engine.hooks import (
    BestCheckpointHook,
    CheckpointHook,
    GradientStatisticsHook,
    ProgressHook,
    check_ranks_agree,
    drop_lines_from,
    named_grad_stats,
    set_aside_results,
)
from lt_det.engine.inference import model_for, resume_predictions
from lt_det.engine.norm_statistics import average_norm_statistics
from lt_det.engine.optimizer import build_lr_scheduler, max_grad_norm, scale_learning_rate
from lt_det.engine.rng import get_rng_state, preserved_rng, set_rng_state
from lt_det.engine.stages import load_backbone, load_first_stage, report_backbone_differences
from lt_det.engine.step import StepTrainer
from lt_det.engine.tasks import Detection, task_of
from lt_det.engine.writers import build_writers
from lt_det.errors import ConfigError, MissingFileError
from lt_det.evaluation.bootstrap import record_intervals
from lt_det.evaluation.per_image import read_images_of_record
from lt_det.evaluation.results import (
    LAST,
    add_run_info,
    best_on,
    read_record,
    record_path,
    write_record,
)
from lt_det.losses import reset_run_state, scheduled_losses

logger = logging.getLogger(__name__)

# Lines of gradient_statistics.jsonl over a run: enough for a smooth plot, and 5 MB for LVIS.
_STATISTICS_LINES = 100


class LongTailTrainer(DefaultTrainer):
    """Trains what `cfg` says.

    A run that was killed and resumed ends with the same weights, optimiser, schedule, loss
    scale, gradient statistics, data order and random state as one that was not (bit for bit on
    a CPU).

    Args:
        cfg: prepared by :func:`lt_det.engine.config.prepare_config`.
        class_counts: what that returned.
        config_file: the configuration file, for the result records.
    """

    def __init__(self, cfg, class_counts: ClassCounts, *, config_file: str | None = None):
        # Not DefaultTrainer's: it starts the data loader before a checkpoint can set its
        # position, and builds the step that is replaced here.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.class_counts = class_counts
        self.config_file = config_file
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        if comm.get_world_size() > 1:
            on_cpu = cfg.MODEL.DEVICE == "cpu"
            device_ids = None if on_cpu else [comm.get_local_rank()]
            # Statistics are summed by the losses themselves, and those of batch normalisation
            # averaged where they matter: broadcasting in every step would only cost time.
            model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        self._trainer = StepTrainer(
            model,
            loader,
            optimizer,
            accumulation_steps=cfg.SOLVER.LT.ACCUMULATION_STEPS,
            amp=cfg.SOLVER.AMP.ENABLED,
            max_grad_norm=max_grad_norm(cfg),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = LongTailCheckpointer(
            model, cfg.OUTPUT_DIR, loss=cfg.MODEL.LT.LOSS.NAME, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._state_of_ranks: list[dict] = []
        self._rng_to_restore: dict | None = None
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue the last checkpoint of ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``.

        Weights of another class number are taken where they fit when a new training starts from
        ``MODEL.WEIGHTS`` (Detectron2 lists the rest), and are an error on resume. The state of
        the loss (statistics, noise, progress) is kept on resume and starts from zero otherwise.
        """
        found = resume and self.checkpointer.has_checkpoint()
        self.checkpointer.strict = found
        node = self.cfg.MODEL.LT
        if found or not node.FIRST_STAGE:
            super().resume_or_load(resume=found)
        if found:
            logger.info("Resuming after iteration %d", self.iter)
            drop_lines_from(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter)
            return
        if resume:
            logger.warning("--resume: no checkpoint in %s, starting anew", self.cfg.OUTPUT_DIR)
        if node.FIRST_STAGE:
            if self.cfg.MODEL.WEIGHTS:
                logger.info(
                    "MODEL.WEIGHTS %s is not read: MODEL.LT.FIRST_STAGE is set, and what starts "
                    "anew starts at random.",
                    self.cfg.MODEL.WEIGHTS,
                )
            load_first_stage(self.checkpointer.model, node.FIRST_STAGE, node.START_ANEW)
        elif node.BACKBONE_WEIGHTS:
            load_backbone(self.checkpointer.model, node.BACKBONE_WEIGHTS)
            report_backbone_differences(self.cfg, node.BACKBONE_WEIGHTS)
        set_aside_results(self.cfg.OUTPUT_DIR)
        if reset_run_state(self.model):
            logger.warning(
                "The state of the loss (statistics, noise, progress) in MODEL.WEIGHTS %s is that "
                "of another run: all start from zero. To continue that run use --resume.",
                self.cfg.MODEL.WEIGHTS,
            )

    def train(self):
        """Run training; results of the last evaluation on rank 0."""
        if self._rng_to_restore is not None:
            set_rng_state(self._rng_to_restore)
            self._rng_to_restore = None
        super().train()
        return getattr(self, "_last_eval_results", None)

    def run_step(self) -> None:
        """One optimiser step."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def before_save(self) -> None:
        """Bring all that belongs to a checkpoint to rank 0; call it on every rank."""
        self._trainer.flush()  # a run with a loss of NaN stops before it is saved
        check_ranks_agree(self.model)
        average_norm_statistics(self.model)
        # Ranks differ in the place in the data too: groups of aspect ratio fill unevenly.
        own = {"rng": get_rng_state(), "data_loader": self._trainer.data_loader.state_dict()}
        self._state_of_ranks = comm.gather(own)

    def state_dict(self) -> dict:
        """All but the model."""
        state = TrainerBase.state_dict(self)
        state["_trainer"] = self._trainer.state_dict()
        state["ranks"] = self._state_of_ranks
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Inverse of :meth:`state_dict`; the random state is set when training starts."""
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        states = state_dict.get("ranks", [])
        if states:  # it says itself whether another number of ranks can go on from there
            own = states[comm.get_rank() % len(states)]["data_loader"]
            self._trainer.data_loader.load_state_dict(own)
        if len(states) == comm.get_world_size():
            self._rng_to_restore = states[comm.get_rank()]["rng"]
        else:
            logger.warning(
                "The checkpoint holds the random state of %d ranks, this run has %d: it goes "
                "on with fresh random numbers.",
                len(states),
                comm.get_world_size(),
            )

    def build_hooks(self) -> list:
        """Timing, schedule, statistics, checkpoints, evaluation, writers; in this order."""
        cfg = self.cfg
        ret = [hooks.IterationTimer(), hooks.LRScheduler()]
        if scheduled_losses(self.model):
            ret.append(ProgressHook(self.model))
        stats = named_grad_stats(self.model)
        stats.pop("sem_seg", None)  # names and counts are those of the boxes
        if stats and comm.is_main_process():
            ret.append(
                GradientStatisticsHook(
                    stats,
                    names=self.class_counts.names,
                    groups=self.class_counts.groups,
                    counts=getattr(self.class_counts, task_of(cfg).units[0]),
                    unit=task_of(cfg).units[0],
                    task=task_of(cfg).name,
                    output_dir=cfg.OUTPUT_DIR,
                    file_period=max(1, cfg.SOLVER.MAX_ITER // _STATISTICS_LINES),
                )
            )
        # Before the evaluation: if that fails, the weights are safe.
        ret.append(CheckpointHook(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        ret.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            if cfg.TEST.LT.BEST_METRIC:
                ret.append(
                    BestCheckpointHook(
                        self.checkpointer,
                        cfg.TEST.LT.BEST_METRIC,
                        keep_results=lambda: keep_best_records(cfg),
                    )
                )
            ret.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return ret

    def build_writers(self) -> list:
        """Terminal, ``metrics.json``, TensorBoard."""
        return build_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def _evaluate(self):
        average_norm_statistics(self.model)
        # Test loaders draw from the global generator; training goes on as if they had not.
        with preserved_rng():
            self._last_eval_results = evaluate(
                self.cfg,
                self.model,
                self.class_counts,
                iteration=min(self.iter + 1, self.max_iter),
                config_file=self.config_file,
                seconds_per_iteration=self._seconds_per_iteration(),
            )
        return self._last_eval_results

    def _seconds_per_iteration(self) -> float | None:
        """Median since this process started, evaluations not counted; None before the first."""
        times = self.storage.histories().get("time")
        return None if times is None else times.median(window_size=len(times.values()))

    @classmethod
    def build_optimizer(cls, cfg, model):
        """Detectron2's; with ``SOLVER.LT.CLASSIFIER_LR_FACTOR`` the classifier's rate differs."""
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError(
                f"MODEL.LT.FREEZE {tuple(cfg.MODEL.LT.FREEZE)} leaves nothing to train"
            )
        if max_grad_norm(cfg) is not None:  # not a kind that Detectron2 knows
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = super().build_optimizer(cfg, model)
        scale_learning_rate(optimizer, model, cfg.SOLVER.LT.CLASSIFIER_LR_FACTOR)
        return optimizer

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        """See :func:`lt_det.engine.optimizer.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        """See :func:`lt_det.data.build.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str, done: Collection[int] = ()):
        """See :func:`lt_det.data.build.build_test_loader`."""
        return build_test_loader(cfg, dataset_name, done)

    @classmethod
    def test(cls, cfg, model, evaluators: Sequence[DatasetEvaluator], *, resume: bool = False):
        """As ``DefaultTrainer.test``, with masks inside boxes where the evaluator takes them.

        Args:
            cfg: prepared.
            model: on its device.
            evaluators: one of each ``DATASETS.TEST``.
            resume: leave out the images whose predictions a killed evaluation has left.
        """
        results = OrderedDict()
        for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
            done = resume_predictions(evaluator) if resume else ()
            if done:
                logger.info("%s: the predictions for %d images are there", name, len(done))
            loader = cls.build_test_loader(cfg, name, done)
            results[name] = inference_on_dataset(model_for(evaluator, model), loader, evaluator)
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return results if len(results) != 1 else next(iter(results.values()))


def evaluate_checkpoint(
    cfg,
    class_counts: ClassCounts | None,
    *,
    resume: bool,
    before_writing: Callable[[], None],
    config_file: str | None = None,
) -> dict:
    """Evaluate ``MODEL.WEIGHTS``, or with `resume` the last checkpoint of ``OUTPUT_DIR``.

    With `resume`, images whose predictions an evaluation of the same weights and configuration
    has left in ``OUTPUT_DIR`` are not processed again.

    Args:
        cfg: prepared.
        class_counts: of the training set, None if it is not at hand.
        resume: see above.
        before_writing: called once it is clear that there is something to evaluate.
        config_file: for the result records.

    Raises:
        ConfigError: there are no weights; evaluating random ones is never meant.
        CheckpointError: they do not fit.
    """
    last = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if not cfg.MODEL.WEIGHTS and not (resume and os.path.exists(last)):
        raise ConfigError(
            "--eval-only needs weights: give MODEL.WEIGHTS /path/model_final.pth, or --resume to "
            f"take the last checkpoint of OUTPUT_DIR {cfg.OUTPUT_DIR}"
        )
    before_writing()
    model = LongTailTrainer.build_model(cfg)
    checkpointer = LongTailCheckpointer(
        model, cfg.OUTPUT_DIR, loss=cfg.MODEL.LT.LOSS.NAME, strict=True
    )
    last = resume and checkpointer.has_checkpoint()
    weights = checkpointer.get_checkpoint_file() if last else cfg.MODEL.WEIGHTS
    checkpointer.load(weights, checkpointables=[])
    return evaluate(
        cfg, model, class_counts, weights=weights, config_file=config_file, resume=resume
    )


def evaluate(
    cfg,
    model: torch.nn.Module,
    class_counts: ClassCounts | None,
    *,
    iteration: int | None = None,
    weights: str | None = None,
    config_file: str | None = None,
    seconds_per_iteration: float | None = None,
    resume: bool = False,
) -> dict:
    """Evaluate `model` on every ``DATASETS.TEST`` and write the result records.

    Args:
        cfg: prepared.
        model: on its device; in either mode.
        class_counts: of the training set, None if it is not at hand.
        iteration: optimiser steps behind the weights, for the record.
        weights: checkpoint they come from, for the record.
        config_file: for the record.
        seconds_per_iteration: of the training, for the record.
        resume: see :meth:`LongTailTrainer.test`.

    Returns:
        Nested results as ``DefaultTrainer.test`` gives them; empty on ranks other than 0.
    """
    task = task_of(cfg)
    ended = iteration == cfg.SOLVER.MAX_ITER
    evaluators = [task.evaluator(cfg, n, class_counts, model, weights) for n in cfg.DATASETS.TEST]
    results = LongTailTrainer.test(cfg, model, evaluators, resume=resume)
    if comm.is_main_process():
        for evaluator in evaluators:
            record = add_run_info(
                evaluator.record,
                iteration=iteration,
                seed=cfg.SEED,
                config=config_file,
                weights=weights,
                counts_fingerprint=class_counts.fingerprint if class_counts else None,
                # Which epoch a figure is of matters where publications take the best one. Of
                # weights from a file nothing is known.
                selection=LAST if ended and task is not Detection else None,
                config_hash=config_hash(cfg),
                loss=cfg.MODEL.LT.LOSS.NAME,
                calibration=_calibration(cfg),
                seconds_per_iteration=seconds_per_iteration,
            )
            if cfg.TEST.LT.BOOTSTRAP:
                record = _with_intervals(cfg, record)
            write_record(record_path(cfg.OUTPUT_DIR, record), record)
    return results


def _calibration(cfg) -> str | None:
    """Name and strength of what corrects the scores at inference; None: nothing."""
    node = cfg.MODEL.LT.CALIBRATION
    return f"{node.NAME} {node.STRENGTH:g}" if node.NAME else None


def _with_intervals(cfg, record: dict) -> dict:
    """The record with confidence intervals, from the files that its evaluation has left."""
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", record["dataset"])
    try:
        images = read_images_of_record(folder, record)
    except MissingFileError as error:
        logger.warning("No confidence intervals: %s", error)
        return record
    groups = record["per_class"].get("group")
    intervals = record_intervals(images, groups, resamples=cfg.TEST.LT.BOOTSTRAP)
    return {**record, "intervals": intervals}


def keep_best_records(cfg) -> None:
    """Keep the records of the evaluation that was the best so far, in files of their own."""
    chosen_on = cfg.TEST.LT.BEST_METRIC.rsplit("/", 2)[0] if len(cfg.DATASETS.TEST) > 1 else ""
    for name in cfg.DATASETS.TEST:
        path = os.path.join(cfg.OUTPUT_DIR, "results", f"{name}.json")
        record = read_record(path)
        record["run"]["selection"] = best_on(chosen_on or name)
        write_record(record_path(cfg.OUTPUT_DIR, record), record)
