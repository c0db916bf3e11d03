"""tools/plot_classification.py: the numbers behind the pictures, and what a run leaves out."""

import json

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from lt_det.evaluation import LongTailClassificationEvaluator
from lt_det.evaluation.results import (
    LAST,
    add_run_info,
    best_on,
    make_record,
    record_path,
    write_record,
)
from tests.tools.load import load_tool

tool = load_tool("plot_classification")

COUNTS = [5, 300, 40, 0]
NAMES = ["ant", "bee", "cat", "dog"]
GROUPS = ["r", "f", "c", "r"]
NAN = float("nan")


def result(names=NAMES, groups=GROUPS, counts=COUNTS, accuracy=(10.0, 90.0, 50.0, NAN)):
    return tool.Result(
        stem="toy_test",
        title="toy_test, epoch: last",
        names=list(names),
        groups=groups,
        counts=None if counts is None else np.array(counts, dtype=np.float64),
        accuracy=np.array(accuracy),
        metrics={"top1": 61.0, "mean_class": 50.0, "many": 90.0, "medium": 50.0, "few": NAN},
    )


def many_classes(number=200, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.permutation(np.geomspace(5, 1000, number).round())
    groups = ["r" if n < 20 else "c" if n <= 100 else "f" for n in counts]
    names = [f"class {k}" for k in range(number)]
    return result(names, groups, counts, rng.uniform(0, 100, number))


# ------------------------------------------------------------------ numbers


def test_confusion_is_in_percent_of_the_row_in_the_given_order():
    labels, predicted = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    share = tool.pooled_confusion(labels, predicted, np.array([1, 2, 0]), 3)
    np.testing.assert_array_equal(share, [[NAN] * 3, [0, 50, 50], [50, 25, 25]])


def test_pooled_classes_share_rows_and_columns():
    rng = np.random.default_rng(1)
    order = rng.permutation(10)
    labels, predicted = rng.integers(0, 10, size=(2, 500))
    share = tool.pooled_confusion(labels, predicted, order, 3)
    np.testing.assert_allclose(share.sum(axis=1), 100, rtol=1e-12)
    rows, columns = order[:4], order[4:7]  # of 4, 3 and 3 classes
    own = np.isin(labels, rows)
    expected = 100 * np.isin(predicted[own], columns).mean()
    assert share[0, 1] == pytest.approx(expected, rel=1e-12)


def test_feature_norms_are_means_by_class():
    features = np.array([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    np.testing.assert_allclose(tool.feature_norms(features, np.array([1, 0, 1]), 3), [1, 7.5, NAN])


def test_principal_plane_of_flat_data_keeps_its_distances():
    """Points of a plane in 6 dimensions, far from 0: a rotation of them in the plane."""
    rng = np.random.default_rng(2)
    flat = rng.normal(size=(50, 2)) * [5, 1]
    basis = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    points, shares = tool.principal_plane(flat @ basis.T + 100)
    distances = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (points, flat)]
    np.testing.assert_allclose(*distances, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-9)
    # The variances along the axes are the eigenvalues of the covariance, the larger one first.
    eigenvalues = np.linalg.eigvalsh(np.cov(flat.T))[::-1]
    np.testing.assert_allclose(points.var(axis=0, ddof=1), eigenvalues, rtol=1e-9)
    np.testing.assert_allclose(shares, eigenvalues / eigenvalues.sum(), rtol=1e-9)


def test_principal_plane_does_not_depend_on_the_order_of_the_images():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(40, 5)) * [5, 3, 1, 1, 1]
    order = rng.permutation(40)
    points, _ = tool.principal_plane(features)
    np.testing.assert_allclose(tool.principal_plane(features[order])[0], points[order], atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 4), (5, 1)])
def test_components_that_the_features_do_not_have_are_0(shape):
    points, shares = tool.principal_plane(np.arange(np.prod(shape), dtype=float).reshape(shape))
    assert points.shape == (shape[0], 2) and shares.shape == (2,)
    assert (points[:, 1] == 0).all() and shares[1] == 0


def test_spread_takes_the_ends_and_equal_distances():
    assert tool.spread(9, 3).tolist() == [0, 4, 8]
    assert tool.spread(3, 10).tolist() == [0, 1, 2]
    assert len(tool.spread(1001, 500)) == 500


def test_bin_means_follow_the_order():
    means = tool.bin_means(np.array([1.0, 2.0, 3.0, 10.0]), np.array([3, 0, 2, 1]), 2)
    assert means.tolist() == [5.5, 2.5]


# ------------------------------------------------------------------ drawing


def points_of(axes):
    """Places and colours of the first scatter."""
    drawn = axes.collections[0]
    return np.array(drawn.get_offsets()), [to_hex(c) for c in drawn.get_facecolors()]


