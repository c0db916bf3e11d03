"""The evaluator against plain ``lvis.LVISEval``, and against results worked out by hand."""

import copy
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import lvis.eval
import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.evaluation.testing import flatten_results_dict, print_csv_format
from detectron2.structures import Boxes, Instances

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation import (
    LongTailLVISEvaluator,
    Matches,
    Predictions,
    evaluate_lvis,
    load_predictions,
)
from lt_det.evaluation.groups import GROUPS, group_means
from lt_det.evaluation.lvis_ground_truth import load_ground_truth
from lt_det.evaluation.lvis_predictions import PREDICTIONS_FILE, write_predictions
from lt_det.evaluation.results import class_values
from tests.gloo import leave

ROOT = Path(__file__).resolve().parents[2]
SIZE = 200  # pixels; room for all three area ranges (32^2, 96^2)
# Ours: lvis's.
METRICS = {
    **{name: name for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")},
    **{name: f"{name}@300" for name in ("AR", "ARs", "ARm", "ARl")},
}


# ------------------------------------------------------------------ data sets and predictions


def shape_mask(box, size=SIZE):
    """A box without its lower right quarter, so that mask and box differ in area and IoU."""
    x, y, w, h = (round(v) for v in box)
    mask = np.zeros((size, size), dtype=bool)
    mask[y : y + h, x : x + w] = True
    mask[y + h // 2 : y + h, x + w // 2 : x + w] = False
    return mask


def rle(mask):
    out = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": out["size"], "counts": out["counts"].decode()}


def annotation(number, image_id, category_id, box):
    mask = shape_mask(box)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "area": float(mask.sum()),
        "segmentation": rle(mask),
    }


def random_box(rng):
    side = float(rng.choice([12, 24, 50, 80, 120, 150]))
    w, h = (int(side * f) for f in rng.uniform(0.7, 1.2, size=2))
    return [int(rng.integers(0, SIZE - w)), int(rng.integers(0, SIZE - h)), w, h]


def federated_dataset(rng, num_images=7, num_classes=9):
    """Random LVIS file: some images without objects, the last class without ground truth."""
    ids = [int(i) for i in rng.permutation(np.arange(3, 3 + 4 * num_classes, 4))]
    categories = [
        {"id": i, "name": f"class {i}", "frequency": str(rng.choice(list(GROUPS)))} for i in ids
    ]
    images, annotations = [], []
    for image_id in (int(i) for i in rng.permutation(num_images) + 100):
        present = [] if image_id % 5 == 0 else rng.choice(ids[:-1], size=4, replace=False).tolist()
        for category_id in present:
            for _ in range(rng.integers(1, 4)):
                annotations.append(
                    annotation(len(annotations) + 1, image_id, category_id, random_box(rng))
                )
        absent = sorted(set(ids) - set(present))
        images.append(
            {
                "id": image_id,
                "height": SIZE,
                "width": SIZE,
                "neg_category_ids": [i for i in absent if rng.random() < 0.4],
                "not_exhaustive_category_ids": [i for i in present if rng.random() < 0.3],
            }
        )
    annotations[0]["area"] = 0.0  # LVISEval leaves such ground truth out
    return {"images": images, "annotations": annotations, "categories": categories}


def random_predictions(rng, dataset, many=False):
    """{image id: [(class index, box, score)]}: near hits, misses, wrong classes, equal scores."""
    index = {c["id"]: k for k, c in enumerate(dataset["categories"])}
    out = {image["id"]: [] for image in dataset["images"]}
    for ann in dataset["annotations"]:
        for _ in range(rng.integers(0, 3)):
            shift = rng.integers(-6, 7, size=2)
            x, y = np.clip(np.array(ann["bbox"][:2]) + shift, 0, SIZE - 1)
            out[ann["image_id"]].append((index[ann["category_id"]], [x, y, *ann["bbox"][2:]]))
    for image_id, own in out.items():
        extra = 330 if many and image_id == dataset["images"][1]["id"] else 12
        own.extend((int(rng.integers(len(index))), random_box(rng)) for _ in range(extra))
        rng.shuffle(own)
    # One decimal: many equal scores within and across images.
    return {i: [(k, b, round(rng.random(), 1)) for k, b in own] for i, own in out.items()}


def instances(predictions, masks=True, size=SIZE):
    out = Instances((size, size))
    boxes = torch.tensor([[x, y, x + w, y + h] for _, (x, y, w, h), _ in predictions])
    out.pred_boxes = Boxes(boxes.reshape(-1, 4).float())
    out.scores = torch.tensor([s for _, _, s in predictions], dtype=torch.float64)
    out.pred_classes = torch.tensor([k for k, _, _ in predictions], dtype=torch.int64)
    if masks:
        own = [shape_mask(b, size) for _, b, _ in predictions]
        out.pred_masks = torch.from_numpy(np.array(own).reshape(-1, size, size).astype(bool))
    return out


def write_json(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def make_evaluator(path, dataset, **kwargs):
    kwargs = {"dataset_name": "toy", "distributed": False, "output_dir": str(path), **kwargs}
    return LongTailLVISEvaluator(
        json_file=write_json(path / "gt.json", dataset),
        class_names=[c["name"] for c in dataset["categories"]],
        category_ids=[c["id"] for c in dataset["categories"]],
        **kwargs,
    )


def process(evaluator, predictions, masks=True):
    evaluator.reset()
    for image_id, own in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances(own, masks)}])


