import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lt_det.evaluation import Matches, Predictions, evaluate_lvis, read_record
from tests.evaluation.lvis_sets import random_set
from tests.tools.load import TOOLS, load_tool

ROOT = Path(__file__).parents[2]
script = load_tool("evaluate_json")


@pytest.fixture
def files(tmp_path):
    """Annotation file, predictions, and the two themselves."""
    dataset, predictions = random_set(8)
    (tmp_path / "toy_val.json").write_text(json.dumps(dataset))
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    return str(tmp_path / "toy_val.json"), str(tmp_path / "p.json"), dataset, predictions


def run(*arguments):
    return script.main([str(a) for a in arguments])


def test_it_runs_without_detectron2_torch_and_lvis(files, tmp_path):
    gt, pred, dataset, predictions = files
    code = (
        "import sys\n"
        "for name in ('detectron2', 'fvcore', 'torch', 'lvis'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(TOOLS)!r})\n"
        "import evaluate_json\n"
        "sys.exit(evaluate_json.main(sys.argv[1:]))"
    )
    arguments = ["--gt", gt, "--pred", pred, "-o", str(tmp_path / "out")]
    out = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    expected = evaluate_lvis(dataset, predictions)
    assert expected.table() in out.stdout
    assert "toy_val, rules: lvis" in out.stdout and "300 detections an image" in out.stdout
    record = read_record(tmp_path / "out" / "results" / "toy_val.json")
    wanted = json.loads(json.dumps(expected.record("toy_val")["metrics"]))
    assert record["metrics"] == wanted and list(wanted) == ["bbox", "segm"]
    assert record["run"]["predictions"] == pred
    for task in ("bbox", "segm"):
        path = tmp_path / "out" / "inference" / "toy_val" / f"matches_{task}.npz"
        matches = Matches.load(path)
        assert np.array_equal(matches.matched, expected.matches[task].matched)


@pytest.mark.parametrize("form", ["p.npz", "folder"])
def test_columns_give_what_their_json_gives(files, tmp_path, capsys, form):
    gt, pred, _, predictions = files
    assert run("--gt", gt, "--pred", pred) == 0
    expected = capsys.readouterr().out
    cut = len(predictions) // 2
    if form == "folder":
        (tmp_path / "folder").mkdir()
        for k, part in enumerate((predictions[:cut], predictions[cut:])):
            Predictions.from_results(part).save(tmp_path / "folder" / f"part-{k}.npz")
    else:
        Predictions.from_results(predictions).save(tmp_path / form)
    assert run("--gt", gt, "--pred", tmp_path / form) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("form", ["ids.json", "file.json", "objects.json", "ids.txt"])
def test_an_image_list_in_each_form(files, tmp_path, capsys, form):
    gt, pred, dataset, predictions = files
    ids = [image["id"] for image in dataset["images"]][:1]
    content = {
        "ids.json": json.dumps(ids),
        "file.json": json.dumps({"images": [{"id": i} for i in ids]}),
        "objects.json": json.dumps([{"id": i} for i in ids]),
        "ids.txt": "".join(f"{i}\n" for i in ids) + "\n",
    }[form]
    (tmp_path / form).write_text(content)
    assert run("--gt", gt, "--pred", pred, "--images", tmp_path / form) == 0
    expected = evaluate_lvis(dataset, predictions, image_ids=ids)
    printed = capsys.readouterr().out
    assert expected.table() in printed
    assert f"1 images of a list ({expected.protocol['images_hash']})" in printed


def test_protocol_and_iou_type(files, tmp_path, capsys):
    gt, pred, dataset, predictions = files
    arguments = ["--gt", gt, "--pred", pred, "--iou-type", "segm", "--protocol", "fixed_ap"]
    assert run(*arguments, "--name", "toy", "-o", tmp_path / "out") == 0
    expected = evaluate_lvis(dataset, predictions, ["segm"], protocol="fixed_ap")
    printed = capsys.readouterr().out
    assert expected.table() in printed
    assert "rules: lvis, fixed AP" in printed and "10000 detections a class" in printed
    record = read_record(tmp_path / "out" / "results" / "toy.json")
    assert record["protocol"]["max_detections_per_class"] == 10_000
    assert record["dataset"] == "toy" and list(record["metrics"]) == ["segm"]


