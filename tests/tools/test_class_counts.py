"""tools/class_counts.py: what it prints, writes, draws and refuses."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from lt_det.config import add_lt_config
from lt_det.data.examine import LVIS_BORDERS
from lt_det.engine import load_config
from lt_det.engine.tasks import Segmentation
from tests.data.conftest import clean_catalogs  # noqa: F401
from tests.data.small_sem_seg import CLASSES, write_sem_seg
from tests.data.small_sets import annotation, random_set, small_set, write_set
from tests.tools.load import TOOLS, load_tool

tool = load_tool("class_counts")


@pytest.fixture
def run(tmp_path, capsys, caplog):
    """Run the tool; returns what it printed and its JSON file."""
    caplog.set_level(logging.INFO)

    def run(target, *options, code=0):
        caplog.clear()
        out = tmp_path / "out.json"
        cache = ("--cache-dir", str(tmp_path / "cache"))
        assert tool.main([str(target), *cache, "--json", str(out), *map(str, options)]) == code
        printed = capsys.readouterr()
        return (printed.err if code else printed.out), json.loads(out.read_text() or "{}")

    (tmp_path / "out.json").touch()
    return run


def rows(text):
    """Cells of all tables, head lines too."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and "---" not in line
    ]


def write_list(folder, counts, name="train.txt"):
    labels = np.repeat(np.arange(len(counts)), counts)
    path = folder / name
    path.write_text("".join(f"{i}.jpg {k}\n" for i, k in enumerate(labels)))
    return path


def test_numbers_of_an_annotation_file(tmp_path, run):
    data = small_set()  # cat 1 image; dog and elk in the other, dog twice more
    data["annotations"] += [annotation(i, 5, 4) for i in (20, 21)]
    path, _ = write_set(tmp_path, data)
    text, report = run(path)
    assert report["per_class"] == {
        "name": ["cat", "dog", "elk"],
        "group": ["r", "r", "r"],
        "images": [1, 1, 1],
        "instances": [1, 3, 1],
    }
    assert report["format_version"] == 1 and report["source"] == path
    assert report["imbalance_factor"] == {"images": 1.0, "instances": 3.0}
    table = rows(text)
    assert ["imbalance factor", "", "1.0", "3.0"] in table
    assert ["dog", "1", "r", "1", "33.33 %", "3", "60.00 %"] in table
    # By images, then instances, then id.
    assert [row[0] for row in table[-3:]] == ["dog", "cat", "elk"]
    text, _ = run(path, "--sort", "id")
    assert [row[0] for row in rows(text)[-3:]] == ["cat", "dog", "elk"]


