"""Files of predictions: the results format of LVIS and COCO, and columns.

The results format is a JSON list of {"image_id", "category_id" (of the annotation file), "bbox"
(XYWH, pixels), "score", "segmentation" (RLE)}. Columns are said in
:mod:`lt_det.evaluation.predictions`.
"""

from __future__ import annotations

import math
import os

import numpy as np

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.json_files import read_json_list, write_json_list
from lt_det.evaluation.prediction_files import part_files, read_folder
from lt_det.evaluation.predictions import Predictions, is_finite

PREDICTIONS_FILE = "lvis_instances_results.json"


def read_predictions(path: str | os.PathLike, masks: bool = True) -> Predictions:
    """Read predictions as columns.

    Args:
        path: a JSON file in the results format, a ``.npz`` file of columns, or a folder of these;
            also the folder into which an evaluation writes while inference runs, see
            :func:`lt_det.evaluation.prediction_files.read_folder`.
        masks: False: masks in a JSON file are not read.

    Raises:
        MissingFileError: no such file.
        DataError: something else; the message names the file and the entry.
    """
    path = os.fspath(path)
    if part_files(path):
        return read_folder(path).predictions
    if os.path.isdir(path) or path.endswith(".npz"):
        return Predictions.load(path)
    _check_file(path)
    try:
        return Predictions.from_pieces(read_json_list(path), masks)
    except DataError as e:
        raise DataError(str(e) if path in str(e) else f"{path}: {e}") from e


def load_predictions(path: str | os.PathLike) -> list[dict]:
    """Read a JSON file in the results format as it is.

    Raises:
        MissingFileError, DataError: see :func:`read_predictions`.
    """
    path = os.fspath(path)
    _check_file(path)
    predictions = [p for piece in read_json_list(path) for p in piece]
    try:
        Predictions.from_results(predictions)
    except DataError as e:
        raise DataError(f"{path}: {e}") from e
    return predictions


def _check_file(path: str) -> None:
    if not os.path.isfile(path):
        raise MissingFileError(
            f"no predictions {path}; an evaluation writes {PREDICTIONS_FILE} into its output_dir"
        )


def write_predictions(path: str | os.PathLike, predictions: Predictions) -> None:
    """Write predictions in the results format, all or nothing.

    Raises:
        DataError: a score or box is not finite, which JSON cannot hold.
    """
    finite = is_finite(predictions)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(f"prediction {row} has a score or box that is not finite")
    write_json_list(path, predictions.json_pieces())


def drop_non_finite(predictions: list[dict]) -> tuple[list[dict], int]:
    """Predictions whose score and box are finite, and the number of the others."""
    kept = [
        p
        for p in predictions
        if math.isfinite(p["score"]) and all(map(math.isfinite, p.get("bbox", ())))
    ]
    return kept, len(predictions) - len(kept)
