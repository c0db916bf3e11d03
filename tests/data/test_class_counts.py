import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_det.data import class_counts, count_classes, get_class_counts, register_lvis_format
from lt_det.data.class_counts import fingerprint_of
from lt_det.data.datasets import file_cache
from lt_det.errors import ConfigError, DataError
from tests.data.small_sets import annotation, random_set, small_set, write_set


def records_of(*classes_of_images):
    return [
        {"image_id": i, "annotations": [{"category_id": c} for c in classes]}
        for i, classes in enumerate(classes_of_images)
    ]


@pytest.fixture
def mine(tmp_path):
    """A registered set with 1 cat, 3 dogs in one image, no elk, and 3 images."""
    data = small_set()
    data["images"].append({"id": 1, "width": 50, "height": 50, "file_name": "a/one.png"})
    data["annotations"] = [annotation(1, 5, 2)] + [annotation(i, 9, 4) for i in (2, 3, 4)]
    path, root = write_set(tmp_path, data)
    register_lvis_format("mine", path, root)
    return path


@pytest.fixture
def reads(monkeypatch):
    """The names whose records were read."""
    names = []
    get_records = class_counts.get_records
    monkeypatch.setattr(
        class_counts,
        "get_records",
        lambda name, **kw: names.append(name) or get_records(name, **kw),
    )
    return names


def cache_files(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


# ---- counting --------------------------------------------------------------------------------


def test_counts_by_hand():
    images, instances = count_classes(records_of([0, 0, 2], [], [2], [2, 0]), 4)
    assert images.tolist() == [2, 0, 3, 0]
    assert instances.tolist() == [3, 0, 3, 0]
    assert images.dtype == instances.dtype == np.int64


def test_no_records_and_no_annotations_count_zero():
    for records in ([], records_of([], []), [{"image_id": 1}]):
        images, instances = count_classes(records, 3)
        assert images.tolist() == instances.tolist() == [0, 0, 0]


def test_crowds_do_not_count():
    records = records_of([0, 1], [1])
    records[0]["annotations"][1]["iscrowd"] = 1
    records[1]["annotations"][0]["iscrowd"] = 0
    images, instances = count_classes(records, 2)
    assert images.tolist() == instances.tolist() == [1, 1]


@pytest.mark.parametrize("category_id", [-1, 2])
def test_an_id_out_of_range_is_an_error_that_names_the_image(category_id):
    records = records_of([0], [1, category_id])
    records[1]["file_name"] = "b.png"
    with pytest.raises(DataError) as e:
        count_classes(records, 2)
    assert str(e.value) == f"category id {category_id} of image b.png (image id 1) is not in 0..1"


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_a_plain_loop_in_any_order(seed):
    rng = random.Random(seed)
    drawn = [rng.choices(range(20), k=rng.randint(0, 9)) for _ in range(50)]
    expected = [
        [sum(c in image for image in drawn) for c in range(20)],
        [sum(image.count(c) for image in drawn) for c in range(20)],
    ]
    for _ in range(2):
        counts = count_classes(records_of(*drawn), 20)
        assert [c.tolist() for c in counts] == expected
        rng.shuffle(drawn)
        for image in drawn:
            rng.shuffle(image)


# ---- registered sets -------------------------------------------------------------------------


def test_counts_of_a_registered_set(mine, tmp_path):
    counts = get_class_counts("mine", cache_dir=str(tmp_path / "cache"))
    assert counts.names == ("cat", "dog", "elk")
    assert counts.images.tolist() == [1, 1, 0]
    assert counts.instances.tolist() == [1, 3, 0]
    assert counts.groups == ("r", "r", "r")
    assert counts.num_images == 3
    assert counts.source == "mine"
    assert counts.fingerprint == fingerprint_of(counts.names, counts.images, counts.instances)


def test_what_the_loader_skips_does_not_count(tmp_path):
    data = small_set()
    data["annotations"] = [
        annotation(1, 5, 2, bbox=[10, 10, 0, 5]),
        annotation(2, 9, 2),
        annotation(3, 9, 4, segmentation=[[1.0, 2.0]]),
        annotation(4, 9, 7, iscrowd=1),
    ]
    path, root = write_set(tmp_path, data)
    register_lvis_format("mine", path, root, file_format="coco")
    counts = get_class_counts("mine", cache_dir=str(tmp_path / "cache"))
    assert counts.images.tolist() == counts.instances.tolist() == [1, 0, 0]


def test_several_sets_are_added_up(tmp_path):
    cache, single = str(tmp_path / "cache"), []
    for seed in range(3):
        data = random_set(seed)
        for category in data["categories"]:
            del category["frequency"]
        (tmp_path / str(seed)).mkdir()
        path, root = write_set(tmp_path / str(seed), data)
        register_lvis_format(f"part_{seed}", path, root)
        single.append(get_class_counts(f"part_{seed}", cache_dir=cache))
    names = ["part_0", "part_1", "part_2"]
    total = get_class_counts(names, cache_dir=cache, borders=(15, 17))
    assert total.images.tolist() == sum(c.images for c in single).tolist()
    assert total.instances.tolist() == sum(c.instances for c in single).tolist()
    assert total.instances.sum() == 180 and total.num_images == 36
    assert total.source == "part_0 + part_1 + part_2"
    expected = ["r" if n <= 15 else "c" if n <= 17 else "f" for n in total.images]
    assert list(total.groups) == expected and len(set(expected)) == 3
    assert get_class_counts(names[::-1], cache_dir=cache).fingerprint == total.fingerprint


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c[1].update(name="cow"), "class 0 is 'cat' in data set 'mine' but 'cow' in"),
        (lambda c: c.pop(), "data sets 'mine' and 'other' have 3 and 2 classes"),
    ],
)
def test_sets_with_other_classes_are_refused(mine, tmp_path, change, message):
    data = small_set()
    change(data["categories"])
    data["annotations"] = []
    path, root = write_set(tmp_path, data, "other.json")
    register_lvis_format("other", path, root)
    with pytest.raises(ConfigError, match=message):
        get_class_counts(["mine", "other"], cache_dir=str(tmp_path / "cache"))


