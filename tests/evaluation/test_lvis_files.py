"""The LVIS evaluator's files: several ranks, disks that are not shared, runs that were killed."""

import functools
import json

import numpy as np
import pytest
from detectron2.utils import comm

from lt_det.evaluation import lvis, prediction_files
from lt_det.evaluation.lvis_predictions import PREDICTIONS_FILE, read_predictions
from lt_det.evaluation.prediction_files import FOLDER, PredictionFiles, part_files, read_folder
from tests.evaluation.test_lvis import (
    federated_dataset,
    instances,
    make_evaluator,
    random_predictions,
)
from tests.gloo import run_on_ranks
from tests.tools.load import load_tool

# Images of each rank; a padding sampler gives one of them to both.
SPLIT = ((0, 1, 2, 5, 6), (3, 4, 0))


@functools.cache
def case():
    rng = np.random.default_rng(21)
    dataset = federated_dataset(rng)
    return dataset, list(random_predictions(rng, dataset).items())


def evaluator_in(folder, **kwargs):
    folder.mkdir(parents=True, exist_ok=True)
    return make_evaluator(folder, case()[0], **kwargs)


def process(evaluator, images):
    """Some images, by index; without a reset."""
    for image_id, own in (case()[1][k] for k in images):
        evaluator.process([{"image_id": image_id}], [{"instances": instances(own)}])