def run(path, dataset, predictions, masks=True, **kwargs):
    evaluator = make_evaluator(path, dataset, **kwargs)
    process(evaluator, predictions, masks)
    return evaluator.evaluate(), evaluator


# ------------------------------------------------------------------ the reference


class NumpyWithFloat:
    """What ``lvis.eval`` of 0.5.3 takes for numpy, for the time of a call."""

    float = float

    def __getattr__(self, name):
        return getattr(np, name)


def reference(json_file, predictions, task):
    """``lvis.LVISEval`` of the package itself, as Detectron2 calls it, in percent."""
    predictions = copy.deepcopy(predictions)
    if task == "segm":  # or LVISResults would take the area of the box
        for p in predictions:
            p.pop("bbox")
    gt = lvis.LVIS(json_file)
    with mock.patch.object(lvis.eval, "np", NumpyWithFloat()):
        evaluation = lvis.LVISEval(gt, lvis.LVISResults(gt, predictions), task)
        evaluation.run()
    results = {k: 100 * v if v > -1 else np.nan for k, v in evaluation.get_results().items()}
    return {ours: results[theirs] for ours, theirs in METRICS.items()}, evaluation


def assert_equal_to_reference(results, path, dataset, predictions):
    for task in ("bbox", "segm"):
        expected, _ = reference(write_json(path / "reference.json", dataset), predictions, task)
        assert results[task] == pytest.approx(expected, abs=1e-10, nan_ok=True), task


@pytest.mark.parametrize("seed", range(6))
def test_equals_lviseval_on_random_federated_data(tmp_path, seed):
    rng = np.random.default_rng(seed)
    dataset = federated_dataset(rng)
    results, evaluator = run(tmp_path, dataset, random_predictions(rng, dataset, many=seed < 3))
    predictions = load_predictions(str(tmp_path / PREDICTIONS_FILE))
    assert 5 < results["bbox"]["AP"] < 95  # the comparison is about something
    for task in ("bbox", "segm"):
        expected, evaluation = reference(str(tmp_path / "gt.json"), predictions, task)
        assert results[task] == pytest.approx(expected, abs=1e-10, nan_ok=True)
        # Ours has the classes in the order of the file, LVISEval by id.
        order = np.argsort([c["id"] for c in dataset["categories"]])
        entries = evaluation.eval["precision"][..., 0]
        per_class = class_values(evaluator.record, f"{task}/AP")[order]
        for k, value in enumerate(per_class):
            valid = entries[:, :, k][entries[:, :, k] > -1]
            expected_ap = 100 * valid.mean() if valid.size else np.nan
            assert value == pytest.approx(expected_ap, abs=1e-10, nan_ok=True)


def test_precision_array_is_that_of_lviseval_bit_for_bit(tmp_path):
    rng = np.random.default_rng(11)
    dataset = federated_dataset(rng)
    _, evaluator = run(tmp_path, dataset, random_predictions(rng, dataset, many=True))
    predictions = load_predictions(str(tmp_path / PREDICTIONS_FILE))
    order = np.argsort([c["id"] for c in dataset["categories"]])
    for task in ("bbox", "segm"):
        _, evaluation = reference(str(tmp_path / "gt.json"), predictions, task)
        result = evaluate_lvis(
            tmp_path / "gt.json",
            predictions,
            [task],
            category_ids=[c["id"] for c in dataset["categories"]],
        )
        assert np.array_equal(result.precision[task][:, :, order], evaluation.eval["precision"])
        assert np.array_equal(result.recall[task][:, order], evaluation.eval["recall"])


