"""Class counts of registered sets of semantic segmentation, and what training reads of them."""

import numpy as np
import pytest

from lt_det.data.datasets.label_maps import read_label_maps
from lt_det.data.examine import LABEL_MAPS, examine
from lt_det.data.sem_seg_counts import (
    sem_seg_class_counts,
    sem_seg_label_maps,
    sem_seg_training_data,
)
from lt_det.errors import ConfigError, DataError
from tests.data.small_sem_seg import CLASSES, MAPS, register_sem_seg, write_sem_seg


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is kept beyond the test."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))


@pytest.fixture
def name(tmp_path):
    return register_sem_seg("mine", write_sem_seg(tmp_path / "set"))


def lists(sets):
    return [sets[i].tolist() for i in range(len(sets))]


# Of MAPS, each value being 16 pixels.
IMAGES, PIXELS = [2, 2, 1], [7 * 16, 10 * 16, 4 * 16]


def test_counts_by_hand(name):
    counts = sem_seg_class_counts([name], num_classes=3)
    assert counts.names == CLASSES and counts.source == "mine" and counts.instances is None
    assert counts.images.tolist() == IMAGES and counts.pixels.tolist() == PIXELS
    assert counts.num_images == 4 and counts.empty_images == 1
    assert counts.groups == ("c", "f", "r")


def test_tools_open_a_registered_set_by_its_name(name):
    found, counts = examine(name), sem_seg_class_counts([name])
    assert found.kind == LABEL_MAPS and found.counts.source == name
    assert found.counts.fingerprint == counts.fingerprint
    assert found.counts.groups == counts.groups == ("c", "f", "r")
    assert found.counts.pixels.tolist() == PIXELS
    assert lists(found.class_sets) == [[0, 1], [0, 2], [1], []]
    assert found.amount_of_pair.tolist() == [64, 32, 48, 64, 128]
    with pytest.raises(ConfigError, match="zero_is_unlabelled is for label maps, but mine is a re"):
        examine(name, zero_is_unlabelled=True)


def test_the_groups_follow_what_they_are_asked_by(tmp_path):
    # Pixels 4, 9, 6, 1; images 3, 1, 2, 1.
    maps = {"a": [[0] * 2 + [2] * 5], "b": [[0] + [1] * 9 + [2]], "c": [[0, 3]]}
    folder = write_sem_seg(tmp_path / "set", maps, "wxyz", scale=1)
    name = register_sem_seg("four", folder, zero_is_unlabelled=False)
    groups = {
        by: "".join(sem_seg_class_counts([name], group_by=by, borders=(1, 2)).groups)
        for by in ("pixels", "images", "borders")
    }
    assert groups == {"pixels": "cffr", "images": "fcfr", "borders": "frcr"}
    with pytest.raises(ConfigError, match="GROUP_BY is 'area'; accepted are pixels, images, bord"):
        sem_seg_class_counts([name], group_by="area")


def test_sets_of_both_conventions_are_added_up(name, tmp_path):
    # The same classes in the other convention.
    maps = {k: np.where(np.isin(v, (0, 255)), 255, np.array(v) - 1) for k, v in MAPS.items()}
    other = register_sem_seg(
        "other", write_sem_seg(tmp_path / "other", maps, scale=2), zero_is_unlabelled=False
    )
    counts = sem_seg_class_counts([name, other])
    assert counts.images.tolist() == [4, 4, 2]
    assert counts.pixels.tolist() == [n + n // 4 for n in PIXELS]
    assert counts.num_images == 8 and counts.empty_images == 2 and counts.source == "mine + other"
    records, sets = sem_seg_training_data([name, other], num_classes=3, drop_empty=False)
    assert lists(sets) == [[0, 1], [0, 2], [1], []] * 2
    assert [r["zero_is_unlabelled"] for r in records] == [True] * 4 + [False] * 4
    records, sets = sem_seg_training_data([other, name], num_classes=3, drop_empty=True)
    assert lists(sets) == [[0, 1], [0, 2], [1]] * 2
    stems = [r["file_name"].split("images/")[1] for r in records]
    assert stems == ["a.png", "b.png", "sub/c.png"] * 2
    assert "/other/" in records[2]["file_name"] and "/set/" in records[3]["file_name"]


def test_label_maps_are_decoded_once(name, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    first = sem_seg_label_maps(name, cache_dir=cache)
    monkeypatch.setattr("lt_det.data.datasets.label_maps.read_label_png", None)
    again = sem_seg_label_maps(name, cache_dir=cache)
    by_folder = read_label_maps(tmp_path / "set/labels", zero_is_unlabelled=True, cache_dir=cache)
    assert by_folder.pixels().tolist() == PIXELS
    assert again.pixels().tolist() == first.pixels().tolist() == PIXELS
    assert lists(again.class_sets) == lists(first.class_sets)


def test_class_lists_that_do_not_fit_are_errors(name, tmp_path):
    names = {"swapped": ("wall", "lamp", "door"), "more": (*CLASSES, "sofa"), "less": CLASSES[:2]}
    for other, classes in names.items():
        register_sem_seg(other, write_sem_seg(tmp_path / other, classes=classes))
    with pytest.raises(ConfigError, match="'mine' and 'swapped' .* 3 and 3 classes, from class 1"):
        sem_seg_class_counts([name, "swapped"])
    with pytest.raises(ConfigError, match="'more' and 'mine' .* 4 and 3 classes, from class 3 on"):
        sem_seg_class_counts(["more", name])
    with pytest.raises(ConfigError, match="SEM_SEG_HEAD.NUM_CLASSES is 5, but .*'mine' has 3 cla"):
        sem_seg_class_counts([name], num_classes=5)
    with pytest.raises(DataError, match=r"less/labels/b.png: value 3 is beyond .* 1\.\.2"):
        sem_seg_class_counts(["less"])
    with pytest.raises(ConfigError, match="DATASETS.TRAIN is empty"):
        sem_seg_class_counts([])
