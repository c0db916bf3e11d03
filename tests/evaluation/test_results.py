import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import torch

import lt_det
from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.results import (
    LAST,
    add_run_info,
    best_on,
    class_values,
    format_rows,
    format_table,
    interval,
    make_record,
    metric,
    per_class_table,
    read_record,
    record_path,
    selection,
    write_record,
)

ROOT = Path(__file__).resolve().parents[2]
NAN = float("nan")


def record(ap=20.0, mask_ap=18.5, dataset="toy_val", **changes):
    fields = {
        "task": "instance",
        "dataset": dataset,
        "protocol": {"rules": "lvis", "max_detections": 300},
        "metrics": {
            "bbox": {"AP": ap, "AP50": 2 * ap, "APr": NAN},
            "segm": {"AP": mask_ap, "AP50": 2 * mask_ap, "APr": 5.0},
        },
        "per_class": {
            "name": ["ant", "bee", "cat"],
            "group": ["r", "f", "c"],
            "train_images": [2, 400, 30],
            "train_instances": [3, 900, 31],
            "bbox/AP": [NAN, ap + 1, ap - 1],
            "segm/AP": [5.0, mask_ap, 1.0],
        },
        "group_sizes": {"r": 1, "c": 1, "f": 1},
    }
    return make_record(**{**fields, **changes})


def with_run(own, seed=0, config="configs/lvis_eqlv2.yaml", **more):
    return add_run_info(
        own, iteration=90_000, seed=seed, config=config, weights="model_final.pth", **more
    )


def class_record(top1=50.0, selection=None, seed=0, **changes):
    """Of image classification, by default with a seed but no statement about the epoch."""
    fields = {
        "task": "classification",
        "dataset": "cifar_test",
        "protocol": {"split": "cifar_test", "borders": [19, 100]},
        "metrics": {
            "classification": {
                "top1": top1,
                "top5": top1 + 20,
                "mean_class": top1 - 1,
                "many": 70.0,
                "medium": 45.0,
                "few": NAN,
                "ece": 3.5,
            }
        },
        "per_class": {
            "name": ["c", "f", "r"],  # named as the letters of other groups
            "group": ["r", "f", "c"],
            "train_images": [2, 400, 30],
            "test_images": [10, 0, 10],
            "classification/accuracy": [top1 - 40, NAN, top1],
        },
        "group_sizes": {"r": 1, "c": 1, "f": 1},
    }
    own = make_record(**{**fields, **changes})
    return with_run(own, seed=seed, config="runs/gcl/config.yaml", selection=selection)


# ------------------------------------------------------------------ the record


def test_round_trip_returns_what_was_written(tmp_path):
    own = with_run(record())
    write_record(tmp_path / "results" / "toy_val.json", own)
    assert read_record(tmp_path / "results" / "toy_val.json") == own
    assert os.listdir(tmp_path / "results") == ["toy_val.json"]


def test_nan_is_null_in_the_file_and_nan_again_as_a_number(tmp_path):
    own = record()
    assert own["metrics"]["bbox"]["APr"] is None
    write_record(tmp_path / "r.json", own)
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text and json.loads(text)["per_class"]["bbox/AP"][0] is None
    again = read_record(tmp_path / "r.json")
    assert np.isnan(metric(again, "bbox/APr")) and metric(again, "segm/APr") == 5.0
    assert np.isnan(metric(again, "bbox/absent")) and np.isnan(metric(again, "sem_seg/mIoU"))
    np.testing.assert_array_equal(class_values(again, "bbox/AP"), [NAN, 21.0, 19.0])


def test_numpy_and_torch_numbers_are_the_same_as_python_ones():
    plain = record(ap=20.0, mask_ap=18.5)
    own = record(ap=np.float64(20.0), mask_ap=torch.tensor(18.5, dtype=torch.float64))
    assert own == plain
    columns = plain["per_class"]
    arrays = {
        **columns,
        "train_images": np.array(columns["train_images"]),
        "train_instances": torch.tensor(columns["train_instances"]),
        "bbox/AP": np.array([NAN, 21.0, 19.0]),
        "group": tuple(columns["group"]),
    }
    assert record(per_class=arrays) == plain


