#!/usr/bin/env python
"""Train the CIFAR-10-LT recipes one after the other, and keep their records for a table.

    python tools/run_cifar10_lt.py --seeds 1 2 3
    python tools/run_cifar10_lt.py --methods ce gcl gcl_cben --workdir output/short --epochs 40

--epochs scales the schedule of every recipe: 40 is a fifth of everything, warm-up and second stages
included. A run that is finished is left out and one that was stopped is resumed, so the script may
be started again at any time; several at once must be given different methods, a second stage with
its first. KEY VALUE pairs at the end, behind an option with one value, go to every run. The records
are copied to --records.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import command_line  # noqa: F401  a warning

from lt_det.engine import load_config
from lt_det.errors import LtDetError
from lt_det.evaluation.results import LAST, read_record, selection

ROOT = Path(__file__).resolve().parent.parent
# In the order of the table; a second stage comes after its first.
METHODS = (
    *("ce", "mixup", "ldam_drw", "balanced_softmax", "softmax_eql", "kps", "fbl", "gcl"),
    *("gcl_cben", "mislas"),
)
FIRST_STAGES = {"gcl_cben": "gcl", "mislas": "mixup"}
FULL_EPOCHS = 200


def schedule_options(config, epochs):
    """KEY VALUE pairs that scale the schedule of a recipe from 200 to `epochs`."""
    solver = load_config(str(config)).SOLVER
    scale = epochs / FULL_EPOCHS
    steps = tuple(round(step * scale) for step in solver.STEPS)
    last = round(solver.MAX_ITER * scale)
    return [
        *("SOLVER.MAX_ITER", last, "SOLVER.STEPS", steps),
        *("SOLVER.WARMUP_ITERS", round(solver.WARMUP_ITERS * scale)),
        *("SOLVER.CHECKPOINT_PERIOD", max(1, last // 4), "TEST.EVAL_PERIOD", max(1, last // 10)),
    ]


def command(method, seed, args):
    """The training command of one run."""
    config = f"configs/cifar10_lt_{method}.yaml"  # relative: it is in the record
    options = schedule_options(ROOT / config, args.epochs)
    options += ["SEED", seed, "OUTPUT_DIR", run_folder(method, seed, args)]
    options += ["TEST.LT.BEST_METRIC", "classification/top1"]
    if method in FIRST_STAGES:
        first = run_folder(FIRST_STAGES[method], seed, args)
        options += ["MODEL.LT.FIRST_STAGE", first]
    start = [sys.executable, ROOT / "tools/train_net.py", "--config-file", config, "--resume"]
    return [str(part) for part in [*start, *options, *args.opts]]


def run_folder(method, seed, args):
    """Where a run is written."""
    return args.workdir / f"{method}_{args.epochs}_epochs_seed{seed}"


def copy_records(method, seed, args):
    """Keep the records of the last and the best epoch; whether the run is finished."""
    results = run_folder(method, seed, args) / "results"
    last = [p for p in results.glob("*.json") if not p.name.endswith(".best.json")]
    finished = bool(last) and all(selection(read_record(p)) == LAST for p in last)
    if finished:
        args.records.mkdir(parents=True, exist_ok=True)
        for path in sorted(results.glob("*.json")):
            best = ".best" if path.name.endswith(".best.json") else ""
            shutil.copy(path, args.records / f"{method}_seed{seed}{best}.json")
    return finished


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--epochs", type=int, default=FULL_EPOCHS)
    parser.add_argument("--workdir", type=Path, default=Path("output/cifar10_lt"))
    parser.add_argument("--records", type=Path, default=ROOT / "configs/cifar10_lt_results")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    args.workdir = args.workdir.resolve()  # runs start in the repository
    if args.opts[:1] == ["--"]:
        args.opts = args.opts[1:]
    try:
        for seed in args.seeds:
            for method in args.methods:
                if copy_records(method, seed, args):
                    continue
                print(f"{method}, seed {seed}", flush=True)
                code = subprocess.run(command(method, seed, args), cwd=ROOT).returncode
                if code or not copy_records(method, seed, args):
                    print(f"error: {method}, seed {seed} ended with {code}", file=sys.stderr)
                    return 1
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
