"""Ground truth of the LVIS evaluation, from an annotation file in LVIS or COCO format."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pycocotools.mask as mask_utils
from detectron2.utils.file_io import PathManager

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.groups import GROUPS


@dataclass
class GroundTruth:
    """The part of an annotation file that the evaluation uses, in memory of its own.

    Attributes:
        images: id -> {"id", "height", "width", "neg_category_ids", "not_exhaustive_category_ids"}.
        annotations: ids 1, 2, ...; boxes XYWH in pixels; no crowds.
        categories: one per class, in the class order of the evaluator.
        groups: "r", "c" or "f" per class from the file's `frequency`; None if it has none.
        federated: whether the file says per image which absent classes were looked for.
        notes: what was left out or filled in, with counts, for the log.
    """

    images: dict
    annotations: list[dict]
    categories: list[dict]
    groups: list[str] | None
    federated: bool
    notes: list[str] = field(default_factory=list)


def load_ground_truth(json_file: str, category_ids: Sequence[int]) -> GroundTruth:
    """Read an LVIS or COCO annotation file; see :func:`prepare_ground_truth`.

    Raises:
        MissingFileError: no such file.
        DataError: not JSON, or not what :func:`prepare_ground_truth` accepts.
    """
    path = PathManager.get_local_path(json_file)
    if not os.path.isfile(path):
        raise MissingFileError(
            f"no annotation file {path}; the environment variable DETECTRON2_DATASETS moves the "
            "directory of the data sets"
        )
    with open(path, encoding="utf-8") as f:
        try:
            dataset = json.load(f)
        except ValueError as e:
            raise DataError(f"{path} is not a JSON file: {e}") from e
    try:
        return prepare_ground_truth(dataset, category_ids)
    except DataError as e:
        raise DataError(f"{path}: {e}") from e


def prepare_ground_truth(dataset: dict, category_ids: Sequence[int]) -> GroundTruth:
    """The ground truth of an annotation file, in a form that may be modified.

    A file without `neg_category_ids` and `not_exhaustive_category_ids` (COCO format) is taken
    as annotated exhaustively: every class that an image lacks is a negative there. Crowds
    (`iscrowd`) are left out, for LVIS has none; a detection on one counts as any other. An
    annotation without `area` gets that of its mask, or of its box if it has no mask. Categories
    that are not in `category_ids` take no part.

    Args:
        dataset: the content of the file; it is not modified.
        category_ids: (C,) category id of each class.

    Raises:
        DataError: a category is missing, or an image or annotation cannot be used.
    """
    if not isinstance(dataset, dict) or not {"images", "categories"} <= set(dataset):
        raise DataError("an annotation file needs 'images' and 'categories'")
    categories = _select_categories(dataset["categories"], category_ids)
    images, federated = _prepare_images(dataset["images"], category_ids)
    annotations, notes = _prepare_annotations(dataset.get("annotations", ()), images, category_ids)
    others = len(dataset["categories"]) - len(categories)
    if others:
        notes.append(f"{others} categories of the file are not among the classes and are left out")
    if not federated:
        notes.append(
            "no lists of negative and not exhaustively annotated classes: taken as annotated "
            "exhaustively, every class that an image lacks is a negative there"
        )
    return GroundTruth(
        images, annotations, categories, _frequency_groups(categories), federated, notes
    )


def _select_categories(categories: list[dict], category_ids: Sequence[int]) -> list[dict]:
    by_id = {c["id"]: c for c in categories}
    missing = [i for i in category_ids if i not in by_id]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(category_ids)} category ids are not in the file, the first "
            f"is {missing[0]}; the file has {len(by_id)} categories"
        )
    return [by_id[i] for i in category_ids]


def _frequency_groups(categories: list[dict]) -> list[str] | None:
    groups = [c.get("frequency") for c in categories]
    return groups if all(g in GROUPS for g in groups) else None


def _prepare_images(images: list[dict], category_ids: Sequence[int]) -> tuple[dict, bool]:
    """Images by id, with sets of negative and not exhaustive categories; whether federated."""
    lists = ("neg_category_ids", "not_exhaustive_category_ids")
    federated = any(key in image for image in images for key in lists)
    everything, nothing = frozenset(category_ids), frozenset()  # shared by all images
    prepared = {}
    for image in images:
        for key in ("height", "width"):
            if key not in image:
                raise DataError(f"image {image['id']} has no '{key}'")
        new = {key: image[key] for key in ("id", "height", "width")}
        for key, default in zip(lists, (everything, nothing), strict=True):
            if federated and key not in image:
                raise DataError(f"image {image['id']} has no '{key}' while others have")
            new[key] = frozenset(image[key]) if federated else default
        prepared[image["id"]] = new
    return prepared, federated


def _prepare_annotations(annotations, images, category_ids) -> tuple[list[dict], list[str]]:
    wanted, prepared, left_out = set(category_ids), [], Counter()
    for ann in annotations:
        if ann.get("image_id") not in images:
            raise DataError(
                f"annotation {ann.get('id')} is of image {ann.get('image_id')}, which is not in "
                "the file"
            )
        if ann["category_id"] not in wanted:
            continue
        if ann.get("iscrowd"):
            left_out["crowd annotations are left out"] += 1
            continue
        new = {k: ann[k] for k in ("image_id", "category_id", "bbox", "ignore") if k in ann}
        if "bbox" not in new:
            raise DataError(f"annotation {ann.get('id')} has no 'bbox'")
        new["id"] = len(prepared) + 1
        # Kept so that a message can name the annotation of the file.
        new["file_id"] = ann.get("id")
        if ann.get("segmentation"):
            new["segmentation"] = ann["segmentation"]
        if "area" in ann:
            new["area"] = ann["area"]
        else:
            left_out["annotations have no area; it is computed"] += 1
            new["area"] = _area(new, images[ann["image_id"]])
        prepared.append(new)
    return prepared, [f"{n} {what}" for what, n in left_out.items()]


def _area(ann: dict, image: dict) -> float:
    """Square pixels of the mask, or of the box where there is no mask."""
    if "segmentation" in ann:
        return float(mask_utils.area(to_rle(ann["segmentation"], image)))
    return float(ann["bbox"][2] * ann["bbox"][3])


def to_rle(segmentation, image: dict) -> dict:
    """Compressed RLE of polygons, of an uncompressed RLE or of an RLE."""
    height, width = image["height"], image["width"]
    if isinstance(segmentation, list):
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_utils.frPyObjects(segmentation, height, width)
    return segmentation
