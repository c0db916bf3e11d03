"""`benchmark.py load-lvis`: the start of a training run on a data set of LVIS's size.

Side by side, each start in a process of its own: Detectron2's (read, leave out images without
annotations, print the histogram of classes, repeat factors, serialise), ours with an empty cache,
and ours from the cache. Then one record at random, and whether records and repeat factors are
equal. The peak is the most memory that a process had; what it has after its imports is part of
it, and so are pages of files that it maps. The annotation file is written for the purpose.
"""

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
from benchmark_common import environment, positive

LVIS_IMAGES, LVIS_CLASSES = 100_170, 1203
ANNOTATIONS_PER_IMAGE = 1_281_912 / LVIS_IMAGES
REPEAT_THRESHOLD = 0.001
STARTS = {
    "detectron2": "Detectron2",
    "first": "lt_det, first start",
    "later": "lt_det, later starts",
}


# ---- the annotation file -----------------------------------------------------------------------


def write_lvis(path: Path, num_images: int, seed: int = 0) -> None:
    """Write a file in LVIS form: the same text for the same arguments.

    Classes follow Zipf's law, coordinates have two decimals, and lists of 1 to 30 classes say
    what is absent or not annotated in full. Annotations come before the images, as in LVIS's
    own files, and those of an image are not side by side.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(300, 641, (num_images, 2))
    num_annotations = round(num_images * ANNOTATIONS_PER_IMAGE)
    weights = 1 / np.arange(1, LVIS_CLASSES + 1)
    classes = 1 + rng.choice(LVIS_CLASSES, num_annotations, p=weights / weights.sum())
    image_index = rng.integers(0, num_images, num_annotations)
    block = 20_000
    with open(path, "wb") as f:
        f.write(b'{"info": {"description": "made by benchmark.py"}, "annotations": [')
        for start in range(0, num_annotations, block):
            rows = slice(start, start + block)
            anns = _annotations(rng, start, image_index[rows], sizes, classes[rows])
            f.write(b", " * (start > 0) + _spaced(anns))
        f.write(b'], "images": [')
        for start in range(0, num_images, block):
            images = _images(rng, sizes[start : start + block], start)
            f.write(b", " * (start > 0) + _spaced(images))
        categories = [
            {"id": c, "name": f"class_{c}", "synonyms": [f"class_{c}"], "frequency": "f"}
            for c in range(1, LVIS_CLASSES + 1)
        ]
        f.write(b'], "categories": ' + orjson.dumps(categories) + b"}")


def _spaced(entries: list[dict]) -> bytes:
    """The entries of a list as Python's `json` writes them, with a space after each comma."""
    return orjson.dumps(entries)[1:-1].replace(b",", b", ").replace(b'":', b'": ')


def _annotations(rng, start, image_index, sizes, classes) -> list[dict]:
    """Annotations numbered from `start`: a box inside the image, and polygons in it."""
    n = len(classes)
    corner = rng.uniform(0, 0.7, (n, 2)) * sizes[image_index]
    side = rng.uniform(0.05, 0.3, (n, 2)) * sizes[image_index]
    points = np.minimum(rng.geometric(1 / 30, n) + 3, 400)
    of = np.repeat(np.arange(n), points)
    xy = _rounded(corner[of] + side[of] * rng.uniform(0, 1, (len(of), 2)))
    flat, ends = xy.ravel().tolist(), (2 * np.cumsum(points)).tolist()
    boxes = _rounded(np.concatenate([corner, side], axis=1)).tolist()
    parts = rng.uniform(0, 1, n) < 0.1  # two polygons where there are points for them
    annotations, first = [], 0
    for i, last in enumerate(ends):
        polygon, first = flat[first:last], last
        half = len(polygon) // 4 * 2
        two = parts[i] and half >= 6
        annotations.append(
            {
                "area": round(boxes[i][2] * boxes[i][3] / 2, 2),
                "id": start + i + 1,
                "segmentation": [polygon[:half], polygon[half:]] if two else [polygon],
                "image_id": 3 * int(image_index[i]) + 1,
                "bbox": boxes[i],
                "category_id": int(classes[i]),
            }
        )
    return annotations


