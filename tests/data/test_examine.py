"""One function that opens data of any form."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from lt_det.data import class_counts, register_lvis_format
from lt_det.data.class_counts import fingerprint_of, get_class_counts
from lt_det.data.class_report import class_report, class_table, shown_classes, summary_text
from lt_det.data.examine import examine, guess_format
from lt_det.errors import ConfigError, DataError, MissingFileError
from tests.data.small_sets import annotation, random_set, small_set, write_set


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is kept beyond the test."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))


@pytest.fixture
def json_file(tmp_path):
    """1 cat, 3 dogs in one image, no elk, a crowd; 3 images, one of them with the crowd alone."""
    data = small_set()
    data["images"].append({"id": 1, "width": 50, "height": 50, "file_name": "a/one.png"})
    data["annotations"] = [annotation(1, 5, 2)] + [annotation(i, 9, 4) for i in (2, 3, 4)]
    data["annotations"].append(annotation(5, 1, 2, iscrowd=1))
    (tmp_path / "json").mkdir()
    return write_set(tmp_path / "json", data)[0]


@pytest.fixture
def maps(tmp_path):
    """Two label maps of the classes 0 and 2, one of them with an ignored pixel; an empty one."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for name, pixels in {"a": [0, 2, 2], "b": [255, 2, 2], "c": [255] * 3}.items():
        Image.fromarray(np.array([pixels], dtype=np.uint8)).save(folder / f"{name}.png")
    return str(folder)


@pytest.fixture
def list_file(tmp_path):
    """120 images of class 0, 50 of class 1, 5 of class 3."""
    path = tmp_path / "train.txt"
    labels = [0] * 120 + [1] * 50 + [3] * 5
    path.write_text("".join(f"{i}.jpg {k}\n" for i, k in enumerate(labels)))
    return str(path)


def lists(sets):
    return [sets[i].tolist() for i in range(len(sets))]


# ---- kinds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_name", [False, True])
def test_annotations(json_file, as_name):
    if as_name:
        register_lvis_format("mine", json_file, "/nowhere", file_format="coco")
    target = "mine" if as_name else json_file
    found = examine(target)
    assert found.kind == "annotations" and found.counts.source == target
    assert found.counts.names == ("cat", "dog", "elk")
    assert found.counts.images.tolist() == [1, 1, 0]
    assert found.counts.instances.tolist() == [1, 3, 0]
    assert found.counts.pixels is None
    assert found.counts.num_images == 3 and found.counts.empty_images == 1
    assert lists(found.class_sets) == [[], [0], [1]]  # by image id
    assert found.amount_of_pair.tolist() == [1, 3]
    assert list(found.amounts) == ["images", "instances"]


def test_label_maps(maps, tmp_path):
    found = examine(maps)
    assert found.kind == "label maps" and found.counts.source == maps
    assert found.counts.names == ("class 0", "class 1", "class 2")
    assert found.counts.images.tolist() == [1, 0, 2]
    assert found.counts.pixels.tolist() == [1, 0, 4]
    assert found.counts.instances is None
    assert found.counts.num_images == 3 and found.counts.empty_images == 1
    assert lists(found.class_sets) == [[0, 2], [2], []]
    assert found.amount_of_pair.tolist() == [1, 2, 2]
    assert list(found.amounts) == ["images", "pixels"]
    (tmp_path / "names.txt").write_text("sky\nsea\n")
    named = examine(maps, class_file=tmp_path / "names.txt", zero_is_unlabelled=True)
    assert named.counts.names == ("sky", "sea")
    assert named.counts.pixels.tolist() == [0, 4]


def test_list_file(list_file, tmp_path):
    found = examine(list_file)
    assert found.kind == "image list"
    assert found.counts.images.tolist() == found.counts.instances.tolist() == [120, 50, 0, 5]
    assert found.counts.num_images == 175 and found.counts.empty_images == 0
    assert found.class_sets.image_counts().tolist() == [120, 50, 0, 5]
    assert found.amount_of_pair.tolist() == [1] * 175
    assert list(found.amounts) == ["images"]
    (tmp_path / "names.json").write_text(json.dumps(["a", "b", "c", "d", "e"]))
    named = examine(list_file, class_file=tmp_path / "names.json")
    assert named.counts.names == tuple("abcde") and named.counts.images[4] == 0


