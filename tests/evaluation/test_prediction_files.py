"""Predictions written while they are made: what is kept, resumed, joined and refused."""

import os

import numpy as np
import pytest

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation import prediction_files
from lt_det.evaluation.prediction_files import (
    PredictionFiles,
    join_parts,
    part_files,
    read_folder,
    read_part,
)
from lt_det.evaluation.predictions import Predictions


def found(image_id, number, masks=True):
    """Predictions of an image, the same each time."""
    rng = np.random.default_rng([image_id, number])
    results = [
        {
            "image_id": image_id,
            "category_id": int(rng.integers(1, 9)),
            "bbox": rng.random(4).tolist(),
            "score": float(rng.random()),
            "segmentation": {"size": [4, 5], "counts": "0" * int(rng.integers(1, 9))},
        }
        for _ in range(number)
    ]
    if not masks:
        results = [{k: v for k, v in r.items() if k != "segmentation"} for r in results]
    if results:
        return Predictions.from_results(results)
    empty = Predictions.from_results(
        [{"image_id": 0, "category_id": 0, "score": 0, "bbox": [0] * 4}]
    )
    return empty.select(np.zeros(0, np.int64))


def rows(part):
    """All values, as dicts."""
    return [row for block in part.predictions.results() for row in block]


def add(files, numbers):
    """Predictions of images, from {id: number}."""
    for image, n in numbers.items():
        files.add(image, found(image, n))


NUMBERS = {5: 3, 2: 1, 9: 0, 4: 7, 1: 2}


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "predictions")


@pytest.fixture
def small_parts(monkeypatch):
    """A part after every image."""
    monkeypatch.setattr(prediction_files, "PART_BYTES", 0)


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("part_bytes", [0, 800, 10**9])
def test_what_goes_in_comes_out(folder, monkeypatch, on_disk, part_bytes):
    monkeypatch.setattr(prediction_files, "PART_BYTES", part_bytes)
    files = PredictionFiles(folder if on_disk else None)
    add(files, NUMBERS)
    parts = files.parts()
    assert {0: 5, 800: 2, 10**9: 1}[part_bytes] == len(parts)
    joined = join_parts(parts)
    assert joined.images.tolist() == list(NUMBERS)
    assert joined.rows.tolist() == list(NUMBERS.values())
    assert rows(joined) == [
        r for image, n in NUMBERS.items() if n for r in found(image, n).results() for r in r
    ]
    assert os.path.exists(folder) == on_disk
    if on_disk:
        assert rows(read_folder(folder)) == rows(joined)
        assert parts == part_files(folder)
    # Asking again changes nothing, and more may follow.
    assert len(files.parts()) == len(parts)
    files.add(77, found(77, 2))
    assert join_parts(files.parts()).images.tolist() == [*NUMBERS, 77]