def test_no_data_set_is_an_error():
    with pytest.raises(ConfigError, match="DATASETS.TRAIN is empty"):
        get_class_counts([])


def test_a_set_with_its_own_loader_takes_its_classes_from_the_catalogue(tmp_path):
    DatasetCatalog.register("their_own", lambda: records_of([0, 1], [1]))
    with pytest.raises(ConfigError, match="data set 'their_own' has no class list"):
        get_class_counts("their_own", cache_dir=str(tmp_path / "cache"))
    MetadataCatalog.get("their_own").thing_classes = ["a", "b"]
    counts = get_class_counts("their_own", cache_dir=str(tmp_path / "cache"))
    assert (counts.names, counts.images.tolist()) == (("a", "b"), [1, 2])
    assert cache_files(tmp_path / "cache") == []


# ---- groups ----------------------------------------------------------------------------------


def with_frequency(folder, name, letters):
    data = small_set()
    ordered = sorted(data["categories"], key=lambda c: c["id"])
    for category, letter in zip(ordered, letters, strict=True):
        category["frequency"] = letter
    folder.mkdir()
    path, root = write_set(folder, data)
    register_lvis_format(name, path, root)


def test_groups_of_the_file_come_first(tmp_path):
    with_frequency(tmp_path / "a", "a", "fcr")
    with_frequency(tmp_path / "b", "b", "fcr")
    cache = str(tmp_path / "cache")
    assert get_class_counts("a", cache_dir=cache).groups == ("f", "c", "r")
    assert get_class_counts("a", cache_dir=cache).groups == ("f", "c", "r")  # from the cache
    assert get_class_counts(["a", "b"], cache_dir=cache).groups == ("f", "c", "r")


def test_groups_come_from_counts_if_the_files_disagree(tmp_path):
    with_frequency(tmp_path / "a", "a", "fcr")
    with_frequency(tmp_path / "b", "b", "rcf")
    counts = get_class_counts(["a", "b"], cache_dir=str(tmp_path / "cache"))
    assert counts.images.tolist() == [2, 2, 2]
    assert counts.groups == ("r", "r", "r")


