"""tools/calibrate.py: parts of the images, tables, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from lt_det.data.datasets.synthetic_sem_seg import generate_sem_seg
from lt_det.engine import LongTailCheckpointer, load_config, prepare_config
from lt_det.evaluation import LongTailClassificationEvaluator
from lt_det.evaluation.results import check_record, write_record
from tests.engine.test_segmentation import SPEC, options_of
from tests.tools.load import load_tool

tool = load_tool("calibrate")

COUNTS = [400, 30, 5]
NAMES = ["ant", "bee", "cat"]
OPTIONS = [
    *("MODEL.META_ARCHITECTURE", "LongTailClassifier", "MODEL.DEVICE", "cpu"),
    *("MODEL.LT.NUM_CLASSES", "3", "MODEL.LT.CLASS_COUNTS", str(COUNTS)),
    *("DATASETS.TEST", "('toy',)"),
]


def make_run(folder, *options, name="toy", number=600, seed=0, prior=1.0):
    """A run whose logits are a likelihood plus `prior` times the log counts."""
    cfg = load_config("", [*OPTIONS, *options])
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, number)
    logits = rng.normal(size=(number, 3)) + 1.5 * np.eye(3)[labels] + prior * np.log(COUNTS)
    evaluator = LongTailClassificationEvaluator(
        dataset_name=name,
        class_names=NAMES,
        class_counts={"images": COUNTS},
        output_dir=str(folder / "inference" / name),
        distributed=False,
    )
    images = [{"image_id": k, "label": int(x)} for k, x in enumerate(labels)]
    logits = torch.tensor(logits, dtype=torch.float32)
    evaluator.process(images, [{"scores": row} for row in logits.softmax(dim=1)])
    evaluator.evaluate()
    write_record(folder / "results" / f"{name}.json", evaluator.record)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "biased")


def calibrate(capsys, *args):
    """Printed text and written result."""
    assert tool.main([str(a) for a in args]) == 0
    out = capsys.readouterr().out
    path = out.rsplit("wrote ", 1)[1].strip() if "wrote " in out else None
    return out, None if path is None else json.loads(open(path).read())


def refused(capsys, *args):
    assert tool.main([str(a) for a in args]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("method", ["norcal", "logit-adjustment"])
def test_the_planted_prior_is_found_and_helps_the_other_half(run, method, capsys):
    """Bayes: strength 1 is best; with 300 images for tuning the choice is near it."""
    out, result = calibrate(capsys, "--run", run, "--method", method)
    assert 0.6 <= result["strength"] <= 1.4
    assert result["images"] == {"tuning": 300, "reporting": 300}
    before, after = (result["records"]["reporting"][w] for w in ("before", "after"))
    accuracy = [r["metrics"]["classification"]["mean_class"] for r in (before, after)]
    assert accuracy[1] > accuracy[0] + 15
    for part in result["records"].values():
        for record in part.values():
            check_record(record)
            assert record["protocol"]["images"] == 300
    tuned = [
        r["metrics"]["classification"]["mean_class"] for r in result["records"]["tuning"].values()
    ]
    assert tuned == [result["tuning_values"][0], max(result["tuning_values"])]
    change = result["differences"]["classification/mean_class"]
    assert change["difference"] == pytest.approx(accuracy[1] - accuracy[0], abs=1e-9)
    assert change["beyond_noise"] and change["interval"][0] > 10
    assert f"| {change['difference']:+.2f} |" in " ".join(out.split())
    assert f"| reporting images, strength {result['strength']:g}" in out
    assert "chooses the strength, the other 300 are for the report" in out
    assert result["yaml"] in out


def test_the_switch_is_the_configuration_that_it_says(run, capsys, tmp_path):
    _, result = calibrate(capsys, "--run", run, "--method", "norcal")
    path = tmp_path / "more.yaml"
    path.write_text(result["yaml"])
    node = load_config(str(path)).MODEL.LT.CALIBRATION
    assert (node.NAME, node.STRENGTH) == ("NorCal", result["strength"])


def test_the_seed_draws_the_halves(run, capsys, tmp_path):
    results = [
        calibrate(
            capsys, "--run", run, "--method", "norcal", "--seed", s, "--json", tmp_path / "x"
        )[1]
        for s in (0, 0, 1)
    ]
    assert results[0] == results[1]
    assert results[0]["tuning_values"] != results[2]["tuning_values"]


def test_a_given_strength_is_reported_on_all_images(run, capsys):
    out, result = calibrate(capsys, "--run", run, "--method", "norcal", "--strength", 0.5)
    assert result["images"] == {"tuning": 0, "reporting": 600}
    assert list(result["records"]) == ["reporting"] and result["chosen_by"] is None
    assert "nothing was chosen" in out and "Differences on the reporting images" in out
    record = json.loads((run / "results" / "toy.json").read_text())
    assert result["records"]["reporting"]["before"]["metrics"] == record["metrics"]


def test_another_set_may_choose(tmp_path, capsys):
    """The set to tune on has no prior in its scores: no strength is better than none there."""
    folder = make_run(tmp_path / "run")
    make_run(folder, name="other", number=400, seed=1, prior=0.0)
    out, result = calibrate(
        capsys, "--run", folder, "--method", "norcal", "--tune-on", "other", "--strengths", "1,2"
    )
    assert result["sets"] == {"tuning": "other", "reporting": "toy"}
    assert result["images"] == {"tuning": 400, "reporting": 600}
    assert result["strengths"] == [0, 1, 2]
    assert result["strength"] == 0 and result["yaml"] is None
    assert "leave the calibration off" in out and "Switch it on" not in out
    record = json.loads((folder / "results" / "toy.json").read_text())
    assert result["records"]["reporting"]["after"]["metrics"] == record["metrics"]


def test_the_end_of_the_grid_is_said(run, capsys):
    out, result = calibrate(capsys, "--run", run, "--method", "norcal", "--strengths", "0.1,0.3")
    assert result["strength"] == 0.3 and "try larger ones" in out


def test_another_metric_may_choose(run, capsys):
    _, result = calibrate(
        capsys, "--run", run, "--method", "norcal", "--metric", "classification/many"
    )
    assert result["strength"] == 0 and result["chosen_by"] == "classification/many"
    assert "classification/most" in refused(
        capsys, "--run", run, "--method", "norcal", "--metric", "classification/most"
    )


def test_options_override_the_configuration_of_the_run(run, capsys):
    """Equal counts: no strength changes anything."""
    args = ["--run", run, "--method", "norcal", "--strengths", "0.5,1"]
    _, result = calibrate(capsys, *args, "MODEL.LT.CLASS_COUNTS", "[7, 7, 7]")
    assert result["strength"] == 0 and len(set(result["tuning_values"])) == 1


def test_images_may_be_fewer(run, capsys):
    args = ["--run", run, "--method", "norcal", "--limit", 100, "--resamples", 0]
    _, result = calibrate(capsys, *args)
    assert result["differences"] == {}
    assert result["images"] == {"tuning": 50, "reporting": 50}


def test_a_calibrated_run_is_not_calibrated_again(tmp_path, capsys):
    on = ("MODEL.LT.CALIBRATION.NAME", "NorCal", "MODEL.LT.CALIBRATION.STRENGTH", "0.5")
    folder = make_run(tmp_path / "run", *on)
    assert "switched on" in refused(capsys, "--run", folder, "--method", "norcal")
    assert "no " in refused(capsys, "--run", tmp_path, "--method", "norcal")
    plain = make_run(tmp_path / "plain")
    assert "'platt' in --method" in refused(capsys, "--run", plain, "--method", "platt")


@pytest.mark.parametrize(
    "args",
    [
        ["--method", "norcal"],
        ["--run", "a", "--pred", "b", "--method", "norcal"],
        ["--run", "a", "--method", "norcal", "--strength", "1", "--metric", "x"],
        ["--pred", "b", "--method", "norcal", "--gt", "c", "--counts", "d"],
        ["--run", "a", "--method", "norcal", "--scores", "softmax"],
        ["--run", "a", "--method", "norcal", "--limit", "-1"],
        ["--run", "a", "--method", "norcal", "--seed", "-1"],
        [
            *("--pred", "b", "--method", "norcal", "--gt", "c", "--counts", "d"),
            *("--scores", "softmax", "SEED", "1"),
        ],
        ["--run", "a", "--method", "norcal", "--resamples", "1"],
    ],
)
def test_contradictory_arguments_are_refused(args):
    with pytest.raises(SystemExit):
        tool.parse_args(args)


def test_a_result_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    folder = make_run(tmp_path / "run")
    (folder / "calibration").write_text("a file")
    monkeypatch.setattr(tool, "search", None)
    error = refused(capsys, "--run", folder, "--method", "norcal")
    assert "toy.NorCal.json cannot be written" in error and "--json" in error


# ------------------------------------------------------------------ models


def untrained(config_file, options, folder):
    """A run with random weights whose outputs depend on the class counts."""
    cfg = load_config(config_file, [*options, "MODEL.LT.CLASSIFIER.INIT_STD", "1.0"])
    prepare_config(cfg, training=False)
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    LongTailCheckpointer(build_model(cfg), str(folder)).save("model_final")
    return folder


def test_a_detector_is_run_for_its_strength(tiny_options, tmp_path, capsys, caplog):
    more = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"]
    run = untrained("configs/quick/lvis_softmax.yaml", [*tiny_options, *more], tmp_path / "run")
    args = ["--run", run, "--method", "norcal", "--strengths", "0.5"]
    out, result = calibrate(capsys, *args)
    assert result["images"] == {"tuning": 3, "reporting": 3}
    assert result["chosen_by"] == "bbox/AP" and "| reporting images, as it is" in out
    record = result["records"]["reporting"]["before"]
    assert list(record["metrics"]) == ["bbox"] and record["protocol"]["images"] == 3
    assert "SCORE_THRESH_TEST is 0.01" in caplog.text
    # A metric of masks: these are predicted too.
    _, result = calibrate(
        capsys, *args, "--metric", "segm/AP", "--limit", 4, "DATALOADER.NUM_WORKERS", 0
    )
    assert list(result["records"]["tuning"]["after"]["metrics"]) == ["bbox", "segm"]
    assert result["images"] == {"tuning": 2, "reporting": 2}


def test_a_segmentor_is_run_for_its_strength(tmp_path, capsys):
    options = options_of(generate_sem_seg(tmp_path / "set", SPEC), tmp_path, "calibrated")
    run = untrained("configs/quick/sem_seg_ce.yaml", options, tmp_path / "run")
    _, result = calibrate(capsys, "--run", run, "--method", "tau-norm", "--strengths", "0.5,1")
    assert result["images"] == {"tuning": 2, "reporting": 2}
    assert len(result["tuning_values"]) == 3 and result["chosen_by"] == "sem_seg/mIoU"
    assert result["records"]["reporting"]["after"]["protocol"]["images"] == 2


def test_a_loss_that_corrects_the_prior_is_said_beside_a_given_strength(tmp_path, capsys, caplog):
    folder = make_run(tmp_path / "run", "MODEL.LT.LOSS.NAME", "BalancedSoftmax")
    calibrate(capsys, "--run", folder, "--method", "norcal")
    assert "corrected twice" not in caplog.text
    calibrate(capsys, "--run", folder, "--method", "norcal", "--strength", 0.5)
    assert "loss BalancedSoftmax" in caplog.text and "corrected twice" in caplog.text


# ------------------------------------------------------------------ saved predictions


@pytest.fixture
def detections(tmp_path):
    """Twenty images, each with one of two classes at one place, of which both are detected.

    The rare class (id 7, second by id) has the lower score even where it is right; that of the
    frequent one (id 3) is divided enough by NorCal. An image without either comes last, with a
    detection of the rare class that beats the right ones unless the scores are shifted.
    """
    images, annotations, results = [], [], []
    for k in range(20):
        images.append({"id": k, "width": 64, "height": 64})
        own = 3 if k % 2 else 7
        annotations.append(
            {
                "id": k + 1,
                "image_id": k,
                "category_id": own,
                "bbox": [4, 4, 20, 20],
                "area": 400,
            }
        )
        for category, score in ((3, 0.9), (7, 0.6)):
            right = category == own
            box = [4, 4, 20, 20] if right else [40, 40, 9, 9]
            results.append(
                {
                    "image_id": k,
                    "category_id": category,
                    "score": score if right else score - 0.1,
                    "bbox": box,
                }
            )
    categories = [{"id": 7, "name": "rare"}, {"id": 3, "name": "frequent"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    counts = {
        "per_class": {"name": ["rare", "frequent"], "images": [2, 200], "instances": [3, 900]}
    }
    paths = []
    for name, value in (("gt", content), ("results", results), ("counts", counts)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(value))
    return paths


def test_saved_predictions_are_rescored_and_written(detections, tmp_path, capsys):
    gt, pred, counts = detections
    args = ["--pred", pred, "--gt", gt, "--counts", counts, "--method", "norcal"]
    args += ["--scores", "sigmoid"]
    more = ["--strength", 0.5, "--json", tmp_path / "found.json"]
    output = tmp_path / "new" / "out.json"
    out, result = calibrate(capsys, *args, *more, "--output", output)
    assert "taken for background" in out and "use --run" in out and "Switch it on" not in out
    new, old = (json.loads(p.read_text()) for p in (output, pred))
    for before, after in zip(old, new, strict=True):
        count = 900 if before["category_id"] == 3 else 3
        odds = before["score"] / (1 - before["score"]) / count**0.5
        assert after["score"] == pytest.approx(odds / (1 + odds), rel=1e-12)
        assert {**before, "score": 0} == {**after, "score": 0}
    records = result["records"]["reporting"]
    assert records["before"]["metrics"]["bbox"]["AP"] == 100
    assert records["before"]["per_class"]["train_instances"] == [900, 3]  # by category id
    by_images, _ = calibrate(capsys, *args, *more, "--unit", "images", "--output", output)
    score = json.loads(output.read_text())[1]["score"]  # 0.6 of the rare class
    assert score == pytest.approx(1.5 / 2**0.5 / (1 + 1.5 / 2**0.5), rel=1e-12)


def test_halves_of_saved_predictions(detections, tmp_path, capsys):
    gt, pred, counts = detections
    args = ["--pred", pred, "--gt", gt, "--counts", counts, "--method", "logit-adjustment"]
    args += ["--scores", "softmax"]
    _, result = calibrate(capsys, *args, "--json", tmp_path / "found.json")
    assert result["images"] == {"tuning": 10, "reporting": 10}
    assert result["records"]["tuning"]["before"]["protocol"]["images"] == 10


def test_files_that_do_not_fit_are_named(detections, tmp_path, capsys):
    gt, pred, counts = detections
    args = ["--gt", gt, "--method", "norcal", "--scores", "softmax"]
    missing = refused(capsys, "--pred", pred, "--counts", tmp_path / "none.json", *args)
    assert "none.json" in missing and "class_counts.py" in missing
    bad = tmp_path / "bad.json"
    bad.write_text('{"per_class": {"name": ["rare"], "images": [2]}}')
    assert "instances; it has images" in refused(capsys, "--pred", pred, "--counts", bad, *args)
    assert "1 of the 2 classes of the annotation file, the first is 'frequent'" in refused(
        capsys, "--pred", pred, "--counts", bad, *args, "--unit", "images"
    )
    bad.write_text("[1, 2]")
    assert "class_counts.py --json" in refused(capsys, "--pred", pred, "--counts", bad, *args)
    for column, words in (
        ([3], "instances of 2 classes, got 1"),
        ([3, 900, 4], "instances of 2 classes, got 3"),
        (3, "instances of 2 classes, got 3"),
        ([3, "900"], "instances are whole numbers >= 0, got '900'"),
        ([3, None], "got None"),
        ([3, -1], "got -1"),
        ([3, 2.5], "got 2.5"),
    ):
        columns = {"name": ["rare", "frequent"], "instances": column}
        bad.write_text(json.dumps({"per_class": columns}))
        error = refused(capsys, "--pred", pred, "--counts", bad, *args)
        assert "bad.json" in error and words in error
    columns = {"name": ["rare", "frequent", "rare"], "instances": [3, 900, 4]}
    bad.write_text(json.dumps({"per_class": columns}))
    error = refused(capsys, "--pred", pred, "--counts", bad, *args)
    assert "bad.json has two classes of one name" in error
    tau = ["--gt", gt, "--method", "tau-norm", "--scores", "softmax"]
    error = refused(capsys, "--pred", pred, "--counts", counts, *tau)
    assert "--method tau-norm" in error and "use --run" in error and "MODEL.LT" not in error
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    assert "no prediction" in refused(capsys, "--pred", empty, "--counts", counts, *args)
    assert "good for bbox" in refused(
        capsys, "--pred", pred, "--counts", counts, *args, "--metric", "segm/AP"
    )
    bad.write_text("[1, 2")
    args[1] = bad
    assert "bad.json" in refused(capsys, "--pred", pred, "--counts", counts, *args)
