#!/usr/bin/env python
"""Draw the pictures of a finished image classification run.

    python tools/plot_classification.py output/imagenet_lt_gcl

Into RUN/pictures, for every result record of the run (a best epoch has its own):

    <record>_accuracy.png   accuracy of each class over its training images
    <record>_confusion.png  where the images of a class go, classes from frequent to rare
    <record>_norms.png      norms of classifier weights and features over the training images
    <record>_features.png   features of up to ten classes along their first two principal axes
    gradient_ratio.png      of gradient-driven losses, see tools/plot_gradient_ratio.py

The last three need what not every run keeps: features.npz, written with the predictions if the
evaluator keeps features, and gradient_statistics.jsonl. What a run has not kept is named and left
out.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plot_gradient_ratio
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plot_gradient_ratio import COLORS, NAMED_CLASSES, class_order

from lt_det.errors import LtDetError, MissingFileError
from lt_det.evaluation.classification_metrics import class_means, confusion_matrix
from lt_det.evaluation.classification_predictions import (
    FEATURES_FILE,
    PREDICTIONS_FILE,
    read_class_predictions,
    read_features,
)
from lt_det.evaluation.groups import group_means
from lt_det.evaluation.results import class_values, metric, read_record, selection

WORDS = {"f": "many", "c": "medium", "r": "few"}
PLAIN = "#9aa0a6"
METRICS = ("top1", "mean_class", *WORDS.values())
# Ten colours that keep apart, one for each class whose features are shown.
CLASS_COLORS = (
    "#3b76af", "#e08a1e", "#5a9e6f", "#c8364a", "#8a6bb1",
    "#8c6150", "#d685b8", "#9aa0a6", "#b5b04a", "#46b0bd",
)  # fmt: skip
# More cells than this cannot be told apart, more numbers not be read.
MAX_CELLS, NUMBERED_CELLS = 50, 12
# Points of the line through many classes.
MEANS = 20
# More points than this only cover each other, and take their time in the decomposition.
MAX_POINTS = 5000


@dataclass(frozen=True)
class Result:
    """One record of a run.

    Attributes:
        stem: of the record's file, and folder of its predictions in ``inference/``.
        title: data set and, if stated, epoch.
        names: (C,).
        groups: (C,) letters; None: the record has none.
        counts: (C,) training images; None: the record has none.
        accuracy: (C,) percent; NaN: no test image.
        metrics: the record's, in percent.
    """

    stem: str
    title: str
    names: list[str]
    groups: list[str] | None
    counts: np.ndarray | None
    accuracy: np.ndarray
    metrics: dict[str, float]

    @property
    def colors(self) -> list[str]:
        return [COLORS[g] for g in self.groups] if self.groups else [PLAIN] * len(self.names)

    @property
    def order(self) -> np.ndarray:
        """(C,) class ids from frequent to rare; as the record has them without counts."""
        return np.arange(len(self.names)) if self.counts is None else class_order(self.counts)


# ---- reading ---------------------------------------------------------------------------------


def read_results(run: Path) -> list[Result]:
    """The classification records of a run folder.

    Raises:
        MissingFileError: it has none.
        DataError: a file that is no record, or has no accuracy per class.
    """
    files = sorted(run.glob("results/*.json"))
    records = [(file.stem, read_record(file)) for file in files]
    results = [_result(stem, r) for stem, r in records if r["task"] == "classification"]
    if not results:
        raise MissingFileError(
            f"no result record of image classification in {run / 'results'}; tools/train_net.py "
            "writes one per test set after an evaluation"
        )
    return results


def _result(stem: str, record: dict) -> Result:
    classes, epoch = record["per_class"], selection(record)
    return Result(
        stem=stem,
        title=f"{record['dataset']}, epoch: {epoch}" if epoch else record["dataset"],
        accuracy=class_values(record, "classification/accuracy"),
        names=classes["name"],
        groups=classes.get("group"),
        counts=class_values(record, "train_images") if "train_images" in classes else None,
        metrics={name: metric(record, f"classification/{name}") for name in METRICS},
    )


# ---- numbers ---------------------------------------------------------------------------------


def pooled_confusion(
    labels: np.ndarray, predicted: np.ndarray, order: np.ndarray, cells: int
) -> np.ndarray:
    """(cells, cells) percent of the images of a row's classes that went to a column's classes.

    Args:
        labels, predicted: (N,) class ids.
        order: (C,) class ids; neighbours share a cell, of C / `cells` classes.
        cells: at most C.

    Returns:
        Rows sum to 100; NaN in a row whose classes have no image.
    """
    cell_of = np.empty(len(order), dtype=np.int64)
    for cell, classes in enumerate(np.array_split(order, cells)):
        cell_of[classes] = cell
    counts = confusion_matrix(cell_of[labels], cell_of[predicted], cells)
    images = counts.sum(axis=1, keepdims=True)
    return np.divide(100 * counts, images, out=np.full((cells, cells), np.nan), where=images > 0)


def feature_norms(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(C,) mean length of the (N, D) features of each class; NaN: no image."""
    return class_means(labels, np.linalg.norm(features, axis=1), num_classes)


