"""Instance detection and segmentation under the rules of LVIS.

The rules (Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019)
are those of ``lvis.LVISEval``, to which the numbers are equal: at most 300 detections per image;
a detection counts only if its class is known to be present or absent in the image; an unmatched
detection of a class that is not exhaustively annotated in the image is ignored; a class without
ground truth has no AP and enters no mean.

Deviations from ``lvis.LVISEval``:

- a class or group without ground truth has NaN, not -1;
- no predictions give AP 0, not an error;
- ground truth is numbered anew, from 1: an annotation whose id is 0 can never be matched there;
- only (image, class) pairs that hold anything are visited, which needs a fraction of the memory;
- nothing that is handed in (predictions, annotation file, root logger, numpy) is modified.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import os
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from lt_det.errors import DataError, LtDetError, MissingFileError
from lt_det.evaluation.groups import GROUPS, check_groups, group_sizes, groups_from_counts
from lt_det.evaluation.results import atomic_file, make_record

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
PREDICTIONS_FILE = "lvis_instances_results.json"
_TASK_WORDS = {"bbox": "box", "segm": "mask"}
# Where a prediction or annotation has what the task compares.
_TASK_KEYS = {"bbox": "bbox", "segm": "segmentation"}


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


# ---------------------------------------------------------------------------------------------
# Ground truth
# ---------------------------------------------------------------------------------------------


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
        return float(mask_utils.area(_to_rle(ann["segmentation"], image)))
    return float(ann["bbox"][2] * ann["bbox"][3])


def _to_rle(segmentation, image: dict) -> dict:
    """Compressed RLE of polygons, of an uncompressed RLE or of an RLE."""
    height, width = image["height"], image["width"]
    if isinstance(segmentation, list):
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_utils.frPyObjects(segmentation, height, width)
    return segmentation


# ---------------------------------------------------------------------------------------------
# Predictions, in the results format of LVIS: a list of
# {"image_id", "category_id" (of the file), "bbox" (XYWH, pixels), "score", "segmentation" (RLE)}
# ---------------------------------------------------------------------------------------------


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
        _check_fields(predictions)
    except DataError as e:
        raise DataError(f"{path}: {e}") from e
    return predictions


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


def _check_fields(predictions: list[dict]) -> None:
    for i, p in enumerate(predictions):
        missing = {"image_id", "category_id", "score"} - set(p if isinstance(p, dict) else ())
        if missing:
            raise DataError(f"prediction {i} has no {sorted(missing)[0]!r}")
        if "bbox" not in p and "segmentation" not in p:
            raise DataError(f"prediction {i} has neither 'bbox' nor 'segmentation'")


def _check_against(predictions: list[dict], gt: GroundTruth) -> None:
    """Raise DataError for images or categories that the ground truth does not have."""
    known = {c["id"] for c in gt.categories}
    for p in predictions:
        if p["image_id"] not in gt.images:
            raise DataError(
                f"there are predictions for image {p['image_id']!r}, which is not among the "
                f"{len(gt.images)} images of the annotation file"
            )
        if p["category_id"] not in known:
            raise DataError(
                f"image {p['image_id']!r}: predicted category id {p['category_id']!r} is not among "
                f"the {len(known)} that are evaluated"
            )


# ---------------------------------------------------------------------------------------------
# lvis.LVISEval
# ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def lvis_classes() -> tuple[type, type, type]:
    """(LVIS, LVISResults, our subclass of LVISEval).

    Imported on first use. ``import lvis`` configures the root logger, which is undone, and
    ``LVISEval.accumulate`` of 0.5.3 needs the removed ``np.float``, which the subclass avoids.

    Raises:
        ImportError: the LVIS API is not installed.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        from lvis import LVIS, LVISEval, LVISResults
    except ImportError as e:
        raise ImportError(
            f"the LVIS API cannot be imported ({e}); tools/install_detectron2.py installs it"
        ) from e
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)

    class SparseLVISEval(LVISEval):
        """LVISEval that keeps entries of (image, class) pairs that hold anything."""

        def evaluate(self):
            self._prepare()
            pairs = sorted(
                {key for own in (self._gts, self._dts) for key, anns in own.items() if anns}
            )
            by_category = defaultdict(list)
            for image_id, category_id in pairs:  # in image order, which decides ties of score
                by_category[category_id].append(image_id)
            self.eval_imgs = {}
            for category_id, image_ids in by_category.items():
                self.ious = {(i, category_id): self.compute_iou(i, category_id) for i in image_ids}
                for a, area_range in enumerate(self.params.area_rng):
                    self.eval_imgs[category_id, a] = [
                        self.evaluate_img(i, category_id, area_range) for i in image_ids
                    ]

        def accumulate(self):
            p = self.params
            areas = range(len(p.area_rng))
            shape = (len(p.iou_thrs), len(p.rec_thrs), len(p.cat_ids), len(areas))
            precision = -np.ones(shape)
            for k, category_id in enumerate(p.cat_ids):
                for a in areas:
                    entries = self.eval_imgs.get((category_id, a), ())
                    curve = _precision_at_recall(entries, p.rec_thrs)
                    if curve is not None:
                        precision[:, :, k, a] = curve
            self.eval = {"params": p, "precision": precision}

        def _prepare_freq_group(self):
            # Groups are averaged outside: the file may have none, or others may be wanted.
            return []

    return LVIS, LVISResults, SparseLVISEval


