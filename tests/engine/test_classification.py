"""Image classification through the trainer, on a tiny generated set."""

import shutil

import numpy as np
import pytest
import torch

from lt_det.data.datasets.synthetic_images import ImagesSpec, generate_images, image_counts
from lt_det.engine import load_config, prepare_config
from lt_det.engine.config import config_hash
from lt_det.engine.trainer import evaluate, evaluate_checkpoint
from lt_det.errors import CheckpointError, ConfigError, DataError, MissingFileError
from lt_det.evaluation.bootstrap import bootstrap_groups, record_intervals
from lt_det.evaluation.per_image import read_per_image
from lt_det.evaluation.results import read_record
from tests.engine import runs

SPEC = ImagesSpec(num_classes=9, largest=24, imbalance=6, val_per_class=3, size=16)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folder of the set."""
    return generate_images(tmp_path_factory.mktemp("images") / "set", SPEC)


@pytest.fixture
def options(images, tmp_path):
    """Overrides that make a quick configuration train on the tiny set."""
    entry = (
        "{{'name': 'images_{0}', 'list': '{1}/{0}.txt', 'images': '{1}', "
        "'classes': '{1}/classes.txt'}}"
    )
    entries = ", ".join(entry.format(split, images) for split in ("train", "val"))
    return [
        *("DATASETS.LT.REGISTER", f"[{entries}]", "DATASETS.LT.CACHE_DIR", str(tmp_path / "cache")),
        *("DATASETS.TRAIN", "('images_train',)", "DATASETS.TEST", "('images_val',)"),
        *("MODEL.LT.NUM_CLASSES", "9", "DATASETS.LT.GROUP_BORDERS", "(5, 12)"),
        *("SOLVER.IMS_PER_BATCH", "8", "SOLVER.STEPS", "(8,)", "SOLVER.WARMUP_ITERS", "2"),
        *("SOLVER.MAX_ITER", "10", "SOLVER.CHECKPOINT_PERIOD", "4"),
    ]


def train(config, options, output, *more, resume=False):
    """The trainer after the training of a quick configuration."""
    path = f"configs/quick/image_{config}.yaml"
    return runs.train(path, options, output, *more, resume=resume)


def state_of(output, name="model_final"):
    return torch.load(output / f"{name}.pth", weights_only=True)


def test_mixup_and_gcl_noise_resume_bit_exactly(options, tmp_path):
    """From a checkpoint in the middle of an epoch and of a batch, by loader processes."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train("gcl", options, whole)
    resumed.mkdir()
    shutil.copy(whole / "model_0000003.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000003.pth")
    np.random.seed(5), torch.manual_seed(5)  # as another process would have them
    train("gcl", options, resumed, "DATALOADER.NUM_WORKERS", 2, resume=True)
    a, b = state_of(whole), state_of(resumed)
    assert runs.differences(a, b) == []
    assert a["model"]["mixup.noise._extra_state"].tolist() == [1, 10]
    assert a["model"]["cls_loss.noise._extra_state"].tolist() == [1, 10]
    loader = a["trainer"]["ranks"][0]["data_loader"]
    epoch = image_counts(SPEC, "train").sum()
    assert loader["epoch"] * epoch + loader["position"] == 80 and 80 % epoch