def test_run_info_is_added_to_a_copy_and_has_the_versions():
    own = record()
    before = copy.deepcopy(own)
    full = add_run_info(
        own,
        iteration=5,
        seed=7,
        config="c.yaml",
        weights="w.pth",
        counts_fingerprint="ab12",
        config_hash="cd34",
        host=1,
    )
    assert own == before and own["run"] == {}
    versions = full["run"].pop("versions")
    age = datetime.now(timezone.utc) - datetime.fromisoformat(full["run"].pop("date"))
    assert timedelta(0) <= age < timedelta(hours=1)
    assert full["run"] == {
        "iteration": 5,
        "seed": 7,
        "config": "c.yaml",
        "weights": "w.pth",
        "counts_fingerprint": "ab12",
        "config_hash": "cd34",
        "selection": None,
        "host": 1,
    }
    assert versions["lt_det"] == lt_det.__version__ and versions["numpy"] == np.__version__
    assert versions["python"] == sys.version.split()[0]
    # The version of the package lacks the "+cu130" of the module.
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(versions) == {"lt_det", "detectron2", "torch", "numpy", "python"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format_version=2), "format_version is 2; this lt_det reads 1"),
        (lambda r: r.pop("format_version"), "format_version is None"),
        (lambda r: r.pop("protocol"), "'protocol' is missing"),
        (lambda r: r["run"].update(selection="best"), r"'run\.selection' must be 'last' or"),
        (lambda r: r["run"].update(selection="best on "), r"'best on <split>', not 'best on '"),
        (lambda r: r["run"].update(selection=3), "not 3"),
        (lambda r: r["run"].update(seed="3"), r"'run\.seed' must be a int, not '3'"),
        (lambda r: r["run"].update(iteration=True), r"'run\.iteration' must be a int, not True"),
        (lambda r: r["run"].update(date=2025), r"'run\.date' must be a str, not 2025"),
        (lambda r: r["run"].update(loss=5), r"'run\.loss' must be a str, not 5"),
        (
            lambda r: r["run"].update(seconds_per_iteration="x"),
            r"'run\.seconds_per_iteration' must be a number, not 'x'",
        ),
        (
            lambda r: r["protocol"].update(images="many"),
            r"'protocol\.images' must be a number >= 0, not 'many'",
        ),
        (
            lambda r: r["protocol"].update(max_detections="all"),
            r"'protocol\.max_detections' must be a number >= 0, not 'all'",
        ),
        (
            lambda r: r["metrics"]["bbox"].update(AP=10**400),
            r"'metrics\.bbox\.AP' must be a number",
        ),
        (
            lambda r: r["per_class"].update(train_images=[-1, 2, 3]),
            r"'per_class\.train_images' must hold numbers >= 0, not -1",
        ),
        (
            lambda r: r["per_class"].update(group=["r", "z", "f"]),
            r"'per_class\.group' must hold r, c, f, not 'z'",
        ),
        (lambda r: r["per_class"].update(group=[None] * 3), r"hold r, c, f, not None"),
        (
            lambda r: r["per_class"]["name"].__setitem__(1, 3),
            r"'per_class\.name' must hold names, not 3",
        ),
        (lambda r: r.update(intervals=[]), "'intervals' must be a dict with 'metrics'"),
        (
            lambda r: r.update(intervals={"metrics": {"bbox": 3}}),
            r"'intervals\.metrics\.bbox' must be a dict",
        ),
        (
            lambda r: r.update(intervals={"metrics": {"bbox": {"AP": [1.0]}}}),
            r"'intervals\.metrics\.bbox\.AP' must be \[low, high\], not \[1\.0\]",
        ),
        (lambda r: r.update(dataset=3), "'dataset' must be a str, not a int"),
        (lambda r: r["metrics"].update(bbox=3.0), r"'metrics\.bbox' must be a dict"),
        (lambda r: r["metrics"]["bbox"].update(AP="20"), r"'metrics\.bbox\.AP'.*'20'"),
        (lambda r: r["per_class"].pop("name"), "'per_class' has no column 'name'"),
        (lambda r: r["per_class"]["segm/AP"].pop(), r"'per_class\.segm/AP' has 2 entries for 3"),
        (lambda r: r["per_class"].update({"bbox/AP": 3}), r"'per_class\.bbox/AP' must be a list"),
        (lambda r: r["per_class"]["bbox/AP"].__setitem__(0, "x"), r"'per_class\.bbox/AP'.*'x'"),
    ],
)
def test_files_of_another_shape_name_file_and_field(tmp_path, change, message):
    own = record()
    change(own)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(own))
    with pytest.raises(DataError, match=rf"broken\.json: .*{message}"):
        read_record(path)
    with pytest.raises(DataError, match=message):
        write_record(tmp_path / "new.json", own)
    assert not (tmp_path / "new.json").exists()