def _precision_at_recall(entries: Sequence[dict], recall_thresholds: np.ndarray):
    """Interpolated precision of one class and area range.

    Args:
        entries: results of ``LVISEval.evaluate_img``, in image order.
        recall_thresholds: (R,).

    Returns:
        (T, R) precision at each IoU threshold and recall, 0 where the recall is not reached;
        None if there is no ground truth.
    """
    num_gt = sum(int(np.count_nonzero(e["gt_ignore"] == 0)) for e in entries)
    if num_gt == 0:
        return None
    scores = np.concatenate([np.asarray(e["dt_scores"], dtype=np.float64) for e in entries])
    # Stable: equal scores stay in image order, as in LVISEval.
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([e["dt_matches"] for e in entries], axis=1)[:, order] > 0
    counted = ~np.concatenate([e["dt_ignore"] for e in entries], axis=1)[:, order].astype(bool)
    tp = np.cumsum(matched & counted, axis=1, dtype=np.float64)
    fp = np.cumsum(~matched & counted, axis=1, dtype=np.float64)
    # np.spacing(1): the division by zero guard of LVISEval.
    precision = tp / (fp + tp + np.spacing(1))
    # Highest precision at this recall or a larger one.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    curve = np.zeros((len(tp), len(recall_thresholds)))
    for t in range(len(tp)):
        at = np.searchsorted(tp[t] / num_gt, recall_thresholds, side="left")
        reached = at < tp.shape[1]
        curve[t, reached] = precision[t, at[reached]]
    return curve


def evaluate_task(
    gt: GroundTruth, predictions: list[dict], task: str, max_detections: int = 300
) -> np.ndarray:
    """Precision of one task, as ``LVISEval.eval["precision"]``.

    Args:
        gt: ground truth; its masks are converted to RLE in place.
        predictions: in the results format of LVIS; not modified. "segm" takes sizes (small,
            medium, large) from the mask, "bbox" from the box.
        task: "bbox" or "segm".
        max_detections: per image, over all classes, by score.

    Returns:
        (T, R, C, A): 10 IoU thresholds 0.50, 0.55, ...; 101 recalls 0, 0.01, ...; classes in the
        order of `gt.categories`; areas all, small, medium, large. -1: no ground truth.

    Raises:
        DataError: an object has no box or mask, or a mask of another size than its image.
    """
    lvis_type, results_type, eval_type = lvis_classes()
    if task == "segm":
        _masks_to_rle(gt)
    dt = limit_per_image(predictions, max_detections)
    dt = [_detection(p, i + 1, task, gt.images) for i, p in enumerate(dt)]
    evaluation = eval_type(
        _index(lvis_type, gt, gt.annotations), _index(results_type, gt, dt), iou_type=task
    )
    evaluation.evaluate()
    evaluation.accumulate()
    # LVISEval has the classes by category id.
    position = {category_id: k for k, category_id in enumerate(evaluation.params.cat_ids)}
    order = [position[c["id"]] for c in gt.categories]
    return evaluation.eval["precision"][:, :, order]


