"""tools/report.py: what it reads of runs, and that the page says what they hold."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.results import (
    best_on,
    class_values,
    read_record,
    write_record,
)
from lt_det.losses import build_loss
from tests.tools import report_data as made
from tests.tools.load import load_tool

tool = load_tool("report")
# The same modules as those that the script uses.
from reporting import detections, maps, pictures, saturation, trust  # noqa: E402
from reporting.noise import Noise  # noqa: E402
from reporting.runs import config_differences, read_runs, read_scalars, said_of  # noqa: E402


@pytest.fixture(scope="module")
def detection(tmp_path_factory):
    """A data set with two runs, the second one better."""
    data = made.DetectionSet(tmp_path_factory.mktemp("detection"))
    data.worse, data.better = data.run("worse", 1, 0.4), data.run("better", 2, 0.95)
    yield data
    data.remove()


@pytest.fixture
def classification(tmp_path):
    name = f"report_images_{tmp_path.name}"
    yield made.classification_run(tmp_path, name)
    made.forget(name)


@pytest.fixture
def segmentation(tmp_path):
    name = f"report_maps_{tmp_path.name}"
    yield made.segmentation_run(tmp_path, name)
    made.forget(name)


def record_of(run):
    (file,) = run.glob("results/*.json")
    return read_record(file)


def section(page, key):
    return re.search(rf'<section id="{key}".*?</section>', page, re.S)[0]


def text_of(html):
    return re.sub(r"<[^>]+>", "", html)


# ---- reading ---------------------------------------------------------------------------------


def test_the_last_line_of_an_iteration_counts(tmp_path):
    lines = [{"iteration": i, "loss": float(i)} for i in (0, 20, 40)]
    resumed = [{"iteration": i, "loss": 10.0 + i} for i in (20, 40, 60)]
    path = tmp_path / "metrics.json"
    made.write_lines(path, [*lines, *resumed, {"iteration": 60, "AP": 3.0, "name": "x"}])
    path.write_text(path.read_text() + '{"iteration": 80, "lo')  # killed
    scalars = read_scalars(path)
    assert scalars["loss"][0].tolist() == [0, 20, 40, 60]
    assert scalars["loss"][1].tolist() == [0, 30, 50, 70]
    assert scalars["AP"][0].tolist() == [60] and "name" not in scalars


def test_a_broken_line_between_others_is_an_error(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\n{"iter\n{"iteration": 3}\n')
    with pytest.raises(DataError, match=r"metrics.json: line 2 is no line of scalars"):
        read_scalars(path)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\n", b'{"iteration": null}\n{"iteration": 1}\n{}', b"5\n{}\n"]
)
def test_curves_that_cannot_be_read_are_a_note(detection, tmp_path, content):
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    (run / "metrics.json").write_bytes(content)
    with pytest.raises(DataError, match=r"metrics\.json"):
        read_scalars(run / "metrics.json")
    text = text_of(section(tool.report([str(run)]), "training"))
    assert f"{run / 'metrics.json'}" in text


def test_statistics_and_configurations_that_are_no_text_are_notes(detection, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    for name in ("gradient_statistics.jsonl", "config.yaml"):
        (run / name).write_bytes(b"\xff\xfe\n")
    page = tool.report([str(run)])
    assert "gradient_statistics.jsonl is not a text file" in text_of(section(page, "gradients"))
    assert "config.yaml is not YAML" in text_of(section(page, "provenance"))


def test_a_number_of_iterations_that_is_none_is_not_compared(detection, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    config = json.loads((run / "config.yaml").read_text())
    config["SOLVER"]["MAX_ITER"] = "abc"
    (run / "config.yaml").write_text(json.dumps(config))
    text = text_of(section(tool.report([str(run)]), "trust"))
    assert "of abc iterations" not in text and "does not say how the weights were chosen" in text


def test_classes_of_unknown_size(detection, tmp_path):
    record = record_of(detection.worse)
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    own = run / f"results/{detection.name}.json"
    record["per_class"]["train_images"][:2] = [None, 0]
    write_record(own, record)
    page = tool.report([str(run)])
    for key in ("classes", "gradients"):
        assert len(re.findall('class="point', section(page, key))) == 5
    assert not re.search(r"\bnan\b", text_of(section(page, "pictures")))
    text = text_of(section(page, "provenance"))
    assert "largest and smallest class500 and 0 training images" in text
    record["per_class"]["train_images"] = [None] * 6
    write_record(own, record)
    classes = section(tool.report([str(own)]), "classes")
    assert "no numbers of training examples" in classes


def test_a_folder_stands_for_the_last_epoch_of_its_first_test_set(detection, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    record = record_of(run)
    write_record(run / "results/a_other.json", {**record, "dataset": "a_other"})
    best = {**record, "run": {**record["run"], "selection": best_on("val"), "iteration": 50}}
    file = run / f"results/{detection.name}.best.json"
    write_record(file, best)
    (read,) = read_runs([str(run)])
    assert read.file.name == f"{detection.name}.json" and read.label == "run"
    assert read.inference == run / "inference" / detection.name
    (named,) = read_runs([f"best={file}"])
    assert named.folder == run and named.label == "best"
    with pytest.raises(MissingFileError, match="of iteration 100; this record is of iteration 50"):
        named.inference  # noqa: B018


def test_two_runs_of_one_name_go_by_their_paths(detection, tmp_path):
    for part in ("a", "b"):
        shutil.copytree(detection.worse, tmp_path / part / "run")
    paths = [str(tmp_path / part / "run") for part in ("a", "b")]
    assert [r.label for r in read_runs(paths)] == paths
    with pytest.raises(DataError, match="two runs are called 'x'"):
        read_runs([f"x={p}" for p in paths])


def test_runs_that_cannot_stand_on_one_page(detection, tmp_path):
    record = record_of(detection.worse)
    file = tmp_path / "other.json"
    write_record(file, {**record, "dataset": "another"})
    with pytest.raises(DataError, match=f"differ in dataset: '{detection.name}' and 'another'"):
        read_runs([str(detection.worse), str(file)])
    names = [*made.NAMES[:-1], "hen"]
    write_record(file, {**record, "per_class": {**record["per_class"], "name": names}})
    with pytest.raises(DataError, match="their class lists differ"):
        read_runs([str(detection.worse), str(file)])


def test_what_is_said_of_several_runs_is_said_once(detection):
    runs = read_runs([f"{k}={detection.worse}" for k in "abc"])
    found = [(runs[0], "one"), (runs[1], "two."), (runs[2], "one"), *((r, "three") for r in runs)]
    assert said_of(found, runs) == ["a, c: one.", "b: two.", "All runs: three."]
    assert said_of(found[:2], runs[:1]) == ["One.", "Two."]


def test_configurations_are_compared_key_by_key():
    first = {"A": {"B": 1, "C": [1, 2]}, "D": {}}
    second = {"A": {"B": 1, "C": [1, 3]}, "E": "x"}
    found = config_differences([first, second])
    assert found == {"A.C": [[1, 2], [1, 3]], "D": [{}, None], "E": [None, "x"]}


# ---- saturation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, params", [("EQLv2", {}), ("SigmoidEQL", {"gamma": 5.0, "mu": 0.6}), ("EFL", {})]
)
def test_strength_is_a_tenth_where_the_line_is_drawn(name, params):
    loss = build_loss(name, num_classes=2, class_counts=[2, 1], **params)
    border = saturation.saturation_ratio(loss)
    strength = saturation.strength_left(loss, np.array([border, 0.0, 100.0]))
    np.testing.assert_allclose(strength[0], 0.1, rtol=1e-12)
    assert strength[1] > 0.9 and strength[2] < 1e-6


def test_losses_whose_ratio_cannot_saturate():
    loss = build_loss("SoftmaxEQL", num_classes=2, class_counts=[2, 1])
    assert saturation.saturation_ratio(loss) is None
    assert saturation.strength_left(loss, np.ones(2)) is None


def test_saturation_counts_from_the_last_time_that_most_classes_entered_it():
    iterations = np.array([0, 10, 20, 30])
    low, high = 0.05, 0.5
    strength = np.array([[low, low, low], [low, high, high], [low, low, high], [low, low, low]])
    assert saturation.saturated_since(iterations, strength) == 20
    assert saturation.saturated_since(iterations, strength[:1]) == 0
    assert saturation.saturated_since(iterations[:2], strength[:2]) is None
    assert saturation.saturated_since(iterations, np.full((4, 3), low)) == 0


def test_a_saturated_run_is_warned_about(detection):
    (run,) = read_runs([str(detection.worse)])
    ((level, text),) = saturation.saturation(run)
    assert level == "warn" and "2 of 2 rare classes, most of them since iteration 50" in text


def test_the_adjustment_of_softmax_eql_is_compared_with_the_counts(tmp_path, detection):
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    params = {"form": "ratio", "tau": 1.0, "eps": 0.5, "indicator": "pos"}
    config = json.loads((run / "config.yaml").read_text())
    config["MODEL"]["LT"]["LOSS"] = {"NAME": "SoftmaxEQL", "PARAMS": params}
    (run / "config.yaml").write_text(json.dumps(config))
    header, *_ = (run / "gradient_statistics.jsonl").read_text().splitlines()
    row = {"iteration": 99, "loss": "", "pos": [0.1, 1, 1, 1, 1, 8], "neg": [1.0] * 6}
    made.write_lines(run / "gradient_statistics.jsonl", [json.loads(header), row])
    record = record_of(run)
    record["run"]["loss"] = "SoftmaxEQL"
    write_record(run / f"results/{detection.name}.json", record)
    (read,) = read_runs([str(run)])
    text = saturation.adjustment_text(read)
    # ln(8 / 0.5) = 2.77, and ln(10 / 5) = 0.69 of the counts 5..10.
    assert "differ by 2.8" in text and "by 0.7" in text
    assert "1 class is still at the floor eps = 0.5" in text


# ---- errors ----------------------------------------------------------------------------------


def bars(page):
    """(row, part) -> number, of the first run."""
    found = re.findall(
        r'data-name="([^":]+): ([^"]+)" data-text="([\d,]+) of', section(page, "errors")
    )
    return [(row, part, int(number.replace(",", ""))) for row, part, number in found]


def test_misclassified_images_are_counted_by_group(classification):
    found = bars(tool.report([str(classification)]))
    assert found[:2] == [("few", "found", 1), ("few", "another many class", 3)]
    assert ("many", "right", 4) in found and ("many", "another few class", 3) in found


def test_pixels_are_counted_by_group(segmentation):
    found = bars(tool.report([str(segmentation)]))
    # Two images of 600 pixels, half of the tail: 24 of 30 columns went to the common class.
    assert [f for f in found if f[0] == "tail"] == [
        ("tail", "another common class", 480),
        ("tail", "another head class", 120),
    ]


def test_objects_that_another_class_took(detection):
    """Boxes are those of the objects, so that nothing is out of place or missed altogether."""
    found = bars(tool.report([str(detection.worse)]))
    missed = [f for f in found if f[0] == "rare"]
    predicted = made.predictions(detection.data, 1, 0.4)
    objects = detection.data["annotations"]
    rare = [(a, p) for a, p in zip(objects, predicted, strict=True) if a["category_id"] <= 2]
    right = sum(a["category_id"] == p["category_id"] for a, p in rare)
    assert missed[0] == ("rare", "found", right)
    parts = {part for _, part, _ in found}
    assert not parts & {"wrong place", "nothing there"}


# ---- noise -----------------------------------------------------------------------------------


def test_differences_are_those_of_the_records_and_large_ones_are_beyond_noise(detection):
    runs = read_runs([str(detection.worse), str(detection.better)])
    noise, (measure,) = Noise(), runs[0].measures
    comparison = noise.comparison(*runs, measure)
    first, second = (class_values(record_of(r.folder), "bbox/AP") for r in runs)
    np.testing.assert_allclose(comparison.difference, second - first, rtol=0, atol=1e-9)
    assert comparison.groups["all"].beyond_noise
    low, high = noise.interval(runs[0], measure)["all"]
    assert low < runs[0].total("bbox/AP") < high
    same = noise.comparison(runs[0], runs[0], measure)
    assert not any(d.beyond_noise for d in same.groups.values())


def test_intervals_of_the_record_are_preferred(detection, tmp_path):
    record = record_of(detection.worse)
    ends = {"AP": [1.5, 2.5], "APr": [None, None], "APf": [3.5, 4.5]}
    record["intervals"] = {
        "method": "m", "resamples": 9, "seed": 0, "confidence": 0.95, "metrics": {"bbox": ends}
    }  # fmt: skip
    file = tmp_path / "record.json"
    write_record(file, record)
    (run,) = read_runs([str(file)])
    found = Noise().interval(run, run.measures[0])
    assert found == {"all": (1.5, 2.5), "f": (3.5, 4.5)}


def test_intervals_that_do_not_say_their_confidence_are_not_shown(detection, tmp_path):
    record = record_of(detection.worse)
    record["intervals"] = {"metrics": {"bbox": {"AP": [1.5, 2.5]}}}
    write_record(tmp_path / "record.json", record)
    (run,) = read_runs([str(tmp_path / "record.json")])
    assert Noise().interval(run, run.measures[0]) == {}


def test_protocols_that_differ_are_said_and_not_compared(detection, tmp_path):
    record = record_of(detection.better)
    record["protocol"]["max_detections"] = 7
    file = tmp_path / "record.json"
    write_record(file, record)
    page = tool.report([str(detection.worse), str(file)])
    trust = text_of(section(page, "trust"))
    assert "record: not the protocol of worse." in trust
    assert "worse and record were measured under different protocols" in trust


# ---- checks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection, level, words",
    [
        ("last", "good", "the last of the training"),
        (None, "good", "the last of the training"),  # after all iterations
        (best_on("val"), "good", "which is not the test set"),
        ("test set", "warn", "chosen on the test set itself"),
    ],
)
def test_how_the_weights_were_chosen(detection, tmp_path, selection, level, words):
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    record = record_of(run)
    chosen = best_on(detection.name) if selection == "test set" else selection
    record["run"]["selection"] = chosen
    write_record(run / f"results/{detection.name}.json", record)
    found = trust.checks(read_runs([str(run)]))
    assert any(found_level == level and words in text for found_level, text in found)


def test_what_limits_a_result_is_said(detection, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    record = record_of(run)
    record["run"] |= {"iteration": 40, "seed": -1}
    record["per_class"]["bbox/AP"][0] = None
    record["per_class"]["test_images"] = [1, 2, 30, 40, 50, 60]
    write_record(run / f"results/{detection.name}.json", record)
    lines = (run / "metrics.json").read_text() + '{"iteration": 95, "total_loss": NaN}\n'
    (run / "metrics.json").write_text(lines)
    found = trust.checks(read_runs([str(run)]))
    text = " ".join(text for _, text in found)
    assert "Evaluated after 40 of 100 iterations." in text
    assert "No seed was set" in text and "1 class has no value" in text
    assert "2 of 2 rare classes are measured on fewer than 10 test images" in text
    assert "loss was not finite at some iterations" in text


# ---- pictures --------------------------------------------------------------------------------


def test_worst_and_best_classes_do_not_share_any():
    values = np.array([5.0, np.nan, 1.0, 9.0, 3.0])
    everything = np.ones(5, bool)
    assert pictures.extreme_classes(values, everything, 2) == ([2, 4], [3, 0])
    assert pictures.extreme_classes(values[:4], everything[:4], 3) == ([2, 0], [3])
    assert pictures.extreme_classes(values, values > 4, 3) == ([0], [3])


@pytest.mark.parametrize(
    "box, size, expected",
    [
        ((40, 40, 60, 60), (200, 200), (10, 10, 90, 90)),  # 0.4 of the image
        ((0, 0, 40, 20), (200, 100), (0, 0, 100, 100)),  # at the edge, as high as the image
        ((10, 10, 190, 50), (200, 100), (10, 0, 190, 100)),  # never less than the box
    ],
)
def test_a_crop_shows_the_box_in_its_surroundings(box, size, expected):
    assert detections.crop_around(box, *size) == expected


def test_what_a_false_positive_lies_on():
    objects = [(0, 0, 10, 10), (100, 100, 110, 110), (0, 0, 10, 9)]
    classes = [3, 3, 5]

    def where(box):
        return detections.where_it_lies(3, detections.overlaps(box, objects), classes)

    assert where((0, 0, 10, 10)) == ("duplicate", 3)
    assert where((0, 0, 10, 8.9)) == ("class", 5)
    assert where((105, 100, 115, 110)) == ("beside", 3)
    assert where((50, 50, 60, 60)) == ("background", None)
    nothing = detections.where_it_lies(3, detections.overlaps((0, 0, 1, 1), []), [])
    assert nothing == ("background", None)


def test_right_and_wrong_detections_are_those_of_the_evaluation(detection):
    (run,) = read_runs([str(detection.worse)])
    predictions, matches = detections.read_matches(run)
    objects = {(a["image_id"], *a["bbox"]): a["category_id"] for a in detection.data["annotations"]}
    for k in range(6):
        found = detections.detections_of_class(predictions, matches, k)
        assert (np.diff(found.scores) <= 0).all() and len(found.scores) > 0
        for image, (x1, y1, x2, y2), right, wrong in zip(
            found.image_ids.tolist(), found.corners.tolist(), found.right, found.wrong, strict=True
        ):
            # Boxes are those of objects, so a right one has the object's class.
            assert right == (objects[image, x1, y1, x2 - x1, y2 - y1] == k + 1) and wrong != right


def test_runs_without_matches_are_matched_again(detection, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    (run / "inference" / detection.name / "matches_bbox.npz").unlink()
    pictures.register_from_config(pictures.load_config(str(detection.worse / "config.yaml")))
    kept, again = (
        detections.read_matches(read_runs([str(r)])[0])[1] for r in (detection.worse, run)
    )
    np.testing.assert_array_equal(kept.det_row, again.det_row)
    np.testing.assert_array_equal(kept.matched, again.matched)


def test_matches_of_other_predictions_are_refused(detection, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    name = f"inference/{detection.name}/lvis_instances_results.json"
    shutil.copy(detection.better / name, run / name)
    page = tool.report([str(run)])
    assert "matches_bbox.npz is of other predictions" in text_of(section(page, "pictures"))


def test_pictures_in_the_page_are_pictures(detection):
    pictures = section(tool.report([str(detection.worse)]), "pictures")
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", pictures)
    assert len(found) >= 6  # two rare classes
    for data in found:
        width, height = Image.open(io.BytesIO(base64.b64decode(data))).size
        assert 0.4 * made.WIDTH <= max(width, height) <= made.WIDTH  # never enlarged
    assert 'class="box wrong"' in pictures and 'class="box truth"' in pictures


def test_a_missing_image_is_one_sentence(tmp_path):
    data = made.DetectionSet(tmp_path)
    try:
        run = data.run("run")
        shutil.rmtree(tmp_path / "images")
        pictures = section(tool.report([str(run)]), "pictures")
    finally:
        data.remove()
    assert "No pictures: " in pictures and str(tmp_path / "images") in pictures
    assert "<img" not in pictures


def test_misclassified_images_say_where_they_went(classification):
    pictures = text_of(section(tool.report([str(classification)]), "pictures"))
    assert "3 of 4 images went to another class." in pictures
    assert pictures.count("taken for cat (many)") == 3
    # The surest mistake first: scores rise with the number of the image.
    assert re.findall(r"score (0\.\d\d)", pictures)[:3] == ["0.63", "0.46", "0.30"]


def test_predictions_of_another_image_list(classification):
    listed = classification.parent / "list.txt"
    listed.write_text("\n".join(reversed(listed.read_text().splitlines())))
    text = text_of(section(tool.report([str(classification)]), "pictures"))
    assert "No pictures: image 6 of class 0 in " in text
    assert f"is not in {listed}; the predictions are of another list" in text


def test_pixels_of_a_class_say_what_they_were_taken_for(segmentation):
    truth, predicted = np.array([[2, 2, 2, 2, 0]]), np.array([[1, 1, 1, 0, 0]])
    assert maps.taken_for(truth, predicted, 2) == [(1, 0.75), (0, 0.25)]
    page = tool.report([str(segmentation)])
    pictures = section(page, "pictures")
    assert "&lt;i&gt;elk&lt;/i&gt; was taken for cup 80%, sky 20%" in pictures
    assert pictures.count("<img") >= 2 * 3


# ---- the page --------------------------------------------------------------------------------


def test_values_of_the_page_are_those_of_the_record(detection):
    page = tool.report([str(detection.worse)])
    record = record_of(detection.worse)
    result = text_of(section(page, "result"))
    for name in ("AP", "APr", "APc", "APf", "AP50", "AP75"):
        assert f"{record['metrics']['bbox'][name]:.1f}" in result
    marks = re.findall(r'data-key="(\d)" data-name="[^"]*" data-text="([^"]*)"', page)
    shown = {int(k): text for k, text in marks if "box AP" in text}
    for k, value in enumerate(record["per_class"]["bbox/AP"]):
        words = f"{made.TRAIN_IMAGES[k]} training images, box AP {value:.1f}"
        assert shown[k].endswith(words)


def test_nothing_of_a_run_becomes_html(detection, tmp_path):
    page = tool.report([f"<script>alert(1)</script>={detection.worse}"], "</title><b>")
    for raw in ("<b>ant</b>", 'bee "&" wasp', "<script>alert", "</title><b>"):
        assert raw not in page
    assert "&lt;b&gt;ant&lt;/b&gt;" in page and "bee &quot;&amp;&quot; wasp" in page
    assert page.count("<script>") == 1


def test_a_record_alone_names_what_is_missing(detection, tmp_path):
    file = tmp_path / "alone.json"
    shutil.copy(detection.worse / f"results/{detection.name}.json", file)
    page = tool.report([str(file)])
    assert not (tmp_path / "report.html").exists()
    for key, name in (
        ("result", "No intervals"),
        ("gradients", "gradient_statistics.jsonl"),
        ("training", "metrics.json"),
        ("pictures", "config.yaml"),
        ("provenance", "config.yaml"),
    ):
        text = text_of(section(page, key))
        assert name in text and f"{file} is a record without its run folder" in text
    assert len(re.findall('class="point', section(page, "classes"))) == 6


def test_two_runs_are_compared(detection):
    page = tool.report([f"a={detection.worse}", f"b={detection.better}"])
    records = [record_of(r) for r in (detection.worse, detection.better)]
    change = records[1]["metrics"]["bbox"]["APr"] - records[0]["metrics"]["bbox"]["APr"]
    trust = section(page, "trust")
    assert f"+{change:.1f} points in box AP" in trust and "beyond noise" in trust
    classes = section(page, "classes")
    values = [class_values(r, "bbox/AP") for r in records]
    largest = np.abs(values[1] - values[0]).max()
    assert f"+{largest:.1f}" in text_of(classes) and "Classes that moved most" in classes
    assert "In nothing but OUTPUT_DIR and SEED." in text_of(section(page, "provenance"))


def test_runs_whose_records_hold_less_than_the_first(detection, tmp_path):
    record = record_of(detection.better)
    for column in ("bbox/AP", "train_images", "group"):
        del record["per_class"][column]
    write_record(tmp_path / "less.json", record)
    page = tool.report([str(detection.worse), str(tmp_path / "less.json")])
    classes = section(page, "classes")
    assert len(re.findall('class="point', classes)) == 6
    assert "No class has a value in both runs." in classes
    assert "no numbers of training examples" in classes
    assert "less: not the groups of classes of worse." in section(page, "trust")


def test_a_run_without_groups(detection, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(detection.worse, run)
    record = record_of(run)
    del record["per_class"]["group"]
    write_record(run / f"results/{detection.name}.json", record)
    page = tool.report([str(run)])
    assert len(re.findall('class="point g-"', section(page, "classes"))) == 6
    assert "Worst classes" in section(page, "pictures")
    assert ("all", "found") in [(row, part) for row, part, _ in bars(page)]
    assert not re.search("rare|common|frequent", text_of(section(page, "result")))


def test_provenance_says_what_the_run_was_made_from(detection):
    text = text_of(section(tool.report([str(detection.worse)]), "provenance"))
    record = record_of(detection.worse)
    assert f"test data{detection.name}" in text
    assert "largest and smallest class500 and 3 training images" in text
    assert "seed1" in text and "lossEQLv2" in text and "protocol: ruleslvis" in text
    assert f"numpy{np.__version__}" in text
    assert f"date{record['run']['date']}" in text
    assert "MAX_ITER: 100" in text  # the configuration in full


def test_many_runs_have_a_short_title_and_few_lists(detection, tmp_path):
    file = tmp_path / "a.json"
    shutil.copy(detection.worse / f"results/{detection.name}.json", file)
    page = tool.report([f"run {k}={file}" for k in range(8)])
    assert "<h1>8 runs compared</h1>" in page and "<td" in page
    assert page.count("Classes that moved most: ") == 3
    assert len(re.findall(r'<svg class="chart scatter"', section(page, "classes"))) == 8


def test_size_of_the_page(detection):
    assert len(tool.report([str(detection.worse), str(detection.better)]).encode()) < 5e6


def test_command_writes_the_page(detection, tmp_path, capsys):
    output = tmp_path / "there" / "page.html"
    assert tool.main([str(detection.worse), "-o", str(output), "--title", "A page"]) == 0
    assert capsys.readouterr().out.startswith(f"{output} (")
    assert "<title>A page</title>" in output.read_text(encoding="utf-8")
    assert tool.main([str(detection.worse)]) == 0
    assert (detection.worse / "report.html").is_file()


def test_the_page_of_a_folder_with_an_equals_sign_is_written_into_it(
    detection, tmp_path, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    run = tmp_path / "lr=0.1"
    shutil.copytree(detection.worse, run)
    (run / "report.html").unlink(missing_ok=True)
    assert tool.main([str(run)]) == 0
    assert (run / "report.html").is_file() and not list(here.iterdir())
    (run / "report.html").unlink()
    assert tool.main([f"a label={run}"]) == 0
    assert (run / "report.html").is_file() and not list(here.iterdir())


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    detection, tmp_path, capsys, monkeypatch
):
    def work(*args):
        raise AssertionError("the work began")

    monkeypatch.setattr(tool, "report", work)
    run = tmp_path / "run"
    (run / "report.html").mkdir(parents=True)
    for args in ([str(run)], [str(run), "-o", str(run)]):
        with pytest.raises(SystemExit):
            tool.main(args)
        assert f"{args[-1]}" in (error := capsys.readouterr().err) and "is a folder" in error


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: None, "no run folder or result record"),
        (lambda path: path.mkdir(), "no result records in"),
        (lambda path: path.write_text("{"), "is not a JSON file"),
        (lambda path: path.write_text("{}"), "format_version"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, make, words):
    path = tmp_path / "run"
    make(path)
    assert tool.main([str(path), "-o", str(tmp_path / "out.html")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert words in error and str(path) in error
    assert not (tmp_path / "out.html").exists()