def _images(rng, sizes, start) -> list[dict]:
    def classes():
        return rng.choice(LVIS_CLASSES, rng.integers(1, 31), replace=False) + 1

    return [
        {
            "id": 3 * (start + i) + 1,
            "width": width,
            "height": height,
            "license": 1,
            "date_captured": "2013-11-14 17:02:52",
            "flickr_url": f"http://farm9.staticflickr.com/8186/8119368305_4e622c8349_{i}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{3 * (start + i) + 1:012d}.jpg",
            "neg_category_ids": classes().tolist(),
            "not_exhaustive_category_ids": classes()[:3].tolist(),
        }
        for i, (width, height) in enumerate(sizes.tolist())
    ]


def _rounded(values: np.ndarray) -> np.ndarray:
    """To two decimals: the float64 values that the text of so many decimals is read as."""
    return np.rint(values * 100) / 100


# ---- the starts --------------------------------------------------------------------------------


def start_detectron2(path: str, cache: str) -> tuple:
    """Records and (N,) float32 repeat factors as Detectron2 makes them."""
    from detectron2.data import DatasetFromList
    from detectron2.data.build import (
        filter_images_with_only_crowd_annotations,
        print_instances_class_histogram,
    )
    from detectron2.data.datasets.lvis import load_lvis_json
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    names = [f"class_{c}" for c in range(1, LVIS_CLASSES + 1)]
    records = load_lvis_json(path, os.path.dirname(path) + "/")
    records = filter_images_with_only_crowd_annotations(records)
    print_instances_class_histogram(records, names)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, REPEAT_THRESHOLD
    )
    return DatasetFromList(records, copy=False), factors.numpy()


def start_ours(path: str, cache: str) -> tuple:
    """The same from columns."""
    from lt_det.data import register_lvis_format
    from lt_det.data.datasets import get_records
    from lt_det.data.records import drop_unannotated
    from lt_det.data.rules import build_rule

    register_lvis_format("benchmark", path, os.path.dirname(path))
    records = drop_unannotated(get_records("benchmark", need_images=False, cache_dir=cache))
    records.instance_counts(LVIS_CLASSES)
    rule = build_rule("sqrt", {"threshold": REPEAT_THRESHOLD})
    return records, rule.image_factors(records.class_sets(LVIS_CLASSES))


def run_start(kind: str, path: str, cache: str) -> dict:
    """One start in this process: seconds and MB."""
    # Both are imported either way, so that the processes start alike.
    import detectron2.data.datasets.lvis  # noqa: F401
    import detectron2.data.samplers  # noqa: F401

    import lt_det.data.build  # noqa: F401

    before = time.perf_counter()
    start = start_detectron2 if kind == "detectron2" else start_ours
    records, factors = start(path, cache)
    seconds = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mb": peak, "images": len(records)}


def compare(path: str, cache: str, repeats: int) -> dict:
    """Both in one process: microseconds for a record, and whether all records are equal."""
    theirs, their_factors = start_detectron2(path, cache)
    ours, our_factors = start_ours(path, cache)
    # First, so that both are in memory when records are timed.
    equal = len(ours) == len(theirs) and all(
        ours[i] == _contiguous(theirs[i]) for i in range(len(ours))
    )
    times = {"detectron2": [], "lt_det": []}
    for index in np.random.default_rng(0).integers(0, len(ours), 2000 * repeats).tolist():
        for name, records in (("detectron2", theirs), ("lt_det", ours)):
            before = time.perf_counter()
            records[index]
            times[name].append(1e6 * (time.perf_counter() - before))
    return {
        "record_us": {name: statistics.median(values) for name, values in times.items()},
        "records_equal": equal,
        "factors_equal": our_factors.tobytes() == their_factors.tobytes(),
    }


