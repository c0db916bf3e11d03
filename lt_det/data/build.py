"""Loaders for training and testing."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
import torch
from detectron2.data import MapDataset, MetadataCatalog, build_detection_test_loader
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from lt_det.data.class_sets import (
    ClassSets,
    expected_per_class,
)
from lt_det.data.datasets import get_records
from lt_det.data.datasets.file_cache import default_cache_dir
from lt_det.data.datasets.image_sets import find_image_set, image_records
from lt_det.data.datasets.sem_seg_sets import find_sem_seg_set, sem_seg_records
from lt_det.data.epochs import EpochOrder
from lt_det.data.image_cache import CachedImageDataset, load_image_cache
from lt_det.data.image_mapper import ImageLabelMapper
from lt_det.data.image_records import ImageListRecords, check_image_records
from lt_det.data.imbalance import imbalance_factor
from lt_det.data.mappers import LongTailDatasetMapper
from lt_det.data.records import Records, as_records, drop_unannotated, join_records
from lt_det.data.rules import SamplingRule, build_rule, rule_parameters
from lt_det.data.rules.base import PARAMS_KEY
from lt_det.data.samplers import (
    GroupedBatchSampler,
    LongTailSampler,
    SampleKey,
    aspect_ratio_groups,
)
from lt_det.data.sem_seg_counts import (
    check_group_by,
    check_sem_seg_classes,
    sem_seg_training_data,
)
from lt_det.data.sem_seg_mapper import LongTailSemSegMapper
from lt_det.errors import ConfigError, DataError
from lt_det.registry import unknown_name

logger = logging.getLogger(__name__)

BAD_IMAGE_CHOICES = ("error", "skip")
# Detectron2's names for the rules `instance` and `sqrt`, and the one for any rule.
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "LongTailSampler")


class TrainLoader:
    """Infinite iterable of batches (lists of mapped samples) of this rank.

    What a batch holds, augmentation included, depends on the seed, the rank and the place in
    the stream alone, not on the number of loader workers. The state is that after the last
    batch handed out, so what workers had prefetched when a run died is not lost.

    Args:
        dataset: maps a :class:`SampleKey` and a seed to a sample, see :class:`SeededDataset`.
        order: what an epoch consists of.
        batch_size: images per batch on this rank.
        groups: see :class:`GroupedBatchSampler`.
        num_workers: loader processes; 0 loads in this process.
        seed: of the order and of the augmentation, the same on every rank.
        description: what makes the stream, in words; another one cannot be continued.
        fingerprint: of the data that `order` was made from.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        *,
        order: EpochOrder,
        batch_size: int,
        groups: np.ndarray | None,
        num_workers: int,
        seed: int,
        description: str = "",
        fingerprint: str = "",
    ):
        self.dataset = dataset
        self.order = order
        self.batch_size = batch_size
        self.groups = groups
        self.num_workers = num_workers
        self.seed = seed
        self.description = description
        self.fingerprint = fingerprint
        self.state = {"epoch": 0, "position": 0, "begun": []}

    def __iter__(self) -> Iterator[list[dict]]:
        self.dataset.seed = self.seed
        stream = LongTailSampler(
            self.order,
            seed=self.seed,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            start=(self.state["epoch"], self.state["position"]),
        )
        begun = [SampleKey(*key) for key in self.state["begun"]]
        sampler = GroupedBatchSampler(stream, self.batch_size, groups=self.groups, begun=begun)
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
            self.state = sampler.states.popleft()
            yield batch

    def state_dict(self) -> dict:
        """Where this rank's stream is, and what it was cut from."""
        return {"seed": self.seed, **self.state, **self._shape()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from there, at the next ``iter()``.

        The seed is the checkpoint's. With other data, another number of ranks or images per
        batch, or another sampler, the old order has no meaning; then a new one starts, in the
        same epoch, and a warning says so.
        """
        stored = {key: state.get(key) for key in self._shape()}
        if stored == self._shape():
            self.seed = state["seed"]
            self.state = {key: state[key] for key in self.state}
            return
        logger.warning(
            "The order of images starts anew: the checkpoint was made with %s, this run has %s.",
            stored,
            self._shape(),
        )
        # Another seed than the one whose first epochs were already seen; the same epoch, because
        # rules may change from epoch to epoch.
        self.seed = state["seed"] + 1
        self.state = {**self.state, "epoch": state.get("epoch", 0)}

    def _shape(self) -> dict:
        return {
            "num_images": len(self.dataset),
            "batch_size": self.batch_size,
            "world_size": comm.get_world_size(),
            "order": self.description,
            "data": self.fingerprint,
        }


class SeededDataset(Dataset):
    """Maps records to samples with randomness that depends on the place in the stream alone.

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
        with seeded_random(self.seed, self.rank, key.epoch, key.position):
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
    """Seed numpy's, Python's and torch's CPU generators from `key`; restore them after."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    # Not torch.manual_seed, which would seed the generators of CUDA, too: they are the model's.
    torch_generator = torch.default_generator
    torch_state = torch_generator.get_state()
    words = np.random.SeedSequence(key).generate_state(4)
    np.random.seed(words[:2])
    random.seed(int(words[2]))
    torch_generator.manual_seed(int(words[3]))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        torch_generator.set_state(torch_state)


def build_train_loader(cfg, *, mapper: Callable | None = None) -> TrainLoader:
    """The training loader of ``DATASETS.TRAIN``.

    Reads ``DATALOADER.{SAMPLER_TRAIN, REPEAT_THRESHOLD, FILTER_EMPTY_ANNOTATIONS,
    ASPECT_RATIO_GROUPING, NUM_WORKERS, LT}``, ``SOLVER.{IMS_PER_BATCH, MAX_ITER,
    LT.ACCUMULATION_STEPS}`` and ``SEED`` (negative: drawn, the same on every rank).

    Raises:
        ConfigError: unknown sampler, images per batch that cannot be divided, masks in a format
            that ``INPUT.MASK_FORMAT`` does not allow.
        DataError: no image is left.
    """
    if any(map(find_image_set, cfg.DATASETS.TRAIN)):
        return _build_image_train_loader(cfg)
    if any(map(find_sem_seg_set, cfg.DATASETS.TRAIN)):
        return _build_sem_seg_train_loader(cfg, mapper)
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
    groups = aspect_ratio_groups(records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None
    return train_loader(cfg, dataset, class_sets(cfg, records), groups)


def train_loader(
    cfg, dataset: Dataset, sets: ClassSets, groups: np.ndarray | None = None
) -> TrainLoader:
    """The loader over `dataset` in the order of ``DATALOADER.SAMPLER_TRAIN``.

    Args:
        cfg: see :func:`build_train_loader`.
        dataset: N images.
        sets: their classes.
        groups: see :class:`GroupedBatchSampler`.

    Raises:
        ConfigError: unknown sampler or rule, or images per batch that cannot be divided.
    """
    return TrainLoader(
        dataset,
        order=epoch_order(cfg, sets),
        batch_size=images_per_pass(cfg),
        groups=groups,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        description=describe_order(cfg),
        fingerprint=sets_fingerprint(sets),
    )


def _build_image_train_loader(cfg) -> TrainLoader:
    """The training loader of image classification."""
    if len(cfg.DATASETS.TRAIN) > 1:
        raise ConfigError(
            f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: image classification trains on one "
            "list; join the files"
        )
    records = image_records(cfg.DATASETS.TRAIN[0])
    num_classes = cfg.MODEL.LT.NUM_CLASSES
    check_image_records(records, num_classes, may_be_empty=True)  # empty ones are reported before
    dataset = image_dataset(cfg, records, is_train=True)
    return train_loader(cfg, dataset, records.class_sets(num_classes))


def _build_sem_seg_train_loader(cfg, mapper: Callable | None = None) -> TrainLoader:
    """The training loader of semantic segmentation."""
    names = cfg.DATASETS.TRAIN
    for name in names:
        if find_sem_seg_set(name) is None:
            raise ConfigError(
                f"DATASETS.TRAIN {', '.join(names)}: {name!r} is no set of semantic segmentation, "
                "but others are"
            )
    records, sets = sem_seg_training_data(
        names,
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        drop_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        cache_dir=cfg.DATASETS.LT.CACHE_DIR,
    )
    if not len(records):
        raise DataError(f"no image with a labelled pixel in DATASETS.TRAIN {', '.join(names)}")
    dataset = SeededDataset(
        records,
        mapper or LongTailSemSegMapper(cfg, is_train=True),
        bad_image=cfg.DATALOADER.LT.BAD_IMAGE,
        rank=comm.get_rank(),
    )
    return train_loader(cfg, dataset, sets)


def image_dataset(cfg, records: ImageListRecords, *, is_train: bool) -> Dataset:
    """Samples of image classification, from memory under ``AUGMENT`` "cifar"."""
    node = cfg.DATALOADER.LT.IMAGE
    # A set to test on must be whole.
    skip_bad = is_train and cfg.DATALOADER.LT.BAD_IMAGE == "skip"
    mapper = ImageLabelMapper(cfg, is_train=is_train)  # checks the keys, too
    if node.AUGMENT == "cifar" and node.CACHE_MB > 0:
        cache = load_image_cache(
            records,
            cfg.DATASETS.LT.CACHE_DIR or default_cache_dir(),
            skip_bad=skip_bad,
            max_mb=node.CACHE_MB,
        )
        return CachedImageDataset(
            cache,
            records,
            is_train=is_train,
            pad=node.PAD,
            flip=node.FLIP,
            image_format=cfg.INPUT.FORMAT,
            rank=comm.get_rank(),
        )
    if is_train:
        return SeededDataset(
            records, mapper, bad_image=cfg.DATALOADER.LT.BAD_IMAGE, rank=comm.get_rank()
        )
    return MapDataset(records, mapper)


def build_test_loader(cfg, dataset_name: str, done: Collection[int] = ()):
    """Detectron2's loader for one test set: every image once, over all ranks, in order.

    Args:
        cfg: prepared.
        dataset_name: of ``DATASETS.TEST``.
        done: ids of images to leave out, of sets for detection.

    Returns:
        The loader; an empty list if no image is left.
    """
    if find_image_set(dataset_name):
        records = image_records(dataset_name)
        check_image_records(records, cfg.MODEL.LT.NUM_CLASSES, may_be_empty=True)
        return DataLoader(
            image_dataset(cfg, records, is_train=False),
            batch_size=cfg.DATALOADER.LT.IMAGE.TEST_BATCH,
            sampler=InferenceSampler(len(records)),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
        )
    if find_sem_seg_set(dataset_name):
        check_sem_seg_classes([dataset_name], cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        return build_detection_test_loader(
            dataset=sem_seg_records(dataset_name),
            mapper=LongTailSemSegMapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
    records = get_records(dataset_name)
    if done:
        left = [k for k, record in enumerate(records) if record["image_id"] not in done]
        if not left:
            return []
        records = records.select(np.array(left))
    return build_detection_test_loader(
        dataset=records,
        mapper=LongTailDatasetMapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def training_records(cfg) -> Records:
    """Records of all ``DATASETS.TRAIN``, without images that have nothing to learn from.

    Raises:
        DataError: no image is left, or an annotation without a mask that needs one.
        ConfigError: a mask in a format that ``INPUT.MASK_FORMAT`` does not allow.
    """
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


def sampling_rule(cfg) -> tuple[str, dict, str]:
    """Name of the rule that ``DATALOADER.SAMPLER_TRAIN`` stands for, its parameters and form.

    Raises:
        ConfigError: unknown sampler.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return "instance", {}, "repeat"
    if name == "RepeatFactorTrainingSampler":
        # REPEAT_SQRT came with a later Detectron2.
        exponent = 0.5 if cfg.DATALOADER.get("REPEAT_SQRT", True) else 1.0
        threshold = cfg.DATALOADER.REPEAT_THRESHOLD
        if threshold == 0:  # Detectron2's default: every factor is 1
            return "instance", {}, "repeat"
        return "power", {"threshold": threshold, "exponent": exponent}, "repeat"
    if name == "LongTailSampler":
        node = cfg.DATALOADER.LT.SAMPLER
        return node.RULE, dict(node.PARAMS), node.FORM
    raise ConfigError(unknown_name("sampler", name, SAMPLERS, "DATALOADER.SAMPLER_TRAIN"))


def build_sampling_rule(cfg) -> tuple[SamplingRule, str]:
    """The rule of `cfg` and its form.

    Raises:
        ConfigError: unknown sampler, rule, parameter or form, or a value out of range.
    """
    name, params, form = sampling_rule(cfg)
    ours = cfg.DATALOADER.SAMPLER_TRAIN == "LongTailSampler"
    rule = build_rule(name, params, key=PARAMS_KEY if ours else "DATALOADER.REPEAT_THRESHOLD")
    rule.check_form(form)
    return rule, form


def describe_order(cfg) -> str:
    """What the order of images follows from, beside seed and data: equal texts, equal order."""
    name, params, form = sampling_rule(cfg)
    resolved = {**rule_parameters(name), **params}
    words = [name, *(f"{key} {_in_words(resolved[key])}" for key in sorted(resolved)), form]
    if name == "progressive" and not resolved["epochs"]:
        words.append(f"over {training_images(cfg)} images")
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    if grouped and not any(map(find_sem_seg_set, cfg.DATASETS.TRAIN)):
        words.append("grouped by aspect ratio")
    return ", ".join(words)


def _in_words(value: object) -> str:
    """Equal numbers read alike, whether whole or not."""
    if isinstance(value, Mapping):
        return "(" + " ".join(f"{k} {_in_words(value[k])}" for k in sorted(value)) + ")"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def training_images(cfg) -> int:
    """Images that the whole training sees, repeated ones included."""
    return cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH


def sets_fingerprint(sets: ClassSets) -> str:
    """SHA-256 hex digest of the classes of every image."""
    digest = hashlib.sha256(np.ascontiguousarray(sets.offsets))
    digest.update(np.ascontiguousarray(sets.classes))
    return digest.hexdigest()


def check_loading(cfg) -> None:
    """Raise a ConfigError for values that only the training loader would find wrong."""
    check_bad_image(cfg.DATALOADER.LT.BAD_IMAGE)
    build_sampling_rule(cfg)
    if any(find_image_set(name) for name in cfg.DATASETS.TRAIN):
        ImageLabelMapper(cfg, is_train=True)
        node = cfg.DATALOADER.LT.IMAGE
        for key, least in (("TEST_BATCH", 1), ("CACHE_MB", 0)):
            if node[key] < least:
                raise ConfigError(
                    f"DATALOADER.LT.IMAGE.{key} is {node[key]}; it is at least {least}"
                )
    elif any(find_sem_seg_set(name) for name in cfg.DATASETS.TRAIN):
        LongTailSemSegMapper(cfg, is_train=True)
        check_group_by(cfg.DATASETS.LT.SEM_SEG.GROUP_BY)


def check_bad_image(value: str) -> None:
    """Raise a ConfigError unless `value` is one that ``DATALOADER.LT.BAD_IMAGE`` may have."""
    if value not in BAD_IMAGE_CHOICES:
        raise ConfigError(
            f"DATALOADER.LT.BAD_IMAGE is {value!r}; accepted are {', '.join(BAD_IMAGE_CHOICES)}"
        )


def class_sets(cfg, records: Records) -> ClassSets:
    """Classes of each image of the training set.

    Raises:
        DataError: a class id beyond the class list.
    """
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    return records.class_sets(len(names) if names else 1 + records.pairs()[1].max(initial=0))


def epoch_order(cfg, sets: ClassSets) -> EpochOrder:
    """What an epoch consists of under ``DATALOADER.SAMPLER_TRAIN``.

    Raises:
        ConfigError: see :func:`build_sampling_rule`.
        DataError: no image.
    """
    rule, form = build_sampling_rule(cfg)
    order = rule.order(sets, form=form, total_images=training_images(cfg))
    if rule.name != "instance" and len(sets.classes):
        _describe_epochs(cfg, order, sets)
    return order


# Beyond the last epoch of any training: rules that change have come to their end.
_LAST_EPOCH = 10**9


def _describe_epochs(cfg, order: EpochOrder, sets: ClassSets) -> None:
    """Log what a rule does; warn if it leaves the class distribution as it is."""
    before = imbalance_factor(sets.image_counts())
    repeats, last = order.expected(0), order.expected(_LAST_EPOCH)
    logger.info("Sampling of %d images by %s.", len(sets), describe_order(cfg))
    _describe_epoch("An epoch", repeats, sets, before)
    if not np.array_equal(repeats, last):
        _describe_epoch("In the end an epoch", last, sets, before)
    after = imbalance_factor(expected_per_class(sets, last))
    if after > 0.9 * before > 1:
        logger.warning(
            "Sampling by %s hardly changes how often classes come: the imbalance factor stays at "
            "%.1f. tools/preview_sampling.py shows what other rules would do.",
            *(describe_order(cfg), after),
        )


def _describe_epoch(what: str, repeats: np.ndarray, sets: ClassSets, before: float) -> None:
    logger.info(
        "%s has %.0f images; one comes %.2f to %.2f times (median %.2f); imbalance factor %.1f "
        "instead of %.1f.",
        *(what, repeats.sum(), repeats.min(), repeats.max(), np.median(repeats)),
        *(imbalance_factor(expected_per_class(sets, repeats)), before),
    )


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
