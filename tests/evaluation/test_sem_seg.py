"""The evaluator of semantic segmentation, and the files that it leaves."""

import functools
import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from lt_det.errors import ConfigError, DataError, MissingFileError
from lt_det.evaluation import LongTailSemSegEvaluator
from lt_det.evaluation.arrays import read_arrays
from lt_det.evaluation.sem_seg_metrics import (
    areas,
    boundary_areas,
    boundary_distance,
    by_size,
    class_accuracy,
    class_iou,
    confusion_matrix,
    mean_iou,
    overall,
)
from lt_det.evaluation.sem_seg_predictions import (
    IMAGES_FILE,
    PREDICTIONS_FILE,
    class_rles,
    join_parts,
    write_label_png,
)
from tests.evaluation.sem_seg_maps import (
    IGNORED,
    detectron2_results,
    map_pair,
    one_hot,
    region_map,
)
from tests.gloo import run_on_ranks

C = 8
NAMES = [f"class {k}" for k in range(C)]
GROUPS = list("ffccrrrr")
COUNTS = {"images": list(range(80, 0, -10)), "pixels": [10**k for k in range(C, 0, -1)]}


def make_pairs(number=5):
    """Maps of different sizes."""
    return [map_pair(k, shape=(20 + 7 * k, 45 - 3 * k)) for k in range(number)]


def make_evaluator(**changes):
    arguments = {
        "dataset_name": "maps_val",
        "class_names": NAMES,
        "read_labels": lambda image: image["labels"],
        "groups": GROUPS,
        "group_source": "thirds of the classes by training pixels",
        "class_counts": COUNTS,
        "distributed": False,
    }
    return LongTailSemSegEvaluator(**{**arguments, **changes})


def process(evaluator, pairs, names=None, scores=True):
    names = names or [f"images/{k}.jpg" for k in range(len(pairs))]
    for name, (labels, predicted) in zip(names, pairs, strict=True):
        output = one_hot(predicted, C) if scores else torch.from_numpy(predicted)
        evaluator.process([{"file_name": name, "labels": labels}], [{"sem_seg": output}])


def run(pairs, names=None, scores=True, **changes):
    evaluator = make_evaluator(**changes)
    process(evaluator, pairs, names, scores)
    return evaluator.evaluate()["sem_seg"], evaluator.record


# ------------------------------------------------------------------ numbers and record


def test_metrics_are_the_functions_of_all_images_in_percent():
    pairs = make_pairs()
    results, record = run(pairs, boundary=True)
    total = areas(sum(confusion_matrix(*pair, C) for pair in pairs))
    edge = [boundary_areas(*pair, C, boundary_distance(*pair[0].shape)) for pair in pairs]
    edge = type(total)(*np.sum(edge, axis=0))
    expected = {**overall(total), **by_size(total, GROUPS), "boundary_mIoU": mean_iou(edge)}
    assert results == pytest.approx({k: 100 * v for k, v in expected.items()}, rel=1e-12)
    assert record["metrics"] == {"sem_seg": results}
    columns = record["per_class"]
    assert columns["name"] == NAMES and columns["group"] == GROUPS
    assert columns["train_images"] == COUNTS["images"]
    assert columns["train_pixels"] == COUNTS["pixels"]
    assert columns["test_images"] == [sum((p[0] == k).any() for p in pairs) for k in range(C)]
    assert columns["test_pixels"] == [sum(int((p[0] == k).sum()) for p in pairs) for k in range(C)]
    for column, values in [
        ("sem_seg/IoU", class_iou(total)),
        ("sem_seg/ACC", class_accuracy(total)),
        ("sem_seg/boundary_IoU", class_iou(edge)),
    ]:
        assert columns[column] == pytest.approx((100 * values).tolist(), rel=1e-12)


def test_the_numbers_are_detectron2s(tmp_path):
    pairs = make_pairs()
    expected, _ = detectron2_results(tmp_path, pairs, C)
    results, record = run(pairs)
    for metric in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert results[metric] == pytest.approx(expected[metric], rel=1e-12)
    for metric in ("IoU", "ACC"):
        values = [expected[f"{metric}-{k}"] for k in range(C)]
        assert record["per_class"][f"sem_seg/{metric}"] == pytest.approx(values, rel=1e-12)


def test_the_record_names_split_groups_and_rules():
    record = run(make_pairs(3))[1]
    assert (record["task"], record["dataset"]) == ("sem_seg", "maps_val")
    assert record["group_sizes"] == {"r": 4, "c": 2, "f": 2}
    assert record["protocol"] == {
        "split": "maps_val",
        "images": 3,
        "groups": "thirds of the classes by training pixels",
        "ignored": 255,
        "mean": "IoU: classes in labels or prediction; ACC: classes in labels",
        "tie": "lower class id first",
        "boundary": None,
    }
    boundary = run(make_pairs(3), boundary=True)[1]["protocol"]["boundary"]
    assert boundary == "0.02 of the diagonal, at least 1 pixel"


