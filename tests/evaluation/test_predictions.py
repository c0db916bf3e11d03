"""Columns of predictions: from and to the results format, files, and what is wrong in them."""

import json
from dataclasses import replace

import numpy as np
import orjson
import pycocotools.mask as mask_utils
import pytest

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation import Predictions, load_predictions, read_predictions
from lt_det.evaluation.json_files import read_json, read_json_list, write_json_list
from lt_det.evaluation.lvis_predictions import write_predictions
from lt_det.evaluation.predictions import check_sizes, concatenate, is_finite, rles_of


def mask(seed, size=(20, 30)):
    pixels = np.random.default_rng(seed).random(size) < 0.3
    rle = mask_utils.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def results(number, boxes=True, masks=True, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for k in range(number):
        p = {
            "image_id": int(rng.integers(0, 1 << 40)),
            "category_id": int(rng.integers(1, 1204)),
            "score": float(rng.random()),
        }
        if boxes:
            p["bbox"] = [float(v) for v in rng.uniform(0, 99, 4)]
        if masks:
            p["segmentation"] = mask(k)
        out.append(p)
    return out


KINDS = [(True, True), (True, False), (False, True)]


# ---- columns ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("boxes", "masks"), KINDS)
def test_results_come_back_as_they_were(boxes, masks):
    given = results(600, boxes, masks)  # more than are read at once
    columns = Predictions.from_results(given)
    assert len(columns) == 600
    assert columns.tasks == {t for t, there in (("bbox", boxes), ("segm", masks)) if there}
    assert [p for piece in columns.results(block=101) for p in piece] == given


@pytest.mark.parametrize(("boxes", "masks"), KINDS)
def test_json_is_what_orjson_makes_of_the_results(boxes, masks):
    given = results(300, boxes, masks)
    given[7]["score"], given[9]["score"], given[11]["image_id"] = 1.0, 1e-7, -5
    if boxes:
        given[3]["bbox"] = [0, -1e22, 5e-324, 0.1]
        for p in given:
            p["bbox"] = [float(v) for v in p["bbox"]]
    columns = Predictions.from_results(given)
    assert (b"\\" in orjson.dumps(given)) == masks  # a character that is written as two
    for block in (1, 7, 300, 1000):
        assert b"[%b]" % b",".join(columns.json_pieces(block)) == orjson.dumps(given)
    if masks:
        # Broken, but kept: what was computed is not lost.
        given[5]["segmentation"]["counts"] = 'a"b\n\x7f'
        assert b"[%b]" % next(Predictions.from_results(given).json_pieces()) == orjson.dumps(given)
    # Columns of other types are written as the numbers they are.
    other = replace(columns, image_ids=abs(columns.image_ids).astype(np.uint64))
    if masks:
        other = replace(other, mask_sizes=columns.mask_sizes.astype(">i4"))
    assert orjson.loads(b"[%b]" % next(other.json_pieces())) == next(other.results())
    # Columns of float32 are written as the numbers they are.
    narrow = replace(columns, scores=columns.scores.astype(np.float32))
    found = orjson.loads(b"[%b]" % next(narrow.json_pieces()))
    assert [p["score"] for p in found] == narrow.scores.tolist()
    assert list(Predictions.from_results([]).json_pieces()) == []


def test_masks_are_those_of_the_rows():
    given = results(300)
    columns = Predictions.from_results(given)
    rows = np.array([299, 3, 3, 0, 150])
    found = columns.masks(rows)
    for row, rle in zip(rows, found, strict=True):
        assert np.array_equal(mask_utils.decode(rle), mask_utils.decode(given[row]["segmentation"]))
    assert columns.masks(np.arange(4)) == columns.masks(np.arange(300))[:4]


def test_masks_may_be_text_bytes_or_runs():
    text = mask(5)
    pixels = mask_utils.decode(text)
    changes = np.flatnonzero(np.diff(pixels.ravel(order="F"))) + 1
    runs = np.diff([0, *changes, pixels.size]).tolist()
    runs = runs if pixels[0, 0] == 0 else [0, *runs]
    kinds = [text, {**text, "counts": text["counts"].encode()}, {**text, "counts": runs}]
    base = results(1, masks=False)[0]
    for order in ([0, 1, 2], [0], [1], [2], [2, 0]):
        columns = Predictions.from_results([{**base, "segmentation": kinds[k]} for k in order])
        expected = [{**text, "counts": text["counts"].encode()}] * len(order)
        assert columns.masks(np.arange(len(order))) == expected


def test_selected_rows_are_those_of_the_results():
    given = results(50)
    columns = Predictions.from_results(given)
    rows = np.array([7, 0, 49, 7])
    assert next(columns.select(rows).results()) == [given[k] for k in rows]
    some = np.arange(50) % 3 == 0
    assert next(columns.select(some).results()) == given[::3]


def test_parts_are_joined_in_turn():
    given = results(40)
    cuts = [given[:11], [], given[11:12], given[12:]]
    joined = concatenate([Predictions.from_results(part) for part in cuts])
    assert next(joined.results()) == given
    assert len(concatenate([])) == 0
    with pytest.raises(DataError, match="some predictions have a box or mask"):
        concatenate([joined, Predictions.from_results(results(3, masks=False))])


def test_measures_are_those_of_pycocotools_and_stay_with_their_rows(tmp_path):
    given = results(600)  # more than pycocotools counts at once
    columns = Predictions.from_results(given).measured()
    rles = columns.masks(np.arange(600))
    assert columns.mask_areas.tolist() == [int(mask_utils.area(rle)) for rle in rles]
    assert columns.mask_boxes.tolist() == [mask_utils.toBbox(rle).tolist() for rle in rles]
    columns.save(tmp_path / "p.npz")
    rows = np.array([7, 0, 599, 7])
    parts = [columns.select(np.arange(k, min(k + 250, 600))) for k in range(0, 600, 250)]
    for own, of in (
        (Predictions.load(tmp_path / "p.npz"), slice(None)),
        (columns.select(rows), rows),
        (concatenate(parts), slice(None)),
    ):
        for name in ("mask_areas", "mask_boxes"):
            assert np.array_equal(getattr(own, name), getattr(columns, name)[of])
    # As in the folder of an evaluation that was begun by a version without them.
    plain = replace(parts[1], mask_areas=None, mask_boxes=None)
    mixed = concatenate([parts[0], plain])
    assert mixed.mask_areas is None and mixed.mask_boxes is None
    assert [p for piece in mixed.results() for p in piece] == given[:500]
    boxes = Predictions.from_results(results(5, masks=False))
    assert boxes.measured() is boxes


def test_masks_that_are_not_whole_are_not_measured():
    given = results(300)
    given[280]["segmentation"] = {"size": [20, 30], "counts": [500, 50]}
    image = given[280]["image_id"]
    with pytest.raises(DataError, match=f"prediction 280, of image {image}, .* runs cover 550"):
        Predictions.from_results(given).measured()
    given[280]["segmentation"] = {"size": [20, 30], "counts": "o"}
    with pytest.raises(DataError, match="prediction 280, .* not run lengths"):
        Predictions.from_results(given).measured()


def test_masks_of_a_list_are_those_of_its_columns():
    given = results(20)
    rows = np.array([3, 19, 3, 0])
    expected = Predictions.from_results(given).masks(rows)
    pixels = mask_utils.decode(given[19]["segmentation"]).ravel(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(pixels)) + 1), pixels.size]).tolist()
    forms = {
        "text": given,
        "bytes": _with_counts(given, lambda k, text: text.encode()),
        "some text, some bytes": _with_counts(given, lambda k, t: t.encode() if k == 3 else t),
        "some runs": _with_counts(
            given, lambda k, text: [0] * int(pixels[0]) + runs if k == 19 else text
        ),
    }
    for form, own in forms.items():
        found, sizes = rles_of(own, rows)
        assert sizes.tolist() == [[20, 30]] * 4
        for rle, wanted in zip(found, expected, strict=True):
            assert rle["size"] == wanted["size"], form
            text = rle["counts"]
            assert (text.encode() if isinstance(text, str) else text) == wanted["counts"], form
    none, sizes = rles_of(given, np.zeros(0, np.int64))
    assert none == [] and sizes.shape == (0, 2)


