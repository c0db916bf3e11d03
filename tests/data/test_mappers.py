"""Class lists on their way from the record to the targets of the model."""

import pytest
import torch

from lt_det.data import register_from_config
from lt_det.data.build import build_train_loader, training_records
from lt_det.data.mappers import LongTailDatasetMapper, image_class_lists
from lt_det.engine import load_config


@pytest.fixture
def cfg(tiny_options):
    cfg = load_config("configs/base/lvis_mask_rcnn_r50_fpn.yaml", tiny_options)
    cfg.MODEL.LT.FEDERATED.MODE = "annotated"
    cfg.DATALOADER.NUM_WORKERS = 1
    register_from_config(cfg)
    return cfg


def test_lists_of_a_record():
    record = {
        "annotations": [{"category_id": 5}, {"category_id": 2}, {"category_id": 5}],
        "neg_category_ids": [7, 1],
        "not_exhaustive_category_ids": [2],
    }
    assert [x.tolist() for x in image_class_lists(record)] == [[2, 5], [1, 7], [2]]
    record["annotations"] = []
    assert [x.tolist() for x in image_class_lists(record)] == [[], [1, 7], [2]]


def test_a_record_in_coco_form_has_none():
    assert image_class_lists({"annotations": [{"category_id": 5, "iscrowd": 0}]}) is None


def test_lists_come_through_the_loader_with_as_many_entries_as_instances(cfg):
    records = {record["image_id"]: record for record in training_records(cfg)}
    for sample in next(iter(build_train_loader(cfg))):
        field = sample["instances"].image_classes
        assert len(field) == len(sample["instances"]) > 0
        expected = image_class_lists(records[sample["image_id"]])
        for ours, right in zip(field.lists, expected, strict=True):
            assert torch.equal(ours, right)


def test_a_crop_without_objects_keeps_the_lists_of_the_image(cfg):
    record = dict(training_records(cfg)[0])
    mapper = LongTailDatasetMapper(cfg, is_train=True)
    # A box outside of the image is what a crop leaves of an object beside it.
    outside = dict(record["annotations"][0], bbox=[-50.0, -50.0, 20.0, 20.0])
    outside["segmentation"] = [[-50.0, -50.0, -30.0, -50.0, -30.0, -30.0]]
    instances = mapper(dict(record, annotations=[outside]))["instances"]
    assert len(instances) == len(instances.image_classes) == 0
    assert instances.image_classes.positive.tolist() == [outside["category_id"]]


def test_without_the_mode_there_is_no_field(cfg):
    cfg.MODEL.LT.FEDERATED.MODE = ""
    sample = LongTailDatasetMapper(cfg, is_train=True)(training_records(cfg)[0])
    assert not sample["instances"].has("image_classes")


def test_a_set_without_lists_is_worth_a_warning(cfg, monkeypatch, caplog):
    records = training_records(cfg)
    build_train_loader(cfg)
    assert "FEDERATED" not in caplog.text
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    bare = [{k: v for k, v in r.items() if k not in keys} for r in records]
    monkeypatch.setattr("lt_det.data.build.training_records", lambda cfg: bare)
    build_train_loader(cfg)
    assert "MODEL.LT.FEDERATED.MODE is 'annotated' but no image" in caplog.text