def test_the_cap_keeps_the_best_detections_of_an_image(tmp_path):
    rng = np.random.default_rng(4)
    dataset = federated_dataset(rng)
    predictions = random_predictions(rng, dataset)
    full, _ = run(tmp_path, dataset, predictions)
    capped, _ = run(tmp_path, dataset, predictions, max_detections=5)
    best = {i: sorted(own, key=lambda p: -p[2])[:5] for i, own in predictions.items()}
    by_hand, _ = run(tmp_path, dataset, best)
    for task in ("bbox", "segm"):
        assert capped[task] == pytest.approx(by_hand[task], abs=1e-10, nan_ok=True)
    assert capped["bbox"]["AP"] != full["bbox"]["AP"]


def test_given_groups_average_as_lviseval_does_with_that_frequency(tmp_path):
    rng = np.random.default_rng(5)
    dataset = federated_dataset(rng)
    groups = ["r", "f", "c"] * 3
    assert groups != [c["frequency"] for c in dataset["categories"]]
    results, evaluator = run(tmp_path, dataset, random_predictions(rng, dataset), groups=groups)
    regrouped = copy.deepcopy(dataset)
    for category, group in zip(regrouped["categories"], groups, strict=True):
        category["frequency"] = group
    predictions = load_predictions(str(tmp_path / PREDICTIONS_FILE))
    assert_equal_to_reference(results, tmp_path, regrouped, predictions)
    assert evaluator.record["per_class"]["group"] == groups
    assert evaluator.record["protocol"]["groups"] == "given"


def test_mean_of_the_classes_is_the_ap_and_of_a_group_its_ap(tmp_path):
    rng = np.random.default_rng(6)
    dataset = federated_dataset(rng)
    results, evaluator = run(tmp_path, dataset, random_predictions(rng, dataset))
    groups = [c["frequency"] for c in dataset["categories"]]
    for task in ("bbox", "segm"):
        values = class_values(evaluator.record, f"{task}/AP")
        assert np.isnan(values[-1])  # the class without ground truth
        assert results[task]["AP"] == pytest.approx(np.nanmean(values), abs=1e-10)
        expected = {f"AP{g}": v for g, v in group_means(values, groups).items()}
        got = {name: results[task][name] for name in expected}
        assert got == pytest.approx(expected, abs=1e-10, nan_ok=True)


