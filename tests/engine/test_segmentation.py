"""Semantic segmentation through the trainer, on a tiny generated set."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lt_det.data.datasets.synthetic import SyntheticSpec
from lt_det.data.datasets.synthetic_sem_seg import class_names, generate_sem_seg
from lt_det.engine import LongTailTrainer, load_config, prepare_config
from lt_det.engine.hooks import named_grad_stats
from lt_det.engine.trainer import evaluate_checkpoint
from lt_det.errors import ConfigError, DataError, MissingFileError
from lt_det.evaluation.bootstrap import bootstrap_groups
from lt_det.evaluation.groups import groups_by_rank
from lt_det.evaluation.per_image import read_per_image
from lt_det.evaluation.results import read_record
from lt_det.losses import GradStats
from tests.engine import runs

SPEC = SyntheticSpec(
    num_classes=9, num_train_images=12, num_val_images=4, image_size=96, imbalance=6.0
)
CLASSES = class_names(SPEC)


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Folder of the set."""
    return generate_sem_seg(tmp_path_factory.mktemp("maps") / "set", SPEC)


@pytest.fixture
def options(maps, tmp_path):
    """Overrides that make a quick configuration train on the tiny set."""
    return options_of(maps, tmp_path)


def options_of(maps, tmp_path, name="maps"):
    entries = [
        {
            "name": f"{name}_{split}",
            "labels": f"{maps}/labels/{split}",
            "images": f"{maps}/images/{split}",
            "classes": f"{maps}/classes.txt",
            "zero_is_unlabelled": True,
        }
        for split in ("train", "val")
    ]
    return [
        *("DATASETS.LT.REGISTER", str(entries), "DATASETS.LT.CACHE_DIR", str(tmp_path / "cache")),
        *("DATASETS.TRAIN", f"('{name}_train',)", "DATASETS.TEST", f"('{name}_val',)"),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(len(CLASSES)), "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8"),
        *("INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MAX_SIZE_TRAIN", "96"),
        *("INPUT.CROP.SIZE", "[32, 32]", "SOLVER.IMS_PER_BATCH", "2"),
        *("SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3"),
    ]


def train(config, options, output, *more, resume=False):
    """The trainer after the training of a quick configuration."""
    path = f"configs/quick/sem_seg_{config}.yaml"
    return runs.train(path, options, output, *more, resume=resume)