def ids(images):
    return {case()[1][k][0] for k in images}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The record of one process that has seen all images."""
    evaluator = evaluator_in(tmp_path_factory.mktemp("alone"))
    process(evaluator, range(7))
    evaluator.evaluate()
    assert evaluator.record["metrics"]["bbox"]["AP"] > 5
    return evaluator.record


@pytest.fixture
def small_parts(monkeypatch):
    """A part after every image."""
    monkeypatch.setattr(prediction_files, "PART_BYTES", 0)


def test_files_of_an_evaluation_that_died_give_its_result(tmp_path, expected, small_parts):
    """All images are processed, and then the process dies."""
    process(evaluator_in(tmp_path), range(7))
    folder = tmp_path / FOLDER
    assert set(read_folder(folder).images.tolist()) == ids(range(7))
    fresh = evaluator_in(tmp_path)
    fresh.evaluate_predictions(read_predictions(folder))
    assert fresh.record == expected
    assert len(part_files(folder)) == 7  # not touched


def test_files_of_a_killed_inference_can_be_evaluated_as_they_are(
    tmp_path, small_parts, capsys, caplog
):
    """Images that are wanting count as images without detections, which is said."""
    process(evaluator_in(tmp_path), (0, 1, 4))
    whole = evaluator_in(tmp_path / "whole")
    process(whole, (0, 1, 4))
    results = whole.evaluate()
    arguments = ["--gt", str(tmp_path / "gt.json"), "--pred", str(tmp_path / FOLDER)]
    with caplog.at_level("INFO", logger="lt_det"):
        assert load_tool("evaluate_json").main(arguments) == 0
    assert "predictions for 3 images; others count as images without detections" in caplog.text
    printed = capsys.readouterr().out
    for task in ("bbox", "segm"):
        assert results[task]["AP"] > 0 and f"{results[task]['AP']:.2f}" in printed


def test_what_two_ranks_have_both_processed_is_read_once(tmp_path, small_parts, caplog):
    for rank in (0, 1):
        evaluator = evaluator_in(tmp_path)
        evaluator._files = PredictionFiles(str(tmp_path / FOLDER), rank=rank, ranks=2)
        process(evaluator, SPLIT[rank])
    assert len(read_predictions(tmp_path / FOLDER)) == sum(len(own) for _, own in case()[1])
    assert "1 images were processed more than once" in caplog.text


def test_a_killed_inference_goes_on(tmp_path, expected, small_parts):
    process(evaluator_in(tmp_path, fingerprint="a"), (0, 1, 4))
    evaluator = evaluator_in(tmp_path, fingerprint="a")
    done = evaluator.resume()
    assert done == ids((0, 1, 4))
    evaluator.reset()  # as every inference begins
    process(evaluator, [k for k, (image, _) in enumerate(case()[1]) if image not in done])
    evaluator.evaluate()
    assert evaluator.record == expected
    # The next evaluation is a new one.
    evaluator.reset()
    assert part_files(tmp_path / FOLDER) == []


def test_other_weights_start_anew(tmp_path, small_parts):
    process(evaluator_in(tmp_path, fingerprint="a"), (0, 1, 4))
    evaluator = evaluator_in(tmp_path, fingerprint="b")
    assert evaluator.resume() == set()
    assert part_files(tmp_path / FOLDER) == []


def test_without_a_folder_nothing_is_written(tmp_path, expected):
    evaluator = evaluator_in(tmp_path, output_dir=None, fingerprint="a")
    assert evaluator.resume() == set()
    process(evaluator, range(7))
    evaluator.evaluate()
    assert evaluator.record == expected
    assert [path.name for path in tmp_path.iterdir()] == ["gt.json"]


# ------------------------------------------------------------------ two ranks


def run_rank(path, rank):
    """Evaluations of two ranks: their records, and the images that were found on resume."""
    prediction_files.PART_BYTES = 0
    records, done = {}, {}

    def evaluate(name, evaluator, images=SPLIT[rank]):
        process(evaluator, images)
        evaluator.evaluate()
        records[name] = evaluator.record

    def made(folder, **kwargs):
        # Each has an annotation file of its own: both would write it at once.
        output = {"output_dir": str(path / folder), **kwargs}
        return evaluator_in(path / f"gt{rank}", distributed=True, **output)

    evaluate("shared", made("shared"))
    evaluate("memory", made("", output_dir=None))
    # The second machine writes to a disk of its own.
    is_unseen, lvis._is_unseen = lvis._is_unseen, lambda part: "own1" in part
    evaluate("unshared", made(f"own{rank}"))
    lvis._is_unseen = is_unseen

    process(made("killed", fingerprint="a"), SPLIT[rank][:2])
    comm.synchronize()  # now both are dead
    evaluator = made("killed", fingerprint="a")
    done["killed"] = evaluator.resume()
    evaluate("killed", evaluator, (2, 5) if rank else (6,))

    process(made(f"killed{rank}", fingerprint="a"), SPLIT[rank][:2])
    comm.synchronize()
    evaluator = made(f"killed{rank}", fingerprint="a")
    # What one of them has would be found by itself, but not by the other.
    done["unshared"] = evaluator.resume()
    evaluate("killed, unshared", evaluator)
    return records, done


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    return path, run_on_ranks(functools.partial(run_rank, path), 2)


NAMES = ["shared", "memory", "unshared", "killed", "killed, unshared"]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_the_result_of_one(two_ranks, expected, name):
    records = two_ranks[1][0][0]
    assert records[name]["metrics"] == expected["metrics"]
    assert records[name]["per_class"] == expected["per_class"]
    assert two_ranks[1][1][0][name] is None


def test_each_rank_writes_its_own_files_and_rank_0_the_results(two_ranks):
    path, _ = two_ranks
    found = {}
    for rank in (0, 1):
        files = sorted((path / "shared" / FOLDER / f"rank{rank:04d}").iterdir())
        found[rank] = [prediction_files.read_part(str(f)).images.item() for f in files]
    assert found == {k: [case()[1][i][0] for i in SPLIT[k]] for k in (0, 1)}
    images = {r["image_id"] for r in json.loads((path / "shared" / PREDICTIONS_FILE).read_text())}
    assert images == ids(range(7))
    assert (path / "own0" / PREDICTIONS_FILE).exists()
    assert not (path / "own1" / PREDICTIONS_FILE).exists()


def test_both_ranks_leave_out_what_either_has_done(two_ranks):
    for _, done in two_ranks[1].values():
        assert done["killed"] == ids((0, 1, 3, 4))


def test_disks_that_are_not_shared_start_anew(two_ranks):
    path, results = two_ranks
    assert [done["unshared"] for _, done in results.values()] == [set(), set()]
