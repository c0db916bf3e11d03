"""The generated long-tailed set: reproducible, long-tailed by its law, true to its own pixels."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lt_det.data.datasets import synthetic
from lt_det.data.datasets import synthetic_drawing as drawing
from lt_det.data.datasets.lvis_format import load_lvis_format
from lt_det.data.datasets.synthetic import (
    SyntheticSpec,
    class_order,
    ensure_generated,
    generate,
    lvis_group,
    register_synthetic,
    train_image_counts,
)
from lt_det.data.datasets.synthetic_drawing import SHAPES, SURFACES
from lt_det.errors import DataError

SMALL = SyntheticSpec(num_train_images=80, num_val_images=24)
TINY = SyntheticSpec(num_train_images=6, num_val_images=2, imbalance=4.0)


@pytest.fixture(scope="module")
def small_root(tmp_path_factory) -> Path:
    return ensure_generated(tmp_path_factory.mktemp("small") / "set", SMALL)


def read(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"{split}.json").read_text())


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def scenes(spec: SyntheticSpec, split: str):
    """(image id, plan, pixels, objects) of every image, drawn again."""
    for index, plan in enumerate(synthetic._plan_split(spec, split), start=1):
        yield index, plan, *synthetic.render_scene(spec, split, index, plan)


# --- determinism ---------------------------------------------------------------------------------


def test_same_spec_gives_identical_files(tmp_path):
    generate(tmp_path / "a", TINY)
    generate(tmp_path / "b", TINY)
    files = digests(tmp_path / "a")
    assert files == digests(tmp_path / "b")
    assert len(files) == 8 + 3  # images, two annotation files, spec.json


def test_another_seed_changes_every_image_and_annotation_file(tmp_path):
    generate(tmp_path / "a", TINY)
    generate(tmp_path / "b", SyntheticSpec(**{**vars(TINY), "seed": 1}))
    a, b = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert a.keys() == b.keys()
    assert not set(a.values()) & set(b.values())


def test_an_image_depends_only_on_its_own_plan():
    """So that a change in one image cannot shift all the others."""
    plans = synthetic._plan_split(SMALL, "train")
    alone, _ = synthetic.render_scene(SMALL, "train", 5, plans[4])
    for index in (1, 2):
        synthetic.render_scene(SMALL, "train", index, plans[index - 1])
    again, _ = synthetic.render_scene(SMALL, "train", 5, plans[4])
    as_val, _ = synthetic.render_scene(SMALL, "val", 5, plans[4])
    np.testing.assert_array_equal(alone, again)
    assert alone.shape != as_val.shape or (alone != as_val).any()


def test_pixels_are_the_pinned_ones():
    """If this fails on purpose, raise GENERATOR_VERSION and update the digest."""
    digest = hashlib.sha256()
    for index, plan in enumerate(synthetic._plan_split(SyntheticSpec(), "val")[:8], start=1):
        digest.update(synthetic.render_scene(SyntheticSpec(), "val", index, plan)[0].tobytes())
    assert (synthetic.GENERATOR_VERSION, digest.hexdigest()[:16]) == (1, "9dd639c1070a4800")


# --- the long tail -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", [SyntheticSpec(), SyntheticSpec(num_train_images=400, imbalance=10.0, seed=3)]
)
def test_counts_follow_the_exponential_law(spec):
    counts = np.sort(train_image_counts(spec))[::-1]
    largest = 0.6 * spec.num_train_images
    expected = largest * np.exp(-np.log(spec.imbalance) * np.linspace(0, 1, 30))
    np.testing.assert_allclose(counts, expected, atol=0.5 + 1e-9)
    assert counts[0] == largest


def test_default_is_long_tailed_with_all_groups_populated():
    counts = train_image_counts(SyntheticSpec())
    assert (counts.max(), counts.min()) == (540, 3)
    assert counts.max() / counts.min() >= 100
    assert Counter(map(lvis_group, counts)) == {"f": 10, "c": 12, "r": 8}


def test_groups_change_at_the_thresholds_of_lvis():
    assert [lvis_group(n) for n in (1, 10, 11, 100, 101)] == ["r", "r", "c", "c", "f"]


def test_class_ids_do_not_give_the_frequency_away():
    orders = [class_order(SyntheticSpec(seed=seed)) for seed in range(5)]
    for order in orders:
        assert sorted(order) == list(range(30))
        ranks = np.argsort(order)
        assert abs(np.corrcoef(ranks, np.arange(30))[0, 1]) < 0.6
    assert len({tuple(order) for order in orders}) == 5


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_made_of_frequent_parts(seed):
    counts = train_image_counts(SyntheticSpec(seed=seed))
    by_group = {
        group: [divmod(c, len(SURFACES)) for c in range(30) if lvis_group(counts[c]) == group]
        for group in "rf"
    }
    for part in (0, 1):  # shape, surface
        assert {c[part] for c in by_group["r"]} <= {c[part] for c in by_group["f"]}
    assert not set(by_group["r"]) & set(by_group["f"])


def test_generated_counts_are_those_of_the_law(small_root):
    content = read(small_root, "train")
    pairs = {(a["category_id"], a["image_id"]) for a in content["annotations"]}
    counted = Counter(category for category, _ in pairs)
    law = train_image_counts(SMALL)
    assert {c + 1: int(n) for c, n in enumerate(law)} == counted


@pytest.mark.parametrize("split", ["train", "val"])
def test_category_fields_equal_a_recount_of_train(small_root, split):
    annotations = read(small_root, "train")["annotations"]
    instances = Counter(a["category_id"] for a in annotations)
    images = Counter(c for c, _ in {(a["category_id"], a["image_id"]) for a in annotations})
    categories = read(small_root, split)["categories"]
    assert [c["id"] for c in categories] == list(range(1, 31))
    assert len({c["name"] for c in categories}) == 30
    for category in categories:
        assert category["image_count"] == images[category["id"]]
        assert category["instance_count"] == instances[category["id"]]
        assert category["frequency"] == lvis_group(images[category["id"]])


def test_val_is_balanced_and_measures_every_class_on_fifteen_objects():
    plans = synthetic._plan_split(SyntheticSpec(), "val")
    instances = Counter(c for plan in plans for c, annotated in plan.objects if annotated)
    images = Counter(c for plan in plans for c in {c for c, known in plan.objects if known})
    assert len(set(images.values())) == 1 and len(images) == 30
    assert min(instances.values()) >= 15


# --- masks, boxes, polygons ----------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_describe_the_visible_masks(small_root, split):
    content = read(small_root, split)
    by_image: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    for index, _, _, objects in scenes(SMALL, split):
        annotated = [item for item in objects if item.annotated]
        assert len(annotated) == len(by_image.get(index, []))
        for item, annotation in zip(annotated, by_image.get(index, []), strict=True):
            check_annotation(annotation, item)


def check_annotation(annotation: dict, item: drawing.SceneObject) -> None:
    height, width = item.mask.shape
    rows, columns = np.nonzero(item.mask)
    x, y, w, h = annotation["bbox"]
    assert (x, x + w) == (columns.min(), columns.max() + 1)
    assert (y, y + h) == (rows.min(), rows.max() + 1)
    assert annotation["area"] == len(rows) >= 40
    assert annotation["category_id"] == item.class_index + 1
    polygons = annotation["segmentation"]
    assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    overlap = np.count_nonzero(item.mask & (drawn > 0)) / np.count_nonzero(item.mask | (drawn > 0))
    assert overlap > 0.97


def test_objects_hide_each_other_but_never_more_than_half():
    hidden = 0
    for _, _, _, objects in scenes(SMALL, "val"):
        assert sum(item.mask.astype(int) for item in objects).max() == 1
        for item in objects:
            whole = np.count_nonzero(item.coverage >= 8)
            assert item.mask.sum() >= 0.5 * whole
            hidden += item.mask.sum() < whole
    assert hidden > 0


def test_sizes_of_images_and_objects_vary():
    drawn = list(scenes(SMALL, "train"))
    assert len({pixels.shape for _, _, pixels, _ in drawn}) > 40
    for _, _, pixels, _ in drawn:
        assert pixels.dtype == np.uint8 and all(112 <= side <= 144 for side in pixels.shape[:2])
    areas = [np.count_nonzero(item.coverage >= 8) for *_, objects in drawn for item in objects]
    assert np.percentile(areas, 90) > 4 * np.percentile(areas, 10)


def test_an_outline_covers_its_area():
    """A disc of 40 x 30 pixels covers pi / 4 * 40 * 30, whatever its position and angle."""
    outline = drawing.OUTLINES["disc"]
    for angle, center in ((0.0, (40.0, 40.0)), (1.0, (35.3, 44.7))):
        pose = drawing._Pose(np.array(center), np.array([40.0, 30.0]), angle)
        coverage = drawing._coverage(pose.to_pixels(outline), 80, 80)
        assert coverage.sum() / 16 == pytest.approx(np.pi / 4 * 1200, rel=0.01)
        mean = (np.indices((80, 80)) * coverage).sum(axis=(1, 2)) / coverage.sum() + 0.5
        np.testing.assert_allclose(mean[::-1], center, atol=0.05)


@pytest.mark.parametrize("name", SHAPES)
def test_an_outline_is_one_piece_that_fills_its_box(name):
    outline = drawing.OUTLINES[name]
    assert np.abs(outline).max() < 0.56
    assert np.ptp(outline, axis=0).min() > 0.75
    pose = drawing._Pose(np.array([24.0, 24.0]), np.array([20.0, 20.0]), 0.4)
    mask = drawing._coverage(pose.to_pixels(outline), 48, 48) >= 8
    assert len(drawing._border_loops(mask)) == 1


def test_polygons_of_a_rectangle_cut_only_its_corners():
    mask = np.zeros((9, 12), dtype=bool)
    mask[2:7, 3:10] = True
    (polygon,) = drawing.mask_to_polygons(mask)
    corners = {(3.5, 2), (9.5, 2), (10, 2.5), (10, 6.5), (9.5, 7), (3.5, 7), (3, 6.5), (3, 2.5)}
    assert {tuple(point) for point in np.array(polygon).reshape(-1, 2).tolist()} == corners
    assert len(polygon) == 16


def test_border_loops_tell_holes_parts_and_diagonals():
    ring = np.ones((5, 5), dtype=bool)
    ring[2, 2] = False
    assert sorted(map(drawing._loop_area, drawing._border_loops(ring))) == [-1, 25]
    assert [drawing._loop_area(x) for x in drawing._border_loops(np.eye(3, dtype=bool))] == [3]
    parts = np.array([[1, 1, 0, 1]], dtype=bool)
    assert sorted(map(drawing._loop_area, drawing._border_loops(parts))) == [1, 2]
    assert drawing._border_loops(np.zeros((3, 3), dtype=bool)) == []


# --- files and federated lists -------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_image_records_match_the_files(small_root, split):
    for image in read(small_root, split)["images"]:
        with Image.open(small_root / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert picture.mode == "RGB"
        assert image["coco_url"].split("/")[-2:] == image["file_name"].split("/")


@pytest.mark.parametrize(("split", "num_negatives"), [("train", 8), ("val", 16)])
def test_federated_lists_agree_with_what_is_drawn(small_root, split, num_negatives):
    content = read(small_root, split)
    annotated = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    for image, (index, _, _, objects) in zip(content["images"], scenes(SMALL, split), strict=True):
        present = {item.class_index + 1 for item in objects}
        positive = {c for c in present if (index, c) in annotated}
        missed = {item.class_index + 1 for item in objects if not item.annotated}
        negative = set(image["neg_category_ids"])
        not_exhaustive = set(image["not_exhaustive_category_ids"])
        assert image["id"] == index
        assert len(negative) == len(image["neg_category_ids"]) == num_negatives
        assert not negative & present
        assert not_exhaustive == missed & positive


def test_few_objects_are_left_out():
    plans = synthetic._plan_split(SyntheticSpec(), "train")
    not_exhaustive = sum(bool(plan.not_exhaustive) for plan in plans) / len(plans)
    unlisted = 0
    for plan in plans:
        positive = {c for c, annotated in plan.objects if annotated}
        unlisted += bool({c for c, _ in plan.objects} - positive)
    assert 0.02 < not_exhaustive < 0.09
    assert 0.02 < unlisted / len(plans) < 0.09


# --- generation once, whole, and only the right one ----------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch, error):
    render, calls = synthetic.render_scene, []

    def stop_at_the_fourth(*args):
        calls.append(args)
        if len(calls) == 4:
            raise error("stop")
        return render(*args)

    monkeypatch.setattr(synthetic, "render_scene", stop_at_the_fourth)
    with pytest.raises(error):
        ensure_generated(tmp_path / "set", TINY)
    assert list(tmp_path.iterdir()) == []
    ensure_generated(tmp_path / "set", TINY)
    assert len(digests(tmp_path / "set")) == 11


def test_root_appears_only_when_everything_is_written(tmp_path, monkeypatch):
    """What a kill would leave: at the last step before the rename there is still no root."""
    rename = synthetic.os.rename

    def check_and_rename(source, target):
        assert not Path(target).exists()
        assert len(digests(Path(source))) == 11
        rename(source, target)

    monkeypatch.setattr(synthetic.os, "rename", check_and_rename)
    generate(tmp_path / "set", TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_at_once_end_with_one_set(tmp_path):
    root = tmp_path / "deep" / "set"
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: ensure_generated(root, TINY), range(2))) == [root, root]
    assert [path.name for path in root.parent.iterdir()] == ["set"]
    generate(tmp_path / "alone", TINY)
    assert digests(root) == digests(tmp_path / "alone")


def test_the_slower_of_two_keeps_the_set_of_the_faster(tmp_path, monkeypatch):
    root, write = tmp_path / "set", synthetic._write_all

    def overtaken(folder, spec):
        write(folder, spec)
        if not root.exists():
            write(root, spec)
            (root / "mark").touch()

    monkeypatch.setattr(synthetic, "_write_all", overtaken)
    assert ensure_generated(root, TINY) == root
    assert (root / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_existing_set_is_not_touched(tmp_path):
    root = ensure_generated(tmp_path / "set", TINY)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert ensure_generated(root, TINY) == root
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(FileExistsError, match=str(root)):
        generate(root, TINY)


def test_another_spec_on_disk_is_an_error_that_names_both(tmp_path):
    root = ensure_generated(tmp_path / "set", TINY)
    other = SyntheticSpec(**{**vars(TINY), "seed": 7, "imbalance": 5.0})
    with pytest.raises(DataError) as error:
        ensure_generated(root, other)
    message = str(error.value)
    assert str(root / "spec.json") in message
    assert "seed is 0 there, 7 is wanted" in message
    assert "imbalance is 4.0 there, 5.0 is wanted" in message
    assert "num_classes" not in message


def test_an_older_generator_on_disk_is_an_error(tmp_path, monkeypatch):
    root = ensure_generated(tmp_path / "set", TINY)
    monkeypatch.setattr(synthetic, "GENERATOR_VERSION", 99)
    with pytest.raises(DataError, match="generator_version is 1 there, 99 is wanted"):
        ensure_generated(root, TINY)


def test_a_folder_of_something_else_is_an_error(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(DataError, match="no spec.json"):
        ensure_generated(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 31}, "num_classes must be a multiple of 3 from 9 to 30, got 31"),
        ({"num_val_images": 0}, "got 900 and 0"),
        ({"image_size": 64}, "at least 96 pixels, got 64"),
        ({"head_share": 1.5}, r"head_share must be in \(0, 0.8\], got 1.5"),
        ({"imbalance": 0.5}, "imbalance must be at least 1, got 0.5"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_an_impossible_spec_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        SyntheticSpec(**change)


def test_fewer_classes_and_other_sizes_work(tmp_path):
    spec = SyntheticSpec(
        num_classes=9, num_train_images=20, num_val_images=4, image_size=96, imbalance=10.0
    )
    generate(tmp_path / "set", spec)
    content = read(tmp_path / "set", "train")
    assert [c["image_count"] for c in content["categories"]] == train_image_counts(spec).tolist()
    assert all(84 <= i[side] <= 108 for i in content["images"] for side in ("width", "height"))


# --- registration --------------------------------------------------------------------------------


def test_registration_generates_nothing_until_the_first_load(tmp_path, monkeypatch):
    calls = {}

    def record(name, json_file, image_root, *, file_format, prepare):
        assert file_format == "lvis"
        calls[name] = (Path(json_file), Path(image_root), prepare)

    monkeypatch.setattr(synthetic, "register_lvis_format", record)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_synthetic(spec=TINY)
    assert set(calls) == {"lt_synthetic_train", "lt_synthetic_val"}
    assert list(tmp_path.iterdir()) == []
    for json_file, image_root, prepare in calls.values():
        prepare()
        assert image_root == tmp_path / "lt_synthetic"
        for image in json.loads(json_file.read_text())["images"]:
            assert (image_root / image["file_name"]).is_file()


def test_the_loader_of_lvis_files_accepts_the_set(small_root):
    records = load_lvis_format(str(small_root / "annotations" / "train.json"), str(small_root))
    content = read(small_root, "train")
    assert len(records) == len(content["images"])
    assert sum(len(r["annotations"]) for r in records) == len(content["annotations"])
    assert all(Path(r["file_name"]).is_file() for r in records)


def test_the_default_folder_is_detectron2s(monkeypatch):
    roots = []
    monkeypatch.setattr(synthetic, "register_lvis_format", lambda *args, **_: roots.append(args[2]))
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/sets")
    register_synthetic()
    assert roots == [Path("~/sets/lt_synthetic").expanduser()] * 2
