"""tools/make_long_tailed.py on a folder, a list and generated CIFAR files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_det.data.datasets.image_list import read_image_list, write_image_list
from tests.data import cifar_files
from tests.tools.load import load_tool

tool = load_tool("make_long_tailed")
GOLDEN = Path(__file__).parents[1] / "golden" / "classification"

NAMES = [f"class_{k}" for k in range(10)]


def run(source, output, *options):
    return tool.main([str(source), "--output", str(output), *map(str, options)])


def counts(path):
    return np.bincount(read_image_list(path).labels).tolist()


@pytest.fixture
def folder(tmp_path):
    """Three classes with 8 images each; their order of creation is not the sorted one."""
    for name in ("dog", "cat", "ant"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(8):
            (tmp_path / "images" / name / f"{k}.jpg").touch()
        (tmp_path / "images" / name / "notes.txt").touch()
        (tmp_path / "images" / name / ".hidden.jpg").touch()
    (tmp_path / "images" / ".cache").mkdir()
    return tmp_path / "images"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "cifar_lt_selection_c10_r0.npz")


@pytest.fixture
def cifar(tmp_path, golden):
    """CIFAR files with the labels of the golden selection: 10 classes, 100 images each."""
    path = tmp_path / "cifar-10-batches-py"
    cifar_files.write_cifar10(path, golden["balanced_targets"], range(10), NAMES)
    return path


def test_folder(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "lists", "--imbalance", 4) == 0
    path = tmp_path / "lists" / "train_exp_if4_seed0.txt"
    result = read_image_list(path)
    assert counts(path) == [8, 4, 2]
    assert all((folder / p).is_file() for p in result.paths)
    assert [Path(p).parent.name for p in result.paths] == ["ant"] * 8 + ["cat"] * 4 + ["dog"] * 2
    assert (tmp_path / "lists" / "classes.txt").read_text() == "ant\ncat\ndog\n"
    out = capsys.readouterr().out
    assert "images per class: 8 4 2\n" in out
    assert "14 of 24 images of 3 classes, 8 to 2 per class: imbalance factor 4, asked" in out
    assert sorted(p.name for p in folder.parent.iterdir()) == ["images", "lists"]


def test_the_seed_decides_which_images(folder, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(folder, tmp_path / f"{name}.txt", "--imbalance", 4, "--seed", seed) == 0
    a, b, c = ((tmp_path / f"{name}.txt").read_text() for name in "abc")
    assert a == b != c
    assert counts(tmp_path / "a.txt") == counts(tmp_path / "c.txt")


def test_step_profile_and_largest_class(folder, tmp_path):
    options = ("--imbalance", 2, "--profile", "step", "--max-per-class", 6, "--seed", 3)
    assert run(folder, tmp_path, *options) == 0
    assert counts(tmp_path / "train_step_if2_seed3_max6.txt") == [6, 3, 3]


def test_a_list_keeps_its_paths_and_may_be_ordered_by_count(tmp_path):
    labels = [0] * 4 + [1] * 6 + [2] * 4
    paths = [f"deep/{k}/image {i}.png" for i, k in enumerate(labels)]
    write_image_list(tmp_path / "all.txt", paths, labels)
    options = ("--imbalance", 2, "--order", "count", "--max-per-class", 6)
    assert run(tmp_path / "all.txt", tmp_path, *options) == 0
    path = tmp_path / "train_exp_if2_seed0_max6_by_count.txt"
    assert counts(path) == [4, 6, 3]
    assert set(read_image_list(path).paths) <= set(paths)
    assert not (tmp_path / "classes.txt").exists()
    # By default the largest class has as many images as the smallest of the source.
    assert run(tmp_path / "all.txt", tmp_path / "lt.txt", "--imbalance", 2) == 0
    assert counts(tmp_path / "lt.txt") == [4, 2, 2]


def test_the_imbalance_that_is_reached_is_printed(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "lt.txt", "--imbalance", 5) == 0
    assert "8 to 1 per class: imbalance factor 8, asked for 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (("--imbalance", 0.1), "must be a number from 1, got 0.1"),
        (("--imbalance", 100), "leave 2 of 3 classes without an image"),
        (("--imbalance", 4, "--max-per-class", 9), "class 0 should keep 9 images but has 8"),
        (("--imbalance", 4, "--max-per-class", 0), "at least 1 image, got 0"),
        (("--imbalance", 4, "--seed", -1), "the seed must be in"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_writes_nothing(
    folder, tmp_path, capsys, options, message
):
    assert run(folder, tmp_path / "lt.txt", *options) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "lt.txt").exists()


def test_sources_that_do_not_fit(folder, tmp_path, capsys):
    for file in (folder / "cat").iterdir():
        file.unlink()
    write_image_list(tmp_path / "gap.txt", ["a", "b"], [0, 2])
    (tmp_path / "empty").mkdir()
    for source, message in [
        (folder, "cat, class 1, has no image"),
        (tmp_path / "empty", "has no sub-folder"),
        (tmp_path / "gap.txt", "gap.txt has no image of class 1"),
        (tmp_path / "no.txt", "no.txt does not exist"),
    ]:
        assert run(source, tmp_path / "lt.txt", "--imbalance", 1) == 1
        assert message in capsys.readouterr().err


def test_a_list_is_not_overwritten_by_its_own_subset(tmp_path, capsys):
    write_image_list(tmp_path / "all.txt", list("abcd"), [0, 0, 1, 1])
    before = (tmp_path / "all.txt").read_text()
    assert run(tmp_path / "all.txt", tmp_path / "all.txt", "--imbalance", 2) == 1
    assert "is the list that is read" in capsys.readouterr().err
    assert (tmp_path / "all.txt").read_text() == before


def test_cifar_selection_is_the_published_one(cifar, tmp_path, golden):
    assert run(cifar, tmp_path / "out", "--imbalance", 10) == 0
    result = read_image_list(tmp_path / "out" / "train_exp_if10_seed0.txt")
    numbers = [int(Path(p).stem) for p in result.paths]
    np.testing.assert_array_equal(numbers, golden["selected_indices"])
    np.testing.assert_array_equal(result.labels, golden["selected_targets"])
    assert [Path(p).parts[:2] for p in result.paths] == [("train", NAMES[k]) for k in result.labels]


def test_cifar_images_are_the_pixels_of_the_batches(cifar, tmp_path):
    run(cifar, tmp_path / "out", "--imbalance", 10)
    images = sorted((tmp_path / "out" / "train").rglob("*.png"), key=lambda p: p.stem)
    assert len(images) == 1000
    rows = cifar_files.pixels(1000)
    for number in (0, 199, 200, 999):
        image = np.asarray(Image.open(images[number]))
        assert int(images[number].stem) == number
        # A row holds all of red, then green, then blue.
        for channel in range(3):
            expected = rows[number, 1024 * channel : 1024 * (channel + 1)].reshape(32, 32)
            np.testing.assert_array_equal(image[..., channel], expected)
    test = read_image_list(tmp_path / "out" / "test.txt")
    assert test.paths == [f"test/{name}/{k:05}.png" for k, name in enumerate(NAMES)]
    assert test.labels.tolist() == list(range(10))
    assert all((tmp_path / "out" / p).is_file() for p in test.paths)
    assert (tmp_path / "out" / "classes.txt").read_text().split() == NAMES


def test_cifar_images_are_written_once(cifar, tmp_path, capsys):
    out = tmp_path / "out"
    run(cifar, out, "--imbalance", 10)
    assert "train: 1000 images written, 0 kept" in capsys.readouterr().out
    images = sorted(out.rglob("*.png"))
    before = {p: p.stat().st_mtime_ns for p in images}
    # Another list of the same images, after a run that was stopped.
    images[0].rename(f"{images[0]}.123.tmp")
    images[1].write_bytes(images[1].read_bytes()[:50])
    assert run(cifar, out, "--imbalance", 20, "--seed", 666) == 0
    # Sorted by path, these two are in test/.
    assert "test: 2 images written, 8 kept" in capsys.readouterr().out
    assert sorted(out.rglob("*.png")) == images
    changed = [p for p in images if p.stat().st_mtime_ns != before[p]]
    assert set(changed) <= set(images[:2])
    np.testing.assert_array_equal(
        np.asarray(Image.open(images[1]))[..., 0].ravel(), cifar_files.pixels(1, 1001)[0, :1024]
    )
    golden = np.load(GOLDEN / "cifar_lt_selection_c10_r666.npz")
    assert counts(out / "train_exp_if20_seed666.txt") == golden["class_counts"].tolist()
    assert (out / "train_exp_if10_seed0.txt").is_file()


def test_an_output_that_cannot_be_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder.txt").mkdir()
    for output in ("file/lists", "file/lt.txt", "file", "folder.txt"):
        assert run(folder, tmp_path / output, "--imbalance", 2) == 1
        text = capsys.readouterr().err
        assert text.startswith(f"error: --output {tmp_path / output}") and text.count("\n") == 1
    assert run(folder, tmp_path / "new" / "er" / "lt.txt", "--imbalance", 2) == 0
    assert counts(tmp_path / "new" / "er" / "lt.txt") == [8, 5, 4]


def test_cifar_needs_a_folder(cifar, tmp_path, capsys):
    assert run(cifar, tmp_path / "lt.txt", "--imbalance", 10) == 1
    assert "CIFAR needs a folder" in capsys.readouterr().err


def test_cifar_100_at_200_reaches_250(tmp_path, capsys):
    """500 images a class, as int() cuts 2.5 to 2; images of a list are not read."""
    labels = np.repeat(np.arange(100), 500)
    write_image_list(tmp_path / "all.txt", [f"{i}.png" for i in range(len(labels))], labels)
    assert run(tmp_path / "all.txt", tmp_path / "lt.txt", "--imbalance", 200) == 0
    assert "9502 of 50000 images of 100 classes, 500 to 2 per class: imbalance factor 250" in (
        capsys.readouterr().out
    )