def test_a_registered_set_of_label_maps(maps, tmp_path):
    files = [f"{maps}/b.png", f"{maps}/a.png"]
    DatasetCatalog.register("scenes", lambda: [{"sem_seg_file_name": file} for file in files])
    MetadataCatalog.get("scenes").stuff_classes = ["wall", "door", "lamp"]
    found = examine("scenes", cache_dir=str(tmp_path / "cache"))
    assert found.kind == "label maps" and found.counts.names == ("wall", "door", "lamp")
    assert lists(found.class_sets) == [[2], [0, 2]]
    DatasetCatalog.register("gone", lambda: open("/nowhere/labels"))
    MetadataCatalog.get("gone").stuff_classes = ["wall"]
    with pytest.raises(MissingFileError, match="'gone': /nowhere/labels .*DETECTRON2_DATASETS"):
        examine("gone")


def test_a_set_with_its_own_loader():
    DatasetCatalog.register("own", lambda: [{"annotations": [{"category_id": 1}]}, {}])
    MetadataCatalog.get("own").thing_classes = ["a", "b"]
    found = examine("own")
    assert found.counts.images.tolist() == [0, 1] and lists(found.class_sets) == [[1], []]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("coco", [False, True])
def test_class_sets_and_counts_agree(tmp_path, seed, coco):
    path, root = write_set(tmp_path, random_set(seed, coco=coco))
    found = examine(path)
    assert guess_format(path) == ("coco" if coco else "lvis")
    assert found.class_sets.image_counts().tolist() == found.counts.images.tolist()
    assert (found.class_sets.sizes == 0).sum() == found.counts.empty_images
    register_lvis_format("same", path, root, file_format="coco" if coco else "lvis")
    assert found.counts.fingerprint == get_class_counts("same").fingerprint


def test_fingerprints_tell_pixels_from_instances():
    images, more = np.array([1, 2]), np.array([3, 4])
    prints = {
        fingerprint_of("ab", images, more),
        fingerprint_of("ab", images, None, more),
        fingerprint_of("ab", images, images),
    }
    assert len(prints) == 3


# ---- form of annotation files ----------------------------------------------------------------


def test_the_form_may_be_given(json_file):
    # In LVIS form an annotation that is marked as a crowd is skipped by the loader as well.
    assert examine(json_file, file_format="lvis").counts.images.tolist() == [1, 1, 0]
    assert "lvis" in "".join(name for name in DatasetCatalog.list() if json_file in name)
    with pytest.raises(ConfigError, match="unknown format 'voc'.*Accepted: lvis, coco"):
        examine(json_file, file_format="voc")


def test_an_empty_file_is_no_json(tmp_path):
    (tmp_path / "empty.json").touch()
    with pytest.raises(DataError, match="empty.json is not a JSON file"):
        examine(tmp_path / "empty.json")


# ---- groups ----------------------------------------------------------------------------------


def test_groups_of_lists_are_few_medium_and_many_shots(tmp_path):
    labels = [k for k, n in enumerate((19, 20, 100, 101)) for _ in range(n)]
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{i}.jpg {k}\n" for i, k in enumerate(labels)))
    found = examine(path)
    assert found.counts.groups == ("r", "c", "c", "f") and found.borders == (19, 100)
    assert examine(path, borders=(20, 99)).counts.groups == ("r", "r", "f", "f")


def test_groups_of_the_file_come_first_unless_refused(tmp_path):
    data = small_set()
    for category, letter in zip(data["categories"], "fcr", strict=True):
        category["frequency"] = letter  # elk f, cat c, dog r
    path, _ = write_set(tmp_path, data)
    found = examine(path, borders=(1, 2))
    assert found.counts.groups == ("c", "r", "f") and found.borders is None
    found = examine(path, borders=(1, 2), own_groups=False)
    assert found.counts.groups == ("r", "r", "r") and found.borders == (1, 2)


