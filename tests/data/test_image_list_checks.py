"""Checks of list files: published numbers, re-rooted paths, iNaturalist's JSON."""

import json

import numpy as np
import pytest

from lt_det.data.datasets.image_list_checks import (
    KNOWN_SETS,
    FolderIndex,
    Rerooting,
    differences,
    empty_classes,
    find_rerooting,
    missing_paths,
    read_inat_json,
)
from lt_det.errors import DataError, MissingFileError


def tree(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return FolderIndex(root)


def published_labels(known):
    """Training labels with the published numbers of images and extremes."""
    counts = np.full(known.num_classes, known.smallest)
    counts[0] = known.largest
    rest = known.images["train"] - counts.sum()
    for j in range(1, known.num_classes):
        added = min(rest, known.largest - known.smallest)
        counts[j] += added
        rest -= added
    return np.repeat(np.arange(known.num_classes), counts)


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_the_published_numbers_are_no_difference(name):
    known = KNOWN_SETS[name]
    labels = published_labels(known)
    assert differences(labels, known, "train") == [] == empty_classes(labels, known.num_classes)
    # Evaluation sets are balanced.
    for split in known.images.keys() - {"train"}:
        each = known.images[split] // known.num_classes
        assert each * known.num_classes == known.images[split]
        balanced = np.repeat(np.arange(known.num_classes), each)
        assert differences(balanced, known, split) == []
        assert differences(balanced[1:], known, split) == [
            f"{len(balanced) - 1} images, published are {len(balanced)}"
        ]


@pytest.mark.parametrize(
    "name, factor", [("imagenet_lt", 256), ("places_lt", 996), ("inat2018", 500)]
)
def test_imbalance_of_the_published_sets(name, factor):
    assert KNOWN_SETS[name].largest / KNOWN_SETS[name].smallest == factor


def test_differences_of_class_sizes():
    known = KNOWN_SETS["imagenet_lt"]
    labels = published_labels(known)
    labels[labels == 999] = 0
    assert differences(labels, known, "train") == [
        "1285 images in the largest class, published are 1280",
        "0 images in the smallest class, published are 5",
    ]
    assert empty_classes(labels, 1000) == [999]


def test_index_finds_files_and_not_folders(tmp_path):
    index = tree(tmp_path, "a/b/1.jpg", "2.jpg")
    assert "a/b/1.jpg" in index and "2.jpg" in index
    paths = ["a/b", "a/b/2.jpg", "no/1.jpg", "2.jpg/1.jpg", "a/b/1.jpg"]
    assert missing_paths(paths, index) == paths[:4]
    assert index.folders() == ["a"]


@pytest.mark.parametrize(
    "there, listed, expected",
    [
        ("n01/{}.JPEG", "train/n01/{}.JPEG", Rerooting(1, "")),
        ("airfield/{}.jpg", "data_256/a/airfield/{}.jpg", Rerooting(2, "")),
        ("data_256/a/airfield/{}.jpg", "a/airfield/{}.jpg", Rerooting(0, "data_256")),
        ("train/airfield/{}.jpg", "data_256/a/airfield/{}.jpg", Rerooting(2, "train")),
        ("elsewhere/{}.png", "a/{}.jpg", None),
    ],
)
def test_rerooting(tmp_path, there, listed, expected):
    numbers = range(45)
    index = tree(tmp_path, *(there.format(k) for k in numbers))
    paths = [listed.format(k) for k in numbers]
    change = find_rerooting(paths, index)
    assert change == expected
    if change is not None:
        assert [change.apply(p) for p in paths] == [there.format(k) for k in numbers]


def test_rerooting_keeps_paths_apart(tmp_path):
    index = tree(tmp_path, "1.jpg")
    assert find_rerooting(["a/1.jpg"], index) == Rerooting(1, "")
    assert find_rerooting(["a/1.jpg", "b/1.jpg"], index) is None
    assert find_rerooting(["7.jpg"], index) is None


def test_rerooting_in_words():
    assert Rerooting(1, "").describe("train/n01/x.JPEG") == (
        "without the leading train/ (train/n01/x.JPEG is n01/x.JPEG)"
    )
    assert Rerooting(2, "val").describe("a/b/x.jpg") == (
        "without the leading a/b/ and with val/ in front (a/b/x.jpg is val/x.jpg)"
    )


def write_json(path, images, annotations):
    path.write_text(
        json.dumps(
            {
                "images": [{"id": i, "file_name": name} for i, name in images],
                "annotations": [{"image_id": i, "category_id": k} for i, k in annotations],
            }
        )
    )
    return path


def test_inat_labels_are_the_category_ids_in_the_order_of_the_images(tmp_path):
    path = write_json(tmp_path / "t.json", [(7, "a/1.jpg"), (3, "b/2.jpg")], [(3, 0), (7, 8141)])
    result = read_inat_json(path, num_classes=8142)
    assert result.paths == ["a/1.jpg", "b/2.jpg"]
    assert result.labels.tolist() == [8141, 0] and result.labels.dtype == np.int64


@pytest.mark.parametrize(
    "images, annotations, message",
    [
        ([(1, "a"), (2, "b")], [(1, 0)], "1 images have no annotation, the first is b"),
        ([(1, "a")], [(1, 0), (1, 1)], "image id 1 has a second annotation"),
        ([(1, "a")], [(1, 0), (2, 1)], "image id 2 has an annotation but no entry"),
        ([(1, "a")], [(1, 5)], r"image id 1 has category_id 5; accepted: 0\.\.4"),
        ([], [], "names no image"),
    ],
)
def test_inat_files_that_do_not_fit(tmp_path, images, annotations, message):
    path = write_json(tmp_path / "t.json", images, annotations)
    with pytest.raises(DataError, match=message):
        read_inat_json(path, num_classes=5)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}'])
def test_other_json_is_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(DataError, match="no iNaturalist annotation file"):
        read_inat_json(tmp_path / "t.json", num_classes=5)
    with pytest.raises(MissingFileError, match="no.json does not exist"):
        read_inat_json(tmp_path / "no.json", num_classes=5)
