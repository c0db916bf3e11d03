"""A small detection set and run folders with evaluated predictions of chosen quality."""

from __future__ import annotations

import numpy as np

from lt_det.evaluation import evaluate_lvis
from lt_det.evaluation.results import add_run_info, write_record

CLASSES = 9
DATASET = "boxes_val"


def ground_truth(images=80, seed=0):
    """LVIS content: three classes of each group, a class in about a quarter of the images."""
    rng = np.random.default_rng(seed)
    annotations, lists = [], []
    for image in range(1, images + 1):
        present = np.flatnonzero(rng.random(CLASSES) < 0.25)
        for k in present:
            for _ in range(rng.integers(1, 3)):
                x, y = rng.uniform(0, 60, 2)
                w, h = rng.uniform(15, 35, 2)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": int(k) + 1,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                    }
                )
        absent = np.setdiff1d(np.arange(CLASSES), present)
        lists.append(
            {
                "id": image,
                "height": 100,
                "width": 100,
                "neg_category_ids": (rng.permutation(absent)[:4] + 1).tolist(),
                "not_exhaustive_category_ids": (present[:1] + 1).tolist() if image % 9 == 0 else [],
            }
        )
    categories = [
        {"id": k + 1, "name": f"class {k}", "frequency": "rcf"[k // 3]} for k in range(CLASSES)
    ]
    return {"images": lists, "annotations": annotations, "categories": categories}


def predictions(gt, seed, found=0.7, found_of=()):
    """Detections: of each object with a probability, out of place at random, and false ones.

    Args:
        gt: of :func:`ground_truth`.
        seed: of the detector.
        found: probability that an object is found.
        found_of: pairs of class and a probability of its own.
    """
    rng = np.random.default_rng(seed)
    chance = np.full(CLASSES, found)
    for k, own in found_of:
        chance[k] = own
    results = []

    def add(image, category, box, score):
        box = np.asarray(box)
        box[2:] = box[2:].clip(2)
        own = {"bbox": box.tolist(), "score": float(score)}
        results.append({"image_id": image, "category_id": category, **own})

    for ann in gt["annotations"]:
        if rng.random() < chance[ann["category_id"] - 1]:
            add(
                *(ann["image_id"], ann["category_id"]),
                *(np.array(ann["bbox"]) + rng.normal(0, 2, 4), rng.beta(4, 2)),
            )
    for image in gt["images"]:
        for k in rng.integers(1, CLASSES + 1, 12):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(15, 35, 2)]
            add(image["id"], int(k), box, rng.beta(2, 4))
    return results


def write_run(folder, gt, results, *, seed=0, config="configs/boxes.yaml", **more):
    """A run folder with the record and the matches of an evaluation; the result."""
    result = evaluate_lvis(gt, results, ["bbox"], **more)
    inference = folder / "inference" / DATASET
    inference.mkdir(parents=True)
    result.save_matches(inference)
    record = add_run_info(
        result.record(DATASET), iteration=100, seed=seed, config=config, weights=None
    )
    write_record(folder / "results" / f"{DATASET}.json", record)
    return result
