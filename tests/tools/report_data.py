"""Small runs for the tests of tools/report.py, with what their evaluations and trainings leave."""

import json
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from lt_det.data.datasets import catalog
from lt_det.evaluation import evaluate_lvis
from lt_det.evaluation.arrays import write_arrays
from lt_det.evaluation.lvis_predictions import write_predictions
from lt_det.evaluation.predictions import Predictions
from lt_det.evaluation.results import add_run_info, make_record, write_record

# The first two must not be taken for HTML.
NAMES = ["<b>ant</b>", 'bee "&" wasp', "cat", "dog", "elk", "fox"]
GROUPS = ["r", "r", "c", "c", "f", "f"]
TRAIN_IMAGES = [3, 8, 20, 60, 300, 500]
WIDTH, HEIGHT = 64, 48
EQLV2 = {"gamma": 12.0, "mu": 0.8, "alpha": 4.0}


def box_of(place: int) -> list[int]:
    """XYWH of one of four places that do not overlap."""
    return [4 + 30 * (place % 2), 4 + 22 * (place // 2), 20, 16]


def polygon(box: list[int]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def annotations(images: int = 12) -> dict:
    """An LVIS file: image i holds classes i, i + 1 and i + 2 (modulo 6); no class else is there."""
    objects = [(i, place, (i + place) % 6) for i in range(images) for place in range(3)]
    boxes = [box_of(place) for _, place, _ in objects]
    return {
        "images": [
            {
                "id": 10 + i,
                "width": WIDTH,
                "height": HEIGHT,
                "file_name": f"{i}.png",
                "neg_category_ids": [1 + (i + k) % 6 for k in (3, 4, 5)],
                "not_exhaustive_category_ids": [],
            }
            for i in range(images)
        ],
        "categories": [
            {"id": 1 + k, "name": NAMES[k], "frequency": GROUPS[k]} for k in range(len(NAMES))
        ],
        "annotations": [
            {
                "id": n,
                "image_id": 10 + i,
                "category_id": 1 + k,
                "bbox": box,
                "area": box[2] * box[3],
                "segmentation": [polygon(box)],
            }
            for n, ((i, _, k), box) in enumerate(zip(objects, boxes, strict=True), 1)
        ],
    }


def predictions(data: dict, seed: int, skill: float) -> list[dict]:
    """A box for each object, of its class with probability `skill`, else of any class."""
    rng = np.random.default_rng(seed)
    found = []
    for a in data["annotations"]:
        right = rng.random() < skill
        k = a["category_id"] if right else int(rng.integers(1, 7))
        score = rng.uniform(0.5, 1) if right else rng.uniform(0.1, 0.9)
        found.append(
            {
                "image_id": a["image_id"],
                "category_id": k,
                "bbox": [float(v) for v in a["bbox"]],
                "score": round(float(score), 3),
            }
        )
    return found


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_training(run: Path, names, groups, loss: str = "EQLv2", params=None, **config) -> None:
    """Configuration, curves and gradient statistics of a run of 100 iterations."""
    run.mkdir(parents=True, exist_ok=True)
    config.setdefault("MODEL", {"LT": {"LOSS": {"NAME": loss, "PARAMS": params or EQLV2}}})
    config = {"VERSION": 2, "SOLVER": {"MAX_ITER": 100}, **config}
    (run / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    curves = [
        {"iteration": i, "total_loss": 2 - i / 100, "loss_cls": 1 - i / 200, "lr": 0.02}
        for i in range(0, 100, 10)
    ]
    write_lines(run / "metrics.json", curves)
    counts = list(range(5, 5 + len(names)))
    header = {"names": names, "groups": groups, "counts": counts}
    rows = []
    for i in (0, 49, 99):
        # All ratios end at 2, far beyond what the re-weighting acts on.
        pos = [0.5 * (i > 0) * (k + 1) + i / 50 for k in range(len(names))]
        rows.append({"iteration": i, "loss": "", "pos": pos, "neg": [0.5 * p + 0.01 for p in pos]})
    write_lines(run / "gradient_statistics.jsonl", [header, *rows])


def run_info(record: dict, **more) -> dict:
    values = {"iteration": 100, "seed": 1, "config": "some.yaml", "weights": None, "loss": "EQLv2"}
    return add_run_info(record, **{**values, **more})


class DetectionSet:
    """A registered data set in a folder, and runs that were evaluated on it."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, f"report_{folder.name}"
        self.data = annotations()
        (folder / "images").mkdir()
        rng = np.random.default_rng(0)
        for image in self.data["images"]:
            pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / image["file_name"])
        self.json = folder / "set.json"
        self.json.write_text(json.dumps(self.data))

    def run(self, name: str, seed: int = 1, skill: float = 0.6) -> Path:
        """The folder of a run with records, matches, predictions and curves."""
        run = self.folder / name
        entry = {"name": self.name, "json": str(self.json), "images": str(self.folder / "images")}
        sets = {"TEST": [self.name], "LT": {"REGISTER": [entry]}}
        write_training(run, NAMES, GROUPS, DATASETS=sets)
        found = predictions(self.data, seed, skill)
        inference = run / "inference" / self.name
        write_predictions(
            inference / "lvis_instances_results.json", Predictions.from_results(found)
        )
        result = evaluate_lvis(self.data, found)
        result.save_matches(inference)
        record = result.record(self.name, {"images": TRAIN_IMAGES})
        write_record(run / "results" / f"{self.name}.json", run_info(record, seed=seed))
        return run

    def remove(self) -> None:
        forget(self.name)


def forget(name: str) -> None:
    """Take a data set out of the catalogues of the process."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        catalog._SOURCES.pop(name, None)


def classification_run(folder: Path, name: str) -> Path:
    """A run on 12 images of three classes; images 0, 1 and 4 of class 0 went to class 2."""
    run = folder / "classification"
    (folder / "photos").mkdir()
    labels = [k % 3 for k in range(12)]
    for i in range(12):
        Image.new("RGB", (20, 20), (20 * i, 90, 90)).save(folder / "photos" / f"{i}.png")
    lines = [f"{i}.png {k}" for i, k in enumerate(labels)]
    (folder / "list.txt").write_text("\n".join(lines))
    entry = {"name": name, "list": str(folder / "list.txt"), "images": str(folder / "photos")}
    sets = {"TEST": [name], "LT": {"REGISTER": [entry]}}
    write_training(run, NAMES[:3], ["r", "c", "f"], DATASETS=sets)
    predicted = np.array(labels)
    predicted[[0, 3, 6]] = 2
    scores = np.linspace(0.3, 0.9, 12)
    write_arrays(
        run / "inference" / name / "predictions.npz",
        image_ids=np.arange(12),
        labels=np.array(labels),
        top_classes=predicted[:, None],
        top_scores=scores[:, None],
    )
    accuracy = [25.0, 100.0, 100.0]
    shots = {"few": 25.0, "medium": 100.0, "many": 100.0}
    record = make_record(
        task="classification",
        dataset=name,
        protocol={"split": name, "images": 12},
        metrics={"classification": {"top1": 75.0, "mean_class": 75.0, **shots, "ece": 5.0}},
        per_class={
            "name": NAMES[:3],
            "group": ["r", "c", "f"],
            "train_images": [5, 50, 500],
            "test_images": [4, 4, 4],
            "classification/accuracy": accuracy,
        },
        group_sizes={"r": 1, "c": 1, "f": 1},
    )
    write_record(run / "results" / f"{name}.json", run_info(record, loss="SoftmaxCE"))
    return run


def segmentation_run(folder: Path, name: str) -> Path:
    """A run on two images of 20 x 30: half sky, half tail class that was taken for the cup."""
    run = folder / "segmentation"
    names = ["sky", "cup", "<i>elk</i>"]
    for part in ("photos", "maps"):
        (folder / part).mkdir()
    truth = np.zeros((20, 30), np.uint8)
    truth[10:] = 2
    predicted = np.zeros((20, 30), np.uint8)
    predicted[10:, :24] = 1
    for i in (1, 2):
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(folder / f"photos/{i}.png")
        Image.fromarray(truth).save(folder / f"maps/{i}.png")
        place = run / "inference" / name / "predictions"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(predicted).save(place / f"{i}.png")
    (folder / "names.txt").write_text("\n".join(names))
    entry = {
        "name": name,
        "images": str(folder / "photos"),
        "labels": str(folder / "maps"),
        "classes": str(folder / "names.txt"),
    }
    sets = {"TEST": [name], "LT": {"REGISTER": [entry]}}
    write_training(run, names, ["f", "c", "r"], DATASETS=sets)
    metrics = {"mIoU": 27.8, "mIoU_head": 83.3, "mIoU_common": 0.0, "mIoU_tail": 0.0}
    record = make_record(
        task="sem_seg",
        dataset=name,
        protocol={"split": name, "images": 2},
        metrics={"sem_seg": {**metrics, "mACC": 50.0}},
        per_class={
            "name": names,
            "group": ["f", "c", "r"],
            "train_pixels": [9000, 900, 90],
            "sem_seg/IoU": [83.3, 0.0, 0.0],
        },
        group_sizes={"r": 1, "c": 1, "f": 1},
    )
    write_record(run / "results" / f"{name}.json", run_info(record, loss="SoftmaxCE"))
    return run
