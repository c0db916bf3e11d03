"""The comparison of runs: what is beyond noise, what cannot be compared, what is written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lt_det.evaluation import LongTailClassificationEvaluator, LongTailSemSegEvaluator
from lt_det.evaluation.bootstrap import paired_bootstrap
from lt_det.evaluation.per_image import read_per_image
from lt_det.evaluation.results import add_run_info, class_values, read_record, write_record
from tests.evaluation.lvis_runs import CLASSES, DATASET, ground_truth, predictions, write_run
from tests.tools.load import load_tool

tool = load_tool("compare")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders: three seeds of one detector, one that misses rare classes, one of other images."""
    folder = tmp_path_factory.mktemp("runs")
    gt = ground_truth()
    for seed in (1, 2, 3):
        write_run(folder / f"seed{seed}", gt, predictions(gt, seed), seed=seed)
    planted = [(0, 0.05), (1, 0.05)]
    for seed in (4, 5):
        worse = predictions(gt, seed, found_of=planted)
        write_run(folder / f"worse{seed}", gt, worse, seed=seed, config="configs/worse.yaml")
    other = ground_truth(seed=9)
    write_run(folder / "other", other, predictions(other, 1))
    return folder


def run(capsys, *arguments):
    code = tool.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(text, start):
    """Cells of the rows of the tables that begin so."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def verdicts(text):
    return {cells[0]: cells[-1] for cells in rows(text, "box AP")}


def test_seeds_of_one_detector_do_not_differ_beyond_noise(capsys, runs):
    code, out, _ = run(capsys, runs / "seed1", runs / "seed2")
    assert code == 0
    assert set(verdicts(out).values()) == {"no difference beyond noise"}
    assert list(verdicts(out)) == ["box AP", "box APr", "box APc", "box APf"]
    assert "**None of 4 metrics differs beyond noise.**" in out
    assert "0 remain if at most 5% of them" in out
    assert "not the seed of the training: A and B are one run each" in out


def test_a_run_does_not_differ_from_itself(capsys, runs):
    _, out, _ = run(capsys, runs / "seed1", runs / "seed1", "--resamples", 20)
    assert {cells[4] for cells in rows(out, "box AP")} == {"+0.00"}
    assert "Classes that moved" not in out


def test_a_planted_difference_is_found_in_its_group_and_classes(capsys, runs):
    code, out, _ = run(capsys, runs / "seed1", runs / "worse4", "--top", 4)
    assert code == 0
    assert "**Beyond noise, B - A: box AP" in out and "by chance alone about 0.2 would" in out
    found = verdicts(out)
    found.pop("box AP")  # two of nine classes
    assert found == {
        "box APr": "beyond noise",
        "box APc": "no difference beyond noise",
        "box APf": "no difference beyond noise",
    }
    classes = rows(out, "class ")
    assert len(classes) == 5  # with the head
    assert {cells[0] for cells in classes[1:3]} == {"class 0", "class 1"}
    assert [cells[1] for cells in classes[1:3]] == ["rare", "rare"]
    assert [cells[-1] for cells in classes[1:3]] == ["yes, controlled"] * 2


def test_numbers_are_those_of_the_records_and_of_the_bootstrap(capsys, runs, tmp_path):
    file = tmp_path / "numbers.json"
    arguments = ("--resamples", 50, "--seed", 3, "--json", file)
    _, out, _ = run(capsys, runs / "seed1", runs / "worse4", *arguments)
    sides = [runs / name for name in ("seed1", "worse4")]
    records = [read_record(side / "results" / f"{DATASET}.json") for side in sides]
    images = [read_per_image(side / "inference" / DATASET, CLASSES)[0] for side in sides]
    groups = records[0]["per_class"]["group"]
    expected = paired_bootstrap(*images, groups, resamples=50, seed=3)
    (found,) = json.loads(file.read_text())
    part = found["parts"]["bbox"]
    for name, group in {"AP": "all", "APr": "r", "APc": "c", "APf": "f"}.items():
        a, b = (record["metrics"]["bbox"][name] for record in records)
        own = expected.groups[group]
        assert part["groups"][name] == own._asdict()
        assert (own.value_a, own.value_b) == pytest.approx((a, b), abs=1e-9)
        title, classes, *cells = rows(out, f"box {name} ")[0]
        assert cells[:4] == [
            *(f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}"),
            f"{own.low:+.2f} to {own.high:+.2f}",
        ]
        assert classes == ("9" if name == "AP" else "3")
    for name in ("difference", "low", "high", "p_value", "images", "judged", "beyond_noise"):
        np.testing.assert_array_equal(part["classes"][name], getattr(expected, name))
    assert part["classes"]["name"] == records[0]["per_class"]["name"]
    assert part["expected_by_chance"] == pytest.approx(0.05 * expected.judged.sum())
    assert (found["resamples"], found["seed"], found["a"][0]["seed"]) == (50, 3, 1)


def test_several_seeds_give_mean_and_spread_and_are_resampled(capsys, runs, tmp_path):
    file = tmp_path / "numbers.json"
    a, b = ([runs / f"{n}{s}" for s in seeds] for n, seeds in (("seed", "123"), ("worse", "45")))
    code, out, _ = run(capsys, "--a", *a, "--b", *b, "--json", file, "--resamples", 300)
    values = [read_record(f / "results" / f"{DATASET}.json")["metrics"]["bbox"]["APr"] for f in a]
    cells = rows(out, "box APr")[0]
    assert code == 0 and cells[2] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert cells[-1] == "beyond noise" and "box APc" in verdicts(out)
    assert "A: boxes (3 runs, seed 1, 2, 3)" in out and "B: worse (2 runs, seed 4, 5)" in out
    assert "the choice of the test images and the seed of the training" in out
    images = [[read_per_image(f / "inference" / DATASET, CLASSES)[0] for f in s] for s in (a, b)]
    groups = ["r"] * 3 + ["c"] * 3 + ["f"] * 3
    expected = paired_bootstrap(*images, groups, resamples=300).groups["r"]
    part = json.loads(file.read_text())[0]["parts"]["bbox"]
    assert part["groups"]["APr"] == expected._asdict()


def test_records_alone_give_values_without_verdicts(capsys, tmp_path):
    file = tmp_path / "numbers.json"
    sides = [
        [ROOT / f"configs/quick/results/{name}_seed{s}.json" for s in (1, 2, 3)]
        for name in ("softmax", "eqlv2")
    ]
    code, out, _ = run(capsys, "--a", *sides[0], "--b", *sides[1], "--json", file)
    assert code == 0 and "quick/inference/lt_synthetic_val has none of matches_bbox.npz" in out
    values = [[read_record(path)["metrics"]["segm"]["APr"] for path in side] for side in sides]
    cells = rows(out, "mask APr")[0]
    assert cells[4:] == [f"{np.mean(values[1]) - np.mean(values[0]):+.2f}", "-", "-"]
    parts = json.loads(file.read_text())[0]["parts"]
    assert list(parts) == ["bbox", "segm"]
    a, b = np.mean(values, axis=1)
    expected = {"difference": b - a, "value_a": a, "value_b": b}
    assert parts["segm"]["groups"]["APr"] == pytest.approx(expected)
    assert "has none of matches_bbox.npz" in parts["segm"]["missing"]
    records = [[read_record(path) for path in side] for side in sides]
    a, b = (np.mean([class_values(r, "segm/AP") for r in side], axis=0) for side in records)
    differences = np.array(parts["segm"]["classes"]["difference"], dtype=float)
    np.testing.assert_allclose(differences, b - a)
    assert parts["segm"]["classes"]["name"] == records[0][0]["per_class"]["name"]


def test_a_record_outside_of_a_run_folder_says_why_there_is_no_verdict(capsys, runs, tmp_path):
    files = [runs / name / "results" / f"{DATASET}.json" for name in ("seed1", "seed2")]
    copies = [tmp_path / f"{k}.json" for k in range(2)]
    for file, copy in zip(files, copies, strict=True):
        copy.write_text(file.read_text())
    _, out, _ = run(capsys, *copies)
    assert "no verdicts: a record outside of its run folder has no per-image results" in out
    # The record in its folder is the run.
    assert run(capsys, *files) == run(capsys, runs / "seed1", runs / "seed2")


def test_classes_with_few_test_images_are_listed_apart(capsys, tmp_path):
    gt = ground_truth(images=80)
    kept = [a for a in gt["annotations"] if a["category_id"] != 1 or a["image_id"] < 15]
    few = len({a["image_id"] for a in kept if a["category_id"] == 1})
    gt = {**gt, "annotations": kept}
    for seed in (1, 2):
        results = predictions(gt, seed, found_of=[(0, seed - 1)])
        write_run(tmp_path / str(seed), gt, results)
    _, out, _ = run(capsys, tmp_path / "1", tmp_path / "2", "--resamples", 50)
    assert 0 < few < 6 and "1 classes have fewer than 6 test images" in out
    assert f", {few})." in out and not rows(out, "class 0")


def test_groups_that_few_images_hold_are_not_judged(capsys, tmp_path):
    # Rare classes in at most five images. Of them and of common ones B finds all, A none.
    gt = ground_truth(images=60)
    gt["annotations"] = [
        a for a in gt["annotations"] if a["category_id"] > 3 or a["image_id"] % 12 == 0
    ]
    rare = [a for a in gt["annotations"] if a["category_id"] <= 3]
    assert 0 < len({a["image_id"] for a in rare}) < 6
    for name, chance in (("a", 0.0), ("b", 1.0)):
        found_of = [(k, chance) for k in range(6)]
        write_run(tmp_path / name, gt, predictions(gt, 1, found_of=found_of))
    file = tmp_path / "numbers.json"
    options = ("--resamples", 50, "--json", file)
    _, out, _ = run(capsys, tmp_path / "a", tmp_path / "b", *options)
    assert verdicts(out)["box APr"] == "too few test images to judge"
    assert verdicts(out)["box APc"] == "beyond noise"
    assert verdicts(out)["box APf"] == "no difference beyond noise"
    summary = next(line for line in out.splitlines() if line.startswith("**"))
    assert "box APc +" in summary and "box APr" not in summary
    assert "(of 3 metrics; 1 not judged: too few test images to judge; by chance" in summary
    groups = json.loads(file.read_text())[0]["parts"]["bbox"]["groups"]
    assert {k: v["judged"] for k, v in groups.items()} == {
        **{"AP": True, "APr": False, "APc": True, "APf": True}
    }
    # A third of all classes; of rare ones, which are not judged, nothing more is to be said.
    few = groups["AP"]["few_images"]
    text = f"{few} of {groups['AP']['classes']} classes have fewer than 6 test images: the interval"
    assert few > 1 and f"box AP: {text} is somewhat narrow." in out
    assert "box APr: " not in out and "box APc: " not in out


def test_a_set_of_few_images_gives_no_verdict_at_all(capsys, tmp_path):
    gt = ground_truth(images=5)
    for name, found in (("a", 0.0), ("b", 1.0)):
        write_run(tmp_path / name, gt, predictions(gt, 1, found=found))
    _, out, _ = run(capsys, tmp_path / "a", tmp_path / "b", "--resamples", 20)
    assert set(verdicts(out).values()) == {"too few test images to judge"}
    assert "**No verdicts: too few test images to judge.**" in out and "None of" not in out


def classify(folder, seed, rare):
    """A run of a classifier that is right in 70 % of the images, of rare classes in `rare`."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(6), 30)
    right = rng.random(len(labels)) < np.where(labels < 2, rare, 0.7)
    top = np.where(right, labels, (labels + 1) % 6)
    scores = torch.nn.functional.one_hot(torch.from_numpy(top), 6).float()
    evaluator = LongTailClassificationEvaluator(
        dataset_name="images_val",
        class_names=[f"class {k}" for k in range(6)],
        groups=list("rrccff"),
        output_dir=str(folder / "inference" / "images_val"),
        distributed=False,
    )
    ids = [{"image_id": i, "label": int(k)} for i, k in enumerate(labels)]
    evaluator.process(ids, [{"scores": s} for s in scores])
    evaluator.evaluate()
    return finish(folder, evaluator.record, seed)