def test_accuracy_is_over_the_training_images_in_the_colours_of_the_groups():
    axes = tool.plot_accuracy(result()).axes[0]
    places, colors = points_of(axes)
    np.testing.assert_array_equal(places[:3], [[5, 10], [300, 90], [40, 50]])
    assert np.ma.is_masked(axes.collections[0].get_offsets()[3])  # no test image
    assert colors[:3] == [tool.COLORS[g] for g in "rfc"]
    assert [t.get_text() for t in axes.texts] == ["ant", "bee", "cat"]
    assert axes.get_title("left") == "toy_test, epoch: last"
    assert axes.get_title("right") == "top-1 61.0   class mean 50.0   many 90.0   medium 50.0"
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend == ["many (1)", "medium (1)", "few (2)"]


def test_a_class_without_training_images_has_a_place_on_the_log_axis():
    places, _ = points_of(tool.plot_accuracy(result(accuracy=[1.0, 2.0, 3.0, 4.0])).axes[0])
    assert places[3].tolist() == [0.5, 4.0]


def test_many_classes_have_means_instead_of_names():
    own = many_classes()
    axes = tool.plot_accuracy(own).axes[0]
    assert not axes.texts
    line = next(line for line in axes.lines if len(line.get_xdata()))
    order = np.argsort(-own.counts, kind="stable")
    x, y = line.get_data()
    assert len(x) == tool.MEANS
    assert y[0] == pytest.approx(own.accuracy[order[:10]].mean())
    assert x[-1] == pytest.approx(own.counts[order[-10:]].mean())


def test_confusion_of_few_classes_has_names_and_numbers():
    labels, predicted = np.array([0, 0, 1, 2]), np.array([1, 0, 1, 1])
    axes = tool.plot_confusion(result(), labels, predicted).axes[0]
    names = [t.get_text() for t in axes.get_yticklabels()]
    assert names == ["bee", "cat", "ant", "dog"]  # 300, 40, 5, 0 training images
    share = np.ma.filled(axes.images[0].get_array(), NAN)
    expected = [[100, 0, 0, 0], [100, 0, 0, 0], [50, 0, 50, 0], [NAN] * 4]
    np.testing.assert_array_equal(share, expected)
    assert [t.get_text() for t in axes.texts[:4]] == ["100", "0", "0", "0"]
    assert len(axes.texts) == 12


def test_confusion_of_many_classes_is_pooled():
    labels = np.arange(200)
    axes = tool.plot_confusion(many_classes(), labels, labels).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), 100 * np.eye(tool.MAX_CELLS))
    assert axes.get_xlabel() == "predicted: 200 classes in 50 cells, from frequent to rare"


def test_norms_have_a_panel_each():
    norms = {"weight norm": np.arange(4.0), "mean feature norm": np.array([1.0, NAN, 3.0, 4.0])}
    figure = tool.plot_norms(result(), norms)
    assert [axes.get_ylabel() for axes in figure.axes] == list(norms)
    places, _ = points_of(figure.axes[0])
    np.testing.assert_array_equal(places[:, 1], norms["weight norm"])


def test_features_of_many_classes_are_those_of_ten_from_frequent_to_rare():
    own = many_classes()
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 199, size=3000)  # class 199 has no image
    axes = tool.plot_features(own, rng.normal(size=(3000, 8)), labels).axes[0]
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    present = [k for k in np.argsort(-own.counts, kind="stable") if k != 199]
    assert len(legend) == 10
    assert legend[0] == f"{own.names[present[0]]}  {own.counts[present[0]]:,.0f}"
    assert legend[-1] == f"{own.names[present[-1]]}  {own.counts[present[-1]]:,.0f}"
    shown = [int(text.split()[1]) for text in legend]
    assert sum(len(c.get_offsets()) for c in axes.collections) == np.isin(labels, shown).sum()


# ------------------------------------------------------------------ a run


def make_run(folder, *, epoch=LAST, features=True, weights=True, seed=5):
    """A run as the evaluator leaves it."""
    rng = np.random.default_rng(seed)
    own = {"dataset": "toy_test", "run": {"selection": epoch}}
    stem = record_path(folder, own).rpartition("/")[2].removesuffix(".json")
    evaluator = LongTailClassificationEvaluator(
        dataset_name="toy_test",
        class_names=NAMES,
        class_counts={"images": COUNTS},
        output_dir=str(folder / "inference" / stem),
        keep_features=features,
        classifier_weights=(lambda: torch.eye(4, 6)) if weights else None,
        distributed=False,
    )
    labels = [0, 1, 2] * 7
    inputs = [{"image_id": i, "label": y} for i, y in enumerate(labels)]
    scores = torch.from_numpy(rng.dirichlet(np.ones(4), size=21))
    rows = torch.from_numpy(rng.normal(size=(21, 6)))
    outputs = [{"scores": s, "features": f} for s, f in zip(scores, rows, strict=True)]
    evaluator.process(inputs, outputs)
    evaluator.evaluate()
    record = add_run_info(
        evaluator.record, iteration=1, seed=0, config=None, weights=None, selection=epoch
    )
    write_record(record_path(folder, record), record)
    return folder


