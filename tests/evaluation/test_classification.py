"""Measures of image classification against closed forms, and the evaluator against them."""

import functools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.evaluation.testing import print_csv_format

from lt_det.errors import ConfigError, DataError, MissingFileError
from lt_det.evaluation import LongTailClassificationEvaluator
from lt_det.evaluation import classification as module
from lt_det.evaluation.classification_metrics import (
    class_accuracy,
    class_means,
    confusion_matrix,
    expected_calibration_error,
    mean_over_classes,
    shot_accuracy,
    top_k_classes,
    top_k_hits,
)
from lt_det.evaluation.classification_predictions import (
    FEATURES_FILE,
    PREDICTIONS_FILE,
    read_class_predictions,
    read_features,
)
from lt_det.evaluation.groups import groups_from_counts
from lt_det.evaluation.results import class_values
from tests.gloo import run_on_ranks

GOLDEN = Path(__file__).resolve().parents[1] / "golden/classification/shot_accuracy.npz"
NAN = float("nan")
KANG, OLTR = (19, 100), (20, 99)
# Of sums of a few hundred float64 numbers in another order.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def random_case(seed, images=300, classes=12):
    """Scores with many ties (one decimal) and labels of all classes but the last."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 11, size=(images, classes)) / 10
    return scores, rng.integers(0, classes - 1, size=images)


# ------------------------------------------------------------------ golden


@pytest.mark.parametrize(("name", "borders"), [("kang", KANG), ("oltr", OLTR)])
def test_group_accuracy_is_that_of_the_released_scripts(name, borders):
    case = np.load(GOLDEN)
    groups = groups_from_counts(case["class_counts"], borders)
    accuracy = class_accuracy(case["labels"], case["labels"] == case["preds"], len(groups))
    np.testing.assert_allclose(accuracy, case["per_class"], **EXACT)
    shots = shot_accuracy(accuracy, groups)
    np.testing.assert_allclose([shots[k] for k in ("many", "medium", "few")], case[name], **EXACT)


def test_counts_of_the_golden_case_come_from_its_training_labels():
    """So that the case tests the groups at the borders 100, 99, 20 and 19."""
    case = np.load(GOLDEN)
    np.testing.assert_array_equal(np.bincount(case["train_labels"]), case["class_counts"])
    assert {101, 100, 99, 21, 20, 19} <= set(case["class_counts"].tolist())


# ------------------------------------------------------------------ top-k


@pytest.mark.parametrize("k", [1, 3, 5, 12])
def test_hits_follow_the_rank_of_the_label(k):
    """Rank: classes of a higher score, and those of an equal score with a lower id."""
    scores, labels = random_case(0)
    own = scores[np.arange(len(labels)), labels][:, None]
    lower_id = np.arange(12) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & lower_id)).sum(axis=1)
    np.testing.assert_array_equal(top_k_hits(scores, labels, k).numpy(), rank < k)


def test_equal_scores_rank_by_class_id():
    # 2000 columns: short rows may be sorted by another, stable algorithm anyway.
    assert top_k_classes(torch.zeros(2, 2000), 4).tolist() == [[0, 1, 2, 3]] * 2
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0]])
    assert top_k_classes(scores, 5).tolist() == [[1, 3, 2, 4, 0]]


@pytest.mark.parametrize("levels", [1, 2, 8, 50])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_top_classes_are_the_first_of_a_stable_sort(levels, k):
    """From scores that are all equal to some ties, within the best k and at their border."""
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, size=(200, 30)) / levels
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top_k_classes(scores, k), expected)


def test_hits_need_only_the_order_of_the_scores():
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(0, 3, size=(200, 12)))
    labels = rng.integers(0, 12, size=200)
    for k in (1, 5):
        assert torch.equal(top_k_hits(logits, labels, k), top_k_hits(logits.softmax(1), labels, k))


@pytest.mark.parametrize(
    ("scores", "labels", "k", "message"),
    [
        (np.zeros((2, 3)), [0, 1], 4, r"k must be in 1\.\.3, the number of classes, got 4"),
        (np.zeros((2, 3)), [0, 1], 0, "got 0"),
        (np.zeros(3), [0], 1, r"\(images, classes\), got shape \(3,\)"),
        (np.zeros((2, 3)), [0], 1, r"labels of shape \(1,\) for 2 rows"),
    ],
)
def test_top_k_of_something_else_is_refused(scores, labels, k, message):
    with pytest.raises(ValueError, match=message):
        top_k_hits(scores, np.array(labels), k)


# ------------------------------------------------------------------ classes


def test_confusion_matrix_counts_truth_in_rows():
    matrix = confusion_matrix([0, 0, 2, 2, 2], [0, 1, 2, 1, 1], 4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]]
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_confusion_matrix_and_class_accuracy_agree():
    scores, labels = random_case(2)
    predicted = top_k_classes(scores, 1)[:, 0]
    matrix = confusion_matrix(torch.from_numpy(labels), predicted, 12)
    np.testing.assert_array_equal(matrix.sum(axis=1), np.bincount(labels, minlength=12))
    accuracy = class_accuracy(labels, top_k_hits(scores, labels, 1), 12)
    np.testing.assert_allclose(
        accuracy[:-1], np.diag(matrix)[:-1] / matrix.sum(axis=1)[:-1], **EXACT
    )
    assert np.isnan(accuracy[-1])  # has no image


def test_permuting_the_classes_permutes_accuracy_and_confusion():
    scores, labels = random_case(3)
    scores = scores + np.random.default_rng(4).uniform(0, 0.01, scores.shape)  # no ties
    order = np.random.default_rng(5).permutation(12)
    place = np.argsort(order)  # old class -> new class
    predicted, other = top_k_classes(scores, 1)[:, 0], top_k_classes(scores[:, order], 1)[:, 0]
    np.testing.assert_array_equal(
        confusion_matrix(labels, predicted, 12)[np.ix_(order, order)],
        confusion_matrix(place[labels], other, 12),
    )
    before = class_accuracy(labels, predicted.numpy() == labels, 12)
    after = class_accuracy(place[labels], other.numpy() == place[labels], 12)
    np.testing.assert_array_equal(before[order], after)


def test_class_means_by_hand():
    means = class_means([1, 0, 1], [1.0, 5.0, 4.0], 3)
    np.testing.assert_array_equal(means, [5.0, 2.5, NAN])
    assert mean_over_classes(means) == 3.75 and np.isnan(mean_over_classes([NAN]))


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [
        ([0, 3], [0, 0], r"labels must be in 0\.\.2, got 3"),
        ([0, 1], [0, -1], r"predicted must be in 0\.\.2, got -1"),
        ([0, 1], [0], r"labels of shape \(2,\) and predicted of shape \(1,\)"),
        ([0.0, 1.0], [0, 1], "labels must be whole numbers, got float64"),
        ([[0]], [0], r"one class per image, got shape \(1, 1\)"),
    ],
)
def test_classes_that_are_none_are_refused(labels, predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(labels), np.array(predicted), 3)


# ------------------------------------------------------------------ calibration


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "expected"),
    [
        ([1.0, 1.0], [True, True], 15, 0.0),
        ([1.0, 1.0], [False, False], 15, 1.0),
        # One bin: |accuracy - mean confidence|.
        ([0.9, 0.7, 0.2, 0.4], [True, False, True, False], 1, 0.05),
        # Two bins (0, 0.5], (0.5, 1]: 2/4 |0.5 - 0.3| + 2/4 |0.5 - 0.8|.
        ([0.9, 0.7, 0.2, 0.4], [True, False, True, False], 2, 0.25),
        # 0.5 belongs to the lower of two bins, where it makes up for 0.1: |1 - 0.6| / 2.
        ([0.5, 0.1], [True, False], 2, 0.2),
        # 0 belongs to the first bin, with 0.4.
        ([0.0, 0.4], [True, False], 2, 0.3),
    ],
)
def test_calibration_error_by_hand(confidence, correct, bins, expected):
    value = expected_calibration_error(confidence, correct, bins)
    assert value == pytest.approx(expected, abs=1e-15)


def test_calibration_error_is_the_sum_over_the_bins_of_the_definition():
    rng = np.random.default_rng(6)
    confidence, correct = rng.uniform(size=400), rng.uniform(size=400) < 0.4
    total = 0.0
    for b in range(15):
        own = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if own.any():
            total += own.mean() * abs(correct[own].mean() - confidence[own].mean())
    assert expected_calibration_error(confidence, correct) == pytest.approx(total, rel=1e-12)
    order = rng.permutation(400)
    assert expected_calibration_error(
        torch.from_numpy(confidence[order]), torch.from_numpy(correct[order])
    ) == pytest.approx(total, rel=1e-12)


def test_calibration_error_of_a_calibrated_generator_is_small_and_of_a_shifted_one_the_shift():
    rng = np.random.default_rng(7)
    confidence = rng.uniform(0.2, 0.8, size=200_000)
    correct = rng.uniform(size=200_000) < confidence
    # A bin of 20,000 images: its accuracy has a deviation of at most 0.5 / sqrt(20,000) = 0.0035.
    assert expected_calibration_error(confidence, correct) < 0.006
    shifted = expected_calibration_error(confidence + 0.15, correct)
    assert shifted == pytest.approx(0.15, abs=0.006)


def test_rounding_above_1_is_taken_for_1():
    confidence = torch.tensor([1.0000001, 1.0], dtype=torch.float32)
    assert confidence[0] > 1
    assert expected_calibration_error(confidence, [True, True]) == 0.0


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        ([], [], 15, "no images"),
        ([0.5], [True], 0, "bins must be at least 1, got 0"),
        ([0.5, 1.5], [True, True], 15, r"in \[0, 1\], got 1\.5"),
        ([0.5, NAN], [True, True], 15, "got nan"),
        ([0.5], [True, True], 15, r"confidence of shape \(1,\) and correct of shape \(2,\)"),
    ],
)
def test_calibration_error_of_something_else_is_refused(confidence, correct, bins, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(confidence, correct, bins)


# ------------------------------------------------------------------ the evaluator

COUNTS = [300, 150, 101, 100, 60, 20, 19, 10, 5, 0]
NAMES = [f"class {k}" for k in range(len(COUNTS))]


def make_evaluator(names=NAMES, counts=COUNTS, **changes):
    counts = None if counts is None else {"images": counts}
    return LongTailClassificationEvaluator(
        dataset_name="toy_test", class_names=names, class_counts=counts, **changes
    )


def process(evaluator, scores, labels, ids=None, batch=7, features=None):
    """Batches of 7, so that the last one is smaller."""
    scores = torch.as_tensor(scores)
    ids = range(len(labels)) if ids is None else ids
    images = [
        {"image_id": i, "label": int(y), "file_name": "x"} for i, y in zip(ids, labels, strict=True)
    ]
    outputs = [{"scores": row} for row in scores]
    if features is not None:
        outputs = [{**o, "features": f} for o, f in zip(outputs, features, strict=True)]
    for start in range(0, len(images), batch):
        evaluator.process(images[start : start + batch], outputs[start : start + batch])


def run(scores, labels, *, ids=None, features=None, **changes):
    evaluator = make_evaluator(**changes)
    process(evaluator, scores, labels, ids=ids, features=features)
    return evaluator.evaluate()["classification"], evaluator


def softmax_case(seed=8, images=240):
    """Probabilities that favour the label; labels of all classes but the last two."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 8, size=images)
    logits = rng.normal(size=(images, 10)) + 2 * np.eye(10)[labels]
    return torch.from_numpy(logits).softmax(dim=1), labels