def segment(folder, seed, rare):
    """A run of a segmentor that is right in 70 % of the pixels, of rare classes in `rare`."""
    rng = np.random.default_rng(seed)
    evaluator = LongTailSemSegEvaluator(
        dataset_name="maps_val",
        class_names=[f"class {k}" for k in range(6)],
        read_labels=lambda image: image["labels"],
        groups=list("rrccff"),
        output_dir=str(folder / "inference" / "maps_val"),
        distributed=False,
    )
    labels = np.random.default_rng(0).integers(0, 6, (25, 8, 8))
    for i, own in enumerate(labels):
        right = rng.random(own.shape) < np.where(own < 2, rare, 0.7)
        predicted = np.where(right, own, rng.integers(0, 6, own.shape))
        image = {"file_name": f"{folder}/images/{i}.png", "labels": own.astype(np.uint8)}
        evaluator.process([image], [{"sem_seg": torch.from_numpy(predicted)}])
    evaluator.evaluate()
    return finish(folder, evaluator.record, seed)


def finish(folder, record, seed):
    record = add_run_info(record, iteration=1, seed=seed, config="a.yaml", weights=None)
    write_record(folder / "results" / f"{record['dataset']}.json", record)
    return record["metrics"]


@pytest.mark.parametrize(
    ("evaluated", "titles"),
    [
        (classify, {"top-1": "top1", "class mean": "mean_class", "few": "few", "many": "many"}),
        (segment, {"mIoU": "mIoU", "tail": "mIoU_tail", "head": "mIoU_head"}),
    ],
)
def test_classification_and_segmentation_are_compared(capsys, tmp_path, evaluated, titles):
    (first,) = evaluated(tmp_path / "a", 1, rare=0.7).values()
    (worse,) = evaluated(tmp_path / "b", 2, rare=0.2).values()
    evaluated(tmp_path / "c", 3, rare=0.7)
    _, out, _ = run(capsys, tmp_path / "a", tmp_path / "b")
    for title, name in titles.items():
        cells = rows(out, f"{title} ")[0]
        assert cells[2:4] == [f"{first[name]:.2f}", f"{worse[name]:.2f}"]
    tail = next(title for title, name in titles.items() if name in ("few", "mIoU_tail"))
    assert rows(out, f"{tail} ")[0][-1] == "beyond noise"
    assert [cells[1] for cells in rows(out, "class ")[-6:][:2]] == [tail, tail]
    _, out, _ = run(capsys, tmp_path / "a", tmp_path / "c")
    assert rows(out, f"{tail} ")[0][-1] == "no difference beyond noise"


