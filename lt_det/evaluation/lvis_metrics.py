"""Matching of predictions with ground truth by ``lvis.LVISEval``, and the metrics of LVIS.

How it differs from plain ``LVISEval`` is said in :mod:`lt_det.evaluation.lvis`.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_utils

from lt_det.errors import DataError, PackageError
from lt_det.evaluation.groups import GROUPS
from lt_det.evaluation.lvis_ground_truth import GroundTruth, to_rle
from lt_det.evaluation.lvis_predictions import limit_per_image

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
# Where a prediction or annotation has what the task compares.
TASK_KEYS = {"bbox": "bbox", "segm": "segmentation"}


# ---------------------------------------------------------------------------------------------
# lvis.LVISEval
# ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def lvis_classes() -> tuple[type, type, type]:
    """(LVIS, LVISResults, our subclass of LVISEval).

    Imported on first use. ``import lvis`` configures the root logger, which is undone, and
    ``LVISEval.accumulate`` of 0.5.3 needs the removed ``np.float``, which the subclass avoids.

    Raises:
        PackageError: the LVIS API is not installed.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        from lvis import LVIS, LVISEval, LVISResults
    except ImportError as e:
        raise PackageError(
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
        ann["segmentation"] = to_rle(ann["segmentation"], gt.images[ann["image_id"]])


def _detection(prediction: dict, number: int, task: str, images: dict) -> dict:
    """A prediction as LVISEval wants it, with its own number and its area for this task."""
    dt = {k: prediction[k] for k in ("image_id", "category_id", "score")}
    dt["id"] = number
    if TASK_KEYS[task] not in prediction:
        raise DataError(f"image {dt['image_id']!r}: a prediction has no {TASK_KEYS[task]!r}")
    if task == "bbox":
        dt["bbox"] = prediction["bbox"]
        dt["area"] = prediction["bbox"][2] * prediction["bbox"][3]
        return dt
    image = images[dt["image_id"]]
    rle = to_rle(prediction["segmentation"], image)
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