def test_files_that_are_missing_or_not_json_are_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"nothing\.json"):
        read_record(tmp_path / "nothing.json")
    (tmp_path / "half.json").write_text('{"format_version": 1,')
    with pytest.raises(DataError, match=r"half\.json is not a JSON file"):
        read_record(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DataError, match=r"list\.json: .*not a list"):
        read_record(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("value", "message"), [(float("inf"), "infinite"), (object(), "cannot hold a object")]
)
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(tmp_path, value, message):
    path = tmp_path / "r.json"
    write_record(path, record(ap=1.0))
    bad = record()
    bad["metrics"]["bbox"]["AP"] = value
    with pytest.raises(DataError, match=message):
        write_record(path, bad)
    assert read_record(path) == record(ap=1.0)


def test_intervals_are_read_as_numbers(tmp_path):
    own = {**record(), "intervals": {"metrics": {"bbox": {"AP": [18.5, 21.0], "APr": [NAN, NAN]}}}}
    write_record(tmp_path / "r.json", own)
    again = read_record(tmp_path / "r.json")
    assert again["intervals"]["metrics"]["bbox"]["APr"] == [None, None]
    assert interval(again, "bbox/AP") == (18.5, 21.0)
    assert np.isnan([*interval(again, "bbox/APr"), *interval(again, "segm/AP")]).all()
    assert np.isnan(interval(record(), "bbox/AP")).all()


RECORDS = [
    path
    for path in sorted((ROOT / "configs").glob("**/*.json"))
    if "format_version" in path.read_text() and "metrics" in json.loads(path.read_text())
]


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_records_of_earlier_versions_are_still_read(path, tmp_path):
    own = read_record(path)
    write_record(tmp_path / "again.json", own)
    assert read_record(tmp_path / "again.json") == own


# ------------------------------------------------------------------ tables


def cells(table):
    return [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]


def test_table_has_one_row_per_record_and_dashes_for_no_value():
    table = cells(
        format_table([record(), with_run(record(ap=30.0))], columns=["bbox/AP", "bbox/APr"])
    )
    assert table[0] == ["run", "box AP", "box APr"]
    assert table[2:] == [["toy_val", "20.0", "-"], ["lvis_eqlv2", "30.0", "-"]]


def test_a_copy_of_the_configuration_goes_by_the_name_of_its_run():
    own = [with_run(record(), config=f"output/{name}/config.yaml") for name in ("eqlv2", "seesaw")]
    assert [row[0] for row in cells(format_table(own))[2:]] == ["eqlv2", "seesaw"]


def test_default_columns_are_those_present():
    head = cells(format_table([record()]))[0]
    assert head == ["run", "box AP", "box AP50", "box APr", "mask AP", "mask AP50", "mask APr"]
    other = record(task="panoptic", metrics={"panoptic": {"PQ": 1.0}}, per_class={})
    assert cells(format_table([other]))[0] == ["run", "panoptic PQ"]


