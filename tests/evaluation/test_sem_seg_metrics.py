"""Measures of semantic segmentation against loops over classes and against Detectron2."""

import numpy as np
import pytest
import torch
from detectron2.evaluation import SemSegEvaluator

from lt_det.evaluation.sem_seg_metrics import (
    Areas,
    areas,
    boundary_areas,
    boundary_distance,
    boundary_map,
    by_size,
    class_accuracy,
    class_iou,
    confusion_matrix,
    mean_iou,
    overall,
    runs,
    top_class,
)
from tests.evaluation.sem_seg_maps import IGNORED, detectron2_results, map_pair, region_map

C = 8

# ------------------------------------------------------------------ the highest score


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(150, 70, 61), (3, 5, 4), (1, 2, 3), (255, 1, 1), (2, 1, 9000)])
def test_the_first_of_equal_scores_is_predicted(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-2, 3, shape, generator=generator).to(dtype)
    expected = scores.double().numpy().argmax(axis=0)  # documented: the first occurrence
    assert np.array_equal(top_class(scores).numpy(), expected)


def test_the_highest_of_scores_that_are_not_contiguous():
    scores = torch.randn(40, 50, 9, generator=torch.Generator().manual_seed(1)).permute(2, 1, 0)
    part = scores[:, 5:-5, ::2]
    assert torch.equal(top_class(part).long(), part.argmax(0))


def test_infinite_scores_are_ordered_as_others():
    scores = torch.tensor([-torch.inf, 0.0, torch.inf, torch.inf]).reshape(4, 1, 1)
    assert top_class(scores).item() == 2
    assert top_class(torch.full((4, 1, 1), -torch.inf)).item() == 0


@pytest.mark.parametrize("place", [(0, 0, 0), (4, 511, 7), (2, 300, 3)])
def test_one_nan_is_found_wherever_it_is(place):
    scores = torch.zeros(5, 512, 8)
    scores[place] = torch.nan
    with pytest.raises(ValueError, match="scores hold NaN"):
        top_class(scores)


@pytest.mark.parametrize("shape", [(4, 4), (256, 1, 1), (0, 2, 2)])
def test_scores_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="1 to 255 classes, height, width"):
        top_class(torch.zeros(shape))


# ------------------------------------------------------------------ confusion


def naive_confusion(labels, predicted, num_classes):
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    for label, prediction in zip(labels.ravel(), predicted.ravel(), strict=True):
        if label != IGNORED:
            matrix[label, prediction] += 1
    return matrix


@pytest.mark.parametrize("seed", range(4))
def test_confusion_counts_pairs_of_pixels(seed):
    labels, predicted = map_pair(seed)
    matrix = confusion_matrix(labels, predicted, C)
    assert np.array_equal(matrix, naive_confusion(labels, predicted, C))
    assert matrix.sum() == (labels != IGNORED).sum()
    # Neither the type nor the order in memory of a map matters.
    for dtype in (np.int64, np.uint16, np.int8):
        changed = np.asfortranarray(predicted.astype(dtype))
        assert np.array_equal(confusion_matrix(labels.astype(np.int32), changed, C), matrix)
    assert np.array_equal(confusion_matrix(labels.T, predicted.T, C), matrix)


def test_noise_is_counted_as_regions_are():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 255, (2, 30, 40)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = IGNORED
    expected = naive_confusion(labels, predicted, 255)
    assert np.array_equal(confusion_matrix(labels, predicted, 255), expected)


def test_relabelling_the_classes_permutes_the_matrix():
    labels, predicted = map_pair(5)
    new = np.append(np.random.default_rng(0).permutation(C), np.full(256 - C, IGNORED))
    matrix = confusion_matrix(labels, predicted, C)
    permuted = confusion_matrix(new[labels], new[predicted], C)
    assert np.array_equal(permuted[np.ix_(new[:C], new[:C])], matrix)


def test_maps_of_one_pixel_and_of_one_label():
    one = np.zeros((1, 1), np.uint8)
    assert confusion_matrix(one, one + 1, 2).tolist() == [[0, 1], [0, 0]]
    ignored = np.full((4, 5), IGNORED, np.uint8)
    assert confusion_matrix(ignored, np.zeros_like(ignored), 2).sum() == 0


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [
        ([[0, 8]], [[0, 0]], r"labels must be in 0\.\.7, or 255 where ignored, got 8"),
        ([[0, 254]], [[0, 0]], r"labels must be in 0\.\.7, or 255 where ignored, got 254"),
        ([[0, 0]], [[0, 9]], r"predicted must be in 0\.\.7, got 9"),
        ([[0, 0]], [[0, 255]], r"predicted must be in 0\.\.7, got 255"),
        # Also where the label is ignored: the prediction is broken.
        ([[0, 255]], [[0, 8]], r"predicted must be in 0\.\.7, got 8"),
        ([[0, 0]], [[0, -1]], r"predicted must be in 0\.\.255, got -1"),
        ([[0, 0]], [[0, 256]], r"predicted must be in 0\.\.255, got 256"),
        ([[0, 0]], [[0.0, 1.0]], "predicted must be whole numbers, got float64"),
        ([[0, 0]], [[0], [0]], r"predicted is of shape \(2, 1\), labels of \(1, 2\)"),
        ([0, 0], [0, 0], r"predicted is of shape \(2,\), labels of \(2,\)"),
        ([[]], [[]], r"predicted is of shape \(1, 0\)"),
    ],
)
def test_maps_that_cannot_be_counted_are_refused(labels, predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(labels), np.array(predicted), C)


