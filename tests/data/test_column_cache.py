"""The cache of columns: used, noticed to be stale or damaged, shared between processes."""

import json
import os
import pickle
import subprocess
import sys
import zlib

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from lt_det.config import add_lt_config
from lt_det.data import (
    class_counts,
    dataset_info,
    get_class_counts,
    register_from_config,
    register_lvis_format,
)
from lt_det.data.datasets import column_cache, columns, file_cache
from lt_det.data.datasets.catalog import get_records, set_cache_dir
from lt_det.errors import DataError
from tests.data.small_sets import annotation, small_set, write_set


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Folder of the cache, in which the small sets of the tests are kept too."""
    monkeypatch.setattr(column_cache, "MIN_CACHED_BYTES", 0)
    set_cache_dir(str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch):
    """The files that were streamed."""
    paths, stream = [], column_cache.stream_lists
    monkeypatch.setattr(column_cache, "stream_lists", lambda p: paths.append(p) or stream(p))
    return paths


@pytest.fixture
def mine(tmp_path):
    data = small_set()
    data["annotations"].append(annotation(18, 9, 4, bbox=[1, 1, 0, 5]))
    path, root = write_set(tmp_path, data)
    register_lvis_format("mine", path, root)
    return path


def column_files(folder):
    return sorted(p for p in folder.iterdir() if p.suffix != ".lock") if folder.exists() else []


def test_a_second_load_maps_the_cache_and_says_again_what_was_skipped(mine, cache, builds, caplog):
    first = list(get_records("mine"))
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    caplog.clear()
    again = get_records("mine")
    assert builds == [mine] and list(again) == first
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == warnings
    assert "skipped 1 annotation with an empty or degenerate box" in warnings[0]
    (file,) = column_files(cache)
    assert file.name.startswith("set-") and file.suffix == ".columns"
    # Data folders are shared: as readable as any other file of this user.
    assert file.stat().st_mode == os.stat(mine).st_mode


def test_class_lists_and_counts_come_from_the_cache(mine, cache, builds, monkeypatch):
    get_records("mine")
    monkeypatch.setattr("lt_det.data.datasets.lvis_format._CLASS_LISTS", {})
    assert dataset_info("mine").class_names == ["cat", "dog", "elk"]
    counts = get_class_counts("mine", cache_dir=str(cache))
    assert counts.instances.tolist() == [1, 1, 1]
    assert builds == [mine]


def test_small_files_are_not_cached(mine, tmp_path, builds):
    set_cache_dir(str(tmp_path / "cache"))
    assert os.path.getsize(mine) < column_cache.MIN_CACHED_BYTES
    assert list(get_records("mine")) == list(get_records("mine"))
    assert builds == [mine, mine] and column_files(tmp_path / "cache") == []


def test_formats_and_places_have_caches_of_their_own(mine, cache, builds, tmp_path):
    root = str(tmp_path / "images")
    register_lvis_format("as_coco", mine, root, file_format="coco")
    (tmp_path / "b").mkdir()
    other, _ = write_set(tmp_path / "b", small_set())
    register_lvis_format("other", other, root)
    for name in ("mine", "as_coco", "other") * 2:
        records = list(get_records(name, need_images=False))
        assert ("neg_category_ids" in records[0]) == (name != "as_coco")
    assert builds == [mine, mine, other] and len(column_files(cache)) == 3


@pytest.mark.parametrize("keep_time, hashed", [(True, 10_000), (True, 500), (False, 1)])
def test_a_changed_file_is_read_again(mine, cache, builds, monkeypatch, caplog, keep_time, hashed):
    monkeypatch.setattr(file_cache, "HASHED_BYTES", hashed)
    before = get_records("mine")
    stat = os.stat(mine)
    with open(mine) as f:
        text = f.read()
    end = text.index('"id": 17')
    assert len(text) - end < 500 < end
    with open(mine, "w") as f:
        f.write(text[:end] + text[end:].replace("30.0", "31.0"))
    os.utime(mine, ns=(stat.st_atime_ns, stat.st_mtime_ns + (0 if keep_time else 1)))
    assert os.stat(mine).st_size == stat.st_size
    after = list(get_records("mine"))
    assert builds == [mine, mine]
    assert caplog.text.count("is read again, it is not what the cache") == 1
    assert after[0]["annotations"][1]["segmentation"] == [[10, 10, 31, 10, 31, 31, 10, 31]]
    # What was mapped before stays what it was.
    assert before[0]["annotations"][1]["segmentation"] == [[10, 10, 30, 10, 30, 30, 10, 30]]
    assert list(get_records("mine")) == after and len(builds) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"something else" * 100,
        lambda raw: raw.replace(b'"about"', b'"abuot"'),
    ],
)
def test_a_damaged_cache_is_noticed_and_made_anew(mine, cache, builds, caplog, damage):
    first = list(get_records("mine"))
    (file,) = column_files(cache)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert list(get_records("mine")) == first
    assert builds == [mine, mine] and file.read_bytes() == whole
    assert caplog.text.count("is read again, the cache") == 1 and str(file) in caplog.text


def rewrite_index(file, change):
    """The same file with another index, sound in itself."""
    raw = file.read_bytes()
    place, length, _, magic = columns._TRAILER.unpack(raw[-columns._TRAILER.size :])
    content = json.loads(raw[place : place + length])
    content = change(content) or content
    index = json.dumps(content).encode()
    trailer = columns._TRAILER.pack(place, len(index), zlib.crc32(index), magic)
    file.write_bytes(raw[:place] + index + trailer)


def other_version(content):
    content["about"]["stamp"]["version"] += 1
    content["sections"]["new_column"] = content["sections"].pop("boxes")


@pytest.mark.parametrize(
    "change, words",
    [
        (other_version, "it is not what the cache"),
        (lambda c: c.pop("sections") and None, "cannot be used: its index is not one of columns"),
        (lambda c: c.pop("about") and None, "cannot be used: its index is not one of columns"),
        (lambda c: [1], "cannot be used"),
        (lambda c: c["sections"].pop("boxes") and None, "cannot be used"),
        (lambda c: c["sections"].update(boxes=["<f8", [2, 4], 10**30]), "cannot be used"),
    ],
)
def test_another_index_is_noticed_and_made_anew(mine, cache, builds, caplog, change, words):
    first = list(get_records("mine"))
    (file,) = column_files(cache)
    whole = file.read_bytes()
    rewrite_index(file, change)
    assert list(get_records("mine")) == first
    assert builds == [mine, mine] and file.read_bytes() == whole
    assert caplog.text.count("is read again, ") == 1 and words in caplog.text


def test_what_a_killed_process_left_is_removed(mine, cache):
    get_records("mine")
    (file,) = column_files(cache)
    (cache / f"{file.name}.0123abcd.tmp").write_bytes(b"half")
    (cache / "other.columns.0123abcd.tmp").write_bytes(b"of another set")
    file.unlink()
    get_records("mine")
    assert [p.name for p in column_files(cache)] == ["other.columns.0123abcd.tmp", file.name]


def test_selecting_reads_no_file(mine, cache):
    records = get_records("mine")
    (file,) = column_files(cache)
    file.unlink()
    chosen = records.select([1])
    assert list(chosen) == [records[1]] and len(records) == 2
    with pytest.raises(DataError, match="changed while a process was starting"):
        pickle.loads(pickle.dumps(chosen))


def test_a_folder_that_cannot_be_written_is_not_an_error(mine, cache, builds, caplog):
    caplog.set_level("INFO")
    cache.touch()  # a file where the folder should be
    first = list(get_records("mine"))
    assert list(get_records("mine")) == first and len(first) == 2
    assert builds[:2] == [mine, mine] and "is not cached" in caplog.text


def test_a_write_that_fails_leaves_nothing_behind(mine, cache, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(
        column_cache.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full"))
    )
    assert len(get_records("mine")) == 2
    assert column_files(cache) == [] and "is not cached: full" in caplog.text


def test_a_file_with_an_error_is_not_cached(tmp_path, cache):
    data = small_set()
    data["annotations"][0]["category_id"] = 99
    register_lvis_format("bad", *write_set(tmp_path, data))
    for _ in range(2):
        with pytest.raises(DataError, match="category id 99"):
            get_records("bad")
    assert column_files(cache) == []


def test_a_file_that_cannot_be_streamed_is_cached_all_the_same(tmp_path, cache, builds):
    data = small_set()
    data["annotations"][0]["area"] = float("nan")
    path, root = write_set(tmp_path, data)
    register_lvis_format("with_nan", path, root)
    first = list(get_records("with_nan"))
    assert list(get_records("with_nan")) == first and builds == [path]


def test_pickling_carries_the_path_and_not_the_columns(mine, cache):
    records = get_records("mine").select([1])
    copy = pickle.loads(pickle.dumps(records))
    assert list(copy) == list(records)
    assert copy.widths.tolist() == [100] and copy.class_sets(3).classes.tolist() == [0]
    assert b"annotations" not in pickle.dumps(records) and len(pickle.dumps(records)) < 3000
    held = pickle.dumps(records)
    text = open(mine).read()
    write_set(os.path.dirname(mine), json.loads(text.replace("100", "101")))
    get_records("mine")
    with pytest.raises(DataError, match="was made anew while a process was starting"):
        pickle.loads(held)


def test_records_in_memory_are_pickled_whole(mine, tmp_path):
    records = get_records("mine")
    assert list(pickle.loads(pickle.dumps(records))) == list(records)


def test_detectron2_gets_a_list(mine, cache):
    records = DatasetCatalog.get("mine")
    assert type(records) is list and records == list(get_records("mine"))


def test_processes_at_once_make_it_once(mine, cache, tmp_path):
    code = (
        "import sys, json, logging; logging.basicConfig(level='INFO')\n"
        "from lt_det.data.datasets import column_cache\n"
        "from lt_det.data.datasets.catalog import get_records, register_lvis_format\n"
        "column_cache.MIN_CACHED_BYTES = 0\n"
        "make = column_cache._write\n"
        "def slow(*args):\n"
        "    import time; print('made'); time.sleep(1); return make(*args)\n"
        "column_cache._write = slow\n"
        "register_lvis_format('mine', *sys.argv[1:3])\n"
        "print(json.dumps([r['file_name'] for r in get_records('mine', cache_dir=sys.argv[3])]))"
    )
    args = [sys.executable, "-c", code, mine, str(tmp_path / "images"), str(cache)]
    running = [subprocess.Popen(args, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [p.communicate(timeout=500)[0].splitlines() for p in running]
    assert sorted(len(lines) for lines in outputs) == [1, 2]  # one of them says 'made'
    names = json.dumps([r["file_name"] for r in get_records("mine")])
    assert [lines[-1] for lines in outputs] == [names, names]
    assert len(column_files(cache)) == 1


def test_counts_ask_for_the_folder_they_were_given(mine, cache, tmp_path, builds):
    class_counts.get_class_counts("mine", cache_dir=str(tmp_path / "elsewhere"))
    suffixes = sorted(p.suffix for p in column_files(tmp_path / "elsewhere"))
    assert suffixes == [".columns", ".json"] and column_files(cache) == []


def test_the_folder_follows_the_configuration_and_the_environment(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    path, root = write_set(tmp_path, small_set())
    cfg = add_lt_config(get_cfg())
    cfg.DATASETS.LT.REGISTER = [{"name": "mine", "json": path, "images": root}]
    for folder in (tmp_path / "named", tmp_path / "root" / "lt_det_cache"):
        cfg.DATASETS.LT.CACHE_DIR = str(folder) if folder.name == "named" else ""
        register_from_config(cfg)
        get_records("mine")
        assert [p.suffix for p in column_files(folder)] == [".columns"]
    assert column_files(cache) == []