def principal_plane(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components, from the singular value decomposition.

    Args:
        features: (N, D).

    Returns:
        (N, 2) coordinates, and (2,) shares of the variance in [0, 1]. Each axis points to where
        its largest loading is positive; a component that the features do not have is 0.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2]
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
    axes = axes * np.sign(largest)[:, None]
    shares = sizes[:2] ** 2 / max((sizes**2).sum(), np.finfo(np.float64).tiny)
    missing = 2 - len(axes)
    return np.pad(centred @ axes.T, ((0, 0), (0, missing))), np.pad(shares, (0, missing))


def bin_means(values: np.ndarray, order: np.ndarray, bins: int) -> np.ndarray:
    """(bins,) means over neighbours in `order` of (C,) `values`."""
    return np.array([values[part].mean() for part in np.array_split(order, bins)])


def spread(number: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `number` rows, at equal distances."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(np.int64))


# ---- drawing ---------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_accuracy(result: Result) -> Figure:
    """Accuracy of each class over its training images, with the means of the groups."""
    figure = new_figure(9, 4.6)
    axes = figure.add_subplot()
    scatter_classes(axes, result, result.accuracy)
    if result.groups:
        means = group_means(result.accuracy, result.groups)
        for letter in WORDS:
            own = sizes(result.counts)[np.array(result.groups) == letter]
            if len(own) and not np.isnan(means[letter]):
                line = {"color": COLORS[letter], "lw": 4, "alpha": 0.35, "zorder": 1}
                axes.hlines(means[letter], own.min() / 1.06, own.max() * 1.06, **line)
    shown = {k: v for k, v in result.metrics.items() if not np.isnan(v)}
    words = {"top1": "top-1", "mean_class": "class mean"}
    subtitle = "   ".join(f"{words.get(k, k)} {v:.1f}" for k, v in shown.items())
    axes.set_title(subtitle, loc="right", fontsize=9, color="0.35")
    axes.set_title(result.title, loc="left", fontweight="bold", fontsize=11)
    axes.set(ylabel="accuracy (%)", ylim=(-3, 103))
    return figure


def sizes(counts: np.ndarray) -> np.ndarray:
    """(C,) places on a log axis; a class without training images is at one half."""
    return np.maximum(counts, 0.5)


def scatter_classes(axes, result: Result, values: np.ndarray) -> None:
    """One point a class over the training images; names if they can be read, else means."""
    x, named = sizes(result.counts), len(result.names) <= NAMED_CLASSES
    style = {"s": 30 if named else 11, "lw": 0, "alpha": 1 if named else 0.55, "zorder": 3}
    axes.scatter(x, values, c=result.colors, **style)
    if named:
        for k in np.flatnonzero(~np.isnan(values)):
            place = {"xytext": (4, 4), "textcoords": "offset points"}
            axes.annotate(result.names[k], (x[k], values[k]), fontsize=7.5, color="0.3", **place)
    else:
        order = result.order[~np.isnan(values[result.order])]
        bins = min(MEANS, len(order))
        line = bin_means(x, order, bins), bin_means(values, order, bins)
        label = f"means of {len(order) / bins:.0f} classes"
        axes.plot(*line, color="0.2", lw=1.2, marker="o", ms=3.5, zorder=4, label=label)
    if result.groups:
        for letter, word in WORDS.items():
            number = result.groups.count(letter)
            if number:
                label = f"{word} ({number})"
                axes.scatter([], [], color=COLORS[letter], s=24, lw=0, label=label)
    axes.set_xscale("log")
    if named:  # room for the names
        axes.set_xlim(x.min() / 1.4, x.max() * 2.2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("training images of the class")
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, loc="best", handletextpad=0.3)


def plot_confusion(result: Result, labels: np.ndarray, predicted: np.ndarray) -> Figure:
    """The confusion matrix from frequent to rare; many classes share cells."""
    number = len(result.names)
    cells = min(number, MAX_CELLS)
    share = pooled_confusion(labels, predicted, result.order, cells)
    figure = new_figure(7.4, 6.6)
    axes = figure.add_subplot()
    axes.set_facecolor("0.9")  # of rows without test images
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="images of the row (%)")
    bar.outline.set_visible(False)
    if cells <= NUMBERED_CELLS:
        for (row, column), value in np.ndenumerate(share):
            if not np.isnan(value):
                color = "white" if value > 55 else "0.25"
                style = {"ha": "center", "va": "center", "fontsize": 8, "color": color}
                axes.text(column, row, f"{value:.0f}", **style)
    if cells == number:
        names = [result.names[k] for k in result.order]
        small = {"fontsize": 8 if cells <= 25 else 6}
        axes.set_xticks(range(cells), names, rotation=90, **small)
        axes.set_yticks(range(cells), names, **small)
        for axis in (axes.xaxis, axes.yaxis):
            for tick, k in zip(axis.get_ticklabels(), result.order, strict=True):
                tick.set_color(result.colors[k])
        axes.set(xlabel="predicted", ylabel="true")
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        how = f"{number} classes in {cells} cells"
        how += "" if result.counts is None else ", from frequent to rare"
        axes.set(xlabel=f"predicted: {how}", ylabel="true")
    if result.groups and result.counts is not None:
        letters = np.array(result.groups)[result.order]
        for border in np.flatnonzero(letters[1:] != letters[:-1]) + 1:
            line = {"color": "0.35", "lw": 0.8, "ls": (0, (4, 3))}
            axes.axhline(border * cells / number - 0.5, **line)
            axes.axvline(border * cells / number - 0.5, **line)
    axes.spines[:].set_visible(False)
    axes.set_title(result.title, loc="left", fontweight="bold", fontsize=11)
    return figure


