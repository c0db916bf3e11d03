import copy
import gc
import json
import random

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json, register_coco_instances
from detectron2.data.datasets.lvis import load_lvis_json, register_lvis_instances
from pycocotools import mask as mask_util

from lt_det.data.datasets import column_cache
from lt_det.data.datasets.annotations import EMPTY_BOX, OUTSIDE_BOX, box_fault
from lt_det.data.datasets.catalog import dataset_info, get_records, register_lvis_format
from lt_det.data.datasets.lvis_format import load_lvis_format
from lt_det.errors import ConfigError, DataError, MissingFileError
from tests.data.small_sets import SQUARE, annotation, random_set, small_set, write_set


def load(tmp_path, data, file_format="lvis", **kwargs):
    path, root = write_set(tmp_path, data)
    return load_lvis_format(path, root, file_format=file_format, **kwargs)


def annotation_of(data, id):
    return next(ann for ann in data["annotations"] if ann["id"] == id)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


# ---- the same as Detectron2 ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_lvis_records_are_detectron2s(tmp_path, seed, caplog):
    path, root = write_set(tmp_path, random_set(seed))
    ours = load_lvis_format(path, root)
    theirs = load_lvis_json(path, root + "/")
    for record in theirs:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            record[key] = [i - 1 for i in record[key]]  # Detectron2 leaves the ids of the file
    assert ours == theirs
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("seed", range(5))
def test_coco_records_are_detectron2s(tmp_path, seed):
    data = random_set(seed, coco=True)
    assert any(ann["iscrowd"] for ann in data["annotations"])
    assert any("keypoints" in ann for ann in data["annotations"])
    path, root = write_set(tmp_path, data)
    ours = load_lvis_format(path, root, file_format="coco", name="ours")
    assert ours == load_coco_json(path, root, "theirs")
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
        assert MetadataCatalog.get("ours").get(key) == MetadataCatalog.get("theirs").get(key)


def test_records_by_hand(tmp_path):
    data = small_set()
    data["images"][1].update(neg_category_ids=[7], not_exhaustive_category_ids=[4, 2])
    five, nine = load(tmp_path, data)
    assert five["file_name"] == str(tmp_path / "images" / "a" / "five.png")
    assert (five["image_id"], five["width"], five["height"]) == (5, 100, 80)
    assert [ann["category_id"] for ann in five["annotations"]] == [2, 1]
    assert [ann["category_id"] for ann in nine["annotations"]] == [0]
    assert five["neg_category_ids"] == [2]
    assert five["not_exhaustive_category_ids"] == [1, 0]
    assert nine["neg_category_ids"] == []


@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_file_does_not_matter(tmp_path, seed):
    data = random_set(seed, coco=True)
    before = load(tmp_path, data, "coco")
    rng = random.Random(seed)
    for key in ("images", "categories"):
        rng.shuffle(data[key])
    # Annotations of one image keep their order, as in Detectron2.
    data["annotations"].sort(key=lambda ann: (ann["image_id"] * 7919) % 1000)
    assert load(tmp_path, data, "coco") == before


def test_coco_crowds_keep_their_mark_and_get_compressed_masks(tmp_path):
    data = small_set()
    counts = [3, 10, 100 * 80 - 13]
    annotation_of(data, 12).update(iscrowd=1, segmentation={"size": [80, 100], "counts": counts})
    crowd, other = load(tmp_path, data, "coco")[0]["annotations"]
    assert crowd["iscrowd"] == 1
    mask = mask_util.decode(crowd["segmentation"])
    assert np.flatnonzero(mask.T.ravel()).tolist() == list(range(3, 13))
    assert "iscrowd" not in other


def test_image_info_files_have_no_annotations(tmp_path):
    data = small_set()
    del data["annotations"]
    path, root = write_set(tmp_path, data, "image_info_test.json")
    assert [r["annotations"] for r in load_lvis_format(path, root)] == [[], []]


# ---- skipped and counted ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "box",
    [
        [10, 10, 0, 5],
        [10, 10, 5, -1],
        [10, 10, 5, 1e-6],
        [float("nan"), 10, 5, 5],
        [10, 10, float("inf"), 5],
    ],
)
def test_empty_boxes_are_skipped_and_counted(tmp_path, caplog, box):
    data = small_set()
    annotation_of(data, 17)["bbox"] = box
    records = load(tmp_path, data)
    assert [len(r["annotations"]) for r in records] == [1, 1]
    assert warnings_of(caplog) == [
        f"file {tmp_path / 'set.json'}: skipped 1 annotation with an empty or degenerate box "
        "(e.g. annotation id 17 of image id 5)"
    ]