@pytest.mark.parametrize("config", ["ce", "softmax_eql", "sigmoid_eql"])
def test_a_killed_run_goes_on_bit_exactly(config, options, tmp_path):
    """With repeat factors, augmentation, dropout, batch normalisation and an auxiliary head."""
    sampler = ["DATALOADER.SAMPLER_TRAIN", "LongTailSampler", "DATALOADER.LT.SAMPLER.RULE", "cben"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer = train(config, options, whole, *sampler)
    resumed.mkdir()
    shutil.copy(whole / "model_0000002.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000002.pth")
    np.random.seed(5), torch.manual_seed(5)  # as another process would have them
    train(config, options, resumed, *sampler, "DATALOADER.NUM_WORKERS", 1, resume=True)
    states = [torch.load(f / "model_final.pth", weights_only=True) for f in (whole, resumed)]
    assert runs.differences(*states) == []
    assert states[0]["trainer"]["ranks"][0]["data_loader"]["order"].startswith("cben, ")
    stats = named_grad_stats(trainer.model)
    assert list(stats) == ([] if config == "ce" else ["", "aux"])
    assert all(own.pos.sum() > 0 for own in stats.values())
    if stats:  # two heads, two sets of statistics
        assert not torch.equal(stats[""].pos, stats["aux"].pos)


def test_the_record_says_what_was_measured(options, tmp_path, maps):
    train("softmax_eql", options, tmp_path / "run", "TEST.LT.SEM_SEG.BOUNDARY", True)
    record = read_record(tmp_path / "run" / "results" / "maps_val.json")
    columns = record["per_class"]
    pixels = np.zeros(256, np.int64)
    images = np.zeros(256, np.int64)
    for path in (maps / "labels" / "train").glob("*.png"):
        own = np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
        pixels, images = pixels + own, images + (own > 0)
    assert columns["name"] == CLASSES
    assert columns["train_pixels"] == pixels[1 : len(CLASSES) + 1].tolist()
    assert columns["train_images"] == images[1 : len(CLASSES) + 1].tolist()
    assert columns["group"] == groups_by_rank(columns["train_pixels"])
    assert record["group_sizes"] == {"r": 4, "c": 4, "f": 4}
    assert record["protocol"]["groups"] == "thirds of the classes by training pixels"
    assert record["protocol"]["images"] == 4
    run = record["run"]
    assert (run["selection"], run["iteration"], run["loss"]) == ("last", 6, "SoftmaxEQL")
    # The areas of each image give the figures again.
    ends = record["intervals"]["metrics"]["sem_seg"]
    (images,) = read_per_image(tmp_path / "run" / "inference" / "maps_val", len(CLASSES))
    found = bootstrap_groups(images, columns["group"])
    for group, name in {"all": "mIoU", "r": "mIoU_tail", "f": "mIoU_head"}.items():
        assert found[group].value == pytest.approx(record["metrics"]["sem_seg"][name], abs=1e-9)
        assert ends[name] == list(found[group][1:])
    # So do the predictions that were kept.
    truth, predicted = [], []
    for path in sorted((maps / "labels" / "val").glob("*.png")):
        truth.append(np.asarray(Image.open(path)).ravel())
        kept = tmp_path / "run" / "inference" / "maps_val" / "predictions" / path.name
        predicted.append(np.asarray(Image.open(kept)).ravel() + np.uint8(1))
    truth, predicted = np.concatenate(truth), np.concatenate(predicted)
    right = (truth == predicted)[truth > 0].mean()
    assert record["metrics"]["sem_seg"]["pACC"] == pytest.approx(100 * right, rel=1e-12)
    values = np.array(columns["sem_seg/boundary_IoU"], float)
    only_predicted = np.isnan(values) & np.isin(np.arange(len(CLASSES)) + 1, predicted)
    # A class that is only predicted counts as 0; along boundaries it may not come at all.
    low = np.nansum(values) / (np.isfinite(values).sum() + only_predicted.sum())
    assert low - 1e-9 <= record["metrics"]["sem_seg"]["boundary_mIoU"] <= np.nanmean(values) + 1e-9


def test_groups_by_images_and_by_borders(options, tmp_path):
    for group_by, words in (
        ("images", "thirds of the classes by training images"),
        ("borders", "tail up to 3 training images, common up to 6, head above"),
    ):
        more = ["DATASETS.LT.SEM_SEG.GROUP_BY", group_by, "DATASETS.LT.GROUP_BORDERS", "(3, 6)"]
        train("ce", options, tmp_path / group_by, *more, "SOLVER.MAX_ITER", 1)
        record = read_record(tmp_path / group_by / "results" / "maps_val.json")
        assert record["protocol"]["groups"] == words
        images = record["per_class"]["train_images"]
        by_borders = ["r" if n <= 3 else "c" if n <= 6 else "f" for n in images]
        expected = by_borders if group_by == "borders" else groups_by_rank(images)
        assert record["per_class"]["group"] == expected


VIEWS = {
    "whole": ([], (0, (1.0,), False)),
    "windows": (["TEST.LT.SEM_SEG.WINDOW", "32"], (32, (1.0,), False)),
    "views": (
        ["TEST.LT.SEM_SEG.SCALES", "(0.75, 1.5)", "TEST.LT.SEM_SEG.FLIP", "True"],
        (0, (0.75, 1.5), True),
    ),
}


def test_views_are_configuration(options, tmp_path):
    """Other views of the same weights; the whole image gives the training's figures again."""
    trainer = train("ce", options, tmp_path / "run")
    first = read_record(tmp_path / "run" / "results" / "maps_val.json")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")]
    scores = {}
    for name, (more, expected) in VIEWS.items():
        output = ["OUTPUT_DIR", str(tmp_path / name)]
        cfg = load_config("configs/quick/sem_seg_ce.yaml", [*options, *weights, *more, *output])
        counts = prepare_config(cfg, training=False)
        evaluate_checkpoint(cfg, counts, resume=False, before_writing=lambda: None)
        record = read_record(tmp_path / name / "results" / "maps_val.json")
        assert record["per_class"]["test_pixels"] == first["per_class"]["test_pixels"]
        if name == "whole":
            assert record["metrics"] == first["metrics"]
        model = LongTailTrainer.build_model(cfg).eval()
        assert (model.window, model.scales, model.flip) == expected
        model.load_state_dict(trainer.model.state_dict())
        (sample,) = next(iter(LongTailTrainer.build_test_loader(cfg, "maps_val")))
        scores[name] = model([sample])[0]["sem_seg"]
    # Borders of windows and mirror images change what a network sees by far more than rounding.
    for name in ("windows", "views"):
        assert (scores[name] - scores["whole"]).abs().max() > 1e-4
    assert trainer.cfg.MODEL.LT.CLASS_COUNTS == record["per_class"]["train_pixels"]


def test_a_detector_counts_no_pixels_and_a_segmentor_no_boxes(options, tmp_path):
    with pytest.raises(ConfigError, match="COUNT_UNIT is 'instances'.*pixels, images"):
        train("ce", options, tmp_path / "run", "MODEL.LT.COUNT_UNIT", "instances")
    cfg = load_config("configs/quick/sem_seg_ce.yaml", [*options, "MODEL.LT.COUNT_UNIT", "images"])
    counts = prepare_config(cfg)
    assert cfg.MODEL.LT.CLASS_COUNTS == counts.images.tolist()


WRONG = {
    "classes": (
        ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"],
        ConfigError,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 7 .*12 classes",
    ),
    "detection set": (
        ["DATASETS.TRAIN", "('lt_synthetic_train',)"],
        ConfigError,
        "TRAIN lt_synthetic_train has no label maps",
    ),
    "missing ADE20K": (
        ["DATASETS.TRAIN", "('ade20k_sem_seg_train',)"],
        MissingFileError,
        "ADEChallengeData2016/images/training.*prepare_ade20k.py",
    ),
    "loss": (
        ["MODEL.LT.LOSS.NAME", "FBL"],
        ConfigError,
        "MODEL.LT.LOSS.NAME is 'FBL', which needs the features of every pixel",
    ),
    "groups": (["DATASETS.LT.SEM_SEG.GROUP_BY", "rank"], ConfigError, "GROUP_BY is 'rank'"),
    "ratio": (["DATALOADER.LT.SEM_SEG.RATIO", "(2.0, 0.5)"], ConfigError, "SEM_SEG.RATIO"),
    "ignored": (["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"], ConfigError, "IGNORE_VALUE is 0"),
    "scales": (["TEST.LT.SEM_SEG.SCALES", "(0.0,)"], ConfigError, "SEM_SEG.SCALES"),
    "a scale": (["TEST.LT.SEM_SEG.SCALES", "('a',)"], ConfigError, "SEM_SEG.SCALES"),
    "stride": (
        ["TEST.LT.SEM_SEG.WINDOW", "32", "TEST.LT.SEM_SEG.STRIDE", "64"],
        ConfigError,
        "STRIDE is 64; accepted are 1 to the WINDOW, 32",
    ),
    "no windows": (["TEST.LT.SEM_SEG.STRIDE", "64"], ConfigError, "there are no windows"),
    "head": (
        ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"],
        ConfigError,
        "NAME is 'SemSegFPNHead'; .* LongTailSemSegFPNHead.*UPerNetHead",
    ),
    "architecture": (
        ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
        ConfigError,
        "LongTailSegmentor is that with",
    ),
    "save": (["TEST.LT.SEM_SEG.SAVE", "npz"], ConfigError, "TEST.LT.SEM_SEG.SAVE"),
    "metric": (
        ["TEST.LT.BEST_METRIC", "sem_seg/mIoU_rare", "TEST.EVAL_PERIOD", "5"],
        ConfigError,
        "'sem_seg/mIoU_rare'.*sem_seg/mIoU_tail",
    ),
    "mixup": (["MODEL.LT.MIXUP", "1.0"], ConfigError, "MODEL.LT.MIXUP"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_values_are_named_before_anything_is_written(options, tmp_path, what, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    more, error, message = WRONG[what]
    with pytest.raises(error, match=f"(?s){message}"):
        cfg = load_config("configs/quick/sem_seg_ce.yaml", [*options, *more])
        prepare_config(cfg)


def test_a_longer_schedule_is_taken_up_on_resume(options, tmp_path):
    """The checkpoint holds the place in the schedule and not its length."""
    train("ce", options, tmp_path / "run")
    longer = ["SOLVER.MAX_ITER", 9, "SOLVER.POLY_LR_POWER", 2.0]
    trainer = train("ce", options, tmp_path / "run", *longer, resume=True)
    state = trainer.scheduler.state_dict()
    assert state == {"base_lrs": state["base_lrs"], "last_epoch": 9}
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    lines = [line for line in map(json.loads, lines) if "lr" in line]
    rates = {line["iteration"]: line["lr"] for line in lines}
    assert rates[8] == pytest.approx(0.01 * (1 - 8 / 9) ** 2, rel=1e-9)


BAD_TEST_MAPS = {
    "colour": (lambda m: Image.fromarray(np.stack([m] * 3, axis=2)), "has mode RGB"),
    "16 bits": (lambda m: Image.fromarray(m.astype(np.uint16)), "has mode I;16"),
    "value": (lambda m: Image.fromarray(np.full_like(m, 99)), "value 99 is beyond the class list"),
    "size": (lambda m: Image.fromarray(m[1:]), "pixels, its image"),
}


@pytest.mark.parametrize("what", BAD_TEST_MAPS)
def test_label_maps_to_test_on_are_looked_at_before_the_training(maps, tmp_path, what):
    copy = tmp_path / "copy"
    shutil.copytree(maps, copy)
    path = sorted((copy / "labels" / "val").iterdir())[2]
    make, message = BAD_TEST_MAPS[what]
    make(np.array(Image.open(path))).save(path)
    options = options_of(copy, tmp_path, f"maps_{what.replace(' ', '_')}")
    with pytest.raises(DataError, match=f"(?s){path}.*{message}"):
        train("ce", options, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_one_name_cannot_both_be_kept(maps, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(maps, copy)
    for kind in ("images", "labels"):
        (copy / kind / "val" / "again").mkdir()
        first = sorted(p for p in (copy / kind / "val").iterdir() if p.is_file())[0]
        shutil.copy(first, copy / kind / "val" / "again")
    options = options_of(copy, tmp_path, "maps_twice")
    with pytest.raises(ConfigError, match="would both be kept as 00001.png.*'json'"):
        train("ce", options, tmp_path / "run")
    train("ce", options, tmp_path / "run", "TEST.LT.SEM_SEG.SAVE", "json", "SOLVER.MAX_ITER", 1)
    record = read_record(tmp_path / "run" / "results" / "maps_twice_val.json")
    assert record["protocol"]["images"] == 5


def test_kept_predictions_are_those_of_the_last_evaluation(options, tmp_path):
    kept = tmp_path / "run" / "inference" / "maps_val"
    train("ce", options, tmp_path / "run", "SOLVER.MAX_ITER", 1)
    assert len(list((kept / "predictions").iterdir())) == 4
    more = ["SOLVER.MAX_ITER", 2, "TEST.LT.SEM_SEG.SAVE", ""]
    train("ce", options, tmp_path / "run", *more, resume=True)
    assert not (kept / "predictions").exists()


def test_main_and_auxiliary_head_draw_noise_of_their_own(options, tmp_path):
    trainer = train("ce", options, tmp_path / "run", "MODEL.LT.LOSS.NAME", "GCL")
    state = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    noise = [
        state[f"{head}.cls_loss.noise._extra_state"].tolist()
        for head in ("sem_seg_head", "auxiliary_head")
    ]
    assert noise == [[1, 6], [2, 6]]  # seed, draws
    assert trainer.cfg.SEED == 1


def test_a_panoptic_model_needs_label_maps_and_its_statistics_are_told_apart(tiny_options):
    options = [
        *(*tiny_options, "MODEL.META_ARCHITECTURE", "PanopticFPN"),
        *("MODEL.SEM_SEG_HEAD.NAME", "LongTailSemSegFPNHead", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    ]
    cfg = load_config("configs/quick/lvis_eqlv2.yaml", options)
    with pytest.raises(ConfigError, match="has boxes but no label maps"):
        prepare_config(cfg)
    prepare_config(cfg, training=False)
    model = LongTailTrainer.build_model(cfg)
    stats = named_grad_stats(model)
    assert list(stats) == ["", "sem_seg"]
    assert stats["sem_seg"] is model.sem_seg_head.cls_loss.stats


def test_a_file_that_breaks_later_stops_the_run_or_is_skipped_and_counted(maps, tmp_path, caplog):
    """Label maps are all read when they are counted; images are not."""
    copy = tmp_path / "copy"
    shutil.copytree(maps, copy)
    for broken in (copy / "images" / "train").iterdir():
        if broken.stem > "00003":
            broken.write_bytes(broken.read_bytes()[:100])
    options = options_of(copy, tmp_path, "maps_cut")
    with pytest.raises(DataError, match=r"cannot use image .*\.png.*BAD_IMAGE 'skip'"):
        train("ce", options, tmp_path / "first")
    trainer = train("ce", options, tmp_path / "second", "DATALOADER.LT.BAD_IMAGE", "skip")
    skipped = trainer._trainer.data_loader.dataset.skipped
    assert skipped >= 9  # each of nine once, or again in the place of another one
    assert "skipped bad image number 9: cannot use image" in caplog.text


def test_a_broken_label_map_is_named_when_the_classes_are_counted(maps, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(maps, copy)
    broken = sorted((copy / "labels" / "train").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    options = options_of(copy, tmp_path, "maps_with_a_bad_one")
    with pytest.raises(DataError, match=f"{broken} cannot be read as a label map"):
        train("ce", options, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_statistics_are_found_by_the_path_of_their_head():
    model = torch.nn.Module()
    model.stages = torch.nn.ModuleList([GradStats(2), GradStats(2)])
    assert list(named_grad_stats(model)) == ["stage0", "stage1"]
    model.auxiliary_head = torch.nn.ModuleList([GradStats(2)])
    assert named_grad_stats(model) == {
        "stage0": model.stages[0],
        "stage1": model.stages[1],
        "aux": model.auxiliary_head[0],
    }