def test_metrics_are_the_functions_of_all_images_in_percent():
    scores, labels = softmax_case()
    results, evaluator = run(scores, labels)
    hits = top_k_hits(scores, labels, 1).numpy()
    accuracy = class_accuracy(labels, hits, 10)
    shots = shot_accuracy(accuracy, groups_from_counts(COUNTS, KANG))
    expected = {
        "top1": hits.mean(),
        "top5": top_k_hits(scores, labels, 5).numpy().mean(),
        "mean_class": np.nanmean(accuracy),
        **shots,
        "ece": expected_calibration_error(scores.max(dim=1).values, hits),
    }
    assert list(results) == ["top1", "top5", "mean_class", "many", "medium", "few", "ece"]
    for name, value in expected.items():
        assert results[name] == pytest.approx(100 * value, rel=1e-12), name
    assert 20 < results["top1"] < 90 < results["top5"]
    np.testing.assert_allclose(
        class_values(evaluator.record, "classification/accuracy"), 100 * accuracy, **EXACT
    )


def test_the_record_names_split_borders_and_rules():
    scores, labels = softmax_case()
    _, evaluator = run(scores, labels)
    record = evaluator.record
    assert (record["task"], record["dataset"]) == ("classification", "toy_test")
    assert record["protocol"] == {
        "split": "toy_test",
        "images": 240,
        "groups": "training images",
        "borders": [19, 100],
        "top_k": 5,
        "tie": "lower class id first",
        "confidence": "highest score",
        "ece_bins": 15,
    }
    columns = record["per_class"]
    assert columns["name"] == NAMES and columns["train_images"] == COUNTS
    assert columns["group"] == list("fffcccrrrr")
    assert columns["test_images"] == np.bincount(labels, minlength=10).tolist()
    assert columns["classification/accuracy"][8:] == [None, None]
    assert record["group_sizes"] == {"r": 4, "c": 3, "f": 3}
    assert record["run"] == {}