def test_coco_file_equals_lviseval_with_every_absent_class_negative(tmp_path, caplog):
    rng = np.random.default_rng(7)
    federated = federated_dataset(rng)
    everything = [c["id"] for c in federated["categories"]]
    for image in federated["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = everything, []
    coco = copy.deepcopy(federated)
    for image in coco["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    groups = [c.pop("frequency") for c in coco["categories"]]
    counts = {"images": [{"r": 4, "c": 40, "f": 400}[g] for g in groups]}
    with caplog.at_level(logging.INFO, logger="lt_det"):
        results, evaluator = run(tmp_path, coco, random_predictions(rng, coco), class_counts=counts)
    assert "taken as annotated exhaustively" in caplog.text
    predictions = load_predictions(str(tmp_path / PREDICTIONS_FILE))
    assert_equal_to_reference(results, tmp_path, federated, predictions)
    assert evaluator.record["protocol"]["groups"] == "training images"
    assert not evaluator.record["protocol"]["federated"]


def test_categories_that_are_not_classes_of_the_model_take_no_part(tmp_path):
    rng = np.random.default_rng(8)
    dataset = federated_dataset(rng)
    kept = dataset["categories"][2:6]
    ids = {c["id"] for c in kept}
    smaller = copy.deepcopy(dataset)
    smaller["categories"] = kept
    smaller["annotations"] = [a for a in smaller["annotations"] if a["category_id"] in ids]
    evaluator = LongTailLVISEvaluator(
        dataset_name="toy",
        json_file=write_json(tmp_path / "gt.json", dataset),
        class_names=[c["name"] for c in kept],
        category_ids=[c["id"] for c in kept],
        output_dir=str(tmp_path),
        distributed=False,
    )
    process(evaluator, random_predictions(rng, smaller))
    results = evaluator.evaluate()
    predictions = load_predictions(str(tmp_path / PREDICTIONS_FILE))
    assert_equal_to_reference(results, tmp_path, smaller, predictions)


# ------------------------------------------------------------------ by hand

BOX, ELSEWHERE = [20, 20, 40, 40], [120, 120, 40, 40]
# One detection ranked above the only true one: precision 1/2 at every recall.
HALF = 50.0


def one_object(image_lists=None, images=1):
    """Class 0 ("a", id 7) has one object in each image; class 1 ("b", id 3) none."""
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    lists = lists if image_lists is None else image_lists
    ids = range(1, images + 1)
    return {
        "images": [{"id": i, "height": SIZE, "width": SIZE, **lists} for i in ids],
        "annotations": [annotation(i, i, 7, BOX) for i in ids],
        "categories": [
            {"id": 7, "name": "a", "frequency": "c"},
            {"id": 3, "name": "b", "frequency": "r"},
        ],
    }


def approx(value):
    return pytest.approx(value, abs=1e-9, nan_ok=True)


def test_perfect_predictions_give_100(tmp_path):
    dataset = federated_dataset(np.random.default_rng(9))
    dataset["annotations"][0]["area"] = 1.0
    index = {c["id"]: k for k, c in enumerate(dataset["categories"])}
    predictions = {i["id"]: [] for i in dataset["images"]}
    for ann in dataset["annotations"]:
        predictions[ann["image_id"]].append((index[ann["category_id"]], ann["bbox"], 0.9))
    results, evaluator = run(tmp_path, dataset, predictions)
    for task in ("bbox", "segm"):
        assert {m: results[task][m] for m in ("AP", "AP50", "AP75")} == approx(
            {"AP": 100.0, "AP50": 100.0, "AP75": 100.0}
        )
        values = class_values(evaluator.record, f"{task}/AP")
        assert values[:-1] == approx(np.full(8, 100.0))


def test_results_are_in_the_order_of_the_classes_of_the_model(tmp_path):
    dataset = one_object()
    dataset["annotations"].append(annotation(2, 1, 3, ELSEWHERE))
    _, evaluator = run(tmp_path, dataset, {1: [(0, BOX, 0.9)]})
    assert evaluator.record["per_class"]["name"] == ["a", "b"]
    assert class_values(evaluator.record, "bbox/AP") == approx(np.array([100.0, 0.0]))


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"neg_category_ids": [], "not_exhaustive_category_ids": []}, HALF),
        ({"neg_category_ids": [], "not_exhaustive_category_ids": [7]}, 100.0),
    ],
    ids=["exhaustive", "not exhaustive"],
)
def test_unmatched_detection_of_a_present_class(tmp_path, lists, expected):
    predictions = {1: [(0, ELSEWHERE, 0.9), (0, BOX, 0.8)]}
    results, _ = run(tmp_path, one_object(lists), predictions)
    assert results["bbox"]["AP"] == approx(expected)
    assert results["segm"]["AP"] == approx(expected)


@pytest.mark.parametrize(("negative", "expected"), [([], 100.0), ([7], HALF)])
def test_detection_in_an_image_without_the_class_counts_only_if_it_was_looked_for(
    tmp_path, negative, expected
):
    dataset = one_object()
    lists = {"neg_category_ids": negative, "not_exhaustive_category_ids": []}
    dataset["images"].append({"id": 2, "height": SIZE, "width": SIZE, **lists})
    results, _ = run(tmp_path, dataset, {1: [(0, BOX, 0.8)], 2: [(0, ELSEWHERE, 0.9)]})
    assert results["bbox"]["AP"] == approx(expected)


def test_class_without_ground_truth_has_no_value_and_enters_no_mean(tmp_path):
    dataset = one_object({"neg_category_ids": [3], "not_exhaustive_category_ids": []})
    results, evaluator = run(tmp_path, dataset, {1: [(0, BOX, 0.9), (1, ELSEWHERE, 0.9)]})
    assert results["bbox"]["AP"] == approx(100.0)
    assert results["bbox"]["APc"] == approx(100.0)
    assert np.isnan(results["bbox"]["APr"]) and np.isnan(results["bbox"]["APf"])
    assert evaluator.record["per_class"]["bbox/AP"][1] is None
    assert evaluator.record["metrics"]["bbox"]["APr"] is None


