"""Starting from parts of another training."""

import pickle

import pytest
import torch
from detectron2.modeling import build_model

from lt_det.engine import load_config
from lt_det.engine.optimizer import scale_learning_rate
from lt_det.engine.stages import (
    check_stage_keys,
    first_stage_file,
    load_backbone,
    load_first_stage,
    report_backbone_differences,
)
from lt_det.errors import CheckpointError, ConfigError

CIFAR = [
    *("MODEL.META_ARCHITECTURE", "LongTailClassifier", "MODEL.DEVICE", "cpu"),
    *("MODEL.BACKBONE.NAME", "build_cifar_resnet_backbone", "MODEL.RESNETS.DEPTH", "8"),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.LT.NUM_CLASSES", "5"),
    *("MODEL.LT.CLASS_COUNTS", "[50, 20, 9, 4, 1]"),
]
R18 = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.LT.CLASS_COUNTS", "[]"),
]
R18_CLASSIFIER = [
    *R18,
    *("MODEL.META_ARCHITECTURE", "LongTailClassifier", "MODEL.BACKBONE.NAME"),
    *("build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res5']", "MODEL.RESNETS.NORM"),
    *("BN", "MODEL.LT.NUM_CLASSES", "5"),
]


def build(options, config="", seed=0):
    torch.manual_seed(seed)
    return build_model(load_config(config, options))


def save(model, path):
    torch.save({"model": model.state_dict(), "loss": "SoftmaxCE"}, path)
    return str(path)


@pytest.fixture
def run_folder(tmp_path):
    """A first stage: GCL after two steps, with noise drawn."""
    model = build([*CIFAR, "MODEL.LT.LOSS.NAME", "GCL"])
    batch = [{"image": torch.randint(0, 256, (3, 8, 8)), "label": k} for k in range(4)]
    model(batch)
    save(model, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    return tmp_path, model


def test_a_second_stage_has_the_weights_and_its_own_loss_state(run_folder):
    folder, first = run_folder
    second = build([*CIFAR, "MODEL.LT.LOSS.NAME", "GCL", "MODEL.LT.CLASS_SCALE", "True"], seed=1)
    load_first_stage(second, str(folder))
    for name, value in first.state_dict().items():
        if not name.startswith("cls_loss."):
            assert torch.equal(second.state_dict()[name], value), name
    assert first.cls_loss.noise.draws == 1 and second.cls_loss.noise.draws == 0


def test_what_starts_anew_keeps_its_own_weights(run_folder):
    folder, first = run_folder
    second = build([*CIFAR, "MODEL.LT.LOSS.NAME", "GCL"], seed=1)
    own = second.classifier.weight.clone()
    load_first_stage(second, str(folder), ("classifier", "backbone.res4"))
    assert torch.equal(second.classifier.weight, own)
    assert not torch.equal(
        second.backbone.res4[0].conv1.weight, first.backbone.res4[0].conv1.weight
    )
    assert torch.equal(second.backbone.res3[0].conv1.weight, first.backbone.res3[0].conv1.weight)


def test_factors_of_a_first_stage_go_on_and_are_not_lost(tmp_path):
    scaled = ["MODEL.LT.CLASS_SCALE", "True"]
    first = build([*CIFAR, *scaled])
    torch.nn.init.uniform_(first.class_scale.scale)
    file = save(first, tmp_path / "first.pth")
    second = build([*CIFAR, *scaled], seed=1)
    load_first_stage(second, file)
    assert torch.equal(second.class_scale.scale, first.class_scale.scale)
    with pytest.raises(CheckpointError, match="class_scale.scale.*CLASS_SCALE True"):
        load_first_stage(build(CIFAR, seed=1), file)


def test_a_first_stage_that_does_not_fit_changes_nothing(run_folder, tmp_path):
    folder, _ = run_folder
    linear = build([*CIFAR, "MODEL.LT.LOSS.NAME", "SoftmaxCE"], seed=1)
    before = {k: v.clone() for k, v in linear.state_dict().items()}
    # A cosine classifier has no bias.
    with pytest.raises(CheckpointError, match="has no classifier.bias"):
        load_first_stage(linear, str(folder))
    deeper = build([*CIFAR, "MODEL.RESNETS.DEPTH", "14"])
    with pytest.raises(CheckpointError, match="model_final.pth has no backbone.res2.1"):
        load_first_stage(deeper, str(folder))
    more = build([*CIFAR, "MODEL.LT.NUM_CLASSES", "7", "MODEL.LT.CLASS_COUNTS", "[]"])
    stored = save(linear, tmp_path / "five.pth")
    with pytest.raises(CheckpointError, match=r"classifier.weight is \(5, 64\).*\(7, 64\)"):
        load_first_stage(more, stored)
    assert all(torch.equal(v, before[k]) for k, v in linear.state_dict().items())
    with pytest.raises(ConfigError, match="START_ANEW.*'clasifier'.*classifier"):
        load_first_stage(linear, stored, ("clasifier",))


def test_a_missing_first_stage_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="FIRST_STAGE.*nowhere"):
        first_stage_file(str(tmp_path / "nowhere"))
    # A training that was stopped is none to build on, unless its checkpoint is named.
    (tmp_path / "model_0000009.pth").write_bytes(b"")
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(CheckpointError, match="no finished training.*to its end"):
        first_stage_file(str(tmp_path))
    named = str(tmp_path / "model_0000009.pth")
    assert first_stage_file(named) == named