def test_one_warning_per_kind(tmp_path, caplog):
    data = small_set()
    data["annotations"] = [
        annotation(1, 9, 2, bbox=[10, 10, 0, 5]),
        annotation(2, 9, 2, bbox=[100, 10, 5, 5]),
        annotation(3, 5, 2, bbox=[10, 10, 5, 0]),
        annotation(4, 9, 2, bbox=[-5, 10, 5, 5]),
        annotation(5, 9, 2, bbox=[1, 80, 5, 5]),
        annotation(6, 9, 2),
    ]
    records = load(tmp_path, data)
    assert [len(r["annotations"]) for r in records] == [0, 1]
    file = f"file {tmp_path / 'set.json'}"
    assert warnings_of(caplog) == [
        f"{file}: skipped 2 annotations with an empty or degenerate box "
        "(e.g. annotation id 3 of image id 5)",
        f"{file}: skipped 3 annotations with a box wholly outside the image "
        "(e.g. annotation id 2 of image id 9)",
    ]


def test_a_box_partly_outside_stays_as_it_is(tmp_path, caplog):
    data = small_set()
    annotation_of(data, 11)["bbox"] = [-5.0, 70.0, 20.0, 50.0]
    assert load(tmp_path, data)[1]["annotations"][0]["bbox"] == [-5.0, 70.0, 20.0, 50.0]
    assert warnings_of(caplog) == []


