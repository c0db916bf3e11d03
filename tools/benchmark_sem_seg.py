"""`python tools/benchmark.py sem-seg-eval`: what evaluating one image of a segmentation set costs.

`process` of Detectron2's SemSegEvaluator and of ours, on images of 512 x 683 pixels and 150
classes: labels of regions with a thin ignored border, and scores that are mostly right and blurred
as an upsampled output is. Both read the labels from PNG files that the system holds in memory.
"best class" is the class of the highest score at each pixel, "all else" is `process` with these
known. In turns, so that a slow moment of the machine hits all alike, and in time of the processor,
over all threads: what else runs on the machine takes none of that. The numbers of all must be
equal.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import detectron2
import numpy as np
import torch
from benchmark_common import environment, positive
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from lt_det.evaluation.sem_seg import LongTailSemSegEvaluator
from lt_det.evaluation.sem_seg_metrics import IGNORED, top_class

SHAPE, CLASSES = (512, 683), 150
# Regions of a map; images of ADE20K have some 20 segments.
REGIONS = 30
# Classes that are predicted where they are not.
OTHERS = 10
# The output of the network is smaller by this.
STRIDE = 4
NAME = "sem_seg_benchmark"
PARTS = WHOLE, TOP, REST = "whole", "best class", "all else"
DETECTRON2, JSON, BOUNDARY = "Detectron2", "lt_det, json", "lt_det, boundary IoU"
# Ways to evaluate; the first is what the others are compared with.
WAYS = (DETECTRON2, "lt_det", JSON, BOUNDARY)


# ---- the images --------------------------------------------------------------------------------


def make_labels(rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint8 map of regions around random centres, with ignored pixels between some."""
    rows, columns = np.indices(SHAPE, dtype=np.float32)
    distances = [
        np.hypot(rows - y * SHAPE[0], columns - x * SHAPE[1]) for y, x in rng.random((REGIONS, 2))
    ]
    # A few classes make up most of an image.
    weights = 1 / np.arange(1, CLASSES + 1)
    classes = rng.choice(CLASSES, REGIONS, p=weights / weights.sum()).astype(np.uint8)
    first, second = np.partition(distances, 1, axis=0)[:2]
    labels = classes[np.argmin(distances, axis=0)]
    labels[(second - first < 2) & (labels % 2 == 0)] = IGNORED
    return labels


