"""tools/prepare_ade20k.py on small trees of the archive's form."""

import os

import numpy as np
import pytest
from detectron2.data.datasets.coco import load_sem_seg
from PIL import Image

from lt_det.data.datasets import ade20k
from tests.tools.load import load_tool

tool = load_tool("prepare_ade20k")

NAMES = {"training": ["a", "b", "c"], "validation": ["d"]}


def values(name, height=6, width=8):
    """(H, W) uint8 annotation of the archive, with its smallest and largest value in it."""
    rng = np.random.default_rng(ord(name))
    out = rng.integers(0, 151, (height, width), dtype=np.uint8)
    out[0, :2] = 0, 150
    return out


def write_pair(root, split, name):
    Image.new("RGB", (8, 6), (10, 20, 30)).save(root / "images" / split / f"{name}.jpg")
    Image.fromarray(values(name)).save(root / "annotations" / split / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, names in NAMES.items():
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for name in names:
            write_pair(root, split, name)
    return root


def run(root, *options):
    return tool.main(["--root", str(root), "--workers", "1", *options])


def output(root, name, split="training"):
    return root / "annotations_detectron2" / split / f"{name}.png"


def read(path):
    return np.asarray(Image.open(path))


def assert_converted(root, name, split="training"):
    """By hand: 0 -> 255, v -> v - 1."""
    before, after = values(name), read(output(root, name, split))
    assert after.dtype == np.uint8 and after.shape == before.shape
    assert (after[before == 0] == 255).all()
    np.testing.assert_array_equal(after[before > 0], before[before > 0].astype(int) - 1)


def modification_times(root):
    return {p: p.stat().st_mtime_ns for p in root.rglob("annotations_detectron2/*/*.png")}


def test_everything_is_converted_and_training_finds_it(root, capsys):
    assert run(root) == 0
    for split, names in NAMES.items():
        for name in names:
            assert_converted(root, name, split)
    out = capsys.readouterr().out
    assert "training: 3 converted, 0 kept, 0 faulty" in out
    assert "validation: 1 converted, 0 kept, 0 faulty" in out
    assert "warning: training has 3 images, the release has 20210" in out
    assert "warning: validation has 1 images, the release has 2000" in out
    records = load_sem_seg(
        str(root / "annotations_detectron2/training"), str(root / "images/training")
    )
    assert [os.path.basename(r["sem_seg_file_name"]) for r in records] == [
        "a.png",
        "b.png",
        "c.png",
    ]


def test_numbers_of_the_release_give_no_warning(root, monkeypatch, capsys):
    monkeypatch.setattr(tool, "EXPECTED", {"training": 3, "validation": 1})
    assert run(root) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_second_run_converts_nothing(root, capsys):
    run(root)
    before = modification_times(root)
    assert len(before) == 4
    capsys.readouterr()
    assert run(root) == 0
    assert "training: 0 converted, 3 kept, 0 faulty" in capsys.readouterr().out
    assert modification_times(root) == before


def test_several_processes_do_the_same(root, capsys):
    more = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for name in more:
        write_pair(root, "training", name)
    assert run(root, "--workers", "2") == 0
    for name in "abc" + more:
        assert_converted(root, name)
    assert "training: 29 converted" in capsys.readouterr().out


def test_a_stopped_run_goes_on(root, capsys):
    run(root)
    output(root, "a").unlink()
    (root / "annotations_detectron2/training/a.png.123.tmp").write_bytes(b"\x89PNG half of it")
    broken = output(root, "b")  # as another program may leave it
    broken.write_bytes(broken.read_bytes()[:40])
    capsys.readouterr()
    assert run(root) == 0
    assert "training: 2 converted, 1 kept, 0 faulty" in capsys.readouterr().out
    assert_converted(root, "a")
    assert_converted(root, "b")


def test_processes_at_once_do_not_write_over_each_other(tmp_path, monkeypatch):
    """One begins, a second does the same from start to end, and the first goes on."""
    path, labels = tmp_path / "a.png", np.arange(6, dtype=np.uint8).reshape(2, 3)
    save, calls = Image.Image.save, []

    def slow(image, file, **options):
        calls.append(file)
        save(image, file, **options)
        if len(calls) == 1:
            ade20k._write(labels, path)

    monkeypatch.setattr(Image.Image, "save", slow)
    ade20k._write(labels, path)
    assert np.asarray(Image.open(path)).tolist() == labels.tolist()
    assert len(calls) == 2 and [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("part", ["images/training/a.jpg", "annotations/training/a.png"])
def test_a_newer_source_is_checked_and_converted_again(root, part, capsys):
    run(root)
    later = output(root, "a").stat().st_mtime + 10
    os.utime(root / part, (later, later))
    capsys.readouterr()
    assert run(root) == 0
    assert "training: 1 converted, 2 kept" in capsys.readouterr().out


def test_an_output_of_other_values_is_replaced(root, capsys):
    """Say, of a conversion that did not shift the values."""
    run(root)
    Image.fromarray(values("a")).save(output(root, "a"))
    capsys.readouterr()
    assert run(root) == 0
    assert "training: 1 converted, 2 kept" in capsys.readouterr().out
    assert_converted(root, "a")


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def save(array):
    return lambda path: Image.fromarray(array).save(path)


def turned(path):
    """An image that is stored lying on its side."""
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


IMAGE, ANNOTATION = "images/training/b.jpg", "annotations/training/b.png"
FAULTS = {
    "no annotation": (ANNOTATION, lambda p: p.unlink(), IMAGE, "has no annotation annotations/tr"),
    "no image": (IMAGE, lambda p: p.unlink(), ANNOTATION, "has no image images/training/b.jpg"),
    "image cut": (IMAGE, cut, IMAGE, "cannot be read"),
    "image empty": (IMAGE, lambda p: p.write_bytes(b""), IMAGE, "cannot be read"),
    "image is text": (IMAGE, lambda p: p.write_text("404"), IMAGE, "cannot be read"),
    "annotation cut": (ANNOTATION, cut, ANNOTATION, "cannot be read"),
    "size": (
        IMAGE,
        lambda p: Image.new("RGB", (9, 6)).save(p),
        IMAGE,
        "is 9 x 6 pixels, its annotation 8 x 6",
    ),
    "turned by EXIF": (IMAGE, turned, IMAGE, "is 6 x 8 pixels, its annotation 8 x 6"),
    "colour": (ANNOTATION, save(np.zeros((6, 8, 3), np.uint8)), ANNOTATION, "has mode RGB; "),
    "16 bits": (ANNOTATION, save(np.zeros((6, 8), np.uint16)), ANNOTATION, "has mode I;16; "),
    "value": (ANNOTATION, save(np.full((6, 8), 151, np.uint8)), ANNOTATION, "the value 151; acc"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_faulty_file_is_named_and_all_others_are_converted(root, kind, capsys):
    changed, damage, file, reason = FAULTS[kind]
    damage(root / changed)
    assert run(root) == 1
    captured = capsys.readouterr()
    line = next(line for line in captured.err.splitlines() if file in line)
    assert line.startswith(f"  {file} ") and reason in line
    assert "training: 2 converted, 0 kept, 1 faulty" in captured.out
    assert not output(root, "b").exists()
    for name, split in [("a", "training"), ("c", "training"), ("d", "validation")]:
        assert_converted(root, name, split)


def test_two_bit_grey_annotations_are_refused(root, capsys):
    """Pillow opens them as 8 bits with every value multiplied."""
    one_by_one = (  # 1 x 1 pixel, grey, 2 bits, value 1
        "89504e470d0a1a0a0000000d494844520000000100000001020000000070ce83f4"
        "0000000a49444154789c63700000004200412937f4ef0000000049454e44ae426082"
    )
    path = root / ANNOTATION
    path.write_bytes(bytes.fromhex(one_by_one))
    assert run(root) == 1
    assert "has mode L;2; " in capsys.readouterr().err


def test_palette_annotations_give_their_indices(root):
    image = Image.fromarray(values("b")).convert("P")
    image.putdata(values("b").ravel().tolist())
    image.putpalette([255 - k // 3 for k in range(768)])
    image.save(root / ANNOTATION)
    assert Image.open(root / ANNOTATION).mode == "P"
    assert run(root) == 0
    assert_converted(root, "b")


def test_an_output_without_its_image_is_reported(root, capsys):
    run(root)
    (root / IMAGE).unlink()
    (root / ANNOTATION).unlink()
    capsys.readouterr()
    assert run(root) == 1
    assert "annotations_detectron2/training/b.png is left of an image" in capsys.readouterr().err


def test_many_faults_are_counted(root, capsys):
    for k in range(25):
        (root / f"annotations/training/x{k:02}.png").write_bytes(b"")
    assert run(root) == 1
    err = capsys.readouterr().err
    assert err.startswith("25 faulty files:\n") and err.endswith("  and 5 more\n")
    assert err.count("\n") == 22


@pytest.mark.parametrize("part", ["images/training", "annotations/validation"])
def test_a_missing_folder_says_where_it_comes_from(root, part, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (root / part).rename(root / "away")
    assert tool.main(["--workers", "1"]) == 1  # the default root
    err = capsys.readouterr().err
    assert err.startswith("error: ") and str(root / part) in err
    assert "DETECTRON2_DATASETS" in err and "http://sceneparsing.csail.mit.edu" in err
    assert not (root / "annotations_detectron2").exists()


def test_default_root_is_detectron2s(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert str(ade20k.default_root()) == "datasets/ADEChallengeData2016"


def test_no_workers(root, capsys):
    assert run(root, "--workers", "0") == 1
    assert "--workers must be at least 1, got 0" in capsys.readouterr().err
