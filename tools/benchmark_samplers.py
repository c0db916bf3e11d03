"""`python tools/benchmark.py samplers`: factors, epochs and the first image of every rule.

On data of the size of LVIS, side by side with Detectron2's repeat-factor sampler, in turns. Both
begin with the annotations in the form in which they are held: a list of dicts there, columns
here. Detectron2 has no other rule than `sqrt`, so all are compared with that.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from benchmark_common import environment, milliseconds, positive
from detectron2.data.samplers import RepeatFactorTrainingSampler

from lt_det.data.class_sets import ClassSets, class_sets_from_pairs
from lt_det.data.rules import SAMPLING_RULES, build_rule
from lt_det.data.samplers import LongTailSampler

THRESHOLD = 0.001
# LVIS v1 train.
IMAGES, ANNOTATIONS, CLASSES = 100_170, 1_281_912, 1203
# Epochs of `progressive`; any number does.
TOTAL_IMAGES = 12 * IMAGES


@dataclass
class Annotations:
    """Annotations of a generated set, sorted by image.

    Attributes:
        images, classes: (A,) int64.
        num_images, num_classes: N and C.
    """

    images: np.ndarray
    classes: np.ndarray
    num_images: int
    num_classes: int

    def sets(self) -> ClassSets:
        """As our loader makes them from its columns."""
        return class_sets_from_pairs(self.images, self.classes, self.num_images, self.num_classes)

    def records(self) -> list[dict]:
        """As Detectron2's loader holds them, the category alone."""
        records: list[dict] = [{"annotations": []} for _ in range(self.num_images)]
        for image, category in zip(self.images.tolist(), self.classes.tolist(), strict=True):
            records[image]["annotations"].append({"category_id": category})
        return records


def generate(num_images: int, num_annotations: int, num_classes: int) -> Annotations:
    """Classes that fall off like 1 / rank ** 1.3; every image has an annotation."""
    rng = np.random.default_rng(0)
    rest = rng.integers(0, num_images, max(num_annotations - num_images, 0))
    images = np.sort(np.concatenate([np.arange(num_images), rest]))
    shares = np.arange(1, num_classes + 1) ** -1.3
    classes = rng.choice(num_classes, len(images), p=shares / shares.sum())
    return Annotations(images, classes, num_images, num_classes)


def cases(data: Annotations) -> dict[str, tuple[Callable[[], object], str]]:
    """What is timed: {name: (call, name of what it is compared with)}."""
    records, sets = data.records(), data.sets()
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    factors = theirs(records, THRESHOLD)
    ours = build_rule("sqrt", {"threshold": THRESHOLD})
    check_equal(ours.image_factors(sets), factors.numpy())
    generator = torch.Generator().manual_seed(0)
    sampler = RepeatFactorTrainingSampler(factors, seed=0)

    def epoch_of_detectron2():
        indices = sampler._get_epoch_indices(generator)
        return indices[torch.randperm(len(indices), generator=generator)]

    order = ours.order(sets)
    rng = np.random.default_rng(0)
    found = {
        "Detectron2, factors": (lambda: theirs(records, THRESHOLD), ""),
        "Detectron2, one epoch": (epoch_of_detectron2, ""),
        "Detectron2, factors to first image": (
            lambda: next(iter(RepeatFactorTrainingSampler(theirs(records, THRESHOLD), seed=0))),
            "",
        ),
        "class sets": (data.sets, ""),
        "sqrt, one epoch": (lambda: order.draw(rng, 0), "Detectron2, one epoch"),
        "sqrt, factors to first image": (
            lambda: next(iter(LongTailSampler(ours.order(data.sets()), seed=0))),
            "Detectron2, factors to first image",
        ),
    }
    for name in SAMPLING_RULES:
        rule = build_rule(name)
        for form in rule.forms:

            def call(rule=rule, form=form):
                order = rule.order(data.sets(), form=form, total_images=TOTAL_IMAGES)
                return order.expected(0)

            found[f"{name} ({form}), class sets and factors"] = (call, "Detectron2, factors")
    return found


def check_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raise a ValueError unless the factors are the same bits."""
    if not np.array_equal(ours, theirs):
        raise ValueError("the factors of `sqrt` are not those of Detectron2")


def measure(calls: dict[str, tuple[Callable[[], object], str]], repeats: int) -> list[dict]:
    """Time of each call in ms, in turns, after one that is not timed."""
    results = [{"name": k, "baseline": base, "ms": []} for k, (_, base) in calls.items()]
    for turn in range(repeats + 1):
        for result, (call, _) in zip(results, calls.values(), strict=True):
            taken = milliseconds(call)
            if turn:
                result["ms"].append(taken)
    return results


def head(record: dict) -> str:
    """How it was measured."""
    problem, env = record["problem"], record["environment"]
    return (
        f"{problem['images']} images, {problem['annotations']} annotations, {problem['classes']} "
        f"classes, {env['cpu']}, {env['threads']} threads, Python {env['python']}, torch "
        f"{env['torch']}, medians of {problem['repeats']}:"
    )


def table(results: list[dict]) -> str:
    """Markdown."""
    medians = {result["name"]: statistics.median(result["ms"]) for result in results}
    lines = ["| what | ms | compared with | times faster |", "|---|---|---|---|"]
    for result in results:
        name, base = result["name"], result["baseline"]
        ratio = f"{medians[base] / medians[name]:.0f}" if base else "-"
        lines.append(f"| {name} | {medians[name]:.1f} | {base or '-'} | {ratio} |")
    return "\n".join(lines)


def run_samplers(args) -> None:
    """Measure, print the table, write the record."""
    data = generate(args.images, args.annotations, args.classes)
    record = {
        "problem": {
            "images": args.images,
            "annotations": args.annotations,
            "classes": args.classes,
            "repeats": args.repeats,
        },
        "environment": environment("cpu"),
        "results": measure(cases(data), args.repeats),
    }
    print(f"{head(record)}\n\n{table(record['results'])}")
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def add_parser(parts) -> None:
    """Add the subcommand to argparse's `parts`."""
    samplers = parts.add_parser("samplers", help="factors and epochs of every sampling rule")
    samplers.add_argument("--images", type=positive, default=IMAGES)
    samplers.add_argument("--annotations", type=positive, default=ANNOTATIONS)
    samplers.add_argument("--classes", type=positive, default=CLASSES)
    samplers.add_argument("--repeats", type=positive, default=9)
    samplers.add_argument("--output", type=Path, help="JSON file for all samples")
    samplers.set_defaults(run=run_samplers)
