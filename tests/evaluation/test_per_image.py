"""Class values of weighted images are those of a set that holds each image as often."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation import evaluate_lvis, per_image, weighted_ap
from lt_det.evaluation.arrays import write_arrays
from lt_det.evaluation.classification_metrics import class_accuracy
from lt_det.evaluation.per_image import (
    ClassificationImages,
    DetectionImages,
    read_images_of_record,
    read_per_image,
)
from lt_det.evaluation.results import read_record
from lt_det.evaluation.sem_seg_metrics import areas, confusion_matrix, counted_iou
from lt_det.evaluation.sem_seg_predictions import present_areas, write_image_areas
from tests.evaluation import lvis_runs
from tests.evaluation.sem_seg_maps import map_pair

T, IMAGES, C = 4, 12, 9


def random_matches(seed, detections=150, objects=60):
    """Matches of the area "all" with every state a detection can be in.

    Class 0 has no ground truth, class 1 no detections, class 2 only ignored ground truth, class 3
    no true positive. Scores have ties.
    """
    rng = np.random.default_rng(seed)
    det_class = rng.choice([0, 2, 3, 4, 5, 6, 7, 8], detections)
    det_image, score = rng.integers(0, IMAGES, detections), rng.integers(0, 12, detections)
    order = np.lexsort((det_image, -score, det_class))
    det_class, det_image = det_class[order], det_image[order]
    gt_class, gt_image = rng.integers(1, C, objects), rng.integers(0, IMAGES, objects)
    gt_ignored = (gt_class == 2) | (rng.random(objects) < 0.1)
    # Unmatched detections are false positives or, one in ten, ignored; some match what is ignored.
    matched = np.zeros((1, T, detections), bool)
    ignored = np.broadcast_to(rng.random(detections) < 0.1, matched.shape).copy()
    for t in range(T):
        match = rng.random(detections) < 0.1
        matched[0, t], ignored[0, t] = match, ignored[0, t] | match
        for k, i in set(zip(gt_class, gt_image, strict=True)) - {(3, i) for i in range(IMAGES)}:
            there = np.flatnonzero((det_class == k) & (det_image == i))
            number = ((gt_class == k) & (gt_image == i) & ~gt_ignored).sum()
            found = rng.permutation(there)[: rng.integers(0, number + 1)]
            matched[0, t, found], ignored[0, t, found] = True, False
    return SimpleNamespace(
        task="bbox",
        image_ids=np.arange(IMAGES) * 3,
        category_ids=np.arange(C) + 1,
        thresholds=np.linspace(0.5, 0.8, T),
        det_image=det_image.astype(np.int32),
        det_class=det_class.astype(np.int32),
        matched=matched,
        ignored=ignored,
        gt_image=gt_image.astype(np.int32),
        gt_class=gt_class.astype(np.int32),
        gt_ignored=gt_ignored[None],
    )


def repeated_ap(matches, weights, k):
    """AP of class k as LVISEval computes it, with each image as often as its weight says."""
    det, gt = matches.det_class == k, (matches.gt_class == k) & ~matches.gt_ignored[0]
    objects = int(weights[matches.gt_image[gt]].sum())
    if objects == 0:
        return np.nan
    copies = np.repeat(np.flatnonzero(det), weights[matches.det_image[det]])
    matched, ignored = matches.matched[0][:, copies], matches.ignored[0][:, copies]
    curves = np.zeros((T, 101))
    for t in range(T):
        tp = np.cumsum(matched[t] & ~ignored[t])
        fp = np.cumsum(~matched[t] & ~ignored[t])
        precision = tp / (tp + fp + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(tp / objects, np.linspace(0, 1, 101), side="left")
        curves[t, at < len(tp)] = precision[at[at < len(tp)]]
    return 100 * curves.mean()


def repeated_aps(matches, weights):
    return np.array([repeated_ap(matches, weights, k) for k in range(C)])


def random_weights(seed, images=IMAGES, columns=6):
    """Whole numbers; the first column is one everywhere, the second zero."""
    weights = np.random.default_rng(seed).poisson(1, (images, columns))
    weights[:, 0], weights[:, 1] = 1, 0
    return weights


# ------------------------------------------------------------------ detection


@pytest.mark.parametrize("seed", range(30))
def test_ap_of_weighted_images_is_that_of_repeated_ones(seed):
    matches = random_matches(seed, detections=[150, 20, 0][seed % 3])
    weights = random_weights(seed)
    expected = np.stack([repeated_aps(matches, w) for w in weights.T], axis=1)
    images = DetectionImages(matches)
    found = images.class_values(torch.from_numpy(weights).double())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert np.isnan(found[[0, 2]]).all() and np.isnan(found[:, 1]).all()
    # Precisions of single precision, in percent.
    found = images.class_values(torch.from_numpy(weights).float())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_without_weights_it_is_the_ap_of_the_evaluation(seed, tmp_path):
    gt = lvis_runs.ground_truth(40, seed)
    for ann in gt["annotations"][::7]:
        ann["ignore"] = 1
    result = lvis_runs.write_run(tmp_path, gt, lvis_runs.predictions(gt, seed))
    (images,) = read_per_image(tmp_path / "inference" / lvis_runs.DATASET, lvis_runs.CLASSES)
    found = images.class_values(torch.ones(40, 1, dtype=torch.float64))
    np.testing.assert_allclose(found[:, 0], result.class_ap["bbox"], rtol=0, atol=1e-9)
    assert images.part == "bbox" and images.image_ids.tolist() == list(range(1, 41))


def test_images_that_come_twice_count_as_two(tmp_path):
    gt = lvis_runs.ground_truth(30)
    results = lvis_runs.predictions(gt, 1)
    images = [DetectionImages(evaluate_lvis(gt, results, ["bbox"]).matches["bbox"])]
    # The first ten images once more, as images of their own.
    again = {image["id"]: image["id"] + 100 for image in gt["images"][:10]}
    for entries in (gt["images"], gt["annotations"], results):
        key = "id" if entries is gt["images"] else "image_id"
        entries.extend([{**e, key: again[e[key]]} for e in entries if e[key] in again])
    for k, ann in enumerate(gt["annotations"]):
        ann["id"] = k + 1
    expected = evaluate_lvis(gt, results, ["bbox"]).class_ap["bbox"]
    weights = torch.ones(30, 1, dtype=torch.float64)
    weights[:10] = 2
    np.testing.assert_allclose(images[0].class_values(weights)[:, 0], expected, rtol=0, atol=1e-9)


def test_files_are_checked_against_their_record(tmp_path):
    gt = lvis_runs.ground_truth(20)
    lvis_runs.write_run(tmp_path, gt, lvis_runs.predictions(gt, 1))
    record = read_record(tmp_path / "results" / f"{lvis_runs.DATASET}.json")
    folder = tmp_path / "inference" / lvis_runs.DATASET
    assert [images.part for images in read_images_of_record(folder, record)] == ["bbox"]
    with pytest.raises(MissingFileError, match="has no file of segm, which the record"):
        read_images_of_record(folder, {**record, "metrics": {"bbox": {}, "segm": {}}})
    for value in (record["per_class"]["bbox/AP"][4] + 0.01, None):
        record["per_class"]["bbox/AP"][4] = value
        with pytest.raises(DataError, match="of another evaluation .*AP of class 'class 4'"):
            read_images_of_record(folder, record)
    record["per_class"] = {}
    with pytest.raises(DataError, match="matches_bbox.npz is of 9 classes, not 0"):
        read_images_of_record(folder, record)


@pytest.mark.parametrize("objects", range(1, 40))
def test_recalls_that_meet_a_threshold_count_as_lvis_counts_them(objects):
    found = np.arange(objects + 1.0)
    expected = np.searchsorted(np.linspace(0, 1, 101), found / objects, side="right")
    for kind in (np.float32, np.float64):
        reached = weighted_ap._recalls_reached(found.astype(kind), np.array(objects, kind))
        assert reached.tolist() == expected.tolist()


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_how_classes_are_put_together_changes_nothing(size, monkeypatch):
    matches, weights = random_matches(5), torch.from_numpy(random_weights(5)).double()
    expected = DetectionImages(matches).class_values(weights)
    monkeypatch.setattr(weighted_ap, "_CHUNK", size)
    np.testing.assert_array_equal(DetectionImages(matches).class_values(weights), expected)


def test_classes_with_very_many_objects_are_computed_in_double_precision(monkeypatch):
    matches, weights = random_matches(6), torch.from_numpy(random_weights(6)).float()
    images = DetectionImages(matches)
    expected = images.class_values(weights.double())
    assert not np.array_equal(images.class_values(weights), expected, equal_nan=True)
    monkeypatch.setattr(per_image, "_FLOAT32_OBJECTS", 1)
    np.testing.assert_array_equal(images.class_values(weights), expected)


def test_which_images_hold_a_class():
    matches = random_matches(7)
    images = DetectionImages(matches)
    counted = ~matches.gt_ignored[0]
    pairs = set(zip(matches.gt_image[counted], matches.gt_class[counted], strict=True))
    found = list(zip(images.truth_image, images.truth_class, strict=True))
    assert set(found) == pairs and len(found) == len(pairs)


# ------------------------------------------------------------------ classification, segmentation


def test_accuracy_of_weighted_images_is_that_of_repeated_ones():
    rng = np.random.default_rng(0)
    labels, correct = rng.integers(1, C, 40), rng.random(40) < 0.6
    images = ClassificationImages(np.arange(40), labels, correct, C)
    weights = random_weights(1, 40)
    weights[:, 1] = weights[:, 2] % 2
    found = images.class_values(torch.from_numpy(weights).double())
    top1 = images.overall_values(torch.from_numpy(weights).double())["top1"]
    for w, column, own in zip(weights.T, found.T, top1, strict=True):
        labels_, correct_ = np.repeat(labels, w), np.repeat(correct, w)
        np.testing.assert_allclose(column, 100 * class_accuracy(labels_, correct_, C), rtol=1e-12)
        assert own == pytest.approx(100 * correct_.mean(), rel=1e-12)


def segmentation(pairs, num_classes, folder):
    matrices = [confusion_matrix(*pair, num_classes) for pair in pairs]
    names = [f"images/{k}.jpg" for k in range(len(pairs))]
    own = [present_areas(areas(m)) for m in matrices]
    write_image_areas(folder / "sem_seg_images.npz", names, own, sum(matrices))
    return matrices, read_per_image(folder, num_classes)[0]


def test_iou_of_weighted_images_is_that_of_repeated_ones(tmp_path):
    # Classes 6 and 7 are only predicted, class 8 is nowhere.
    pairs = [map_pair(k, labelled=[k % 6, (k + 1) % 6], predicted=range(8)) for k in range(7)]
    matrices, images = segmentation(pairs, C, tmp_path)
    weights = random_weights(2, 7)
    found = images.class_values(torch.from_numpy(weights).float())
    labelled = sum(matrices).sum(axis=1) > 0
    for w, column in zip(weights.T, found.T, strict=True):
        own = areas(sum(n * m for n, m in zip(w, matrices, strict=True)))
        expected = 100 * counted_iou(own)
        # What is labelled somewhere, but not here, has no value.
        expected[labelled & (own.labelled == 0)] = np.nan
        np.testing.assert_allclose(column, expected, rtol=1e-12)
    assert (found[6:8, 0] == 0).all() and np.isnan(found[8]).all()


# ------------------------------------------------------------------ files


def test_files_of_an_evaluation_are_found(tmp_path):
    write_arrays(
        tmp_path / "predictions.npz",
        image_ids=np.array([4, 7, 9]),
        labels=np.array([0, 1, 1]),
        top_classes=np.array([[0, 1], [0, 1], [1, 0]]),
        top_scores=np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]]),
    )
    (images,) = read_per_image(tmp_path, 3)
    assert images.part == "classification" and images.image_ids.tolist() == [4, 7, 9]
    values = images.class_values(torch.ones(3, 1))
    np.testing.assert_array_equal(values[:, 0], [100, 50, np.nan])


def test_folders_without_files_and_files_of_other_classes_are_named(tmp_path):
    with pytest.raises(MissingFileError, match="has none of matches_bbox.npz, .*sem_seg_images"):
        read_per_image(tmp_path, 3)
    segmentation([map_pair(0)], C, tmp_path)
    with pytest.raises(DataError, match=f"sem_seg_images.npz is of {C} classes, not 150"):
        read_per_image(tmp_path, 150)
