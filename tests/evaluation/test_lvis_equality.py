"""Arrays of ``evaluate_lvis`` are those of plain ``lvis.LVISEval``, bit for bit."""

import copy

import numpy as np
import pytest

from lt_det.evaluation import Predictions, evaluate_lvis
from lt_det.evaluation.lvis_api import PROTOCOLS, Protocol
from lt_det.evaluation.lvis_ground_truth import prepare_ground_truth
from lt_det.evaluation.lvis_matching import choose_candidates, match
from lt_det.evaluation.lvis_metrics import precision_and_recall
from tests.evaluation.lvis_sets import encode, random_set, reference

TASKS = ("bbox", "segm")
# Sets in each test: enough for all corners, see below.
SEEDS = range(200)
CHUNK = 40


def assert_arrays_equal(found, expected, message=""):
    """Precision and recall of a task; ours has the classes in the same order."""
    precision, recall = found
    assert np.array_equal(precision, expected.eval["precision"]), message
    assert np.array_equal(recall, expected.eval["recall"]), message


def arrays(result, task):
    return result.precision[task], result.recall[task]


def percent(value):
    return 100 * value if value > -1 else np.nan


@pytest.mark.parametrize("start", SEEDS[::CHUNK])
def test_random_sets(start):
    for seed in range(start, start + CHUNK):
        dataset, predictions = random_set(seed)
        if not predictions:
            continue  # an error in LVISResults; AP 0 here
        result = evaluate_lvis(dataset, predictions)
        columns = Predictions.from_results(predictions).measured()
        for task in TASKS:
            expected = reference(dataset, predictions, task)
            assert_arrays_equal(arrays(result, task), expected, f"seed {seed}, {task}")
            measured = evaluate_lvis(dataset, columns, [task])
            assert_arrays_equal(arrays(measured, task), expected, f"seed {seed}, {task}, measured")
            for name, value in expected.results.items():
                own = result.metrics[task][name.replace("@300", "")]
                assert own == pytest.approx(percent(value), abs=1e-9, nan_ok=True), (seed, name)


def test_the_random_sets_have_every_corner():
    found = set()
    for seed in SEEDS[:120]:
        dataset, predictions = random_set(seed)
        gt = prepare_ground_truth(dataset)
        columns = Predictions.from_results(predictions)
        candidates = choose_candidates(gt, columns)
        corners = {
            "no predictions": not predictions,
            "no objects": not dataset["annotations"],
            "images without predictions": len(set(columns.image_ids)) < len(dataset["images"]),
            "above the limit": max(np.bincount(columns.image_ids), default=0) > 300,
            "not in image order": (np.diff(columns.image_ids) < 0).any(),
            "objects of area 0": any(a["area"] == 0 for a in dataset["annotations"]),
            "masks of area 0": any(p["bbox"][2] == 0 for p in predictions),
            "ignored objects": gt.ignore.any(),
            "not exhaustive": not candidates.exhaustive.all(),
            "classes not listed": len(candidates.row) < len(columns) <= 300,
        }
        for task in TASKS if predictions else ():
            matches = match(gt, columns, candidates, task)
            scores = np.stack([matches.det_class, matches.det_image, matches.det_score])
            corners[f"equal scores, {task}"] = len(np.unique(scores, axis=1).T) < scores.shape[1]
            corners[f"ignored matches, {task}"] = (matches.matched & matches.ignored).any()
            if task == "bbox":
                differ = matches.matched != matches.matched[:1]
                corners["matches that differ by range of area"] = differ.any()
        found |= {corner for corner, there in corners.items() if there}
    assert found == set(corners)


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_other_limits_per_image(limit):
    for seed in range(12):
        dataset, predictions = random_set(seed)
        if predictions:
            expected = reference(dataset, predictions, "bbox", max_detections=limit)
            result = evaluate_lvis(dataset, predictions, ["bbox"], max_detections=limit)
            assert_arrays_equal(arrays(result, "bbox"), expected, f"seed {seed}")


def test_an_image_list_is_that_of_the_parameters_of_lviseval():
    for seed in range(30):
        dataset, predictions = random_set(seed)
        chosen = [image["id"] for image in dataset["images"]][: 1 + seed % 3]
        if not predictions:
            continue
        result = evaluate_lvis(dataset, predictions, image_ids=chosen)
        for task in TASKS:
            expected = reference(dataset, predictions, task, image_ids=chosen)
            assert_arrays_equal(arrays(result, task), expected, f"seed {seed}, {task}")


def best_of_each_class(predictions, limit):
    """Naive: the best of each class, ties in the order of the images."""
    kept = []
    for category_id in {p["category_id"] for p in predictions}:
        own = [p for p in predictions if p["category_id"] == category_id]
        kept += sorted(own, key=lambda p: (-p["score"], p["image_id"]))[:limit]
    return [p for p in predictions if any(p is k for k in kept)]


@pytest.mark.parametrize("limit", [2, 10])
def test_fixed_ap_is_lviseval_without_limit_on_the_best_of_each_class(monkeypatch, limit):
    monkeypatch.setitem(PROTOCOLS, "fixed_ap", Protocol("lvis, fixed AP", None, limit))
    for seed in range(40):
        dataset, predictions = random_set(seed)
        if not predictions:
            continue
        result = evaluate_lvis(dataset, predictions, protocol="fixed_ap")
        capped = best_of_each_class(predictions, limit)
        for task in TASKS:
            expected = reference(dataset, capped, task, max_detections=-1)
            assert_arrays_equal(arrays(result, task), expected, f"seed {seed}, {task}")


