"""Loaders of semantic segmentation: reproducible from their position, with every rule."""

import itertools

import numpy as np
import pytest
import torch

from lt_det.data.build import (
    build_test_loader,
    build_train_loader,
    check_loading,
    describe_order,
    epoch_order,
    sets_fingerprint,
)
from lt_det.data.class_sets import class_sets_from_pairs
from lt_det.data.rules import SAMPLING_RULES
from lt_det.engine import load_config
from lt_det.errors import ConfigError, DataError
from tests.data.small_sem_seg import register_sem_seg, write_sem_seg

# Fifteen images: class 0 in all but the last, which has no label; class 1 in every third, class 2
# in one.
SET = {
    f"{k:02d}": [[1, 1, 2 if k % 3 == 0 else 1, 3 if k == 4 else 1]] * 2 if k < 14 else [[0] * 4]
    for k in range(15)
}
# (image, class) of those with a label.
CLASSES_OF_SET = [(k, 0) for k in range(14)] + [(k, 1) for k in range(0, 14, 3)] + [(4, 2)]


@pytest.fixture
def cfg(tmp_path):
    names = [
        register_sem_seg("a_train", write_sem_seg(tmp_path / "a", SET)),
        register_sem_seg("a_val", write_sem_seg(tmp_path / "val", SET, suffix=".bmp")),
    ]
    options = {
        "DATASETS.TRAIN": (names[0],),
        "DATASETS.TEST": (names[1],),
        "DATASETS.LT.CACHE_DIR": str(tmp_path / "cache"),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
        "SOLVER.IMS_PER_BATCH": 4,
        "DATALOADER.NUM_WORKERS": 0,
        "SEED": 7,
        "INPUT.MIN_SIZE_TRAIN": (8,),
        "INPUT.MIN_SIZE_TEST": 0,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": (8, 8),
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 0.9,
        "DATALOADER.LT.SEM_SEG.RATIO": (0.5, 2.0),
        "DATALOADER.LT.SEM_SEG.COLOR": True,
    }
    return load_config("", [str(x) for pair in options.items() for x in pair])


def take(loader, count):
    return [
        [(s["file_name"], s["image"], s["sem_seg"]) for s in batch]
        for batch in itertools.islice(loader, count)
    ]