def test_of_a_run_folder_the_last_evaluation_is_compared(capsys, runs, tmp_path):
    run_folder = changed(runs / "seed2", tmp_path / "run", lambda r: None)
    best = read_record(run_folder / "results" / f"{DATASET}.json")
    best["run"]["selection"] = "best on boxes_train"
    best["metrics"]["bbox"]["AP"] = 99.0
    path = run_folder / "results" / f"{DATASET}.best.json"
    write_record(path, best)
    expected = run(capsys, runs / "seed1", runs / "seed2")
    assert run(capsys, runs / "seed1", run_folder) == expected
    assert run(capsys, runs / "seed1", path)[0] == 1


def test_what_has_no_value_is_null_in_the_file(capsys, tmp_path):
    gt = ground_truth(20)
    gt["annotations"] = [a for a in gt["annotations"] if a["category_id"] > 3]
    for seed in (1, 2):
        write_run(tmp_path / str(seed), gt, predictions(gt, seed))
    _, out, _ = run(capsys, tmp_path / "1", tmp_path / "2", "--json", tmp_path / "x.json")
    part = json.loads((tmp_path / "x.json").read_text())[0]["parts"]["bbox"]
    assert part["groups"]["APr"] == {
        **dict.fromkeys(("difference", "low", "high", "value_a", "value_b")),
        **{"beyond_noise": False, "judged": False, "classes": 0, "few_images": 0},
    }
    assert part["classes"]["low"][:3] == [None] * 3 and not rows(out, "box APr")
    assert None not in part["classes"]["low"][3:]


