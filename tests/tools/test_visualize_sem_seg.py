"""tools/visualize.py on a run of semantic segmentation."""

import numpy as np
import pytest
from PIL import Image

from lt_det.data.datasets.label_png import IGNORED
from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.results import make_record, write_record
from tests.tools.load import load_tool

shared = load_tool("pictures")
script = load_tool("visualize_sem_seg")
NAMES = ["sky", "cup", "elk"]


def test_the_legend_leaves_out_pixels_without_a_label():
    truth = np.array([[0, 0, 1, IGNORED], [0, 1, IGNORED, IGNORED]], np.uint8)
    predicted = np.array([[0, 2, 1, 2], [0, 0, 2, 2]], np.uint8)
    rows = script.legend_rows(truth, predicted, 10)
    assert rows == [(0, 3 / 5, 3 / 5), (1, 2 / 5, 1 / 5), (2, 0.0, 1 / 5)]
    # What there is least of goes first; the rest stays in order.
    assert script.legend_rows(truth, predicted, 2) == rows[:2]
    assert script.legend_rows(np.full((1, 2), IGNORED), predicted[:1, :2], 5) == []


def test_colors_lie_over_the_grey_image():
    image = np.zeros((1, 3, 3), np.uint8)
    image[0, :, 0] = 90  # grey: 30
    labels = np.array([[0, 2, IGNORED]], np.uint8)
    picture = script.colored(image, labels, 3)
    for column, k in ((0, 0), (1, 2)):
        color = 255 * np.array(shared.class_color(k))
        expected = script.OPACITY * color + (1 - script.OPACITY) * 30
        np.testing.assert_allclose(picture[0, column], expected, atol=1.5)  # two roundings
    assert picture[0, 2].tolist() == [0, 0, 0]


def test_the_panels_show_image_truth_and_prediction():
    image = np.full((60, 80, 3), 128, np.uint8)
    truth, predicted = np.zeros((60, 80), np.uint8), np.full((60, 80), 2, np.uint8)
    truth[:30] = IGNORED
    picture = script.draw_maps(image, truth, predicted, NAMES, list("fcr"), 160)
    width, height, top = 160, 120, shared.HEADER
    assert picture.shape == (
        top + height + shared.MARGIN,
        3 * (width + shared.MARGIN) + shared.MARGIN + script.LEGEND,
        3,
    )
    middle = [shared.MARGIN + k * (width + shared.MARGIN) + width // 2 for k in range(3)]
    colors = script.colored(image[:1, :2], np.array([[0, 2]], np.uint8), 3)[0]
    lower, upper = top + 3 * height // 4, top + height // 4
    assert picture[lower, middle[0]].tolist() == [128, 128, 128]
    np.testing.assert_allclose(picture[lower, middle[1]], colors[0], atol=1)
    np.testing.assert_allclose(picture[lower, middle[2]], colors[1], atol=1)
    assert picture[upper, middle[1]].tolist() == [0, 0, 0]


@pytest.fixture
def run(tmp_path):
    """A run on two images, of which the second holds the rare class; makes it and its command."""
    for folder in ("images", "maps"):
        (tmp_path / folder).mkdir()
    for number, k in ((1, 0), (2, 2)):
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / f"images/{number}.png")
        Image.fromarray(np.full((20, 30), k, np.uint8)).save(tmp_path / f"maps/{number}.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    name = f"drawn_{tmp_path.name}"
    run = tmp_path / "run"
    run.mkdir()
    entry = f"name: {name}, images: {tmp_path}/images, labels: {tmp_path}/maps"
    (run / "config.yaml").write_text(
        "DATASETS:\n  LT:\n    REGISTER:\n"
        f"      - {{{entry}, classes: {tmp_path}/names.txt}}\n"
        f'  TEST: ("{name}",)\n'
    )
    record = make_record(
        task="sem_seg",
        dataset=name,
        protocol={},
        metrics={},
        per_class={"name": NAMES, "group": ["f", "c", "r"]},
    )
    write_record(run / "results" / f"{name}.json", record)
    return run, run / "inference" / name / "predictions"


def test_pictures_of_a_run(run, capsys):
    folder, predictions = run
    predictions.mkdir(parents=True)
    for number in (1, 2):
        Image.fromarray(np.full((20, 30), 1, np.uint8)).save(predictions / f"{number}.png")
    assert load_tool("visualize").main(["--run", str(folder), "--num", "1"]) == 0
    written = capsys.readouterr().out.split()
    assert written == [str(folder / "pictures" / f"{name}.png") for name in ("2", "overview")]
    picture = np.asarray(Image.open(written[0]))
    swatch = picture[shared.HEADER + 5, picture.shape[1] - script.LEGEND + 5]
    np.testing.assert_allclose(swatch, 255 * np.array(shared.class_color(2)), atol=1)


def test_a_run_without_predictions_says_how_to_keep_them(run, capsys):
    assert load_tool("visualize").main(["--run", str(run[0])]) == 1
    assert "TEST.LT.SEM_SEG.SAVE png" in capsys.readouterr().err


def test_a_prediction_of_another_size_is_named(run):
    folder, predictions = run
    predictions.mkdir(parents=True)
    Image.fromarray(np.zeros((20, 31), np.uint8)).save(predictions / "1.png")
    with pytest.raises(DataError, match="1.png, its label map and its prediction differ in size"):
        load_tool("visualize").visualize(folder, None, 1, 0.3, 30, 0, None)


def test_records_need_a_prediction(run):
    folder, predictions = run
    with pytest.raises(MissingFileError, match="predictions"):
        load_tool("visualize").visualize(folder, None, 1, 0.3, 30, 0, None)
    assert not predictions.exists()