def test_parts_are_closed_after_a_while(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(prediction_files.time, "monotonic", lambda: now[0])
    files = PredictionFiles(folder)
    for image, seconds in enumerate((0, 59, 2, 59, 1)):
        now[0] += seconds
        files.add(image, found(image, 1))
    assert [read_part(path).images.tolist() for path in part_files(folder)] == [[0, 1, 2]]
    # The time counts from the first image of a part: 62 -> 120.
    now[0] += 60
    files.add(9, found(9, 1))
    assert len(part_files(folder)) == 2


def test_memory_is_given_back_with_each_part(folder, small_parts):
    files = PredictionFiles(folder)
    add(files, NUMBERS)
    assert files._own.images == [] and files._own.bytes == 0
    assert all(isinstance(part, str) for part in files.parts())


def test_an_image_counts_once(folder, small_parts, caplog):
    first, second = (PredictionFiles(folder, rank=k, ranks=2) for k in (0, 1))
    add(first, {1: 2, 2: 3})
    add(second, {3: 1, 2: 4})
    add(first, {1: 5})
    for joined in (join_parts(first.parts() + second.parts()), read_folder(folder)):
        assert joined.images.tolist() == [1, 2, 3] and joined.rows.tolist() == [2, 3, 1]
        assert [r["image_id"] for r in rows(joined)] == [1, 1, 2, 2, 2, 3]
        assert rows(joined)[2:5] == next(found(2, 3).results())
    assert caplog.text.count("2 images were processed more than once") == 2


def test_nothing_was_processed(folder):
    files = PredictionFiles(folder)
    joined = join_parts(files.parts())
    assert len(joined.images) == len(joined.predictions) == 0 and not joined.predictions.tasks
    with pytest.raises(MissingFileError, match="no predictions in .*rank0000"):
        read_folder(folder)


def test_a_new_evaluation_removes_the_files_of_the_last_one(folder, small_parts):
    for k in range(3):
        add(PredictionFiles(folder, rank=k, ranks=3), {k: 1})
    other = os.path.join(folder, "notes")
    os.makedirs(other)
    # Two ranks now: each removes its own, and rank 0 those of ranks that there are not.
    first, second = (PredictionFiles(folder, rank=k, ranks=2) for k in (0, 1))
    first.start()
    assert [read_part(path).images.tolist() for path in part_files(folder)] == [[1]]
    second.start()
    assert part_files(folder) == [] and os.path.isdir(other)
    add(second, {6: 1})
    second.start()
    assert second.parts() == []


# ------------------------------------------------------------------ runs that were killed


def test_a_killed_run_leaves_whole_parts_only(folder, small_parts, monkeypatch):
    files = PredictionFiles(folder)
    add(files, {1: 2, 2: 3})
    save = np.savez

    def killed(f, **arrays):
        save(f, **arrays)
        f.truncate(100)
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", killed)
    with pytest.raises(KeyboardInterrupt):
        files.add(3, found(3, 4))
    assert read_folder(folder).images.tolist() == [1, 2]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_resumed_run_goes_on_where_the_last_one_died(folder, small_parts, ranks):
    for k, numbers in enumerate(({1: 2, 2: 3}, {5: 1})):
        add(PredictionFiles(folder, rank=k, ranks=2, fingerprint="a"), numbers)
    again = [PredictionFiles(folder, rank=k, ranks=ranks, fingerprint="a") for k in range(ranks)]
    kept = [files.resume() for files in again]
    assert len(kept[0]) == 3 and all(names == kept[0] for names in kept)
    assert all(files.images(kept[0]) == {1, 2, 5} for files in again)
    add(again[-1], {7: 2})
    parts = [part for files in again for part in files.parts()]
    joined, read = join_parts(parts), read_folder(folder)
    assert sorted(joined.images.tolist()) == [1, 2, 5, 7]
    assert rows(joined)[2:5] == next(found(2, 3).results())
    # Matches name predictions by their row.
    assert rows(joined) == rows(read) and joined.images.tolist() == read.images.tolist()


def test_predictions_of_other_weights_are_not_resumed(folder, small_parts, caplog):
    add(PredictionFiles(folder, fingerprint="a"), {1: 2, 2: 3})
    files = PredictionFiles(folder, fingerprint="b")
    with caplog.at_level("INFO", logger="lt_det"):
        assert files.resume() == []
    assert "2 files in" in caplog.text and "other weights" in caplog.text
    assert part_files(folder) == files.parts() == []


def test_only_rank_0_removes_files_on_resume(folder, small_parts):
    add(PredictionFiles(folder, fingerprint="a"), {1: 2, 2: 3})
    assert PredictionFiles(folder, rank=1, ranks=2, fingerprint="b").resume() == []
    assert len(part_files(folder)) == 2


def test_without_a_fingerprint_nothing_is_resumed(folder, small_parts):
    add(PredictionFiles(folder), {1: 2})
    files = PredictionFiles(folder)
    assert files.resume() == [] and part_files(folder) == []
    assert PredictionFiles(None, fingerprint="a").resume() == []


def test_a_damaged_part_is_made_again(folder, small_parts):
    add(PredictionFiles(folder, fingerprint="a"), {1: 2, 2: 3})
    path = part_files(folder)[1]
    with open(path, "r+b") as f:
        f.truncate(os.path.getsize(path) // 2)
    files = PredictionFiles(folder, fingerprint="a")
    assert files.images(files.resume()) == {1}
    assert len(part_files(folder)) == 1


# ------------------------------------------------------------------ files that do not fit


def test_a_part_that_is_cut_off_is_named(folder, small_parts):
    add(PredictionFiles(folder), {1: 2, 2: 3})
    path = part_files(folder)[1]
    with open(path, "r+b") as f:
        f.truncate(os.path.getsize(path) // 2)
    with pytest.raises(DataError, match=rf"{os.path.basename(path)} .*cut off"):
        read_folder(folder)


def test_parts_of_two_runs_are_not_mixed(folder, small_parts):
    for k, fingerprint in enumerate("ab"):
        add(PredictionFiles(folder, rank=k, ranks=2, fingerprint=fingerprint), {k: 1})
    with pytest.raises(DataError, match=r"rank0000.*rank0001.*different weights"):
        read_folder(folder)


def test_rows_that_do_not_belong_to_images_are_refused(folder):
    part = prediction_files.Part(np.array([1, 2]), np.array([2, 2]), found(1, 3))
    path = prediction_files.write_part(folder, part)
    with pytest.raises(DataError, match="2 images with 4 predictions, but 3 rows"):
        read_part(path)


def test_a_column_file_of_another_kind_is_no_part(folder):
    os.makedirs(os.path.join(folder, "rank0000"))
    found(1, 2).save(os.path.join(folder, "rank0000", "part-00000-x.npz"))
    with pytest.raises(DataError, match="no part of predictions"):
        read_folder(folder)
