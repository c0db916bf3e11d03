import json
import random

import pytest

from lt_det.evaluation import json_stream
from lt_det.evaluation.json_stream import NotStreamable, stream_lists
from tests.data.small_sets import random_set


def lists_of(path, block_bytes):
    """{key: (entries, number of blocks)}."""
    found = {}
    for key, entries in stream_lists(str(path), block_bytes):
        before, blocks = found.get(key, ([], 0))
        found[key] = (before + entries, blocks + 1)
    return found


def write(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\r\n\t", " : ")])
@pytest.mark.parametrize("block_bytes", [1, 7, 100, 1500, 10**6])
def test_any_white_space_order_and_block_size(tmp_path, indent, separators, block_bytes):
    data = {"info": {"a": [{"b": [1, {}]}]}, **random_set(3, coco=True), "licenses": []}
    keys = list(data)
    for seed in range(3):
        random.Random(seed).shuffle(keys)
        ordered = {key: data[key] for key in keys}
        text = json.dumps(ordered, indent=indent, separators=separators)
        found = lists_of(write(tmp_path, "\n " + text + "\n"), block_bytes)
        assert {key: entries for key, (entries, _) in found.items()} == {
            key: value for key, value in data.items() if isinstance(value, list)
        }
        blocks = found["annotations"][1]
        assert blocks > 10 if block_bytes < 1000 else blocks >= 1


def test_places_that_look_like_a_cut_are_none(tmp_path):
    entries = [
        {"text": "}, {", "end": "}]"},
        {"nested": [{"a": 1}, {"b": "}] , {"}], "quote": 'a " } , { " \\'},
        {"nested": [{"a": 1}]},
        {"nested": {"a": [{}, {}]}},
        {},
    ] * 5
    path = write(tmp_path, json.dumps({"a": entries, "b": entries[::-1]}))
    for block_bytes in (1, 20, 33, 64, 200, 10**6):
        found = lists_of(path, block_bytes)
        assert found["a"][0] == entries and found["b"][0] == entries[::-1]


def test_other_values_are_passed_over(tmp_path):
    text = """{"a": [1, {"images": [{}]}], "b": "]}, {", "c": -1.5e3 , "d": null, "e": true,
        "f\\u0061": [ ], "g": [[{"a": 1}]], "h": [{"x": "\\u00e9\u00e9"}], "i": 0}"""
    for block_bytes in (1, 10, 1000):
        found = lists_of(write(tmp_path, text), block_bytes)
        assert found == {"fa": ([], 1), "h": ([{"x": "\u00e9\u00e9"}], 1)}


def test_an_object_without_keys(tmp_path):
    assert lists_of(write(tmp_path, " { } "), 10) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "[]",
        '[{"a": 1}]',
        "7",
        '{"a": [{"x": 1}, {"x": 2}',
        '{"a": [{"x": 1}, {"x": 2}]',
        '{"a": [{"x": 1}, {"x": 2}]}}',
        '{"a": [{"x": 1}, {"x": 2}]} 1',
        '{"a": [{"x": 1} {"x": 2}]}',
        '{"a": [{"x": 1},, {"x": 2}]}',
        '{"a": [{"x": 1},]}',
        '{"a": [{"x": NaN}]}',
        '{"a": [{"x": 1}], "a": [{"x": 2}]}',
        '{"a": [{"x": 1}], }',
        '{"a" [{"x": 1}]}',
        '{a: [{"x": 1}]}',
        '{"a": "unfinished',
        '{"a": {"b": [1}}',
        '{"a": tru}',
        '{"a": [',
        '\ufeff{"a": [{"x": 1}]}',
        b'{"a": [{"x": "\xff"}]}',
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 12, 1000])
def test_what_is_not_in_order_is_left_to_the_whole_file(tmp_path, text, block_bytes):
    with pytest.raises(NotStreamable):
        lists_of(write(tmp_path, text), block_bytes)


def test_a_buffer_without_a_place_to_cut_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_BUFFER", 1000)
    path = write(tmp_path, json.dumps({"a": [{"x": "a" * 5000}, {"x": 1}]}))
    with pytest.raises(NotStreamable, match="no place to cut"):
        lists_of(path, 100)
