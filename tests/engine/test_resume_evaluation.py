"""`--eval-only --resume` after a kill: only what is missing is predicted, and nothing else."""

import json
import os

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN

import lt_det
from lt_det.engine import LongTailTrainer, load_config, prepare_config
from lt_det.engine.inference import prediction_fingerprint
from lt_det.engine.trainer import evaluate_checkpoint
from lt_det.evaluation import prediction_files
from lt_det.evaluation.prediction_files import FOLDER, part_files

CONFIG = "configs/quick/lvis_eqlv2.yaml"
IMAGES = 6  # of the tiny set for tests


class Killed(BaseException):
    pass


@pytest.fixture
def options(tiny_options, tmp_path):
    """Of an evaluation of random weights from a file."""
    torch.manual_seed(0)
    options = [*tiny_options, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    options += ["TEST.DETECTIONS_PER_IMAGE", "10", "DATALOADER.NUM_WORKERS", "0"]
    model = LongTailTrainer.build_model(load_config(CONFIG, options))
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    return [*options, "MODEL.WEIGHTS", str(tmp_path / "weights.pth")]


@pytest.fixture
def evaluate(options, tmp_path, monkeypatch):
    """Evaluate with some overrides; ids of the images that were predicted, and the record."""
    monkeypatch.setattr(prediction_files, "PART_BYTES", 0)  # a part after every image
    inference = GeneralizedRCNN.inference

    def run(output, *more, resume=True, killed_after=None):
        seen = []

        def counted(self, batch, **kwargs):
            if len(seen) == killed_after:
                raise Killed
            seen.extend(image["image_id"] for image in batch)
            return inference(self, batch, **kwargs)

        monkeypatch.setattr(GeneralizedRCNN, "inference", counted)
        cfg = load_config(CONFIG, [*options, "OUTPUT_DIR", str(tmp_path / output), *more])
        counts = prepare_config(cfg, training=False)
        cfg.freeze()
        try:
            evaluate_checkpoint(cfg, counts, resume=resume, before_writing=lambda: None)
        except Killed:
            return seen, None
        return seen, json.loads((tmp_path / output / "results" / "tiny_val.json").read_text())

    return run


def files(tmp_path, output):
    return part_files(tmp_path / output / "inference" / "tiny_val" / FOLDER)


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_record(evaluate, tmp_path, caplog):
    all_images, expected = evaluate("whole", resume=False)
    assert len(set(all_images)) == len(all_images) == IMAGES
    first, _ = evaluate("killed", resume=False, killed_after=2)
    second, _ = evaluate("killed", killed_after=1)
    with caplog.at_level("INFO", logger="lt_det"):
        third, record = evaluate("killed")
    assert [len(first), len(second), len(third)] == [2, 1, IMAGES - 3]
    assert sorted(first + second + third) == sorted(all_images)
    assert "the predictions for 3 images are there" in caplog.text
    assert record["metrics"] == expected["metrics"]
    assert record["per_class"] == expected["per_class"]
    assert len(files(tmp_path, "killed")) == IMAGES


def test_an_evaluation_that_died_after_the_inference_needs_no_model(evaluate):
    _, expected = evaluate("run", resume=False)
    seen, record = evaluate("run")
    assert seen == [] and record["metrics"] == expected["metrics"]


def test_without_resume_all_is_predicted_again(evaluate, tmp_path):
    evaluate("run", resume=False)
    seen, _ = evaluate("run", resume=False)
    assert len(seen) == len(files(tmp_path, "run")) == IMAGES


@pytest.mark.parametrize("change", ["configuration", "weights", "time of the weights"])
def test_predictions_of_another_model_are_not_used(evaluate, tmp_path, options, change, caplog):
    evaluate("run", resume=False, killed_after=4)
    weights, more = tmp_path / "weights.pth", []
    if change == "configuration":
        more = ["INPUT.MIN_SIZE_TEST", "72"]
    elif change == "weights":
        content = torch.load(weights)
        content["model"]["more"] = torch.zeros(3)
        torch.save(content, weights)
    else:
        os.utime(weights, (1, 1))
    with caplog.at_level("INFO", logger="lt_det"):
        seen, _ = evaluate("run", *more)
    assert len(seen) == len(files(tmp_path, "run")) == IMAGES
    assert "4 files in" in caplog.text and "other weights" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("SOLVER.BASE_LR", "0.5", True),
        ("DATALOADER.NUM_WORKERS", "3", True),
        ("OUTPUT_DIR", "elsewhere", True),
        ("SEED", "7", True),
        ("TEST.LT.BOOTSTRAP", "100", True),
        ("TEST.DETECTIONS_PER_IMAGE", "11", False),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.3", False),
        ("INPUT.FORMAT", "RGB", False),
    ],
)
def test_what_predictions_depend_on(options, tmp_path, key, value, same):
    weights = str(tmp_path / "weights.pth")
    before, after = (
        prediction_fingerprint(load_config(CONFIG, o), weights, "counts", weights)
        for o in (options, [*options, key, value])
    )
    assert (before == after) == same


def test_fingerprints_of_files_counts_and_code(options, tmp_path, monkeypatch):
    cfg = load_config(CONFIG, options)
    cfg.freeze()
    weights, copy = (str(tmp_path / name) for name in ("weights.pth", "copy.pth"))
    torch.save(torch.load(weights), copy)
    prints = {
        prediction_fingerprint(cfg, *rest)
        for rest in (
            (weights, "counts", weights),
            (copy, "counts", weights),
            (weights, "others", weights),
            (weights, "counts", copy),
        )
    }
    assert len(prints) == 4
    monkeypatch.setattr(lt_det, "__version__", "0.0")
    assert prediction_fingerprint(cfg, weights, "counts", weights) not in prints
    # A model that is being trained has no file.
    assert prediction_fingerprint(cfg, None, "counts", weights) == ""
