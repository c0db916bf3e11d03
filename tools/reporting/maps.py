"""Pictures of tools/report.py for semantic segmentation: image, ground truth and prediction."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from visualize_sem_seg import class_colors, colored, legend_rows, records_with_classes

from lt_det.data.datasets.label_png import IGNORED, read_class_map
from lt_det.data.sem_seg_mapper import read_record_classes
from lt_det.errors import DataError
from reporting.html import Html, element, figure, note
from reporting.pictures import jpeg, read_rgb
from reporting.runs import Run

IMAGES = 2  # of a class
# Images of a class that are looked at for those which hold the most of it.
CANDIDATES = 30
# Classes in the legend of an image, and in the sentence about what a class was taken for.
LEGEND, TAKEN_FOR = 6, 2


def taken_for(truth: np.ndarray, predicted: np.ndarray, k: int) -> list[tuple[int, float]]:
    """What the pixels of class `k` were predicted as: (class, share), the largest share first."""
    found = np.bincount(predicted[truth == k].ravel(), minlength=256)
    order = np.argsort(-found, kind="stable")
    return [(int(c), found[c] / found.sum()) for c in order if found[c]]


def kept_records(run: Run) -> list[dict]:
    """See `visualize_sem_seg.records_with_classes`."""
    folder = run.inference  # raises if the predictions are of other weights
    return records_with_classes(folder.parent.parent, folder.name, len(run.names))


def kept_maps(run: Run) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(N,) labels and predicted classes of the pixels of each image that have a label.

    Raises:
        MissingFileError, DataError: see `kept_records`; files of different sizes.
    """
    for record in kept_records(run):
        truth = read_record_classes(record, len(run.names))
        predicted = read_class_map(record["predicted"], len(run.names))
        if truth.shape != predicted.shape:
            raise DataError(
                f"the label map of {record['file_name']} is {truth.shape}, its prediction "
                f"{predicted.shape}"
            )
        valid = truth != IGNORED
        yield truth[valid], predicted[valid]


class MapPictures:
    """Label maps of images that hold the most of a class.

    Args:
        run: with kept predictions; its configuration is registered.

    Raises:
        MissingFileError, DataError: predictions, images or label maps are not there.
    """

    def __init__(self, run: Run):
        self.run = run
        self.records = kept_records(run)

    def explanation(self) -> Html:
        """What is shown."""
        text = (
            "Image, ground truth (black: no label) and prediction of images with most of a class."
        )
        return element("p", text, class_="muted")

    def of_class(self, k: int) -> Html:
        """The images with most pixels of class `k`."""
        held = [r for r in self.records if any(a["category_id"] == k for a in r["annotations"])]
        maps = [(r, read_record_classes(r, len(self.run.names))) for r in held[:CANDIDATES]]
        maps.sort(key=lambda pair: -int((pair[1] == k).sum()))
        if not maps:
            return note("No image of the test set with a kept prediction holds it.")
        return Html("".join(self._picture(r, truth, k) for r, truth in maps[:IMAGES]))

    def _picture(self, record: dict, truth: np.ndarray, k: int) -> Html:
        names = self.run.names
        image = read_rgb(record["file_name"])
        predicted = read_class_map(record["predicted"], len(names))
        if not image.shape[:2] == truth.shape == predicted.shape:
            raise DataError(
                f"image {record['file_name']}, its label map and its prediction differ in size: "
                f"{image.shape[:2]}, {truth.shape}, {predicted.shape}"
            )
        panels = (
            ("image", image),
            ("ground truth", colored(image, truth, len(names))),
            ("prediction", colored(image, predicted, len(names))),
        )
        shown = [
            figure(element("img", src=jpeg(pixels), alt=title), title) for title, pixels in panels
        ]
        shares = ", ".join(
            f"{names[c]} {share:.0%}" for c, share in taken_for(truth, predicted, k)[:TAKEN_FOR]
        )
        text = f"{Path(record['file_name']).name}: {names[k]} was taken for {shares}"
        return element(
            "div",
            element("p", text),
            element("div", shown, class_="pictures maps"),
            self._legend(truth, predicted),
        )

    def _legend(self, truth: np.ndarray, predicted: np.ndarray) -> Html:
        colors = class_colors(len(self.run.names))
        rows = []
        for k, of_truth, of_predicted in legend_rows(truth, predicted, LEGEND):
            red, green, blue = (int(v) for v in colors[k])
            mark = element("i", class_="swatch", style=f"background:rgb({red},{green},{blue})")
            shares = f"{of_truth:.1%} → {of_predicted:.1%}"
            name = [mark, self.run.names[k]]
            rows.append(element("li", name, element("span", shares, class_="muted")))
        return element("ul", rows, class_="legend")
