"""Pictures of tools/report.py for image classification: the images of a class that went wrong."""

import numpy as np

from lt_det.data.datasets.image_sets import image_records
from lt_det.errors import DataError
from lt_det.evaluation.classification_predictions import PREDICTIONS_FILE, read_class_predictions
from reporting.html import Html, count, element, figure, note
from reporting.parts import group_word
from reporting.pictures import jpeg, read_rgb
from reporting.runs import Run

PICTURES = 6  # of a class
SIDE = 160  # pixels


class MistakePictures:
    """Misclassified images of classes, the surest mistakes first.

    Args:
        run: with predictions; its configuration is registered.

    Raises:
        MissingFileError, DataError: predictions or the image list are not there.
    """

    def __init__(self, run: Run):
        self.run = run
        self.found = read_class_predictions(run.inference / PREDICTIONS_FILE, len(run.names))
        self.records = image_records(run.record["dataset"])

    def explanation(self) -> Html:
        """What is shown."""
        text = "Images that went to another class, those with the highest score for it first."
        return element("p", text, class_="muted")

    def of_class(self, k: int) -> Html:
        """Misclassified images of class `k`."""
        predicted, scores = self.found["top_classes"][:, 0], self.found["top_scores"][:, 0]
        own = self.found["labels"] == k
        wrong = np.flatnonzero(own & (predicted != k))
        wrong = wrong[np.argsort(-scores[wrong], kind="stable")]
        text = f"{len(wrong)} of {count(own.sum(), 'image')} went to another class."
        if not len(wrong):
            return note(text)
        cells = [self._picture(i, predicted[i], scores[i]) for i in wrong[:PICTURES].tolist()]
        return Html(
            element("p", text, class_="muted") + element("div", cells, class_="pictures small")
        )

    def _picture(self, i: int, other: int, score: float) -> Html:
        record = self._record(i)
        name = self.run.names[other]
        group = f" ({group_word(self.run, self.run.groups[other])})" if self.run.groups else ""
        text = f"taken for {name}{group}"
        picture = element("img", src=jpeg(read_rgb(record["file_name"]), SIDE), alt=text)
        return figure(picture, [element("b", text), f" score {score:.2f}"])

    def _record(self, i: int) -> dict:
        """The entry of the image list; the id of an image is its place there."""
        place, label = self.found["image_ids"][i], self.found["labels"][i]
        known = np.issubdtype(place.dtype, np.integer) and 0 <= place < len(self.records)
        if not known or self.records[int(place)]["label"] != label:
            raise DataError(
                f"image {place} of class {label} in {self.run.inference / PREDICTIONS_FILE} is not "
                f"in {self.records.source}; the predictions are of another list"
            )
        return self.records[int(place)]
