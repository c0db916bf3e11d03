"""Records of a list file, and what is checked before training."""

import os
import pickle

import numpy as np
import pytest

from lt_det.data.datasets.image_list import ImageList
from lt_det.data.image_records import ImageListRecords, check_image_records
from lt_det.errors import DataError, MissingFileError

PATHS = ["a/one.jpg", "b/zwei öl.jpg", "a/three.png", "c/4.jpg"]


def records_of(paths=PATHS, labels=(0, 2, 0, 4), root="images"):
    return ImageListRecords(ImageList(list(paths), np.array(labels), "lists/train.txt"), root)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.jpg").write_bytes(b"")
    return tmp_path


def test_records_have_absolute_paths_ids_and_labels():
    records = records_of()
    root = os.path.abspath("images")
    assert list(records) == [
        {"file_name": f"{root}/{path}", "image_id": i, "label": label}
        for i, (path, label) in enumerate(zip(PATHS, (0, 2, 0, 4), strict=True))
    ]
    assert records[-1] == records[3]
    assert type(records[0]["label"]) is int
    with pytest.raises(IndexError):
        records[4]


def test_an_absolute_path_of_the_list_and_an_address_stay_as_they_are():
    assert records_of(["/x/y.jpg"], [0])[0]["file_name"] == "/x/y.jpg"
    assert records_of(["y.jpg"], [0], "s3://bucket/x")[0]["file_name"] == "s3://bucket/x/y.jpg"


def test_selected_images_keep_their_ids_also_after_pickling():
    chosen = pickle.loads(pickle.dumps(records_of().select([3, 1])))
    assert list(chosen) == [records_of()[3], records_of()[1]]
    assert chosen.labels.tolist() == [4, 2] and len(chosen) == 2
    assert list(chosen.select([1])) == [records_of()[1]]


def test_class_sets_hold_one_class_per_image():
    sets = records_of().class_sets(5)
    assert sets.image_counts().tolist() == [2, 0, 1, 0, 1]
    assert [sets[i].tolist() for i in range(4)] == [[0], [2], [0], [4]]


def test_the_digest_depends_on_paths_their_order_and_the_folder():
    digests = {
        records_of().digest(),
        records_of(root="elsewhere").digest(),
        records_of().select([1, 0, 2, 3]).digest(),
        records_of(["a/one.jpgb", "/zwei öl.jpg", *PATHS[2:]]).digest(),
    }
    assert len(digests) == 4
    assert records_of(labels=(1, 1, 1, 1)).digest() == records_of().digest()


def test_a_label_beyond_the_class_number_is_named(folder):
    message = r"train.txt line 4 .*label 4 of c/4.jpg is not in 0..3 \(4 classes\); 1 label"
    with pytest.raises(DataError, match=message):
        check_image_records(records_of(root=folder), 4)
    with pytest.raises(DataError, match=message):
        records_of().select([0, 3]).class_sets(4)


def test_a_missing_folder_and_a_missing_first_image_are_different_errors(folder):
    with pytest.raises(MissingFileError, match="image folder .*nowhere .*DATASETS.LT.REGISTER"):
        check_image_records(records_of(root=folder / "nowhere"), 5)
    with pytest.raises(MissingFileError, match="zwei öl.jpg, the first of .*does not exist"):
        check_image_records(records_of(root=folder).select([1, 0]), 5)


def test_classes_without_images_are_one_warning(folder, caplog):
    check_image_records(records_of(root=folder), 5)
    assert [r.message for r in caplog.records] == [
        "2 of 5 classes have no image in lists/train.txt: 1, 3"
    ]
    caplog.clear()
    names = [f"class{k}" for k in range(12)]
    check_image_records(records_of(root=folder), 12, class_names=names)
    assert "9 of 12 classes" in caplog.text
    assert "class1, class3, class5, class6, class7, ..." in caplog.text
    caplog.clear()
    check_image_records(records_of(root=folder), 12, may_be_empty=True)
    assert not caplog.records