def test_numbers_of_label_maps(tmp_path, run):
    (tmp_path / "maps").mkdir()
    pixels = np.array([[0, 1, 1, 3, 255]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "maps" / "a.png")
    (tmp_path / "names.txt").write_text("Idx\tName\n1\twall\n2\tdoor\n3\tlamp\n")
    text, report = run(
        tmp_path / "maps", "--zero-is-unlabelled", "--classes", tmp_path / "names.txt"
    )
    assert report["kind"] == "label maps"
    assert report["per_class"]["pixels"] == [2, 0, 1] and report["per_class"]["images"] == [1, 0, 1]
    assert report["num_classes_without_images"] == 1
    assert ["wall", "0", "f", "1", "50.00 %", "2", "66.67 %"] in rows(text)
    assert "head (f), common (c), tail (r): thirds of the classes by pixels" in text
    assert ["head (f)", "1", "50.00 %", "66.67 %"] in rows(text)


def test_a_registered_set_of_a_configuration_file(tmp_path, run):
    path, root = write_set(tmp_path, random_set(0))
    (tmp_path / "mine.yaml").write_text(
        f"DATASETS:\n  LT:\n    REGISTER:\n    - {{name: my_own, json: {path}, images: {root}}}\n"
        "    GROUP_BORDERS: (3, 5)\n"
    )
    _, report = run("my_own", "--config-file", tmp_path / "mine.yaml")
    by_path = run(path)[1]
    assert report["source"] == "my_own"
    assert report["per_class"] == by_path["per_class"]
    assert report["borders"] is None  # the file has groups
    _, report = run("my_own", "--borders", 4, 6)
    assert report["borders"] == [4, 6]
    images = report["per_class"]["images"]
    expected = ["r" if n <= 4 else "c" if n <= 6 else "f" for n in images]
    assert report["per_class"]["group"] == expected


def test_label_maps_of_a_configuration_file(tmp_path, run):
    folder = write_sem_seg(tmp_path / "set")
    entry = {k: f"{folder}/{k}" for k in ("images", "labels")}
    entry |= {"name": "scenes", "classes": f"{folder}/classes.txt", "zero_is_unlabelled": True}
    (tmp_path / "mine.yaml").write_text(f"DATASETS:\n  LT:\n    REGISTER: [{entry}]\n")
    _, report = run("scenes", "--config-file", tmp_path / "mine.yaml")
    assert report["source"] == "scenes" and report["kind"] == "label maps"
    assert report["per_class"]["name"] == list(CLASSES)
    assert report["per_class"]["images"] == [2, 2, 1]
    assert report["per_class"]["pixels"] == [112, 160, 64]
    assert report["num_images"] == 4 and report["num_images_without_class"] == 1
    assert report["per_class"]["group"] == list("cfr") and report["group_by"] == "pixels"


@pytest.mark.parametrize("name", ["class_counts", "preview_sampling"])
def test_groups_of_label_maps_are_those_of_training(tmp_path, capsys, name):
    # Pixels 4, 9, 6, 1; images 3, 1, 2, 1.
    maps = {"a": [[0] * 2 + [2] * 5], "b": [[0] + [1] * 9 + [2]], "c": [[0, 3]]}
    folder = write_sem_seg(tmp_path / "set", maps, "wxyz", scale=1)
    entry = {k: f"{folder}/{k}" for k in ("images", "labels")}
    entry |= {"name": "four", "classes": f"{folder}/classes.txt"}
    file, out = tmp_path / "mine.yaml", tmp_path / "out.json"
    options = ["--cache-dir", str(tmp_path / "cache"), "--json", str(out)]
    used = load_tool(name)
    rules = {
        "pixels": "head (f), common (c), tail (r): thirds of the classes by pixels",
        "images": "head (f), common (c), tail (r): thirds of the classes by images",
        "borders": "tail (r): up to 1 images, common (c): up to 2, head (f): more",
    }
    for group_by, rule in rules.items():
        file.write_text(
            f"DATASETS:\n  TRAIN: [four]\n  LT:\n    REGISTER: [{entry}]\n"
            f"    GROUP_BORDERS: (1, 2)\n    SEM_SEG: {{GROUP_BY: {group_by}}}\n"
            "MODEL: {META_ARCHITECTURE: LongTailSegmentor}\n"
            "SOLVER: {MAX_ITER: 1, IMS_PER_BATCH: 1}\n"
        )
        assert used.main(["four", "--config-file", str(file), *options]) == 0
        cfg = load_config(str(file), ["DATASETS.LT.CACHE_DIR", str(tmp_path / "cache")])
        groups = json.loads(out.read_text())["per_class"]["group"]
        assert groups == list(Segmentation.counts(cfg).groups)
        assert rule in capsys.readouterr().out
        assert used.main(["four", "--config-file", str(file), "--borders", "2", "3", *options]) == 0
        assert json.loads(out.read_text())["per_class"]["group"] == list("crrr")
        assert used.main([f"{folder}/labels", *options]) == 0  # no configuration
        assert json.loads(out.read_text())["per_class"]["group"] == list("cffr")
        capsys.readouterr()


def test_list_files_keep_their_groups_under_a_configuration_file(tmp_path, run):
    path = write_list(tmp_path, [150, 50, 15, 4])
    (tmp_path / "plain.yaml").write_text("SEED: 1\n")
    (tmp_path / "own.yaml").write_text("DATASETS:\n  LT:\n    GROUP_BORDERS: (4, 20)\n")
    assert add_lt_config(get_cfg()).DATASETS.LT.GROUP_BORDERS == LVIS_BORDERS
    text, report = run(path, "--config-file", tmp_path / "plain.yaml")
    assert [row[:2] for row in rows(text)[5:8]] == [
        ["many (f)", "1"],
        ["medium (c)", "1"],
        ["few (r)", "2"],
    ]
    assert report["borders"] == [19, 100] and report["per_class"]["group"] == list("fcrr")
    _, report = run(path, "--config-file", tmp_path / "own.yaml")
    assert report["borders"] == [4, 20] and report["per_class"]["group"] == list("ffcr")
    _, report = run(path, "--config-file", tmp_path / "own.yaml", "--borders", 15, 149)
    assert report["borders"] == [15, 149] and report["per_class"]["group"] == list("fcrr")


@pytest.mark.parametrize("name", ["class_counts", "preview_sampling"])
@pytest.mark.parametrize(
    "option, file, message",
    [
        ("--plot", "tail.pgn", "tail.pgn has no suffix of a picture; accepted: "),
        ("--plot", "tail", "tail has no suffix of a picture"),
        ("--plot", "train.txt/tail.png", "train.txt/tail.png cannot be written"),
        ("--json", "train.txt/out.json", "train.txt/out.json cannot be written"),
        ("--json", "folder", "folder is a folder"),
    ],
)
def test_outputs_are_checked_before_anything_is_read(
    tmp_path, monkeypatch, capsys, name, option, file, message
):
    checked = load_tool(name)
    monkeypatch.setattr(checked, "open_input", lambda *_: pytest.fail("something was read"))
    target = write_list(tmp_path, [2, 1])
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit):
        checked.main([str(target), option, str(tmp_path / file)])
    assert message in capsys.readouterr().err