def test_borders_are_inclusive_and_not_part_of_the_cache(mine, tmp_path):
    cache = str(tmp_path / "cache")
    assert get_class_counts("mine", cache_dir=cache, borders=(1, 2)).groups == ("r", "r", "r")
    data = random_set(0, num_classes=4, num_images=20, num_annotations=40)
    for category in data["categories"]:
        del category["frequency"]
    path, root = write_set(tmp_path, data, "more.json")
    register_lvis_format("more", path, root)
    images = get_class_counts("more", cache_dir=cache).images
    low, high = sorted(set(images.tolist()))[:2]
    groups = get_class_counts("more", cache_dir=cache, borders=(low, high)).groups
    assert groups == tuple("r" if n == low else "c" if n == high else "f" for n in images)


def test_bad_borders_name_their_key(mine, tmp_path):
    with pytest.raises(ConfigError, match="DATASETS.LT.GROUP_BORDERS"):
        get_class_counts("mine", cache_dir=str(tmp_path / "cache"), borders=(10, 5))


# ---- fingerprint -----------------------------------------------------------------------------


def test_the_fingerprint_follows_names_and_counts_only():
    base = fingerprint_of(("a", "b"), np.array([1, 2]), np.array([3, 4]))
    assert base == fingerprint_of(["a", "b"], np.array([1, 2], dtype=np.int32), np.array([3, 4]))
    others = {
        fingerprint_of(("a", "c"), np.array([1, 2]), np.array([3, 4])),
        fingerprint_of(("a", "b"), np.array([2, 1]), np.array([3, 4])),
        fingerprint_of(("a", "b"), np.array([1, 2]), np.array([3, 5])),
        fingerprint_of(("a", "b"), np.array([1, 23]), np.array([4])),
        fingerprint_of(("ab",), np.array([1, 2]), np.array([3, 4])),
    }
    assert len(others) == 5 and base not in others


def test_order_of_annotations_does_not_change_the_fingerprint(tmp_path):
    data, prints = random_set(1), set()
    for i in range(3):
        random.Random(i).shuffle(data["annotations"])
        path, root = write_set(tmp_path, data, f"{i}.json")
        register_lvis_format(f"order_{i}", path, root)
        prints.add(get_class_counts(f"order_{i}", cache_dir=str(tmp_path / "cache")).fingerprint)
    assert len(prints) == 1


# ---- cache -----------------------------------------------------------------------------------


def same(a, b):
    return (a.names, a.groups, a.num_images, a.fingerprint, a.source) == (
        b.names, b.groups, b.num_images, b.fingerprint, b.source
    ) and (a.images == b.images).all() and (a.instances == b.instances).all()  # fmt: skip


def test_a_second_call_reads_the_cache(mine, tmp_path, reads):
    cache = tmp_path / "cache"
    first = get_class_counts("mine", cache_dir=str(cache))
    second = get_class_counts("mine", cache_dir=str(cache))
    assert reads == ["mine"] and same(first, second)
    assert second.images.dtype == second.instances.dtype == np.int64
    (file,) = cache_files(cache)
    assert file.startswith("set-") and file.endswith(".json")
    # Data folders are shared: as readable as any other file of this user.
    assert (cache / file).stat().st_mode == os.stat(mine).st_mode


def test_another_set_of_the_same_file_name_has_a_cache_of_its_own(mine, tmp_path, reads):
    cache = tmp_path / "cache"
    (tmp_path / "b").mkdir()
    path, root = write_set(tmp_path / "b", small_set())
    register_lvis_format("other", path, root)
    register_lvis_format("other_coco", path, root, file_format="coco")
    for name in ("mine", "other", "other_coco") * 2:
        get_class_counts(name, cache_dir=str(cache))
    assert reads == ["mine", "other", "other_coco"]
    assert len(cache_files(cache)) == 3


def test_a_changed_file_is_counted_again(mine, tmp_path, reads, caplog):
    caplog.set_level("INFO")
    cache = str(tmp_path / "cache")
    before = get_class_counts("mine", cache_dir=cache)
    with open(mine) as f:
        data = json.load(f)
    data["annotations"].append(annotation(99, 1, 7))
    write_set(tmp_path, data)
    after = get_class_counts("mine", cache_dir=cache)
    assert reads == ["mine", "mine"]
    assert after.instances.tolist() == [1, 3, 1] and after.fingerprint != before.fingerprint
    assert f"counted again: {mine} is not what" in caplog.text
    assert same(get_class_counts("mine", cache_dir=cache), after)
    assert len(reads) == 2


