"""The training loader: reproducible from its position, whatever loads it."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.samplers import RepeatFactorTrainingSampler
from PIL import Image

from lt_det.data import register_from_config
from lt_det.data.build import (
    SeededDataset,
    TrainLoader,
    build_sampling_rule,
    build_test_loader,
    build_train_loader,
    class_sets,
    describe_order,
    epoch_order,
    images_per_pass,
    sampling_rule,
    seeded_random,
    sets_fingerprint,
    training_records,
)
from lt_det.data.class_sets import class_sets_from_labels, class_sets_from_pairs
from lt_det.data.epochs import EpochOrder
from lt_det.data.mappers import LongTailDatasetMapper
from lt_det.engine import load_config
from lt_det.errors import ConfigError, DataError

QUICK = "configs/quick/lvis_eqlv2.yaml"


@pytest.fixture
def cfg(tiny_options):
    cfg = load_config(QUICK, [*tiny_options, "DATALOADER.NUM_WORKERS", "0"])
    register_from_config(cfg)
    return cfg


def take(loader, count):
    """What a few batches hold: image ids, pixels and boxes."""
    return [
        [(s["image_id"], s["image"], s["instances"].gt_boxes.tensor) for s in batch]
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
    state = first.state_dict()
    # Four batches of four, though workers have prefetched more.
    assert state["epoch"] * 24 + state["position"] - len(state["begun"]) == 16
    second = build_train_loader(cfg)
    second.load_state_dict(state)
    assert_same_batches(take(second, 5), whole[4:])


def test_augmentation_varies_and_comes_from_the_seed(cfg):
    whole = take(build_train_loader(cfg), 20)
    seen = {}
    for image_id, pixels, _ in itertools.chain(*whole):
        seen.setdefault(image_id, []).append(pixels)
    # 80 samples of 24 images, two sizes, flip: some image came in two versions.
    assert any(
        not torch.equal(a, b)
        for v in seen.values()
        for a, b in itertools.pairwise(v)
        if a.shape == b.shape
    )
    cfg.SEED = 99
    other = take(build_train_loader(cfg), 20)
    assert [s[0] for b in whole for s in b] != [s[0] for b in other for s in b]


def test_loading_leaves_the_random_state_alone(cfg):
    loader = build_train_loader(cfg)
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    take(loader, 3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]


def test_a_state_of_another_set_starts_a_new_order_with_a_warning(cfg, caplog):
    loader = build_train_loader(cfg)
    state = {**loader.state_dict(), "epoch": 2, "position": 7, "num_images": 5}
    loader.load_state_dict(state)
    assert "order of images starts anew" in caplog.text
    # In the same epoch: rules may change from epoch to epoch.
    assert loader.state == {"epoch": 2, "position": 0, "begun": []}
    assert loader.seed == state["seed"] + 1


def test_another_sampler_cannot_continue_the_order(cfg, caplog):
    state = build_train_loader(cfg).state_dict()
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    build_train_loader(cfg).load_state_dict({**state, "epoch": 3})
    assert "threshold 0.5, repeat" in caplog.text and "starts anew" in caplog.text


def order_in_words(*options):
    return describe_order(load_config(QUICK, [*LONG_TAIL, *options]))


LONG_TAIL = ["DATALOADER.SAMPLER_TRAIN", "LongTailSampler", "DATALOADER.LT.SAMPLER.RULE", "cben"]
CAP, RULE = "DATALOADER.LT.SAMPLER.PARAMS.cap", "DATALOADER.LT.SAMPLER.RULE"


def test_the_description_of_an_order_says_all_that_changes_it_and_nothing_else():
    assert order_in_words(CAP, "100") == order_in_words(CAP, "100.0") == order_in_words()
    assert order_in_words(CAP, "10") != order_in_words()
    longer = ["SOLVER.MAX_ITER", "2000"]
    assert order_in_words(*longer) == order_in_words()
    progressive = [RULE, "progressive"]
    assert order_in_words(*progressive, *longer) != order_in_words(*progressive)
    epochs = [*progressive, "DATALOADER.LT.SAMPLER.PARAMS.epochs", "8"]
    assert order_in_words(*epochs, *longer) == order_in_words(*epochs)


def test_other_classes_of_as_many_images_are_other_data(cfg, caplog):
    state = {**build_train_loader(cfg).state_dict(), "epoch": 3}
    loader = build_train_loader(cfg)
    loader.fingerprint = sets_fingerprint(class_sets_from_labels([0] * 24, 9))
    loader.load_state_dict(state)
    assert "starts anew" in caplog.text


class InTurn(EpochOrder):
    """0, 1, 2, ..."""

    def __init__(self, size):
        self.num_images = size

    def draw(self, rng, epoch):
        return np.arange(self.num_images)


def loader_over(records, mapper, **kwargs):
    return TrainLoader(
        SeededDataset(records, mapper, **kwargs),
        order=InTurn(len(records)),
        batch_size=2,
        groups=None,
        num_workers=0,
        seed=0,
    )


def fails_on(bad):
    def mapper(record):
        if record in bad:
            raise DataError(f"cannot use image {record}")
        return record

    return mapper


def test_a_bad_image_stops_or_is_replaced_by_the_next_and_counted(caplog):
    with pytest.raises(DataError, match="image 3"):
        list(itertools.islice(loader_over(list(range(6)), fails_on({3})), 3))
    loader = loader_over(list(range(6)), fails_on({3, 4}), bad_image="skip")
    assert list(itertools.islice(loader, 3)) == [[0, 1], [2, 5], [5, 5]]
    assert loader.dataset.skipped == 3
    assert "skipped bad image number 3: cannot use image 4" in caplog.text


def test_many_bad_images_in_a_row_are_a_wrong_folder():
    loader = loader_over(list(range(50)), fails_on(set(range(50))), bad_image="skip")
    with pytest.raises(DataError, match="20 images in a row"):
        next(iter(loader))
    with pytest.raises(ConfigError, match="'ignore'.*error, skip"):
        SeededDataset([], None, bad_image="ignore")


def test_seeded_random_depends_on_every_part_of_its_key():
    def draw(*key):
        with seeded_random(*key):
            return np.random.rand(), random.random(), torch.rand(()).item()

    assert draw(1, 0, 5) == draw(1, 0, 5)
    draws = [draw(1, 0, 5), draw(2, 0, 5), draw(1, 1, 5), draw(1, 0, 6)]
    for values in zip(*draws, strict=True):
        assert len(set(values)) == 4


def test_test_loader_gives_every_image_once_in_order(cfg):
    ids = [sample["image_id"] for batch in build_test_loader(cfg, "tiny_val") for sample in batch]
    assert ids == sorted(set(ids)) and len(ids) == 6


def test_repeat_factors_repeat_images_of_rare_classes(cfg):
    records = training_records(cfg)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.5)
    order = epoch_order(cfg, class_sets(cfg, records))
    assert order.expected(0).max() > 1.5
    np.testing.assert_array_equal(order.expected(0), theirs.numpy())
    loader = build_train_loader(cfg)
    drawn = [image_id for batch in take(loader, 60) for image_id, _, _ in batch]
    ids = [r["image_id"] for r in records]
    composition = np.array([drawn.count(k) for k in ids])
    epochs = 240 / order.expected(0).sum()
    # Whole epochs but for the last; an image comes floor or ceiling of its factor in each.
    assert (composition >= np.floor(epochs) * np.floor(order.expected(0))).all()
    assert (composition <= np.ceil(epochs) * np.ceil(order.expected(0))).all()


SAMPLER_NODES = [
    (["DATALOADER.SAMPLER_TRAIN", "TrainingSampler"], ("instance", {}, "repeat")),
    (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], ("instance", {}, "repeat")),
    (
        [
            *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
            *("DATALOADER.REPEAT_THRESHOLD", "0.01"),
        ],
        ("power", {"threshold": 0.01, "exponent": 0.5}, "repeat"),
    ),
    (
        [
            *("DATALOADER.SAMPLER_TRAIN", "LongTailSampler", "DATALOADER.LT.SAMPLER.RULE", "cben"),
            *("DATALOADER.LT.SAMPLER.PARAMS.cap", "3", "DATALOADER.LT.SAMPLER.FORM", "draw"),
        ],
        ("cben", {"cap": 3}, "draw"),
    ),
]


@pytest.mark.parametrize("options,expected", SAMPLER_NODES)
def test_samplers_by_name(options, expected):
    assert sampling_rule(load_config(QUICK, options)) == expected


CBEN_FILE = (
    "DATALOADER:\n  SAMPLER_TRAIN: LongTailSampler\n"
    "  LT: {SAMPLER: {RULE: cben, PARAMS: {a: 0.999}}}\n"
)


def test_another_rule_on_the_command_line_leaves_the_files_parameters(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(CBEN_FILE)
    assert sampling_rule(load_config(str(config)))[:2] == ("cben", {"a": 0.999})
    options = ["DATALOADER.LT.SAMPLER.RULE", "sqrt"]
    assert sampling_rule(load_config(str(config), options))[:2] == ("sqrt", {})


def test_a_file_with_another_rule_leaves_the_parameters_of_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(CBEN_FILE)

    def rule_of(sampler):
        text = f"_BASE_: base.yaml\nDATALOADER: {{LT: {{SAMPLER: {sampler}}}}}\n"
        (tmp_path / "mine.yaml").write_text(text)
        return sampling_rule(load_config(str(tmp_path / "mine.yaml")))[:2]

    assert rule_of("{RULE: sqrt, PARAMS: {threshold: 0.05}}") == ("sqrt", {"threshold": 0.05})
    assert rule_of("{RULE: sqrt}") == ("sqrt", {})
    assert rule_of("{RULE: cben, PARAMS: {cap: 3.0}}") == ("cben", {"a": 0.999, "cap": 3.0})
    assert rule_of("{PARAMS: {cap: 3.0}}") == ("cben", {"a": 0.999, "cap": 3.0})


def test_parameters_may_be_given_one_by_one_or_as_a_dict():
    params = "DATALOADER.LT.SAMPLER.PARAMS"
    wanted = {"end": "cben", "end_params": {"cap": 10.0, "a": 0.99}, "epochs": 5}
    one_by_one = [
        *(f"{params}.end", "cben", f"{params}.end_params.cap", "10.0"),
        *(f"{params}.end_params.a", "0.99", f"{params}.epochs", "5"),
    ]
    for options in (one_by_one, [params, str(wanted)]):
        cfg = load_config(QUICK, [*LONG_TAIL, RULE, "progressive", *options])
        assert sampling_rule(cfg)[1] == wanted
        build_sampling_rule(cfg)


def order_log(labels, rule, params, caplog):
    """What the log says of a rule on images of one class each."""
    cfg = load_config(QUICK, [*LONG_TAIL, RULE, rule])
    cfg.DATALOADER.LT.SAMPLER.PARAMS.update(params)
    caplog.clear()
    with caplog.at_level("INFO"):
        epoch_order(cfg, class_sets_from_labels(labels, 3))
    return caplog.text


def test_the_log_says_what_a_rule_does_and_whether_it_does_anything(caplog):
    labels = np.repeat([0, 1], [20, 5])  # class 2 is in no image
    text = order_log(labels, "balanced", {"cap": 2.0}, caplog)
    assert "Sampling of 25 images by balanced, cap 2, repeat" in text and "WARNING" not in text
    assert "An epoch has 30 images; one comes 1.00 to 2.00 times" in text
    assert "imbalance factor 2.0 instead of 4.0" in text
    text = order_log(labels, "sqrt", {"threshold": 0.1}, caplog)
    assert "WARNING" in text and "the imbalance factor stays at 4.0" in text
    assert "WARNING" not in order_log(np.repeat([0, 1, 2], 3), "balanced", {}, caplog)
    # The data as they are were asked for; the other begins with them and ends elsewhere.
    assert order_log(labels, "instance", {}, caplog) == ""
    text = order_log(labels, "progressive", {}, caplog)
    assert "An epoch has 25 images" in text and "In the end an epoch has 40 images" in text
    assert "WARNING" not in text


def test_an_order_of_images_without_classes_is_not_described(caplog):
    cfg = load_config(QUICK, LONG_TAIL)
    nothing = class_sets_from_pairs([], [], 4, 3)
    assert epoch_order(cfg, nothing).expected(0).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("key", ["DATALOADER.SAMPLER_TRAIN"])
def test_an_unknown_sampler_lists_the_known_ones(cfg, key):
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorSampler"
    with pytest.raises(ConfigError, match=f"{key}.*Did you mean 'RepeatFactorTrainingSampler'"):
        build_train_loader(cfg)


def test_images_per_batch_must_divide_over_passes(cfg):
    cfg.SOLVER.LT.ACCUMULATION_STEPS = 2
    assert images_per_pass(cfg) == 2
    cfg.SOLVER.LT.ACCUMULATION_STEPS = 3
    with pytest.raises(ConfigError, match="IMS_PER_BATCH 4.*ACCUMULATION_STEPS 3"):
        images_per_pass(cfg)


@pytest.mark.parametrize("fault", ["missing", "truncated", "no image", "other size"])
def test_the_mapper_names_file_and_image_id(cfg, tmp_path, fault):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    record = {"file_name": str(path), "image_id": 77, "height": 40, "width": 30}
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-900])
    elif fault == "no image":
        path.write_text("hello")
    else:
        record["width"] = 31
    with pytest.raises(DataError, match=r"photo.png \(image id 77\).*BAD_IMAGE"):
        LongTailDatasetMapper(cfg, is_train=True)(record)


def records_with(mask):
    annotation = {"bbox": [0, 0, 5, 5], "category_id": 0, "segmentation": mask}
    return [{"file_name": "a.png", "image_id": 4, "annotations": [annotation]}]


@pytest.mark.parametrize(
    "mask,message",
    [
        ({"size": [9, 9], "counts": "x"}, "image id 4 .*RLE.*INPUT.MASK_FORMAT bitmask"),
        ([], "image id 4 .*without a mask.*MODEL.MASK_ON"),
    ],
)
def test_masks_that_cannot_be_trained_on_are_found_at_the_start(cfg, monkeypatch, mask, message):
    monkeypatch.setattr("lt_det.data.build.get_records", lambda name: records_with(mask))
    with pytest.raises((ConfigError, DataError), match=message):
        training_records(cfg)
    cfg.MODEL.MASK_ON = False
    assert len(training_records(cfg)) == 1


def test_a_set_without_annotations_is_an_error(cfg, monkeypatch):
    monkeypatch.setattr("lt_det.data.build.get_records", lambda name: [{"annotations": []}])
    with pytest.raises(DataError, match="DATASETS.TRAIN tiny_train"):
        training_records(cfg)
    assert "tiny_train" in MetadataCatalog.list()