def _with_counts(given, change):
    masks = [dict(p["segmentation"]) for p in given]
    for k, mask in enumerate(masks):
        mask["counts"] = change(k, mask["counts"])
    return [{**p, "segmentation": mask} for p, mask in zip(given, masks, strict=True)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "has 'segmentation' None, which is not an RLE"),
        ({"size": [20, 30]}, "has 'segmentation' .* which is not an RLE"),
        ({"size": [20, 30.5], "counts": "04"}, "has 'segmentation' .* which is not an RLE"),
        ({"size": [20, 30], "counts": "\xe9"}, "has 'segmentation' .* which is not an RLE"),
        ({"size": [20, 30], "counts": "o"}, r"of image \d+, has a mask whose counts are not run"),
    ],
)
def test_masks_of_a_list_that_are_none_have_their_number(wrong, message):
    given = results(8)
    given[5]["segmentation"] = wrong
    with pytest.raises(DataError, match=rf"prediction 5,? {message}"):
        rles_of(given, np.array([7, 5, 2]))
    assert rles_of(given, np.array([7, 2]))[0] == [given[k]["segmentation"] for k in (7, 2)]


def test_scalars_of_numpy_are_numbers():
    given = results(3, masks=False)
    scalars = [
        {
            "image_id": np.int64(p["image_id"]),
            "category_id": np.int32(p["category_id"]),
            "score": np.float64(p["score"]),
            "bbox": np.array(p["bbox"]),
        }
        for p in given
    ]
    columns, expected = Predictions.from_results(scalars), Predictions.from_results(given)
    for name in ("image_ids", "category_ids", "scores", "boxes"):
        assert np.array_equal(getattr(columns, name), getattr(expected, name))