def test_box_fault_is_the_same_in_every_corner():
    rng = random.Random(0)
    for _ in range(2000):
        x, y = rng.randint(-30, 60), rng.randint(-30, 60)
        w, h = rng.randint(-2, 30), rng.randint(-2, 30)
        covered = np.zeros((40, 50), dtype=bool)
        covered[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = True
        expected = EMPTY_BOX if min(w, h) <= 0 else None if covered.any() else OUTSIDE_BOX
        assert box_fault([x, y, w, h], 50, 40) == expected


@pytest.mark.parametrize("bad", [[1.0, 2.0, 3.0, 4.0], SQUARE + [1.0], [], [float("nan")] * 6])
def test_bad_polygons_are_dropped(tmp_path, caplog, bad):
    data = small_set()
    annotation_of(data, 17)["segmentation"] = [bad, list(SQUARE)]
    records = load(tmp_path, data)
    assert records[0]["annotations"][1]["segmentation"] == [SQUARE]
    assert warnings_of(caplog) == [
        f"file {tmp_path / 'set.json'}: dropped 1 polygon with fewer than 3 points, an odd number "
        "of coordinates or one that is not finite (e.g. annotation id 17 of image id 5)"
    ]


@pytest.mark.parametrize("file_format", ["lvis", "coco"])
def test_an_annotation_without_a_valid_polygon_is_skipped(tmp_path, caplog, file_format):
    data = small_set()
    annotation_of(data, 17)["segmentation"] = [[1.0, 2.0], [1.0, 2.0, 3.0]]
    records = load(tmp_path, data, file_format)
    assert [ann["category_id"] for ann in records[0]["annotations"]] == [2]
    dropped, skipped = warnings_of(caplog)
    assert "dropped 2 polygons" in dropped
    assert "skipped 1 annotation without a valid polygon" in skipped
    assert "annotation id 17 of image id 5" in skipped


def test_ignored_annotations_are_skipped(tmp_path, caplog):
    data = small_set()
    annotation_of(data, 17)["ignore"] = 1
    assert len(load(tmp_path, data, "coco")[0]["annotations"]) == 1
    assert "skipped 1 annotation marked as `ignore` (e.g. annotation id 17 of" in caplog.text


def test_crowds_in_lvis_files_are_skipped(tmp_path, caplog):
    data = small_set()
    annotation_of(data, 17)["iscrowd"] = 1
    assert len(load(tmp_path, data, "lvis")[0]["annotations"]) == 1
    assert "marked as `iscrowd`, which the LVIS format does not have," in caplog.text
    assert "annotation id 17 of image id 5" in caplog.text


@pytest.mark.parametrize("nothing", [[], None])
def test_an_annotation_without_a_mask_is_kept_and_counted(tmp_path, caplog, nothing):
    data = small_set()
    annotation_of(data, 17)["segmentation"] = nothing
    records = load(tmp_path, data)
    assert ["segmentation" in ann for ann in records[0]["annotations"]] == [True, False]
    assert warnings_of(caplog) == [
        f"file {tmp_path / 'set.json'}: kept 1 annotation without a mask although others have one "
        "(e.g. annotation id 17 of image id 5)"
    ]


def test_a_set_of_boxes_alone_is_fine(tmp_path, caplog):
    data = small_set()
    for ann in data["annotations"]:
        del ann["segmentation"]
    keys = {key for r in load(tmp_path, data) for ann in r["annotations"] for key in ann}
    assert keys == {"bbox", "bbox_mode", "category_id"}
    assert warnings_of(caplog) == []


def test_without_check_nothing_is_skipped(tmp_path, caplog):
    data = small_set()
    annotation_of(data, 17).update(bbox=[10, 10, 0, 5], segmentation=[[1.0, 2.0]])
    ann = load(tmp_path, data, check=False)[0]["annotations"][1]
    assert (ann["bbox"], ann["segmentation"]) == ([10, 10, 0, 5], [[1.0, 2.0]])
    assert warnings_of(caplog) == []


def test_nan_is_read(tmp_path):
    data = small_set()
    annotation_of(data, 17)["bbox"][0] = float("nan")
    annotation_of(data, 12)["area"] = float("nan")
    assert [len(r["annotations"]) for r in load(tmp_path, data)] == [1, 1]


# ---- errors ----------------------------------------------------------------------------------

ANN_17 = "annotation id 17 of image id 5"


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"segmentation": {"size": [100, 80], "counts": [8000]}},
            f"{ANN_17}: the RLE mask has (height, width) [100, 80], the image [80, 100]",
        ),
        (
            {"segmentation": {"size": [80, 100], "counts": [8000, 1]}},
            f"{ANN_17}: the runs of the RLE mask cover 8001 pixels, the image has 8000",
        ),
        ({"segmentation": {"counts": [8000]}}, f"{ANN_17} lacks the key 'size'"),
        ({"segmentation": list(SQUARE)}, f"{ANN_17}: 'segmentation' is neither a list of"),
        ({"segmentation": "mask.png"}, f"{ANN_17}: 'segmentation' is neither a list of"),
        ({"segmentation": [["1"] * 6]}, f"{ANN_17}: 'segmentation' is neither a list of"),
        (
            {"category_id": 3},
            f"{ANN_17}: category id 3 is not in the file's list of 3 categories",
        ),
        ({"category_id": []}, f"{ANN_17}: bbox [10.0, 10.0, 20.0, 20.0], category id []"),
        ({"bbox": []}, f"{ANN_17}: bbox []"),
        ({"bbox": [1, 2, 3]}, f"{ANN_17}: bbox [1, 2, 3]"),
        ({"bbox": [1, 2, 3, "4"]}, f"{ANN_17}: bbox [1, 2, 3, '4']"),
        ({"bbox": None}, f"{ANN_17}: bbox None"),
        (
            {"image_id": 6},
            "annotation id 17 of image id 6: the file lists no image with that id",
        ),
        (
            {"image_id": []},
            "annotation id 17 of image id []: the file lists no image with that id",
        ),
        ({"id": 11}, "annotation id 11 is used twice, in image id 9 and image id 5"),
    ],
)
@pytest.mark.parametrize("file_format", ["lvis", "coco"])
def test_bad_annotations_are_errors(tmp_path, changes, message, file_format):
    data = small_set()
    annotation_of(data, 17).update(changes)
    with pytest.raises(DataError) as e:
        load(tmp_path, data, file_format)
    assert str(e.value).startswith(f"file {tmp_path / 'set.json'}: {message}")


@pytest.mark.parametrize("key", ["bbox", "category_id"])
def test_an_annotation_that_lacks_a_key_is_named(tmp_path, key):
    data = small_set()
    del annotation_of(data, 17)[key]
    with pytest.raises(DataError) as e:
        load(tmp_path, data)
    assert str(e.value) == f"file {tmp_path / 'set.json'}: {ANN_17} lacks the key {key!r}"


