"""Trials of a calibration: what they evaluate is what the model gives with the key switched on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, ROIMasks
from detectron2.utils.env import seed_all_rng

from lt_det.data.datasets.synthetic_sem_seg import generate_sem_seg
from lt_det.engine import (
    LongTailCheckpointer,
    LongTailTrainer,
    calibration_trials,
    load_config,
    prepare_config,
)
from lt_det.engine.calibration_trials import (
    ClassificationTrials,
    DetectionTrials,
    SegmentationTrials,
    Truth,
    calibrated_model,
    image_number,
    image_rescoring,
    method_of,
    model_detection_trials,
    outputs_by_strength,
    read_saved_images,
    registered_truth,
    rescored_predictions,
)
from lt_det.engine.inference import masks_in_boxes
from lt_det.engine.replay import before_logits, replayed
from lt_det.engine.trainer import evaluate_checkpoint
from lt_det.errors import CheckpointError, ConfigError, DataError, MissingFileError
from lt_det.evaluation import LongTailClassificationEvaluator
from lt_det.evaluation.lvis_ground_truth import load_ground_truth
from lt_det.evaluation.lvis_predictions import read_predictions
from lt_det.evaluation.predictions import Predictions
from lt_det.evaluation.results import metric, read_record
from lt_det.evaluation.strength_search import REPORTING, TUNING, Choice, differences
from lt_det.losses import build_loss
from lt_det.modeling import norcal
from lt_det.modeling.calibration import calibrated_scores, unit_shift
from tests.engine import runs
from tests.engine.test_segmentation import SPEC, options_of
from tests.modeling import dense_cases
from tests.modeling.test_calibration import (
    CLASSIFIER,
    COUNTS,
    DETECTOR,
    FPN,
    ROI_HEADS,
    SEGMENTOR,
    config,
    pictures,
)

STRENGTHS = [0.0, 0.4, 1.0]


# ---- one run of the model for all strengths -----------------------------------------------------


def configured(kind):
    if kind in ("retinanet", "atss"):
        cfg = dense_cases.config(kind, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    elif kind == "segmentor":
        views = ("TEST.LT.SEM_SEG.WINDOW", 24, "TEST.LT.SEM_SEG.SCALES", (1.0, 0.75))
        cfg = config(*SEGMENTOR, "MODEL.SEM_SEG_HEAD.NAME", "UPerNetHead", *views)
    else:
        small = ("MODEL.RPN.POST_NMS_TOPK_TEST", 12, "TEST.DETECTIONS_PER_IMAGE", 30)
        if kind == "LongTailRes5ROIHeads":  # features of this size would make all scores 0 or 1
            small += ("MODEL.LT.CLASSIFIER.INIT_STD", 0.01)
        heads = (*ROI_HEADS[kind], "MODEL.ROI_HEADS.NAME", kind)
        cfg = config(*DETECTOR, *heads, "MODEL.MASK_ON", kind == "LongTailROIHeads", *small)
    return cfg


def built(cfg, name="", strength=0.0):
    cfg = cfg.clone()
    cfg.MODEL.LT.CALIBRATION.NAME, cfg.MODEL.LT.CALIBRATION.STRENGTH = name, strength
    torch.manual_seed(0)
    return build_model(cfg).eval()


def tensors(outputs):
    """All numbers of a model's outputs."""
    found = []
    for output in outputs:
        for value in output.values():
            fields = value.get_fields().values() if isinstance(value, Instances) else [value]
            found += [x.tensor if isinstance(x, (Boxes, ROIMasks)) else x for x in fields]
    return found


@pytest.mark.parametrize("kind", ["retinanet", "atss", "segmentor", *ROI_HEADS])
def test_outputs_are_those_of_the_model_with_the_key_on(kind):
    """Bit for bit, over several batches, masks, stages, windows and views; one pass each."""
    cfg = configured(kind)
    if kind == "LongTailROIHeads":  # boxes and masks
        assert cfg.MODEL.MASK_ON
    model, passes = built(cfg, "NorCal"), []
    model.backbone.register_forward_pre_hook(lambda *_: passes.append(1))
    compute = model.backbone.forward
    computed = []
    model.backbone.forward = lambda x: computed.append(1) or compute(x)
    loader = [pictures(seed)[:1] for seed in (0, 1)]
    found = [
        (inputs, k, tensors(outputs))
        for inputs, k, outputs in outputs_by_strength(model, loader, STRENGTHS)
    ]
    assert [k for _, k, _ in found] == [0, 1, 2, 0, 1, 2]
    # Of a segmentor, a pass per window; elsewhere one a batch.
    assert len(computed) * len(STRENGTHS) == len(passes)
    first, last = (built(cfg, *on) for on in ((), ("NorCal", 1.0)))
    for inputs, k, numbers in found:
        if k == 1:
            continue
        with torch.no_grad():
            expected = tensors(masks_in_boxes(first if k == 0 else last)(inputs))
        assert len(numbers) == len(expected) > 0
        assert all(torch.equal(a, b) for a, b in zip(numbers, expected, strict=True))
    changed = [torch.equal(a, b) for a, b in zip(found[0][2], found[2][2], strict=False)]
    assert not all(changed)