# ---- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("boxes", "masks"), KINDS)
def test_files_hold_what_was_written(tmp_path, boxes, masks):
    given = results(300, boxes, masks)
    columns = Predictions.from_results(given)
    columns.save(tmp_path / "p.npz")
    write_predictions(tmp_path / "p.json", columns)
    assert load_predictions(tmp_path / "p.json") == given
    assert json.loads((tmp_path / "p.json").read_text()) == given
    for path in ("p.npz", "p.json"):
        read = read_predictions(tmp_path / path)
        assert next(read.results()) == given and read.tasks == columns.tasks


def test_a_folder_is_all_of_its_column_files_in_order(tmp_path):
    given = results(60)
    for k, name in enumerate(("rank0000/part-00000", "rank0000/part-00001", "rank0001/part-00000")):
        folder = tmp_path / name.split("/")[0]
        folder.mkdir(exist_ok=True)
        Predictions.from_results(given[20 * k : 20 * k + 20]).save(tmp_path / f"{name}.npz")
    assert next(read_predictions(tmp_path).results()) == given


def test_an_empty_folder_and_missing_files_are_named(tmp_path):
    for path, message in ((tmp_path, "no column files"), (tmp_path / "a.npz", r"a\.npz")):
        with pytest.raises(MissingFileError, match=message):
            read_predictions(path)
    with pytest.raises(MissingFileError, match=r"a\.json"):
        read_predictions(tmp_path / "a.json")


def _changed(columns, **changes):
    return {**{k: v for k, v in vars(columns).items() if v is not None}, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.zeros(4)}, r"'scores' is float64 of shape \(4,\)"),
        ({"image_ids": np.zeros(5)}, "'image_ids' is float64"),
        ({"boxes": np.zeros((5, 5))}, r"'boxes' .* \(5, 4\)"),
        ({"mask_offsets": np.zeros(6, np.int64)}, "'mask_offsets' does not rise"),
        ({"mask_offsets": None}, "no array 'mask_offsets'"),
        ({"scores": None}, "no array 'scores'"),
        ({"mask_areas": np.zeros(5, np.int64)}, "no array 'mask_boxes'"),
        ({"mask_boxes": np.zeros((5, 4), np.int32)}, "no array 'mask_areas'"),
        (
            {
                **dict.fromkeys(("mask_sizes", "mask_counts", "mask_offsets")),
                "mask_areas": np.zeros(5, np.int64),
                "mask_boxes": np.zeros((5, 4), np.int32),
            },
            "no array 'mask_sizes'",
        ),
    ],
)
def test_column_files_of_another_form_are_refused(tmp_path, change, message):
    arrays = _changed(Predictions.from_results(results(5)), **change)
    np.savez(tmp_path / "p.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(DataError, match=rf"p\.npz.*{message}"):
        read_predictions(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mask_areas", 601, "with 601 pixels"),
        ("mask_areas", -1, "with -1 pixels"),
        ("mask_boxes", [0, 0, 31, 20], r"in the box \[0, 0, 31, 20\]"),
        ("mask_boxes", [-1, 0, 30, 20], r"in the box \[-1, 0, 30, 20\]"),
        ("mask_boxes", [5, 15, 20, 6], r"in the box \[5, 15, 20, 6\]"),
    ],
)
def test_measures_outside_of_the_image_are_refused(tmp_path, name, value, message):
    columns = Predictions.from_results(results(5)).measured()
    getattr(columns, name)[3] = value
    columns.save(tmp_path / "p.npz")
    with pytest.raises(DataError, match=rf"p\.npz: prediction 3, .* 20 x 30 .*{message}"):
        read_predictions(tmp_path / "p.npz")


