"""Pictures of tools/report.py for detection: boxes of a class and its false positives."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_utils
from detectron2.structures import BoxMode

from lt_det.data import dataset_info, get_records
from lt_det.errors import DataError
from lt_det.evaluation.error_analysis import NEAR, SAME_PLACE
from lt_det.evaluation.lvis_api import evaluate_lvis, matches_path
from lt_det.evaluation.lvis_matching import Matches
from lt_det.evaluation.lvis_predictions import PREDICTIONS_FILE, read_predictions
from lt_det.evaluation.predictions import Predictions
from reporting.html import Html, element, figure, note
from reporting.parts import group_word
from reporting.pictures import SIDE, jpeg, read_rgb
from reporting.runs import Run

# Pictures of a class: images that hold it, and false positives.
HOLDING, FALSE = 2, 2
# False positives that are drawn in an image of the class, those of the highest scores.
WRONG = 3
# A crop shows this many times the box, and at least this part of the image.
CONTEXT, LEAST_PART = 3.0, 0.4


@dataclass(frozen=True)
class Box:
    """A box to draw.

    Attributes:
        corners: XYXY in pixels of the image.
        kind: "truth", "right" or "wrong".
        score: of a detection.
    """

    corners: Sequence[float]
    kind: str
    score: float | None = None


def crop_around(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """XYXY of the part of an image that shows a box XYXY in its surroundings, square if it can."""
    longest = max(box[2] - box[0], box[3] - box[1])
    wanted = max(CONTEXT * longest, LEAST_PART * max(width, height))
    side = int(np.ceil(min(wanted, max(min(width, height), longest))))
    corners = []
    for low, high, size in ((box[0], box[2], width), (box[1], box[3], height)):
        start = round(min(max(0.0, (low + high - side) / 2), max(0, size - side)))
        corners.append((start, min(size, start + side)))
    (x1, x2), (y1, y2) = corners
    return x1, y1, x2, y2


def boxes_picture(
    pixels: np.ndarray, boxes: Sequence[Box], around: Sequence[float], alt: str
) -> Html:
    """Part of an image with boxes over it."""
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = crop_around(around, width, height)
    scale = SIDE / max(x2 - x1, y2 - y1)
    size = round((x2 - x1) * scale), round((y2 - y1) * scale)
    place = {"width": size[0], "height": size[1], "preserveAspectRatio": "none"}
    parts = [element("image", href=jpeg(pixels[y1:y2, x1:x2]), **place)]
    for box in boxes:
        a, b, c, d = ((v - o) * scale for v, o in zip(box.corners, (x1, y1) * 2, strict=True))
        place = {
            "x": round(a, 1),
            "y": round(b, 1),
            "width": round(c - a, 1),
            "height": round(d - b, 1),
        }
        parts += [element("rect", class_=f"halo {box.kind}", **place)]
        parts += [element("rect", class_=f"box {box.kind}", **place)]
        if box.score is not None:
            at = {"x": round(min(max(a, 0), size[0] - 36), 1), "y": round(max(b - 4, 13), 1)}
            parts.append(element("text", score_text(box.score), class_=f"score {box.kind}", **at))
    return element(
        "svg",
        parts,
        class_="picture",
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="img",
        aria_label=alt,
    )


def score_text(score: float) -> str:
    """Two digits after the point, or one significant one below 0.1."""
    return f"{score:.2f}" if score >= 0.095 else f"{score:.1g}"


# ---- where a false positive lies -------------------------------------------------------------


def overlaps(box: Sequence[float], others: Sequence[Sequence[float]]) -> np.ndarray:
    """(N,) IoU of a box XYXY with N others."""

    def xywh(corners):
        x1, y1, x2, y2 = corners
        return [x1, y1, x2 - x1, y2 - y1]

    if not len(others):
        return np.zeros(0)
    return mask_utils.iou([xywh(box)], [xywh(o) for o in others], [0] * len(others))[0]


def where_it_lies(k: int, overlap: np.ndarray, classes: Sequence[int]) -> tuple[str, int | None]:
    """What a false positive of class `k` lies on.

    Args:
        k: its class.
        overlap: (N,) IoU with the objects of the image.
        classes: (N,) their classes.

    Returns:
        ("class", the class of an object it lies on), ("duplicate", k), ("beside", k) for one
        that overlaps its object too little, or ("background", None) where nothing is annotated.
    """
    same = np.array([c == k for c in classes], dtype=bool)
    own, other = (overlap[m].max(initial=0) for m in (same, ~same))
    if own >= SAME_PLACE and own >= other:
        return "duplicate", k
    if other >= SAME_PLACE:
        return "class", int(np.array(classes)[~same][overlap[~same].argmax()])
    return ("beside", k) if own >= NEAR else ("background", None)


# ---- which detections ------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassDetections:
    """The N detections of a class that take part in the evaluation, the highest score first.

    Attributes:
        image_ids: (N,).
        scores: (N,).
        corners: (N, 4) XYXY in pixels.
        right, wrong: (N,) bool, true and false positives at an IoU of 0.5; neither: ignored.
    """

    image_ids: np.ndarray
    scores: np.ndarray
    corners: np.ndarray
    right: np.ndarray
    wrong: np.ndarray


@functools.lru_cache(maxsize=2)  # errors and pictures both need them; a large set takes some 100 MB
def read_matches(run: Run) -> tuple[Predictions, Matches]:
    """The predictions of a run and what the evaluation made of their boxes.

    Raises:
        MissingFileError: there are no predictions.
        DataError: a broken file, or matches that are not of these predictions.
    """
    predictions = read_predictions(run.inference / PREDICTIONS_FILE)
    if predictions.boxes is None:
        raise DataError(f"the predictions in {run.inference} have no boxes")
    path = Path(matches_path(run.inference, "bbox"))
    if path.is_file():
        matches = Matches.load(path)
    else:  # a run from before matches were kept
        info, protocol = dataset_info(run.record["dataset"]), run.record["protocol"]
        matches = evaluate_lvis(
            info.json_file,
            predictions,
            ["bbox"],
            max_detections=protocol.get("max_detections"),
            category_ids=info.category_ids,
        ).matches["bbox"]
    rows = matches.det_row
    if len(rows) and (
        rows.max() >= len(predictions)
        or not np.array_equal(predictions.scores[rows], matches.det_score)
    ):
        raise DataError(f"{path} is of other predictions than those beside it")
    return predictions, matches


def detections_of_class(predictions: Predictions, matches: Matches, k: int) -> ClassDetections:
    """The detections of class `k` with what became of them."""
    own = slice(*np.searchsorted(matches.det_class, [k, k + 1]))
    boxes = predictions.boxes[matches.det_row[own]]
    matched, ignored = matches.matched[0, 0, own], matches.ignored[0, 0, own]
    return ClassDetections(
        image_ids=matches.image_ids[matches.det_image[own]],
        scores=matches.det_score[own],
        corners=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        right=matched & ~ignored,
        wrong=~matched & ~ignored,
    )


# ---- a class ---------------------------------------------------------------------------------


class DetectionPictures:
    """Detections and ground truth of classes in images of the test set.

    Args:
        run: with predictions; its configuration is registered.

    Raises:
        MissingFileError, DataError: predictions, matches or annotations are not there.
    """

    def __init__(self, run: Run):
        self.run = run
        self.names = dataset_info(run.record["dataset"]).class_names
        self.records = get_records(run.record["dataset"])
        self.place = {r["image_id"]: i for i, r in enumerate(self.records)}
        self.predictions, self.matches = read_matches(run)

    def explanation(self) -> Html:
        """What the boxes mean."""
        kinds = (
            ("truth", "ground truth"),
            ("right", "right detection (IoU at least 0.5), with its score"),
            ("wrong", "false positive"),
        )
        rows = [element("li", element("i", class_=f"boxmark {kind}"), text) for kind, text in kinds]
        return element("ul", rows, class_="legend")

    def of_class(self, k: int) -> Html:
        """Images that hold the class, those of its highest scores first, and false positives."""
        found = detections_of_class(self.predictions, self.matches, k)
        cells = [self._truth_picture(k, image, found) for image in self._holding(k, found)]
        wrong = np.flatnonzero(found.wrong)[:FALSE].tolist()
        cells += [self._false_picture(k, i, found) for i in wrong]
        if not cells:
            return note("No image of the test set holds it, and nothing was taken for it.")
        return element("div", cells, class_="pictures")

    def _holding(self, k: int, found: ClassDetections) -> list[int]:
        """Places of images with the class: of right detections first, then of missed objects."""
        images = dict.fromkeys(self.place[i] for i in found.image_ids[found.right].tolist())
        if len(images) < HOLDING:
            images |= dict.fromkeys(self._annotated(k))
        return list(images)[:HOLDING]

    def _annotated(self, k: int) -> list[int]:
        images, classes = self.records.pairs()
        return np.unique(images[classes == k]).tolist()

    def _boxes(self, k: int, record: dict, found: ClassDetections) -> list[Box]:
        """What is drawn: all objects of the class, what found them, and what is wrong."""
        truth = [Box(c, "truth") for c, own, crowd in _objects(record) if own == k and not crowd]
        here = found.image_ids == record["image_id"]
        shown = [*np.flatnonzero(here & found.wrong)[:WRONG], *np.flatnonzero(here & found.right)]
        return truth + [
            Box(found.corners[i], "right" if found.right[i] else "wrong", float(found.scores[i]))
            for i in sorted(shown, reverse=True)  # the highest score on top
        ]

    def _truth_picture(self, k: int, place: int, found: ClassDetections) -> Html:
        record = self.records[place]
        boxes = self._boxes(k, record, found)
        truth = [b.corners for b in boxes if b.kind == "truth"]
        right = [b.score for b in boxes if b.kind == "right"]
        text = f"found, score {score_text(max(right))}" if right else "missed"
        if len(truth) > 1:
            text = f"{len(right)} of {len(truth)} found"
        return self._picture(record, boxes, _around(truth), text)

    def _false_picture(self, k: int, i: int, found: ClassDetections) -> Html:
        record = self.records[self.place[found.image_ids[i].item()]]
        objects = [(c, own) for c, own, crowd in _objects(record) if not crowd]
        overlap = overlaps(found.corners[i], [c for c, _ in objects])
        what, other = where_it_lies(k, overlap, [own for _, own in objects])
        text = {
            "duplicate": "a second detection of an object",
            "beside": "overlaps its object too little",
            "background": "on nothing annotated",
        }.get(what)
        if what == "class":
            group = f" ({group_word(self.run, self.run.groups[other])})" if self.run.groups else ""
            text = f"on {self.names[other]}{group}"
        boxes = [b for b in self._boxes(k, record, found) if b.kind != "wrong"]
        boxes.append(Box(found.corners[i], "wrong", float(found.scores[i])))
        return self._picture(record, boxes, found.corners[i], text)

    def _picture(self, record: dict, boxes: Sequence[Box], around, text: str) -> Html:
        pixels = read_rgb(record["file_name"])
        name = f"image {record['image_id']}"
        picture = boxes_picture(pixels, boxes, around, f"{name}: {text}")
        return figure(picture, [element("b", text), " ", name])


def _objects(record: dict) -> list[tuple]:
    """(XYXY, class id, whether it is a crowd) of the annotations of an image."""
    return [
        (
            BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS),
            a["category_id"],
            bool(a.get("iscrowd")),
        )
        for a in record["annotations"]
    ]


def _around(boxes: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    corners = np.array(boxes)
    return (*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0))
