"""tools/prepare_image_lists.py on small sets in the form of the published ones."""

import json

import pytest
from PIL import Image

from lt_det.data.datasets.image_list import read_image_list, write_image_list
from lt_det.data.datasets.image_list_checks import KnownSet
from tests.tools.load import load_tool

tool = load_tool("prepare_image_lists")

SMALL = KnownSet(
    num_classes=3,
    largest=3,
    smallest=1,
    images={"train": 6, "val": 3},
    files={"train": "Small_train.txt", "val": "Small_val.txt"},
    annotations={"train": "train.json", "val": "val.json"},
    source="https://example.org/small",
)
TRAIN = [("train/a/0.png", 0), ("train/a/1.png", 0), ("train/c/0.png", 2)]
# Not in the order of the paths.
TRAIN += [("train/b/1.png", 1), ("train/b/0.png", 1), ("train/a/2.png", 0)]
VAL = [("val/a/9.png", 0), ("val/b/9.png", 1), ("val/c/9.png", 2)]


@pytest.fixture(autouse=True)
def small_set(monkeypatch):
    monkeypatch.setattr(tool, "KNOWN_SETS", {"small": SMALL})


@pytest.fixture
def folders(tmp_path):
    """images/ and lists/ of a set in which all is well."""
    (tmp_path / "lists").mkdir()
    for split, entries in (("train", TRAIN), ("val", VAL)):
        for path, _ in entries:
            file = tmp_path / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(file)
        write_list(tmp_path, split, entries)
    return tmp_path


def write_list(folders, split, entries):
    write_image_list(folders / "lists" / f"Small_{split}.txt", *zip(*entries, strict=True))


def run(folders, *options, images="images"):
    arguments = ["--images", str(folders / images), "--lists", str(folders / "lists")]
    return tool.main(["small", *arguments, "--workers", "1", *map(str, options)])


def entries_of(path):
    result = read_image_list(path)
    return list(zip(result.paths, result.labels.tolist(), strict=True))


def test_all_is_well_and_the_order_stays(folders, capsys):
    assert run(folders, "--output", folders / "out", "--decode") == 0
    captured = capsys.readouterr()
    assert "train: 6 images found, 0 missing" in captured.out
    assert "val: 3 images found, 0 missing" in captured.out
    assert "warning" not in captured.out and captured.err == ""
    assert entries_of(folders / "out" / "Small_train.txt") == TRAIN
    assert entries_of(folders / "out" / "Small_val.txt") == VAL


def test_missing_images_are_named_and_that_list_is_not_written(folders, capsys):
    (folders / "images/train/b/0.png").unlink()
    assert run(folders, "--output", folders / "out") == 1
    out = capsys.readouterr().out
    assert "train: 5 images found, 1 missing" in out and "\n  train/b/0.png\n" in out
    assert [p.name for p in (folders / "out").iterdir()] == ["Small_val.txt"]


def test_many_missing_images_are_counted(folders, capsys):
    write_list(folders, "val", [*VAL, *((f"val/a/x{k}.png", 0) for k in range(14))])
    assert run(folders) == 1
    out = capsys.readouterr().out
    assert "val: 3 images found, 14 missing" in out
    assert "  val/a/x9.png\n  and 4 more\n" in out and "x10" not in out


def test_paths_with_one_component_too_many(folders, capsys):
    options = ("--splits", "train")
    assert run(folders, *options, images="images/train") == 1
    out = capsys.readouterr().out
    assert "train: 0 images found, 6 missing" in out
    assert "6 are there without the leading train/ (train/a/0.png is a/0.png)" in out
    assert "--output FOLDER writes a list with these paths" in out

    options += ("--output", folders / "out", "--decode")
    assert run(folders, *options, images="images/train") == 0
    assert entries_of(folders / "out" / "Small_train.txt") == [(p[6:], k) for p, k in TRAIN]


def test_paths_with_one_component_too_few(folders, capsys):
    (folders / "images").rename(folders / "data_256")
    assert run(folders, "--output", folders / "out", images=".") == 0
    assert "6 are there with data_256/ in front" in capsys.readouterr().out
    assert entries_of(folders / "out" / "Small_val.txt") == [(f"data_256/{p}", k) for p, k in VAL]