def test_column_files_without_boxes_and_masks_are_refused_unless_they_have_no_rows(tmp_path):
    columns = Predictions.from_results(results(5, masks=False))
    replace(columns, boxes=None).save(tmp_path / "p.npz")
    with pytest.raises(DataError, match=r"p\.npz has neither boxes .* nor masks"):
        read_predictions(tmp_path / "p.npz")
    Predictions.from_results([]).save(tmp_path / "p.npz")
    columns.save(tmp_path / "q.npz")
    assert next(read_predictions(tmp_path).results()) == results(5, masks=False)


def test_files_that_were_cut_off_are_named(tmp_path):
    columns = Predictions.from_results(results(100))
    columns.save(tmp_path / "p.npz")
    write_predictions(tmp_path / "p.json", columns)
    for name, message in (("p.npz", "cut off"), ("p.json", r"character \d+ of \d+.*cut off")):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=rf"{name}.*{message}"):
            read_predictions(tmp_path / name)


# ---- what is wrong in them -------------------------------------------------------------------


def _set(key, value):
    return lambda p: p.update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("image_id", "12"), "'image_id' '12', which is not a whole number"),
        (_set("image_id", 1.0), "'image_id' 1.0, which is not a whole number"),
        (_set("image_id", True), "'image_id' True"),
        (_set("image_id", 1 << 63), "which is not a whole number of at most 64 bits"),
        (_set("category_id", None), "'category_id' None"),
        (_set("score", "0.5"), "'score' '0.5', which is not a number"),
        (_set("score", False), "'score' False"),
        (_set("score", None), "'score' None"),
        (_set("score", 10**400), "'score' 1000.*, which is not a number in the range of float64"),
        (_set("bbox", [1, 2, 3, 10**400]), "'bbox' .*, which is not four numbers"),
        (_set("bbox", [1, 2, 3]), r"'bbox' \[1, 2, 3\], which is not four numbers"),
        (_set("bbox", [1, 2, 3, "4"]), "'bbox'"),
        (_set("bbox", [1, 2, 3, True]), "'bbox'"),
        (_set("bbox", 7), "'bbox' 7"),
        (_set("segmentation", [[1, 2, 3, 4, 5, 6]]), "'segmentation' .* not an RLE"),
        (_set("segmentation", {"size": [3, 4]}), "'segmentation' .* not an RLE"),
        (_set("segmentation", {"size": [3], "counts": "0"}), "'segmentation' .* not an RLE"),
        (_set("segmentation", {"size": [3, 4], "counts": "\xe9"}), "'segmentation'"),
        (lambda p: p.pop("score"), "has no 'score'"),
        (lambda p: p.pop("bbox"), "has no 'bbox', unlike the first one"),
        (lambda p: p.pop("segmentation"), "has no 'segmentation', unlike the first one"),
    ],
)
@pytest.mark.parametrize("row", [0, 299])
def test_an_entry_that_cannot_be_used_is_named(tmp_path, change, message, row):
    given = results(300)
    change(given[row])
    if row == 0 and "unlike" in message:
        row, message = 1, message.replace("has no", "has a")
    with pytest.raises(DataError, match=rf"^prediction {row} .*{message}"):
        Predictions.from_results(given)
    try:
        content = orjson.dumps(given)
    except TypeError:
        return  # the number is too large for orjson
    (tmp_path / "p.json").write_bytes(content)
    for read in (read_predictions, load_predictions):
        with pytest.raises(DataError, match=rf"p\.json: prediction {row} .*{message}"):
            read(tmp_path / "p.json")


