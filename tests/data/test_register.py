import os
from types import SimpleNamespace

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_det.config import add_lt_config
from lt_det.data import get_records, register_from_config, register_lvis_format
from lt_det.errors import ConfigError, MissingFileError
from tests.data.small_sets import small_set, write_set


def config(entries):
    cfg = add_lt_config(get_cfg())
    cfg.DATASETS.LT.REGISTER = entries
    return cfg


def entry(tmp_path, **changes):
    path, root = write_set(tmp_path, small_set())
    return {"name": "mine", "json": path, "images": root, "format": "coco", **changes}


# ---- register_lvis_format --------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["lvis", "coco"])
def test_a_registered_set_reaches_detectron2(tmp_path, file_format):
    path, root = write_set(tmp_path, small_set())
    register_lvis_format("mine", path, root, file_format=file_format)
    meta = MetadataCatalog.get("mine")
    assert meta.as_dict() == {
        "name": "mine",
        "json_file": path,
        "image_root": root,
        "evaluator_type": "lvis",
        "lt_format": file_format,
    }
    records = DatasetCatalog.get("mine")
    assert type(records) is list and records == list(get_records("mine"))
    assert ("neg_category_ids" in records[0]) == (file_format == "lvis")
    assert meta.thing_classes == ["cat", "dog", "elk"]
    assert meta.thing_dataset_id_to_contiguous_id == {2: 0, 4: 1, 7: 2}


def test_registering_reads_nothing(tmp_path):
    register_lvis_format("mine", str(tmp_path / "gone.json"), str(tmp_path))
    with pytest.raises(MissingFileError, match="gone.json of data set 'mine'"):
        get_records("mine")


def test_the_same_set_twice_is_fine_and_another_one_is_not(tmp_path):
    path, root = write_set(tmp_path, small_set())
    register_lvis_format("mine", path, root)
    first = DatasetCatalog["mine"]
    register_lvis_format("mine", path, root)
    assert DatasetCatalog["mine"] is first
    for args, file_format in [((path + "x", root), "lvis"), ((path, root + "x"), "lvis"),
                              ((path, root), "coco")]:  # fmt: skip
        with pytest.raises(ConfigError) as e:
            register_lvis_format("mine", *args, file_format=file_format)
        assert f"name 'mine' is taken (by {path})" in str(e.value)
        assert "DATASETS.LT.REGISTER" in str(e.value)


def test_detectron2s_names_are_taken():
    with pytest.raises(ConfigError, match="data set name 'lvis_v1_val' is taken"):
        register_lvis_format("lvis_v1_val", "x.json", "images")


def test_an_unknown_format_is_refused_and_registers_nothing():
    with pytest.raises(ConfigError, match="unknown format 'voc' of data set 'mine'. Accepted: lv"):
        register_lvis_format("mine", "x.json", "images", file_format="voc")
    assert "mine" not in DatasetCatalog


def test_prepare_runs_once_before_the_first_load(tmp_path):
    calls = []

    def prepare():
        calls.append("prepare")
        write_set(tmp_path, small_set())

    register_lvis_format(
        "mine", str(tmp_path / "set.json"), str(tmp_path / "images"), prepare=prepare
    )
    assert calls == []
    assert len(get_records("mine")) == 2
    assert len(DatasetCatalog.get("mine")) == 2
    assert calls == ["prepare"]


def test_prepare_runs_again_if_it_failed(tmp_path):
    outcomes = [RuntimeError("no space"), None]

    def prepare():
        write_set(tmp_path, small_set())
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    register_lvis_format(
        "mine", str(tmp_path / "set.json"), str(tmp_path / "images"), prepare=prepare
    )
    with pytest.raises(RuntimeError, match="no space"):
        get_records("mine")
    assert len(get_records("mine")) == 2
    assert outcomes == []


def test_the_synthetic_set_is_registered_by_the_import():
    assert {"lt_synthetic_train", "lt_synthetic_val"} <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("lt_synthetic_val").evaluator_type == "lvis"


# ---- from the configuration ------------------------------------------------------------------


def test_sets_of_the_configuration_are_registered(tmp_path):
    first = entry(tmp_path)
    second = {k: v for k, v in entry(tmp_path, name="mine_too").items() if k != "format"}
    cfg = config([first, CfgNode(second)])
    assert register_from_config(cfg) == ["mine", "mine_too"]
    assert register_from_config(cfg) == ["mine", "mine_too"]
    assert MetadataCatalog.get("mine").lt_format == "coco"
    assert MetadataCatalog.get("mine_too").lt_format == "lvis"
    assert len(get_records("mine")) == 2


