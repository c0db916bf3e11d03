"""`python tools/benchmark.py mask-rle`: what turning predicted masks into run lengths costs.

Detectron2's `paste_masks_in_image` and `pycocotools.mask.encode` against `encode_masks`, for
masks of 28 x 28 of the 300 detections of an image of 480 x 640 pixels. The masks are either blobs
with soft borders, as a network predicts them, or noise, the worst case. In turns, so that a slow
moment of the machine hits both alike, and in time of the processor, over all threads: what else
runs on the machine takes none of that. The strings must be equal.
"""

from __future__ import annotations

import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import detectron2
import numpy as np
import torch
from benchmark_common import environment, positive
from detectron2.layers.mask_ops import paste_masks_in_image
from pycocotools import mask as coco_mask

from lt_det.evaluation.mask_encoding import encode_masks

SIZE, CELLS = (480, 640), 28
# Sides of boxes, pixels: as many between 12 and 24 as between 200 and 400.
SIDES = (12, 400)
DETECTRON2, OURS = "Detectron2", "lt_det"
CONTENTS = ("blobs", "noise")


def make_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """(N, 4) float32 XYXY, clipped to the image."""
    limits = np.array(SIZE[::-1])
    centres = rng.random((number, 2)) * limits
    sides = np.exp(rng.uniform(*np.log(SIDES), (number, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return np.clip(boxes, 0, np.tile(limits, 2)).astype(np.float32)


def make_masks(rng: np.random.Generator, number: int, content: str) -> np.ndarray:
    """(N, 28, 28) float32 probabilities; `content` of `CONTENTS`."""
    if content == "noise":
        return rng.random((number, CELLS, CELLS)).astype(np.float32)
    y, x = (np.indices((CELLS, CELLS)) + 0.5)[:, None] / CELLS
    centre_y, centre_x, radius, wave, phase, sharpness = rng.uniform(
        [0.3, 0.3, 0.25, 1, 0, 15], [0.7, 0.7, 0.6, 6, 6.3, 80], (number, 6)
    ).T[:, :, None, None]
    angle = np.arctan2(y - centre_y, x - centre_x)
    radius = radius * (1 + 0.25 * np.sin(np.floor(wave) * angle + phase))
    distance = np.hypot(y - centre_y, x - centre_x)
    return (1 / (1 + np.exp((distance - radius) * sharpness))).astype(np.float32)


def detectron2_way(masks: np.ndarray, boxes: np.ndarray) -> list[bytes]:
    """As its evaluators do."""
    full = paste_masks_in_image(torch.from_numpy(masks), torch.from_numpy(boxes), SIZE)
    return [
        coco_mask.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0]["counts"]
        for mask in full.numpy()
    ]


def our_way(masks: np.ndarray, boxes: np.ndarray) -> list[bytes]:
    """In the boxes."""
    return encode_masks(masks, boxes, SIZE)


WAYS: dict[str, Callable] = {DETECTRON2: detectron2_way, OURS: our_way}


def differing(masks: np.ndarray, boxes: np.ndarray) -> int:
    """Number of masks whose strings are not equal."""
    pairs = zip(detectron2_way(masks, boxes), our_way(masks, boxes), strict=True)
    return sum(theirs != ours for theirs, ours in pairs)


def peak_bytes(way: str, masks: np.ndarray, boxes: np.ndarray) -> int:
    """Memory at the peak of a call: arrays of numpy, and the pasted masks, which are torch's."""
    tracemalloc.start()
    WAYS[way](masks, boxes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + (len(masks) * SIZE[0] * SIZE[1] if way == DETECTRON2 else 0)


def measure(number: int, repeats: int, compared: int) -> list[dict]:
    """Each content and way, in turns, after one turn that is not timed.

    Args:
        number: masks of an image.
        repeats: turns.
        compared: images of each content whose strings are compared.
    """
    results = []
    for content in CONTENTS:
        rng = np.random.default_rng(0)
        wrong = sum(
            differing(make_masks(rng, number, content), make_boxes(rng, number))
            for _ in range(compared)
        )
        if wrong:
            raise ValueError(f"{wrong} of {compared * number} strings ({content}) are not equal")
        masks, boxes = make_masks(rng, number, content), make_boxes(rng, number)
        ms = {way: [] for way in WAYS}
        for turn in range(repeats + 1):
            for way, call in WAYS.items():
                start = time.process_time()
                call(masks, boxes)
                if turn:
                    ms[way].append(1000 * (time.process_time() - start))
        results += [
            {
                "content": content,
                "name": way,
                "ms": ms[way],
                "peak_bytes": peak_bytes(way, masks, boxes),
                "compared": compared * number,
            }
            for way in WAYS
        ]
    return results


def table(results: list[dict]) -> str:
    """Markdown."""
    lines = ["| masks | by | ms an image | times faster | peak, MB |", "|---" * 5 + "|"]
    of = {r["content"]: statistics.median(r["ms"]) for r in results if r["name"] == DETECTRON2}
    for r in results:
        ms = statistics.median(r["ms"])
        lines.append(
            f"| {r['content']} | {r['name']} | {ms:.1f} | {of[r['content']] / ms:.1f} | "
            f"{r['peak_bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


def head(record: dict) -> str:
    """How it was measured."""
    env, problem = record["environment"], record["problem"]
    height, width = problem["size"]
    return (
        f"{problem['masks']} masks of {CELLS} x {CELLS} in an image of {height} x {width} pixels, "
        f"{env['cpu']}, {env['threads']} thread{'s' * (env['threads'] > 1)}, Python "
        f"{env['python']}, torch {env['torch']}, Detectron2 {problem['detectron2']}, time of the "
        f"processor, medians of {len(record['results'][0]['ms'])}; the strings of "
        f"{record['results'][0]['compared']} masks of each kind are equal:"
    )


def run_mask_rle(args) -> None:
    """Measure, print the table, write the record."""
    torch.set_num_threads(args.threads)
    record = {
        "problem": {"size": SIZE, "masks": args.masks, "detectron2": detectron2.__version__},
        "environment": environment("cpu"),
        "results": measure(args.masks, args.repeats, args.compared),
    }
    print(f"{head(record)}\n\n{table(record['results'])}")
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def add_parser(parts) -> None:
    """Add the subcommand to argparse's `parts`."""
    masks = parts.add_parser("mask-rle", help="pasting and encoding of predicted masks")
    masks.add_argument("--masks", type=positive, default=300, help="of an image")
    masks.add_argument("--repeats", type=positive, default=9)
    masks.add_argument(
        "--compared", type=positive, default=17, help="images whose strings are compared"
    )
    masks.add_argument("--threads", type=positive, default=1)
    masks.add_argument("--output", type=Path, help="JSON file for all samples")
    masks.set_defaults(run=run_mask_rle)