def test_other_rules_and_images_do_not_replace_what_was_written(files, tmp_path):
    gt, pred, dataset, _ = files
    (tmp_path / "mini.txt").write_text(f"{dataset['images'][0]['id']}\n")
    lists, rules = ["--images", tmp_path / "mini.txt"], ["--protocol", "fixed_ap"]
    for more in ([], lists, rules, [*lists, *rules]):
        assert run("--gt", gt, "--pred", pred, "-o", tmp_path / "out", *more) == 0
    names = ["toy_val", "toy_val_fixed_ap", "toy_val_mini", "toy_val_mini_fixed_ap"]
    found = sorted(p.name for p in (tmp_path / "out" / "results").iterdir())
    assert found == [f"{name}.json" for name in names]
    assert sorted(p.name for p in (tmp_path / "out" / "inference").iterdir()) == names
    for name in names:
        record = read_record(tmp_path / "out" / "results" / f"{name}.json")
        assert record["dataset"] == name
        assert ("fixed AP" in record["protocol"]["rules"]) == ("fixed_ap" in name)
        assert ("images_hash" in record["protocol"]) == ("mini" in name)


@pytest.mark.parametrize("name", ["../../a", "a/b", "a\\b", "", "..", "/a"])
def test_names_that_are_no_file_names_are_refused(files, tmp_path, capsys, name):
    gt, pred, *_ = files
    with pytest.raises(SystemExit):
        run("--gt", gt, "--pred", pred, "-o", tmp_path / "out", "--name", name)
    assert "--name is the name of a file and a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("l.json", b"5", "a list of image ids, .* got 5"),
        ("l.json", b"null", "a list of image ids, .* got None"),
        ("l.json", b'{"images": 5}', "a list of image ids, .* got {'images': 5}"),
        ("l.json", b'{"images": [1]}', r"'images' must be a list of objects, got \[1\]"),
        ("l.json", b'{"images": [{}]}', "whole numbers; got None"),
        ("l.json", b"[]", "whole numbers; got nothing"),
        ("l.json", b"[1.0]", "whole numbers; got 1.0"),
        ("l.json", b"\xff\xfe", "not a JSON file"),
        ("l.txt", b"\xff\xfe", "is not text: byte 0"),
        ("l.txt", "²".encode(), "whole numbers; got '²'"),
    ],
)
def test_lists_of_images_that_are_none_are_named(files, tmp_path, capsys, file, content, message):
    gt, pred, *_ = files
    (tmp_path / file).write_bytes(content)
    assert run("--gt", gt, "--pred", pred, "--images", tmp_path / file) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(rf"error: .*{file}.*{message}", error), error


def test_what_cannot_be_used_is_one_line_with_the_file(files, tmp_path, capsys):
    gt, pred, _, predictions = files
    cut = tmp_path / "cut.json"
    cut.write_text(Path(pred).read_text()[:-40])
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{**predictions[0], "image_id": 999}]))
    (tmp_path / "ids.json").write_text('[1, "2"]')
    cases = [
        (["--gt", gt, "--pred", cut], "cut.json is not a JSON file"),
        (["--gt", gt, "--pred", other], "other.json: prediction 0 is for image 999"),
        (["--gt", gt, "--pred", tmp_path / "none.json"], "none.json"),
        (["--gt", tmp_path / "none.json", "--pred", pred], "no annotation file"),
        (["--gt", gt, "--pred", pred, "--images", tmp_path / "ids.json"], "image ids.*got '2'"),
        (["--gt", gt, "--pred", pred, "-o", gt], "toy_val.json"),
    ]
    for arguments, message in cases:
        assert run(*arguments) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert re.search(message, error), error