def _index(kind: type, gt: GroundTruth, annotations: list[dict]):
    """An LVIS or LVISResults object over data in memory; their constructors read files."""
    index = kind.__new__(kind)
    index.logger = logging.getLogger("lvis")
    index.dataset = {
        "images": list(gt.images.values()),
        "categories": gt.categories,
        "annotations": annotations,
    }
    index._create_index()
    return index


def _masks_to_rle(gt: GroundTruth) -> None:
    for ann in gt.annotations:
        if "segmentation" not in ann:
            raise DataError(f"annotation {ann['file_id']} has no mask; evaluate boxes only")
        ann["segmentation"] = _to_rle(ann["segmentation"], gt.images[ann["image_id"]])


def _detection(prediction: dict, number: int, task: str, images: dict) -> dict:
    """A prediction as LVISEval wants it, with its own number and its area for this task."""
    dt = {k: prediction[k] for k in ("image_id", "category_id", "score")}
    dt["id"] = number
    if _TASK_KEYS[task] not in prediction:
        raise DataError(f"image {dt['image_id']!r}: a prediction has no {_TASK_KEYS[task]!r}")
    if task == "bbox":
        dt["bbox"] = prediction["bbox"]
        dt["area"] = prediction["bbox"][2] * prediction["bbox"][3]
        return dt
    image = images[dt["image_id"]]
    rle = _to_rle(prediction["segmentation"], image)
    # pycocotools gives IoU -1 for masks of different sizes, which would be a silent AP of 0.
    if list(rle["size"]) != [image["height"], image["width"]]:
        raise DataError(
            f"image {dt['image_id']!r} is {image['height']} x {image['width']} (height x width) in "
            f"the annotation file, a predicted mask {rle['size'][0]} x {rle['size'][1]}"
        )
    dt["segmentation"], dt["area"] = rle, float(mask_utils.area(rle))
    return dt


# ---------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------


def metrics_from_precision(precision: np.ndarray, groups: Sequence[str] | None) -> dict[str, float]:
    """The metrics of LVIS.

    Args:
        precision: (T, R, C, A) of :func:`evaluate_task`.
        groups: (C,) "r", "c" or "f"; None: APr, APc and APf are NaN.

    Returns:
        `METRICS` in percent; NaN where no class has ground truth.
    """
    everything = precision[..., 0]
    metrics = {"AP": everything, "AP50": everything[:1], "AP75": everything[5:6]}
    metrics.update({f"AP{a}": precision[..., i] for i, a in enumerate("sml", start=1)})
    for g in GROUPS:
        members = [k for k, letter in enumerate(groups or ()) if letter == g]
        metrics[f"AP{g}"] = everything[:, :, members]
    return {name: _percent(values) for name, values in metrics.items()}


def per_class_ap(precision: np.ndarray) -> np.ndarray:
    """(C,) AP of each class in percent; NaN: no ground truth. Their mean is the AP."""
    ap = 100.0 * precision[..., 0].mean(axis=(0, 1))
    ap[precision[0, 0, :, 0] < 0] = np.nan
    return ap


def _percent(precision: np.ndarray) -> float:
    valid = precision[precision > -1]
    return 100.0 * float(valid.mean()) if valid.size else float("nan")