def test_without_groups_and_counts_there_are_none():
    results, record = run(make_pairs(2), groups=None, class_counts=None)
    assert np.isnan([v for k, v in results.items() if "_" in k]).all()
    assert record["protocol"]["groups"] == "none" and record["group_sizes"] == {}
    assert not {"group", "train_images", "train_pixels"} & set(record["per_class"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_maps_of_class_ids_are_worth_what_scores_are(dtype):
    pairs = make_pairs(3)
    maps = [(labels, torch.from_numpy(p).to(dtype).numpy()) for labels, p in pairs]
    assert run(maps, scores=False) == run(pairs)


def test_one_image_at_a_time_and_in_any_order():
    pairs = make_pairs()
    together = make_evaluator()
    together.process(
        [{"file_name": str(k), "labels": pair[0]} for k, pair in enumerate(pairs)],
        [{"sem_seg": one_hot(pair[1], C)} for pair in pairs],
    )
    results = together.evaluate()["sem_seg"]
    assert results == run(pairs)[0] == run(pairs[::-1])[0]


def test_classes_that_are_nowhere_have_no_value():
    pairs = [map_pair(0, labelled=range(3), predicted=range(4))]
    results, record = run(pairs)
    assert record["per_class"]["sem_seg/IoU"][3:] == [None] * 5
    assert record["per_class"]["test_pixels"][3:] == [0] * 5
    assert np.isnan(results["mIoU_tail"]) and np.isfinite(results["mIoU_common"])


def test_reset_forgets_the_images_before():
    evaluator = make_evaluator(boundary=True)
    process(evaluator, make_pairs())
    evaluator.reset()
    pair = [map_pair(77)]
    process(evaluator, pair)
    expected, record = run(pair, boundary=True)
    assert evaluator.evaluate()["sem_seg"] == expected and evaluator.record == record


def test_only_ignored_pixels_give_no_number():
    labels = np.full((6, 7), IGNORED, np.uint8)
    results, record = run([(labels, np.zeros_like(labels))], boundary=True)
    assert np.isnan(list(results.values())).all()
    assert record["protocol"]["images"] == 1


def test_results_are_logged_as_a_table(caplog):
    with caplog.at_level(logging.INFO, logger="lt_det"):
        results, _ = run(make_pairs(2))
    head, _, row = caplog.records[-1].getMessage().splitlines()[1:]
    assert [cell.strip() for cell in head.split("|")[1:-1]] == list(results)
    assert float(row.split("|")[1]) == round(results["mIoU"], 2)


# ------------------------------------------------------------------ what cannot be evaluated


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(C, 5, 4), r"a\.jpg: predicted is of shape \(5, 4\), labels of \(4, 5\)"),
        (torch.zeros(C - 1, 4, 5), r"a\.jpg: scores of 7 classes, but maps_val has 8"),
        (torch.full((C, 4, 5), torch.nan), r"a\.jpg: scores hold NaN"),
        (torch.full((4, 5), C), r"a\.jpg: predicted must be in 0\.\.7, got 8"),
        (torch.full((4, 5), -1), r"a\.jpg: predicted must be in 0\.\.255, got -1"),
        (torch.zeros(4, 5), r"a\.jpg: predicted must be whole numbers, got float32"),
    ],
)
def test_predictions_that_cannot_be_used_name_the_file(output, message):
    image = {"file_name": "images/a.jpg", "labels": np.zeros((4, 5), np.uint8)}
    with pytest.raises(DataError, match=message):
        make_evaluator().process([image], [{"sem_seg": output}])


def test_labels_that_are_no_class_name_the_file():
    image = {"file_name": "images/a.jpg", "labels": np.full((4, 5), C, np.uint8)}
    message = r"images/a\.jpg: labels must be in 0\.\.7, or 255 where ignored, got 8"
    with pytest.raises(DataError, match=message):
        make_evaluator().process([image], [{"sem_seg": torch.zeros(C, 4, 5)}])


def test_no_image_is_an_error_after_an_empty_batch():
    evaluator = make_evaluator()
    evaluator.process([], [])
    with pytest.raises(DataError, match="no image of maps_val was processed"):
        evaluator.evaluate()
    assert evaluator.record is None