def test_replayed_parts_are_themselves_again():
    model = built(configured("LongTailCascadeROIHeads"))
    parts = before_logits(model)
    assert len(parts) == 6  # backbone, proposals, pooler, three box heads
    with replayed(parts):
        assert all(name in owner.__dict__ for owner, name in parts)
    assert not any(name in owner.__dict__ for owner, name in parts)


def test_a_method_is_known_by_any_spelling():
    for name in ("norcal", "NorCal", "NORCAL"):
        assert method_of(name) == "NorCal"
    assert method_of("logit-adjustment") == method_of("logit_adjustment") == "LogitAdjustment"
    assert method_of("tau-norm") == "TauNorm"
    with pytest.raises(ConfigError, match="'temperature' in --method.*LogitAdjustment, NorCal"):
        method_of("temperature")


def test_weights_have_to_fit_and_the_head_to_be_ours(tmp_path):
    cfg = config(*CLASSIFIER)
    path = tmp_path / "other.pth"
    torch.save({"model": {}, "loss": "SoftmaxCE"}, path)
    with pytest.raises(CheckpointError, match="lacks"):
        calibrated_model(cfg, "NorCal", str(path))
    theirs = config(*DETECTOR, *FPN, "MODEL.ROI_HEADS.NAME", "StandardROIHeads")
    with pytest.raises(ConfigError, match="CALIBRATION.NAME is NorCal.*StandardROIHeads"):
        calibrated_model(theirs, "NorCal", str(path))


def test_training_knows_nothing_of_a_calibration(tiny_options, tmp_path):
    """Checkpoints with and without it are bit-equal, an evaluation on the way included."""
    options = [*tiny_options, "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"]
    on = ("MODEL.LT.CALIBRATION.NAME", "NorCal", "MODEL.LT.CALIBRATION.STRENGTH", 0.5)
    states = []
    for name, more in (("plain", ()), ("calibrated", on)):
        seed_all_rng(3)
        runs.train("configs/quick/lvis_softmax.yaml", options, tmp_path / name, *more)
        states.append(torch.load(tmp_path / name / "model_final.pth", weights_only=True))
    assert runs.differences(*states) == []


def test_a_calibration_that_no_head_applies_is_refused(tiny_options):
    on = ["MODEL.LT.CALIBRATION.NAME", "NorCal", "MODEL.LT.CALIBRATION.STRENGTH", "0.5"]

    def prepare(*more):
        options = [*tiny_options, *on, *more]
        prepare_config(load_config("configs/quick/lvis_softmax.yaml", options), training=False)

    prepare()
    with pytest.raises(ConfigError, match="CALIBRATION.NAME is NorCal.*StandardROIHeads"):
        prepare("MODEL.ROI_HEADS.NAME", "StandardROIHeads")
    with pytest.raises(ConfigError, match="STRENGTH is -1.0"):
        prepare("MODEL.LT.CALIBRATION.STRENGTH", "-1.0")


# ---- image classification -----------------------------------------------------------------------

NAMES = ["ant", "bee", "cat", "dog"]


def evaluated(folder, outputs, labels, **more):
    """Result record of outputs under image ids of falling order; files in `folder`."""
    evaluator = LongTailClassificationEvaluator(
        dataset_name="toy",
        class_names=NAMES,
        class_counts={"images": COUNTS},
        output_dir=None if folder is None else str(folder),
        distributed=False,
        **more,
    )
    ids = [{"image_id": 100 - k, "label": label} for k, label in enumerate(labels)]
    evaluator.process(ids, outputs)
    evaluator.evaluate()
    return evaluator.record


def check_differences(trials, k):
    """Those of the records, on the images for reporting."""
    before, after = (trials.record(i, REPORTING) for i in (0, k))
    groups = before["per_class"].get("group")
    found = differences(trials, k, groups, resamples=20)
    wanted = {name: metric(after, name) - metric(before, name) for name in found}
    assert len(wanted) >= 4 and np.nansum(np.abs([*wanted.values()])) > 0
    for name, difference in wanted.items():
        assert found[name].difference == pytest.approx(difference, abs=1e-9, nan_ok=True)