def test_equal_scores_rank_in_the_order_given(tmp_path):
    hit, miss = (0, BOX, 0.5), (0, ELSEWHERE, 0.5)
    assert run(tmp_path, one_object(), {1: [hit, miss]})[0]["bbox"]["AP"] == approx(100.0)
    assert run(tmp_path, one_object(), {1: [miss, hit]})[0]["bbox"]["AP"] == approx(HALF)


@pytest.mark.parametrize("second", [{2: []}, {}], ids=["nothing found", "not processed"])
def test_image_without_predictions_costs_its_recall(tmp_path, second, caplog):
    with caplog.at_level(logging.WARNING, logger="lt_det"):
        results, _ = run(tmp_path, one_object(images=2), {1: [(0, BOX, 0.9)], **second})
    # Recall ends at 1/2: precision 1 at the 51 thresholds 0, 0.01, ..., 0.50 of 101.
    assert results["bbox"]["AP"] == approx(100 * 51 / 101)
    assert ("1 of 2 images of toy were not processed" in caplog.text) == (not second)


def test_no_predictions_give_0(tmp_path):
    results, evaluator = run(tmp_path, one_object(), {1: []})
    assert list(results) == ["bbox", "segm"]
    assert results["bbox"]["AP"] == results["segm"]["AP"] == results["bbox"]["APc"] == 0.0
    assert np.isnan(results["bbox"]["APr"])
    assert load_predictions(str(tmp_path / PREDICTIONS_FILE)) == []
    assert evaluator.evaluate_predictions([])["segm"]["AP"] == 0.0


def test_no_ground_truth_gives_no_values(tmp_path, caplog):
    dataset = one_object({"neg_category_ids": [7], "not_exhaustive_category_ids": []})
    del dataset["annotations"]  # as in the files of a test set
    results, evaluator = run(tmp_path, dataset, {1: [(0, BOX, 0.9)]})
    assert all(np.isnan(v) for task in results.values() for v in task.values())
    assert evaluator.record["per_class"]["bbox/AP"] == [None, None]
    assert "toy has no ground truth" in caplog.text


def test_crowds_are_left_out(tmp_path, caplog):
    dataset = one_object(image_lists={})
    dataset["annotations"].append({**annotation(2, 1, 7, ELSEWHERE), "iscrowd": 1})
    with caplog.at_level(logging.INFO, logger="lt_det"):
        only_hit, _ = run(tmp_path, dataset, {1: [(0, BOX, 0.8)]})
        on_crowd, _ = run(tmp_path, dataset, {1: [(0, ELSEWHERE, 0.9), (0, BOX, 0.8)]})
    assert only_hit["bbox"]["AP"] == approx(100.0)
    assert on_crowd["bbox"]["AP"] == approx(HALF)
    assert caplog.text.count("1 crowd annotations are left out") == 2  # once per evaluator


def test_an_annotation_numbered_0_can_be_found(tmp_path):
    dataset = one_object()
    dataset["annotations"][0]["id"] = 0
    results, _ = run(tmp_path, dataset, {1: [(0, BOX, 0.9)]})
    assert results["bbox"]["AP"] == approx(100.0)
    predictions = load_predictions(str(tmp_path / PREDICTIONS_FILE))
    plain, _ = reference(str(tmp_path / "gt.json"), predictions, "bbox")
    assert plain["AP"] == 0.0  # why annotations are numbered anew


def test_sizes_are_those_of_the_mask_for_masks_and_of_the_box_for_boxes(tmp_path):
    # 34 x 34 is medium as a box (1156 > 32^2 = 1024); without a quarter (867) it is small.
    box = [20, 20, 34, 34]
    dataset = one_object(image_lists={})
    for ann_area, small in ((None, 100.0), (1156.0, None)):
        ann = annotation(1, 1, 7, box)
        ann["area"] = ann_area
        if ann_area is None:
            del ann["area"]  # computed from the mask
        dataset["annotations"] = [ann]
        results, _ = run(tmp_path, dataset, {1: [(0, box, 0.9)]})
        assert results["segm"]["APs"] == approx(np.nan if small is None else small)
        assert results["segm"]["APm"] == approx(100.0 if small is None else np.nan)