def test_an_image_that_comes_twice_is_an_error():
    with pytest.raises(DataError, match=r"a\.jpg was processed twice for maps_val"):
        run(make_pairs(2), names=["a.jpg", "a.jpg"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"class_names": []}, ValueError, "1 to 255, got 0"),
        ({"class_names": [str(k) for k in range(256)]}, ValueError, "1 to 255, got 256"),
        ({"groups": ["r"]}, ValueError, "1 groups for 8 classes"),
        ({"groups": ["x"] * C}, ValueError, "unknown group 'x'"),
        ({"class_counts": {"pixels": [1]}}, ValueError, "1 counts of pixels for 8"),
        ({"save": "npz"}, ConfigError, r"TEST\.LT\.SEM_SEG\.SAVE must be '', 'png' or 'json'"),
        ({"save": "png"}, ValueError, "needs an output_dir"),
    ],
)
def test_arguments_that_cannot_be_used(changes, error, message):
    with pytest.raises(error, match=message):
        make_evaluator(**changes)


# ------------------------------------------------------------------ predictions


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (23, 31), (64, 50)])
@pytest.mark.parametrize("kind", ["regions", "noise"])
def test_run_lengths_are_those_of_pycocotools(shape, kind):
    rng = np.random.default_rng(0)
    for classes in (range(1), range(3), [0, 7, 200, 254]):
        if kind == "regions":
            labels = region_map(rng, shape, list(classes))
        else:
            labels = rng.choice(list(classes), shape).astype(np.uint8)
        expected = {
            int(k): mask_util.encode(np.asfortranarray(labels == k, np.uint8))["counts"].decode()
            for k in np.unique(labels)
        }
        assert class_rles(labels) == expected
        assert list(class_rles(labels)) == list(expected)


def test_long_and_shrinking_runs_take_several_characters():
    """Differences of both signs and each length: 1 to 4 groups of 5 bits, and their borders."""
    lengths = [1, 15, 16, 17, 31, 32, 33, 511, 512, 513, 16383, 16384, 16385, 40000]
    order = np.random.default_rng(0).permutation(lengths * 2)
    column = np.repeat(np.arange(len(order)) % 2, order).astype(np.uint8)[:, None]
    expected = [mask_util.encode(np.asfortranarray(column == k, np.uint8)) for k in (0, 1)]
    assert list(class_rles(column).values()) == [rle["counts"].decode() for rle in expected]


def test_the_json_file_holds_what_detectron2s_does(tmp_path):
    pairs = make_pairs()
    _, expected = detectron2_results(tmp_path, pairs, C)
    run(pairs, save="json", output_dir=str(tmp_path / "ours"))
    assert json.loads((tmp_path / "ours" / PREDICTIONS_FILE).read_text()) == expected
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {PREDICTIONS_FILE, IMAGES_FILE}


def test_a_second_evaluation_replaces_the_predictions_of_the_first(tmp_path):
    evaluator = make_evaluator(save="json", output_dir=str(tmp_path))
    files = []
    for names in (["a.jpg", "b.jpg"], ["c.jpg"]):
        evaluator.reset()
        process(evaluator, make_pairs(len(names)), names)
        evaluator.evaluate()
        entries = json.loads((tmp_path / PREDICTIONS_FILE).read_text())
        files.append(list(dict.fromkeys(entry["file_name"] for entry in entries)))
    assert files == [["a.jpg", "b.jpg"], ["c.jpg"]]


def test_to_evaluate_again_changes_nothing(tmp_path):
    evaluator = make_evaluator(save="json", output_dir=str(tmp_path))
    process(evaluator, make_pairs(2))
    first = evaluator.evaluate(), evaluator.record, (tmp_path / PREDICTIONS_FILE).read_text()
    again = evaluator.evaluate(), evaluator.record, (tmp_path / PREDICTIONS_FILE).read_text()
    assert again == first


def test_an_evaluation_that_is_given_up_leaves_no_file(tmp_path):
    evaluator = make_evaluator(save="json", output_dir=str(tmp_path))
    process(evaluator, make_pairs(2))
    assert len(list(tmp_path.iterdir())) == 1
    evaluator.reset()
    assert not list(tmp_path.iterdir())


def test_label_maps_are_kept_under_the_name_of_their_image(tmp_path):
    pairs = make_pairs(3)
    names = ["images/val/x.1.jpg", "images/val/y.png", "z"]
    run(pairs, names, save="png", output_dir=str(tmp_path))
    for stem, (_, predicted) in zip(("x.1", "y", "z"), pairs, strict=True):
        with Image.open(tmp_path / "predictions" / f"{stem}.png") as image:
            assert image.mode == "L" and np.array_equal(np.asarray(image), predicted)
    assert len(list((tmp_path / "predictions").iterdir())) == 3


