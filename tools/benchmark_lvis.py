"""`python tools/benchmark.py lvis-eval`: what evaluating a set of LVIS's shape costs.

Boxes and masks, from the annotation file and predictions in memory to the metrics: by the `lvis`
package, and by ours from the list of result dicts that Detectron2's evaluator holds and from
columns. Each in a process of its own, in turns. Seconds of the clock and of the processor, which
what else runs on the machine takes none of, and the most memory above what the process held
before. The precision and recall arrays of all must be equal. Sets that are too large for `lvis`
are measured without it (`--ways`).

The set is generated: 1203 classes by Zipf's law, federated lists, 300 detections an image, of
which many are near an object and some are not of a listed class.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson
import pycocotools.mask as mask_utils
from benchmark_common import environment, positive
from lvis import LVIS, LVISEval, LVISResults

from lt_det.evaluation import Predictions, evaluate_lvis
from lt_det.evaluation.predictions import concatenate

CLASSES = 1203
DETECTIONS = 300
# Of the validation set of LVIS v1: 244,707 objects in 19,809 images.
OBJECTS = 12.35
CLASSES_PER_IMAGE = 5
# Classes of an image that are listed as absent, and those not annotated in full.
NEGATIVE, NOT_EXHAUSTIVE = 12, 1
# Of the detections that are no duplicates of an object: those that lie on one of any class, as
# those of a model do, rather than anywhere, and those of a class that is listed for the image.
ON_OBJECTS, LISTED = 0.6, 0.2
POINTS = 24
TASKS = ("bbox", "segm")
REFERENCE = "lvis"
WAYS = {REFERENCE: "lvis", "list": "lt_det, list of dicts", "columns": "lt_det, columns"}
GROUND_TRUTH, COLUMNS = "ground_truth.json", "predictions.npz"


# ---- the set -----------------------------------------------------------------------------------


def write_set(folder: Path, num_images: int, seed: int = 0) -> None:
    """Write `GROUND_TRUTH` and `COLUMNS`: the same for the same arguments."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, CLASSES + 1)
    weights /= weights.sum()
    images, annotations, detections = [], [], []
    for image_id in np.cumsum(rng.integers(1, 50, num_images)).tolist():
        image, objects = _image(rng, weights, image_id)
        images.append(image)
        own = _annotations(rng, image, objects, len(annotations))
        annotations.extend(own)
        # Columns at once: dicts of a large set would fill the memory.
        columns = Predictions.from_results(_detections(rng, weights, image, objects))
        detections.append(columns.measured())
    frequency = np.repeat(["f", "c", "r"], [405, 461, 337]).tolist()
    categories = [
        {"id": k + 1, "name": f"class {k + 1}", "frequency": frequency[k]} for k in range(CLASSES)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / GROUND_TRUTH).write_bytes(orjson.dumps(content))
    concatenate(detections).save(folder / COLUMNS)


def _image(rng: np.random.Generator, weights: np.ndarray, image_id: int) -> tuple[dict, tuple]:
    """The entry of an image, and (class ids, (M, 4) boxes) of its objects."""
    # As in COCO: the long side is 640 pixels, the short side often 480 and else of any size.
    short = 480 if rng.random() < 0.5 else int(rng.integers(360, 500))
    height, width = (short, 640) if rng.random() < 0.7 else (640, short)
    number = min(1 + rng.geometric(1 / OBJECTS), 200)
    present = np.unique(rng.choice(CLASSES, CLASSES_PER_IMAGE, p=weights)) + 1
    classes = rng.choice(present, number)
    boxes = _boxes(rng, number, height, width)
    absent = np.setdiff1d(rng.choice(CLASSES, NEGATIVE, replace=False) + 1, classes)
    image = {
        "id": image_id,
        "height": height,
        "width": width,
        "neg_category_ids": absent.tolist(),
        "not_exhaustive_category_ids": rng.choice(present, NOT_EXHAUSTIVE).tolist(),
    }
    return image, (classes, boxes)


def _boxes(rng: np.random.Generator, number: int, height: int, width: int) -> np.ndarray:
    """(M, 4) XYWH inside the image; as many of each factor in size, from 8 to 250 pixels."""
    side = np.exp(rng.uniform(np.log(8), np.log(250), (number, 1)))
    size = np.minimum(side * rng.uniform(0.6, 1.4, (number, 2)), [width - 1, height - 1])
    corner = rng.uniform(0, 1, (number, 2)) * ([width, height] - size)
    return np.concatenate([corner, size], axis=1).round(2)


def _polygons(rng: np.random.Generator, boxes: np.ndarray) -> list[list[float]]:
    """A rough ellipse in each box."""
    angle = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    radius = 0.5 * rng.uniform(0.8, 1.0, (len(boxes), POINTS))
    x = boxes[:, :1] + boxes[:, 2:3] * (0.5 + radius * np.cos(angle))
    y = boxes[:, 1:2] + boxes[:, 3:] * (0.5 + radius * np.sin(angle))
    return np.stack([x, y], axis=2).reshape(len(boxes), -1).round(2).tolist()


