"""Where errors go: planted errors, and a slow count of random ones."""

import numpy as np
import pytest

from lt_det.evaluation import evaluate_lvis
from lt_det.evaluation.classification_metrics import confusion_matrix
from lt_det.evaluation.error_analysis import confusion_errors, detection_errors
from lt_det.evaluation.lvis_ground_truth import prepare_ground_truth
from lt_det.evaluation.predictions import Predictions
from tests.evaluation import lvis_runs

BOX = [10.0, 10.0, 20.0, 20.0]
FAR = [70.0, 70.0, 20.0, 20.0]
NEARBY = [18.0, 10.0, 20.0, 20.0]  # IoU 12 / 28 = 0.43


def one_image(objects, negative=()):
    """LVIS content with a class of each group: 1 rare, 2 common, 3 frequent."""
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": k, "bbox": box, "area": 400.0}
        for i, (k, box) in enumerate(objects)
    ]
    lists = {"neg_category_ids": list(negative), "not_exhaustive_category_ids": []}
    return {
        "images": [{"id": 1, "height": 100, "width": 100, **lists}],
        "annotations": annotations,
        "categories": [
            {"id": k, "name": str(k), "frequency": f} for k, f in zip((1, 2, 3), "rcf", strict=True)
        ],
    }


def errors(content, detections, groups="rcf"):
    """Of (class, box, score)."""
    results = [
        {"image_id": 1, "category_id": k, "bbox": box, "score": s} for k, box, s in detections
    ]
    return errors_of(content, results, groups)


def errors_of(content, results, groups, **more):
    gt = prepare_ground_truth(content, [c["id"] for c in content["categories"]])
    predictions = Predictions.from_results(results)
    matches = evaluate_lvis(gt, predictions, ["bbox"], **more).matches["bbox"]
    return detection_errors(gt, predictions, matches, groups and list(groups))


def only(table):
    """{group: outcome} of a table with at most one object a group."""
    assert all(sum(row.values()) <= 1 for row in table.values())
    return {g: next((k for k, n in row.items() if n), None) for g, row in table.items()}


# ------------------------------------------------------------------ detection, one by one


@pytest.mark.parametrize(
    ("detections", "missed"),
    [
        ([(1, BOX, 0.5)], "found"),
        ([], "background"),
        ([(1, FAR, 0.9), (3, FAR, 0.9)], "background"),
        ([(1, NEARBY, 0.5)], "localisation"),
        ([(3, BOX, 0.5)], "class_f"),
        ([(3, NEARBY, 0.5)], "background"),
        # The more certain one decides, and a match is a match however uncertain.
        ([(1, NEARBY, 0.5), (2, BOX, 0.6)], "class_c"),
        ([(1, NEARBY, 0.7), (2, BOX, 0.6)], "localisation"),
        ([(1, BOX, 0.1), (2, BOX, 0.6)], "found"),
    ],
)
def test_what_a_rare_object_became(detections, missed):
    assert only(errors(one_image([(1, BOX)]), detections)["missed"])["r"] == missed


@pytest.mark.parametrize(
    ("objects", "detections", "hit"),
    [
        ([(1, BOX)], [(1, BOX, 0.5)], "right"),
        ([(1, BOX)], [(1, FAR, 0.5)], "background"),
        ([(1, BOX)], [(1, NEARBY, 0.5)], "localisation"),
        ([(1, FAR), (3, BOX)], [(1, BOX, 0.5)], "class_f"),
        ([(1, FAR), (3, BOX)], [(1, NEARBY, 0.5)], "background"),
        # Of the two reasons the other class at the same place.
        ([(1, NEARBY), (2, BOX)], [(1, BOX, 0.5)], "class_c"),
        # Only the first detection of a class with one object is looked at.
        ([(1, BOX)], [(1, BOX, 0.5), (1, FAR, 0.4)], "right"),
        ([(1, BOX)], [(1, BOX, 0.4), (1, FAR, 0.5)], "background"),
        ([(1, BOX)], [], None),
    ],
)
def test_what_a_rare_detection_hit(objects, detections, hit):
    assert only(errors(one_image(objects), detections)["false_positives"])["r"] == hit


def test_a_second_detection_of_an_object_is_a_duplicate():
    content = one_image([(1, BOX), (1, FAR)])
    found = errors(content, [(1, BOX, 0.9), (1, BOX, 0.8)])
    assert (
        found["false_positives"]["r"] | {"right": 1, "duplicate": 1}
        == (found["false_positives"]["r"])
    )
    assert found["missed"]["r"]["found"] == found["missed"]["r"]["background"] == 1