def test_perfect_predictions_give_100_and_no_calibration_error():
    labels = np.arange(30) % 10
    results, _ = run(np.eye(10)[labels], labels)
    assert results.pop("ece") == 0.0
    assert set(results.values()) == {100.0}


def test_uniform_predictions_are_the_first_classes_with_a_confidence_of_one_in_c():
    labels = np.repeat(np.arange(10), [6, 5, 4, 3, 2, 2, 2, 2, 2, 2])
    results, _ = run(np.full((30, 10), 0.1), labels)
    assert results["top1"] == pytest.approx(100 * 6 / 30)
    assert results["top5"] == pytest.approx(100 * 20 / 30)
    assert results["mean_class"] == pytest.approx(10.0)
    assert results["many"] == pytest.approx(100 / 3) and results["medium"] == results["few"] == 0
    assert results["ece"] == pytest.approx(100 * (6 / 30 - 0.1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_scores_rank_as_their_values_do(dtype):
    scores, labels = softmax_case()
    low = scores.to(dtype)
    results, _ = run(low, labels)
    wide, _ = run(low.double(), labels)
    assert results == pytest.approx(wide, rel=1e-6)  # sums of float32 confidences in the ECE


def test_the_order_of_images_and_batches_does_not_matter():
    scores, labels = softmax_case()
    results, evaluator = run(scores, labels)
    order = np.random.default_rng(9).permutation(len(labels))
    again, other = run(scores[order], labels[order], ids=order.tolist())
    assert again == results and other.record == evaluator.record


def test_groups_that_are_given_come_before_the_counts():
    scores, labels = softmax_case()
    results, evaluator = run(scores, labels, groups=["f", "r"] * 5)
    accuracy = class_values(evaluator.record, "classification/accuracy")
    assert results["many"] == pytest.approx(np.nanmean(accuracy[0::2]))
    assert results["few"] == pytest.approx(np.nanmean(accuracy[1::2]))
    assert np.isnan(results["medium"])
    assert evaluator.record["protocol"]["groups"] == "given"
    assert evaluator.record["protocol"]["borders"] is None


def test_other_borders_move_classes_between_groups():
    scores, labels = softmax_case()
    _, evaluator = run(scores, labels, group_borders=OLTR)
    assert evaluator.record["per_class"]["group"] == list("ffffcrrrrr")
    assert evaluator.record["protocol"]["borders"] == [20, 99]


def test_without_counts_there_are_no_groups():
    scores, labels = softmax_case()
    results, evaluator = run(scores, labels, counts=None)
    assert all(np.isnan(results[name]) for name in ("many", "medium", "few"))
    assert "group" not in evaluator.record["per_class"]
    assert evaluator.record["metrics"]["classification"]["many"] is None


def test_fewer_than_five_classes_have_no_top5(caplog):
    results, evaluator = run(
        [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], [0, 1, 1], names=["a", "b"], counts=[200, 3]
    )
    assert "top5" not in results and evaluator.record["protocol"]["top_k"] is None
    assert (results["many"], results["few"]) == (100.0, 50.0) and np.isnan(results["medium"])
    with caplog.at_level(logging.INFO):
        print_csv_format({"classification": results})  # Detectron2's, with NaN among the values
    assert "top1,mean_class,many,medium,few,ece" in caplog.text


def test_five_classes_have_a_top5_of_100():
    results, _ = run(np.full((1, 5), 0.2), [4], names=list("abcde"), counts=None)
    assert (results["top1"], results["top5"]) == (0.0, 100.0)


def test_one_image_of_one_class():
    results, _ = run([[0.75]], [0], names=["a"], counts=[20])
    assert results["top1"] == results["medium"] == results["mean_class"] == 100.0
    assert results["ece"] == 25.0


@pytest.mark.parametrize("shift", [-1.0, 5.0])
def test_scores_that_are_no_probabilities_have_no_calibration_error(shift, caplog):
    """Not even where the highest is in [0, 1]; the rest is as for probabilities."""
    scores, labels = softmax_case()
    shifted = scores.clone()
    shifted[3, scores[3].argmin() if shift < 0 else scores[3].argmax()] += shift
    expected, _ = run(scores, labels)
    with caplog.at_level(logging.WARNING, logger="lt_det"):
        results, evaluator = run(shifted, labels)
    assert "no calibration error" in caplog.text
    assert np.isnan(results.pop("ece")) and expected.pop("ece") > 0
    assert results == expected
    assert evaluator.record["metrics"]["classification"]["ece"] is None


def test_an_image_that_comes_twice_counts_once(caplog):
    scores, labels = softmax_case()
    ids = list(range(240))
    with caplog.at_level(logging.WARNING, logger="lt_det"):
        results, evaluator = run(
            torch.cat([scores, scores[:3]]), [*labels, *labels[:3]], ids=ids + ids[:3]
        )
    assert "3 images were processed more than once" in caplog.text
    expected, alone = run(scores, labels)
    assert results == expected and evaluator.record == alone.record


def test_an_id_of_two_different_images_is_an_error():
    scores, labels = softmax_case(images=4)
    labels = [0, 1, 2, 3]
    with pytest.raises(DataError, match="have the id 7 but labels 1 and 3; ids must be unique"):
        run(scores, labels, ids=[5, 7, 6, 7])


def test_reset_forgets_the_images_before():
    scores, labels = softmax_case()
    evaluator = make_evaluator()
    process(evaluator, scores, (labels + 1) % 8)
    evaluator.reset()
    process(evaluator, scores, labels)
    assert evaluator.evaluate()["classification"] == run(scores, labels)[0]


def test_scores_of_another_length_name_image_and_classes():
    evaluator = make_evaluator()
    with pytest.raises(DataError, match=r"image 4: scores of shape \(9,\), but toy_test has 10"):
        process(evaluator, torch.zeros(1, 9), [0], ids=[4])


def test_nan_scores_name_the_image():
    scores, labels = softmax_case(images=5)
    scores[2, 6] = NAN
    with pytest.raises(DataError, match="image 'c': its scores hold NaN"):
        process(make_evaluator(), scores, labels, ids=list("abcde"))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"image_id": 3, "label": 10}, r"image 3: label 10 is not in 0\.\.9.*toy_test"),
        ({"image_id": 3, "label": -1}, "label -1"),
        ({"image_id": 3, "label": 1.0}, "one whole number, got 1.0"),
        ({"image_id": 3}, "one whole number, got None"),
    ],
)
def test_labels_that_are_no_class_name_the_image(image, message):
    with pytest.raises(DataError, match=message):
        make_evaluator().process([image], [{"scores": torch.ones(10) / 10}])


