"""Registered data sets of semantic segmentation: what is found, paired, and refused."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_det.data import register_from_config
from lt_det.data.datasets.sem_seg_sets import (
    SemSegSet,
    find_sem_seg_set,
    register_sem_seg_set,
    sem_seg_class_names,
    sem_seg_records,
)
from lt_det.data.sem_seg_records import SemSegRecords, join_sem_seg_records
from lt_det.engine import load_config
from lt_det.errors import ConfigError, DataError, MissingFileError
from tests.data.small_sem_seg import CLASSES, MAPS, register_sem_seg, write_sem_seg


@pytest.fixture
def folder(tmp_path):
    return write_sem_seg(tmp_path / "set")


def record(folder, name, suffix=".png", zero=True):
    return {
        "file_name": f"{folder}/images/{name}{suffix}",
        "sem_seg_file_name": f"{folder}/labels/{name}.png",
        "zero_is_unlabelled": zero,
    }


# ---- records ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg"])
def test_images_and_label_maps_are_paired_by_their_paths(tmp_path, suffix):
    folder = write_sem_seg(tmp_path, suffix=suffix)
    (folder / "images" / "readme.txt").write_text("no image")
    (folder / "images" / "._a.png").write_text("what an archive tool left")
    records = sem_seg_records(register_sem_seg("mine", folder))
    assert list(records) == [record(folder, name, suffix) for name in MAPS]


def test_names_that_sort_differently_with_their_suffix_stay_pairs(tmp_path):
    folder = write_sem_seg(tmp_path, {"x": [[1]], "x-1": [[2]], "x1": [[3]]}, suffix=".jpg")
    records = sem_seg_records(register_sem_seg("mine", folder))
    assert sorted(r["file_name"] for r in records) == [
        f"{folder}/images/{name}.jpg" for name in ("x-1", "x", "x1")
    ]
    for r in records:
        stem = r["file_name"].removeprefix(f"{folder}/images/").removesuffix(".jpg")
        assert r["sem_seg_file_name"] == f"{folder}/labels/{stem}.png"


def test_records_keep_any_path_through_selection_and_joining():
    first = SemSegRecords(["ä/1.jpg", "a long one.png"], ["1.png", "2.png"], np.zeros(2, bool))
    second = SemSegRecords(["x\udcff.jpg"], ["/m/x.png"], np.ones(1, bool))
    joined = join_sem_seg_records([first, second])
    assert list(joined) == [*first, *second] and len(joined) == 3
    assert [r["file_name"] for r in joined] == ["ä/1.jpg", "a long one.png", "x\udcff.jpg"]
    assert [r["zero_is_unlabelled"] for r in joined] == [False, False, True]
    assert list(joined.select([2, 0])) == [joined[2], joined[0]]
    assert joined.select([1]).label_files() == ["2.png"]
    assert list(joined.select([])) == []


def test_detectron2_gets_the_records_and_the_class_names(folder):
    register_sem_seg("mine", folder)
    meta = MetadataCatalog.get("mine")
    assert meta.evaluator_type == "sem_seg" and meta.ignore_label == 255
    assert meta.image_root == f"{folder}/images" and meta.sem_seg_root == f"{folder}/labels"
    assert meta.get("stuff_classes") is None
    records = DatasetCatalog.get("mine")
    assert type(records) is list and records == list(sem_seg_records("mine"))
    assert meta.stuff_classes == list(CLASSES)


# ---- finding and registering -----------------------------------------------------------------


def test_registering_reads_nothing_and_the_same_set_twice_is_fine(tmp_path):
    register_sem_seg("mine", tmp_path / "gone")
    register_sem_seg("mine", tmp_path / "gone")
    with pytest.raises(ConfigError, match="name 'mine' is taken.*DATASETS.LT.REGISTER"):
        register_sem_seg("mine", tmp_path / "gone", zero_is_unlabelled=False)
    with pytest.raises(ConfigError, match="name 'ade20k_sem_seg_val' is taken"):
        register_sem_seg("ade20k_sem_seg_val", tmp_path)


def test_only_sets_of_semantic_segmentation_are_found(folder):
    found = find_sem_seg_set(register_sem_seg("mine", folder))
    assert found.label_dir == f"{folder}/labels" and found.zero_is_unlabelled
    others = ("lvis_v1_val", "cityscapes_fine_sem_seg_val", "lt_synthetic_images_val", "nothing")
    assert [find_sem_seg_set(name) for name in others] == [None] * 4
    assert "nothing" not in MetadataCatalog.list()
    with pytest.raises(ConfigError, match="'lvis_v1_val' is not one of semantic seg.*ade20k_sem_s"):
        sem_seg_records("lvis_v1_val")


def test_ade20k_is_detectron2s_and_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = sem_seg_class_names("ade20k_sem_seg_train")
    assert len(names) == 150 and names == MetadataCatalog.get("ade20k_sem_seg_train").stuff_classes
    root = tmp_path / "ADEChallengeData2016"
    message = f"(?s)image folder {root}/images/training .*prepare_ade20k.py.*DETECTRON2_DATASETS"
    with pytest.raises(MissingFileError, match=message):
        sem_seg_records("ade20k_sem_seg_train")
    set_folder = write_sem_seg(tmp_path / "set", {"x": [[1, 149]]}, suffix=".jpg")
    (root / "images").mkdir(parents=True)
    (root / "images" / "validation").symlink_to(set_folder / "images")
    with pytest.raises(MissingFileError, match=f"label map folder {root}/annotations_detectron2"):
        sem_seg_records("ade20k_sem_seg_val")
    (root / "annotations_detectron2").mkdir()
    (root / "annotations_detectron2" / "validation").symlink_to(set_folder / "labels")
    (only,) = sem_seg_records("ade20k_sem_seg_val")
    assert only == {
        "file_name": f"{root}/images/validation/x.jpg",
        "sem_seg_file_name": f"{root}/annotations_detectron2/validation/x.png",
        "zero_is_unlabelled": False,
    }


def test_a_set_with_its_own_loader_is_found(folder):
    own = [record(folder, "b"), record(folder, "a")]
    own = [{k: r[k] for k in ("file_name", "sem_seg_file_name")} for r in own]
    DatasetCatalog.register("own", lambda: own)
    MetadataCatalog.get("own").set(evaluator_type="sem_seg", stuff_classes=["x", "y", "z"])
    assert list(sem_seg_records("own")) == [{**r, "zero_is_unlabelled": False} for r in own]
    assert sem_seg_class_names("own") == ["x", "y", "z"]
    DatasetCatalog.register("bad", lambda: [{"file_name": "a.jpg"}])
    MetadataCatalog.get("bad").set(evaluator_type="sem_seg")
    with pytest.raises(DataError, match="'bad'.*needs `file_name` and `sem_seg_file_name`.*a.jpg"):
        sem_seg_records("bad")
    with pytest.raises(ConfigError, match="'bad' has no `stuff_classes`"):
        sem_seg_class_names("bad")
    DatasetCatalog.register("zero", lambda: own)
    MetadataCatalog.get("zero").set(evaluator_type="sem_seg", ignore_label=0)
    with pytest.raises(ConfigError, match="'zero' has the `ignore_label` 0.* are 255"):
        sem_seg_records("zero")


# ---- missing partners ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gone, message",
    [
        (
            ("labels/b.png",),
            r"1 of 4 images have no label map of .*in .*/images/b.jpg$",
        ),
        (("images/sub/c.jpg",), r"1 of 4 label maps have no image of .*in .*/labels/sub/c.png$"),
        (tuple(f"images/{n}.jpg" for n in MAPS), r"4 of 4 label maps .*b.png, .*c.png, \.\.\.$"),
    ],
)
def test_files_without_a_partner_are_named_and_counted(tmp_path, gone, message):
    folder = write_sem_seg(tmp_path, suffix=".jpg")
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(DataError, match=f"^data set 'mine': {message}"):
        sem_seg_records(register_sem_seg("mine", folder))


def test_two_images_of_one_name_and_an_empty_folder_are_errors(folder, tmp_path):
    (folder / "images" / "a.jpg").write_bytes((folder / "images" / "a.png").read_bytes())
    with pytest.raises(DataError, match="'mine': .*images/a.jpg and .*images/a.png would share"):
        sem_seg_records(register_sem_seg("mine", folder))
    for place in ("images", "labels"):
        (tmp_path / "empty" / place).mkdir(parents=True)
    with pytest.raises(DataError, match="empty/labels holds no label map"):
        sem_seg_records(register_sem_seg("empty", tmp_path / "empty"))


# ---- class lists -----------------------------------------------------------------------------


def test_class_lists_are_read_in_any_form_and_limited(folder, tmp_path):
    assert sem_seg_class_names(register_sem_seg("text", folder)) == list(CLASSES)
    other = write_sem_seg(tmp_path / "json")
    entries = [{"index": k, "name": name} for k, name in enumerate(CLASSES)]
    (other / "classes.txt").write_text(json.dumps(entries[::-1]))
    assert sem_seg_class_names(register_sem_seg("json", other)) == list(CLASSES)
    for number, zero, fine in ((255, False, True), (256, False, False), (255, True, False)):
        names = "\n".join(f"class {k}" for k in range(number))
        (other / "classes.txt").write_text(names)
        name = register_sem_seg(f"many_{number}_{zero}", other, zero_is_unlabelled=zero)
        if fine:
            assert len(sem_seg_class_names(name)) == 255
            continue
        with pytest.raises(ConfigError, match=f"has {number} classes .*at most {255 - zero} here"):
            sem_seg_class_names(name)
    (other / "classes.txt").unlink()
    with pytest.raises(MissingFileError, match="class list .*classes.txt of data set 'json'.*`cla"):
        sem_seg_class_names("json")


# ---- from the configuration ------------------------------------------------------------------


def entry(folder, **changes):
    paths = {"images": f"{folder}/images", "labels": f"{folder}/labels"}
    return {"name": "mine", **paths, "classes": f"{folder}/classes.txt", **changes}


def config(*entries):
    return load_config("", ["DATASETS.LT.REGISTER", str(list(entries))])


def test_sets_of_the_configuration_are_registered(folder, monkeypatch):
    monkeypatch.setenv("MY_SET", str(folder))
    moved = entry("$MY_SET", name="zero", zero_is_unlabelled=True)
    assert register_from_config(config(entry(folder), moved)) == ["mine", "zero"]
    assert list(sem_seg_records("mine")) == [record(folder, name, zero=False) for name in MAPS]
    assert list(sem_seg_records("zero")) == [record(folder, name) for name in MAPS]
    assert sem_seg_class_names("zero") == list(CLASSES)
    assert find_sem_seg_set("mine") == SemSegSet(
        "mine", f"{folder}/images", f"{folder}/labels", f"{folder}/classes.txt"
    )


ACCEPTED = "Accepted: name, labels, images, classes, zero_is_unlabelled."


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "coco"}, f"DATASETS.LT.REGISTER[0] has the unknown key 'format'. {ACCEPTED}"),
        ({"classes": None}, f"DATASETS.LT.REGISTER[0] lacks the key 'classes'. {ACCEPTED}"),
        ({"images": None}, f"DATASETS.LT.REGISTER[0] lacks the key 'images'. {ACCEPTED}"),
        ({"labels": ""}, "DATASETS.LT.REGISTER[0].labels must be a text that is not empty, got ''"),
        (
            {"zero_is_unlabelled": "yes"},
            "DATASETS.LT.REGISTER[0].zero_is_unlabelled must be True or False, got 'yes'",
        ),
        (
            {"labels": "$NOT_SET_ANYWHERE/maps"},
            "DATASETS.LT.REGISTER[0].labels is '$NOT_SET_ANYWHERE/maps', "
            "but NOT_SET_ANYWHERE is not set",
        ),
    ],
)
def test_bad_entries_are_errors(folder, changes, message):
    values = {k: v for k, v in entry(folder, **changes).items() if v is not None}
    with pytest.raises(ConfigError) as e:
        register_from_config(config(values))
    assert str(e.value) == message


def test_what_prepares_a_set_runs_when_it_is_used(folder):
    calls = []
    paths = (f"{folder}/images", f"{folder}/labels", f"{folder}/classes.txt")
    register_sem_seg_set(SemSegSet("made", *paths), prepare=lambda: calls.append("made"))
    assert calls == []
    assert len(sem_seg_records("made")) == 4
    assert calls == ["made"]
