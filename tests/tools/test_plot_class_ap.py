"""The plot of AP per class: order, averages, heights."""

import numpy as np
import pytest

from lt_det.errors import DataError
from lt_det.evaluation.results import add_run_info, make_record, write_record
from tests.tools.load import load_tool

tool = load_tool("plot_class_ap")


def record(ap, names=("ant", "bee", "cat"), images=(5, 300, 40)):
    return make_record(
        task="instance",
        dataset="val",
        protocol={},
        metrics={"bbox": {"AP": float(np.nanmean(ap))}},
        per_class={
            "name": list(names),
            "group": ["r", "f", "c"],
            "train_images": list(images),
            "bbox/AP": list(ap),
        },
    )


def heights(figure):
    return [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]


def test_bars_are_means_over_seeds_from_frequent_to_rare():
    rows = {
        "a": [record([1.0, 30.0, 20.0]), record([3.0, 50.0, 22.0])],
        "b": [record([9.0, 31.0, 21.0])],
    }
    figure = tool.draw(rows, "bbox/AP")
    assert heights(figure) == [[40.0, 21.0, 2.0], [31.0, 21.0, 9.0]]
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels == ["bee  300", "cat  40", "ant  5"]
    legend = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert legend == ["a (2 seeds)", "b"]


def test_many_classes_are_means_of_neighbours_without_those_that_have_no_value():
    values = np.arange(100.0)
    values[3] = np.nan
    means = tool.pooled(values, 10)
    assert means[0] == pytest.approx((45 - 3) / 9)
    assert means[9] == pytest.approx(94.5)


def test_labels_and_folders(tmp_path):
    write_record(tmp_path / "run" / "results" / "val.json", record([1.0, 2.0, 3.0]))
    rows = tool.collect([f"mine={tmp_path / 'run'}", f"mine={tmp_path}/run/results/val.json"])
    assert list(rows) == ["mine"] and len(rows["mine"]) == 2
    write_record(tmp_path / "run" / "results" / "other.json", record([1.0, 2.0, 3.0]))
    with pytest.raises(DataError, match="2 result records"):
        tool.collect([str(tmp_path / "run")])


def test_last_and_best_epoch_are_not_averaged(tmp_path):
    for epoch in ("last", "best on val"):
        run = {"iteration": 1, "seed": 0, "config": None, "weights": None, "selection": epoch}
        write_record(tmp_path / f"{epoch}.json", add_run_info(record([1.0, 2.0, 3.0]), **run))
    with pytest.raises(DataError, match="'mine' are of different epochs"):
        tool.collect([f"mine={tmp_path}/last.json", f"mine={tmp_path}/best on val.json"])
    assert list(tool.collect([f"a={tmp_path}/last.json", f"b={tmp_path}/best on val.json"])) == [
        "a",
        "b",
    ]


def test_other_classes_do_not_mix(tmp_path):
    write_record(tmp_path / "a.json", record([1.0, 2.0, 3.0]))
    write_record(tmp_path / "b.json", record([1.0, 2.0, 3.0], names=("x", "y", "z")))
    with pytest.raises(DataError, match="different class lists"):
        tool.collect([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
