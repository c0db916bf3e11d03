"""tools/plot_gradient_ratio.py on statistics with known ratios."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from lt_det.engine.hooks import STATISTICS_FILE, GradientStatisticsHook
from lt_det.errors import DataError, MissingFileError
from lt_det.losses import GradStats
from tests.tools.load import load_tool

HEADER = {"names": ["ant", "bee", "cat"], "groups": ["r", "f", "c"], "counts": [2, 500, 40]}


@pytest.fixture(scope="module")
def script():
    return load_tool("plot_gradient_ratio")


def row(iteration, pos, neg, loss=""):
    return {"iteration": iteration, "loss": loss, "pos": pos, "neg": neg}


ROWS = [
    row(0, [0.0, 4.0, 1.0], [2.0, 2.0, 2.0]),
    row(4, [1.0, 6.0, 3.0], [4.0, 4.0, 4.0]),
    row(9, [2.0, 8.0, 6.0], [8.0, 4.0, 6.0]),
]


def write_run(folder, rows=ROWS, header=HEADER, end=""):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in [header, *rows])
    (folder / "gradient_statistics.jsonl").write_text(text + end)
    return folder


def read(script, folder):
    return script.read_statistics(folder / script.FILE)


def test_ratios_are_those_computed_by_hand(script, tmp_path):
    statistics = read(script, write_run(tmp_path))
    iterations, pos, neg = statistics.losses[""]
    ratio = script.ratio_over_time(pos, neg)
    assert iterations.tolist() == [0, 4, 9]
    np.testing.assert_allclose(ratio, [[0, 2, 0.5], [0.25, 1.5, 0.75], [0.25, 2, 1]])
    means = script.group_ratio_over_time(ratio, statistics.groups)
    np.testing.assert_allclose(means["r"], [0, 0.25, 0.25])
    np.testing.assert_allclose(means["c"], [0.5, 0.75, 1])
    np.testing.assert_allclose(means["f"], [2, 1.5, 2])


def test_reads_what_the_hook_writes(script, tmp_path):
    """The same names, counts and ratios that the loss weighted with, per cascade stage."""
    losses = {"stage0": GradStats(3), "stage1": GradStats(3)}
    what = {**HEADER, "unit": "pixels", "task": "sem_seg"}
    hook = GradientStatisticsHook(losses, output_dir=str(tmp_path), file_period=1, **what)
    hook.trainer = SimpleNamespace(start_iter=0, max_iter=99, iter=0)
    hook.before_train()
    for hook.trainer.iter in range(2):
        losses["stage0"].update(torch.tensor([0.0, 1, 2]), torch.tensor([1.0, 0, 3]))
        losses["stage1"].update(torch.tensor([3.0, 1, 2]), torch.tensor([7.0, 2, 5]))
        hook.after_step()
    statistics = read(script, tmp_path)
    assert script.FILE == STATISTICS_FILE
    assert (statistics.names, statistics.groups) == (HEADER["names"], HEADER["groups"])
    assert statistics.counts.tolist() == HEADER["counts"]
    assert (statistics.unit, statistics.task) == ("pixels", "sem_seg")
    assert list(statistics.losses) == ["stage0", "stage1"]
    for name, (iterations, pos, neg) in statistics.losses.items():
        assert iterations.tolist() == [0, 1]
        expected = losses[name].ratio().numpy()
        np.testing.assert_array_equal(script.ratio_over_time(pos, neg)[-1], expected)


def test_last_line_cut_short_is_ignored(script, tmp_path):
    whole = json.dumps(row(14, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]))
    for length in (1, len(whole) // 2, len(whole) - 1):
        statistics = read(script, write_run(tmp_path, end=whole[:length]))
        assert statistics.losses[""][0].tolist() == [0, 4, 9]
    statistics = read(script, write_run(tmp_path, end=whole))
    assert statistics.losses[""][0].tolist() == [0, 4, 9, 14]


def test_stage_that_lost_its_last_line_keeps_the_others(script, tmp_path):
    rows = [row(t, [1.0] * 3, [2.0] * 3, loss) for t in (0, 1) for loss in ("stage0", "stage1")]
    losses = read(script, write_run(tmp_path, rows[:-1], end='{"iteration": 1, "lo')).losses
    assert losses["stage0"][0].tolist() == [0, 1]
    assert losses["stage1"][0].tolist() == [0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"end": "{]\n" + json.dumps(ROWS[0])}, "line 5 is not JSON"),
        ({"rows": [*ROWS, row(10, [1.0], [2.0])]}, "line 5 is not for 3 classes"),
        ({"rows": [{"iteration": 0, "loss": ""}]}, "line 2 has no statistics: KeyError.'pos'"),
        ({"rows": []}, "holds no statistics yet"),
        ({"header": {**HEADER, "counts": [1]}}, "1 counts for 3 classes"),
        ({"header": {**HEADER, "groups": ["r", "r", "x"]}}, "unknown group 'x'"),
        ({"header": {**HEADER, "task": "panoptic"}}, "'panoptic'; known are instance, class"),
        ({"header": ROWS[0]}, "first line has no names, groups and counts"),
    ],
)
def test_broken_file_names_file_and_line(script, tmp_path, change, message):
    with pytest.raises(DataError, match=message) as error:
        read(script, write_run(tmp_path, **change))
    assert str(tmp_path / script.FILE) in str(error.value)


def test_run_without_the_file_says_which_losses_write_it(script, tmp_path, capsys):
    with pytest.raises(MissingFileError) as error:
        read(script, tmp_path)
    losses = str(error.value).rpartition(": ")[2].split(", ")
    assert {"EQLv2", "SigmoidEQL"} <= set(losses)
    assert not {"SoftmaxCE", "SigmoidBCE"} & set(losses)
    assert script.main(["--run", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: no gradient statistics ") and err.count("\n") == 1
    assert not out and not list(tmp_path.iterdir())


def test_classes_are_drawn_from_frequent_to_rare(script, tmp_path):
    figure = script.plot_runs([("run", read(script, write_run(tmp_path)))])
    classes, means, bars = figure.axes
    assert [t.get_text() for t in classes.get_xticklabels()] == ["bee", "cat", "ant"]
    assert classes.get_yscale() == "log" and classes.get_title(loc="left") == "run"
    balance, *_, last = classes.get_lines()
    assert set(balance.get_ydata()) == {1}
    assert (last.get_label(), to_hex(last.get_color())) == ("10", "#000000")
    np.testing.assert_allclose(last.get_ydata(), [2, 1, 0.25])
    assert [b.get_height() for b in bars.patches] == [500, 40, 2]
    points = classes.collections[0]
    np.testing.assert_allclose(points.get_offsets(), [[0, 2], [1, 1], [2, 0.25]])
    colors = [script.COLORS[g] for g in "fcr"]
    assert [to_hex(c) for c in points.get_facecolors()] == colors
    curves = {line.get_label(): line for line in means.get_lines()}
    np.testing.assert_array_equal(curves["frequent"].get_xdata(), [1, 5, 10])
    np.testing.assert_allclose(curves["frequent"].get_ydata(), [2, 1.5, 2])
    np.testing.assert_allclose(curves["rare"].get_ydata(), [np.nan, 0.25, 0.25])


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("instance", ["rare", "common", "frequent"]),
        ("classification", ["few", "medium", "many"]),
        ("sem_seg", ["tail", "common", "head"]),
    ],
)
def test_the_groups_are_called_as_in_the_tables_of_the_task(script, tmp_path, task, words):
    run = write_run(tmp_path, header={**HEADER, "task": task})
    means = script.plot_runs([("run", read(script, run))]).axes[1]
    assert [text.get_text() for text in means.get_legend().get_texts()] == words


def test_class_without_positives_is_a_mark_and_not_a_point(script, tmp_path):
    figure = script.plot_runs([("run", read(script, write_run(tmp_path, ROWS[:1])))])
    points, marks = figure.axes[0].collections[:2]
    assert np.isnan(np.ma.filled(points.get_offsets(), np.nan)[2, 1])
    assert marks.get_offsets()[:, 0].tolist() == [2]  # "ant" comes last
    assert "0 so far" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]


def test_class_without_negatives_does_not_stretch_the_scale(script, tmp_path):
    rows = [row(0, [1.0, 1.0, 1.0], [0.0, 2.0, 1.0])]
    figure = script.plot_runs([("run", read(script, write_run(tmp_path, rows)))])
    assert figure.axes[0].get_ylim()[1] < 10


def test_earlier_lines_halve_the_distance_to_the_start(script):
    assert script.earlier_rows(np.arange(64)) == [3, 7, 15, 31]
    assert script.earlier_rows(np.array([0, 299, 599])) == [0, 1]
    assert script.earlier_rows(np.array([0])) == []


def test_running_median(script):
    values = np.array([1.0, 100.0, 2.0, 3.0])
    np.testing.assert_allclose(script.running_median(values, 1), values)
    np.testing.assert_allclose(script.running_median(values, 3), [50.5, 2, 3, 2.5])


def test_many_classes_have_no_names(script, tmp_path):
    num = 1203
    header = {
        "names": [str(k) for k in range(num)],
        "groups": ["c"] * num,
        "counts": list(range(1, num + 1)),
    }
    rows = [row(0, [1.0] * num, [2.0] * num)]
    figure = script.plot_runs([("lvis", read(script, write_run(tmp_path, rows, header)))])
    assert figure.axes[0].get_xlabel() == "classes, from frequent to rare"
    assert len(figure.axes[0].get_xticklabels()) < 20


def test_a_row_for_each_run_and_stage(script, tmp_path, capsys):
    stages = [row(0, [1.0, 2.0, 3.0], [2.0] * 3, f"stage{k}") for k in range(2)]
    runs = [write_run(tmp_path / "plain"), write_run(tmp_path / "cascade", stages)]
    statistics = [(run.name, read(script, run)) for run in runs]
    figure = script.plot_runs(statistics)
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == ["plain", "cascade, stage0", "cascade, stage1"]
    assert len({ax.get_ylim() for ax in figure.axes[:6]}) == 1

    assert script.main(["--run", str(runs[0])]) == 0
    assert script.main(["--run", *map(str, runs), "--output", str(tmp_path / "a/b.png")]) == 0
    paths = [runs[0] / "gradient_ratio.png", tmp_path / "a/b.png"]
    assert capsys.readouterr().out.splitlines() == [str(p) for p in paths]
    one, three = (Image.open(p) for p in paths)
    assert one.format == "PNG" and three.size == (one.width, 3 * one.height)