def test_an_entry_that_is_no_object_is_named():
    with pytest.raises(DataError, match="prediction 2 is not an object but 'a'"):
        Predictions.from_results([*results(2), "a"])
    with pytest.raises(DataError, match="prediction 0 is not an object but 3"):
        Predictions.from_results([3])


def test_values_that_are_not_finite_are_found():
    given = results(6)
    given[1]["score"] = float("nan")
    given[3]["bbox"][2] = float("inf")
    given[4]["score"] = -float("inf")
    finite = is_finite(Predictions.from_results(given))
    assert finite.tolist() == [True, False, True, False, False, True]


def test_nan_in_a_file_is_read_and_never_written(tmp_path):
    given = results(4)
    given[2]["score"] = float("nan")
    (tmp_path / "p.json").write_text(json.dumps(given))
    columns = read_predictions(tmp_path / "p.json")
    assert np.isnan(columns.scores).tolist() == [False, False, True, False]
    with pytest.raises(DataError, match="prediction 2 .* not finite"):
        write_predictions(tmp_path / "q.json", columns)
    assert not (tmp_path / "q.json").exists()


def test_negative_sizes_are_named_and_zero_ones_are_not():
    given = results(6)
    given[2]["bbox"] = [5.0, 5.0, 0.0, 3.0]
    check_sizes(Predictions.from_results(given))
    given[3]["bbox"] = [5.0, 5.0, 4.0, -1.0]
    given[5]["bbox"] = [5.0, 5.0, -4.0, -1.0]
    message = r"prediction 3, of image \d+, .*\[5.0, 5.0, 4.0, -1.0\].*2 predictions"
    with pytest.raises(DataError, match=message):
        check_sizes(Predictions.from_results(given))


# ---- JSON in pieces ----------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("block_bytes", [1, 7, 64, 1000, 1 << 20])
def test_pieces_of_a_list_hold_its_entries(tmp_path, indent, block_bytes):
    entries = results(25)
    # Borders that are none: in a list inside an entry, and in text.
    entries[4]["parts"] = [{"a": 1}, {"b": [{}, {}]}]
    entries[9]["text"] = "}, {"
    for number in (0, 1, 3, 25):
        (tmp_path / "l.json").write_text("  " + json.dumps(entries[:number], indent=indent))
        pieces = list(read_json_list(str(tmp_path / "l.json"), block_bytes))
        assert [p for piece in pieces for p in piece] == entries[:number]
    if block_bytes == 1000:
        simple = results(25)
        (tmp_path / "l.json").write_text(json.dumps(simple))
        assert len(list(read_json_list(str(tmp_path / "l.json"), block_bytes))) > 3


def test_lists_of_other_things_are_read_whole(tmp_path):
    for content in ([1, [2], "a"], [{"a": float("inf")}, {}]):
        (tmp_path / "l.json").write_text(json.dumps(content))
        assert list(read_json_list(str(tmp_path / "l.json"), 4)) == [content]


def test_what_is_no_list_or_no_json_is_named(tmp_path):
    path = tmp_path / "l.json"
    for content, message in (
        (b'{"a": [{}, {}]}', "expected a list, got dict"),
        (b"", "not a JSON file"),
        (b'[{"a": 1}, {"a"', "line 1 column 16 .*cut off"),
        (b'[{"a": "\xff"}]', "not a JSON file: byte 8"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"l\.json.*{message}"):
            list(read_json_list(str(path), 4))


def test_lists_are_written_all_or_nothing(tmp_path):
    path = tmp_path / "l.json"
    write_json_list(path, [b'{"a":1}', b'{"b":[2]},{}'])
    assert read_json(str(path)) == [{"a": 1}, {"b": [2]}, {}]

    def fails():
        yield b'{"a":2}'
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_json_list(path, fails())
    assert read_json(str(path)) == [{"a": 1}, {"b": [2]}, {}]
    assert [p.name for p in tmp_path.iterdir()] == ["l.json"]
    write_json_list(path, [])
    assert read_json(str(path)) == []