def test_records_with_the_same_label_are_averaged_over_seeds():
    runs = [with_run(record(ap=a), seed=s) for s, a in enumerate([20.0, 22.0, 27.0])]
    single = record(ap=11.25)
    table = format_table(
        [*runs[:2], single, runs[2]],
        labels=["A", "A", "B", "A"],
        columns=["bbox/AP"],
        digits=2,
    )
    # Mean 23; deviations -3, -1, 4: variance 26 / (3 - 1) = 13.
    expected = f"23.00 ± {13**0.5:.2f}"
    assert cells(table)[0] == ["run", "runs", "box AP"]
    assert cells(table)[2:] == [["A", "3", expected], ["B", "1", "11.25"]]


def test_intervals_stand_behind_the_value_of_a_single_run():
    ends = {"bbox": {"AP": [18.46, 21.04], "APr": [None, None]}}
    own = [{**record(ap=a), "intervals": {"metrics": ends}} for a in (20.0, 22.0)]
    rows = [("A", own[:1]), ("B", own), ("C", [record()])]
    columns = ["bbox/AP", "bbox/APr", "segm/AP"]
    found = cells(format_rows(rows, columns, intervals=True))[2:]
    assert [row[2:] for row in found] == [
        ["20.0 [18.5, 21.0]", "-", "18.5"],
        ["21.0 ± 1.4", "-", "18.5 ± 0.0"],
        ["20.0", "-", "18.5"],
    ]
    assert "[" not in format_rows(rows, columns)


LVIS = {"rules": "lvis", "max_detections": 300, "federated": True, "images": 9}
FIXED = {**LVIS, "rules": "lvis, fixed AP", "max_detections": None}
FIXED["max_detections_per_class"] = 10_000


@pytest.mark.parametrize(
    ("protocols", "words"),
    [
        ([LVIS, FIXED], ["lvis", "fixed AP"]),
        ([LVIS, {**LVIS, "max_detections": 100}], ["300 detections an image", "100 det.*"]),
        ([LVIS, {**LVIS, "max_detections": None}], ["300 detections an image", "all detections"]),
        ([FIXED, {**FIXED, "max_detections_per_class": 9}], ["10000 detections a class", "9 .*"]),
        ([LVIS, {**FIXED, "images": 5}], ["lvis, 9 images", "fixed AP, 5 images"]),
        (
            [{**LVIS, "images_hash": h} for h in ("a1", "b2")] + [LVIS],
            ["list a1", "list b2", "no list"],
        ),
        ([LVIS, {**LVIS, "federated": False}], ["federated", "exhaustive"]),
        ([LVIS, {**LVIS, "groups": "given"}], ["-", "groups: given"]),
        # Differences of one row with any other are told in all rows.
        ([LVIS, LVIS, FIXED], ["lvis", "lvis", "fixed AP"]),
    ],
)
def test_rows_of_other_protocols_say_how_they_differ(protocols, words):
    rows = [(str(k), [record(protocol=p)]) for k, p in enumerate(protocols)]
    table = cells(format_rows(rows, ["bbox/AP"]))
    assert table[0] == ["run", "protocol", "box AP"]
    assert len(table) == 2 + len(words)
    for row, expected in zip(table[2:], words, strict=True):
        assert re.fullmatch(expected, row[1]), row


def test_protocols_of_two_data_sets_differ_in_rules_alone_and_those_of_two_tasks_in_nothing():
    other = {**LVIS, "images": 5, "federated": False, "images_hash": "a1"}
    rows = [("A", [record(protocol=LVIS)]), ("B", [record(protocol=other, dataset="b")])]
    rows.append(("C", [class_record()]))
    assert cells(format_rows(rows))[0][:3] == ["run", "data set", "box AP"]
    rows[1] = ("B", [record(protocol={**other, "rules": "lvis, fixed AP"}, dataset="b")])
    table = cells(format_rows(rows))
    assert table[0][:3] == ["run", "data set", "protocol"]
    assert [row[2] for row in table[2:]] == ["lvis", "fixed AP", "-"]