def test_non_finite_predictions_are_dropped_with_one_counted_warning(tmp_path, caplog):
    dataset = one_object()
    good = [(0, BOX, 0.8)]
    bad = [(0, [np.nan, 20, 40, 40], 0.9), (0, ELSEWHERE, np.nan), (0, ELSEWHERE, np.inf)]
    evaluator = make_evaluator(tmp_path, dataset)
    out = instances([(k, [0, 0, 9, 9], s) for k, _, s in bad] + good)
    out.pred_boxes.tensor[0, 0] = np.nan
    evaluator.process([{"image_id": 1}], [{"instances": out}])
    with caplog.at_level(logging.WARNING, logger="lt_det"):
        results = evaluator.evaluate()
    assert results["bbox"]["AP"] == approx(100.0)
    warnings = [r.message for r in caplog.records if "not finite" in r.message]
    assert len(warnings) == 1 and warnings[0].startswith("3 of 4 predictions")
    assert len(load_predictions(str(tmp_path / PREDICTIONS_FILE))) == 1


def test_image_processed_twice_counts_once(tmp_path, caplog):
    dataset = one_object(images=2)
    once = {1: [(0, BOX, 0.7), (0, ELSEWHERE, 0.9)], 2: [(0, BOX, 0.8)]}
    expected, _ = run(tmp_path, dataset, once)
    evaluator = make_evaluator(tmp_path, dataset)
    for image_id in (1, 2, 1):
        evaluator.process([{"image_id": image_id}], [{"instances": instances(once[image_id])}])
    assert evaluator.evaluate()["bbox"] == approx(expected["bbox"])
    assert "1 images were processed more than once" in caplog.text


# ------------------------------------------------------------------ tasks, files, side effects


def test_masks_are_evaluated_only_where_the_model_predicts_them(tmp_path):
    predictions = {1: [(0, BOX, 0.9)]}
    assert list(run(tmp_path, one_object(), predictions, masks=False)[0]) == ["bbox"]
    # Nothing found: what the model can predict still shows.
    assert list(run(tmp_path, one_object(), {1: []}, masks=False)[0]) == ["bbox"]
    assert list(run(tmp_path, one_object(), predictions, tasks=("bbox",))[0]) == ["bbox"]
    both, _ = run(tmp_path, one_object(), predictions, tasks=("segm", "bbox"))
    assert list(both) == ["bbox", "segm"]


def test_evaluating_the_written_file_again_gives_the_same_record(tmp_path):
    rng = np.random.default_rng(10)
    dataset = federated_dataset(rng)
    results, evaluator = run(tmp_path, dataset, random_predictions(rng, dataset))
    record = evaluator.record
    predictions = load_predictions(str(tmp_path / PREDICTIONS_FILE))
    assert {p["category_id"] for p in predictions} <= {c["id"] for c in dataset["categories"]}
    assert all(isinstance(p["segmentation"]["counts"], str) for p in predictions)
    fresh = make_evaluator(tmp_path, dataset)
    again = fresh.evaluate_predictions(predictions)
    assert again["segm"] == approx(results["segm"])
    assert fresh.record == record
    # The same evaluator, a second time: nothing is left over from the first.
    evaluator.evaluate_predictions(predictions)
    assert evaluator.record == record


def test_matches_are_written_beside_the_predictions(tmp_path):
    rng = np.random.default_rng(10)
    dataset = federated_dataset(rng)
    _, evaluator = run(tmp_path, dataset, random_predictions(rng, dataset))
    predictions = load_predictions(str(tmp_path / PREDICTIONS_FILE))
    ids = [c["id"] for c in dataset["categories"]]
    expected = evaluate_lvis(dataset, predictions, category_ids=ids)
    for task in ("bbox", "segm"):
        matches = Matches.load(tmp_path / f"matches_{task}.npz")
        assert matches.category_ids.tolist() == ids
        for name in ("det_row", "det_gt", "matched", "ignored", "gt_row"):
            assert np.array_equal(getattr(matches, name), getattr(expected.matches[task], name))
        rows = [predictions[row]["score"] for row in matches.det_row.tolist()]
        assert matches.det_score.tolist() == rows
    assert evaluator.record["protocol"] == expected.protocol
    # What is read again is not written again.
    fresh = make_evaluator(tmp_path, dataset, output_dir=str(tmp_path / "other"))
    fresh.evaluate_predictions(predictions)
    assert not (tmp_path / "other").exists()