@pytest.mark.parametrize("key", ["id", "image_id"])
def test_an_annotation_without_an_id_is_named_by_its_place(tmp_path, key):
    data = small_set()
    del data["annotations"][2][key]
    with pytest.raises(DataError, match=f"set.json: annotation number 2 lacks the key '{key}'"):
        load(tmp_path, data)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": None}, "image id 5 has width None, not a positive whole number"),
        ({"height": 0}, "image id 5 has height 0, not a positive whole number"),
        ({"width": 10.5}, "image id 5 has width 10.5, not a positive whole number"),
        ({"id": "5"}, "image id '5' is not a whole number"),
        ({"id": 9}, "image id 9 is used twice"),
        ({"file_name": ""}, "image id 5 has neither 'coco_url' nor 'file_name'"),
        (
            {"neg_category_ids": [2, 3]},
            "neg_category_ids of image id 5 has category id 3, which is not in the file's list "
            "of 3 categories",
        ),
    ],
)
def test_bad_images_are_errors(tmp_path, changes, message):
    data = small_set()
    data["images"][1].update(changes)
    with pytest.raises(DataError) as e:
        load(tmp_path, data)
    assert str(e.value) == f"file {tmp_path / 'set.json'}: {message}"


@pytest.mark.parametrize(
    "key, message",
    [
        ("id", "image number 1 lacks the key 'id'"),
        ("width", "image id 5 lacks the key 'width'"),
        ("height", "image id 5 lacks the key 'height'"),
        ("file_name", "image id 5 has neither 'coco_url' nor 'file_name'"),
    ],
)
def test_an_image_that_lacks_a_key_is_named(tmp_path, key, message):
    data = small_set()
    del data["images"][1][key]
    with pytest.raises(DataError) as e:
        load(tmp_path, data)
    assert str(e.value) == f"file {tmp_path / 'set.json'}: {message}"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"id": 7}, "category id 7 is used twice"),
        ({"id": "2"}, "category id '2' is not a whole number"),
        ({"frequency": "x"}, "category id 2 has frequency 'x'; accepted: 'r', 'c', 'f'"),
    ],
)
def test_bad_categories_are_errors(tmp_path, changes, message):
    data = small_set()
    data["categories"][1].update(changes)
    with pytest.raises(DataError) as e:
        load(tmp_path, data)
    assert str(e.value) == f"file {tmp_path / 'set.json'}: {message}"


def test_a_category_without_a_name_is_an_error(tmp_path):
    data = small_set()
    del data["categories"][1]["name"]
    with pytest.raises(DataError, match="set.json: category number 1 lacks the key 'name'"):
        load(tmp_path, data)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_file_that_lacks_a_list_is_an_error(tmp_path, key):
    data = small_set()
    content = data.pop(key)
    with pytest.raises(DataError, match=f"set.json: key '{key}' is missing"):
        load(tmp_path, data)
    with pytest.raises(DataError, match=f"set.json: key '{key}' is not a list"):
        load(tmp_path, {**data, key: {"1": content}})
    with pytest.raises(DataError, match=f"set.json: entry 0 of '{key}' is None"):
        load(tmp_path, {**data, key: [None]})


@pytest.mark.parametrize("key, noun", [("images", "image"), ("categories", "category")])
def test_an_empty_list_is_an_error(tmp_path, key, noun):
    with pytest.raises(DataError, match=f"set.json: lists no {noun}"):
        load(tmp_path, {**small_set(), key: []})


def test_a_truncated_file_is_named_with_the_position(tmp_path):
    text = json.dumps(small_set(), indent=1)[:-60]
    with pytest.raises(DataError) as e:
        load(tmp_path, text)
    message = str(e.value)
    assert message.startswith(f"{tmp_path / 'set.json'} is not a JSON file: ")
    assert f"of {len(text)})" in message and message.endswith("Is it cut off?")


def test_a_file_that_is_no_text_is_an_error(tmp_path):
    path, root = write_set(tmp_path, small_set())
    with open(path, "wb") as f:
        f.write(b'{"images": "\xff\xfe"}')
    with pytest.raises(DataError, match="set.json is not a JSON file: byte 12 is not text"):
        load_lvis_format(path, root)


def test_a_file_that_holds_a_list_is_an_error(tmp_path):
    with pytest.raises(DataError, match="set.json: holds a list instead of an object"):
        load(tmp_path, [small_set()])