def classifier_outputs(net, number=40):
    """Scores of random features; none is so high that float32 has 1 for it."""
    x = torch.randn(number, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = calibrated_scores(net.calibration, net.cls_loss, net.logits(x), net.classifier)
    return [{"scores": s, "features": f} for s, f in zip(scores, x, strict=True)]


LABELS = np.random.default_rng(0).integers(0, 4, 40).tolist()


@pytest.mark.parametrize("method", ["NorCal", "LogitAdjustment", "TauNorm"])
@pytest.mark.parametrize("loss", ["SoftmaxCE", "SigmoidBCE"])
def test_saved_scores_evaluate_as_the_model_does(loss, method, tmp_path, monkeypatch):
    """In batches of seven."""
    cfg = config(*CLASSIFIER, "MODEL.LT.LOSS.NAME", loss, "MODEL.LT.CLASSIFIER.INIT_STD", 0.3)
    plain = built(cfg)
    weights = {"keep_features": True, "classifier_weights": lambda: plain.classifier.weight}
    evaluated(tmp_path, classifier_outputs(plain), LABELS, **weights)
    saved = read_saved_images(tmp_path, 4, method)
    parts = {TUNING: saved, REPORTING: saved.select(np.arange(3, 40))}
    monkeypatch.setattr(calibration_trials, "_BATCH", 7)
    trials = ClassificationTrials(
        parts,
        image_rescoring(plain.cls_loss, method, COUNTS),
        STRENGTHS,
        dataset="toy",
        class_names=NAMES,
        groups=None,
        image_counts=COUNTS,
    )
    assert trials.num_images == {TUNING: 40, REPORTING: 37}
    for k, strength in enumerate(STRENGTHS):
        expected = evaluated(None, classifier_outputs(built(cfg, method, strength)), LABELS)
        found = trials.record(k, TUNING)
        assert found["protocol"] == expected["protocol"]
        assert found["per_class"] == expected["per_class"]
        ours, theirs = (r["metrics"]["classification"] for r in (found, expected))
        # The rest is the same; confidences are of float32 here and there.
        assert ours.pop("ece") == pytest.approx(theirs.pop("ece"), abs=1e-3)
        assert ours == theirs
    check_differences(trials, 2)


def test_images_are_chosen_with_what_was_kept_of_them(tmp_path):
    net = built(config(*CLASSIFIER))
    weights = {"keep_features": True, "classifier_weights": lambda: net.classifier.weight}
    evaluated(tmp_path, classifier_outputs(net), LABELS, **weights)
    saved = read_saved_images(tmp_path, 4, "TauNorm")
    part = saved.select(np.arange(0, 40, 3))
    assert part.image_ids.tolist() == [*range(61, 101, 3)]
    assert part.labels.tolist() == LABELS[::-1][::3]
    assert torch.equal(part.scores, saved.scores[::3])
    assert torch.equal(part.features, saved.features[::3]) and part.weights is saved.weights
    assert read_saved_images(tmp_path, 4, "NorCal").features is None


def test_what_was_not_kept_is_said(tmp_path):
    with pytest.raises(MissingFileError, match=r"predictions\.npz"):
        read_saved_images(tmp_path, 4, "NorCal")
    np.savez(
        tmp_path / "predictions.npz",
        image_ids=np.arange(2),
        labels=np.arange(2),
        top_classes=np.zeros((2, 1), dtype=int),
        top_scores=np.zeros((2, 1)),
    )
    with pytest.raises(DataError, match="best five scores.*MODEL.LT.CALIBRATION"):
        read_saved_images(tmp_path, 4, "NorCal")
    net = built(config(*CLASSIFIER))
    evaluated(tmp_path, classifier_outputs(net), LABELS)
    with pytest.raises(MissingFileError, match=r"features\.npz"):
        read_saved_images(tmp_path, 4, "TauNorm")
    evaluated(tmp_path, classifier_outputs(net), LABELS, keep_features=True)
    with pytest.raises(ConfigError, match="linear classifier.*KEEP_FEATURES"):
        read_saved_images(tmp_path, 4, "TauNorm")
    weights = {"keep_features": True, "classifier_weights": lambda: net.classifier.weight}
    evaluated(tmp_path, classifier_outputs(net), LABELS, **weights)
    evaluated(tmp_path, classifier_outputs(net, 39), LABELS[1:])
    with pytest.raises(DataError, match="are of different images"):
        read_saved_images(tmp_path, 4, "TauNorm")
    cosine = build_loss("GCL", num_classes=4, class_counts=COUNTS)
    with pytest.raises(ConfigError, match="loss GCL has a cosine one"):
        image_rescoring(cosine, "TauNorm", COUNTS)


# ---- segmentation -------------------------------------------------------------------------------


def untrained(config_file, options, output, *more):
    """A prepared configuration with saved random weights, its counts, and their file."""
    cfg = load_config(config_file, [*options, "OUTPUT_DIR", str(output), *map(str, more)])
    counts = prepare_config(cfg, training=False)
    torch.manual_seed(0)
    model = LongTailTrainer.build_model(cfg)
    checkpointer = LongTailCheckpointer(model, str(output), loss=cfg.MODEL.LT.LOSS.NAME)
    output.mkdir(parents=True)
    checkpointer.save("model_final")
    return cfg, counts, str(output / "model_final.pth")


def evaluated_with_key(cfg, counts, weights, method, strength):
    """Record of the usual evaluation with the calibration switched on."""
    cfg = cfg.clone()
    cfg.MODEL.LT.CALIBRATION.NAME, cfg.MODEL.LT.CALIBRATION.STRENGTH = method, strength
    cfg.MODEL.WEIGHTS = weights
    evaluate_checkpoint(cfg, counts, resume=False, before_writing=lambda: None)
    return read_record(f"{cfg.OUTPUT_DIR}/results/{cfg.DATASETS.TEST[0]}.json")


def test_segmentation_evaluates_as_with_the_key_on(tmp_path):
    folder = generate_sem_seg(tmp_path / "set", SPEC)
    options = options_of(folder, tmp_path, "trials")
    cfg, counts, weights = untrained(
        "configs/quick/sem_seg_ce.yaml",
        options,
        tmp_path / "run",
        *("MODEL.LT.CLASSIFIER.INIT_STD", 1.0, "TEST.LT.SEM_SEG.FLIP", True),
    )
    number = image_number("trials_val")
    choice = Choice(
        {TUNING: "trials_val", REPORTING: "trials_val"},
        {TUNING: np.arange(number), REPORTING: np.arange(1, number)},
    )
    model = calibrated_model(cfg.clone(), "NorCal", weights)
    trials = SegmentationTrials(cfg, model, choice, STRENGTHS, counts, "training pixels")
    assert trials.num_images == {TUNING: number, REPORTING: number - 1}
    for k, strength in enumerate(STRENGTHS):
        expected = evaluated_with_key(cfg, counts, weights, "NorCal", strength)
        found = trials.record(k, TUNING)
        assert found["metrics"] == expected["metrics"]
        assert found["per_class"] == expected["per_class"]
    assert trials.record(0, TUNING)["metrics"] != trials.record(2, TUNING)["metrics"]
    assert trials.record(0, REPORTING)["protocol"]["images"] == number - 1
    check_differences(trials, 2)


# ---- detection ----------------------------------------------------------------------------------


def test_detection_evaluates_as_with_the_key_on(tiny_options, tmp_path):
    cfg, counts, weights = untrained(
        "configs/quick/lvis_softmax.yaml",
        tiny_options,
        tmp_path / "run",
        *("MODEL.LT.CLASSIFIER.INIT_STD", 1.0, "TEST.DETECTIONS_PER_IMAGE", 40),
    )
    everything = np.arange(image_number("tiny_val"))
    choice = Choice(
        {TUNING: "tiny_val", REPORTING: "tiny_val"}, {TUNING: everything, REPORTING: everything[:2]}
    )
    model = calibrated_model(cfg.clone(), "NorCal", weights)
    trials = model_detection_trials(cfg, model, choice, [0.0, 0.7], counts)
    for k, strength in enumerate([0.0, 0.7]):
        expected = evaluated_with_key(cfg, counts, weights, "NorCal", strength)
        path = tmp_path / "run" / "inference" / "tiny_val" / "lvis_instances_results.json"
        theirs, ours = read_predictions(path), trials.predictions[TUNING][k]()
        for name in ("image_ids", "category_ids", "scores", "boxes", "mask_counts"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        found = trials.record(k, TUNING)
        for field in ("metrics", "per_class", "protocol", "group_sizes"):
            assert found[field] == expected[field]
    scores = [find().scores for find in trials.predictions[TUNING]]
    assert len(scores[0]) and not np.array_equal(*(np.sort(x) for x in scores))
    assert trials.num_images == {TUNING: len(everything), REPORTING: 2}
    assert len(np.unique(trials.predictions[REPORTING][0]().image_ids)) == 2
    assert trials.record(0, REPORTING)["protocol"]["images"] == 2
    check_differences(trials, 1)


RESULTS = Predictions.from_results(
    [
        {"image_id": 1, "category_id": 30, "score": 0.9, "bbox": [0, 0, 4, 4]},
        {"image_id": 2, "category_id": 10, "score": 0.2, "bbox": [0, 0, 4, 4]},
        {"image_id": 1, "category_id": 20, "score": 0.5, "bbox": [9, 9, 4, 4]},
    ]
)
IDS = np.array([10, 20, 30])


def rescored(results=RESULTS, method="NorCal", strength=0.5, *, form="sigmoid", ids=IDS):
    shift = strength * unit_shift(method, [100, 4, 1])
    return rescored_predictions(results, ids, shift, form=form)


def test_saved_predictions_are_rescored_by_their_class():
    """Odds are divided by n^gamma; all but the score stays, and so does what was given."""
    found = rescored()
    odds = np.array([9.0, 0.25 / 10, 1 / 2])
    np.testing.assert_allclose(found.scores, odds / (1 + odds))
    for name in ("image_ids", "category_ids", "boxes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(RESULTS, name))
    assert RESULTS.scores.tolist() == [0.9, 0.2, 0.5]
    assert rescored(strength=0) is RESULTS
    odds = np.array([900.0, 0.25, 25.0])
    adjusted = rescored(method="LogitAdjustment", strength=1)
    np.testing.assert_allclose(adjusted.scores, odds / (1 + odds))


def test_detections_of_one_box_share_a_softmax():
    """All classes of two regions at once: what the softmax of shifted logits gives."""
    logits = torch.tensor([[2.0, 0, -1, 1], [0, 1, 0, 3]]).double()  # the background last
    scores = logits.softmax(dim=1)
    saved = [
        {"image_id": 4, "category_id": IDS[k].item(), "score": scores[r, k].item()}
        | {"bbox": [r, 1, 2, 3]}
        for k in range(3)
        for r in range(2)
    ]
    elsewhere = saved[0] | {"image_id": 5}
    found = rescored(Predictions.from_results([*saved, elsewhere]), form="softmax").scores
    expected = norcal(logits, [100, 4, 1], 0.5).softmax(dim=1)[:, :3].T.flatten()
    np.testing.assert_allclose(found[:6], expected, rtol=1e-12)
    alone = rescored(Predictions.from_results([elsewhere]), form="sigmoid").scores
    assert found[6] == alone[0] != found[0]


def test_predictions_that_cannot_be_rescored_are_named():
    with pytest.raises(DataError, match="prediction 0: category id 30"):
        rescored(ids=IDS[:2])
    for bad in (1.5, -0.1, float("nan")):
        wrong = replace(RESULTS, scores=np.array([0.9, bad, 0.5]))
        with pytest.raises(DataError, match=f"prediction 1: score {bad}"):
            rescored(wrong)
    with pytest.raises(ConfigError, match="'TauNorm'.*LogitAdjustment, NorCal"):
        rescored(method="TauNorm")


def test_perfect_detections_of_a_part_are_perfect(tiny_set):
    """Those of other images are left out, though they are wrong."""
    path = tiny_set / "annotations" / "val.json"
    whole = json.loads(path.read_text())
    images = [x["id"] for x in whole["images"]]
    right = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 1.0}
        for a in whole["annotations"]
    ]
    wrong = [p | {"bbox": [0.0, 0.0, 1.0, 1.0]} for p in right if p["image_id"] in images[3:]]
    good = [p for p in right if p["image_id"] in images[:3]]
    truth = Truth("toy", load_ground_truth(str(path)), [str(k) for k in range(9)], None, None, {})
    trials = DetectionTrials(
        [0.0],
        dict.fromkeys((TUNING, REPORTING), truth),
        {TUNING: images[:3], REPORTING: images[3:]},
        dict.fromkeys((TUNING, REPORTING), [lambda: Predictions.from_results(good + wrong)]),
        tasks=("bbox",),
    )
    assert trials.record(0, TUNING)["metrics"]["bbox"]["AP"] == 100
    assert trials.record(0, REPORTING)["metrics"]["bbox"]["AP"] == 0


def test_groups_are_those_of_the_training_set_or_of_the_file(tiny_options):
    cfg = load_config("configs/quick/lvis_softmax.yaml", tiny_options)
    counts = prepare_config(cfg, training=False)
    truth = registered_truth("tiny_val", counts)
    assert truth.class_counts["images"] == counts.images.tolist()
    assert len(truth.class_names) == truth.ground_truth.num_classes == 9
    assert registered_truth("tiny_val", None).class_counts == {}
