"""Columns give the records that the entry by entry conversion gives."""

import io
import random

import numpy as np
import pytest

from lt_det.data.datasets import column_builder, column_cache
from lt_det.data.datasets.column_builder import CoordinateColumn, hundredths
from lt_det.data.datasets.columns import ColumnFile, read_columns
from lt_det.data.datasets.lvis_format import _load_entries, load_records
from lt_det.data.records import ColumnRecords
from lt_det.errors import DataError
from lt_det.evaluation import json_stream
from tests.data.small_sets import random_set, small_set, write_set

# Changes of an annotation: those that are skipped and counted, those that are kept, those that
# are errors or that columns cannot hold.
SKIPPED = [
    {"bbox": [1, 2, 0, 5]},
    {"bbox": [500, 2, 5, 5]},
    {"bbox": [float("nan"), 1, 1, 1]},
    {"bbox": [1, 1, 1e308, 1e308]},
    {"ignore": 1},
    {"ignore": True, "iscrowd": 1},
    {"iscrowd": 1},
    {"segmentation": [[1, 2]]},
    {"segmentation": [[1, 2, 3, 4, 5], []]},
    {"segmentation": [[0.5] * 6, [1, 2]]},
    {"segmentation": [[1.25, 2, 3, float("inf"), 5, 6], [1, 2, 3, 4, 5, 6.001]]},
]
KEPT = [
    {"segmentation": None},
    {"segmentation": []},
    {"segmentation": {}},
    {"segmentation": ""},
    {"iscrowd": 0},
    {"iscrowd": True},
    {"iscrowd": 2},
    {"ignore": 0},
    {"bbox": [1, 2, 3, 4]},
    {"bbox": [-3, -2.125, 30, 40]},
    {"segmentation": [[1, 2, 3, 4, 5, 6], [1.5, 2.25, 3, 4, 5, 6, 7, 8]]},
    {"segmentation": [[1 / 3] * 6]},
    {"segmentation": [[3e7] * 6]},
    {"keypoints": [1, 2, 2, 3.5, 4, 1]},
    {"keypoints": []},
    {"keypoints": None},
]
ODD = [
    {"category_id": 10**6},
    {"category_id": "1"},
    {"category_id": 3.0},
    {"image_id": 10**6},
    {"image_id": None},
    {"image_id": 2**70},
    {"id": "x"},
    {"id": 1},
    {"bbox": [1, 2, 3]},
    {"bbox": "1234"},
    {"bbox": None},
    {"bbox": {"x": 1}},
    {"iscrowd": None},
    {"iscrowd": "no"},
    {"iscrowd": 1000},
    {"segmentation": 7},
    {"segmentation": [1, 2, 3, 4, 5, 6]},
    {"segmentation": ["abcdef"]},
    {"segmentation": [["1", 2, 3, 4, 5, 6]]},
    {"segmentation": {"size": [1, 1], "counts": [1]}},
    {"segmentation": {"size": [1, 1], "counts": "11"}},
    {"segmentation": {"counts": "11"}},
    {"segmentation": {"size": 3, "counts": "11"}},
    {"keypoints": "abc"},
    {"keypoints": ["1", 2, 2]},
]


def changed_set(seed, *, coco, changes, share):
    """A random set, some of whose annotations have one of the changes."""
    rng = random.Random(seed)
    data = random_set(seed, coco=coco)
    sizes = {image["id"]: [image["height"], image["width"]] for image in data["images"]}
    for ann in data["annotations"]:
        size = sizes[ann["image_id"]]
        if rng.random() < 0.1:
            counts = [3, size[0] * size[1] - 3]
            ann["segmentation"] = {"size": size, "counts": rng.choice([counts, "`1o3", ""])}
        if rng.random() < share:
            ann.update(rng.choice(changes))
        if rng.random() < 0.02 * share:
            del ann[rng.choice(list(ann))]
    return data


def by_entry(path, root, *, file_format, check=True):
    """Records converted entry by entry."""
    return _load_entries(path, root, None, file_format, check, need_images=False)[1]


def in_columns(path, root, **options):
    return load_records(path, root, need_images=False, **options)