def test_detections_of_classes_that_are_not_listed_are_no_false_positives():
    content = one_image([(1, BOX)])
    found = errors(content, [(3, BOX, 0.9)])
    # What the object was taken for is known; whether class 3 is there too is not.
    assert found["missed"]["r"]["class_f"] == 1
    assert sum(found["false_positives"]["f"].values()) == 0
    # A class without objects has no first detections either.
    listed = errors(one_image([(1, BOX)], negative=[3]), [(3, BOX, 0.9)])
    assert sum(listed["false_positives"]["f"].values()) == 0


def test_a_right_detection_explains_no_missed_object():
    # Of another class at its place, and of its own class nearby; the boxes overlap by 0.9, 0.43.
    beside = [11.0, 10.0, 20.0, 20.0]
    found = errors(one_image([(1, BOX), (3, beside)]), [(3, beside, 0.9)])
    assert only(found["missed"]) == {"r": "background", "c": None, "f": "found"}
    assert only(found["false_positives"]) == {"r": None, "c": None, "f": "right"}
    found = errors(one_image([(1, BOX), (1, NEARBY)]), [(1, NEARBY, 0.9)])["missed"]["r"]
    assert found["found"] == found["background"] == 1 and found["localisation"] == 0
    # A second one there does: nothing else is about the object.
    found = errors(one_image([(1, BOX), (3, beside)]), [(3, beside, 0.9), (3, BOX, 0.8)])
    assert only(found["missed"])["r"] == "class_f"


@pytest.mark.parametrize(
    ("limit", "missed"), [(3, "found"), (2, "localisation"), (1, "background")]
)
def test_detections_beyond_the_limit_explain_nothing(limit, missed):
    results = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": score}
        for box, score in ((FAR, 0.9), (NEARBY, 0.5), (BOX, 0.1))
    ]
    for content in (one_image([(1, BOX)]), not_federated(one_image([(1, BOX)]))):
        found = errors_of(content, results, "rcf", max_detections=limit)
        assert only(found["missed"])["r"] == missed


def not_federated(content):
    """The same as COCO content."""
    keys = ("id", "height", "width")
    return {**content, "images": [{k: i[k] for k in keys} for i in content["images"]]}


def test_without_groups_there_is_one():
    found = errors(one_image([(1, BOX), (2, FAR)]), [(2, BOX, 0.9)], groups=None)
    assert found == {
        "missed": {
            "all": {"found": 0, "background": 1, "localisation": 0, "class_all": 1},
        },
        "false_positives": {
            "all": {
                **{"right": 0, "background": 0, "localisation": 0, "duplicate": 0},
                "class_all": 1,
            },
        },
    }


def test_no_predictions_at_all():
    found = errors(one_image([(1, BOX), (1, FAR)]), [])
    assert found["missed"]["r"]["background"] == 2
    assert all(n == 0 for row in found["false_positives"].values() for n in row.values())


def test_predictions_without_boxes_are_an_error():
    content = one_image([(1, BOX)])
    gt = prepare_ground_truth(content, [1, 2, 3])
    matches = evaluate_lvis(gt, [], ["bbox"]).matches["bbox"]
    one = np.ones(1, np.int64)
    with pytest.raises(ValueError, match="without boxes"):
        detection_errors(gt, Predictions(one, one, one.astype(float)), matches, None)


# ------------------------------------------------------------------ detection, all at once