def test_runs_that_cannot_be_compared_are_not_averaged():
    other = record(protocol={"rules": "lvis", "max_detections": 100})
    with pytest.raises(DataError, match="'A'.*protocol.*300.*100"):
        format_table([record(), other], labels=["A", "A"])
    with pytest.raises(DataError, match="dataset"):
        format_rows([("A", [record(), record(dataset="other")])])
    rows = cells(format_table([record(), record(dataset="other")], labels=["A", "A"]))
    assert rows[0][:2] == ["run", "data set"]
    assert [r[:2] for r in rows[2:]] == [["A", "toy_val"], ["A", "other"]]


# ------------------------------------------------------------------ classification, epochs


def test_classification_has_columns_of_its_own():
    table = cells(format_table([class_record()]))
    assert table[0] == ["run", "top-1", "top-5", "many", "medium", "few", "class mean", "ECE"]
    assert table[2] == ["gcl", "50.0", "70.0", "70.0", "45.0", "-", "49.0", "3.5"]


def test_a_table_of_both_tasks_has_the_columns_of_both():
    head, _, instance, classes = cells(format_table([record(), class_record()]))
    assert head[:4] == ["run", "data set", "box AP", "box AP50"] and "top-1" in head
    place = head.index("top-1")
    assert (instance[2], instance[place]) == ("20.0", "-")
    assert (classes[2], classes[place]) == ("-", "50.0")


def test_a_metric_that_no_record_has_gets_no_column():
    own = class_record(metrics={"classification": {"top1": 90.0, "mean_class": 80.0}})
    assert cells(format_table([own]))[0] == ["run", "top-1", "class mean"]


def test_groups_of_classes_are_called_many_medium_and_few():
    table = cells(per_class_table([class_record()]))
    assert table[0] == ["name", "group", "train images", "test images", "accuracy"]
    assert table[2:] == [
        ["f", "many", "400", "0", "-"],
        ["r", "medium", "30", "10", "50.0"],
        ["c", "few", "2", "10", "10.0"],
    ]


def sem_seg_record(**changes):
    """Of semantic segmentation, with groups by pixels that images would draw otherwise."""
    sizes = ("head", "common", "tail")
    metrics = {"mIoU": 40.0, "fwIoU": 60.0, "mACC": 50.0, "pACC": 80.0}
    metrics |= {f"{m}_{size}": 1.0 + k for m in ("mIoU", "mACC") for k, size in enumerate(sizes)}
    fields = {
        "task": "sem_seg",
        "dataset": "ade_val",
        "protocol": {"split": "ade_val", "groups": "thirds of the classes by training pixels"},
        "metrics": {"sem_seg": metrics},
        "per_class": {
            "name": ["lamp", "sky", "door"],
            "group": ["r", "f", "c"],
            "train_images": [90, 50, 70],
            "train_pixels": [10, 3000, 200],
            "test_images": [9, 5, 0],
            "test_pixels": [4, 300, 0],
            "sem_seg/IoU": [10.0, 90.0, NAN],
            "sem_seg/boundary_IoU": [5.0, 60.0, NAN],
        },
        "group_sizes": {"r": 1, "c": 1, "f": 1},
    }
    return make_record(**{**fields, **changes})


def test_segmentation_has_columns_of_its_own():
    table = cells(format_table([sem_seg_record()]))
    assert table[0] == ["run", "mIoU", "head", "common", "tail", "mACC", "pACC", "fwIoU"]
    assert table[2] == ["ade_val", "40.0", "1.0", "2.0", "3.0", "50.0", "80.0", "60.0"]
    metrics = {"sem_seg": {"boundary_mIoU": 20.0, "mIoU": 40.0}}
    assert cells(format_table([sem_seg_record(metrics=metrics)]))[0][1:] == [
        *("mIoU", "boundary mIoU"),
    ]


def test_titles_of_two_tasks_differ_in_one_table():
    head = cells(format_table([record(), sem_seg_record(), class_record()]))[0]
    assert len(set(head)) == len(head)
    assert head.index("box AP") < head.index("mIoU") < head.index("top-1")