def test_predictions_and_annotation_file_are_not_modified(tmp_path):
    rng = np.random.default_rng(12)
    dataset = federated_dataset(rng)
    _, evaluator = run(tmp_path, dataset, random_predictions(rng, dataset))
    predictions = load_predictions(str(tmp_path / PREDICTIONS_FILE))
    before, file_before = copy.deepcopy(predictions), (tmp_path / "gt.json").read_bytes()
    evaluator.evaluate_predictions(predictions)
    assert predictions == before
    assert (tmp_path / "gt.json").read_bytes() == file_before
    content = copy.deepcopy(dataset)
    evaluate_lvis(dataset, predictions)
    assert dataset == content and predictions == before


def test_failed_evaluation_keeps_the_predictions_and_says_where(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError("too large")

    monkeypatch.setattr("lt_det.evaluation.lvis.evaluate_lvis", fail)
    with pytest.raises(RuntimeError, match="too large.*kept in .*lvis_instances_results.json"):
        run(tmp_path, one_object(), {1: [(0, BOX, 0.9)]})
    (kept,) = load_predictions(str(tmp_path / PREDICTIONS_FILE))
    assert kept["bbox"] == BOX and kept["category_id"] == 7


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = str(tmp_path / "p.json")
    good = {"image_id": 1, "category_id": 7, "bbox": BOX, "score": 0.5}
    write_predictions(path, Predictions.from_results([good]))
    with pytest.raises(DataError, match="prediction 1 .* not finite"):
        write_predictions(path, Predictions.from_results([good, {**good, "score": float("nan")}]))
    assert load_predictions(path) == [good]
    assert os.listdir(tmp_path) == ["p.json"]


def test_results_suit_detectron2(tmp_path, caplog):
    results, _ = run(tmp_path, one_object(), {1: [(0, BOX, 0.9)]})
    flat = flatten_results_dict(results)
    assert flat["segm/AP"] == approx(100.0) and np.isnan(flat["bbox/APr"])
    assert all(type(v) is float for v in flat.values())
    with caplog.at_level(logging.INFO):
        print_csv_format(results)
    assert "AP,AP50,AP75,APs,APm,APl,APr,APc,APf" in caplog.text


def test_log_has_a_row_per_task_and_the_classes_of_each_group(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="lt_det"):
        run(tmp_path, one_object(), {1: [(0, BOX, 0.9)]})
    assert "| box  | 100.00 |" in caplog.text and "| mask | 100.00 |" in caplog.text
    assert "Classes with ground truth: r 0 of 1, c 1 of 1, f 0 of 0" in caplog.text


# ------------------------------------------------------------------ errors


def test_predictions_for_an_unknown_image_name_it_and_are_kept(tmp_path):
    with pytest.raises(DataError, match=r"image 41.*1 images.*lvis_instances_results\.json"):
        run(tmp_path, one_object(), {1: [], 41: [(0, BOX, 0.9)]})
    assert load_predictions(str(tmp_path / PREDICTIONS_FILE))[0]["image_id"] == 41


def test_class_beyond_the_list_names_the_key(tmp_path):
    with pytest.raises(DataError, match=r"image 1: predicted class 2.*2 classes.*NUM_CLASSES"):
        run(tmp_path, one_object(), {1: [(2, BOX, 0.9)]})


def test_mask_of_another_size_than_its_image_is_an_error(tmp_path):
    evaluator = make_evaluator(tmp_path, one_object())
    out = instances([(0, BOX, 0.9)], size=SIZE // 2)
    evaluator.process([{"image_id": 1}], [{"instances": out}])
    message = "prediction 0, of image 1, has a mask of 100 x 100 .* the image is 200 x 200"
    with pytest.raises(DataError, match=message):
        evaluator.evaluate()


def _without(dataset, what, key):
    del dataset[what][0][key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: _without(d, "annotations", "bbox"), "annotation 1 has no 'bbox'"),
        (lambda d: _without(d, "images", "width"), "image 1 has no 'width'"),
        (lambda d: d["annotations"][0].update(image_id=9), "annotation 1 is of image 9"),
        (lambda d: _without(d, "images", "neg_category_ids"), "image 1 has no 'neg_category_ids'"),
        (lambda d: d.pop("images"), "needs 'images'"),
    ],
)
def test_unusable_annotation_files_are_named_before_inference(tmp_path, change, message):
    dataset = one_object(images=2)
    change(dataset)
    with pytest.raises(DataError, match=rf"gt\.json: .*{message}"):
        make_evaluator(tmp_path, dataset)