def test_maps_of_wider_ids_are_kept_as_8_bit_files(tmp_path):
    labels, predicted = map_pair(0)
    run([(labels, predicted.astype(np.int64))], scores=False, save="png", output_dir=str(tmp_path))
    with Image.open(tmp_path / "predictions/0.png") as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), predicted)


def test_images_of_one_name_in_two_folders_are_not_kept_in_one_file(tmp_path):
    names = ["a/x.jpg", "b/x.jpg"]
    with pytest.raises(DataError, match=r"a/x\.jpg and b/x\.jpg would both be kept as x\.png"):
        run(make_pairs(2), names, save="png", output_dir=str(tmp_path))
    with Image.open(tmp_path / "predictions/x.png") as image:
        assert np.array_equal(np.asarray(image), make_pairs(1)[0][1])
    assert run(make_pairs(2), names) == run(make_pairs(2))


def test_no_prediction_is_written_unless_wanted(tmp_path):
    run(make_pairs(2), output_dir=str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == [IMAGES_FILE]


def test_the_areas_of_each_image_are_kept_by_name(tmp_path):
    pairs = make_pairs(3)
    run(pairs, [f"/data/val/{name}.jpg" for name in ("b/2", "a/1", "c")], output_dir=str(tmp_path))
    kept = read_arrays(
        tmp_path / IMAGES_FILE, ("image_ids", "image", "classes", "pixels", "confusion")
    )
    assert kept["image_ids"].tolist() == ["a/1.jpg", "b/2.jpg", "c.jpg"]
    for place, (labels, predicted) in enumerate([pairs[1], pairs[0], pairs[2]]):
        own = areas(confusion_matrix(labels, predicted, C))
        there = kept["image"] == place
        classes = kept["classes"][there]
        assert classes.tolist() == np.flatnonzero(own.labelled + own.predicted).tolist()
        assert np.array_equal(kept["pixels"][:, there], np.stack(own)[:, classes])
    assert np.array_equal(kept["confusion"], sum(confusion_matrix(*pair, C) for pair in pairs))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x/val/a.png", "x/val/b.png"], ["a.png", "b.png"]),
        (["only.png"], ["only.png"]),
        (["/b.png", "a.png"], ["/b.png", "a.png"]),  # no common folder
    ],
)
def test_names_of_images_do_not_depend_on_where_the_data_lie(tmp_path, names, expected):
    run(make_pairs(len(names)), names, output_dir=str(tmp_path))
    assert read_arrays(tmp_path / IMAGES_FILE, ["image_ids"])["image_ids"].tolist() == expected


def test_a_broken_write_leaves_the_file_before(tmp_path):
    path = tmp_path / "a.png"
    write_label_png(path, np.ones((2, 2), np.uint8))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_label_png(path, np.ones((2, 2, 7), np.uint8))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_part_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="part3: OUTPUT_DIR must be a folder that all"):
        join_parts(tmp_path / "out.json", [str(tmp_path / "part3")])
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ several processes

# Images of each rank, for evaluations in turn: uneven, and a rank without any image.
SPLITS = (([0, 1, 2], [3, 4]), ([], [0, 1, 2, 3, 4]))


def files_of(folder: str):
    """What an evaluation has written, as lists."""
    with open(f"{folder}/{PREDICTIONS_FILE}", encoding="utf-8") as f:
        entries = json.load(f)
    arrays = read_arrays(f"{folder}/{IMAGES_FILE}", ["image_ids"], others=True)
    return entries, {name: array.tolist() for name, array in arrays.items()}


def evaluations(folder: str, rank: int):
    pairs = make_pairs()
    # Functions do not travel to other processes, so the evaluator is made here.
    evaluator = make_evaluator(distributed=True, boundary=True, save="json", output_dir=folder)
    out = []
    for split in SPLITS:
        evaluator.reset()
        own = split[rank]
        process(evaluator, [pairs[k] for k in own], [f"images/{k}.jpg" for k in own])
        result = dict(evaluator.evaluate())
        out.append((result, evaluator.record, files_of(folder) if rank == 0 else None))
    evaluator.reset()
    process(evaluator, pairs[:1], ["both.jpg"])
    message = None
    try:
        evaluator.evaluate()
    except DataError as e:
        message = str(e)
    return out, message


def test_two_ranks_give_the_record_of_one_process(tmp_path):
    ranks = run_on_ranks(functools.partial(evaluations, str(tmp_path)), 2)
    results, record = run(make_pairs(), boundary=True, save="json", output_dir=str(tmp_path / "1"))
    assert ranks[0][0] == [({"sem_seg": results}, record, files_of(tmp_path / "1"))] * 2
    assert ranks[1][0] == [({}, None, None)] * 2
    # Pixels that were counted on both ranks are not reported.
    assert ranks[0][1] == "both.jpg was processed twice for maps_val"