def test_groups_from_counts(json_file, maps):
    found = examine(json_file)
    assert found.borders == (10, 100) and set(found.counts.groups) == {"r"}
    assert examine(json_file, borders=(1, 2)).borders == (1, 2)
    found = examine(maps, borders=(1, 5))
    assert found.counts.groups == ("r", "r", "c") and found.group_by == "borders"
    with pytest.raises(ConfigError, match="two whole numbers with 0 < first < second"):
        examine(maps, borders=(5, 1))


def test_groups_of_label_maps_are_thirds_by_pixels_unless_asked(tmp_path):
    # Pixels 4, 9, 6, 1; images 3, 1, 2, 1.
    rows = {"a": [0] * 2 + [2] * 5, "b": [0] + [1] * 9 + [2], "c": [0, 3]}
    for name, row in rows.items():
        Image.fromarray(np.array([row], dtype=np.uint8)).save(tmp_path / f"{name}.png")
    expected = {None: "cffr", "pixels": "cffr", "images": "fcfr"}
    for group_by, groups in expected.items():
        found = examine(tmp_path, group_by=group_by)
        assert "".join(found.counts.groups) == groups and found.borders is None
        assert found.group_by == (group_by or "pixels")
        # Borders alone do not decide where another rule is named.
        named = examine(tmp_path, group_by=group_by, borders=(1, 2))
        assert "".join(named.counts.groups) == (groups if group_by else "frcr")
    assert examine(tmp_path, group_by="borders").borders == (10, 100)
    with pytest.raises(ConfigError, match="GROUP_BY is 'area'; accepted are pixels, images, bord"):
        examine(tmp_path, group_by="area")


# ---- reports and errors ----------------------------------------------------------------------


def test_classes_without_images_are_reported_once(tmp_path, caplog):
    path = tmp_path / "list.txt"
    path.write_text("a.jpg 0\nb.jpg 9\n")
    examine(path)
    lines = [r.message for r in caplog.records]
    wanted = f"8 of the 10 classes of {path} are in no image: class 1, class 2, class 3, class 4, "
    assert lines == [f"{wanted}class 5, ..."]
    caplog.clear()
    path.write_text("a.jpg 0\nb.jpg 1\n")
    examine(path)
    assert not caplog.records


@pytest.mark.parametrize("coco", [False, True])
def test_a_set_without_any_class_is_an_error(tmp_path, maps, coco):
    data = random_set(0, coco=coco)
    data["annotations"] = []
    path, _ = write_set(tmp_path, data)
    with pytest.raises(DataError, match=f"{path}: none of its 12 images has a class"):
        examine(path)
    (tmp_path / "names.txt").write_text("only\n")
    for name in ("a", "b"):
        Image.new("L", (2, 2), 255).save(f"{maps}/{name}.png")
    with pytest.raises(DataError, match="none of its 3 images has a class"):
        examine(maps, class_file=tmp_path / "names.txt")


def test_labels_beyond_the_class_list_name_both_numbers(list_file, maps, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"label 3 is not in 0..1 \(2 classes\)"):
        examine(list_file, class_file=tmp_path / "names.txt")
    with pytest.raises(DataError, match="value 2 is beyond the class list of 2 classes"):
        examine(maps, class_file=tmp_path / "names.txt")


@pytest.mark.parametrize("target", ["none.txt", "a/none", "set.json", "none.JSON"])
def test_missing_files(target):
    with pytest.raises(MissingFileError, match=f"no file or folder {target}"):
        examine(target)


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(ConfigError, match="Did you mean 'lt_synthetic_train'"):
        examine("lt_synthetic_trai", class_file="unread.txt")