def test_masks_cannot_be_evaluated_without_masks_in_the_file(tmp_path):
    dataset = one_object()
    del dataset["annotations"][0]["segmentation"]
    with pytest.raises(DataError, match="annotation 1 has no mask"):
        run(tmp_path, dataset, {1: [(0, BOX, 0.9)]})
    boxes, _ = run(tmp_path, dataset, {1: [(0, BOX, 0.9)]}, tasks=("bbox",))
    assert boxes["bbox"]["AP"] == approx(100.0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"category_ids": [7]}, "1 category_ids for 2 class_names"),
        ({"category_ids": [7, 7]}, "category id 7"),
        ({"groups": ["r"]}, "1 groups for 2 classes"),
        ({"groups": ["r", "m"]}, "'m'"),
        ({"tasks": ("bbox", "keypoints")}, "keypoints"),
        ({"max_detections": 0}, "max_detections"),
        ({"class_counts": {"images": [1, 2, 3]}}, "3 class_counts"),
        ({"class_counts": {"pixels": [1, 2]}}, "'pixels'"),
        ({"category_ids": [7, 8]}, "1 of 2 category ids.* 8"),
    ],
)
def test_arguments_that_do_not_fit_say_so(tmp_path, kwargs, message):
    path = write_json(tmp_path / "gt.json", one_object())
    base = {"class_names": ["a", "b"], "category_ids": [7, 3], "distributed": False}
    with pytest.raises(ValueError, match=message):
        LongTailLVISEvaluator(dataset_name="toy", json_file=path, **{**base, **kwargs})


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"no_gt\.json.*DETECTRON2_DATASETS"):
        load_ground_truth(str(tmp_path / "no_gt.json"), [1])
    with pytest.raises(MissingFileError, match=r"no_predictions\.json"):
        load_predictions(str(tmp_path / "no_predictions.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "expected a list"),
        ([{"image_id": 1, "score": 0.5, "bbox": BOX}], "prediction 0 has no 'category_id'"),
        ([{"image_id": 1, "score": 0.5, "category_id": 7}], "neither 'bbox' nor"),
    ],
)
def test_unusable_prediction_files_are_named(tmp_path, content, message):
    path = write_json(tmp_path / "p.json", content)
    with pytest.raises(DataError, match=rf"p\.json.*{message}"):
        load_predictions(path)


# ------------------------------------------------------------------ several processes

# Images of each rank, for two evaluations in turn: uneven with one image on both ranks, as a
# padding sampler gives; and a rank without any image.
SPLITS = (((0, 1, 2, 5, 6), (3, 4, 0)), ((0, 1, 2, 3, 4, 5, 6), ()))


def distributed_case(path, distributed):
    rng = np.random.default_rng(13)
    dataset = federated_dataset(rng)
    predictions = random_predictions(rng, dataset)
    path.mkdir(exist_ok=True)
    return make_evaluator(path, dataset, distributed=distributed), list(predictions.items())


def run_rank(path, rank):
    """One of two ranks; writes what its evaluations returned, and the records."""
    import torch.distributed as dist

    store = f"file://{path}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    evaluator, images = distributed_case(Path(path) / f"rank{rank}", distributed=True)
    out = []
    for split in SPLITS:
        process(evaluator, dict(images[i] for i in split[rank]))
        out.append((evaluator.evaluate(), evaluator.record))
    (Path(path) / f"rank{rank}.json").write_text(json.dumps(out))
    leave(Path(path), rank, 2)


def test_two_ranks_give_the_result_of_one_process(tmp_path):
    code = "import sys; from tests.evaluation.test_lvis import run_rank as r; r({!r}, {})"
    command = [sys.executable, "-W", "ignore", "-c"]
    ranks = [
        subprocess.Popen(
            [*command, code.format(str(tmp_path), rank)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [p.communicate(timeout=120)[1] for p in ranks]
    assert [p.returncode for p in ranks] == [0, 0], errors
    evaluator, images = distributed_case(tmp_path / "alone", distributed=False)
    process(evaluator, dict(images))
    evaluator.evaluate()
    first, second = json.loads((tmp_path / "rank0.json").read_text())
    for results, record in (first, second):
        assert record["per_class"] == evaluator.record["per_class"]
        assert record["metrics"] == evaluator.record["metrics"]
        assert results["bbox"]["AP"] == evaluator.record["metrics"]["bbox"]["AP"] > 5
    assert json.loads((tmp_path / "rank1.json").read_text()) == [[{}, None]] * 2
    assert not (tmp_path / "rank1" / PREDICTIONS_FILE).exists()