def plot_norms(result: Result, norms: dict[str, np.ndarray]) -> Figure:
    """Norms over the training images, a panel each.

    Args:
        result: with counts.
        norms: what -> (C,) values; NaN: none.
    """
    figure = new_figure(1.5 + 5.5 * len(norms), 4.4)
    grid = figure.subplots(1, len(norms), squeeze=False)[0]
    for axes, (what, values) in zip(grid, norms.items(), strict=True):
        scatter_classes(axes, result, values)
        axes.set(ylabel=what, ylim=(0, 1.12 * np.nanmax(values)))
    grid[0].set_title(result.title, loc="left", fontweight="bold", fontsize=11)
    return figure


def plot_features(result: Result, features: np.ndarray, labels: np.ndarray) -> Figure:
    """The plane of the first two principal components of some classes' features.

    More classes than colours: as many, at equal distances from frequent to rare.
    """
    present = result.order[np.isin(result.order, labels)]
    shown = present[spread(len(present), len(CLASS_COLORS))]
    rows = np.flatnonzero(np.isin(labels, shown))
    rows = rows[spread(len(rows), MAX_POINTS)]
    points, shares = principal_plane(features[rows])
    figure = new_figure(8.6, 6)
    axes = figure.add_subplot()
    for k, color in zip(shown, CLASS_COLORS, strict=False):
        own = points[labels[rows] == k]
        if len(own) == 0:  # a class of few test images, not among the points
            continue
        label = result.names[k]
        if result.counts is not None:
            label += f"  {result.counts[k]:,.0f}"
        axes.scatter(*own.T, color=color, s=11, lw=0, alpha=0.6, label=label)
        box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75}
        text = {"color": color, "fontsize": 8.5, "fontweight": "bold", "ha": "center"}
        axes.text(*own.mean(axis=0), result.names[k], bbox=box, zorder=4, **text)
    title = "class" if result.counts is None else "class, training images"
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
    legend = axes.legend(**place, fontsize=8.5, handletextpad=0.3, title=title)
    for handle in legend.legend_handles:
        handle.set(alpha=1, sizes=[24])
    legend.set(alignment="left")
    legend.get_title().set_fontsize(8.5)
    for axis, which, share in zip("xy", ("first", "second"), shares, strict=True):
        axes.set(**{f"{axis}label": f"{which} principal component ({100 * share:.0f} %)"})
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(result.title, loc="left", fontweight="bold", fontsize=11)
    count = f"{len(shown)} of {len(result.names)} classes, {len(rows):,} images"
    axes.set_title(count, loc="right", fontsize=9, color="0.35")
    return figure


