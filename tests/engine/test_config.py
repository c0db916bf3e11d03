"""Every configuration loads; wrong ones are found before anything is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from lt_det.config import add_lt_config
from lt_det.data.build import build_sampling_rule
from lt_det.engine import load_config, prepare_config
from lt_det.engine.config import config_hash
from lt_det.engine.launch import join_torchrun
from lt_det.engine.tasks import task_of
from lt_det.engine.trainer import LongTailTrainer, evaluate_checkpoint
from lt_det.errors import ConfigError, DataError, LtDetError, MissingFileError, user_message
from lt_det.losses.build import loss_parameters
from lt_det.modeling.build import loss_from_config

ROOT = Path(__file__).parents[2]
QUICK = "configs/quick/lvis_eqlv2.yaml"
ALL_CONFIGS = sorted(p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.yaml"))
RECIPES = [p for p in ALL_CONFIGS if "base" not in p.parts]


def test_the_recipes_of_the_readme_are_there():
    names = {str(p) for p in RECIPES}
    for name in ("eqlv2", "softmax", "sigmoid", "eqlv2_rfs", "eqlv2_cascade_r101"):
        assert f"configs/lvis_{name}.yaml" in names
    for name in ("eqlv2", "softmax", "sigmoid"):
        assert f"configs/quick/lvis_{name}.yaml" in names


def heads_of(model):
    """(classifier, loss) of every head."""
    if hasattr(model, "roi_heads"):
        found = model.roi_heads.box_predictor
        predictors = list(found) if hasattr(found, "__len__") else [found]
        return [(p.cls_score, p.cls_loss) for p in predictors]
    if hasattr(model, "sem_seg_head"):
        heads = [model.sem_seg_head, model.auxiliary_head]
        return [(h.predictor.classifier, h.cls_loss) for h in heads if h is not None]
    if hasattr(model, "anchor_generator"):
        return [(model.head.cls_score, model.cls_loss)]
    return [(model.classifier, model.cls_loss)]


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_every_recipe_builds_its_model(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.LT.CLASS_COUNTS = list(range(1, task_of(cfg).num_classes(cfg) + 1))
    for classifier, loss in heads_of(build_model(cfg)):
        assert type(loss).__name__ == cfg.MODEL.LT.LOSS.NAME
        for key, value in cfg.MODEL.LT.LOSS.PARAMS.items():
            assert getattr(loss, key) == value
        if isinstance(classifier, torch.nn.Conv2d):  # of a dense head: several anchors
            assert classifier.out_channels % loss.num_logits == 0
            assert classifier.out_channels // loss.num_logits in (2, 3, 9)
        else:
            assert classifier.out_features == loss.num_logits
    build_sampling_rule(cfg)
    assert cfg.OUTPUT_DIR != "./output", "recipes write to folders of their own"


@pytest.mark.parametrize("name", ["eqlv2", "eqlv2_cben", "softmax", "sigmoid"])
def test_a_quick_twin_has_the_head_and_loss_of_its_recipe(name):
    full, quick = (load_config(f"configs/{d}lvis_{name}.yaml") for d in ("", "quick/"))
    assert quick.MODEL.LT.LOSS == full.MODEL.LT.LOSS
    assert quick.MODEL.ROI_HEADS.NAME == full.MODEL.ROI_HEADS.NAME
    assert quick.DATALOADER.SAMPLER_TRAIN == full.DATALOADER.SAMPLER_TRAIN
    assert quick.DATALOADER.LT.SAMPLER == full.DATALOADER.LT.SAMPLER


DENSE_TWINS = {
    "retinanet_focal": ["retinanet_focal"],
    "retinanet_efl": ["retinanet_efl"],
    "atss_efl": ["atss_efl_r50", "atss_efl_r101"],
}


@pytest.mark.parametrize("name", DENSE_TWINS)
def test_a_quick_twin_of_a_dense_recipe_has_its_head_and_loss(name):
    quick = load_config(f"configs/quick/lvis_{name}.yaml")
    for full in (load_config(f"configs/lvis_{twin}.yaml") for twin in DENSE_TWINS[name]):
        assert quick.MODEL.LT.LOSS == full.MODEL.LT.LOSS
        assert quick.MODEL.META_ARCHITECTURE == full.MODEL.META_ARCHITECTURE
        for key in ("BBOX_REG_LOSS_TYPE", "BBOX_REG_WEIGHTS", "SCORE_THRESH_TEST"):
            assert quick.MODEL.RETINANET[key] == full.MODEL.RETINANET[key], key
        for key in ("NORMALIZER", "EMPTY_BATCH", "ATSS_TOPK", "BOX_WEIGHT", "IOU_BRANCH"):
            assert quick.MODEL.LT.DENSE[key] == full.MODEL.LT.DENSE[key], key
        assert quick.DATALOADER.SAMPLER_TRAIN == full.DATALOADER.SAMPLER_TRAIN


DENSE_RECIPES = [
    *("retinanet_focal", "retinanet_efl", "atss_efl_r50", "atss_efl_r101", "atss_eqfl_r50"),
]


@pytest.mark.parametrize("name", DENSE_RECIPES)
def test_the_schedule_of_the_dense_recipes(name):
    """24 epochs of 100,170 images, 16 a batch, steps after 16 and 22, one epoch of warm-up."""
    cfg = load_config(f"configs/lvis_{name}.yaml")
    epoch = 100170 / 16
    assert cfg.SOLVER.MAX_ITER == round(24 * epoch)
    assert cfg.SOLVER.STEPS == (round(16 * epoch), round(22 * epoch))
    assert cfg.SOLVER.WARMUP_ITERS == round(epoch) and cfg.SOLVER.WARMUP_FACTOR == 0.001
    assert cfg.SOLVER.IMS_PER_BATCH == 16 and cfg.SOLVER.BASE_LR == 0.02
    assert cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.001
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
    assert cfg.MODEL.LT.DENSE.TOPK == cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST == 6000
    assert cfg.MODEL.RETINANET.SCORE_THRESH_TEST == 0
    if "retinanet" not in name:
        strides = [8, 16, 32, 64, 128]
        assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[6 * s, 8 * s] for s in strides]
        assert cfg.MODEL.LT.LOSS.PARAMS.scale_factor == 8


QUICK_IMAGE_TWINS = {"ce": "ce", "gcl": "gcl", "gcl_cben": "gcl_cben"}


@pytest.mark.parametrize("name", QUICK_IMAGE_TWINS)
def test_a_quick_twin_of_classification_is_its_recipe_on_another_set(name):
    quick = load_config(f"configs/quick/image_{name}.yaml")
    full = load_config(f"configs/cifar10_lt_{QUICK_IMAGE_TWINS[name]}.yaml")
    for key in ("LOSS", "MIXUP", "FREEZE", "START_ANEW", "CLASS_SCALE"):
        assert quick.MODEL.LT[key] == full.MODEL.LT[key], key
    assert quick.DATALOADER.LT == full.DATALOADER.LT
    for key in ("BASE_LR", "LR_SCHEDULER_NAME", "WEIGHT_DECAY", "IMS_PER_BATCH", "MOMENTUM"):
        assert quick.SOLVER[key] == full.SOLVER[key], key


@pytest.mark.parametrize("name", ["ce", "softmax_eql", "sigmoid_eql"])
def test_a_quick_twin_of_segmentation_is_its_recipe_on_another_set(name):
    quick = load_config(f"configs/quick/sem_seg_{name}.yaml")
    full = load_config(f"configs/ade20k_{name}.yaml")
    assert quick.MODEL.LT.LOSS == full.MODEL.LT.LOSS
    assert quick.MODEL.SEM_SEG_HEAD.NAME == full.MODEL.SEM_SEG_HEAD.NAME
    assert quick.MODEL.LT.SEM_SEG.AUX.FEATURE == full.MODEL.LT.SEM_SEG.AUX.FEATURE == "res4"
    assert quick.DATALOADER.LT == full.DATALOADER.LT
    for key in ("BASE_LR", "LR_SCHEDULER_NAME", "POLY_LR_POWER", "WEIGHT_DECAY", "MOMENTUM"):
        assert quick.SOLVER[key] == full.SOLVER[key], key


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("ade20k_*.yaml")), ids=str)
def test_the_schedule_of_the_ade20k_recipes(path):
    cfg = load_config(str(path))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (160000, 16)
    assert list(cfg.INPUT.CROP.SIZE) == [512, 512]
    assert cfg.DATASETS.TRAIN == ("ade20k_sem_seg_train",)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=cfg.SOLVER.BASE_LR)
    scheduler = LongTailTrainer.build_lr_scheduler(cfg, optimizer)
    for iteration in (0, 1000, 80000, 158000):
        scheduler.last_epoch = iteration
        expected = 0.01 * (1 - iteration / 160000) ** 0.9
        assert scheduler.get_lr()[0] == pytest.approx(expected, rel=1e-12)
    scheduler.last_epoch = 159999
    assert scheduler.get_lr()[0] == pytest.approx(1e-4, rel=1e-12)


# Name of a recipe, images of its set, epochs, epochs of its steps.
SCHEDULES = [
    ("cifar10_lt_ce", 12406, 200, (160, 180)),
    ("cifar10_lt_gcl_cben", 12406, 30, None),
    ("cifar10_lt_mislas", 12406, 10, None),
    ("imagenet_lt_gcl", 115846, 200, (120, 160)),
    ("imagenet_lt_mixup", 115846, 180, None),
    ("imagenet_lt_crt", 115846, 10, None),
    ("imagenet_lt_mislas", 115846, 10, None),
    ("places_lt_gcl", 62500, 90, (60, 80)),
    ("inat2018_gcl", 437513, 200, (120, 160)),
]


@pytest.mark.parametrize("name,images,epochs,steps", SCHEDULES)
def test_the_schedules_of_classification_are_whole_epochs(name, images, epochs, steps):
    cfg = load_config(f"configs/{name}.yaml")
    epoch = images / cfg.SOLVER.IMS_PER_BATCH
    assert cfg.SOLVER.MAX_ITER == round(epochs * epoch)
    if steps is None:
        assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"
    else:
        assert cfg.SOLVER.STEPS == tuple(round(k * epoch) for k in steps)


def test_the_schedule_of_the_lvis_recipe():
    """12 epochs of 100,170 images, steps after 8 and 11, 16 images a batch."""
    cfg = load_config("configs/lvis_eqlv2.yaml")
    epoch = 100170 / 16
    assert cfg.SOLVER.MAX_ITER == round(12 * epoch)
    assert cfg.SOLVER.STEPS == (round(8 * epoch), round(11 * epoch))
    assert cfg.SOLVER.IMS_PER_BATCH == 16 and cfg.SOLVER.BASE_LR == 0.02
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 1e-4
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1203


def test_ours_are_the_only_keys_that_are_added():
    from detectron2.config import get_cfg

    plain, ours = get_cfg(), add_lt_config(get_cfg())
    for node in ("MODEL", "DATALOADER", "DATASETS", "SOLVER", "TEST"):
        added = set(ours[node]) - set(plain[node])
        assert added == {"LT"}
        del ours[node]["LT"]
    assert ours == plain


def test_loss_parameters_can_be_set_on_the_command_line_before_any_yaml_named_them():
    cfg = load_config("", ["MODEL.LT.LOSS.NAME", "EQLv2", "MODEL.LT.LOSS.PARAMS.gamma", "3.5"])
    assert dict(cfg.MODEL.LT.LOSS.PARAMS) == {"gamma": 3.5}
    assert "gamma" in loss_parameters("EQLv2")


def prepared(tiny_options, *options, training=True, config=QUICK):
    cfg = load_config(config, [*tiny_options, *options])
    return cfg, prepare_config(cfg, training=training)


def test_class_counts_go_into_the_configuration_and_the_loss(tiny_options, tiny_set):
    cfg, counts = prepared(tiny_options)
    data = json.loads((tiny_set / "annotations" / "train.json").read_text())
    by_hand = [0] * 9
    for annotation in data["annotations"]:
        by_hand[annotation["category_id"] - 1] += 1
    assert list(cfg.MODEL.LT.CLASS_COUNTS) == by_hand == counts.instances.tolist()
    images, _ = prepared(tiny_options, "MODEL.LT.COUNT_UNIT", "images")
    assert list(images.MODEL.LT.CLASS_COUNTS) == counts.images.tolist() != by_hand
    stats = build_model(cfg).roi_heads.box_predictor.cls_loss.stats
    other = build_model(images).roi_heads.box_predictor.cls_loss.stats
    assert int(stats.counts_id) not in (0, int(other.counts_id))


def test_counts_that_are_set_are_kept_and_a_difference_is_reported(tiny_options, caplog):
    given = "[9, 8, 7, 6, 5, 4, 3, 2, 1]"
    cfg, counts = prepared(tiny_options, "MODEL.LT.CLASS_COUNTS", given)
    assert list(cfg.MODEL.LT.CLASS_COUNTS) == list(range(9, 0, -1))
    assert "CLASS_COUNTS is set and is not what DATASETS.TRAIN tiny_train holds" in caplog.text
    caplog.clear()
    prepared(tiny_options, "MODEL.LT.CLASS_COUNTS", str(counts.instances.tolist()))
    assert "CLASS_COUNTS" not in caplog.text


def test_classes_without_an_image_are_reported_once(tiny_options, tiny_set, tmp_path, caplog):
    data = json.loads((tiny_set / "annotations" / "train.json").read_text())
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] not in (2, 9)]
    (tmp_path / "fewer.json").write_text(json.dumps(data))
    entries = tiny_options[1][:-1] + (
        f", {{'name': 'fewer', 'json': '{tmp_path / 'fewer.json'}', 'images': '{tiny_set}'}}]"
    )
    names = [c["name"] for c in data["categories"] if c["id"] in (2, 9)]
    prepared(tiny_options, "DATASETS.LT.REGISTER", entries, "DATASETS.TRAIN", "('fewer',)")
    message = f"2 of the 9 classes of fewer are in no image: {', '.join(names)}"
    assert caplog.text.count(message) == 1


WRONG = {
    "classes": (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "NUM_CLASSES is 80.*tiny_train has 9"),
    "loss": (["MODEL.LT.LOSS.NAME", "EQLv3"], "'EQLv3'.*MODEL.LT.LOSS.NAME.*Did you mean 'EQLv2'"),
    "parameter": (["MODEL.LT.LOSS.PARAMS.gama", "1"], "'gama'.*PARAMS.*gamma"),
    "parameter value": (["MODEL.LT.LOSS.PARAMS.gamma", "-1.0"], "gamma=-1.0.*at least 0"),
    "data set": (["DATASETS.TRAIN", "('tiny_tain',)"], "tiny_tain.*tiny_train"),
    "test set": (["DATASETS.TEST", "('tiny_vall',)"], "tiny_vall.*tiny_val"),
    "unit": (["MODEL.LT.COUNT_UNIT", "pixels"], "'pixels'.*instances, images"),
    "batch": (
        ["SOLVER.IMS_PER_BATCH", "5", "SOLVER.LT.ACCUMULATION_STEPS", "2"],
        "IMS_PER_BATCH 5",
    ),
    "sampler": (["DATALOADER.SAMPLER_TRAIN", "RepeatSampler"], "SAMPLER_TRAIN.*TrainingSampler"),
    "rule": (
        ["DATALOADER.SAMPLER_TRAIN", "LongTailSampler", "DATALOADER.LT.SAMPLER.RULE", "cbne"],
        "'cbne' in DATALOADER.LT.SAMPLER.RULE.*Did you mean 'cben'",
    ),
    "form": (
        ["DATALOADER.SAMPLER_TRAIN", "LongTailSampler", "DATALOADER.LT.SAMPLER.FORM", "drawn"],
        "SAMPLER.FORM is 'drawn'.*repeat, draw",
    ),
    "bad image": (["DATALOADER.LT.BAD_IMAGE", "ignore"], "BAD_IMAGE is 'ignore'.*error, skip"),
    "classifier": (["MODEL.LT.CLASSIFIER.NAME", "cosin"], "CLASSIFIER.NAME is 'cosin'.*cosine"),
    "metric": (
        ["TEST.LT.BEST_METRIC", "segm/APx", "TEST.EVAL_PERIOD", "5"],
        "'segm/APx'.*TEST.LT.BEST_METRIC.*segm/APr",
    ),
    "metric without evaluation": (
        ["TEST.LT.BEST_METRIC", "segm/APr"],
        "BEST_METRIC is segm/APr but TEST.EVAL_PERIOD is 0",
    ),
    "no train set": (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
    "one resample": (["TEST.LT.BOOTSTRAP", "1"], "TEST.LT.BOOTSTRAP is 1; .* at least 2, or 0"),
    "negative resamples": (["TEST.LT.BOOTSTRAP", "-5"], "TEST.LT.BOOTSTRAP is -5"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_values_are_named_with_their_key_and_what_is_accepted(tiny_options, what):
    options, message = WRONG[what]
    with pytest.raises(LtDetError, match=f"(?s){message}"):
        prepared(tiny_options, *options)


def test_images_of_a_test_set_that_are_not_there_are_found_before_the_training(
    tiny_options, tiny_set, tmp_path
):
    json_file = tiny_set / "annotations" / "val.json"
    entries = tiny_options[1][:-1] + (
        f", {{'name': 'elsewhere', 'json': '{json_file}', 'images': '{tmp_path / 'none'}'}}]"
    )
    options = ["DATASETS.LT.REGISTER", entries, "DATASETS.TEST", "('elsewhere',)"]
    with pytest.raises(MissingFileError, match=str(tmp_path / "none")):
        prepared(tiny_options, *options)


def test_class_lists_that_differ_are_found_before_the_training(tiny_options, tiny_set, tmp_path):
    data = json.loads((tiny_set / "annotations" / "val.json").read_text())
    names = data["categories"][2], data["categories"][5]
    names[0]["name"], names[1]["name"] = names[1]["name"], names[0]["name"]
    swapped = tmp_path / "swapped.json"
    swapped.write_text(json.dumps(data))
    entries = tiny_options[1][:-1] + (
        f", {{'name': 'swapped', 'json': '{swapped}', 'images': '{tiny_set}'}}]"
    )
    options = ["DATASETS.LT.REGISTER", entries, "DATASETS.TEST", "('swapped',)"]
    with pytest.raises(ConfigError, match="swapped and DATASETS.TRAIN tiny_train.*class 2"):
        prepared(tiny_options, *options)


def test_another_loss_on_the_command_line_leaves_the_parameters_of_the_file_behind():
    cfg = load_config("configs/lvis_eqlv2.yaml", ["MODEL.LT.LOSS.NAME", "SoftmaxCE"])
    assert dict(cfg.MODEL.LT.LOSS.PARAMS) == {}
    options = ["MODEL.LT.LOSS.PARAMS.gamma", "1.5", "MODEL.LT.LOSS.NAME", "FocalLoss"]
    cfg = load_config("configs/lvis_eqlv2.yaml", options)
    assert dict(cfg.MODEL.LT.LOSS.PARAMS) == {"gamma": 1.5}
    same = load_config("configs/lvis_eqlv2.yaml", ["MODEL.LT.LOSS.NAME", "EQLv2"])
    assert same.MODEL.LT.LOSS.PARAMS.alpha == 4.0


def test_a_whole_number_is_taken_where_a_float_is_meant():
    options = ["MODEL.LT.LOSS.PARAMS.gamma", "10", "MODEL.LT.CLASSIFIER.SCALE", "30"]
    cfg = load_config("configs/lvis_eqlv2.yaml", options)
    assert cfg.MODEL.LT.LOSS.PARAMS.gamma == 10.0 and cfg.MODEL.LT.CLASSIFIER.SCALE == 30.0


@pytest.mark.parametrize(
    "text", ["MODEL: {LT: [", "_BASE_: nowhere.yaml", "- a list", "", "MODEL: {LT: {LOSS: 3}}"]
)
def test_broken_yaml_is_named(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="broken.yaml"):
        load_config(str(path))


def test_the_noise_of_a_loss_follows_the_seed_of_the_run():
    cfg = load_config("configs/quick/lvis_softmax.yaml", ["SEED", "7"])
    cfg.MODEL.LT.CLASS_COUNTS = list(range(1, 31))
    cfg.MODEL.LT.LOSS.NAME = "GCL"
    losses = [loss_from_config(cfg, num_classes=30, has_background=True) for _ in range(2)]
    cfg.SEED = 8
    losses.append(loss_from_config(cfg, num_classes=30, has_background=True))
    logits, targets = torch.zeros(40, 31), torch.arange(40) % 31
    values = [loss(logits, targets)["loss_cls"].item() for loss in losses]
    assert values[0] == values[1] != values[2]


def test_keys_and_files_that_do_not_exist():
    with pytest.raises(MissingFileError, match="configs/nowhere.yaml"):
        load_config("configs/nowhere.yaml")
    with pytest.raises(ConfigError, match="MODEL.LT.LOS"):
        load_config(QUICK, ["MODEL.LT.LOS.NAME", "EQLv2"])
    with pytest.raises(ConfigError, match="SOLVER.MAX_ITER"):
        load_config(QUICK, ["SOLVER.MAX_ITER", "many"])
    with pytest.raises(ConfigError, match="pairs"):
        load_config(QUICK, ["SOLVER.MAX_ITER"])


def test_cuda_that_is_not_there(monkeypatch, tiny_options):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="MODEL.DEVICE is cuda.*MODEL.DEVICE cpu"):
        prepared(tiny_options, "MODEL.DEVICE", "cuda")


def test_more_processes_than_cuda_devices_are_found_before_the_processes_meet(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes.*1 CUDA devices.*--nproc-per-node"):
        join_torchrun("cuda")
    assert not torch.distributed.is_initialized()


def test_an_evaluation_goes_without_the_training_set(tiny_options):
    options = ["DATASETS.TRAIN", "('lvis_v1_train',)", "MODEL.ROI_HEADS.NUM_CLASSES", "9"]
    cfg, counts = prepared(tiny_options, *options, training=False)
    assert counts is None and list(cfg.MODEL.LT.CLASS_COUNTS) == []
    with pytest.raises(MissingFileError, match="DETECTRON2_DATASETS"):
        prepared(tiny_options, *options)


def test_a_crowd_of_errors_ends_in_one_line_and_leaves_no_folder(tmp_path, tiny_options):
    """The command itself, once: message, exit status, no traceback, nothing written."""
    output = tmp_path / "run"
    options = [*tiny_options, "OUTPUT_DIR", str(output), "MODEL.ROI_HEADS.NUM_CLASSES", "80"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "tools/train_net.py", "--config-file", QUICK, *options],
        cwd=ROOT,
        env={**__import__("os").environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1].startswith("error: MODEL.ROI_HEADS.NUM_CLASSES is 80")
    )
    assert "Traceback" not in done.stderr + done.stdout
    assert not output.exists()


def test_an_evaluation_without_weights_is_an_error_before_anything_is_written(
    tmp_path, tiny_options
):
    output = tmp_path / "run"
    cfg, counts = prepared(tiny_options, "OUTPUT_DIR", str(output))
    with pytest.raises(ConfigError, match="--eval-only needs weights.*MODEL.WEIGHTS"):
        evaluate_checkpoint(cfg, counts, resume=True, before_writing=output.mkdir)
    assert not output.exists()


def test_the_message_of_a_loader_process_is_the_error_alone():
    text = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback ...\n"
    error = DataError(text + "lt_det.errors.DataError: cannot use image a.png (image id 3)\n")
    assert user_message(error) == "cannot use image a.png (image id 3)"
    assert user_message(ConfigError("KEY is 3")) == "KEY is 3"


def test_a_broken_annotation_file_is_named(tmp_path, tiny_options):
    path = tmp_path / "broken.json"
    path.write_text('{"images": [')
    register = f"[{{'name': 'broken_train', 'json': '{path}', 'images': '{tmp_path}'}}]"
    options = ["DATASETS.LT.REGISTER", register, "DATASETS.TRAIN", "('broken_train',)"]
    with pytest.raises(DataError, match="broken.json"):
        prepared(tiny_options, *options)


def test_seeds_of_a_recipe_share_the_hash_of_its_configuration(tmp_path):
    def hash_of(*options):
        return config_hash(load_config("configs/quick/lvis_eqlv2.yaml", [*options]))

    other_seed = hash_of("SEED", "7", "OUTPUT_DIR", str(tmp_path))
    assert other_seed == hash_of() != hash_of("MODEL.LT.LOSS.PARAMS.gamma", "11.0")
    assert int(other_seed, 16) < 2**256 and len(other_seed) == 64