# ------------------------------------------------------------------ refusals


def changed(source, target, change):
    """A copy of a run's record with a change; the files stay those of the run."""
    record = read_record(source / "results" / f"{DATASET}.json")
    change(record)
    (target / "inference").mkdir(parents=True)
    (target / "inference" / record["dataset"]).symlink_to(source / "inference" / DATASET)
    write_record(target / "results" / f"{record['dataset']}.json", record)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["protocol"].update(rules="fixed"), r"protocol \(rules\): 'lvis' and 'fixed'"),
        (lambda r: r["protocol"].update(more=1), r"protocol \(more\): None and 1"),
        (lambda r: r.update(dataset="test"), "no test set is common.* A has boxes_val, B has test"),
        (lambda r: r["per_class"]["group"].__setitem__(4, "r"), "groups: 'c' and 'r' for class 4"),
        (lambda r: r["per_class"]["name"].__setitem__(0, "x"), "names: 'class 0' and 'x' for"),
        (lambda r: r["run"].update(selection="best on val"), "'last' and 'best on val'"),
        (
            lambda r: r["per_class"]["bbox/AP"].__setitem__(0, 1.0),
            "are of another evaluation than the record of boxes_val: bbox/AP of class 'class 0'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(capsys, runs, tmp_path, change, message):
    other = changed(runs / "seed2", tmp_path / "run", change)
    code, out, err = run(capsys, runs / "seed1", other, "--resamples", 5)
    assert code == 1 and not out
    assert re.search(message, err)


def test_lists_that_differ_from_none_are_not_printed_whole(capsys, runs, tmp_path):
    other = changed(runs / "seed2", tmp_path / "run", lambda r: r["per_class"].pop("group"))
    code, _, err = run(capsys, runs / "seed1", other)
    assert code == 1 and err.endswith("they differ in groups: 9 entries and None\n")


def test_a_run_is_given_once_on_a_side(capsys, runs, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(runs / "seed1")
    record = runs / "seed1" / "results" / f"{DATASET}.json"
    for again in (runs / "seed1", link, record):
        code, out, err = run(capsys, "--a", runs / "seed2", "--b", runs / "seed1", again)
        assert code == 1 and not out
        assert f"{runs / 'seed1'} and {again} are one run" in err and str(record) in err


def test_other_test_images_are_refused(capsys, runs):
    code, _, err = run(capsys, runs / "seed1", runs / "other")
    assert code == 1 and "the ground truth differs" in err


def test_runs_that_are_not_there_are_named(capsys, runs, tmp_path):
    code, _, err = run(capsys, runs / "seed1", tmp_path / "nothing")
    assert code == 1 and f"no run directory or result record {tmp_path / 'nothing'}" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "two runs are compared, got 1"),
        (["x", "y", "z"], "got 3; --a and --b take several"),
        (["x", "--a", "y"], "either two runs, or runs with --a and --b"),
        (["--a", "y"], "each side needs a run"),
        ([], "either two runs"),
        (["x", "y", "--resamples", "1"], "--resamples must be at least 2"),
        (["x", "y", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["x", "y", "--top", "-3"], "--top must be at least 0, got -3"),
    ],
)
def test_arguments_that_cannot_be_used(capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err
