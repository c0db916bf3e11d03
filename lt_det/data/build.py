"""Loaders for training and testing."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.data import build_detection_test_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from lt_det.data.datasets import get_records
from lt_det.data.mappers import LongTailDatasetMapper
from lt_det.data.records import Records, as_records, drop_unannotated, join_records
from lt_det.data.samplers import GroupedBatchSampler, SampleKey, aspect_ratio_groups
from lt_det.errors import ConfigError, DataError
from lt_det.registry import unknown_name

logger = logging.getLogger(__name__)

BAD_IMAGE_CHOICES = ("error", "skip")
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


class TrainLoader:
    """Infinite iterable of batches (lists of mapped samples) of this rank.

    What batch number k holds, augmentation included, depends on the seed, the rank and k alone,
    not on the number of loader workers. The state is the number of batches handed out, so what
    workers had prefetched when a run died is not lost.

    Args:
        dataset: maps a :class:`SampleKey` and a seed to a sample, see :class:`SeededDataset`.
        make_sampler: seed -> stream of image indices of this rank.
        batch_size: images per batch on this rank.
        groups: see :class:`GroupedBatchSampler`.
        num_workers: loader processes; 0 loads in this process.
        seed: of the order and of the augmentation, the same on every rank.
        order: what makes the stream, in words; another one cannot be continued.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        *,
        make_sampler: Callable[[int], Sampler],
        batch_size: int,
        groups: np.ndarray | None,
        num_workers: int,
        seed: int,
        order: str = "",
    ):
        self.order = order
        self.dataset = dataset
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.groups = groups
        self.num_workers = num_workers
        self.seed = seed
        self.batches = 0

    def __iter__(self) -> Iterator[list[dict]]:
        self.dataset.seed = self.seed
        sampler = GroupedBatchSampler(
            self.make_sampler(self.seed), self.batch_size, groups=self.groups, skip=self.batches
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=list,
            # A generator of its own: the default one is the model's, and drawing the workers'
            # base seed from it would make a resumed run differ.
            generator=torch.Generator().manual_seed(self.seed),
        )
        for batch in loader:
            self.batches += 1
            yield batch

    def state_dict(self) -> dict:
        """Where the stream is, and what it was cut from."""
        return {"seed": self.seed, "batches": self.batches, **self._shape()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from there, at the next ``iter()``.

        The seed is the checkpoint's. With another number of images, ranks or images per batch,
        or another sampler, the old order has no meaning; then a new one starts, and a warning
        says so.
        """
        stored = {key: state.get(key) for key in self._shape()}
        if stored == self._shape():
            self.seed, self.batches = state["seed"], state["batches"]
            return
        logger.warning(
            "The order of images starts anew: the checkpoint was made with %s, this run has %s.",
            stored,
            self._shape(),
        )
        # Another seed than the one whose first epochs were already seen.
        self.seed = state["seed"] + state["batches"]

    def _shape(self) -> dict:
        return {
            "num_images": len(self.dataset),
            "batch_size": self.batch_size,
            "world_size": comm.get_world_size(),
            "order": self.order,
        }


class SeededDataset(Dataset):
    """Maps records to samples with randomness that depends on the sample's position alone.

    Args:
        records: indexable, of records.
        mapper: record -> sample; may draw from numpy's, Python's and torch's generators.
        bad_image: "error" lets a DataError of the mapper through; "skip" takes the next record
            instead, and counts.
        rank: of this process.
    """

    # Bad images in a row before "skip" gives up: then it is not a few broken files but a wrong
    # folder.
    max_skips = 20

    def __init__(self, records, mapper: Callable, *, bad_image: str = "error", rank: int = 0):
        check_bad_image(bad_image)
        self.records, self.mapper, self.bad_image, self.rank = records, mapper, bad_image, rank
        self.seed = 0
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> dict:
        with seeded_random(self.seed, self.rank, key.position):
            for offset in range(self.max_skips):
                try:
                    return self.mapper(self.records[(key.index + offset) % len(self)])
                except DataError as error:
                    if self.bad_image == "error":
                        raise
                    self.skipped += 1
                    logger.warning("skipped bad image number %d: %s", self.skipped, error)
        raise DataError(
            f"{self.max_skips} images in a row cannot be used; is the image folder right?"
        )


@contextlib.contextmanager
def seeded_random(*key: int):
    """Seed numpy's, Python's and torch's global generators from `key`; restore them after."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    words = np.random.SeedSequence(key).generate_state(4)
    with torch.random.fork_rng(devices=[]):
        np.random.seed(words[:2])
        random.seed(int(words[2]))
        torch.manual_seed(int(words[3]))
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def build_train_loader(cfg, *, mapper: Callable | None = None) -> TrainLoader:
    """The training loader of ``DATASETS.TRAIN``.

    Reads ``DATALOADER.{SAMPLER_TRAIN, REPEAT_THRESHOLD, FILTER_EMPTY_ANNOTATIONS,
    ASPECT_RATIO_GROUPING, NUM_WORKERS, LT.BAD_IMAGE}``, ``SOLVER.IMS_PER_BATCH``,
    ``SOLVER.LT.ACCUMULATION_STEPS`` and ``SEED`` (negative: drawn, the same on every rank).

    Raises:
        ConfigError: unknown sampler, images per batch that cannot be divided, masks in a format
            that ``INPUT.MASK_FORMAT`` does not allow.
        DataError: no image is left.
    """
    records = as_records(training_records(cfg))
    if cfg.MODEL.LT.FEDERATED.MODE == "annotated" and not records.has_image_lists():
        logger.warning(
            "MODEL.LT.FEDERATED.MODE is 'annotated' but no image of DATASETS.TRAIN has LVIS's "
            "lists of classes: all classes take part everywhere, as with ''."
        )
    dataset = SeededDataset(
        records,
        mapper or LongTailDatasetMapper(cfg, is_train=True),
        bad_image=cfg.DATALOADER.LT.BAD_IMAGE,
        rank=comm.get_rank(),
    )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    return TrainLoader(
        dataset,
        make_sampler=index_sampler(cfg, records),
        batch_size=images_per_pass(cfg),
        groups=aspect_ratio_groups(records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=seed,
        order=describe_order(cfg),
    )


def build_test_loader(cfg, dataset_name: str):
    """Detectron2's loader for one test set: every image once, over all ranks, in order."""
    return build_detection_test_loader(
        dataset=get_records(dataset_name),
        mapper=LongTailDatasetMapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def training_records(cfg) -> Records:
    """Records of all ``DATASETS.TRAIN``, without images that have nothing to learn from."""
    records = join_records([get_records(name) for name in cfg.DATASETS.TRAIN])
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = drop_unannotated(records)
    if not len(records):
        raise DataError(
            f"no image with annotations in DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}"
        )
    if cfg.MODEL.MASK_ON:
        records.check_masks(cfg.INPUT.MASK_FORMAT)
    return records


def describe_order(cfg) -> str:
    """Sampler and grouping of `cfg` in words."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "RepeatFactorTrainingSampler":
        name += f" {cfg.DATALOADER.REPEAT_THRESHOLD:g}"
    return name + (", grouped by aspect ratio" if cfg.DATALOADER.ASPECT_RATIO_GROUPING else "")


def check_loading(cfg) -> None:
    """Raise a ConfigError for values that only the training loader would find wrong."""
    check_bad_image(cfg.DATALOADER.LT.BAD_IMAGE)
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in SAMPLERS:
        raise ConfigError(_unknown_sampler(name))


def _unknown_sampler(name: str) -> str:
    return unknown_name("sampler", name, SAMPLERS, "DATALOADER.SAMPLER_TRAIN")


def check_bad_image(value: str) -> None:
    """Raise a ConfigError unless `value` is one that ``DATALOADER.LT.BAD_IMAGE`` may have."""
    if value not in BAD_IMAGE_CHOICES:
        raise ConfigError(
            f"DATALOADER.LT.BAD_IMAGE is {value!r}; accepted are {', '.join(BAD_IMAGE_CHOICES)}"
        )


def index_sampler(cfg, records: list[dict]) -> Callable[[int], Sampler]:
    """From a seed to this rank's stream of image indices, for ``DATALOADER.SAMPLER_TRAIN``."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(len(records), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        logger.info(
            "Repeat factors: min %.2f, median %.2f, max %.2f; an epoch of %d images becomes %.0f.",
            factors.min(),
            factors.median(),
            factors.max(),
            len(records),
            factors.sum(),
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    raise ConfigError(_unknown_sampler(name))


def images_per_pass(cfg, ranks: int | None = None) -> int:
    """Images of one forward pass on one rank.

    Args:
        cfg: prepared or not.
        ranks: None = those of this run.

    Raises:
        ConfigError: ``SOLVER.IMS_PER_BATCH`` does not divide over ranks and passes.
    """
    total, passes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.LT.ACCUMULATION_STEPS
    ranks = ranks or comm.get_world_size()
    if passes < 1 or total < 1 or total % (passes * ranks):
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {total} cannot be divided over {ranks} ranks and "
            f"SOLVER.LT.ACCUMULATION_STEPS {passes}"
        )
    return total // (passes * ranks)
