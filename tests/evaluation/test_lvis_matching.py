"""Matches, and the parts that find them, against naive versions."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation import Matches, Predictions, evaluate_lvis
from lt_det.evaluation import lvis_ground_truth as ground_truth
from lt_det.evaluation import lvis_overlaps as overlaps
from lt_det.evaluation.annotation_masks import read_masks
from lt_det.evaluation.json_stream import stream_lists
from lt_det.evaluation.lvis_ground_truth import positions, prepare_ground_truth
from lt_det.evaluation.lvis_matching import _greedy, choose_candidates, match
from lt_det.evaluation.lvis_metrics import RECALLS
from lt_det.evaluation.run_lengths import pixels_covered
from tests.evaluation.lvis_sets import encode, random_set

SEEDS = [s for s in range(30) if len(random_set(s)[1]) > 8]


def matches_of(seed, task="segm"):
    dataset, predictions = random_set(seed)
    gt, columns = prepare_ground_truth(dataset), Predictions.from_results(predictions)
    return gt, columns, match(gt, columns, choose_candidates(gt, columns), task)


# ---- matches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_detections_are_sorted_and_are_rows_of_the_predictions(seed):
    gt, columns, m = matches_of(seed)
    assert np.array_equal(m.image_ids[m.det_image], columns.image_ids[m.det_row])
    assert np.array_equal(m.category_ids[m.det_class], columns.category_ids[m.det_row])
    assert np.array_equal(m.det_score, columns.scores[m.det_row])
    # Equal scores in the order of the images, then as given.
    keys = list(zip(m.det_class, -m.det_score, m.det_image, m.det_row, strict=True))
    assert keys == sorted(keys) and len(set(m.det_row.tolist())) == len(keys)
    keys = list(zip(m.gt_class, m.gt_image, m.gt_row, strict=True))
    assert keys == sorted(keys)


@pytest.mark.parametrize("seed", SEEDS)
def test_ground_truth_is_that_of_the_rows_of_the_file(seed):
    dataset, _ = random_set(seed)
    gt, _, m = matches_of(seed)
    for k, row in enumerate(m.gt_row.tolist()):
        annotation = dataset["annotations"][row]
        assert annotation["image_id"] == m.image_ids[m.gt_image[k]]
        assert annotation["category_id"] == m.category_ids[m.gt_class[k]]
        assert annotation["area"] > 0
        inside = [0 < annotation["area"] <= 1e10, annotation["area"] <= 1024]
        expected = [not ok or bool(annotation.get("ignore")) for ok in inside]
        assert m.gt_ignored[:2, k].tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_a_match_is_of_the_same_image_and_class_and_above_the_threshold(seed):
    gt, columns, m = matches_of(seed)
    assert np.array_equal(m.det_gt >= 0, m.matched[0])
    for t, threshold in enumerate(m.thresholds):
        found = np.flatnonzero(m.det_gt[t] >= 0)
        objects = m.det_gt[t, found]
        # Each object is found once.
        assert len(set(objects.tolist())) == len(objects)
        assert np.array_equal(m.det_image[found], m.gt_image[objects])
        assert np.array_equal(m.det_class[found], m.gt_class[objects])
        assert np.array_equal(m.ignored[0, t, found], m.gt_ignored[0, objects])
        masks, of = columns.masks(m.det_row[found]), gt.rles(objects)
        for det, obj in zip(masks, of, strict=True):
            assert mask_utils.iou([det], [obj], [0])[0, 0] >= threshold


@pytest.mark.parametrize("seed", SEEDS[:6])
def test_precision_follows_from_the_matches(seed):
    dataset, predictions = random_set(seed)
    result = evaluate_lvis(dataset, predictions, ["bbox"])
    m = result.matches["bbox"]
    for a in range(4):
        for k in range(len(m.category_ids)):
            objects = np.count_nonzero(~m.gt_ignored[a, m.gt_class == k])
            own = m.det_class == k
            for t in range(10):
                matched, ignored = m.matched[a, t, own], m.ignored[a, t, own]
                precision = naive_precision(matched & ~ignored, ~matched & ~ignored, objects)
                assert result.precision["bbox"][t, :, k, a] == pytest.approx(precision, abs=1e-12)


def naive_precision(hits, misses, objects):
    """Interpolated precision at `RECALLS`; -1: no objects."""
    if objects == 0:
        return [-1] * len(RECALLS)
    tp, fp = np.cumsum(hits), np.cumsum(misses)
    points = [(n / objects, n / max(n + m, 1)) for n, m in zip(tp, fp, strict=True)]
    return [max([p for r, p in points if r >= recall], default=0) for recall in RECALLS]


@pytest.mark.parametrize("seed", [*SEEDS[:3], 2])
def test_matches_come_back_from_their_file(tmp_path, seed):
    _, _, m = matches_of(seed)
    m.save(tmp_path / "m.npz")
    read = Matches.load(tmp_path / "m.npz")
    assert vars(read).keys() == vars(m).keys()
    for name, value in vars(m).items():
        own = getattr(read, name)
        assert np.array_equal(own, value)
        if isinstance(value, np.ndarray):
            assert own.dtype == value.dtype and own.shape == value.shape
    assert (read.task, read.areas) == ("segm", ("all", "small", "medium", "large"))


def test_files_that_hold_no_matches_are_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"m\.npz"):
        Matches.load(tmp_path / "m.npz")
    matches_of(SEEDS[0])[2].save(tmp_path / "m.npz")
    whole = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "m.npz").write_bytes(whole[:-100])
    np.savez(tmp_path / "other.npz", det_row=np.zeros(2))
    for name in ("m.npz", "other.npz"):
        with pytest.raises(DataError, match=f"{name} does not hold matches"):
            Matches.load(tmp_path / name)


@pytest.mark.parametrize("seed", range(40))
def test_rounds_find_what_one_detection_after_the_other_does(seed):
    rng = np.random.default_rng(seed)
    dets, gts = (20, 6) if seed % 2 else (6, 20)
    choices = [rng.permutation(gts)[: rng.integers(0, 5)] for _ in range(dets)]
    det = np.repeat(np.arange(dets), [len(c) for c in choices]).astype(np.int32)
    gt = np.concatenate(choices).astype(np.int32)
    taken = {}
    for k, choice in enumerate(choices):
        free = [g for g in choice.tolist() if g not in taken]
        if free:
            taken[free[0]] = k
    found = dict(zip(*(v.tolist() for v in _greedy(det, gt)[::-1]), strict=True))
    assert found == taken


def test_columns_of_single_precision_give_the_numbers_of_their_values():
    dataset, predictions = random_set(SEEDS[0])
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 60, (len(predictions), 4)).astype(np.float32)
    for p, box in zip(predictions, boxes.tolist(), strict=True):
        p["bbox"] = box
    wide = Predictions.from_results(predictions)
    narrow = replace(wide, boxes=boxes, scores=wide.scores.astype(np.float32))
    # The scores have one decimal: as many different ones.
    results = [evaluate_lvis(dataset, columns, ["bbox"]) for columns in (wide, narrow)]
    assert np.array_equal(*(r.precision["bbox"] for r in results))
    assert np.array_equal(*(r.matches["bbox"].det_gt for r in results))


# ---- overlaps --------------------------------------------------------------------------------


def naive_pairs(table, first, count, lowest):
    """{(detection, object): IoU} from the IoU of all detections with all objects."""
    return {
        (det, gt): table[det, gt]
        for det in range(len(first))
        for gt in range(first[det], first[det] + count[det])
        if table[det, gt] >= lowest
    }


def as_dict(pairs):
    keys = zip(pairs.det.tolist(), pairs.gt.tolist(), strict=True)
    return dict(zip(keys, pairs.iou.tolist(), strict=True))


@pytest.fixture(params=[1, 5, 1 << 15])
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(overlaps, "BLOCK", request.param)
    monkeypatch.setattr(overlaps, "MASK_BLOCK", request.param)
    monkeypatch.setattr(overlaps, "_BATCH", min(request.param, 12))


def random_groups(rng, dets, gts):
    """First object and number of objects of each detection; objects are in groups of three."""
    group = np.sort(rng.integers(0, gts // 3 + 1, dets))
    # The last group has no objects.
    count = np.where(group < gts // 3, 3, 0)
    return np.where(count, 3 * group, 0), count


@pytest.mark.usefixtures("small_blocks")
def test_overlaps_of_boxes_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    boxes = [
        np.concatenate([rng.uniform(0, 3, (n, 2)), rng.uniform(3, 9, (n, 2))], axis=1)
        for n in (80, 12)
    ]
    boxes[0][::9, 2:] = 0
    boxes[0][::7] = boxes[1][rng.integers(0, 12, len(boxes[0][::7]))]
    first, count = random_groups(rng, 80, 12)
    table = mask_utils.iou(*(b.tolist() for b in boxes), [0] * 12)
    for lowest in (0.5, 0.1):
        expected = naive_pairs(table, first, count, lowest)
        pairs = overlaps.box_overlaps(*boxes, first, count, lowest)
        assert as_dict(pairs) == expected and len(expected) > 20
        assert (np.diff(pairs.det) >= 0).all()


@pytest.mark.usefixtures("small_blocks")
def test_overlaps_and_areas_of_masks_are_those_of_pycocotools():
    rng = np.random.default_rng(1)
    # Some are empty.
    boxes = rng.integers(0, 4, (92, 2)), rng.choice([0, 8, 9, 11, 12], (92, 2))
    masks = [encode([*xy, *wh]) for xy, wh in zip(*boxes, strict=True)]
    masks = [{**m, "counts": m["counts"].encode()} for m in masks]
    dets, gts = masks[:80], masks[80:]
    first, count = random_groups(rng, 80, 12)
    image = np.sort(rng.integers(0, 9, 80))
    table = mask_utils.iou(dets, gts, [0] * 12)
    for lowest in (0.5, 0.7):
        areas, pairs = overlaps.mask_overlaps(
            overlaps.MaskSource(lambda rows: [dets[k] for k in rows]),
            lambda rows: [gts[k] for k in rows],
            image,
            first,
            count,
            lowest,
            str,
        )
        expected = naive_pairs(table, first, count, lowest)
        assert as_dict(pairs) == expected and len(expected) >= 10
        assert areas.tolist() == [float(mask_utils.area(m)) for m in dets]


def test_ragged_rows():
    rows, numbers = overlaps.ragged(np.array([5, 0, 2]), np.array([2, 0, 3]))
    assert rows.tolist() == [0, 0, 2, 2, 2] and numbers.tolist() == [5, 6, 2, 3, 4]


# ---- ground truth and candidates -------------------------------------------------------------


@pytest.mark.parametrize("table_size", [1, 1 << 22])
def test_positions_of_ids(monkeypatch, table_size):
    monkeypatch.setattr(ground_truth, "_TABLE_SIZE", table_size)
    known = np.array([7, -3, 900, 12])
    ids = np.array([12, 7, 8, -3, -4, 901, 900, -(1 << 60), 1 << 60])
    assert positions(ids, known).tolist() == [3, 0, -1, 1, -1, -1, 2, -1, -1]
    assert positions(ids[:0], known).tolist() == []
    assert positions(ids[:2], known[:0]).tolist() == [-1, -1]


def test_polygons_are_those_of_pycocotools_in_whatever_company():
    rng = np.random.default_rng(0)
    sizes = np.array([[40, 60], [60, 40], [40, 61]])[rng.integers(0, 3, 60)]

    def polygon(corners):
        return rng.uniform(-5, 60, 2 * corners).round(2).tolist()

    masks = [[polygon(k) for k in rng.integers(3, 9, rng.integers(1, 4))] for _ in sizes]
    masks[4] = [[3, 3, 30, 5, 20, 38]]  # whole numbers
    expected = []
    for mask, (height, width) in zip(masks, sizes.tolist(), strict=True):
        expected.append(mask_utils.merge(mask_utils.frPyObjects(mask, height, width)))
    ids = list(range(60))
    assert read_masks(masks, sizes, ids) == expected
    # Neither an RLE nor a line of 4 numbers changes what the others are.
    masks[20], masks[31] = expected[20], [polygon(3), [1, 2, 30, 9]]
    expected[31] = mask_utils.merge(mask_utils.frPyObjects(masks[31], *sizes[31].tolist()))
    assert read_masks(masks, sizes, ids) == expected


def simple_set(images=2, classes=2):
    """Every class is a negative in every image."""
    ids = list(range(1, classes + 1))
    return {
        "images": [
            {
                "id": i,
                "height": 130,
                "width": 130,
                "neg_category_ids": ids,
                "not_exhaustive_category_ids": [],
            }
            for i in range(1, images + 1)
        ],
        "annotations": [],
        "categories": [{"id": i, "name": str(i), "frequency": "c"} for i in ids],
    }


def prediction(image_id, category_id, score):
    box = {"bbox": [0.0, 0.0, 4.0, 4.0]}
    return {"image_id": image_id, "category_id": category_id, "score": score, **box}


def chosen(dataset, predictions, **limits):
    columns = Predictions.from_results(predictions)
    return choose_candidates(prepare_ground_truth(dataset), columns, **limits).row.tolist()


def test_limits_keep_the_best_and_of_equal_ones_the_first():
    scores = {1: [0.5, 0.9, 0.5, 0.5, 0.1], 2: [0.3]}
    predictions = [
        prediction(i, 1 + k % 2, s) for i, own in scores.items() for k, s in enumerate(own)
    ]
    assert chosen(simple_set(), predictions, max_detections=3) == [0, 1, 2, 5]
    # Class 1 has 0.5, 0.5, 0.1, 0.3; class 2 has 0.9, 0.5.
    assert chosen(simple_set(), predictions, max_detections=None, max_per_class=1) == [0, 1]
    assert chosen(simple_set(), predictions, max_detections=None, max_per_class=3) == [
        0,
        1,
        2,
        3,
        5,
    ]


def test_equal_scores_of_a_class_are_kept_in_the_order_of_the_images():
    predictions = [prediction(2, 1, 0.5), prediction(1, 1, 0.5), prediction(1, 1, 0.5)]
    assert chosen(simple_set(), predictions, max_detections=None, max_per_class=2) == [1, 2]


def test_predictions_that_are_not_finite_take_no_place_within_the_limit(caplog):
    predictions = [prediction(1, 1, s) for s in (float("nan"), 0.2, float("inf"), 0.1)]
    assert chosen(simple_set(), predictions, max_detections=2) == [1, 3]
    evaluate_lvis(simple_set(), predictions)
    assert "2 of 4 predictions have a score or box that is not finite" in caplog.text


def test_unknown_images_and_classes_are_named_with_their_row():
    good = prediction(1, 1, 0.5)
    with pytest.raises(DataError, match="prediction 1 is for image 7.* 2 images.*2 predictions"):
        evaluate_lvis(simple_set(), [good, prediction(7, 1, 0.5), prediction(8, 1, 0.5)])
    message = "prediction 2, of image 2, has category id 9.* the 2 .* 1 predictions"
    with pytest.raises(DataError, match=message):
        evaluate_lvis(simple_set(), [good, good, prediction(2, 9, 0.5)])


def test_of_an_image_list_other_images_of_the_file_are_left_out_and_unknown_ones_are_errors():
    predictions = [prediction(i, 1, 0.5) for i in (1, 2, 3)]
    result = evaluate_lvis(simple_set(images=3), predictions, image_ids=[3, 1])
    m = result.matches["bbox"]
    assert m.image_ids.tolist() == [1, 3] and m.det_row.tolist() == [0, 2]
    assert result.protocol["images"] == 2
    other = evaluate_lvis(simple_set(images=3), predictions, image_ids=[3, 2])
    assert other.protocol["images_hash"] != result.protocol["images_hash"]
    whole = evaluate_lvis(simple_set(images=3), predictions, image_ids=[3, 2, 1])
    assert "images_hash" not in whole.protocol
    with pytest.raises(DataError, match="prediction 3 is for image 4.* 3 images"):
        evaluate_lvis(simple_set(images=3), [*predictions, prediction(4, 1, 0.5)], image_ids=[1])
    with pytest.raises(DataError, match="1 of 2 wanted images .* the first is 9"):
        evaluate_lvis(simple_set(images=3), predictions, image_ids=[1, 9])
    for wanted in ([], ["1"]):
        with pytest.raises(DataError, match="image_ids must be whole numbers"):
            evaluate_lvis(simple_set(images=3), predictions, image_ids=wanted)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tasks": ["keypoints"]}, "tasks must be of bbox, segm"),
        ({"tasks": []}, "tasks must be of"),
        ({"tasks": ["segm"]}, "the predictions have no masks"),
        ({"protocol": "fixed"}, "unknown protocol 'fixed'; there are standard, fixed_ap"),
        ({"max_detections": 0}, "max_detections must be at least 1"),
        ({"max_detections": 1.5}, "max_detections must be .* a whole number.* got 1.5"),
        ({"max_detections": True}, "max_detections must be .* a whole number.* got True"),
        ({"category_ids": [1, 2, 1]}, "category_ids has 1 more than once"),
        ({"groups": ["r"]}, "1 groups for 2 classes"),
        ({"class_names": ["a"]}, "1 class_names for 2 classes"),
    ],
)
def test_arguments_that_do_not_fit_say_so(kwargs, message):
    with pytest.raises(ValueError, match=message):
        evaluate_lvis(simple_set(), [prediction(1, 1, 0.5)], **kwargs)


def test_classes_are_not_chosen_of_ground_truth_that_was_read():
    gt = prepare_ground_truth(simple_set())
    with pytest.raises(ValueError, match="category_ids is for ground truth that is read here"):
        evaluate_lvis(gt, [prediction(1, 1, 0.5)], category_ids=[1, 2])


def test_no_predictions_give_0_in_both_tasks_where_there_is_ground_truth():
    dataset, _ = random_set(SEEDS[0])
    result = evaluate_lvis(dataset, [])
    assert list(result.metrics) == ["bbox", "segm"]
    for task, metrics in result.metrics.items():
        assert metrics["AP"] == metrics["AR"] == 0
        assert set(result.precision[task].ravel()) <= {0.0, -1.0}


def test_masks_of_the_ground_truth_become_rle_once_and_the_content_of_the_file_stays():
    dataset, predictions = random_set(SEEDS[1])
    gt = prepare_ground_truth(dataset)
    first = evaluate_lvis(gt, predictions, ["segm"])
    again = evaluate_lvis(gt, predictions, ["segm"])
    assert np.array_equal(first.precision["segm"], again.precision["segm"])
    assert dataset == random_set(SEEDS[1])[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["images"].append(dict(d["images"][0])), "image .* more than once"),
        (lambda d: d["images"][0].update(id="1"), "an image id must be a whole number, got '1'"),
        (lambda d: d["categories"][0].update(id="1"), "category ids must be whole .* '1'"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\], not 4 numbers"),
        *(
            (lambda d, box=box: d["annotations"][0].update(bbox=box), "not 4 numbers")
            for box in (
                *([1, 2, 3, float("nan")], [1, 2, 3, "4"], [0, 0, 10**400, 5], [1, 2, 3, None]),
                *([[1], [2], [3], [4]], [[0, 0], [5, 5], [9, 9], [5, 5]], [1, 2, 3, [4]]),
                *("0055", {"0": 1, "1": 1, "5": 1, "6": 1}, 7),
            )
        ),
        (lambda d: d["annotations"][0].update(category_id="1"), "category ids of ann.* '1'"),
        (lambda d: d["categories"].append(d["categories"][0]), "category .* more than once"),
        (lambda d: d["images"][0].update(height=None), "image .* has the height None"),
        (lambda d: d["images"][0].update(height="130"), "image .* has the height '130'"),
        (lambda d: d["images"][0].update(width=0), "image .* has the width 0; .* above 0"),
        (lambda d: d["images"][0].pop("width"), "image .* has no 'width'"),
        (
            lambda d: d["images"][0].update(neg_category_ids=None),
            "'neg_category_ids' None, .* list",
        ),
        (
            lambda d: d["annotations"][0].update(area="9"),
            "annotation 1 has the area '9', not a num",
        ),
        (lambda d: d["annotations"][0].update(area=True), "annotation 1 has the area True"),
        (lambda d: d["annotations"][0].update(area=10**400), "area beyond the range of float64"),
        (lambda d: d["annotations"].append(5), "'annotations' must hold objects, entry .* is 5"),
        (lambda d: d.update(annotations=None), "'annotations' must be a list, got None"),
        (lambda d: d.update(images={}), "'images' must be a list, got {}"),
        (lambda d: d.update(images=[1]), "'images' must hold objects, entry 0 is 1"),
        (lambda d: d.update(categories=[1]), "'categories' must hold objects, entry 0 is 1"),
    ],
)
def test_annotation_files_that_cannot_be_used(change, message):
    dataset, predictions = random_set(SEEDS[0])
    dataset["annotations"].sort(key=lambda annotation: annotation["id"])
    change(dataset)
    with pytest.raises(DataError, match=message):
        evaluate_lvis(dataset, predictions)


@pytest.mark.parametrize(
    "segmentation",
    [
        "abc",
        7,
        [[1, 2]],
        [1, 2, 3, 4, 5, 6],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, 6], [1, 2]],
        [[1, 2, 3, 4, 5, "a"]],
        [[1, 2, 3, 4, 5, None]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, 1e15]],
        [[1, 2, 3, 4, 5, -(2**63)]],
        [[1, 2, 3, 4, 5, [6], 7, 8]],
        [[[0, 0], [5, 0], [5, 5], [0, 5], [0, 3], [0, 1]]],
        {"size": [130, 130]},
        {"counts": "04"},
        {"size": [130, 130], "counts": None},
        {"size": [130, 130], "counts": ["a"]},
        {"size": [130, 130], "counts": "\xe9"},
    ],
)
def test_annotations_whose_segmentation_is_none_are_named(tmp_path, segmentation):
    dataset, predictions = masked(lambda m: m)
    dataset["annotations"][0]["segmentation"] = segmentation
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(dataset))
    message = "gt.json: annotation 5 has the segmentation .* neither polygons nor an RLE"
    with pytest.raises(DataError, match=message):
        evaluate_lvis(path, predictions, ["segm"])
    assert evaluate_lvis(path, predictions, ["bbox"]).metrics["bbox"]["AP"] == 0
    # The area is then that of the mask, in both tasks.
    del dataset["annotations"][0]["area"]
    path.write_text(json.dumps(dataset))
    with pytest.raises(DataError, match=message):
        evaluate_lvis(path, predictions, ["bbox"])


def test_polygons_as_arrays_are_checked_as_well():
    dataset, predictions = masked(lambda m: m)
    (annotation,) = dataset["annotations"]
    polygon = [10.0, 10.0, 50.0, 10.0, 50.0, 50.0, 10.0, 50.0]
    annotation["segmentation"] = [polygon]
    expected = evaluate_lvis(dataset, predictions, ["segm"])
    annotation["segmentation"] = [np.array(polygon)]
    found = evaluate_lvis(dataset, predictions, ["segm"])
    assert np.array_equal(found.precision["segm"], expected.precision["segm"])
    for wrong in (float("nan"), 1e12):
        for more in ([], [[0, 0, 5, 0, 5, 5]]):
            annotation["segmentation"] = [np.array([*polygon[:-1], wrong]), *more]
            with pytest.raises(DataError, match="annotation 5 has the segmentation"):
                evaluate_lvis(dataset, predictions, ["segm"])


@pytest.mark.parametrize("entry", [5, None, "x", [], [{"id": 1}]])
@pytest.mark.parametrize("place", [0, 1])
def test_entries_that_are_no_annotations_are_named(tmp_path, entry, place):
    dataset, predictions = masked(lambda m: m)
    dataset["annotations"].insert(place, entry)
    (tmp_path / "gt.json").write_text(json.dumps(dataset))
    for source in (dataset, tmp_path / "gt.json"):
        message = f"'annotations' must hold objects, entry {place} is"
        with pytest.raises(DataError, match=message):
            evaluate_lvis(source, predictions)


def test_a_file_gives_what_its_content_gives(tmp_path, monkeypatch):
    """In pieces, in any order of the keys, and as a whole, which NaN makes necessary."""
    for seed in SEEDS[:8]:
        dataset, predictions = random_set(seed)
        if not predictions:
            continue
        expected = evaluate_lvis(dataset, predictions)
        texts = [json.dumps(dict(list(dataset.items())[::step])) for step in (1, -1)]
        texts.append(json.dumps({**dataset, "info": float("nan")}, indent=1))
        for block in (64, 1 << 19):
            monkeypatch.setattr(
                ground_truth, "stream_lists", partial(stream_lists, block_bytes=block)
            )
            for text in texts:
                (tmp_path / "gt.json").write_text(text)
                found = evaluate_lvis(tmp_path / "gt.json", predictions)
                for task, precision in expected.precision.items():
                    assert np.array_equal(found.precision[task], precision)
                    assert np.array_equal(found.recall[task], expected.recall[task])
                alone = evaluate_lvis(tmp_path / "gt.json", predictions, ["bbox"])
                assert np.array_equal(alone.precision["bbox"], expected.precision["bbox"])


def test_an_area_of_null_is_none_and_other_areas_that_leave_objects_out_are_counted():
    dataset, _ = masked(lambda m: m)
    (annotation,) = dataset["annotations"]
    own = [dict(annotation, id=k, area=None) for k in range(6)]
    del own[1]["area"]
    own[2]["segmentation"] = None
    for k, area in zip((3, 4, 5), (0, float("nan"), -1.0), strict=True):
        own[k]["area"] = area
    gt = prepare_ground_truth({**dataset, "annotations": own})
    pixels = int(mask_utils.area(annotation["segmentation"]))
    assert pixels != 1600
    assert gt.areas.tolist() == [pixels, pixels, 1600.0]
    assert gt.notes == [
        "3 annotations have no area; it is computed",
        "3 annotations have an area of 0, below 0 or not finite and are left out",
    ]


def test_groups_that_only_some_categories_have_are_noted(caplog):
    caplog.set_level("INFO")
    dataset, predictions = masked(lambda m: m)
    assert prepare_ground_truth(dataset).notes == []
    dataset["categories"][1]["frequency"] = "x"
    assert prepare_ground_truth(dataset).groups is None
    assert evaluate_lvis(dataset, predictions).groups is None
    assert "1 of 2 categories have no 'frequency' of r, c, f" in caplog.text
    assert "the first is category 2 with 'x'" in caplog.text
    for category in dataset["categories"]:
        del category["frequency"]
    assert prepare_ground_truth(dataset).notes == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7}, "prediction 1 is for image 7"),
        ({"category_id": 7}, "prediction 1, of image 1, has category id 7"),
        ({"bbox": [0, 0, -1, 1]}, "prediction 1, of image 1, has a box of negative size"),
        ({"segmentation": encode([1, 1, 5, 5], 9)}, "prediction 1, .* 9 x 9 .* 130 x 130"),
        (
            {
                "segmentation": {
                    "size": [130, 130],
                    "counts": [1310, *[40, 90] * 40],
                }
            },
            "prediction 1, of image 1, .* runs cover",
        ),
    ],
)
def test_what_does_not_fit_names_the_file_of_the_predictions(tmp_path, change, message):
    dataset, predictions = masked(lambda m: m)
    predictions[1].update(change)
    Predictions.from_results(predictions).save(tmp_path / "p.npz")
    with pytest.raises(DataError, match=rf"p\.npz: {message}"):
        evaluate_lvis(dataset, tmp_path / "p.npz")
    with pytest.raises(DataError, match=f"^{message}"):
        evaluate_lvis(dataset, predictions)


@pytest.mark.parametrize("counts", ["055", "o", [1310, 16000]])
def test_runs_are_checked_where_areas_and_boxes_are_given(tmp_path, counts):
    dataset, predictions = masked(lambda m: {**m, "counts": counts})
    columns = Predictions.from_results(predictions)
    measures = {"mask_areas": np.full(2, 1200), "mask_boxes": np.full((2, 4), [10, 10, 40, 40])}
    replace(columns, **measures).save(tmp_path / "p.npz")
    with pytest.raises(DataError, match=r"p\.npz: prediction 1, of image 1, has a mask"):
        evaluate_lvis(dataset, tmp_path / "p.npz")


def test_sizes_of_masks_may_be_narrow_numbers_of_numpy():
    dataset, predictions = masked(lambda m: m)
    expected = evaluate_lvis(dataset, predictions).metrics["segm"]
    for kind in (np.uint8, np.int16):
        for p in predictions:
            p["segmentation"] = {**p["segmentation"], "size": np.array([130, 130], kind)}
        assert str(evaluate_lvis(dataset, predictions).metrics["segm"]) == str(expected)


def test_masks_of_a_list_are_read_only_where_they_count(tmp_path):
    dataset, predictions = masked(lambda m: m)
    # Not a class that the image is known to have or to lack.
    dataset["images"][0]["neg_category_ids"] = []
    broken = {**predictions[0], "category_id": 2, "segmentation": {"size": [9, 9], "counts": "o"}}
    expected = evaluate_lvis(dataset, predictions).metrics
    assert expected["segm"]["AP"] > 0
    found = evaluate_lvis(dataset, [*predictions, broken])
    assert str(found.metrics) == str(expected)
    # A file is read before it is known what counts, but not its masks if only boxes do.
    (tmp_path / "p.json").write_text(json.dumps([*predictions, broken]))
    with pytest.raises(DataError, match=r"p\.json: prediction 2, .* not run lengths"):
        evaluate_lvis(dataset, tmp_path / "p.json")
    found = evaluate_lvis(dataset, tmp_path / "p.json", ["bbox"])
    assert str(found.metrics["bbox"]) == str(expected["bbox"])


# ---- run lengths -----------------------------------------------------------------------------


def coded(counts):
    size = [1, max(1, sum(counts))]
    return mask_utils.frPyObjects({"size": size, "counts": counts}, *size)["counts"]


def test_pixels_covered_by_runs():
    rng = np.random.default_rng(0)
    runs = [
        rng.integers(0, 10 ** rng.integers(1, 7), rng.integers(1, 30)).tolist() for _ in range(99)
    ]
    runs += [[0], [5], [0, 7], [70_000], [3, 2, 1]]
    texts = [coded(r) for r in runs]
    texts.insert(3, b"")
    runs.insert(3, [])
    assert pixels_covered(texts).tolist() == [sum(r) for r in runs]
    assert pixels_covered([]).tolist() == [] and pixels_covered([b"", b""]).tolist() == [0, 0]


def masked(change):
    """One object that is found, and what `change` makes of the mask of the detection."""
    box, mask = [10, 10, 40, 40], encode([10, 10, 40, 40])
    dataset = simple_set(images=1)
    dataset["annotations"] = [
        {"id": 5, "image_id": 1, "category_id": 1, "bbox": box, "area": 9.0, "segmentation": mask}
    ]
    first, found = prediction(1, 1, 0.5), prediction(1, 1, 0.9)
    return dataset, [{**first, "segmentation": mask}, {**found, "segmentation": change(mask)}]


def runs_of(mask):
    pixels = mask_utils.decode(mask).ravel(order="F")
    return np.diff([0, *(np.flatnonzero(np.diff(pixels)) + 1), pixels.size]).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # pycocotools would not come to an end.
        (lambda m: {**m, "counts": runs_of(m)[:-1]}, "prediction 1, of image 1, .* runs cover"),
        (lambda m: {**m, "counts": [*runs_of(m), 5]}, "prediction 1, .* 130 x 130 .* cover 16905"),
        # It would read beyond the text.
        (lambda m: {**m, "counts": m["counts"][:-1] + "o"}, "prediction 1, .* not run lengths"),
        (lambda m: {**m, "counts": m["counts"][:-1] + " "}, "prediction 1, .* not run lengths"),
    ],
)
def test_masks_with_broken_runs_are_errors(change, message):
    dataset, predictions = masked(change)
    with pytest.raises(DataError, match=message):
        evaluate_lvis(dataset, predictions, ["segm"])
    assert evaluate_lvis(dataset, predictions, ["bbox"]).metrics["bbox"]["AP"] == 0


def test_masks_of_the_file_with_broken_runs_are_errors():
    for change in (
        lambda m: {**m, "counts": coded(runs_of(m)[:-1]).decode()},
        lambda m: {**m, "size": [130, 131]},
    ):
        dataset, predictions = masked(lambda m: m)
        assert evaluate_lvis(dataset, predictions, ["segm"]).metrics["segm"]["AP50"] > 99.99
        annotation = dataset["annotations"][0]
        annotation["segmentation"] = change(annotation["segmentation"])
        with pytest.raises(DataError, match=r"annotation 5 has a mask of size \[130, 13[01]\]"):
            evaluate_lvis(dataset, predictions, ["segm"])
    dataset, predictions = masked(lambda m: m)
    mask = dataset["annotations"][0]["segmentation"]
    dataset["annotations"][0]["segmentation"] = {**mask, "size": [130.0, 130.0]}
    assert evaluate_lvis(dataset, predictions, ["segm"]).metrics["segm"]["AP50"] > 99.99
    # pycocotools would read beyond the text: its runs cover the image, but "o" says that more come.
    dataset, predictions = masked(lambda m: m)
    mask = dataset["annotations"][0]["segmentation"]
    dataset["annotations"][0]["segmentation"] = {**mask, "counts": mask["counts"] + "o"}
    with pytest.raises(DataError, match="annotation 5 has a mask whose counts are not run lengths"):
        evaluate_lvis(dataset, predictions, ["segm"])


def test_no_predictions_need_no_masks_in_the_file():
    dataset, _ = masked(lambda m: m)
    del dataset["annotations"][0]["segmentation"]
    assert evaluate_lvis(dataset, []).metrics["segm"]["AP"] == 0