def _annotations(rng, image: dict, objects: tuple, start: int) -> list[dict]:
    classes, boxes = objects
    polygons = _polygons(rng, boxes)
    areas = mask_areas(polygons, image)
    return [
        {
            "id": start + k + 1,
            "image_id": image["id"],
            "category_id": category,
            "bbox": box,
            "area": area,
            "segmentation": [polygon],
        }
        for k, (category, box, area, polygon) in enumerate(
            zip(classes.tolist(), boxes.tolist(), areas, polygons, strict=True)
        )
    ]


def mask_areas(polygons: list[list[float]], image: dict) -> list[float]:
    """Square pixels of polygons in an image."""
    rles = mask_utils.frPyObjects(polygons, image["height"], image["width"])
    return [float(mask_utils.area(rle)) for rle in rles]


def _detections(rng, weights: np.ndarray, image: dict, objects: tuple) -> list[dict]:
    """`DETECTIONS` predictions: some of each object, the others on other objects or anywhere."""
    classes, boxes = objects
    # Duplicates of each object; not all are found.
    copies = rng.geometric(0.3, len(boxes)) - 1
    near = np.repeat(np.arange(len(boxes)), copies)[:DETECTIONS]
    far = DETECTIONS - len(near)
    spread = rng.uniform(0, 0.25, len(near))
    on_object = rng.random(far) < ON_OBJECTS
    others = _boxes(rng, far, image["height"], image["width"])
    others[on_object] = _moved(
        rng, boxes[rng.integers(0, len(boxes), far)], rng.uniform(0, 0.6, far), image
    )[on_object]
    box = np.concatenate([_moved(rng, boxes[near], spread, image), others]).round(2)
    listed = np.concatenate([classes, image["neg_category_ids"]])
    category = np.where(
        rng.random(far) < LISTED, rng.choice(listed, far), rng.choice(CLASSES, far, p=weights) + 1
    )
    category = np.concatenate([classes[near], category])
    scores = np.concatenate([rng.beta(2, 2, len(near)) * (1 - spread), rng.beta(1, 8, far)])
    rles = mask_utils.frPyObjects(_polygons(rng, box), image["height"], image["width"])
    # As a model gives them: the highest score first.
    order = np.argsort(-scores, kind="stable").tolist()
    return [
        {
            "image_id": image["id"],
            "category_id": int(category[k]),
            "bbox": box[k].tolist(),
            "score": float(np.float32(scores[k])),
            "segmentation": rles[k],
        }
        for k in order
    ]


def _moved(rng, boxes: np.ndarray, spread: np.ndarray, image: dict) -> np.ndarray:
    """(M, 4) boxes inside the image, moved and resized by some (M,) `spread` of their size."""
    sides = boxes[:, [2, 3, 2, 3]]
    moved = boxes + spread[:, None] * rng.standard_normal((len(boxes), 4)) * sides
    limits = np.array([image["width"], image["height"]])
    moved[:, :2] = np.clip(moved[:, :2], 0, limits - 4)
    moved[:, 2:] = np.clip(moved[:, 2:], 3, limits - moved[:, :2])
    return moved


# ---- one evaluation, in a process of its own ---------------------------------------------------


def evaluate(way: str, task: str, folder: Path, output: Path) -> dict:
    """Evaluate in this process and write the arrays: seconds and MB."""
    predictions = _input(way, task, folder)
    gt = str(folder / GROUND_TRUTH)
    held = _reset_peak()
    clock, processor = time.perf_counter(), time.process_time()
    arrays = (_by_lvis if way == REFERENCE else _by_us)(gt, predictions, task)
    seconds = {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - processor,
    }
    peak = _peak_mb() - held
    np.savez(output, **arrays)
    return {**seconds, "extra_mb": peak}


def _input(way: str, task: str, folder: Path):
    """Columns, or dicts as Detectron2 hands them over: boxes are no part of those for masks."""
    columns = Predictions.load(folder / COLUMNS)
    if task == "bbox":
        head = (columns.image_ids, columns.category_ids, columns.scores, columns.boxes)
        columns = Predictions(*head)
    if way == "columns":
        return columns
    results = [p for piece in columns.results() for p in piece]
    for p in results if task == "segm" else ():
        del p["bbox"]
    return results


def _by_lvis(gt: str, predictions: list[dict], task: str) -> dict[str, np.ndarray]:
    ground_truth = LVIS(gt)
    evaluation = LVISEval(ground_truth, LVISResults(ground_truth, predictions), task)
    evaluation.run()
    return {name: evaluation.eval[name] for name in ("precision", "recall")}


