"""tools/visualize.py on a small data set with gaps in its category ids."""

import json

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from lt_det.data.datasets import catalog
from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.results import make_record, write_record
from tests.tools.load import load_tool

WIDTH, HEIGHT = 64, 48
# Category id -> class id is by order of the ids: elk 0, cat 1, dog 2.
CATEGORIES = {20: ("dog", "c"), 3: ("elk", "f"), 11: ("cat", "r")}
NAMES, GROUPS = ["elk", "cat", "dog"], ["f", "r", "c"]
shared = load_tool("pictures")


@pytest.fixture(scope="module")
def script():
    return load_tool("visualize")


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def annotation(id, image_id, category_id, x=8, y=8, side=16):
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, side, side],
        "area": side * side,
        "segmentation": [square(x, y, side)],
    }


def prediction(image_id, category_id, score, box=(40.0, 8.0, 16.0, 16.0)):
    return {"image_id": image_id, "category_id": category_id, "score": score, "bbox": list(box)}


class Run:
    """A data set and the folder of a run that was evaluated on it."""

    def __init__(self, folder, name, predictions, frequency=True, size=(WIDTH, HEIGHT)):
        self.name, self.path = name, folder / "run"
        self.output = self.path / "pictures"
        images = folder / "images"
        images.mkdir()
        data = {
            "images": [
                {"id": i, "width": WIDTH, "height": HEIGHT, "file_name": f"{i}.png"}
                for i in (5, 6, 7, 8)
            ],
            "categories": [
                {"id": i, "name": n, **({"frequency": f} if frequency else {})}
                for i, (n, f) in CATEGORIES.items()
            ],
            "annotations": [
                annotation(1, 5, 3),
                annotation(2, 6, 3),
                annotation(3, 6, 11),
                annotation(4, 7, 20),
            ],
        }
        data["images"][1]["not_exhaustive_category_ids"] = [20]
        for image in data["images"]:
            Image.new("RGB", size, (90, 120, 90)).save(images / image["file_name"])
        (folder / "set.json").write_text(json.dumps(data))
        entry = {"name": name, "json": str(folder / "set.json"), "images": str(images)}
        config = {"VERSION": 2, "DATASETS": {"TEST": [name], "LT": {"REGISTER": [entry]}}}
        predicted = self.path / "inference" / name / "lvis_instances_results.json"
        predicted.parent.mkdir(parents=True)
        predicted.write_text(json.dumps(predictions))
        (self.path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML


@pytest.fixture
def make_run(tmp_path):
    name = f"pictures_{tmp_path.name}"
    yield lambda predictions=(), **kwargs: Run(tmp_path, name, list(predictions), **kwargs)
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        catalog._SOURCES.pop(name)


@pytest.fixture
def drawn(script, monkeypatch):
    """What the script would draw: (sample, names, groups) for each picture, none drawn."""
    samples = []

    def draw(sample, names, groups, panel=script.PANEL, min_width=0):
        if panel == script.PANEL:
            samples.append((sample, names, groups))
        return np.zeros((4, 4, 3), dtype=np.uint8)

    monkeypatch.setattr(script, "draw_sample", draw)
    return samples


def records(*classes):
    """One record per list of class ids; image ids from 1."""
    return [
        {"image_id": i, "annotations": [{"category_id": c} for c in own]}
        for i, own in enumerate(classes, 1)
    ]


def ids(chosen):
    return [record["image_id"] for record in chosen]


# ---- choice of images ------------------------------------------------------------------------


def test_rare_class_is_among_the_chosen_images(script):
    many = records(*[[0]] * 50, [0, 1], *[[0, 2]] * 50)
    for seed in range(5):
        for num in (1, 2, 4):
            assert 51 in ids(script.choose_images(many, GROUPS, num, seed))


def test_half_rare_a_quarter_common_a_quarter_frequent(script):
    many = records(*[[0]] * 9, *[[0, 1, 2]] * 9, *[[2, 0]] * 9, *[[]] * 9)
    chosen = script.choose_images(many, GROUPS, 8)
    assert [shared.rarest_group(r, GROUPS) for r in chosen] == ["r"] * 4 + ["c"] * 2 + ["f"] * 2


def test_groups_without_images_leave_room_to_the_others(script):
    chosen = script.choose_images(records([0], [0], [], [1], [0]), GROUPS, 4)
    assert chosen[0]["image_id"] == 4 and set(ids(chosen)) == {1, 2, 4, 5}
    everything = script.choose_images(records([0], [], [1]), GROUPS, 99)
    assert ids(everything) == [3, 1, 2]


def test_different_rare_classes_come_before_more_of_the_same(script):
    groups = ["r"] * 4
    chosen = script.choose_images(records(*[[0]] * 30, [1], [2], [3]), groups, 4)
    assert {a["category_id"] for r in chosen for a in r["annotations"]} == {0, 1, 2, 3}
    assert len(chosen) == 4


def test_crowded_images_come_last(script):
    crowd = [1] * (shared.CROWDED + 1)
    for seed in range(5):
        chosen = script.choose_images(records(crowd, crowd, [1], crowd), GROUPS, 1, seed)
        assert ids(chosen) == [3]


def test_choice_depends_on_the_seed_and_not_on_the_order(script):
    many = records(*[[1]] * 40)
    first = ids(script.choose_images(many, GROUPS, 6, seed=0))
    assert ids(script.choose_images(many[::-1], GROUPS, 6, seed=0)) == first
    assert ids(script.choose_images(many, GROUPS, 6, seed=1)) != first
    assert len(set(first)) == 6


def test_without_groups_the_classes_are_varied(script):
    chosen = script.choose_images(records(*[[0]] * 20, [1], [2]), None, 3)
    assert {a["category_id"] for r in chosen for a in r["annotations"]} == {0, 1, 2}


# ---- what is drawn ---------------------------------------------------------------------------


def test_category_ids_of_the_file_become_class_ids(script, make_run, drawn):
    run = make_run([prediction(6, 11, 0.9), prediction(6, 20, 0.8), prediction(6, 3, 0.7)])
    script.visualize(run.path, None, 1, 0.3, 30, 0, None)
    ((sample, names, groups),) = drawn
    assert (names, groups) == (NAMES, GROUPS)
    labels = [script.label_text(item, names, groups) for item in sample.predictions]
    assert labels == ["cat [r] 0.90", "dog [c] 0.80", "elk [f] 0.70"]
    assert [script.label_text(i, names, groups) for i in sample.truth] == ["elk [f]", "cat [r]"]
    assert sample.truth_note == "image 6 · not exhaustive: dog"


def test_only_predictions_of_the_image_above_the_score_and_no_more_than_top(
    script, make_run, drawn
):
    scores = [0.3, 0.95, 0.301, float("nan"), 0.5]
    others = [prediction(5, 3, 0.99), prediction(6, 3, 0.98, (float("inf"), 8, 16, 16))]
    run = make_run([prediction(6, 3, s) for s in scores] + others)
    script.visualize(run.path, None, 1, 0.3, 30, 0, None)
    script.visualize(run.path, None, 1, 0.3, 2, 0, None)
    everything, two = (sample for sample, *_ in drawn)
    assert [item.score for item in everything.predictions] == [0.95, 0.5, 0.301]
    assert everything.predictions_note == "3 predictions"
    assert [item.score for item in two.predictions] == [0.95, 0.5]
    assert two.predictions_note == "the 2 highest of 3"


def test_groups_of_the_result_record_where_the_file_has_none(script, make_run, drawn):
    run = make_run([prediction(6, 11, 0.9)], frequency=False)
    script.visualize(run.path, None, 1, 0.3, 30, 0, None)
    columns = {"name": NAMES, "group": GROUPS}
    record = make_record(
        task="instance", dataset=run.name, protocol={}, metrics={}, per_class=columns
    )
    write_record(run.path / "results" / f"{run.name}.json", record)
    script.visualize(run.path, None, 1, 0.3, 30, 0, None)
    assert [groups for *_, groups in drawn] == [None, GROUPS]
    assert script.label_text(drawn[0][0].predictions[0], NAMES, None) == "cat 0.90"


def test_boxes_and_masks_of_the_ground_truth(script):
    rle = mask_utils.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))
    record = {"image_id": 1, "height": HEIGHT, "width": WIDTH}
    box = {"bbox": [4, 6, 10, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2}
    polygon = [4, 6, 14, 6, 14, 26, 4, 26]
    record["annotations"] = [
        {**box, "segmentation": [polygon]},
        {**box, "segmentation": rle},
        box,
        {**box, "iscrowd": 1},
    ]
    first, second, third = script.truth_items(record)
    assert first.class_id == 2 and first.box == (4, 6, 14, 26)
    assert first.mask.sum() == 200 and first.mask[6:26, 4:14].all()
    assert (second.mask == np.eye(HEIGHT, WIDTH, dtype=bool)).all()
    assert third.mask is None


def test_prediction_with_a_mask_only_gets_its_box(script):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[10:20, 30:35] = 1
    p = {"category_id": 3, "score": 0.5, "segmentation": mask_utils.encode(mask)}
    record = {"image_id": 1, "height": HEIGHT, "width": WIDTH}
    (item,) = script.prediction_items([p], record, {3: 0})
    assert item.box == (30, 10, 35, 20) and (item.mask == mask).all()
    with pytest.raises(DataError, match="no category id 3"):
        script.prediction_items([p], record, {4: 0})
    with pytest.raises(DataError, match=r"mask of \[48, 64\], image of \[40, 64\]"):
        script.prediction_items([p], {**record, "height": 40}, {3: 0})


def test_notes(script):
    record = {"image_id": 3, "not_exhaustive_category_ids": [0, 1, 2, 3, 4]}
    assert script.truth_note(record, list("abcde")) == "image 3 · not exhaustive: a, b, c +2"
    assert script.truth_note({"image_id": 3}, []) == "image 3"
    assert script.predictions_note(0, 0, None) == "no prediction for this image"
    assert script.predictions_note(0, 0, 0.01234) == "none; the highest score is 0.012"
    assert script.predictions_note(1, 1, 0.9) == "1 prediction"


# ---- pictures --------------------------------------------------------------------------------


def blank(script, truth=(), predictions=(), size=(HEIGHT, WIDTH)):
    image = np.full((*size, 3), 120, dtype=np.uint8)
    return script.Sample(image, list(truth), list(predictions), "image 1", "", 0.3)


def panels(script, picture, width, height):
    right = script.MARGIN * 2 + width
    rows = slice(script.HEADER, script.HEADER + height)
    left = picture[rows, script.MARGIN : script.MARGIN + width]
    return left, picture[rows, right : right + width]


def box_item(script, box=(16, 12, 48, 36), with_mask=True, **kwargs):
    mask = None
    if with_mask:
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
    return script.Item(1, box, mask, **kwargs)


def test_prediction_changes_its_place_on_the_right_half_only(script):
    before = script.draw_sample(blank(script), NAMES, GROUPS)
    item = box_item(script, score=0.75)
    after = script.draw_sample(blank(script, predictions=[item]), NAMES, GROUPS)
    left, right = panels(script, (before != after).any(axis=-1), 640, 480)
    assert not left.any()
    # Ten times as large as the image: the mask fills the box, the label stands on top of it.
    assert right[125:355, 165:475].all() and right[105:118, 160:225].all()
    assert not right[:95].any() and not right[365:].any()
    assert not right[:, :155].any() and not right[:, 485:].any()


def test_masks_are_translucent_and_boxes_hollow(script):
    texture = np.indices((HEIGHT, WIDTH)).sum(axis=0) // 8 % 2 * 100 + 60
    image = np.repeat(texture[..., None], 3, axis=-1).astype(np.uint8)
    items = [box_item(script, score=0.7), box_item(script, with_mask=False, score=0.7)]
    spreads = []
    for shown in ([], items[:1], items[1:]):
        sample = script.Sample(image, [], shown, "", "", 0.3)
        inside = panels(script, script.draw_sample(sample, NAMES, GROUPS), 640, 480)[1]
        spreads.append(np.ptp(inside[160:340, 200:440].astype(int), axis=(0, 1)))
    plain, masked, boxed = spreads
    assert (masked > 0.6 * plain).all() and (masked < plain).all()
    assert (boxed == plain).all()


def test_a_class_looks_the_same_on_both_sides(script):
    item = box_item(script)
    picture = script.draw_sample(blank(script, [item], [item]), NAMES, GROUPS)
    left, right = panels(script, picture, 640, 480)
    # 1: the panels begin at different fractions of a pixel.
    assert np.abs(left.astype(int) - right).max() <= 1 and np.ptp(left) > 100


@pytest.mark.parametrize(
    "size, panel, width, height",
    [
        ((48, 64), 640, 640, 480),  # scaled up
        ((960, 1280), 640, 640, 480),  # scaled down
        ((128, 40), 640, 384, 640),  # 200 wide, in the room that the title needs
        ((48, 64), 420, 420, 315),
    ],
)
def test_size_of_a_picture(script, size, panel, width, height):
    picture = script.draw_sample(blank(script, size=size), NAMES, GROUPS, panel)
    expected = (height + script.HEADER + script.MARGIN, 2 * width + 3 * script.MARGIN, 3)
    assert picture.shape == expected and picture.dtype == np.uint8


def test_colors_of_classes_that_follow_each_other_differ(script):
    colors = np.array([script.class_color(k) for k in range(60)])
    assert np.abs(np.diff(colors, axis=0)).max(axis=1).min() > 0.3
    assert len({tuple(c) for c in colors}) == 60


def test_labels_keep_apart_and_inside(script):
    boxes = [(10, 10, 90, 90), (12, 12, 95, 95), (-5, -5, 20, 20), (180, 80, 210, 110)]
    places = script.place_labels(boxes, [(60, 14)] * 4, 200, 100)
    rectangles = [(x, y, x + 60, y + 14) for x, y in places]
    for i, (a, b, c, d) in enumerate(rectangles):
        assert 0 <= a and 0 <= b and c <= 200 and d <= 100
        for e, f, g, h in rectangles[:i]:
            assert c <= e or g <= a or d <= f or h <= b
    assert script.place_labels([(20, 50, 80, 90)], [(60, 14)], 200, 100) == [(20, 36)]


def test_label_without_a_free_place_is_left_out_and_the_first_one_stays(script):
    places = script.place_labels([(10, 10, 40, 20)] * 9, [(30, 10)] * 9, 200, 100)
    assert places[0] == (10, 0) and places[-1] is None


def test_contact_sheet_has_every_picture_in_its_place(script):
    pictures = [np.full((h, w, 3), 10 * h, np.uint8) for h, w in ((4, 6), (6, 5), (3, 6))]
    sheet = script.contact_sheet(pictures)
    second = 6 + shared.GUTTER
    assert sheet.shape == (6 + 3, 2 * 6 + shared.GUTTER, 3)
    assert (sheet[:4, :6] == 40).all() and (sheet[:6, second : second + 5] == 60).all()
    assert (sheet[6:, :6] == 30).all()
    assert (sheet[4:6, :6] == 255).all() and (sheet[6:, second:] == 255).all()
    assert script.contact_sheet(pictures[:1]).shape == (4, 6, 3)


# ---- command line ----------------------------------------------------------------------------


def test_pictures_of_a_run(script, make_run, capsys):
    run = make_run([prediction(6, 11, 0.9), prediction(7, 20, 0.2)])
    assert script.main(["--run", str(run.path), "--num", "3"]) == 0
    out, err = capsys.readouterr()
    names = ["6.png", "7.png", "5.png", "overview.png"]
    assert out.splitlines() == [str(run.output / name) for name in names]
    assert "no prediction" not in err
    assert Image.open(run.output / "6.png").size == (2 * 640 + 36, 480 + 58)
    sheet = Image.open(run.output / "overview.png")
    assert sheet.size == (2 * (2 * 420 + 36) + shared.GUTTER, 2 * (315 + 58))


def test_says_when_the_score_is_above_all_predictions(script, make_run, drawn, capsys):
    run = make_run([prediction(6, 11, 0.0123), prediction(7, 3, 0.045)])
    folder = run.path / "elsewhere"
    assert script.main(["--run", str(run.path), "--num", "1", "--output", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(folder / "6.png"), str(folder / "overview.png")]
    assert "no prediction above 0.3 on these images; the highest of the data set is 0.045" in err
    assert drawn[0][0].predictions_note == "none; the highest score is 0.012"


def test_errors_are_one_line(script, make_run, tmp_path, capsys):
    run = make_run()

    def error(*args):
        assert script.main(["--run", *map(str, args)]) == 1
        out, err = capsys.readouterr()
        assert not out and err.startswith("error: ") and err.count("\n") == 1
        return err

    assert f"no run directory {tmp_path / 'none'}" in error(tmp_path / "none")
    assert f"no configuration file {tmp_path / 'config.yaml'}" in error(tmp_path)
    text = error(run.path, "--dataset", "lt_synthetic_val")
    assert str(run.path / "inference/lt_synthetic_val/lvis_instances_results.json") in text
    assert f"Data sets with predictions in this run: {run.name}\n" in text
    assert "unknown data set 'nothing'" in error(run.path, "--dataset", "nothing")
    (tmp_path / "images/6.png").unlink()
    assert "image id 6 cannot be read" in error(run.path)


def test_image_of_another_size_than_its_annotations(script, make_run):
    run = make_run(size=(WIDTH, HEIGHT + 1))
    with pytest.raises(DataError, match="6.png is 64 x 49 pixels, .* 64 x 48"):
        script.visualize(run.path, None, 1, 0.3, 30, 0, None)


def test_no_predictions_at_all_in_a_run(script, tmp_path):
    with pytest.raises(MissingFileError, match="Data sets with predictions in this run: none"):
        script.predictions_of_run(tmp_path, "toy")