def _contiguous(record: dict) -> dict:
    """Detectron2's record with class ids in LVIS's lists too, where it leaves category ids."""
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        record[key] = [category_id - 1 for category_id in record[key]]
    return record


def in_process(task: str, *args) -> dict:
    """What `task` of this file returns in a process of its own."""
    command = [sys.executable, __file__, task, *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{task} {args[0]} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- the command -------------------------------------------------------------------------------


def measure(path: Path, work: Path, repeats: int) -> dict:
    """Starts in turns, then the comparison."""
    starts = {kind: [] for kind in STARTS}
    for turn in range(repeats):
        cache = work / f"cache_{turn}"
        for kind in STARTS:
            starts[kind].append(in_process("start", kind, path, cache))
    return {"starts": starts, **in_process("compare", path, cache, repeats)}


def table(results: dict) -> str:
    """Markdown."""
    starts = {
        kind: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "peak_mb")}
        for kind, runs in results["starts"].items()
    }
    of = starts["detectron2"]
    lines = [
        "| start | seconds | times as fast | peak, MB | of Detectron2's |",
        "|---|---|---|---|---|",
    ]
    for kind, run in starts.items():
        lines.append(
            f"| {STARTS[kind]} | {run['seconds']:.2f} | {of['seconds'] / run['seconds']:.1f} "
            f"| {run['peak_mb']:.0f} | {run['peak_mb'] / of['peak_mb']:.2f} |"
        )
    theirs, ours = results["record_us"]["detectron2"], results["record_us"]["lt_det"]
    same = {True: "equal", False: "NOT equal"}
    return "\n".join(lines) + (
        f"\n\nOne record: Detectron2 {theirs:.0f} us, lt_det {ours:.0f} us "
        f"({ours / theirs:.2f}x). Records are {same[results['records_equal']]}, "
        f"repeat factors are {same[results['factors_equal']]}."
    )


def head(record: dict) -> str:
    """One line on what was measured, and where."""
    env, problem = record["environment"], record["problem"]
    repeats = len(record["results"]["starts"]["detectron2"])
    return (
        f"{problem['images']} images, JSON file of {problem['json_mb']:.0f} MB, {env['cpu']}, "
        f"{env['cores']} cores, Python {env['python']}, medians of {repeats}:"
    )


def run_load_lvis(args) -> None:
    """The subcommand `load-lvis`."""
    with tempfile.TemporaryDirectory() as work:
        path = args.json
        if path is None:
            path = Path(work) / "lvis_like.json"
            write_lvis(path, args.images)
        results = measure(path.resolve(), Path(work), args.repeats)
        images = results["starts"]["detectron2"][0]["images"]
        record = {
            "environment": {**environment("cpu"), "cores": os.cpu_count()},
            "problem": {"images": images, "json_mb": path.stat().st_size / 1e6},
            "results": results,
        }
    print(f"{head(record)}\n\n{table(results)}")
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def add_parser(parts) -> None:
    """Add the subcommand to argparse's `parts`."""
    load = parts.add_parser("load-lvis", help="start of a training run on LVIS")
    load.add_argument("--images", type=positive, default=LVIS_IMAGES)
    load.add_argument("--json", type=Path, help="a file in LVIS form instead of a generated one")
    load.add_argument("--repeats", type=positive, default=3)
    load.add_argument("--output", type=Path, help="JSON file for all samples")
    load.set_defaults(run=run_load_lvis)


def main() -> None:
    """What a child process does: `start KIND JSON CACHE` or `compare JSON CACHE REPEATS`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("task", choices=("start", "compare"))
    parser.add_argument("args", nargs=3)
    options = parser.parse_args()
    if options.task == "start":
        result = run_start(*options.args)
    else:
        result = compare(options.args[0], options.args[1], int(options.args[2]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