def outcome(caplog, load, *args, **options):
    """Records and warnings, or the error's text."""
    caplog.clear()
    try:
        records = list(load(*args, **options))
    except DataError as e:
        return str(e)
    return records, [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize("block_bytes", [600, 2**19])
@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("file_format", ["lvis", "coco"])
def test_records_and_messages_are_those_of_each_entry(
    tmp_path, monkeypatch, caplog, file_format, check, block_bytes
):
    stream = json_stream.stream_lists
    monkeypatch.setattr(column_cache, "stream_lists", lambda path: stream(path, block_bytes))
    kinds, held = set(), 0
    for seed in range(60):
        # NaN is equal to itself nowhere; without the check it stays.
        skipped = [c for c in SKIPPED if check or "nan" not in str(c)]
        changes, share = [(KEPT, 0.8), (skipped + KEPT, 0.6), (ODD, 0.02)][seed % 3]
        data = changed_set(seed, coco=file_format == "coco", changes=changes, share=share)
        path, root = write_set(tmp_path, data)
        options = dict(file_format=file_format, check=check)
        expected = outcome(caplog, by_entry, path, root, **options)
        assert outcome(caplog, in_columns, path, root, **options) == expected, seed
        kinds.add(type(expected))
        if not isinstance(expected, str):
            held += isinstance(in_columns(path, root, **options), ColumnRecords)
    assert kinds == {str, tuple}
    assert held >= (25 if check else 15)


@pytest.mark.parametrize("key", ["id", "width", "coco_url", "file_name", "neg_category_ids"])
@pytest.mark.parametrize("value", [None, 0, "", 7, -1, 2.5, "x/y", True, [], [3], ["3"], [99], {}])
def test_images_of_any_form(tmp_path, caplog, key, value):
    for file_format in ("lvis", "coco"):
        data = small_set()
        data["images"][1][key] = value
        path, root = write_set(tmp_path, data)
        try:
            expected = outcome(caplog, by_entry, path, root, file_format=file_format)
        except (TypeError, AttributeError) as e:  # no message of ours: the same as before
            with pytest.raises(type(e)):
                in_columns(path, root, file_format=file_format)
        else:
            assert outcome(caplog, in_columns, path, root, file_format=file_format) == expected


# ---- coordinates -----------------------------------------------------------------------------


def test_hundredths_are_exact_or_none():
    values = np.arange(-100_000, 100_000) / 100
    assert (hundredths(values) / 100.0 == values).all()
    for value in (1 / 3, 0.005, 1e9, np.nan, np.inf, -np.inf, 0.1 + 0.2):
        assert hundredths(np.array([1.0, value])) is None
    assert hundredths(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("exact", range(4))
def test_a_column_is_widened_where_hundredths_stop_being_exact(monkeypatch, exact):
    monkeypatch.setattr(column_builder, "_PIECE", 5)
    blocks = [np.arange(7 * k, 7 * k + 7) / 100 for k in range(3)]
    if exact < 3:
        blocks.insert(exact, np.array([1 / 3, 0.25]))
    file = ColumnFile(io.BytesIO())
    column = CoordinateColumn(file)
    for block in blocks:
        column.add(block)
    column.finish("values")
    file.add("other", np.arange(3))
    raw = file.out.getvalue()
    (dtype, shape, place), other = file.sections["values"], file.sections["other"]
    values = np.frombuffer(raw, dtype, shape[0], place)
    assert values.dtype == (np.int32 if exact == 3 else np.float64)
    scale = 100 if exact == 3 else 1
    assert (values / scale).tolist() == np.concatenate(blocks).tolist()
    assert np.frombuffer(raw, other[0], 3, other[2]).tolist() == [0, 1, 2]


def test_two_decimals_take_four_bytes(tmp_path):
    data = random_set(0)
    for ann in data["annotations"]:
        ann["segmentation"] = [[round(v, 2) for v in p] for p in ann["segmentation"]]
    columns = load_records(*write_set(tmp_path, data), need_images=False)._columns
    assert columns.coordinates.dtype == np.int32
    data["annotations"][-1]["segmentation"][0][0] = 0.001
    columns = load_records(*write_set(tmp_path, data), need_images=False)._columns
    assert columns.coordinates.dtype == np.float64


# ---- the file --------------------------------------------------------------------------------


def column_file(tmp_path):
    records = load_records(*write_set(tmp_path, small_set()), need_images=False)
    file = ColumnFile(io.BytesIO())
    for name, values in vars(records._columns).items():
        file.add(name, values)
    file.close({"x": 1})
    return file.out.getvalue()


def test_a_file_gives_back_its_columns(tmp_path):
    columns, about = read_columns(column_file(tmp_path))
    assert about == {"x": 1}
    assert columns.image_ids.tolist() == [5, 9] and columns.class_ids.tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="read-only"):
        columns.boxes[0, 0] = 3


def test_a_damaged_file_is_noticed(tmp_path):
    raw = column_file(tmp_path)
    with pytest.raises(ValueError, match="too short"):
        read_columns(raw[:10])
    for length in (40, len(raw) // 2, len(raw) - 1):
        with pytest.raises(ValueError, match="its end is missing"):
            read_columns(raw[:length])
    with pytest.raises(ValueError, match="its end is missing"):
        read_columns(raw + raw[-28:])
    with pytest.raises(ValueError, match="its index is damaged"):
        read_columns(raw.replace(b'"x": 1', b'"x": 2'))