def iou(a, b):
    x = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    y = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(x, 0) * max(y, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def slow_errors(content, results, matches, groups):
    """As `detection_errors` says, by loops."""
    names = ("found", "right", "background", "localisation", "duplicate")
    names += ("class_r", "class_c", "class_f")
    missed, wrong = ({g: dict.fromkeys(names, 0) for g in "rcf"} for _ in range(2))
    annotations = content["annotations"]
    row_of_gt = {k: annotations[row] for k, row in enumerate(matches.gt_row)}
    found = {row_of_gt[g]["id"] for g in matches.det_gt[0] if g >= 0}
    unmatched = set(matches.det_row[matches.det_gt[0] < 0].tolist())
    listed = {(a["image_id"], a["category_id"]) for a in annotations}
    listed |= {(i["id"], k) for i in content["images"] for k in i["neg_category_ids"]}
    explain = [
        p
        for row, p in enumerate(results)
        if row in unmatched or (p["image_id"], p["category_id"]) not in listed
    ]
    for k, ann in row_of_gt.items():
        if matches.gt_ignored[0, k]:
            continue
        near = []
        for p in explain:
            overlap = iou(p["bbox"], ann["bbox"])
            same = p["category_id"] == ann["category_id"]
            if p["image_id"] == ann["image_id"] and overlap >= (0.1 if same else 0.5):
                own = "localisation" if same else f"class_{groups[p['category_id'] - 1]}"
                near.append((p["score"], own))
        outcome = "found" if ann["id"] in found else max(near)[1] if near else "background"
        missed[groups[ann["category_id"] - 1]][outcome] += 1
    counted = np.flatnonzero(~matches.ignored[0, 0])
    for k, group in enumerate(groups):
        objects = (~matches.gt_ignored[0] & (matches.gt_class == k)).sum()
        for d in [d for d in counted if matches.det_class[d] == k][:objects]:
            p = results[matches.det_row[d]]
            hits = [(-1, 0, "background")]
            for ann in annotations:
                if ann["image_id"] != p["image_id"]:
                    continue
                overlap, same = iou(p["bbox"], ann["bbox"]), ann["category_id"] == k + 1
                if same and overlap >= 0.5 and ann["id"] in found:
                    hits.append((2, overlap, "duplicate"))
                elif same and overlap >= 0.1:
                    hits.append((0, overlap, "localisation"))
                elif not same and overlap >= 0.5:
                    hits.append((1, overlap, f"class_{groups[ann['category_id'] - 1]}"))
            right = matches.matched[0, 0, d]
            wrong[group]["right" if right else max(hits)[2]] += 1
    return missed, wrong


@pytest.mark.parametrize("seed", range(12))
def test_counts_are_those_of_a_slow_count(seed):
    rng = np.random.default_rng(seed)
    content = lvis_runs.ground_truth(12, seed)
    for ann in content["annotations"][::5]:
        ann["ignore"] = 1
    results = lvis_runs.predictions(content, seed, found=0.5)
    for ann in content["annotations"]:  # other classes, out of place, twice
        k = int(rng.choice([ann["category_id"], rng.integers(1, lvis_runs.CLASSES + 1)]))
        box = (np.array(ann["bbox"]) + rng.normal(0, 4, 4)).clip(1).tolist()
        own = {"image_id": ann["image_id"], "bbox": box, "score": rng.random()}
        results.append({"category_id": k, **own})
    results = [results[k] for k in rng.permutation(len(results))]
    groups = "rrrcccfff"
    limit = 300 if seed % 2 else 8
    found = errors_of(content, results, groups, max_detections=limit)
    gt = prepare_ground_truth(content, list(range(1, lvis_runs.CLASSES + 1)))
    matches = evaluate_lvis(gt, results, ["bbox"], max_detections=limit).matches["bbox"]
    missed, wrong = slow_errors(content, results, matches, groups)
    for group in "rcf":
        for table, expected in ((found["missed"], missed), (found["false_positives"], wrong)):
            assert table[group] == {k: expected[group][k] for k in table[group]}
            assert sum(table[group].values()) == sum(expected[group].values())


# ------------------------------------------------------------------ classification, segmentation


def test_confusions_are_summed_by_group():
    # Classes 0, 1 rare, 2 common, 3 frequent.
    confusion = np.array([[5, 1, 2, 3], [0, 4, 0, 6], [1, 0, 7, 2], [0, 0, 1, 9]])
    found = confusion_errors(confusion, list("rrcf"))
    assert found["missed"] == {
        "r": {"found": 9, "class_r": 1, "class_c": 2, "class_f": 9},
        "c": {"found": 7, "class_r": 1, "class_c": 0, "class_f": 2},
        "f": {"found": 9, "class_r": 0, "class_c": 1, "class_f": 0},
    }
    assert found["false_positives"] == {
        "r": {"right": 9, "class_r": 1, "class_c": 1, "class_f": 0},
        "c": {"right": 7, "class_r": 2, "class_c": 0, "class_f": 1},
        "f": {"right": 9, "class_r": 9, "class_c": 2, "class_f": 0},
    }


def test_images_are_in_one_outcome_each():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 9, (2, 300))
    found = confusion_errors(confusion_matrix(labels, predicted, 9), list("rrrcccfff"))
    for group, numbers in zip("rcf", ((0, 1, 2), (3, 4, 5), (6, 7, 8)), strict=True):
        assert sum(found["missed"][group].values()) == np.isin(labels, numbers).sum()
        assert sum(found["false_positives"][group].values()) == np.isin(predicted, numbers).sum()


def test_matrices_and_groups_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match=r"\(C, C\), got \(2, 3\)"):
        confusion_errors(np.zeros((2, 3)), None)
    with pytest.raises(ValueError, match="1 groups for 2 classes"):
        confusion_errors(np.zeros((2, 2)), ["r"])