def test_options_without_effect_are_refused(json_file, maps, list_file, tmp_path):
    (tmp_path / "names.txt").write_text("a\n")
    with pytest.raises(ConfigError, match="has its own classes"):
        examine(json_file, class_file=tmp_path / "names.txt")
    with pytest.raises(ConfigError, match="'coco' is for annotation files, .*'label maps'"):
        examine(maps, file_format="coco")
    for target in (list_file, json_file):
        with pytest.raises(ConfigError, match="zero_is_unlabelled is for label maps"):
            examine(target, zero_is_unlabelled=True)


# ---- caches ----------------------------------------------------------------------------------


def test_counts_are_cached_and_a_changed_file_is_noticed(json_file, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    reads, count = [], class_counts._count
    monkeypatch.setattr(
        class_counts, "_count", lambda name, *a: reads.append(name) or count(name, *a)
    )
    cache = str(tmp_path / "cache")
    first = examine(json_file, cache_dir=cache)
    again = examine(json_file, cache_dir=cache)
    assert len(reads) == 1
    assert again.counts.fingerprint == first.counts.fingerprint
    assert again.counts.empty_images == first.counts.empty_images == 1
    with open(json_file) as file:
        data = json.load(file)
    data["annotations"].append(annotation(6, 1, 7))
    with open(json_file, "w") as file:
        json.dump(data, file)
    changed = examine(json_file, cache_dir=cache)
    assert changed.counts.images.tolist() == [1, 1, 1] and changed.counts.empty_images == 0
    assert caplog.text.count("counted again") == 1


# ---- report ----------------------------------------------------------------------------------


def test_the_report_in_numbers(json_file, maps, list_file):
    report = class_report(examine(json_file))
    assert report["totals"] == {"images": 2, "instances": 4}
    assert report["imbalance_factor"] == {"images": 1.0, "instances": 3.0}
    # Sorted 0, 1, 1: (-2 * 0 + 0 * 1 + 2 * 1) / (3 * 2); 0, 1, 3: 6 / 12.
    assert report["gini"] == pytest.approx({"images": 1 / 3, "instances": 1 / 2})
    assert report["top_tenth"] == {"images": 0.5, "instances": 0.75}
    assert report["groups"]["r"] == {"classes": 3, "images": 1.0, "instances": 1.0}
    assert report["per_class"]["instances"] == [1, 3, 0]
    assert report["num_images_without_class"] == report["num_classes_without_images"] == 1
    report = class_report(examine(maps))
    assert report["totals"] == {"images": 3, "pixels": 5}
    assert report["per_class"]["pixels"] == [1, 0, 4]
    report = class_report(examine(list_file))
    assert report["groups"]["c"] == {"classes": 1, "images": pytest.approx(50 / 175)}
    assert report["imbalance_factor"] == {"images": 24.0}
    for part in (report, json.loads(json.dumps(report, allow_nan=False))):
        assert part == report


def test_tables_show_both_ends(tmp_path):
    path = tmp_path / "list.txt"
    counts = np.random.default_rng(1).permutation(60) + 1
    labels = np.repeat(np.arange(60), counts)
    path.write_text("".join(f"{i}.jpg {k}\n" for i, k in enumerate(labels)))
    report = class_report(examine(path))
    by_count = np.argsort(-counts).tolist()
    assert shown_classes(report, None).tolist() == by_count[:10] + by_count[-10:]
    assert shown_classes(report, 0).tolist() == shown_classes(report, 30).tolist() == by_count
    assert shown_classes(report, 2).tolist() == by_count[:2] + by_count[-2:]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in class_table(report, by_count[:1]).splitlines()
    ]
    assert rows[0] == ["class", "id", "group", "images", "share"]
    k = by_count[0]
    assert rows[2] == [f"class {k}", str(k), "c", "60", f"{100 * 60 / 1830:.2f} %"]
    text = summary_text(report)
    assert "1,830 images (0 without any class), 60 classes (0 without images)" in text
    assert "few (r): up to 19 images, medium (c): up to 100, many (f): more" in text