def test_fixed_ap_keeps_all_of_an_image():
    dataset, predictions = _row_of_objects(1, np.random.default_rng(0))
    miss = {**predictions[0], "bbox": [0, 0, 2, 2], "score": 0.9}
    predictions = [miss] * 305 + [{**miss, "bbox": [0, 0, 8, 8], "score": 0.1}]
    standard = evaluate_lvis(dataset, predictions, ["bbox"])
    fixed = evaluate_lvis(dataset, predictions, ["bbox"], protocol="fixed_ap")
    assert standard.metrics["bbox"]["AR"] == 0 and fixed.metrics["bbox"]["AR"] == 100
    assert fixed.metrics["bbox"]["AP"] == pytest.approx(100 / 306, abs=1e-9)
    assert standard.protocol["max_detections"] == 300
    assert fixed.protocol["max_detections"] is None
    assert fixed.protocol["max_detections_per_class"] == 10_000


def test_the_order_of_images_in_the_file_of_predictions_does_not_matter():
    rng = np.random.default_rng(0)
    for seed in range(20):
        dataset, predictions = random_set(seed)
        blocks = {}
        for p in predictions:
            blocks.setdefault(p["image_id"], []).append(p)
        order = rng.permutation(list(blocks)) if blocks else ()
        moved = [p for image_id in order for p in blocks[int(image_id)]]
        first = evaluate_lvis(dataset, predictions, list(TASKS))
        second = evaluate_lvis(dataset, moved, list(TASKS))
        for task in TASKS:
            assert_arrays_equal(arrays(second, task), _Arrays(*arrays(first, task)), f"seed {seed}")


class _Arrays:
    def __init__(self, precision, recall):
        self.eval = {"precision": precision, "recall": recall}


def test_the_order_of_the_classes_is_the_one_asked_for():
    dataset, predictions = random_set(
        next(s for s in SEEDS if len(random_set(s)[0]["categories"]) == 4)
    )
    ids = [c["id"] for c in dataset["categories"]]
    gt = prepare_ground_truth(dataset, ids)
    result = evaluate_lvis(gt, predictions, ["bbox"])
    by_id = evaluate_lvis(dataset, predictions, ["bbox"])
    assert result.class_names == [f"class {i}" for i in ids]
    order = np.argsort(np.argsort(ids))
    assert np.array_equal(result.precision["bbox"], by_id.precision["bbox"][:, :, order])


def test_precision_of_classes_with_many_objects():
    # Recalls that n objects reach exactly, and that rounding puts on either side of a whole one.
    for number in (1, 2, 3, 7, 49, 99, 100, 101, 150, 293):
        rng = np.random.default_rng(number)
        dataset, predictions = _row_of_objects(number, rng)
        expected = reference(dataset, predictions, "bbox")
        result = evaluate_lvis(dataset, predictions, ["bbox"])
        assert_arrays_equal(arrays(result, "bbox"), expected, str(number))


def _row_of_objects(number, rng):
    """Objects of one class side by side, most of them found, and as many false positives."""
    image = {"id": 1, "height": 10, "width": 10 * number}
    image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    boxes = [[10 * k, 0, 8, 8] for k in range(number)]
    annotations = [
        {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 64.0}
        for k, box in enumerate(boxes)
    ]
    found = [b for b in boxes if rng.random() < 0.9]
    missed = [[b[0], 0, 2, 2] for b in boxes[: 300 - len(found)]]
    predictions = [
        {"image_id": 1, "category_id": 1, "bbox": b, "score": float(rng.random())}
        for b in found + missed
    ]
    categories = [{"id": 1, "name": "a", "frequency": "r"}]
    return {"images": [image], "annotations": annotations, "categories": categories}, predictions


def test_many_masks_of_an_image_and_class():
    # More than pycocotools counts in 8 bits, and than are compared in one call.
    rng = np.random.default_rng(3)
    boxes = [[4 * int(x), 4 * int(y), 16, 16] for x, y in rng.integers(0, 28, size=(280, 2))]
    image = {"id": 1, "height": 130, "width": 130}
    image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    annotations = [
        {
            "id": k + 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": box,
            "area": 192.0,
            "segmentation": encode(box),
        }
        for k, box in enumerate(boxes[:60])
    ]
    predictions = [
        {
            "image_id": 1,
            "category_id": 1,
            "bbox": box,
            "score": round(float(rng.random()), 2),
            "segmentation": encode([box[0] + int(rng.integers(0, 3)), *box[1:]]),
        }
        for box in boxes
    ]
    dataset = {
        "images": [image],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a", "frequency": "r"}],
    }
    before = copy.deepcopy((dataset, predictions))
    result = evaluate_lvis(dataset, predictions)
    assert (dataset, predictions) == before
    for task in TASKS:
        assert_arrays_equal(arrays(result, task), reference(dataset, predictions, task), task)
    found = precision_and_recall(result.matches["segm"])
    assert_arrays_equal(found, _Arrays(*arrays(result, "segm")))


def test_the_record_counts_what_there_is_to_find():
    """Objects and their images, of objects that are not ignored."""
    gt = {
        "images": [
            {"id": i, "height": 99, "width": 99, "neg_category_ids": []}
            | {"not_exhaustive_category_ids": []}
            for i in (1, 2)
        ],
        "categories": [{"id": k, "name": f"c{k}"} for k in (1, 2, 3)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": [9, 9, 9, 9], "area": 81.0}
            | ({"ignore": 1} if n == 5 else {})
            for n, (i, k) in enumerate([(1, 1), (1, 1), (2, 1), (2, 2), (1, 2)], start=1)
        ],
    }
    per_class = evaluate_lvis(gt, [], ["bbox"]).record("set")["per_class"]
    assert per_class["test_images"] == [2, 1, 0]
    assert per_class["test_instances"] == [3, 1, 0]