def test_runs_by_hand():
    first, length = runs(np.array([4, 4, 1, 4, 4, 4]))
    assert first.tolist() == [0, 2, 3] and length.tolist() == [2, 1, 3]
    first, length = runs(np.array([7]))
    assert first.tolist() == [0] and length.tolist() == [1]


# ------------------------------------------------------------------ numbers of Detectron2


CASES = {
    "all": dict(labelled=range(C), predicted=range(C)),
    "no label of some": dict(labelled=range(2, 6), predicted=range(C)),
    "some never predicted": dict(labelled=range(C), predicted=range(2, 6)),
    "some in neither": dict(labelled=range(5), predicted=range(2, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_all_numbers_are_detectron2s(case, tmp_path):
    pairs = [map_pair(seed, **CASES[case]) for seed in range(3)]
    expected, _ = detectron2_results(tmp_path, pairs, C)
    total = areas(sum(confusion_matrix(*pair, C) for pair in pairs))
    iou = np.array([expected[f"IoU-{k}"] for k in range(C)])
    close = dict(rtol=1e-12, atol=0)  # float64, sums in another order
    np.testing.assert_allclose(100 * class_iou(total), iou, **close)
    accuracy = np.array([expected[f"ACC-{k}"] for k in range(C)])
    np.testing.assert_allclose(100 * class_accuracy(total), accuracy, **close)
    found = overall(total)
    # Later versions leave classes that are only predicted out of this one mean: by the rule of
    # 0.5 from their IoU.
    counted = ((total.labelled > 0) | (total.predicted > 0)).sum()
    np.testing.assert_allclose(100 * found["mIoU"], np.nansum(iou) / counted, **close)
    if SemSegEvaluator.__init__.__kwdefaults__.get("sem_seg_loading_fn") is None:
        np.testing.assert_allclose(100 * found["mIoU"], expected["mIoU"], **close)
    for metric in ("fwIoU", "mACC", "pACC"):
        np.testing.assert_allclose(100 * found[metric], expected[metric], **close)


def test_numbers_by_hand():
    #       predicted  0  1  2  3
    matrix = np.array([[6, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    own = areas(matrix)
    assert [a.tolist() for a in own] == [[6, 0, 0, 0], [8, 2, 0, 0], [6, 2, 2, 0]]
    nan = np.nan
    np.testing.assert_array_equal(class_iou(own), [0.75, 0, nan, nan])
    np.testing.assert_array_equal(class_accuracy(own), [0.75, 0, nan, nan])
    # Class 2 is only predicted: it counts as 0. Class 3 is nowhere.
    assert overall(own) == {"mIoU": 0.25, "fwIoU": 0.6, "mACC": 0.375, "pACC": 0.6}
    assert by_size(own, ["f", "c", "r", "r"]) == {
        **{"mIoU_head": 0.75, "mIoU_common": 0.0, "mIoU_tail": 0.0},
        **{"mACC_head": 0.75, "mACC_common": 0.0, "mACC_tail": pytest.approx(nan, nan_ok=True)},
    }


def test_group_means_weighted_by_their_classes_are_the_mean_of_all():
    matrix = confusion_matrix(*map_pair(9, labelled=range(5), predicted=range(2, 7)), C)
    own, groups = areas(matrix), np.array(list("ffccrrrr"))
    counted = (own.labelled > 0) | (own.predicted > 0)
    assert counted.sum() < C and (own.labelled[counted] == 0).any()
    means, letters = by_size(own, groups), {"head": "f", "common": "c", "tail": "r"}
    for metric, of in (("mIoU", counted), ("mACC", own.labelled > 0)):
        weights = {size: (of & (groups == letters[size])).sum() for size in letters}
        total = sum(n * means[f"{metric}_{size}"] for size, n in weights.items() if n)
        assert total / of.sum() == pytest.approx(overall(own)[metric], rel=1e-12)


def test_a_perfect_prediction_is_1_and_without_labels_there_is_no_number():
    labels, _ = map_pair(2, ignored=0)
    own = areas(confusion_matrix(labels, labels, C))
    assert overall(own) == dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), 1.0)
    nothing = Areas(*np.zeros((3, C), dtype=np.int64))
    assert np.isnan(list(overall(nothing).values())).all()
    assert np.isnan(list(by_size(nothing, "ffccrrrr").values())).all()
    assert np.isnan(mean_iou(nothing))


def test_ignored_pixels_count_nowhere():
    labels, predicted = map_pair(3)
    changed = np.where(labels == IGNORED, (predicted + 1) % C, predicted)
    assert (changed != predicted).any()
    before, after = (confusion_matrix(labels, p, C) for p in (predicted, changed))
    assert np.array_equal(before, after)


# ------------------------------------------------------------------ boundary


def erode(mask):
    """By 3 x 3; outside the map nothing is of the class."""
    padded = np.pad(mask, 1)
    h, w = mask.shape
    windows = [padded[i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return np.logical_and.reduce(windows)


def naive_boundary(mask, distance):
    eroded = mask
    for _ in range(distance):
        eroded = erode(eroded)
    return mask & ~eroded


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 6, 8])
@pytest.mark.parametrize("shape", [(37, 53), (12, 40), (11, 11), (17, 3), (1, 1)])
def test_the_boundary_is_that_of_every_class_mask(shape, distance):
    for seed in range(3):
        labels = region_map(np.random.default_rng(seed), shape, [*range(5), IGNORED], regions=4)
        expected = np.zeros(shape, dtype=bool)
        for k in np.unique(labels):
            expected |= naive_boundary(labels == k, distance)
        assert np.array_equal(boundary_map(labels, distance), expected)


def test_the_boundary_of_one_label_is_the_border_of_the_map():
    boundary = boundary_map(np.full((9, 8), 3, np.uint8), 2)
    assert not boundary[2:-2, 2:-2].any() and boundary.sum() == 9 * 8 - 5 * 4


def test_the_boundary_does_not_depend_on_the_ids():
    labels = region_map(np.random.default_rng(1), (40, 50), range(6))
    new = np.random.default_rng(2).permutation(256).astype(np.uint8)
    assert np.array_equal(boundary_map(new[labels], 3), boundary_map(labels, 3))
    assert np.array_equal(boundary_map(labels.T, 3), boundary_map(labels, 3).T)


@pytest.mark.parametrize(
    ("shape", "expected"), [((512, 683), 17), ((30, 40), 1), ((1, 1), 1), ((100, 1000), 20)]
)
def test_the_distance_is_2_percent_of_the_diagonal(shape, expected):
    assert boundary_distance(*shape) == expected


@pytest.mark.parametrize("distance", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_boundary_areas_are_those_of_the_class_masks(seed, distance):
    labels, predicted = map_pair(seed, ignored=0.01)
    labels[5:9, 10:20] = IGNORED
    own = boundary_areas(labels, predicted, C, distance)
    valid = labels != IGNORED
    for k in range(C):
        truth = naive_boundary(labels == k, distance)
        found = naive_boundary(predicted == k, distance) & valid
        got = [own.correct[k], own.labelled[k], own.predicted[k]]
        assert got == [(truth & found).sum(), truth.sum(), found.sum()]


def test_boundary_iou_of_more_classes_than_detectron2s_8_bit_product_can_hold():
    labels, predicted = map_pair(0, labelled=range(200), predicted=range(200))
    few = np.unique(np.append(labels[labels != IGNORED], predicted))
    small = np.append(np.zeros(255, np.uint8), np.uint8(IGNORED))
    small[few] = np.arange(len(few))
    many = class_iou(boundary_areas(labels, predicted, 200, 2))
    expected = class_iou(boundary_areas(small[labels], small[predicted], len(few), 2))
    assert np.isfinite(expected).any()
    np.testing.assert_array_equal(many[few], expected)


def test_a_large_distance_makes_boundary_iou_the_iou():
    labels, predicted = map_pair(4)
    own = boundary_areas(labels, predicted, C, 100)
    for a, b in zip(own, areas(confusion_matrix(labels, predicted, C)), strict=True):
        assert np.array_equal(a, b)


def test_a_thin_error_costs_more_at_the_boundary():
    labels = np.zeros((60, 60), np.uint8)
    labels[10:50, 10:50] = 1
    predicted = np.zeros_like(labels)
    predicted[11:49, 11:49] = 1
    whole = class_iou(areas(confusion_matrix(labels, predicted, 2)))[1]
    boundary = class_iou(boundary_areas(labels, predicted, 2, 2))[1]
    # Rings 2 wide of squares of 40 and 38 share one of the width 1: 4 * 37 pixels.
    assert whole == 38**2 / 40**2
    assert boundary == 148 / (40**2 - 36**2 + 38**2 - 34**2 - 148)


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [
        ([[0, 8]], [[0, 0]], r"labels must be in 0\.\.7, or 255 where ignored, got 8"),
        ([[0, 0]], [[0, 9]], r"predicted must be in 0\.\.7, got 9"),
        ([[0, 0]], [[0], [0]], r"predicted is of shape \(2, 1\), labels of \(1, 2\)"),
    ],
)
def test_boundaries_of_maps_that_cannot_be_counted_are_refused(labels, predicted, message):
    with pytest.raises(ValueError, match=message):
        boundary_areas(np.array(labels), np.array(predicted), C, 1)


def test_a_distance_of_0_has_no_boundary():
    with pytest.raises(ValueError, match="distance of at least 1"):
        boundary_map(np.zeros((3, 3), np.uint8), 0)