@pytest.mark.parametrize("keep_time, hashed", [(True, 10_000), (True, 300), (False, 1)])
def test_a_change_of_the_same_size_is_noticed(mine, tmp_path, monkeypatch, keep_time, hashed):
    # By the hash of the whole file, by that of its end, by the time alone.
    monkeypatch.setattr(file_cache, "HASHED_BYTES", hashed)
    cache = str(tmp_path / "cache")
    get_class_counts("mine", cache_dir=cache)
    stat = os.stat(mine)
    with open(mine) as f:
        text = f.read()
    end = text.rindex('"category_id": 4')
    assert len(text) - end < 300 < end
    with open(mine, "w") as f:
        f.write(text[:end] + text[end:].replace('"category_id": 4', '"category_id": 7'))
    os.utime(mine, ns=(stat.st_atime_ns, stat.st_mtime_ns + (0 if keep_time else 1)))
    assert os.stat(mine).st_size == stat.st_size
    assert get_class_counts("mine", cache_dir=cache).instances.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-30],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"instances": [1, 3, 0]', '"instances": [1, 4, 0]'),
        lambda text: text.replace('"num_images": 3', '"num_images": 4'),
        lambda text: text.replace('"fingerprint"', '"finger"'),
        lambda text: text.replace('"images": [1, 1, 0]', '"images": "none"'),
    ],
)
def test_a_damaged_cache_is_noticed_and_rebuilt(mine, tmp_path, reads, caplog, damage):
    caplog.set_level("INFO")
    cache = tmp_path / "cache"
    first = get_class_counts("mine", cache_dir=str(cache))
    (file,) = cache.iterdir()
    whole = file.read_text()
    assert damage(whole) != whole
    file.write_text(damage(whole))
    assert same(get_class_counts("mine", cache_dir=str(cache)), first)
    assert reads == ["mine", "mine"]
    assert "Class counts are counted again" in caplog.text and str(file) in caplog.text
    assert file.read_text() == whole


def test_a_cache_that_cannot_be_written_is_not_an_error(mine, tmp_path, reads, caplog):
    caplog.set_level("INFO")
    (tmp_path / "file").touch()  # a file where the folder should be
    for _ in range(2):
        counts = get_class_counts("mine", cache_dir=str(tmp_path / "file"))
        assert counts.instances.tolist() == [1, 3, 0]
    assert reads == ["mine", "mine"]
    assert "Class counts are not cached" in caplog.text


def test_a_write_that_fails_leaves_nothing_behind(mine, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(
        class_counts.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full"))
    )
    counts = get_class_counts("mine", cache_dir=str(tmp_path / "cache"))
    assert counts.instances.tolist() == [1, 3, 0]
    assert cache_files(tmp_path / "cache") == []
    assert "Class counts are not cached: full" in caplog.text


@pytest.mark.parametrize("cache_dir", [None, ""])
def test_the_default_folder_follows_the_environment(mine, tmp_path, monkeypatch, cache_dir):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    get_class_counts("mine", cache_dir=cache_dir)
    assert len(cache_files(tmp_path / "root" / "lt_det_cache")) == 1


def test_processes_at_once_agree(mine, tmp_path):
    code = (
        "import sys; from lt_det.data import register_lvis_format, get_class_counts\n"
        "register_lvis_format('mine', *sys.argv[1:3])\n"
        "print(get_class_counts('mine', cache_dir=sys.argv[3]).fingerprint)"
    )
    args = [sys.executable, "-c", code, mine, str(tmp_path / "images"), str(tmp_path / "cache")]
    running = [subprocess.Popen(args, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    prints = {p.communicate(timeout=120)[0].strip() for p in running}
    assert prints == {get_class_counts("mine", cache_dir=str(tmp_path / "cache")).fingerprint}
    assert len(cache_files(tmp_path / "cache")) == 1