def test_groups_of_segmentation_are_head_common_and_tail_and_pixels_decide_the_order():
    table = cells(per_class_table([sem_seg_record()]))
    assert table[0] == [
        *("name", "group", "train images", "train pixels", "test images", "test pixels"),
        *("IoU", "boundary IoU"),
    ]
    assert table[2:] == [
        ["sky", "head", "50", "3000", "5", "300", "90.0", "60.0"],
        ["door", "common", "70", "200", "0", "0", "-", "-"],
        ["lamp", "tail", "90", "10", "9", "4", "10.0", "5.0"],
    ]


BEST = best_on("cifar_test")


def test_last_and_best_epoch_are_rows_that_say_so():
    own = [class_record(50.0, LAST), class_record(53.0, BEST), class_record(52.0, LAST, seed=1)]
    table = cells(format_table(own, labels=["GCL"] * 3, columns=["classification/top1"]))
    assert table[0] == ["run", "epoch", "runs", "top-1"]
    assert table[2:] == [
        ["GCL", "last", "2", "51.0 ± 1.4"],
        ["GCL", "best on cifar_test", "1", "53.0"],
    ]


def test_a_record_that_does_not_state_its_epoch_is_not_taken_for_one_that_does():
    table = cells(format_table([class_record(), class_record(selection=LAST)], labels=["A", "A"]))
    assert [row[:2] for row in table[2:]] == [["A", "-"], ["A", "last"]]


@pytest.mark.parametrize("function", [per_class_table, lambda r: format_rows([("A", r)])])
def test_last_and_best_epoch_are_never_averaged(function):
    runs = [class_record(selection=LAST), class_record(selection=BEST)]
    with pytest.raises(DataError, match="selection: 'last' and 'best on cifar_test'"):
        function(runs)


def test_selection_is_read_back_and_checked(tmp_path):
    write_record(tmp_path / "r.json", class_record(selection=BEST))
    assert selection(read_record(tmp_path / "r.json")) == "best on cifar_test"
    assert selection(record()) is selection(class_record()) is None
    with pytest.raises(DataError, match="'run.selection' must be 'last' or .*, not 'final'"):
        class_record(selection="final")


def test_the_best_epoch_has_a_file_of_its_own(tmp_path):
    paths = [record_path(tmp_path, class_record(selection=s)) for s in (None, LAST, BEST)]
    names = [os.path.relpath(p, tmp_path) for p in paths]
    assert names == ["results/cifar_test.json"] * 2 + ["results/cifar_test.best.json"]