def test_an_unknown_format_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="unknown format 'voc'. Accepted: lvis, coco."):
        load(tmp_path, small_set(), "voc")


def test_repeated_annotation_ids_pass_in_minival_files_as_in_detectron2(tmp_path):
    data = small_set()
    annotation_of(data, 17)["id"] = 11
    path, root = write_set(tmp_path, data, "instances_minival2014.json")
    records = load_lvis_format(path, root, file_format="coco")
    assert [len(r["annotations"]) for r in records] == [2, 1]


def test_garbage_collection_is_back_on_after_an_error(tmp_path):
    with pytest.raises(DataError):
        load(tmp_path, "{")
    assert gc.isenabled()
    gc.disable()
    try:
        load(tmp_path, small_set())
        assert not gc.isenabled()
    finally:
        gc.enable()


# ---- missing files ---------------------------------------------------------------------------


def test_a_missing_annotation_file_of_an_own_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError) as e:
        load_lvis_format("gone.json", "images", name="my_train")
    message = str(e.value)
    assert f"gone.json of data set 'my_train' does not exist (looked for {tmp_path}" in message
    assert "DATASETS.LT.REGISTER" in message


@pytest.mark.parametrize(
    "file, source",
    [
        ("lvis/lvis_v1_train.json", "https://www.lvisdataset.org/dataset and go to {root}/lvis/"),
        ("coco/annotations/instances_val2017.json", "annotations to {root}/coco/annotations"),
    ],
)
def test_a_missing_built_in_file_says_what_prepares_it(tmp_path, monkeypatch, file, source):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(MissingFileError) as e:
        load_lvis_format(str(tmp_path / file), str(tmp_path / "coco"))
    message = str(e.value)
    assert str(tmp_path / file) in message
    assert "environment variable DETECTRON2_DATASETS" in message
    assert source.format(root=tmp_path) in message


def test_a_missing_image_folder(tmp_path):
    path, root = write_set(tmp_path, small_set())
    with pytest.raises(MissingFileError, match=f"image folder {root}x does not exist"):
        load_lvis_format(path, root + "x")
    (tmp_path / "images" / "a").rmdir()
    with pytest.raises(MissingFileError, match=f"image folder {root}/a does not exist"):
        load_lvis_format(path, root)
    names = [r["file_name"] for r in load_lvis_format(path, root, need_images=False)]
    assert names == [f"{root}/a/five.png", f"{root}/a/nine.png"]


# ---- names of image files --------------------------------------------------------------------


@pytest.mark.parametrize(
    "file_format, on_disk, expected",
    [
        ("lvis", ["train2017/5.jpg", "a/five.png"], "train2017/5.jpg"),
        ("lvis", ["train2017/5.jpg"], "train2017/5.jpg"),
        ("lvis", ["a/five.png"], "a/five.png"),
        ("lvis", [], "train2017/5.jpg"),
        ("coco", ["train2017/5.jpg", "a/five.png"], "a/five.png"),
        ("coco", ["train2017/5.jpg"], "train2017/5.jpg"),
        ("coco", ["a/five.png"], "a/five.png"),
        ("coco", [], "a/five.png"),
    ],
)
def test_which_name_of_an_image_counts(tmp_path, file_format, on_disk, expected):
    data = small_set()
    for image in data["images"]:
        image["coco_url"] = f"http://host/x/train2017/{image['id']}.jpg"
    path, root = write_set(tmp_path, data)
    for name in on_disk:
        (tmp_path / "images" / name).touch()
    assert load_lvis_format(path, root, file_format=file_format)[0]["file_name"] == (
        f"{root}/{expected}"
    )


# ---- registered sets -------------------------------------------------------------------------


def test_get_records_checks_sets_that_detectron2_registered(tmp_path, caplog):
    data = small_set()
    annotation_of(data, 17)["bbox"] = [10, 10, 0, 5]
    path, root = write_set(tmp_path, data)
    register_coco_instances("theirs", {}, path, root)
    assert [len(r["annotations"]) for r in get_records("theirs")] == [1, 1]
    assert "skipped 1 annotation" in caplog.text
    assert "neg_category_ids" not in get_records("theirs")[0]
    assert MetadataCatalog.get("theirs").thing_classes == ["cat", "dog", "elk"]