def _by_us(gt: str, predictions, task: str) -> dict[str, np.ndarray]:
    result = evaluate_lvis(gt, predictions, [task])
    return {"precision": result.precision[task], "recall": result.recall[task]}


def _reset_peak() -> float:
    """MB that this process holds now; the peak counts from here where the system can do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_mb("VmRSS")
    except OSError:
        return _peak_mb()


def _peak_mb() -> float:
    if Path("/proc/self/status").exists():
        return _status_mb("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


# ---- the command -------------------------------------------------------------------------------


def in_process(way: str, task: str, folder: Path) -> dict:
    """What :func:`evaluate` returns in a process of its own; its arrays lie in `folder`."""
    output = arrays_path(folder, way, task)
    command = [sys.executable, __file__, way, task, str(folder), str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        raise ValueError(f"{way}, {task} ended with status {done.returncode}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def arrays_path(folder: Path, way: str, task: str) -> Path:
    """Where a process leaves its arrays."""
    return folder / f"{task}_{way}.npz"


def measure(folder: Path, tasks: list[str], ways: list[str], repeats: int) -> list[dict]:
    """Each way and task, in turns."""
    results = []
    for task in tasks:
        runs = {way: [] for way in ways}
        for _ in range(repeats):
            for way in ways:
                runs[way].append(in_process(way, task, folder))
        arrays = {way: arrays_path(folder, way, task) for way in ways}
        check_equal(task, arrays)
        results += [{"task": task, "way": way, "runs": own} for way, own in runs.items()]
    return results


def check_equal(task: str, paths: dict[str, Path]) -> None:
    """Raise ValueError unless the arrays of all ways are those of the first one, bit for bit."""
    (first, path), *others = paths.items()
    expected = np.load(path)
    for way, path in others:
        found = np.load(path)
        for name in ("precision", "recall"):
            if not np.array_equal(found[name], expected[name]):
                different = np.count_nonzero(found[name] != expected[name])
                raise ValueError(
                    f"{task}, {way}: {different} entries of {name} are not those of {first}"
                )


def table(results: list[dict]) -> str:
    """Markdown."""
    references = {r["task"]: r for r in results if r["way"] == REFERENCE}
    heads = ["task", "evaluation", "seconds", "times as fast", "of the processor"]
    heads += ["times as fast", "extra memory, MB", "of lvis's"]
    measures = {"seconds": (2, None), "cpu_seconds": (2, None), "extra_mb": (0, 2)}
    if not references:
        heads = [h for h in heads if h not in ("times as fast", "of lvis's")]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in results:
        cells = [result["task"], WAYS[result["way"]]]
        for key, (digits, share) in measures.items():
            own = _median(result, key)
            cells.append(f"{own:.{digits}f}")
            if references:
                of = _median(references[result["task"]], key)
                cells.append(f"{of / own:.0f}" if share is None else f"{own / of:.{share}f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(result: dict, key: str) -> float:
    return statistics.median(run[key] for run in result["runs"])


def head(record: dict) -> str:
    """How it was measured."""
    env, problem = record["environment"], record["problem"]
    return (
        f"{problem['images']} images, {problem['detections']} detections, {CLASSES} classes, "
        f"{env['cpu']}, {env['cores']} cores, Python {env['python']}, numpy {env['numpy']}, "
        f"medians of {len(record['results'][0]['runs'])}; all arrays equal:"
    )


def run_lvis_eval(args) -> None:
    """The subcommand `lvis-eval`."""
    records = []
    for images in args.images:
        with tempfile.TemporaryDirectory() as name:
            write_set(Path(name), images)
            results = measure(Path(name), args.tasks, args.ways, args.repeats)
        env = {**environment("cpu"), "cores": os.cpu_count(), "numpy": np.__version__}
        problem = {"images": images, "detections": images * DETECTIONS}
        records.append({"environment": env, "problem": problem, "results": results})
        print(f"{head(records[-1])}\n\n{table(results)}\n", flush=True)
    if args.output:
        args.output.write_text(json.dumps(records, indent=1) + "\n")


def add_parser(parts) -> None:
    """Add the subcommand to argparse's `parts`."""
    evaluation = parts.add_parser("lvis-eval", help="evaluation under the rules of LVIS")
    evaluation.add_argument("--images", type=positive, nargs="+", default=[1000, 5000])
    evaluation.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    evaluation.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=list(WAYS),
        help="without lvis for sets that it has not the memory for",
    )
    evaluation.add_argument("--repeats", type=positive, default=3)
    evaluation.add_argument("--output", type=Path, help="JSON file for all samples")
    evaluation.set_defaults(run=run_lvis_eval)


def main() -> None:
    """What a child process does: `WAY TASK FOLDER OUTPUT`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    print(json.dumps(evaluate(args.way, args.task, args.folder, args.output)))


if __name__ == "__main__":
    main()