def test_missing_images_under_changed_paths(folders, capsys):
    (folders / "images/train/c/0.png").unlink()
    options = ("--splits", "train", "--output", folders / "out")
    assert run(folders, *options, images="images/train") == 1
    out = capsys.readouterr().out
    assert "5 are there without the leading train/" in out and "\n  c/0.png\n" in out
    assert not (folders / "out").exists()


def test_nothing_is_there(folders, capsys):
    (folders / "empty").mkdir()
    assert run(folders, images="empty") == 1
    out = capsys.readouterr().out
    assert "train: 0 images found, 6 missing" in out and "\n  train/a/0.png\n" in out
    assert "are there" not in out


def test_broken_images_are_found_by_decoding(folders, capsys):
    (folders / "images/train/a/1.png").write_bytes(b"404 not found")
    path = folders / "images/val/c/9.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert run(folders) == 0
    capsys.readouterr()
    assert run(folders, "--decode", "--output", folders / "out") == 1
    out = capsys.readouterr().out
    assert "train: 1 broken images:\n  train/a/1.png: UnidentifiedImageError" in out
    assert "val: 1 broken images:\n  val/c/9.png: " in out
    assert not (folders / "out").exists()


def test_decoding_in_several_processes(folders, capsys):
    more = [(f"val/a/m{k:02}.png", 0) for k in range(30)]
    for path, _ in more:
        Image.new("RGB", (4, 4)).save(folders / "images" / path)
    (folders / "images/val/a/m20.png").write_bytes(b"")
    write_list(folders, "val", VAL + more)
    assert run(folders, "--decode", "--workers", "2") == 1
    assert "val: 1 broken images:\n  val/a/m20.png: " in capsys.readouterr().out


def test_other_numbers_than_published_are_a_warning(folders, capsys):
    write_list(folders, "train", TRAIN[:-1])
    assert run(folders) == 0
    out = capsys.readouterr().out
    assert "warning: train has 5 images, published are 6" in out
    assert "warning: train has 2 images in the largest class, published are 3" in out


def test_a_class_without_training_images(folders, capsys):
    write_list(folders, "train", [e for e in TRAIN if e[1] != 1])
    write_list(folders, "val", VAL[:2])
    assert run(folders) == 1
    out = capsys.readouterr().out
    assert "train has no image of 1 classes:\n  1\n" in out and "val has no image" not in out


def test_a_label_out_of_range_is_named_and_the_other_split_checked(folders, capsys):
    write_list(folders, "train", [*TRAIN, ("train/a/3.png", 3)])
    assert run(folders) == 1
    captured = capsys.readouterr()
    assert "Small_train.txt line 7: label 3 is not in 0..2" in captured.err
    assert "val: 3 images found, 0 missing" in captured.out


def as_json(entries):
    return json.dumps(
        {
            "images": [{"id": 10 + i, "file_name": p} for i, (p, _) in enumerate(entries)],
            "annotations": [
                {"image_id": 10 + i, "category_id": k} for i, (_, k) in enumerate(entries)
            ][::-1],
        }
    )


def test_lists_are_built_from_json_where_there_are_none(folders):
    (folders / "lists/Small_train.txt").unlink()
    (folders / "lists/train.json").write_text(as_json(TRAIN))
    (folders / "lists/val.json").write_text("the list is read instead")
    assert run(folders, "--output", folders / "out") == 0
    assert entries_of(folders / "out" / "Small_train.txt") == TRAIN


def test_missing_lists(folders, capsys):
    (folders / "lists/Small_val.txt").unlink()
    assert run(folders) == 1
    captured = capsys.readouterr()
    assert "no Small_val.txt and no val.json in" in captured.err
    assert "https://example.org/small" in captured.err
    assert "train: 6 images found" in captured.out
    assert run(folders, "--splits", "train") == 0


def test_wrong_options(folders, capsys):
    for options, message in [
        (("--splits", "test"), "small has no split 'test' (--splits); accepted: train, val"),
        (("--output", folders / "lists"), "is the folder of --lists; name another one"),
        (("--decode", "--workers", "0"), "--workers must be at least 1, got 0"),
    ]:
        assert run(folders, *options) == 1
        assert message in capsys.readouterr().err
    assert run(folders, images="nowhere") == 1
    assert "nowhere is not a folder" in capsys.readouterr().err
