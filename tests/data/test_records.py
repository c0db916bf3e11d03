import copy
import pickle

import numpy as np
import pytest

from lt_det.data.datasets.lvis_format import load_records
from lt_det.data.records import (
    ColumnRecords,
    ListRecords,
    as_records,
    drop_unannotated,
    join_records,
)
from lt_det.errors import ConfigError, DataError
from tests.data.small_sets import random_set, write_set


def plain_set(tmp_path, seed=0, file_format="coco"):
    """A random set as a list of dicts and as columns; some images have crowds or nothing."""
    data = random_set(seed, coco=file_format == "coco", num_images=40)
    columns = load_records(*write_set(tmp_path, data), file_format=file_format, need_images=False)
    assert isinstance(columns, ColumnRecords)
    return [columns[i] for i in range(len(columns))], columns


def assert_same(records, expected, num_classes=9):
    """All that a Records says is what the dicts say."""
    assert len(records) == len(expected) and list(records) == expected
    assert records.widths.tolist() == [r["width"] for r in expected]
    assert records.heights.tolist() == [r["height"] for r in expected]
    counted = [[a for a in r["annotations"] if not a.get("iscrowd")] for r in expected]
    assert records.annotated().tolist() == [len(anns) > 0 for anns in counted]
    images, classes = records.pairs()
    assert images.tolist() == [i for i, anns in enumerate(counted) for _ in anns]
    assert classes.tolist() == [a["category_id"] for anns in counted for a in anns]
    sets = records.class_sets(num_classes)
    held = [sorted({a["category_id"] for a in anns}) for anns in counted]
    assert [sets[i].tolist() for i in range(len(sets))] == held
    instances = np.bincount(classes, minlength=num_classes)
    assert records.instance_counts(num_classes).tolist() == instances.tolist()
    assert records.has_image_lists() == any("neg_category_ids" in r for r in expected)


@pytest.mark.parametrize("file_format", ["lvis", "coco"])
def test_columns_lists_and_joined_sets_say_what_their_dicts_say(tmp_path, file_format):
    expected, columns = plain_set(tmp_path, file_format=file_format)
    (tmp_path / "b").mkdir()
    more, other = plain_set(tmp_path / "b", 1)
    assert_same(columns, expected)
    assert_same(ListRecords(expected), expected)
    assert_same(join_records([columns, more, other]), expected + more + more)


@pytest.mark.parametrize("make", ["columns", "list", "joined"])
def test_selecting_is_indexing(tmp_path, make):
    expected, columns = plain_set(tmp_path)
    records = {
        "columns": columns,
        "list": ListRecords(expected),
        "joined": join_records([columns.select(range(30)), expected[30:]]),
    }[make]
    rng = np.random.default_rng(0)
    for _ in range(3):
        indices = rng.permutation(len(expected))[: len(expected) * 2 // 3]
        records, expected = records.select(indices), [expected[i] for i in indices]
        assert_same(records, expected)
        assert_same(pickle.loads(pickle.dumps(records)), expected)
    assert_same(join_records([records, records]), expected * 2)
    assert len(records.select([])) == 0 and list(records.select([])) == []


def test_each_access_gives_a_dict_of_its_own(tmp_path):
    expected, columns = plain_set(tmp_path)
    for records in (columns, ListRecords(expected), join_records([columns, expected])):
        before = copy.deepcopy(records[3])
        record = records[3]
        record["annotations"][0]["bbox"][0] = -1
        record["annotations"].append("mine")
        assert records[3] == before


def test_indices_from_the_end_and_beyond_it(tmp_path):
    expected, columns = plain_set(tmp_path)
    for records in (columns, ListRecords(expected), join_records([columns, expected])):
        assert records[-1] == expected[-1] and records[np.int64(2)] == expected[2]
        for index in (len(records), -len(records) - 1):
            with pytest.raises(IndexError):
                records[index]


def test_dicts_may_lack_everything():
    bare = [{"file_name": "a"}, {"file_name": "b", "label": 3}]
    records = ListRecords(bare)
    assert list(records) == bare
    assert records.widths.tolist() == records.heights.tolist() == [0, 0]
    assert not records.annotated().any() and not records.has_image_lists()
    assert len(ListRecords([])) == 0 and as_records(records) is records


def test_images_without_annotations_are_left_out_as_in_detectron2(tmp_path):
    from detectron2.data.build import filter_images_with_only_crowd_annotations

    expected, columns = plain_set(tmp_path, 5)
    kept = filter_images_with_only_crowd_annotations(expected)
    assert 0 < len(kept) < len(expected)
    assert list(drop_unannotated(columns)) == kept
    assert list(drop_unannotated(ListRecords(expected))) == kept


def test_a_class_that_is_not_known_names_the_image():
    records = ListRecords(
        [{"file_name": "a", "image_id": 7, "annotations": [{"category_id": c}]} for c in (0, 3)]
    )
    for ask in (records.class_sets, records.instance_counts):
        with pytest.raises(DataError, match=r"category id 3 of image a \(image id 7\) is not in 0"):
            ask(3)


@pytest.mark.parametrize("make", ["columns", "list", "joined"])
def test_masks_are_checked_without_making_every_dict(tmp_path, make):
    data = random_set(2, coco=True, num_images=6)
    ids = sorted(image["id"] for image in data["images"])
    sizes = {image["id"]: [image["height"], image["width"]] for image in data["images"]}
    rle = {i: {"size": size, "counts": [size[0] * size[1]]} for i, size in sizes.items()}

    def check(mask_format):
        path, root = write_set(tmp_path, data)
        records = load_records(path, root, file_format="coco", need_images=False)
        if make == "list":
            records = ListRecords(list(records))
        elif make == "joined":
            records = join_records([records.select(range(2)), records.select(range(2, 6))])
        records.check_masks(mask_format)

    check("polygon")  # crowds in RLE are not trained on
    ann = next(a for a in data["annotations"] if a["image_id"] == ids[3] and not a["iscrowd"])
    ann["segmentation"] = rle[ids[3]]
    check("bitmask")
    with pytest.raises(ConfigError, match=f"'polygon' but image id {ids[3]} .*RLE"):
        check("polygon")
    other = next(a for a in data["annotations"] if a["image_id"] == ids[4] and not a["iscrowd"])
    other["segmentation"] = []
    with pytest.raises(DataError, match=f"image id {ids[4]} .*without a mask.*MASK_ON"):
        check("bitmask")
