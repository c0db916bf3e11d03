"""The generated set for semantic segmentation."""

import numpy as np
import pytest
from PIL import Image

from lt_det.data.datasets.sem_seg_sets import (
    SemSegSet,
    find_sem_seg_set,
    register_sem_seg_set,
    sem_seg_class_names,
    sem_seg_records,
)
from lt_det.data.datasets.synthetic import SyntheticSpec, write_spec
from lt_det.data.datasets.synthetic_sem_seg import (
    BACKGROUNDS,
    SPEC,
    class_names,
    draw_image,
    generate_sem_seg,
    object_image_counts,
    plan_split,
)
from lt_det.data.sem_seg_counts import sem_seg_class_counts
from lt_det.errors import DataError

TINY = SyntheticSpec(
    num_classes=9, num_train_images=24, num_val_images=8, image_size=96, imbalance=10.0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_sem_seg(tmp_path_factory.mktemp("sem_seg") / "set", TINY)


def test_the_default_has_a_long_tail_and_a_balanced_test_set():
    counts = object_image_counts(SPEC, "train")
    assert len(class_names()) == 15 and class_names()[:3] == ["ground", "sky", "water"]
    assert counts.max() == 240 and counts.min() == 4
    assert set(object_image_counts(SPEC, "val")) == {20}
    for split in ("train", "val"):
        plan = plan_split(SPEC, split)
        found = np.bincount(np.concatenate([np.array(p, int) for p in plan]), minlength=12)
        assert found.tolist() == object_image_counts(SPEC, split).tolist()
        assert all(len(set(p)) == len(p) <= 6 for p in plan)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_files_hold_what_the_specification_says(folder, split, tmp_path):
    register_sem_seg_set(
        SemSegSet(
            f"drawn_maps_{split}",
            f"{folder}/images/{split}",
            f"{folder}/labels/{split}",
            f"{folder}/classes.txt",
            zero_is_unlabelled=True,
        )
    )
    counts = sem_seg_class_counts([f"drawn_maps_{split}"], cache_dir=str(tmp_path))
    assert counts.names == tuple(class_names(TINY))
    assert counts.images[3:].tolist() == object_image_counts(TINY, split).tolist()
    assert counts.num_images == len(plan_split(TINY, split)) and counts.empty_images == 0
    assert counts.images[0] == counts.num_images > counts.images[1] > counts.images[2]
    for record in sem_seg_records(f"drawn_maps_{split}"):
        values = np.asarray(Image.open(record["sem_seg_file_name"]))
        assert values.shape == np.asarray(Image.open(record["file_name"])).shape[:2]
        # The borders of objects, and at most one object, are unlabelled.
        assert (values == 0).mean() < 0.35


def test_an_image_follows_from_seed_split_and_number(folder):
    plan = plan_split(TINY, "train")
    for index in (1, 7):
        pixels, values = draw_image(TINY, "train", index, plan[index - 1])
        stem = f"train/{index:05d}.png"
        assert np.array_equal(np.asarray(Image.open(folder / "images" / stem)), pixels)
        assert np.array_equal(np.asarray(Image.open(folder / "labels" / stem)), values)
    other = draw_image(TINY, "val", 1, plan[0])[0]
    assert not np.array_equal(other[:80, :80], draw_image(TINY, "train", 1, plan[0])[0][:80, :80])


def test_labels_lie_where_things_are_drawn():
    """Sky above, water below; an object has pixels unlike its surroundings."""
    heights = {1: [], 2: []}
    for index in range(1, 40):
        pixels, values = draw_image(SPEC, "train", index, [])
        for k, rows in heights.items():
            place = np.argwhere(values == k + 1)
            if len(place):
                rows.append(place[:, 0].mean() / len(values))
                # Both are blue. Sums of the channels: sky from 384, water up to about 280.
                mean = pixels[values == k + 1].mean(0)
                assert mean[2] > mean[0] and (mean.sum() > 330) == (k == 1)
    assert heights[1] and max(heights[1]) < 0.35
    assert heights[2] and min(heights[2]) > 0.7
    with_object, values = draw_image(SPEC, "train", 3, [5])
    objects = values == len(BACKGROUNDS) + 5 + 1
    # Dotted discs are dark and light: they vary more than the ground behind them.
    assert objects.sum() > 100
    assert with_object[objects].std() > 1.5 * with_object[values == 1].std()


def test_it_is_generated_when_it_is_first_used(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert find_sem_seg_set("lt_synthetic_sem_seg_train").zero_is_unlabelled
    assert not any(tmp_path.iterdir())
    with pytest.raises(DataError, match="num_classes is 9 there, 12 is wanted"):
        (tmp_path / "lt_synthetic_sem_seg").symlink_to(folder)
        sem_seg_class_names("lt_synthetic_sem_seg_train")
    (tmp_path / "lt_synthetic_sem_seg").unlink()
    monkeypatch.setattr("lt_det.data.datasets.synthetic_sem_seg._write", write_marker)
    assert sem_seg_class_names("lt_synthetic_sem_seg_val") == ["made"]
    assert sem_seg_class_names("lt_synthetic_sem_seg_val") == ["made"]  # not made again


def write_marker(place, spec):
    place.mkdir()
    (place / "classes.txt").write_text("made\n")
    write_spec(place, spec)
