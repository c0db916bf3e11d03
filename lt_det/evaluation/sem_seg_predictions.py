"""Files that an evaluation of semantic segmentation leaves.

``sem_seg_images.npz``, always; from it confidence intervals and confusions follow::

    image_ids  (I,) text, ascending: the file of each image, below the folder that all share
    image      (N,) int32 0..I-1, ...
    classes    (N,) int16 ... classes in the labels or the prediction of that image
    pixels     (3, N) int32 pixels of the class there: correct, labelled, predicted
    confusion  (C, C) int64 pixels of class `row` predicted as class `column`

If asked to, ``predictions/<name of the image>.png``: 8-bit maps of class ids.

``sem_seg_predictions.json``: a list, as Detectron2 writes it, with an entry for each class of
each image: {"file_name", "category_id", "segmentation": run lengths in COCO's coding}.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from lt_det.errors import MissingFileError
from lt_det.evaluation.arrays import write_arrays
from lt_det.evaluation.results import atomic_file
from lt_det.evaluation.run_lengths import encode_edges
from lt_det.evaluation.sem_seg_metrics import Areas, runs

IMAGES_FILE = "sem_seg_images.npz"
PREDICTIONS_FILE = "sem_seg_predictions.json"
PREDICTIONS_FOLDER = "predictions"


def write_label_png(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Write an (H, W) uint8 map, all or nothing."""
    with atomic_file(path, binary=True) as f:
        Image.fromarray(labels).save(f, format="PNG")


def remove_predictions(folder: str | os.PathLike) -> None:
    """Remove what an earlier evaluation has kept in `folder`: it is of other weights."""
    shutil.rmtree(os.path.join(folder, PREDICTIONS_FOLDER), ignore_errors=True)
    for file in (PREDICTIONS_FILE, IMAGES_FILE):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, file))


def present_areas(areas: Areas) -> np.ndarray:
    """(4, N) int32: the classes of an image in labels or prediction, and their three areas."""
    classes = np.flatnonzero(areas.labelled + areas.predicted)
    return np.stack([classes, *(own[classes] for own in areas)]).astype(np.int32)


def write_image_areas(
    path: str | os.PathLike,
    file_names: Sequence[str],
    present: Sequence[np.ndarray],
    confusion: np.ndarray,
) -> None:
    """Write ``sem_seg_images.npz``.

    Args:
        path: of the file.
        file_names: (I,) of the images, each once.
        present: (I,) :func:`present_areas` of each.
        confusion: (C, C) of all.
    """
    names = _below_common_folder(file_names)
    order = sorted(range(len(names)), key=names.__getitem__)
    own = [present[i] for i in order]
    rows = np.concatenate(own, axis=1)
    write_arrays(
        path,
        image_ids=np.array([names[i] for i in order]),
        image=np.repeat(np.arange(len(own), dtype=np.int32), [a.shape[1] for a in own]),
        classes=rows[0].astype(np.int16),
        pixels=rows[1:],
        confusion=confusion,
    )


def _below_common_folder(file_names: Sequence[str]) -> list[str]:
    """The names without the folder they share: another machine may have the images elsewhere."""
    folders = [os.path.split(os.path.normpath(name))[0] for name in file_names]
    if len({os.path.isabs(folder) for folder in folders}) > 1:
        return list(file_names)
    shared = os.path.commonpath(folders)
    return [os.path.relpath(name, shared or ".").replace(os.sep, "/") for name in file_names]


def class_rles(labels: np.ndarray) -> dict[int, str]:
    """The mask of each class of a map, in COCO's coding of run lengths.

    The strings of ``pycocotools.mask.encode``, which codes one mask at a time: here one pass
    over the runs of the map, column by column, gives those of all classes.

    Args:
        labels: (H, W) ints, at least one.

    Returns:
        {class id: text}, ascending.
    """
    pixels = labels.ravel(order="F")
    first, length = runs(pixels)
    order = np.argsort(pixels[first], kind="stable")
    classes, first, length = pixels[first][order], first[order], length[order]
    found, index = np.unique(classes, return_inverse=True)
    edges = np.stack([first, first + length], axis=1).ravel()
    texts = encode_edges(edges, np.repeat(index, 2), len(found), pixels.size)
    return {k: text.decode("ascii") for k, text in zip(found.tolist(), texts, strict=True)}


def json_lines(file_name: str, labels: np.ndarray) -> str:
    """The entries of one image, one per line."""
    size = list(labels.shape)
    entries = (
        {
            "file_name": file_name,
            "category_id": k,
            "segmentation": {"size": size, "counts": text},
        }
        for k, text in class_rles(labels).items()
    )
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def join_parts(path: str | os.PathLike, parts: Iterable[str]) -> None:
    """Write the lines of `parts` as one JSON list, all or nothing, and remove the parts.

    Raises:
        MissingFileError: a part is not there; another machine wrote it to a disk of its own.
    """
    parts = list(parts)
    for part in parts:
        if not os.path.isfile(part):
            raise MissingFileError(
                f"no file {part}: OUTPUT_DIR must be a folder that all machines share to keep "
                "predictions of several, or TEST.LT.SEM_SEG.SAVE be ''"
            )
    with atomic_file(path) as f:
        f.write("[")
        separator = "\n"
        for part in parts:
            with open(part, encoding="utf-8") as lines:
                for line in lines:
                    f.write(separator + line.rstrip("\n"))
                    separator = ",\n"
        f.write("\n]\n")
    for part in parts:
        with contextlib.suppress(OSError):
            os.remove(part)
