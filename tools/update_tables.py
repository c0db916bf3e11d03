#!/usr/bin/env python
"""Write the result tables of the README files from the result records in the repository.

tools/update_tables.py          # rewrite
tools/update_tables.py --check  # exit with 1 if a table is not what the records give

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is a key of TABLES.
"""

import argparse
import inspect
import json
import re
import sys
from pathlib import Path

import benchmark_images
import benchmark_loading
import benchmark_losses
import benchmark_lvis
import benchmark_masks
import benchmark_samplers
import benchmark_sem_seg
import numpy as np
import run_cifar10_lt

from lt_det.data.rules import SAMPLING_RULES, rule_parameters
from lt_det.data.sampling_preview import preview_tables
from lt_det.evaluation.results import (
    format_table,
    markdown,
    mean_and_spread,
    metric,
    per_class_table,
    read_record,
)
from lt_det.losses import LOSS_REGISTRY
from lt_det.losses.build import loss_parameters

ROOT = Path(__file__).resolve().parent.parent
FILES = ("README.md", "configs/README.md", "configs/quick/README.md")
BENCHMARKS = ROOT / "configs/benchmarks"
QUICK = ROOT / "configs/quick/results"
CLS = "classification"
COLUMNS = [f"{task}/{m}" for task in ("bbox", "segm") for m in ("AP", "AP50", "APr", "APc", "APf")]
CIFAR = ROOT / "configs/cifar10_lt_results"
CIFAR_IMAGES, CIFAR_BATCH = 12406, 64
CIFAR_METHODS = {
    "ce": "cross-entropy",
    "mixup": "cross-entropy, mixup",
    "ldam_drw": "LDAM-DRW",
    "balanced_softmax": "balanced softmax",
    "softmax_eql": "Softmax-EQL",
    "kps": "KPS with gradient adjustment",
    "fbl": "FBL",
    "gcl": "GCL, first stage",
    "gcl_cben": "GCL + CBEN",
    "mislas": "MiSLAS",
}
# What a row is called: the configuration whose runs it holds.
RECIPES = {
    "softmax": "softmax cross-entropy",
    "eqlv2": "EQL v2",
    "eqlv2_cben": "EQL v2, CBEN repeat factors",
}


ONE_STAGE = {
    "retinanet_focal": "RetinaNet, focal loss",
    "retinanet_efl": "RetinaNet, EFL",
    "atss_focal": "ATSS, focal loss",
    "atss_efl": "ATSS, EFL",
}


def quick_records(recipes=RECIPES):
    """{recipe: records of its seeds}."""
    return {
        recipe: [read_record(path) for path in sorted(QUICK.glob(f"{recipe}_seed*.json"))]
        for recipe in recipes
    }


def one_stage_table():
    """Focal loss against equalized focal loss."""
    records = quick_records(ONE_STAGE)
    labels = [ONE_STAGE[recipe] for recipe, runs in records.items() for _ in runs]
    columns = [c for c in COLUMNS if c.startswith("bbox")]
    return format_table([r for runs in records.values() for r in runs], columns, labels)


def quick_table():
    records = quick_records()
    labels = [RECIPES[recipe] for recipe, runs in records.items() for _ in runs]
    return format_table([r for runs in records.values() for r in runs], COLUMNS, labels)


def seeds_table():
    records = quick_records()
    labels = [f"{RECIPES[k]}, seed {r['run']['seed']}" for k, runs in records.items() for r in runs]
    return format_table([r for runs in records.values() for r in runs], COLUMNS, labels)


def cifar_table():
    """CIFAR-10-LT from the records of tools/run_cifar10_lt.py, beside what is published."""
    runs = {name: cifar_records(name) for name in CIFAR_METHODS}
    published = json.loads((CIFAR / "published.json").read_text())
    head = ["method", "runs", "top-1", "- CE", "many", "medium", "best test epoch", "minutes"]
    lines = [[*head, "published", "- CE"]]
    base = np.mean([metric(r, f"{CLS}/top1") for r, _ in runs["ce"]])
    for name, title in CIFAR_METHODS.items():
        if not runs[name]:
            continue
        last, best = zip(*runs[name], strict=True)
        top1 = [metric(r, f"{CLS}/top1") for r in last]
        known = published.get(name, {}).get("top1")
        gain = "-" if known is None else f"{known - published['ce']['top1']:+.1f}"
        lines.append(
            [
                *(title, str(len(last)), mean_and_spread(top1), f"{np.mean(top1) - base:+.1f}"),
                *(
                    mean_and_spread([metric(r, f"{CLS}/{m}") for r in last])
                    for m in ("many", "medium")
                ),
                mean_and_spread([metric(r, f"{CLS}/top1") for r in best]),
                f"{np.mean([training_minutes(r, runs) for r in last]):.0f}",
                *("-" if known is None else f"{known:.1f}", gain),
            ]
        )
    first = runs["ce"][0][0]["run"]
    epochs = round(first["iteration"] * CIFAR_BATCH / CIFAR_IMAGES)
    return (
        f"{epochs} epochs (published: {run_cifar10_lt.FULL_EPOCHS}), torch "
        f"{first['versions']['torch']}:\n\n{markdown(lines)}"
    )