def test_folders_of_outputs_are_made(tmp_path, run):
    path = write_list(tmp_path, [2, 1])
    run(path, "--plot", tmp_path / "a" / "b" / "tail.svg")
    assert (tmp_path / "a" / "b" / "tail.svg").read_text().startswith("<?xml")


def test_missing_files_of_detectron2s_sets_are_named(tmp_path, run):
    text, _ = run("voc_2007_train", code=1)
    assert text.startswith("error: data set 'voc_2007_train': ") and text.count("\n") == 1
    assert "does not exist" in text and "DETECTRON2_DATASETS" in text


@pytest.mark.parametrize(
    "name",
    ["prepare_ade20k", "prepare_image_lists", "make_long_tailed", "preview_sampling", "visualize"],
)
def test_torch_does_not_warn(name):
    result = subprocess.run(
        [sys.executable, str(TOOLS / f"{name}.py"), "--help"],
        env={**os.environ, "PYTHONPATH": str(TOOLS.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""


def test_many_classes_are_shown_by_both_ends(tmp_path, run):
    path = write_list(tmp_path, range(50, 0, -1))
    text, report = run(path)
    shown = [row[0] for row in rows(text)[-20:]]
    assert shown == [f"class {k}" for k in [*range(10), *range(40, 50)]]
    assert "20 of 50 classes; --top 0 shows all" in text
    assert len(report["per_class"]["images"]) == 50
    assert rows(run(path, "--top", 0)[0])[-50][0] == "class 0"
    text, _ = run(path, "--top", 1, "--sort", "id")
    assert [row[0] for row in rows(text)[-2:]] == ["class 0", "class 49"]


def test_a_changed_folder_is_noticed(tmp_path, run, caplog):
    (tmp_path / "maps").mkdir()
    Image.new("L", (3, 1), 0).save(tmp_path / "maps" / "a.png")
    assert run(tmp_path / "maps")[1]["per_class"]["pixels"] == [3]
    run(tmp_path / "maps")
    assert "counted again" not in caplog.text
    Image.new("L", (2, 1), 1).save(tmp_path / "maps" / "b.png")
    assert run(tmp_path / "maps")[1]["per_class"]["pixels"] == [3, 2]
    assert caplog.text.count("Label maps are counted again") == 1


def test_a_changed_annotation_file_is_noticed(tmp_path, run, caplog):
    path, _ = write_set(tmp_path, random_set(0))
    before = run(path)[1]
    assert run(path)[1] == before and "counted again" not in caplog.text
    write_set(tmp_path, random_set(1))
    assert run(path)[1]["fingerprint"] != before["fingerprint"]
    assert caplog.text.count("Class counts are counted again") == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (["none.txt"], "error: no file or folder none.txt"),
        (["lt_synthetic_tran"], "Did you mean 'lt_synthetic_train'"),
        (["lt_synthetic_train", "--borders", "9", "9"], "--borders must be 0 < R < C, got 9 9"),
        (["lt_synthetic_train", "--config-file", "none.yaml"], "error: no configuration file"),
    ],
)
def test_errors_are_one_line(run, options, message):
    text, report = run(*options, code=1)
    assert message in text and text.count("\n") == 1 and report == {}


def test_impossible_options_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(write_list(tmp_path, [2, 1])), "--top", "-1"])
    assert "--top must be 0 or more, got -1" in capsys.readouterr().err