def test_a_yaml_file_and_the_command_line_reach_it(tmp_path):
    values = entry(tmp_path)
    yaml = tmp_path / "config.yaml"
    yaml.write_text(f"DATASETS:\n  LT:\n    REGISTER:\n      - {values}\n")
    cfg = add_lt_config(get_cfg())
    cfg.merge_from_file(str(yaml))
    assert register_from_config(cfg) == ["mine"]
    cfg.merge_from_list(["DATASETS.LT.REGISTER", str([{**values, "name": "mine_too"}])])
    assert register_from_config(cfg) == ["mine_too"]
    assert list(get_records("mine")) == list(get_records("mine_too"))


def test_an_empty_list_registers_nothing():
    before = DatasetCatalog.list()
    assert register_from_config(config([])) == []
    assert DatasetCatalog.list() == before


def test_paths_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    paths = [
        ("~/a.json", "$MY_DATA/images"),
        ("a.json", "images"),
        ("./a.json", "${MY_DATA}/images"),
    ]
    for i, (json_file, images) in enumerate(paths):
        values = {"name": f"mine_{i}", "json": json_file, "images": images}
        register_from_config(config([values]))
        meta = MetadataCatalog.get(f"mine_{i}")
        assert meta.json_file == os.path.join(tmp_path, "a.json")
        assert meta.image_root == os.path.join(tmp_path, "images")


def test_addresses_stay_as_they_are():
    values = {"name": "mine", "json": "s3://bucket/a.json", "images": "s3://bucket/images"}
    register_from_config(config([values]))
    assert MetadataCatalog.get("mine").json_file == "s3://bucket/a.json"


ACCEPTED = "Accepted: name, json, images, format."


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"path": "x"}, f"DATASETS.LT.REGISTER[1] has the unknown key 'path'. {ACCEPTED}"),
        ({"json": ""}, "DATASETS.LT.REGISTER[1].json must be a text that is not empty, got ''"),
        ({"name": 3}, "DATASETS.LT.REGISTER[1].name must be a text that is not empty, got 3"),
        ({"format": "voc"}, "unknown format 'voc' of data set 'other'. Accepted: lvis, coco."),
        (
            {"json": "$NOT_SET_ANYWHERE/a.json"},
            "DATASETS.LT.REGISTER[1].json is '$NOT_SET_ANYWHERE/a.json', "
            "but NOT_SET_ANYWHERE is not set",
        ),
    ],
)
def test_bad_entries_are_errors(tmp_path, changes, message):
    good = entry(tmp_path)
    with pytest.raises(ConfigError) as e:
        register_from_config(config([good, {**good, "name": "other", **changes}]))
    assert str(e.value) == message


@pytest.mark.parametrize("key", ["name", "json", "images"])
def test_a_missing_key_is_named(tmp_path, key):
    values = entry(tmp_path)
    del values[key]
    with pytest.raises(ConfigError) as e:
        register_from_config(config([values]))
    assert str(e.value) == f"DATASETS.LT.REGISTER[0] lacks the key {key!r}. {ACCEPTED}"


def test_a_name_that_is_taken_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="data set name 'coco_2017_val' is taken"):
        register_from_config(config([entry(tmp_path, name="coco_2017_val")]))


def test_something_else_than_a_list_of_entries_is_an_error():
    with pytest.raises(ConfigError, match=r"DATASETS.LT.REGISTER\[0\] must be {name, json"):
        register_from_config(config(["my.json"]))
    lt = SimpleNamespace(REGISTER={"name": "mine"})
    cfg = SimpleNamespace(DATASETS=SimpleNamespace(LT=lt))
    with pytest.raises(ConfigError, match="DATASETS.LT.REGISTER must be a list .* got a dict"):
        register_from_config(cfg)


@pytest.mark.parametrize(
    "name", ["cityscapes_fine_sem_seg_train", "coco_2017_train_panoptic", "voc_2007_train"]
)
def test_missing_files_of_detectron2s_own_loaders_are_named(name):
    with pytest.raises(MissingFileError, match=f"data set '{name}': .*DETECTRON2_DATASETS") as e:
        get_records(name)
    assert e.value.__cause__.filename in str(e.value)