def draw(capsys, *argv):
    code = tool.main([str(a) for a in argv])
    return code, capsys.readouterr()


def test_one_command_draws_what_the_run_has(capsys, tmp_path):
    run = make_run(tmp_path / "run")
    header = {"names": NAMES, "groups": GROUPS, "counts": COUNTS}
    row = {"iteration": 9, "loss": "", "pos": [1.0, 9.0, 3.0, 0.0], "neg": [2.0] * 4}
    text = json.dumps(header) + "\n" + json.dumps(row) + "\n"
    (run / "gradient_statistics.jsonl").write_text(text)
    code, out = draw(capsys, run)
    names = [f"toy_test_{n}.png" for n in ("accuracy", "confusion", "norms", "features")]
    names.append("gradient_ratio.png")
    assert code == 0 and out.err == ""
    assert out.out.split() == [str(run / "pictures" / n) for n in names]
    assert {p.name for p in (run / "pictures").iterdir()} == set(names)
    for name in names:
        with Image.open(run / "pictures" / name) as picture:
            low, high = picture.convert("L").getextrema()
            assert low < 60 and high == 255, name  # black text on white


def test_last_and_best_epoch_have_pictures_of_their_own(capsys, tmp_path):
    make_run(tmp_path)
    make_run(tmp_path, epoch=best_on("toy_test"), seed=6)
    code, _ = draw(capsys, tmp_path, "--output", tmp_path / "elsewhere")
    assert code == 0 and not (tmp_path / "pictures").exists()
    drawn = {p.name for p in (tmp_path / "elsewhere").iterdir()}
    assert {"toy_test_confusion.png", "toy_test.best_confusion.png"} <= drawn
    titles = [own.title for own in tool.read_results(tmp_path)]
    assert titles == ["toy_test, epoch: best on toy_test", "toy_test, epoch: last"]


def test_what_the_run_has_not_kept_is_named(capsys, tmp_path):
    make_run(tmp_path, features=False)
    (tmp_path / "inference/toy_test/predictions.npz").unlink()
    code, out = draw(capsys, tmp_path)
    lines = out.out.splitlines()
    assert code == 0 and lines[0] == str(tmp_path / "pictures/toy_test_accuracy.png")
    for what, file in (
        ("confusion", "predictions.npz"),
        ("norms", "features.npz"),
        ("features", "features.npz"),
    ):
        own = next(line for line in lines if line.startswith(f"left out the {what} of toy_test"))
        assert str(tmp_path / "inference/toy_test" / file) in own
    assert lines[-1].startswith("left out the gradient ratio: no ")
    assert len(lines) == 5


def test_features_without_weights_have_norms_of_their_own(capsys, tmp_path):
    make_run(tmp_path, weights=False)
    code, out = draw(capsys, tmp_path)
    assert code == 0 and "left out the weight norms of toy_test: no weights in " in out.out
    assert (tmp_path / "pictures/toy_test_norms.png").exists()


def test_a_record_without_counts_has_a_confusion_matrix_in_its_own_order(capsys, tmp_path):
    make_run(tmp_path)
    path = tmp_path / "results/toy_test.json"
    record = json.loads(path.read_text())
    for column in ("group", "train_images"):
        del record["per_class"][column]
    path.write_text(json.dumps(record))
    code, out = draw(capsys, tmp_path)
    assert code == 0
    assert "left out the accuracy of toy_test: the record has no numbers" in out.out
    drawn = {p.name for p in (tmp_path / "pictures").iterdir()}
    assert drawn == {"toy_test_confusion.png", "toy_test_features.png"}
    assert tool.read_results(tmp_path)[0].order.tolist() == [0, 1, 2, 3]


def test_a_run_without_classification_is_an_error(capsys, tmp_path):
    record = make_record(task="instance", dataset="val", protocol={}, metrics={})
    write_record(tmp_path / "results/val.json", record)
    for run in (tmp_path, tmp_path / "nowhere"):
        code, out = draw(capsys, run)
        assert code == 1 and out.out == ""
        assert out.err.startswith("error: no result record of image classification in ")
    assert not (tmp_path / "pictures").exists()


def test_files_that_do_not_fit_the_record_are_errors(capsys, tmp_path):
    make_run(tmp_path)
    np.savez(
        tmp_path / "inference/toy_test/predictions.npz",
        image_ids=[0, 1],
        labels=[0, 4],
        top_classes=[[0], [1]],
        top_scores=[[1.0], [1.0]],
    )
    code, out = draw(capsys, tmp_path)
    assert code == 1 and "labels must be in 0..3, got 4" in out.err