# ---- plot ------------------------------------------------------------------------------------


def report_of(images, groups, **units):
    amounts = {"images": images, **units}
    return {
        "source": "a/b/set",
        "kind": "label maps" if "pixels" in units else "annotations",
        "num_classes_without_images": images.count(0),
        "imbalance_factor": {unit: 7.0 for unit in amounts},
        "totals": {unit: sum(n) for unit, n in amounts.items()},
        "per_class": {"name": [f"n{k}" for k in range(len(images))], "group": groups, **amounts},
    }


def test_bars_and_dots_are_counts_from_frequent_to_rare():
    figure = tool.draw(report_of([5, 300, 0, 40], list("rfrc"), instances=[9, 900, 0, 60]))
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.containers[0]] == [300, 40, 5, 0]
    assert axes.collections[0].get_offsets().tolist() == [[0, 900], [1, 60], [2, 9]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["n1", "n3", "n0", "n2"]
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] < 5 and axes.get_ylim()[1] > 900
    assert "the last 1 are in no image" in axes.get_xlabel()
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    names = ["frequent: 1 class", "common: 1 class", "rare: 2 classes"]
    assert legend == ["images", "instances", *names]
    assert axes.get_title() == "set: imbalance factor 7 by images, 7 by instances"


def test_pixels_have_an_axis_of_their_own():
    figure = tool.draw(report_of([5, 3], list("rr"), pixels=[2000, 90000]))
    left, right = figure.axes
    assert left.get_ylim()[1] < 100 and right.get_ylim()[1] > 90000
    assert right.collections[0].get_offsets().tolist() == [[0, 2000], [1, 90000]]
    assert right.get_legend() is not None and left.get_legend() is None
    assert right.get_legend().get_texts()[-1].get_text() == "tail: 2 classes"
    assert left.get_title().startswith("b/set: ")


def test_groups_are_shaded_run_by_run():
    figure = tool.draw(report_of([9, 8, 7, 6], list("frfr")))
    spans = [(p.get_x(), p.get_x() + p.get_width()) for p in figure.axes[0].patches[4:]]
    assert spans == [(k - 0.5, k + 0.5) for k in range(4)]


def test_many_classes_have_ranks_rather_than_names(tmp_path, run):
    path = write_list(tmp_path, range(100, 0, -1))
    _, report = run(path, "--plot", tmp_path / "tail.png")
    axes = tool.draw(report).axes[0]
    assert axes.get_xlabel() == "rank of 100 classes by images" and not axes.containers
    with Image.open(tmp_path / "tail.png") as picture:
        assert picture.size[0] > 1000