@pytest.mark.parametrize("start", ["detector", "classifier"])
def test_backbones_travel_between_detectors_and_classifiers(start, tmp_path):
    detector = build(R18, "configs/quick/lvis_softmax.yaml", seed=1)
    stem = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "32"]
    classifier = build([*R18_CLASSIFIER, *stem], seed=2)
    below = detector.backbone.bottom_up, classifier.backbone
    source, target = (detector, classifier) if start == "detector" else (classifier, detector)
    other = {
        k: v.clone()
        for k, v in target.state_dict().items()
        if "backbone.bottom_up." not in k and (start == "classifier" or "backbone." not in k)
    }
    load_backbone(target, save(source, tmp_path / "backbone.pth"))
    a, b = (module.state_dict() for module in below)
    assert len(a) > 60 and a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(torch.equal(target.state_dict()[k], v) for k, v in other.items())


def test_a_backbone_that_does_not_fit_or_is_none_is_an_error(tmp_path):
    classifier = build(R18_CLASSIFIER)
    with pytest.raises(CheckpointError, match="BACKBONE_WEIGHTS.*no checkpoint"):
        load_backbone(classifier, str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match="holds no backbone"):
        load_backbone(classifier, save(torch.nn.Linear(2, 2), tmp_path / "linear.pth"))
    with pytest.raises(CheckpointError, match="cifar.pth has no stem.conv1.weight"):
        load_backbone(classifier, save(build(CIFAR), tmp_path / "cifar.pth"))


def test_what_a_backbone_was_trained_with_is_compared(tmp_path, caplog):
    cfg = load_config("", R18_CLASSIFIER)
    file = str(tmp_path / "model_final.pth")
    report_backbone_differences(cfg, file)
    assert "no " in caplog.text and "config.yaml to compare with" in caplog.text
    caplog.clear()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    report_backbone_differences(cfg, file)
    assert caplog.text == ""
    cfg.merge_from_list(["INPUT.FORMAT", "RGB", "MODEL.RESNETS.STRIDE_IN_1X1", "False"])
    report_backbone_differences(cfg, file)
    assert "INPUT.FORMAT is 'RGB', but the backbone" in caplog.text
    assert "STRIDE_IN_1X1 is False" in caplog.text and "PIXEL_MEAN" not in caplog.text


def test_files_of_detectron2s_zoo_are_read(tmp_path):
    source, target = build(R18_CLASSIFIER, seed=1), build(R18_CLASSIFIER, seed=2)
    arrays = {k: v.numpy() for k, v in source.state_dict().items() if k.startswith("backbone.")}
    with open(tmp_path / "zoo.pkl", "wb") as file:
        pickle.dump({"model": arrays, "__author__": "someone"}, file)
    load_backbone(target, str(tmp_path / "zoo.pkl"))
    assert torch.equal(target.backbone.res5[1].conv2.weight, source.backbone.res5[1].conv2.weight)
    (tmp_path / "broken.pkl").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*broken.pkl"):
        load_backbone(target, str(tmp_path / "broken.pkl"))


def test_keys_that_undo_each_other():
    cfg = load_config("", ["MODEL.LT.FIRST_STAGE", "a", "MODEL.LT.BACKBONE_WEIGHTS", "b"])
    with pytest.raises(ConfigError, match="FIRST_STAGE and MODEL.LT.BACKBONE_WEIGHTS"):
        check_stage_keys(cfg)
    for key, value in (("MODEL.LT.FREEZE", "('backbone',)"), ("TEST.LT.TAU_NORM", "0.5")):
        with pytest.raises(ConfigError, match=f"{key} is .*only .*LongTailClassifier"):
            check_stage_keys(load_config("configs/quick/lvis_softmax.yaml", [key, value]))
    with pytest.raises(ConfigError, match="START_ANEW is set.*no MODEL.LT.FIRST_STAGE"):
        check_stage_keys(load_config("", [*CIFAR, "MODEL.LT.START_ANEW", "('classifier',)"]))


def test_the_classifier_may_learn_at_another_rate():
    model = build(CIFAR)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=0.01)
    scale_learning_rate(optimizer, model, 0.25)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    inside = {id(p) for p in model.classifier.parameters()}
    assert len(rates) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert rates[id(parameter)] == (0.05 if id(parameter) in inside else 0.2)
    assert all(g["weight_decay"] == 0.01 for g in optimizer.param_groups)
    with pytest.raises(ConfigError, match="CLASSIFIER_LR_FACTOR is 0"):
        scale_learning_rate(optimizer, model, 0)
    with pytest.raises(ConfigError, match="Linear has no `classifier`"):
        scale_learning_rate(optimizer, torch.nn.Linear(1, 1), 2.0)