def test_a_second_stage_trains_the_classifier_on_another_order(options, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train("gcl", options, first)
    trainer = train("gcl_cben", options, second, "MODEL.LT.FIRST_STAGE", first)
    a, b = state_of(first)["model"], state_of(second)["model"]
    for name, value in a.items():
        if name.startswith("backbone."):
            assert torch.equal(b[name], value), name
    assert not torch.equal(a["classifier.weight"], b["classifier.weight"])
    assert trainer.model.cls_loss.margin == 0.1 and b["cls_loss.noise._extra_state"][1] == 10
    order = state_of(second)["trainer"]["ranks"][0]["data_loader"]["order"]
    assert order.startswith("cben, ") and order.endswith(", draw")
    # Killed and resumed, it goes on from its own checkpoint: the first stage may be gone.
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(second / "model_0000003.pth", again)
    (again / "last_checkpoint").write_text("model_0000003.pth")
    shutil.rmtree(first)
    train("gcl_cben", options, again, "MODEL.LT.FIRST_STAGE", first, resume=True)
    assert runs.differences(state_of(second), state_of(again)) == []


def test_a_second_stage_without_a_first_is_found_before_the_training(options, tmp_path):
    with pytest.raises(CheckpointError, match="FIRST_STAGE.*nowhere"):
        train("gcl_cben", options, tmp_path / "a", "MODEL.LT.FIRST_STAGE", tmp_path / "nowhere")
    assert not (tmp_path / "a").exists()


def test_what_starts_anew_does_not_take_pretrained_weights(options, tmp_path):
    first = tmp_path / "first"
    train("ce", options, first)
    weights = ["MODEL.WEIGHTS", first / "model_final.pth", "MODEL.LT.FIRST_STAGE", first]
    anew = ["MODEL.LT.START_ANEW", "('classifier',)", "SOLVER.BASE_LR", "1e-12"]
    train("ce", options, tmp_path / "second", *weights, *anew, "SOLVER.WARMUP_ITERS", 0)
    a, b = (state_of(f)["model"]["classifier.weight"] for f in (first, tmp_path / "second"))
    assert (a - b).abs().mean() > 0.1  # two draws of standard deviation 0.177


def test_a_new_run_in_an_old_folder_leaves_no_results_of_the_old(options, tmp_path):
    output = tmp_path / "run"
    best = ["TEST.EVAL_PERIOD", 4, "TEST.LT.BEST_METRIC", "classification/top1"]
    train("ce", options, output, *best)
    train("ce", options, output, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)")
    assert [p.name for p in (output / "results").glob("*.json")] == ["images_val.json"]
    assert not (output / "model_best.pth").exists()
    assert (output / "results" / "images_val.best.json.previous").exists()


def test_an_evaluation_on_the_way_is_not_the_last(options, tmp_path):
    output = tmp_path / "run"
    trainer = train("ce", options, output, "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", "(3,)")
    trainer.cfg.defrost()
    trainer.cfg.SOLVER.MAX_ITER = 8
    evaluate(trainer.cfg, trainer.model, trainer.class_counts, iteration=4)
    record = read_record(output / "results" / "images_val.json")
    assert record["run"]["iteration"] == 4 and record["run"]["selection"] is None


def test_last_and_best_epochs_are_kept_apart(options, tmp_path):
    output = tmp_path / "run"
    more = ["TEST.EVAL_PERIOD", 4, "TEST.LT.BEST_METRIC", "classification/top1"]
    trainer = train("ce", options, output, *more, "TEST.LT.KEEP_FEATURES", True)
    last = read_record(output / "results" / "images_val.json")
    best = read_record(output / "results" / "images_val.best.json")
    assert last["run"]["selection"] == "last" and last["run"]["iteration"] == 10
    assert 0 < last["run"]["seconds_per_iteration"] < 60  # ten small steps, not the whole run
    assert best["run"]["selection"] == "best on images_val"
    # All three evaluations; metrics.json has only those of an iteration that is written.
    seen = [value for value, _ in trainer.storage.history("classification/top1").values()]
    top1 = [record["metrics"]["classification"]["top1"] for record in (last, best)]
    assert len(seen) == 3 and top1 == pytest.approx([seen[-1], max(seen)])
    counts = image_counts(SPEC, "train")
    assert last["per_class"]["train_images"] == counts.tolist()
    groups = ["r" if n <= 5 else "c" if n <= 12 else "f" for n in counts]
    assert last["per_class"]["group"] == groups
    assert last["protocol"]["images"] == 27
    # What the pictures are made from belongs to the last evaluation.
    with np.load(output / "inference" / "images_val" / "features.npz") as kept:
        model = state_of(output)["model"]
        assert kept["features"].shape == (27, 64)
        np.testing.assert_array_equal(kept["weights"], model["classifier.weight"].numpy())


def test_evaluation_alone_repeats_the_result(options, tmp_path):
    trainer = train("ce", options, tmp_path / "run")
    expected = read_record(tmp_path / "run" / "results" / "images_val.json")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")]
    more = ["OUTPUT_DIR", str(tmp_path / "alone"), "DATALOADER.LT.IMAGE.TEST_BATCH", "5"]
    cfg = load_config("configs/quick/image_ce.yaml", [*options, *weights, *more])
    counts = prepare_config(cfg, training=False)
    evaluate_checkpoint(cfg, counts, resume=False, before_writing=lambda: None)
    record = read_record(tmp_path / "alone" / "results" / "images_val.json")
    # Batches of another size round differently; no image changes its class for that.
    assert (
        record["metrics"]["classification"]["top1"] == expected["metrics"]["classification"]["top1"]
    )
    assert record["per_class"] == expected["per_class"]
    assert record["run"]["config_hash"] == config_hash(cfg) != expected["run"]["config_hash"]
    assert trainer.cfg.MODEL.LT.CLASS_COUNTS == image_counts(SPEC, "train").tolist()


def test_the_record_has_the_intervals_of_what_the_evaluation_left(options, tmp_path):
    output = tmp_path / "run"
    train("ce", options, output, "SOLVER.MAX_ITER", 3, "TEST.LT.BOOTSTRAP", 20)
    record = read_record(output / "results" / "images_val.json")
    images = read_per_image(output / "inference" / "images_val", 9)
    expected = record_intervals(images, record["per_class"]["group"], resamples=20)
    assert record["intervals"] == expected
    assert record["metrics"]["classification"]["top1"] == pytest.approx(
        bootstrap_groups(images[0], None, resamples=2)["top1"].value
    )
    train("ce", options, output, "SOLVER.MAX_ITER", 3, "TEST.LT.BOOTSTRAP", 0)
    assert "intervals" not in read_record(output / "results" / "images_val.json")


WRONG = {
    "classes": (["MODEL.LT.NUM_CLASSES", "7"], DataError, "label . of .* is not in 0..6"),
    "detection set": (
        ["DATASETS.TRAIN", "('lt_synthetic_train',)"],
        ConfigError,
        "TRAIN lt_synthetic_train is no list of image classification",
    ),
    "two lists": (
        ["DATASETS.TRAIN", "('images_train', 'images_val')"],
        ConfigError,
        "image classification trains on one list",
    ),
    "missing list": (
        ["DATASETS.TRAIN", "('imagenet_lt_train',)"],
        MissingFileError,
        "ImageNet_LT_train.txt of data set 'imagenet_lt_train'.*prepare_image_lists.py",
    ),
    "augmentation": (["DATALOADER.LT.IMAGE.AUGMENT", "crops"], ConfigError, "AUGMENT is 'crops'"),
    "metric": (
        ["TEST.LT.BEST_METRIC", "segm/AP", "TEST.EVAL_PERIOD", "5"],
        ConfigError,
        "'segm/AP'.*classification/top1",
    ),
    "test batch": (["DATALOADER.LT.IMAGE.TEST_BATCH", "0"], ConfigError, "TEST_BATCH is 0"),
    "no memory": (["DATALOADER.LT.IMAGE.CACHE_MB", "-5"], ConfigError, "CACHE_MB is -5"),
    "all frozen": (
        ["MODEL.LT.FREEZE", "('backbone', 'classifier')"],
        ConfigError,
        "MODEL.LT.FREEZE .*nothing to train",
    ),
    "pixel": (["MODEL.PIXEL_STD", "[1.0, 1.0]"], ConfigError, r"PIXEL_STD is \[1.0, 1.0\]"),
    "tau": (["TEST.LT.TAU_NORM", "-1.0"], ConfigError, "TAU_NORM is -1.0"),
    "memory": (["DATALOADER.LT.IMAGE.CACHE_MB", "0.001"], ConfigError, "CACHE_MB"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_values_are_named(options, tmp_path, what, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    more, error, message = WRONG[what]
    with pytest.raises(error, match=f"(?s){message}"):
        train("ce", options, tmp_path / "run", *more)


@pytest.mark.parametrize("kind,cache_mb", [("files", "0"), ("memory", "64")])
def test_a_broken_image_stops_or_is_skipped_and_counted(
    options, images, tmp_path, kind, cache_mb, caplog
):
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    (copy / "train" / "00003.png").write_bytes(b"no picture")
    moved = [option.replace(str(images), str(copy)) for option in options]
    moved = [option.replace("images_train", f"broken_{kind}") for option in moved]
    moved = [option.replace("images_val", f"test_{kind}") for option in moved]
    more = ["DATASETS.TEST", "()", "DATALOADER.LT.IMAGE.CACHE_MB", cache_mb, "SOLVER.MAX_ITER", 12]
    with pytest.raises(DataError, match=r"00003.png.*image id 2.*BAD_IMAGE"):
        train("ce", moved, tmp_path / "run", *more)
    trainer = train("ce", moved, tmp_path / "again", *more, "DATALOADER.LT.BAD_IMAGE", "skip")
    assert trainer._trainer.data_loader.dataset.skipped > 0
    assert "00003.png" in caplog.text