def test_no_image_is_an_error_after_an_empty_batch():
    evaluator = make_evaluator()
    evaluator.process([], [])
    with pytest.raises(DataError, match="no image of toy_test"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match="1 outputs for 0 inputs"):
        evaluator.process([], [{"scores": torch.ones(10)}])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"names": [], "counts": None}, ValueError, "class_names is empty"),
        ({"counts": [1, 2]}, ValueError, "2 counts of images for 10 class_names"),
        ({"groups": ["r"]}, ValueError, "1 groups for 10 classes"),
        ({"groups": ["many"] * 10}, ValueError, "unknown group 'many'"),
        ({"group_borders": (100, 19)}, ConfigError, r"0 < first < second, got \(100, 19\)"),
        ({"keep_features": True}, ValueError, "needs an output_dir"),
    ],
)
def test_arguments_that_cannot_be_used(changes, error, message):
    with pytest.raises(error, match=message):
        make_evaluator(**changes)


# ------------------------------------------------------------------ files


def test_predictions_are_kept_by_image_id(tmp_path):
    scores, labels = softmax_case(images=20)
    order = np.random.default_rng(10).permutation(20)
    run(scores[order], labels[order], ids=order.tolist(), output_dir=str(tmp_path / "inference"))
    own = read_class_predictions(tmp_path / "inference" / PREDICTIONS_FILE, 10)
    assert list(own) == ["image_ids", "labels", "top_classes", "top_scores", "scores"]
    np.testing.assert_array_equal(own["image_ids"], np.arange(20))
    np.testing.assert_array_equal(own["labels"], labels)
    np.testing.assert_array_equal(own["top_classes"], top_k_classes(scores, 5))
    np.testing.assert_array_equal(own["top_scores"], scores.sort(1, descending=True).values[:, :5])
    np.testing.assert_array_equal(own["scores"], scores.float())
    assert [p.name for p in (tmp_path / "inference").iterdir()] == [PREDICTIONS_FILE]