def make_scores(labels: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    """(C, H, W) float32: the label at every fourth pixel and smooth noise, upsampled.

    The noise is that of the classes of the image and of `OTHERS` more, so that few are predicted.
    """
    small = torch.from_numpy(labels[::STRIDE, ::STRIDE].astype(np.int64))
    known = torch.where(small == IGNORED, 0, small)
    scores = 4 * torch.nn.functional.one_hot(known, CLASSES).permute(2, 0, 1).float()
    # A tenth of the resolution: wrong regions rather than wrong pixels.
    noise = 1.5 * torch.randn(1, CLASSES, *(n // 10 for n in small.shape), generator=generator)
    likely = torch.zeros(CLASSES)
    likely[known.unique()] = 1
    likely[torch.randperm(CLASSES, generator=generator)[:OTHERS]] = 1
    scores = scores[None] + _resized(noise * likely[:, None, None], small.shape)
    return _resized(scores, SHAPE)[0].softmax(dim=0)


def _resized(maps: torch.Tensor, shape) -> torch.Tensor:
    size = tuple(shape)
    return torch.nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def make_images(folder: Path, number: int) -> list[tuple[dict, torch.Tensor]]:
    """Inputs and scores of a model, with the labels in files."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    images = []
    for k in range(number):
        labels = make_labels(rng)
        path = folder / f"{k}.png"
        Image.fromarray(labels).save(path)
        image = {"file_name": f"{k}.jpg", "sem_seg_file_name": str(path)}
        images.append((image, make_scores(labels, generator)))
    return images


# ---- the evaluators ----------------------------------------------------------------------------


class KnownScores:
    """Takes the place of scores whose best class is known."""

    def __init__(self, scores: torch.Tensor):
        self._classes = scores.argmax(dim=0)

    def argmax(self, dim: int) -> torch.Tensor:
        """(H, W) int64, at no cost."""
        return self._classes


def read_labels(image: dict) -> np.ndarray:
    """The map of an image from its file."""
    with Image.open(image["sem_seg_file_name"]) as file:
        return np.asarray(file)


def make_evaluator(way: str, folder: Path):
    """One of `WAYS`; Detectron2's needs `NAME` to be registered."""
    if way == DETECTRON2:
        return SemSegEvaluator(NAME, distributed=False)
    return LongTailSemSegEvaluator(
        dataset_name=NAME,
        class_names=MetadataCatalog.get(NAME).stuff_classes,
        read_labels=read_labels,
        boundary=way == BOUNDARY,
        save="json" if way == JSON else "",
        output_dir=str(folder),
        distributed=False,
    )


def check_equal(results: dict[str, dict]) -> None:
    """Raise ValueError unless the numbers of all ways are those of Detectron2."""
    for metric in ("mIoU", "fwIoU", "mACC", "pACC"):
        values = {way: found["sem_seg"][metric] for way, found in results.items()}
        if not np.allclose(list(values.values()), values[DETECTRON2], rtol=1e-9):
            raise ValueError(f"{metric} is not Detectron2's: {values}")


def held_bytes(evaluator) -> int:
    """Of the predictions that an evaluator holds, as JSON text."""
    predictions = getattr(evaluator, "_predictions", [])
    return len(json.dumps(predictions)) if predictions else 0


# ---- the command -------------------------------------------------------------------------------


def measure(number: int, repeats: int) -> list[dict]:
    """Each way and part, in turns, after one turn that is not timed."""
    with tempfile.TemporaryDirectory() as name:
        images = make_images(Path(name), number)
        DatasetCatalog.register(NAME, lambda: [image for image, _ in images])
        names = [str(k) for k in range(CLASSES)]
        MetadataCatalog.get(NAME).set(stuff_classes=names, ignore_label=IGNORED)
        try:
            cases = [Case(way, Path(name)) for way in WAYS]
            for turn in range(repeats + 1):
                for case in cases:
                    case.reset()
                for image, scores in images:
                    for case in cases:
                        case.take(image, scores, timed=turn > 0)
            held = [held_bytes(case.whole) / number for case in cases]
            check_equal({case.way: case.whole.evaluate() for case in cases})
        finally:
            DatasetCatalog.remove(NAME)
            MetadataCatalog.remove(NAME)
    return [
        {"name": case.way, "ms": case.ms, "held_bytes": n}
        for case, n in zip(cases, held, strict=True)
    ]


class Case:
    """A way to evaluate, and its times.

    Attributes:
        way: of `WAYS`.
        whole: the evaluator that is given scores.
        ms: milliseconds of the processor for each image, by part.
    """

    def __init__(self, way: str, folder: Path):
        self.way = way
        self.whole, self._rest = make_evaluator(way, folder), make_evaluator(way, folder)
        self.ms = {part: [] for part in PARTS}

    def reset(self) -> None:
        """Before each turn."""
        self.whole.reset()
        self._rest.reset()

    def take(self, image: dict, scores: torch.Tensor, timed: bool) -> None:
        """Time one image."""
        if self.way == DETECTRON2:
            top, known = partial(scores.argmax, dim=0), KnownScores(scores)
        else:
            top, known = partial(top_class, scores), top_class(scores)
        calls = {
            WHOLE: partial(self.whole.process, [image], [{"sem_seg": scores}]),
            TOP: top,
            REST: partial(self._rest.process, [image], [{"sem_seg": known}]),
        }
        for part, call in calls.items():
            start = time.process_time()
            call()
            if timed:
                self.ms[part].append(1000 * (time.process_time() - start))


def table(results: list[dict]) -> str:
    """Markdown."""
    of = {part: statistics.median(results[0]["ms"][part]) for part in PARTS}
    titles = " | ".join(f"{part}, ms | times faster" for part in PARTS)
    lines = [
        f"| evaluator | {titles} | kept in memory, kB per image |",
        "|---" * (2 + 2 * len(PARTS)) + "|",
    ]
    for result in results:
        cells = [result["name"]]
        for part in PARTS:
            ms = statistics.median(result["ms"][part])
            cells += [f"{ms:.2f}", f"{of[part] / ms:.1f}"]
        lines.append(f"| {' | '.join(cells)} | {result['held_bytes'] / 1000:.1f} |")
    return "\n".join(lines)


def head(record: dict) -> str:
    """How it was measured."""
    env, problem = record["environment"], record["problem"]
    height, width = problem["shape"]
    return (
        f"{height} x {width} pixels, {problem['classes']} classes, {env['cpu']}, "
        f"{env['threads']} thread{'s' * (env['threads'] > 1)}, Python {env['python']}, torch "
        f"{env['torch']}, Detectron2 {problem['detectron2']}, time of the processor, medians of "
        f"{len(record['results'][0]['ms'][WHOLE])}:"
    )


def run_sem_seg_eval(args) -> None:
    """Measure, print the table, write the record."""
    record = {
        "problem": {"shape": SHAPE, "classes": CLASSES, "detectron2": detectron2.__version__},
        "environment": environment("cpu"),
        "results": measure(args.images, args.repeats),
    }
    print(f"{head(record)}\n\n{table(record['results'])}")
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def add_parser(parts) -> None:
    """Add the subcommand to argparse's `parts`."""
    evaluation = parts.add_parser("sem-seg-eval", help="evaluation of semantic segmentation")
    evaluation.add_argument("--images", type=positive, default=4)
    evaluation.add_argument("--repeats", type=positive, default=9)
    evaluation.add_argument("--output", type=Path, help="JSON file for all samples")
    evaluation.set_defaults(run=run_sem_seg_eval)