def cifar_records(name):
    """[(last epoch, best test epoch)] of the seeds of a method."""
    return [
        (read_record(path), read_record(path.with_suffix(".best.json")))
        for path in sorted(CIFAR.glob(f"{name}_seed?.json"))
    ]


def training_minutes(record, runs):
    """Of a run and of the first stage that it went on from; evaluations are not counted."""
    run = record["run"]
    minutes = run["iteration"] * run["seconds_per_iteration"] / 60
    name = Path(run["config"]).stem.removeprefix("cifar10_lt_")
    if name not in run_cifar10_lt.FIRST_STAGES:
        return minutes
    first = next(
        last
        for last, _ in runs[run_cifar10_lt.FIRST_STAGES[name]]
        if last["run"]["seed"] == run["seed"]
    )
    return minutes + training_minutes(first, runs)


def losses_table():
    """Every registered loss with the first line of its documentation."""
    lines = [["loss", "what", "classifier", "parameters"]]
    for name in LOSS_REGISTRY:
        loss = LOSS_REGISTRY.get(name)
        what = inspect.getdoc(loss).split("\n")[0].rstrip(".")
        what = re.sub(r":\w+:`~?([^`]*)`", r"\1", what).replace("``", "`")
        params = ", ".join(f"{k}={_number(v)}" for k, v in loss_parameters(name).items())
        lines.append([f"`{name}`", what, loss.classifier, params or "-"])
    return markdown(lines, left=4)


def rules_table():
    """Every sampling rule with the first line of its documentation."""
    lines = [["rule", "what", "forms", "parameters"]]
    for name in SAMPLING_RULES:
        rule = SAMPLING_RULES.get(name)
        what = inspect.getdoc(rule).split("\n")[0].rstrip(".").replace("``", "`")
        params = ", ".join(f"{k}={_number(v)}" for k, v in rule_parameters(name).items())
        lines.append([f"`{name}`", what, ", ".join(rule.forms), params or "-"])
    return markdown(lines, left=4)


def preview_table():
    """What rules make of the generated set, from the record of tools/preview_sampling.py."""
    return preview_tables(json.loads((ROOT / "configs/quick/sampling.json").read_text())["rules"])


def _number(value):
    return f"{value:g}" if isinstance(value, float) else value


def benchmark_table(name):
    """A table of tools/benchmark.py from its record, under a line on how it was measured."""
    record = json.loads((BENCHMARKS / f"{name}.json").read_text())
    env, problem = record["environment"], record["problem"]
    results = [
        benchmark_losses.Measurement(**{k: v for k, v in r.items() if k != "median_ms"})
        for r in record["results"]
    ]
    return (
        f"{problem['rows']} rows x {problem['classes']} classes, float32, "
        f"{env.get('gpu', env['cpu'])}, {env['threads']} threads, torch {env['torch']}, "
        f"medians of {len(results[0].ms)}:\n\n{benchmark_losses.table(results)}"
    )


def data_table(part, name):
    """The table of a part of benchmark.py about data or evaluation, from its record."""
    record = json.loads((BENCHMARKS / f"{name}.json").read_text())
    return f"{part.head(record)}\n\n{part.table(record['results'])}"


def images_table():
    """The table of `benchmark.py load-images` from its record."""
    record = json.loads((BENCHMARKS / "load_images.json").read_text())
    cases = benchmark_images.cases_of(record)
    return f"{benchmark_images.head(record)}\n\n{benchmark_images.table(cases)}"


def lvis_table():
    """The tables of `benchmark.py lvis-eval`, one for each size; the last one without `lvis`."""
    names = ("lvis_eval.json", "lvis_eval_val.json")
    records = [record for name in names for record in json.loads((BENCHMARKS / name).read_text())]
    return "\n\n".join(
        f"{benchmark_lvis.head(r)}\n\n{benchmark_lvis.table(r['results'])}" for r in records
    )


TABLES = {
    "losses": losses_table,
    "rules": rules_table,
    "preview": preview_table,
    "benchmark losses": lambda: benchmark_table("losses"),
    "benchmark segmentation": lambda: benchmark_table("losses_segmentation"),
    "benchmark load-lvis": lambda: data_table(benchmark_loading, "load_lvis"),
    "benchmark load-images": images_table,
    "benchmark samplers": lambda: data_table(benchmark_samplers, "samplers"),
    "benchmark sem-seg-eval": lambda: data_table(benchmark_sem_seg, "sem_seg_eval"),
    "benchmark lvis-eval": lvis_table,
    "benchmark mask-rle": lambda: data_table(benchmark_masks, "mask_rle"),
    "cifar10_lt": cifar_table,
    "quick": quick_table,
    "quick one-stage": one_stage_table,
    "quick seeds": seeds_table,
    "quick classes": lambda: per_class_table(quick_records()["eqlv2"]),
}


def fill(text):
    """`text` with every table made anew."""

    def table(match):
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([^>]+) -->\n.*?<!-- end -->", table, text, flags=re.S)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = []
    for name in FILES:
        path = ROOT / name
        text = path.read_text()
        if fill(text) != text:
            stale.append(name)
            if not options.check:
                path.write_text(fill(text))
    if options.check and stale:
        sys.exit(f"error: tables of {', '.join(stale)} are stale: run tools/update_tables.py")


if __name__ == "__main__":
    main()
