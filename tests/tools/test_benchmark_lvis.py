import json

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from lt_det.evaluation import Predictions, evaluate_lvis
from tests.tools.load import load_tool

command = load_tool("benchmark")
lvis = command.benchmark_lvis


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lvis")
    lvis.write_set(folder, 6)
    return folder


def test_the_generated_set_is_the_same_each_time(small_set, tmp_path):
    lvis.write_set(tmp_path, 6)
    first, second = ((f / lvis.GROUND_TRUTH).read_bytes() for f in (small_set, tmp_path))
    assert first == second
    columns = [Predictions.load(f / lvis.COLUMNS) for f in (small_set, tmp_path)]
    for name, value in vars(columns[0]).items():
        assert np.array_equal(value, getattr(columns[1], name))


def test_the_generated_set_is_of_lvis_form(small_set):
    content = json.loads((small_set / lvis.GROUND_TRUTH).read_text())
    predictions = Predictions.load(small_set / lvis.COLUMNS)
    assert len(content["categories"]) == 1203 and len(content["images"]) == 6
    assert np.unique(predictions.image_ids, return_counts=True)[1].tolist() == [300] * 6
    images = {image["id"]: image for image in content["images"]}
    present = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    for image in images.values():
        assert not {(image["id"], c) for c in image["neg_category_ids"]} & present
    for row, rle in enumerate(predictions.masks(np.arange(len(predictions)))):
        image = images[int(predictions.image_ids[row])]
        x, y, w, h = predictions.boxes[row]
        assert x >= 0 and y >= 0 and x + w <= image["width"] and y + h <= image["height"]
        # Masks lie in their boxes, but for the pixels on the border.
        mx, my, mw, mh = mask_utils.toBbox(rle)
        assert mx >= x - 1 and my >= y - 1 and mx + mw <= x + w + 1 and my + mh <= y + h + 1
    # Some detections are hits and others are not; some are not of a listed class.
    result = evaluate_lvis(small_set / lvis.GROUND_TRUTH, predictions)
    for task in lvis.TASKS:
        assert 5 < result.metrics[task]["AP"] < 60
        assert 200 < len(result.matches[task].det_row) < 1500


def test_ways_are_measured_and_agree(tmp_path, capsys):
    output = tmp_path / "record.json"
    arguments = ["lvis-eval", "--images", "3", "--repeats", "1", "--output", str(output)]
    assert command.main(arguments) == 0
    (record,) = json.loads(output.read_text())
    printed = capsys.readouterr().out
    assert f"{lvis.head(record)}\n\n{lvis.table(record['results'])}" in printed
    ways = [(r["task"], r["way"]) for r in record["results"]]
    assert ways == [(task, way) for task in lvis.TASKS for way in lvis.WAYS]
    for result in record["results"]:
        assert all(v > 0 for run in result["runs"] for v in run.values())


def test_arrays_that_differ_stop_the_benchmark(tmp_path):
    paths = {way: tmp_path / f"{way}.npz" for way in lvis.WAYS}
    same = {"precision": np.linspace(0, 1, 5), "recall": np.ones(3)}
    for path in paths.values():
        np.savez(path, **same)
    lvis.check_equal("bbox", paths)
    # The next number that float64 has.
    other = {**same, "recall": np.array([1, 1, np.nextafter(1, 0)])}
    np.savez(paths["list"], **other)
    with pytest.raises(ValueError, match="bbox, list: 1 entries of recall are not those of lvis"):
        lvis.check_equal("bbox", paths)


def test_an_evaluation_that_fails_says_why(small_set):
    with pytest.raises(ValueError, match="list, bbox ended with status 1: .*no column file"):
        lvis.in_process("list", "bbox", small_set.parent)


def test_the_lvis_table_has_ratios_of_medians_to_lvis():
    def result(way, *seconds):
        runs = [{"seconds": s, "cpu_seconds": s / 2, "extra_mb": 10 * s} for s in seconds]
        return {"task": "segm", "way": way, "runs": runs}

    rows = lvis.table([result("lvis", 60, 80, 70), result("list", 2, 1, 40)]).splitlines()[2:]
    assert rows == [
        "| segm | lvis | 70.00 | 1 | 35.00 | 1 | 700 | 1.00 |",
        "| segm | lt_det, list of dicts | 2.00 | 35 | 1.00 | 35 | 20 | 0.03 |",
    ]
    # Without lvis there are none.
    text = lvis.table([result("list", 2, 1, 40)]).splitlines()
    assert text[0] == "| task | evaluation | seconds | of the processor | extra memory, MB |"
    assert text[2:] == ["| segm | lt_det, list of dicts | 2.00 | 1.00 | 20 |"]