def test_all_scores_are_kept_for_few_classes_only(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SCORED_CLASSES", 9)
    scores, labels = softmax_case(images=4)
    run(scores, labels, output_dir=str(tmp_path), ids=list("abcd"))
    own = read_class_predictions(tmp_path / PREDICTIONS_FILE, 10)
    assert "scores" not in own and own["image_ids"].tolist() == list("abcd")


def test_nothing_is_written_unless_wanted(tmp_path):
    scores, labels = softmax_case(images=4)
    run(scores, labels, output_dir=str(tmp_path), keep_predictions=False)
    assert list(tmp_path.iterdir()) == []


def test_features_are_kept_with_the_weights_at_evaluation(tmp_path):
    scores, labels = softmax_case(images=9)
    rng = np.random.default_rng(11)
    features, weights = torch.from_numpy(rng.normal(size=(9, 4))), torch.zeros(10, 4)
    evaluator = make_evaluator(
        output_dir=str(tmp_path), keep_features=True, classifier_weights=lambda: weights
    )
    process(evaluator, scores, labels, ids=list(range(9))[::-1], features=features)
    weights += 1  # a training that goes on
    evaluator.evaluate()
    own = read_features(tmp_path / FEATURES_FILE, 10)
    np.testing.assert_array_equal(own["features"], features.float().flip(0))
    np.testing.assert_array_equal(own["labels"], labels[::-1])
    np.testing.assert_array_equal(own["weights"], np.ones((10, 4)))


def test_weights_of_other_classes_are_refused(tmp_path):
    scores, labels = softmax_case(images=2)
    with pytest.raises(DataError, match=r"classifier_weights of shape \(4, 10\) for 10 classes"):
        run(
            scores,
            labels,
            features=torch.zeros(2, 4),
            output_dir=str(tmp_path),
            keep_features=True,
            classifier_weights=lambda: torch.zeros(4, 10),
        )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [0]}, "has no array 'top_classes'; it has image_ids, labels"),
        (
            {"labels": [0, 1], "top_classes": [[0]], "top_scores": [[1.0]]},
            r"labels of shape \(2,\) and top_classes of shape \(1, 1\)",
        ),
        (
            {"labels": [0, 1], "top_classes": [[0], [1]], "top_scores": [[1.0], [1.0]]},
            r"image_ids of shape \(1,\), labels of shape \(2,\)",
        ),
        (
            {"labels": [5], "top_classes": [[0]], "top_scores": [[1.0]]},
            r"labels must be in 0\.\.4, got 5",
        ),
    ],
)
def test_predictions_of_another_shape_name_the_file(tmp_path, arrays, message):
    path = tmp_path / PREDICTIONS_FILE
    np.savez(path, image_ids=[7], **arrays)
    with pytest.raises(DataError, match=rf"predictions\.npz.*{message}"):
        read_class_predictions(path, 5)