# ---- one run ---------------------------------------------------------------------------------


def figures_of(run: Path, result: Result):
    """Yield (name, figure) of what the run has kept, and (what, reason) of what it has not."""
    folder, number = run / "inference" / result.stem, len(result.names)
    no_counts = "the record has no numbers of training images"
    yield "accuracy", no_counts if result.counts is None else plot_accuracy(result)
    try:
        own = read_class_predictions(folder / PREDICTIONS_FILE, number)
        yield "confusion", plot_confusion(result, own["labels"], own["top_classes"][:, 0])
    except MissingFileError as error:
        yield "confusion", str(error)
    try:
        own = read_features(folder / FEATURES_FILE, number)
    except MissingFileError as error:
        yield from (("norms", str(error)), ("features", str(error)))
        return
    features, labels = own["features"], own["labels"]
    norms = {"mean feature norm": feature_norms(features, labels, number)}
    if "weights" in own:
        norms = {"weight norm": np.linalg.norm(own["weights"], axis=1), **norms}
    else:
        yield "weight norms", f"no weights in {folder / FEATURES_FILE}"
    yield "norms", no_counts if result.counts is None else plot_norms(result, norms)
    yield "features", plot_features(result, features, labels)


def draw_run(run: Path, output: Path):
    """Write the pictures and yield a line about each: its path, or why there is none."""
    results = read_results(run)
    output.mkdir(parents=True, exist_ok=True)
    for result in results:
        for name, drawn in figures_of(run, result):
            if isinstance(drawn, str):
                yield f"left out the {name} of {result.stem}: {drawn}"
            else:
                yield saved(drawn, output / f"{result.stem}_{name}.png")
    statistics = run / plot_gradient_ratio.FILE
    if statistics.is_file():
        own = [(run.resolve().name, plot_gradient_ratio.read_statistics(statistics))]
        yield saved(plot_gradient_ratio.plot_runs(own), output / plot_gradient_ratio.PICTURE)
    else:
        yield f"left out the gradient ratio: no {statistics}; only gradient-driven losses write it"


def saved(figure: Figure, path: Path) -> str:
    figure.savefig(path, format="png")
    return str(path)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="output directory of the run")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for the pictures; default RUN/pictures"
    )
    args = parser.parse_args(argv)
    try:
        for line in draw_run(args.run, args.output or args.run / "pictures"):
            print(line)
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
