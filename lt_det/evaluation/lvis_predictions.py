"""Predictions in the results format of LVIS.

A list of {"image_id", "category_id" (of the file), "bbox" (XYWH, pixels), "score",
"segmentation" (RLE)}.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.results import atomic_file

PREDICTIONS_FILE = "lvis_instances_results.json"


def load_predictions(path: str) -> list[dict]:
    """Read predictions in the results format of LVIS.

    Raises:
        MissingFileError: no such file.
        DataError: not a list of predictions; the message names the file and the entry.
    """
    if not os.path.isfile(path):
        raise MissingFileError(
            f"no predictions {path}; an evaluation writes {PREDICTIONS_FILE} into its output_dir"
        )
    with open(path, encoding="utf-8") as f:
        try:
            predictions = json.load(f)
        except ValueError as e:
            raise DataError(f"{path} is not a JSON file: {e}") from e
    if not isinstance(predictions, list):
        raise DataError(f"{path}: expected a list of predictions, got {type(predictions).__name__}")
    try:
        check_fields(predictions)
    except DataError as e:
        raise DataError(f"{path}: {e}") from e
    return predictions


def check_fields(predictions: list[dict]) -> None:
    """Raise DataError for the first prediction that lacks something."""
    for i, p in enumerate(predictions):
        missing = {"image_id", "category_id", "score"} - set(p if isinstance(p, dict) else ())
        if missing:
            raise DataError(f"prediction {i} has no {sorted(missing)[0]!r}")
        if "bbox" not in p and "segmentation" not in p:
            raise DataError(f"prediction {i} has neither 'bbox' nor 'segmentation'")


def write_predictions(path: str, predictions: Iterable[dict]) -> None:
    """Write predictions in the results format of LVIS, one per line, all or nothing."""
    with atomic_file(path) as f:
        f.write("[")
        for i, prediction in enumerate(predictions):
            f.write(("\n" if i == 0 else ",\n") + json.dumps(prediction, allow_nan=False))
        f.write("\n]\n")


def drop_non_finite(predictions: list[dict]) -> tuple[list[dict], int]:
    """Predictions whose score and box are finite, and the number of the others."""
    kept = [
        p
        for p in predictions
        if math.isfinite(p["score"]) and all(map(math.isfinite, p.get("bbox", ())))
    ]
    return kept, len(predictions) - len(kept)


def limit_per_image(predictions: list[dict], max_detections: int) -> list[dict]:
    """The `max_detections` predictions of highest score in each image; ties: the first ones."""
    by_image = defaultdict(list)
    for p in predictions:
        by_image[p["image_id"]].append(p)
    for image_id, own in by_image.items():
        if len(own) > max_detections:
            by_image[image_id] = sorted(own, key=lambda p: -p["score"])[:max_detections]
    return list(itertools.chain.from_iterable(by_image.values()))
