"""Label maps for the tests of semantic segmentation, and what Detectron2 says about them."""

from __future__ import annotations

import json

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

IGNORED = 255


def region_map(rng, shape, classes, regions=9):
    """(H, W) uint8 of regions around random centres, each of a random one of `classes`."""
    rows, columns = np.indices(shape)
    centres = rng.uniform(0, 1, (regions, 2)) * shape
    distance = np.hypot(
        rows[..., None] - centres[:, 0],
        columns[..., None] - centres[:, 1],
    )
    return rng.choice(classes, regions).astype(np.uint8)[distance.argmin(axis=2)]


def map_pair(seed, shape=(37, 53), labelled=range(8), predicted=range(8), ignored=0.1):
    """Labels with a share of ignored pixels, and a prediction that is right in about half."""
    rng = np.random.default_rng(seed)
    labels = region_map(rng, shape, list(labelled))
    other = region_map(rng, shape, list(predicted))
    allowed = np.isin(labels, list(predicted)) & (rng.random(shape) < 0.6)
    prediction = np.where(allowed, labels, other)
    labels[rng.random(shape) < ignored] = IGNORED
    return labels, prediction


def one_hot(labels, num_classes):
    """(C, H, W) float32 scores of which the one of each label is the highest."""
    scores = torch.nn.functional.one_hot(torch.tensor(labels).long(), num_classes)
    return scores.permute(2, 0, 1).float()


def detectron2_results(folder, pairs, num_classes):
    """Results of Detectron2's evaluator on (labels, prediction) pairs, and its predictions file.

    Image k is called "images/k.jpg".
    """
    records = []
    for k, (labels, _) in enumerate(pairs):
        path = folder / f"{k}.png"
        Image.fromarray(labels).save(path)
        records.append({"file_name": f"images/{k}.jpg", "sem_seg_file_name": str(path)})
    name = f"sem_seg_maps_{folder.name}"
    DatasetCatalog.register(name, lambda: records)
    try:
        names = [str(k) for k in range(num_classes)]
        MetadataCatalog.get(name).set(stuff_classes=names, ignore_label=IGNORED)
        evaluator = SemSegEvaluator(name, distributed=False, output_dir=str(folder / "detectron2"))
        evaluator.reset()
        for record, (_, predicted) in zip(records, pairs, strict=True):
            evaluator.process([record], [{"sem_seg": one_hot(predicted, num_classes)}])
        results = evaluator.evaluate()["sem_seg"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    file = folder / "detectron2/sem_seg_predictions.json"
    return results, json.loads(file.read_text())