def test_class_names_do_not_end_cells_or_rows():
    own = record()
    own["per_class"]["name"] = ["a|b", "c\nd", "e\r\n\u2028f"]
    rows = per_class_table([own]).split("\n")
    assert [re.split(r"(?<!\\)\|", row)[1].strip() for row in rows[2:]] == ["c d", "e  f", "a\\|b"]
    assert len({len(re.split(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_every_line_of_a_table_has_the_same_length():
    table = format_table([record(), record(ap=100.0)], labels=["a", "a long label"])
    assert len({len(line) for line in table.splitlines()}) == 1


@pytest.mark.parametrize(("records", "labels"), [([], None), ([record()], ["a", "b"])])
def test_table_needs_records_and_a_label_for_each(records, labels):
    with pytest.raises(ValueError, match="at least one record|2 labels for 1 records"):
        format_table(records, labels=labels)


def test_classes_are_sorted_by_training_images():
    table = cells(per_class_table([record(ap=20.0), record(ap=22.0)]))
    assert table[0] == ["name", "group", "train images", "train instances", "box AP", "mask AP"]
    assert [row[0] for row in table[2:]] == ["bee", "cat", "ant"]
    assert table[2] == ["bee", "frequent", "400", "900", "22.0 ± 1.4", "18.5 ± 0.0"]
    assert table[4][4] == "-"
    with pytest.raises(DataError, match="no or different classes"):
        per_class_table([record(), record(per_class={"name": ["dog"]})])


def test_a_column_that_is_not_there_lists_those_that_are():
    with pytest.raises(DataError, match=r"'bbox/AP75'.*name, group, .*segm/AP"):
        class_values(record(), "bbox/AP75")


# ------------------------------------------------------------------ tools/show_results.py


def load_tool():
    spec = importlib.util.spec_from_file_location("show_results", ROOT / "tools/show_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(tmp_path):
    for seed, ap in enumerate([20.0, 22.0]):
        folder = tmp_path / f"run{seed}" / "results"
        write_record(folder / "toy_val.json", with_run(record(ap=ap), seed=seed))
    return [str(tmp_path / "run0"), str(tmp_path / "run1")]


def show(capsys, *argv):
    code = load_tool().main([str(a) for a in argv])
    return code, capsys.readouterr()


def test_show_results_prints_one_row_per_run(capsys, runs):
    code, out = show(capsys, *runs, "--columns", "bbox/AP", "segm/AP")
    assert code == 0
    assert cells(out.out)[2:] == [["run0", "20.0", "18.5"], ["run1", "22.0", "18.5"]]


@pytest.mark.parametrize("by", ["label", "config"])
def test_show_results_averages_seeds(capsys, runs, by):
    if by == "label":
        argv, name = [f"EQLv2={r}" for r in runs], "EQLv2"
    else:
        argv, name = [*runs, "--group-by", "config"], "lvis_eqlv2"
    code, out = show(capsys, *argv, "--columns", "bbox/AP")
    assert code == 0
    assert cells(out.out)[2:] == [[name, "2", "21.0 ± 1.4"]]


def test_show_results_can_keep_runs_of_one_label_apart(capsys, runs):
    argv = [f"EQLv2={r}" for r in runs]
    _, out = show(capsys, *argv, "--group-by", "none", "--columns", "bbox/AP")
    assert cells(out.out)[2:] == [["EQLv2", "20.0"], ["EQLv2", "22.0"]]


def test_show_results_prints_classes_by_training_count(capsys, runs):
    code, out = show(capsys, f"{runs[0]}/results/toy_val.json", "--per-class")
    assert code == 0
    lines = cells(out.out.split("lvis_eqlv2, toy_val")[1].strip())
    assert [line[0] for line in lines[2:]] == ["bee", "cat", "ant"]


def test_show_results_keeps_epochs_apart(capsys, tmp_path):
    """Both records of one run folder, under one label and in two runs."""
    for seed in (0, 1):
        for top1, epoch in ((50.0 + seed, LAST), (60.0 + seed, BEST)):
            own = class_record(top1, epoch, seed=seed)
            write_record(record_path(tmp_path / f"run{seed}", own), own)
    folders = [f"GCL={tmp_path / f'run{seed}'}" for seed in (0, 1)]
    code, out = show(capsys, *folders, "--columns", "classification/top1", "--per-class")
    assert code == 0
    table, *classes = out.out.split("\n\n")
    assert sorted(cells(table)[2:]) == [
        ["GCL", "best on cifar_test", "2", "60.5 ± 0.7"],
        ["GCL", "last", "2", "50.5 ± 0.7"],
    ]
    assert sorted(classes[0::2]) == [
        "GCL, cifar_test, epoch: best on cifar_test",
        "GCL, cifar_test, epoch: last",
    ]
    assert [row[1] for row in cells(classes[1])[2:]] == ["many", "medium", "few"]


def test_show_results_names_what_is_missing(capsys, runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for argument, wanted in (
        (tmp_path / "nowhere", "nowhere"),
        (f"A={tmp_path / 'nowhere'}", "nowhere"),
        (tmp_path / "empty", "tools/train_net.py writes one per test set"),
    ):
        code, out = show(capsys, runs[0], argument)
        assert code == 1 and out.out == ""
        assert out.err.startswith("error: ") and wanted in out.err


def test_show_results_starts_without_detectron2_or_torch(runs):
    code = (
        "import runpy, sys; sys.modules.update(torch=None, detectron2=None); "
        f"sys.argv = ['show_results.py', {runs[0]!r}]; "
        "runpy.run_path('tools/show_results.py', run_name='__main__')"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert cells(out.stdout)[2][0] == "run0"