# ---------------------------------------------------------------------------------------------
# Evaluator
# ---------------------------------------------------------------------------------------------


class LongTailLVISEvaluator(DatasetEvaluator):
    """Box and mask AP under the rules of LVIS, per class and per frequency group.

    For LVIS files and for COCO files; how the latter are read is said in
    :func:`prepare_ground_truth`. Predictions are gathered on rank 0, written to
    ``<output_dir>/lvis_instances_results.json`` and evaluated there.

    Attributes:
        record: the result record of the last evaluation, without its "run" part; None before
            the first one and on other ranks. See :mod:`lt_det.evaluation.results`.
    """

    def __init__(
        self,
        *,
        dataset_name: str,
        json_file: str,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        groups: Sequence[str] | None = None,
        tasks: Sequence[str] = TASKS,
        max_detections: int = 300,
        output_dir: str | None = None,
        class_counts: dict[str, Sequence[int]] | None = None,
        group_borders: Sequence[int] = (10, 100),
        distributed: bool = True,
    ):
        """Check the arguments and, on rank 0, the annotation file.

        Args:
            dataset_name: name for logs and the record.
            json_file: annotations in LVIS or COCO format.
            class_names: (C,) names, in the order of the model's classes.
            category_ids: (C,) the file's category id of each class.
            groups: (C,) "r", "c" or "f". None: `frequency` of the file; if it has none, from
                `class_counts["images"]`; without these either, there are no groups and APr, APc
                and APf are NaN.
            tasks: of "bbox" and "segm". "segm" is left out if the model predicts no masks.
            max_detections: per image, over all classes.
            output_dir: where predictions are written; None: nowhere.
            class_counts: {"images": (C,), "instances": (C,)} of the *training* set, for the
                record.
            group_borders: see :func:`lt_det.evaluation.groups.groups_from_counts`.
            distributed: gather the predictions of all ranks; every rank must then call
                :meth:`evaluate`. False: evaluate in this process what it has processed.

        Raises:
            ValueError: arguments of different lengths, an unknown task, a repeated category.
            MissingFileError, DataError: see :func:`load_ground_truth`. With several ranks only
                rank 0 reads the file.
        """
        num_classes = len(class_names)
        _check_classes(num_classes, category_ids, class_counts)
        unknown = [t for t in tasks if t not in TASKS]
        if unknown or not tasks:
            raise ValueError(f"tasks must be of {', '.join(TASKS)}, got {list(tasks)}")
        if max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, got {max_detections}")
        if groups is not None:
            check_groups(groups, num_classes)
        self._dataset_name = dataset_name
        self._json_file = str(json_file)
        self._class_names = list(class_names)
        self._category_ids = [int(i) for i in category_ids]
        self._tasks = [t for t in TASKS if t in tasks]
        self._max_detections = int(max_detections)
        self._output_dir = output_dir
        self._counts = {k: [int(n) for n in v] for k, v in (class_counts or {}).items()}
        self._distributed = distributed
        self.record = None
        self._gt = None
        self._groups, self._group_source = None, "none"
        if groups is not None:
            self._groups, self._group_source = list(groups), "given"
        elif "images" in self._counts:
            self._groups = groups_from_counts(self._counts["images"], group_borders)
            self._group_source = "training images"
        # What cannot be used should end the run before inference, not after it.
        if not distributed or comm.is_main_process():
            lvis_classes()
            self._ground_truth()
        self.reset()

    def reset(self):
        """Forget what was processed."""
        # (image id, predictions) of each image that was processed.
        self._images: list[tuple[int, list[dict]]] = []
        # The tasks that the outputs were good for.
        self._predicted: set[str] = set()

    def process(self, inputs, outputs):
        """Keep the predictions of a batch, masks as RLE.

        Args:
            inputs: list of dicts with "image_id".
            outputs: list of dicts with "instances": :class:`Instances` with `pred_boxes`,
                `scores`, `pred_classes` and optionally `pred_masks`, at the size of the image
                in the annotation file.
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(torch.device("cpu"))
            self._predicted |= {"bbox", "segm"} if instances.has("pred_masks") else {"bbox"}
            predictions = instances_to_coco_json(instances, image["image_id"])
            for p in predictions:
                p["category_id"] = self._category_id(p)
            self._images.append((image["image_id"], predictions))

    def evaluate(self) -> OrderedDict:
        """Gather, write and evaluate what was processed.

        Returns:
            {"bbox": {...}, "segm": {...}} with `METRICS` in percent (NaN: no ground truth);
            {} on ranks other than 0.

        Raises:
            DataError: a prediction that does not fit the annotation file.
            RuntimeError: the evaluation failed. In both cases the message names the file with
                the predictions, if there is an output directory.
        """
        self.record = None
        images, predicted = self._images, self._predicted
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((images, predicted), dst=0)
            if not comm.is_main_process():
                return OrderedDict()
            images = list(itertools.chain.from_iterable(g[0] for g in gathered))
            predicted = set().union(*(g[1] for g in gathered))
        images = self._without_repeats(images)
        predictions = self._finite(list(itertools.chain.from_iterable(p for _, p in images)))
        path = self._write(predictions)
        where = f"; the predictions are kept in {path}" if path else ""
        try:
            self._check_coverage([image_id for image_id, _ in images])
            return self._evaluate(predictions, self._possible_tasks(predicted))
        except LtDetError as e:
            raise type(e)(f"{e}{where}") from e
        except Exception as e:
            raise RuntimeError(f"the evaluation of {self._dataset_name} failed: {e}{where}") from e

    def evaluate_predictions(self, predictions: list[dict]) -> OrderedDict:
        """Evaluate predictions in the results format of LVIS, as of :func:`load_predictions`.

        Nothing is gathered or written. The tasks are those that the predictions have boxes or
        masks for; no predictions at all get AP 0 in every task.

        Returns, Raises: see :meth:`evaluate`.
        """
        _check_fields(predictions)
        predictions = self._finite(predictions)
        keys = set().union(*predictions)
        predicted = {task for task, key in _TASK_KEYS.items() if key in keys}
        return self._evaluate(predictions, self._possible_tasks(predicted))

    def _evaluate(self, predictions: list[dict], tasks: list[str]) -> OrderedDict:
        gt = self._ground_truth()
        _check_against(predictions, gt)
        if not gt.annotations:
            logger.warning(f"{self._dataset_name} has no ground truth: no metric has a value")
        results, class_ap = OrderedDict(), {}
        for task in tasks:
            precision = evaluate_task(gt, predictions, task, self._max_detections)
            results[task] = metrics_from_precision(precision, self._groups)
            class_ap[f"{task}/AP"] = per_class_ap(precision)
        self.record = self._make_record(results, class_ap)
        self._log(results, class_ap)
        return results

    def _ground_truth(self) -> GroundTruth:
        if self._gt is None:
            self._gt = load_ground_truth(self._json_file, self._category_ids)
            for note in self._gt.notes:
                logger.info(f"{self._dataset_name}: {note}")
            if self._group_source != "given" and self._gt.groups is not None:
                self._groups, self._group_source = self._gt.groups, "frequency of the file"
            if self._groups is None:
                logger.warning(
                    f"{self._dataset_name}: no class has a frequency group; no APr, APc and APf"
                )
        return self._gt

    def _category_id(self, prediction: dict) -> int:
        k = prediction["category_id"]
        if not 0 <= k < len(self._category_ids):
            raise DataError(
                f"image {prediction['image_id']!r}: predicted class {k}, but {self._dataset_name} "
                f"has {len(self._category_ids)} classes; see MODEL.ROI_HEADS.NUM_CLASSES"
            )
        return self._category_ids[k]

    def _without_repeats(self, images: list[tuple]) -> list[tuple]:
        """One entry per image: a sampler that pads gives some images to two ranks."""
        first = {}
        for image_id, predictions in images:
            first.setdefault(image_id, (image_id, predictions))
        if len(first) < len(images):
            logger.warning(
                f"{len(images) - len(first)} images were processed more than once; "
                "their first predictions are used"
            )
        return list(first.values())

    def _finite(self, predictions: list[dict]) -> list[dict]:
        kept, dropped = drop_non_finite(predictions)
        if dropped:
            logger.warning(
                f"{dropped} of {len(predictions)} predictions have a score or box that is not "
                "finite; they are dropped"
            )
        return kept

    def _check_coverage(self, image_ids: list) -> None:
        absent = set(self._ground_truth().images) - set(image_ids)
        if absent:
            logger.warning(
                f"{len(absent)} of {len(self._gt.images)} images of {self._dataset_name} were not "
                "processed; they count as images without detections"
            )

    def _possible_tasks(self, predicted: set[str]) -> list[str]:
        """The wanted tasks that there are predictions for; all if nothing was predicted."""
        left_out = [t for t in self._tasks if predicted and t not in predicted]
        for task in left_out:
            logger.info(f"no {_TASK_WORDS[task]} results: the model predicts none")
        return [t for t in self._tasks if t not in left_out]

    def _write(self, predictions: list[dict]) -> str | None:
        if not self._output_dir:
            return None
        os.makedirs(self._output_dir, exist_ok=True)
        path = os.path.join(self._output_dir, PREDICTIONS_FILE)
        write_predictions(path, predictions)
        logger.info(f"wrote {len(predictions)} predictions to {path}")
        return path

    def _make_record(self, results: dict, class_ap: dict) -> dict:
        per_class = {"name": self._class_names}
        if self._groups is not None:
            per_class["group"] = self._groups
        for unit in ("images", "instances"):
            if unit in self._counts:
                per_class[f"train_{unit}"] = self._counts[unit]
        return make_record(
            task="instance",
            dataset=self._dataset_name,
            protocol={
                "rules": "lvis",
                "max_detections": self._max_detections,
                "federated": self._gt.federated,
                "images": len(self._gt.images),
                "groups": self._group_source,
            },
            metrics=results,
            per_class={**per_class, **class_ap},
            group_sizes=group_sizes(self._groups) if self._groups else {},
        )

    def _log(self, results: dict, class_ap: dict) -> None:
        rows = [[_TASK_WORDS[t], *(m[name] for name in METRICS)] for t, m in results.items()]
        table = tabulate(rows, ["", *METRICS], tablefmt="pipe", floatfmt=".2f")
        logger.info(f"Results of {self._dataset_name} (percent):\n{table}")
        if not self._groups or not class_ap:
            return
        sizes = group_sizes(self._groups)
        valid = group_sizes(self._groups, next(iter(class_ap.values())))
        counts = ", ".join(f"{g} {valid[g]} of {sizes[g]}" for g in GROUPS)
        logger.info(f"Classes with ground truth: {counts}")


def _check_classes(num_classes: int, category_ids: Sequence[int], class_counts) -> None:
    if num_classes == 0:
        raise ValueError("class_names is empty")
    if len(category_ids) != num_classes:
        raise ValueError(f"{len(category_ids)} category_ids for {num_classes} class_names")
    repeated = [i for i, n in Counter(category_ids).items() if n > 1]
    if repeated:
        raise ValueError(f"category id {repeated[0]} belongs to more than one class")
    for unit, counts in (class_counts or {}).items():
        if unit not in ("images", "instances"):
            raise ValueError(f"class_counts has 'images' and 'instances', not {unit!r}")
        if len(counts) != num_classes:
            raise ValueError(f"{len(counts)} class_counts[{unit!r}] for {num_classes} class_names")