def test_get_records_uses_a_sets_own_loader():
    records = [{"file_name": "x.png", "image_id": 1}]
    DatasetCatalog.register("their_own", lambda: records)
    assert list(get_records("their_own")) == records


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(ConfigError) as e:
        get_records("lvis_v1_trian")
    message = str(e.value)
    assert "unknown data set 'lvis_v1_trian'" in message
    assert "Did you mean 'lvis_v1_train'" in message and "DATASETS.LT.REGISTER" in message


@pytest.mark.parametrize("known", [["cat", "dog"], ["cat", "dog", "elk", "fox"]])
def test_a_class_list_of_another_length_than_the_known_one_is_an_error(tmp_path, known):
    path, root = write_set(tmp_path, small_set())
    register_lvis_instances("theirs", {"thing_classes": known}, path, root)
    with pytest.raises(DataError, match=f"lists 3 categories, but .* known to have {len(known)}"):
        get_records("theirs")


def test_other_category_ids_than_the_known_ones_are_an_error(tmp_path):
    path, root = write_set(tmp_path, small_set())
    id_map = {"thing_dataset_id_to_contiguous_id": {1: 0, 2: 1, 3: 2}}
    register_coco_instances("theirs", id_map, path, root)
    with pytest.raises(DataError, match="category ids are not those known for 'theirs'"):
        get_records("theirs")


def test_first_synonyms_are_a_known_class_list(tmp_path, caplog):
    data = small_set()
    data["categories"][0]["synonyms"] = ["wapiti", "elk"]
    path, root = write_set(tmp_path, data)
    register_lvis_instances("theirs", {"thing_classes": ["cat", "dog", "wapiti"]}, path, root)
    get_records("theirs")
    assert warnings_of(caplog) == []
    register_lvis_instances("others", {"thing_classes": ["cat", "dog", "emu"]}, path, root)
    get_records("others")
    assert "first at class 2: 'emu' and 'elk'" in caplog.text


def test_dataset_info(tmp_path):
    data = small_set()
    for category, letter in zip(data["categories"], "rfc", strict=True):
        category["frequency"] = letter
    path, root = write_set(tmp_path, data)
    register_lvis_format("mine", path, root)
    info = dataset_info("mine")
    assert (info.name, info.json_file, info.image_root) == ("mine", path, root)
    assert info.class_names == ["cat", "dog", "elk"]
    assert info.category_ids == [2, 4, 7]
    assert info.frequency == ["f", "c", "r"]


def test_frequency_is_none_unless_every_class_has_one(tmp_path, caplog):
    data = small_set()
    path, root = write_set(tmp_path, data)
    register_lvis_format("mine", path, root)
    assert dataset_info("mine").frequency is None
    assert warnings_of(caplog) == []
    data["categories"][0]["frequency"] = "r"
    write_set(tmp_path, data)
    assert dataset_info("mine").frequency is None
    assert "2 of 3 categories have no `frequency`" in caplog.text


def test_dataset_info_reads_a_file_once_until_it_changes(tmp_path, monkeypatch):
    data = small_set()
    path, root = write_set(tmp_path, data)
    register_lvis_format("mine", path, root)
    register_coco_instances("theirs", {}, path, root)
    reads = []
    stream = column_cache.stream_lists
    monkeypatch.setattr(column_cache, "stream_lists", lambda *a: reads.append(a) or stream(*a))
    get_records("mine")
    infos = [dataset_info(name) for name in ("mine", "theirs", "mine")]
    assert len(reads) == 1
    assert [info.class_names for info in infos] == [["cat", "dog", "elk"]] * 3
    infos[0].class_names.append("not shared")
    assert dataset_info("mine").class_names == ["cat", "dog", "elk"]
    changed = copy.deepcopy(data)
    changed["categories"][0]["name"] = "emus"
    write_set(tmp_path, changed)
    assert dataset_info("mine").class_names == ["cat", "dog", "emus"]
    assert len(reads) == 2


def test_dataset_info_of_a_set_without_annotation_file():
    DatasetCatalog.register("their_own", lambda: [])
    with pytest.raises(ConfigError, match="data set 'their_own' has no annotation file"):
        dataset_info("their_own")


def test_dataset_info_of_a_missing_file(tmp_path):
    register_lvis_format("mine", str(tmp_path / "gone.json"), str(tmp_path))
    with pytest.raises(MissingFileError, match="gone.json of data set 'mine' does not exist"):
        dataset_info("mine")