def test_features_of_another_shape_name_the_file(tmp_path):
    path = tmp_path / FEATURES_FILE
    np.savez(path, features=np.zeros((2, 3)), labels=[0, 1], weights=np.zeros((3, 5)))
    with pytest.raises(DataError, match=r"weights of shape \(3, 5\) for 5 classes"):
        read_features(path, 5)
    np.savez(path, features=np.zeros((0, 3)), labels=np.zeros(0, dtype=np.int64))
    with pytest.raises(DataError, match=r"features\.npz holds no image"):
        read_features(path, 5)
    np.savez(path, features=np.zeros((2, 3)), labels=[0])
    with pytest.raises(DataError, match=r"features of shape \(2, 3\) and labels of shape \(1,\)"):
        read_features(path, 5)


def test_files_that_are_missing_or_broken_are_named(tmp_path):
    with pytest.raises(MissingFileError, match="predictions"):
        read_class_predictions(tmp_path / PREDICTIONS_FILE, 5)
    (tmp_path / PREDICTIONS_FILE).write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match=r"predictions\.npz cannot be read"):
        read_class_predictions(tmp_path / PREDICTIONS_FILE, 5)


# ------------------------------------------------------------------ several processes

# Images of each rank, for two evaluations in turn: uneven with two images on both ranks, as a
# padding sampler gives; and a rank without any image.
SPLITS = (
    (range(0, 150), [*range(150, 240), 0, 1]),
    ((), range(240)),
)


def two_evaluations(folder: str, rank: int):
    scores, labels = softmax_case()
    evaluator = make_evaluator(output_dir=f"{folder}/rank{rank}")
    out = []
    for split in SPLITS:
        own = list(split[rank])
        evaluator.reset()
        process(evaluator, scores[own], labels[own], ids=own)
        out.append((dict(evaluator.evaluate()), evaluator.record))
    alone = make_evaluator(distributed=False)
    own = list(SPLITS[0][rank])
    process(alone, scores[own], labels[own], ids=own)
    return out, alone.evaluate()["classification"]


def test_two_ranks_give_the_result_of_one_process(tmp_path):
    ranks = run_on_ranks(functools.partial(two_evaluations, str(tmp_path)), 2)
    scores, labels = softmax_case()
    results, alone = run(scores, labels)
    assert ranks[0][0] == [({"classification": results}, alone.record)] * 2
    assert ranks[1][0] == [({}, None)] * 2
    for rank in (0, 1):  # each for itself where it is not to gather
        own = list(SPLITS[0][rank])
        assert ranks[rank][1] == run(scores[own], labels[own])[0]
    assert (tmp_path / "rank0" / PREDICTIONS_FILE).exists()
    assert not (tmp_path / "rank1").exists()