def assert_same_batches(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(itertools.chain(*a), itertools.chain(*b), strict=True):
        assert x[0] == y[0] and torch.equal(x[1], y[1]) and torch.equal(x[2], y[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_where_its_state_says(cfg, workers):
    whole = take(build_train_loader(cfg), 9)
    cfg.DATALOADER.NUM_WORKERS = workers
    first = build_train_loader(cfg)
    assert_same_batches(take(first, 4), whole[:4])
    second = build_train_loader(cfg)
    second.load_state_dict(first.state_dict())
    assert_same_batches(take(second, 5), whole[4:])
    cfg.SEED = 8
    other = [x[0] for x in itertools.chain(*take(build_train_loader(cfg), 9))]
    assert other != [x[0] for x in itertools.chain(*whole)]


@pytest.mark.parametrize("keep", [False, True])
def test_images_without_a_labelled_pixel_are_left_out_if_they_should(cfg, keep):
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = not keep
    cfg.SOLVER.IMS_PER_BATCH = 1
    loader = build_train_loader(cfg)
    epoch = [x[0][-6:-4] for x in itertools.chain(*take(loader, len(loader.dataset)))]
    assert sorted(epoch) == [f"{k:02d}" for k in range(14 + keep)]


def test_images_with_rare_classes_come_more_often(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    repeats = build_train_loader(cfg).order.expected(0)
    # By the classes in the label maps: sqrt(1 / share of the images).
    shares = np.array([1.0, 5 / 14, 1 / 14])
    rarest = [2 if k == 4 else 1 if k % 3 == 0 else 0 for k in range(14)]
    np.testing.assert_allclose(repeats, np.sqrt(1 / shares)[rarest])


@pytest.mark.parametrize("rule", sorted(SAMPLING_RULES))
def test_every_rule_can_sample(cfg, rule):
    cfg.DATALOADER.SAMPLER_TRAIN = "LongTailSampler"
    cfg.DATALOADER.LT.SAMPLER.RULE = rule
    cfg.DATALOADER.LT.SAMPLER.FORM = "draw" if rule == "class_aware" else "repeat"
    sets = class_sets_from_pairs(*zip(*CLASSES_OF_SET, strict=True), 14, 3)
    expected, loader = epoch_order(cfg, sets), build_train_loader(cfg)
    for epoch in (0, 3):
        assert loader.order.expected(epoch).tolist() == expected.expected(epoch).tolist()
    assert loader.fingerprint == sets_fingerprint(sets)
    assert "aspect ratio" not in describe_order(cfg)


def test_several_sets_are_joined(cfg, tmp_path):
    plain = {"x": [[0, 0, 1, 255]], "y": [[2, 2, 2, 1]]}
    register_sem_seg("b", write_sem_seg(tmp_path / "b", plain), zero_is_unlabelled=False)
    cfg.DATASETS.TRAIN = ("a_train", "b")
    cfg.DATALOADER.LT.SEM_SEG.COLOR = False
    loader = build_train_loader(cfg)
    assert len(loader.dataset) == 16
    classes = {}
    for name, _, sem_seg in itertools.chain(*take(loader, 40)):
        classes.setdefault(name.split("images/")[1], set()).update(sem_seg.unique().tolist())
    # Each set in its own convention.
    assert classes["04.png"] == {0, 2} and classes["00.png"] == {0, 1}
    assert classes["x.png"] == {0, 1, 255} and classes["y.png"] == {1, 2}


def test_the_test_loader_gives_every_image_once_in_order(cfg):
    samples = list(build_test_loader(cfg, "a_val"))
    assert [len(batch) for batch in samples] == [1] * 15
    names = [batch[0]["file_name"] for batch in samples]
    assert [name[-6:] for name in names] == [f"{k:02d}.bmp" for k in range(15)]
    assert all("sem_seg" not in batch[0] for batch in samples)
    sample = samples[14][0]
    assert sample["image"].shape == (3, 4, 16) and (sample["height"], sample["width"]) == (4, 16)
    assert sample["zero_is_unlabelled"] is True
    assert sample["sem_seg_file_name"].endswith("val/labels/14.png")


def test_data_that_cannot_be_trained_on_are_errors(cfg, tmp_path):
    empty = write_sem_seg(tmp_path / "empty", {"x": [[0, 255]]})
    cfg.DATASETS.TRAIN = (register_sem_seg("empty", empty),)
    with pytest.raises(DataError, match="no image with a labelled pixel in DATASETS.TRAIN empty"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ("a_train", "lt_synthetic_train")
    with pytest.raises(ConfigError, match="'lt_synthetic_train' is no set of semantic"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = ("a_train",), 4
    for build in (build_train_loader, lambda c: build_test_loader(c, "a_val")):
        with pytest.raises(ConfigError, match="NUM_CLASSES is 4, but .* 'a_.*' has 3 cl"):
            build(cfg)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("DATALOADER.LT.SEM_SEG.RATIO", "(2.0, 0.5)", r"SEM_SEG.RATIO is \(2.0, 0.5\)"),
        ("INPUT.CROP.SIZE", "(0, 5)", r"INPUT.CROP.SIZE is \(0, 5\)"),
        ("DATASETS.LT.SEM_SEG.GROUP_BY", "size", "SEM_SEG.GROUP_BY is 'size'; accepted are pixels"),
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0", "SEM_SEG_HEAD.IGNORE_VALUE is 0"),
    ],
)
def test_values_that_only_the_loader_would_find_wrong(cfg, key, value, message):
    check_loading(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=message):
        check_loading(cfg)
