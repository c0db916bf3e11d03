"""Samples of semantic segmentation, and files that cannot be used."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from PIL import Image

from lt_det.data.build import SeededDataset, seeded_random
from lt_det.data.datasets.sem_seg_sets import sem_seg_records
from lt_det.data.samplers import SampleKey
from lt_det.data.sem_seg_mapper import LongTailSemSegMapper
from lt_det.engine import load_config
from lt_det.errors import ConfigError, DataError
from tests.data.small_sem_seg import MAPS, register_sem_seg, write_sem_seg


@pytest.fixture
def records(tmp_path):
    return sem_seg_records(register_sem_seg("mine", write_sem_seg(tmp_path)))


def plain_mapper(is_train=True, steps=(), num_classes=3):
    return LongTailSemSegMapper(
        is_train, augmentations=list(steps), image_format="RGB", num_classes=num_classes
    )


def classes_of(name):
    values = np.array(MAPS[name], dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return np.where(np.isin(values, (0, 255)), 255, values.astype(int) - 1)


def test_a_sample_holds_pixels_and_classes(records):
    for record, name in zip(records, MAPS, strict=True):
        sample = plain_mapper()(record)
        assert sample["sem_seg"].dtype == torch.int64 and sample["image"].dtype == torch.uint8
        assert sample["sem_seg"].tolist() == classes_of(name).tolist()
        pixels = np.asarray(Image.open(record["file_name"]))
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels)
        assert (sample["height"], sample["width"]) == (8, 16)
        assert {k: sample[k] for k in record} == record
        assert sample["image"].is_contiguous() and sample["sem_seg"].is_contiguous()


def test_testing_does_not_open_the_label_map(records):
    record = {**records[0], "sem_seg_file_name": "/nowhere.png"}
    sample = plain_mapper(is_train=False, steps=[T.Resize((4, 9))])(record)
    assert "sem_seg" not in sample and sample["image"].shape == (3, 4, 9)
    assert (sample["height"], sample["width"]) == (8, 16)
    assert sample["sem_seg_file_name"] == "/nowhere.png"


def test_image_and_classes_move_together(records):
    """Image values are 10 x label values, so each pixel tells its class."""
    options = ["INPUT.MIN_SIZE_TRAIN", "(8,)", "DATALOADER.LT.SEM_SEG.RATIO", "(1.0, 4.0)"]
    options += ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute"]
    options += ["INPUT.CROP.SIZE", "(6, 6)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"]
    mapper, views = LongTailSemSegMapper(load_config("", options), is_train=True), set()
    with seeded_random(0):
        for _ in range(60):
            sample = mapper(records[0])
            assert sample["image"].shape == (3, 6, 6) and sample["sem_seg"].shape == (6, 6)
            pixels, classes = sample["image"][0].int(), sample["sem_seg"]
            expected = torch.where(classes == 255, 0, 10 * (classes + 1))
            # Resizing blends pixels at the border of a class; inside they are exact. Values of
            # neighbours differ by at most 20.
            assert (pixels - expected).abs().max() <= 10
            views.add(classes.numpy().tobytes())
    assert len(views) > 10


def test_samples_are_detectron2s(tmp_path):
    """In its own convention and without what Detectron2's mapper lacks."""
    rng = np.random.default_rng(0)
    maps = {"x": rng.integers(0, 3, (9, 14)), "y": np.repeat([[255, 2]], 7, 1)}
    name = register_sem_seg("plain", write_sem_seg(tmp_path, maps), zero_is_unlabelled=False)
    options = ["INPUT.MIN_SIZE_TRAIN", "(20,)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"]
    cfg = load_config("", options)
    ours = LongTailSemSegMapper(cfg, is_train=True)
    theirs = DatasetMapper(
        True, augmentations=[T.ResizeShortestEdge(20, 1333), T.RandomFlip()], image_format="BGR"
    )
    flipped = set()
    for k in range(12):
        for record in sem_seg_records(name):
            with seeded_random(k):
                a = ours(record)
            for seed in range(12):  # the flips are drawn from other numbers
                with seeded_random(seed):
                    b = theirs(record)
                if torch.equal(a["image"], b["image"]):
                    break
            assert torch.equal(a["image"], b["image"]) and torch.equal(a["sem_seg"], b["sem_seg"])
            flipped.add((record["file_name"], a["image"].numpy().tobytes()))
    assert len(flipped) == 4  # both files, both ways


def test_a_turned_photograph_fits_its_upright_label_map(tmp_path):
    folder = write_sem_seg(tmp_path, {"x": [[1, 2, 3], [1, 1, 1]]}, suffix=".jpg")
    path = folder / "images" / "x.jpg"
    image = Image.open(path).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    image.save(path, exif=exif, quality=100, subsampling=0)
    assert Image.open(path).size == (8, 12)
    sample = plain_mapper()(sem_seg_records(register_sem_seg("turned", folder))[0])
    assert sample["image"].shape[1:] == sample["sem_seg"].shape == (8, 12)
    expected = 10 * (sample["sem_seg"] + 1)
    assert (sample["image"][0] - expected).abs().max() <= 6  # twice through JPEG


# ---- files that cannot be used ---------------------------------------------------------------


def save(path, array):
    Image.fromarray(array).save(path)


BAD = [
    ("labels/a.png", np.full((8, 16), 4, np.uint8), "labels/a.png: value 4 is .*of 3 classes"),
    ("labels/a.png", np.ones((16, 8), np.uint8),
     "labels/a.png has 8 x 16 pixels, its image .*images/a.png 16 x 8"),
    ("labels/a.png", np.ones((8, 16), np.uint16), "labels/a.png: has mode I;16"),
    ("labels/a.png", np.ones((8, 16, 3), np.uint8), "labels/a.png: has mode RGB"),
    ("images/a.png", b"\x89PNG\r\n\x1a\n cut off", "cannot use image .*images/a.png: "),
    ("images/a.png", None, "cannot use image .*images/a.png: .*No such file"),
    ("labels/a.png", None, "label map .*labels/a.png: cannot be read.*No such file"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, message", BAD)
def test_a_file_that_cannot_be_used_is_named_or_skipped(records, tmp_path, name, content, message):
    if content is None:
        (tmp_path / name).unlink()
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        save(tmp_path / name, content)
    key = SampleKey(epoch=0, position=0, index=0)
    with pytest.raises(DataError, match=message):
        SeededDataset(records, plain_mapper())[key]
    skipping = SeededDataset(records, plain_mapper(), bad_image="skip")
    assert skipping[key]["file_name"] == records[1]["file_name"] and skipping.skipped == 1


def test_another_value_for_ignored_pixels_is_an_error():
    cfg = load_config("", ["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"])
    with pytest.raises(ConfigError, match="SEM_SEG_HEAD.IGNORE_VALUE is 0; .* are 255"):
        LongTailSemSegMapper(cfg, is_train=True)
