"""List files: what is read, what is refused, writing."""

import numpy as np
import pytest

from lt_det.data.datasets import image_list
from lt_det.data.datasets.image_list import read_image_list, write_image_list
from lt_det.errors import DataError, MissingFileError


def write(folder, text):
    path = folder / "train.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_and_labels_in_the_order_of_the_file(tmp_path):
    path = write(tmp_path, "b/2.jpg 3\na/1.jpg 0\nc.jpg 3\n")
    images = read_image_list(path)
    assert images.paths == ["b/2.jpg", "a/1.jpg", "c.jpg"]
    assert images.labels.tolist() == [3, 0, 3] and images.labels.dtype == np.int64
    assert len(images) == 3 and images.source == str(path)


@pytest.mark.parametrize("line", ["a b/ü 1.jpg 7", "  a b/ü 1.jpg \t 7  ", "a b/ü 1.jpg\t7\r"])
def test_the_label_is_what_follows_the_last_white_space(tmp_path, line):
    images = read_image_list(write(tmp_path, f"\n{line}\n\n  \n"))
    assert images.paths == ["a b/ü 1.jpg"] and images.labels.tolist() == [7]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a.jpg 0\nb.jpg\n", "line 2: expected 'relative/path label', got 'b.jpg'"),
        ("a.jpg 0\n\nb.jpg x\n", "line 3: label 'x' is not a whole number from 0"),
        ("a.jpg -1\n", "line 1: label '-1' is not a whole number"),
        ("a.jpg 1.0\n", "line 1: label '1.0' is not a whole number"),
        ("a.jpg 0\nb.jpg 5\n", "line 2: label 5 is not in 0..4 (5 classes)"),
        ("a.jpg 0\nb.jpg 1\na.jpg 1\n", "line 3: a.jpg is on line 1 already"),
        ("", "names no image"),
        ("\n  \n", "names no image"),
    ],
)
def test_faults_name_file_and_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_image_list(path, num_classes=5)
    assert str(path) in str(error.value) and message in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG 1\n")
    with pytest.raises(DataError, match="list file .*a.png is not text in UTF-8"):
        read_image_list(tmp_path / "a.png")


@pytest.mark.parametrize("label", ["1000000", "3000000000", "99999999999999999999999", "9" * 5000])
def test_labels_that_would_fill_the_memory_are_refused(tmp_path, label):
    path = write(tmp_path, f"a.jpg 999999\nb.jpg {label}\n")
    with pytest.raises(DataError) as error:
        read_image_list(path)
    text = str(error.value)
    assert f"{path} line 2: label {label[:20]}" in text and "is not in 0..999999" in text
    assert len(text) < len(str(path)) + 150
    with pytest.raises(DataError, match="line 1: label 999999 is not in 0..4"):
        read_image_list(path, num_classes=5)


def test_without_a_number_of_classes_any_label_is_taken(tmp_path):
    assert read_image_list(write(tmp_path, "a.jpg 8141\n")).labels.tolist() == [8141]


def test_a_missing_file_is_named_with_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=f"none.txt .*{tmp_path}/none.txt"):
        read_image_list("none.txt")


def test_what_is_written_is_read_again(tmp_path):
    rng = np.random.default_rng(0)
    paths = [f"some folder/{i:03d} ä.jpg" for i in range(50)]
    labels = rng.integers(0, 9, 50)
    write_image_list(tmp_path / "new.txt", paths, labels)
    images = read_image_list(tmp_path / "new.txt", num_classes=9)
    assert images.paths == paths and images.labels.tolist() == labels.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["new.txt"]


def test_a_write_in_the_middle_of_another_is_whole(tmp_path):
    path = tmp_path / "new.txt"

    def paths():
        yield "a.jpg"
        write_image_list(path, ["b.jpg", "c.jpg"], [3, 4])
        yield "d.jpg"

    write_image_list(path, paths(), [1, 2])
    assert path.read_text() == "a.jpg 1\nd.jpg 2\n"
    assert [p.name for p in tmp_path.iterdir()] == ["new.txt"]


def test_a_stopped_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path, "a.jpg 0\n")
    with pytest.raises(ValueError):
        write_image_list(path, ["b.jpg", "c.jpg"], [1])
    assert path.read_text() == "a.jpg 0\n"

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_list.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_image_list(path, ["b.jpg"], [1])
    assert path.read_text() == "a.jpg 0\n"
