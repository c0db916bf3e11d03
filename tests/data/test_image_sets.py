"""Registered data sets of image classification, and the generated one."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from lt_det.data.datasets.image_list import read_image_list
from lt_det.data.datasets.image_sets import (
    ImageSet,
    find_image_set,
    image_class_names,
    image_records,
    image_set_counts,
    register_image_set,
)
from lt_det.data.datasets.synthetic_images import ImagesSpec, generate_images, image_counts
from lt_det.data.examine import IMAGE_LIST, examine
from lt_det.errors import ConfigError, DataError, MissingFileError

SPEC = ImagesSpec(num_classes=9, largest=12, imbalance=6, val_per_class=2, size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_images(tmp_path_factory.mktemp("images") / "set", SPEC)


@pytest.fixture
def registered(folder, request):
    name = f"set_of_{request.node.name}"
    register_image_set(ImageSet(name, f"{folder}/train.txt", str(folder), f"{folder}/classes.txt"))
    return name


def test_a_registered_set_gives_records_counts_and_names(registered, folder):
    counts = image_set_counts(registered, 9, (3, 6))
    expected = image_counts(SPEC, "train")
    assert counts.images.tolist() == counts.instances.tolist() == expected.tolist()
    assert counts.groups == tuple("r" if n <= 3 else "c" if n <= 6 else "f" for n in expected)
    assert counts.names == tuple((folder / "classes.txt").read_text().split())
    records = image_records(registered)
    assert list(DatasetCatalog.get(registered)) == list(records)
    assert records[4]["file_name"] == str(folder / "train/00005.png")


def test_tools_open_a_registered_set_by_its_name(registered):
    found = examine(registered)
    assert found.kind == IMAGE_LIST and found.counts.source == registered
    assert found.counts.images.tolist() == image_counts(SPEC, "train").tolist()
    assert found.counts.names[0] == "striped_disc"


def test_labels_beyond_the_classes_and_other_class_lists_are_errors(registered):
    with pytest.raises(DataError, match=r"label . of train/.* is not in 0..3"):
        image_set_counts(registered, 4, (3, 6))
    with pytest.raises(ConfigError, match="NUM_CLASSES is 12.*names 9 classes"):
        image_class_names(registered, 12)


def test_a_set_without_names_numbers_its_classes(folder):
    register_image_set(ImageSet("nameless", f"{folder}/val.txt", str(folder)))
    assert image_class_names("nameless", 3) == ["class 0", "class 1", "class 2"]


def test_registering_again_is_fine_and_another_set_is_not(registered, folder):
    same = find_image_set(registered)
    register_image_set(same)
    with pytest.raises(ConfigError, match="is taken.*DATASETS.LT.REGISTER"):
        register_image_set(ImageSet(registered, "other.txt", str(folder)))


@pytest.mark.parametrize(
    "name,hint",
    [
        ("imagenet_lt_train", "prepare_image_lists.py imagenet_lt"),
        ("inat2018_val", "prepare_image_lists.py inat2018"),
        ("cifar100_lt_if50_train", "make_long_tailed.py cifar-100-python.tar.gz.*--imbalance 50"),
    ],
)
def test_what_is_missing_is_named_with_what_makes_it(name, hint, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(MissingFileError, match=f"(?s){tmp_path}.*{hint}.*DETECTRON2_DATASETS"):
        image_records(name)


def test_the_folder_of_the_usual_sets_follows_the_environment(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "places_lt").mkdir()
    (tmp_path / "places_lt" / "Places_LT_val.txt").write_text("train/00001.png 3\n")
    with pytest.raises(MissingFileError, match=f"image folder {tmp_path}/places of"):
        image_records("places_lt_val")
    (tmp_path / "places").symlink_to(folder)
    assert image_records("places_lt_val")[0]["label"] == 3


def test_generated_images_follow_their_specification(folder, tmp_path):
    for split, expected in (("train", image_counts(SPEC, "train")), ("val", np.full(9, 2))):
        images = read_image_list(folder / f"{split}.txt", num_classes=9)
        assert np.bincount(images.labels).tolist() == expected.tolist()
    assert image_counts(SPEC, "train").max() == 12 and image_counts(SPEC, "train").min() == 2
    pixels = np.asarray(Image.open(folder / "train/00001.png"))
    assert pixels.shape == (16, 16, 3) and pixels.std() > 10
    again = generate_images(tmp_path / "again", SPEC)
    assert (again / "train.txt").read_text() == (folder / "train.txt").read_text()
    assert np.array_equal(np.asarray(Image.open(again / "train/00001.png")), pixels)
    assert generate_images(folder, SPEC) == folder
    with pytest.raises(DataError, match="largest is 12 there, 300 is wanted"):
        generate_images(folder, ImagesSpec(num_classes=9))
