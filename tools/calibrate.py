#!/usr/bin/env python
"""Find the strength of a post-hoc calibration on held-out images and report it on others.

    python tools/calibrate.py --run output/lvis_softmax --method norcal
    python tools/calibrate.py --run output/lvis_softmax --method norcal --strength 0.6
    python tools/calibrate.py --run output/lvis_softmax --method norcal --tune-on lvis_v1_minival
    python tools/calibrate.py --run output/imagenet_lt_ce --method logit-adjustment
    python tools/calibrate.py --pred results.json --gt lvis_v1_val.json --counts counts.json \\
        --method norcal --output calibrated.json

Half of the images, drawn by --seed, choose the strength; the other half is what is reported. With
--tune-on another set chooses it. With --strength nothing is chosen, and all images are reported.

--run is exact. Detectors and segmentors run once over the images: everything before the logits is
computed once for all strengths, what follows (scores, thresholds, suppression) for each. Of image
classification the scores that the evaluation kept are enough, and for tau-norm its features
(TEST.LT.KEEP_FEATURES True).

--pred knows of each detection nothing but the score of its class. Scores of sigmoid detectors are
re-scored exactly; detections that the model did not keep stay lost. Of softmax detectors all that
is not the own class is taken for background, which is an approximation; use --run. So it is of
EQLv2 with its background output. --counts is the file of tools/class_counts.py --json.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import command_line  # noqa: F401  a warning
from command_line import output_file

from lt_det.engine import load_config, prepare_config
from lt_det.engine.calibration_trials import (
    ClassificationTrials,
    DetectionTrials,
    GroundTruthFile,
    SegmentationTrials,
    calibrated_model,
    chosen_images,
    image_number,
    method_of,
    model_detection_trials,
    rescored_results,
    saved_image_scores,
)
from lt_det.engine.tasks import task_of
from lt_det.errors import ConfigError, DataError, LtDetError, MissingFileError
from lt_det.evaluation.lvis_predictions import load_predictions, write_predictions
from lt_det.evaluation.results import atomic_file, format_rows, markdown, read_record
from lt_det.evaluation.strength_search import (
    DEFAULT_METRICS,
    PARTS,
    REPORTING,
    TUNING,
    Found,
    choose_images,
    search,
    strength_grid,
)

GRIDS = {
    "instance": [k / 10 for k in range(0, 13, 2)],
    "sem_seg": [k / 10 for k in range(0, 21, 2)],
    "classification": [k / 10 for k in range(0, 21)],
}
FORMAT_VERSION = 1


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder of a finished run")
    source.add_argument("--pred", help="results file of LVIS form")
    parser.add_argument(
        "--method", required=True, help="norcal, logit-adjustment or tau-norm (--run alone)"
    )
    parser.add_argument("--strength", type=float, help="report this one instead of choosing one")
    parser.add_argument("--strengths", type=float, nargs="+", help="to try; 0 is always tried")
    parser.add_argument(
        "--metric", help="what chooses, e.g. bbox/APr; default: AP, mIoU or mean class accuracy"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the halves and of --limit")
    parser.add_argument("--limit", type=int, default=0, help="take so many images by chance")
    parser.add_argument("--json", type=output_file, help="file for the result")
    run = parser.add_argument_group("with --run")
    run.add_argument("--set", help="test set; default: that of DATASETS.TEST")
    run.add_argument("--tune-on", metavar="SET", help="another set to choose the strength on")
    run.add_argument("--weights", help="default: RUN/model_final.pth")
    run.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the configuration")
    pred = parser.add_argument_group("with --pred")
    pred.add_argument("--gt", help="annotation file, LVIS or COCO form")
    pred.add_argument("--counts", help="training examples of each class")
    pred.add_argument(
        "--unit",
        choices=("images", "instances"),
        default="instances",
        help="of --counts; the model goes by MODEL.LT.COUNT_UNIT, whose default is the same",
    )
    pred.add_argument("--output", type=output_file, help="re-scored results file to write")
    args = parser.parse_args(argv)
    if args.strength is not None and (args.strengths or args.tune_on or args.metric):
        parser.error("--strength chooses nothing: leave out --strengths, --metric and --tune-on")
    if args.pred and not (args.gt and args.counts):
        parser.error("--pred needs --gt and --counts")
    return args


# ------------------------------------------------------------------ runs


def run_config(args):
    """Configuration of the run with --set and --tune-on as its test sets; names by part."""
    path = args.run / "config.yaml"
    if not path.is_file():
        raise MissingFileError(f"no {path}: --run is the folder of a run of tools/train_net.py")
    cfg = load_config(str(path), args.opts)
    if cfg.MODEL.LT.CALIBRATION.NAME or cfg.TEST.LT.TAU_NORM:
        raise ConfigError(
            "the run has a calibration switched on (MODEL.LT.CALIBRATION.NAME or "
            "TEST.LT.TAU_NORM): add MODEL.LT.CALIBRATION.NAME '' TEST.LT.TAU_NORM 0 to the command "
            "and, for image classification, evaluate the run without it first"
        )
    if not args.set and len(cfg.DATASETS.TEST) != 1:
        raise ConfigError(f"DATASETS.TEST is {tuple(cfg.DATASETS.TEST)}: name one with --set")
    name = args.set or cfg.DATASETS.TEST[0]
    sets = {TUNING: args.tune_on or name, REPORTING: name}
    cfg.DATASETS.TEST = tuple(dict.fromkeys(sets.values()))
    return cfg, sets


def classification_trials(args, cfg, sets, method, strengths):
    loss = task_of(cfg).loss(cfg)
    counts = list(cfg.MODEL.LT.CLASS_COUNTS)
    if method != "TauNorm" and not counts:
        raise ConfigError(f"MODEL.LT.CLASS_COUNTS of {args.run / 'config.yaml'} is empty")
    if method == "TauNorm" and cfg.MODEL.LT.CLASS_SCALE:
        raise ConfigError("the factors of MODEL.LT.CLASS_SCALE are not in the kept features")
    saved = {
        name: saved_image_scores(args.run / "inference" / name, loss, method, strengths, counts)
        for name in cfg.DATASETS.TEST
    }
    choice = choose_images(
        sets,
        part_sizes(args, sets, lambda name: len(saved[name]["labels"])),
        limit=args.limit,
        seed=args.seed,
    )
    parts = {part: chosen_images(saved[sets[part]], choice.places[part]) for part in PARTS}
    about = read_record(args.run / "results" / f"{sets[REPORTING]}.json")["per_class"]
    return ClassificationTrials(
        parts[TUNING],
        parts[REPORTING],
        strengths,
        dataset=sets[REPORTING],
        class_names=about["name"],
        groups=about.get("group"),
        image_counts=about.get("train_images"),
    )


def model_trials(args, cfg, sets, method, strengths, task):
    cfg.MODEL.MASK_ON = cfg.MODEL.MASK_ON and str(args.metric).startswith("segm/")
    counts = prepare_config(cfg, training=False)
    weights = args.weights or str(args.run / "model_final.pth")
    model = calibrated_model(cfg, method, weights)
    sizes = part_sizes(args, sets, image_number)
    choice = choose_images(sets, sizes, limit=args.limit, seed=args.seed)
    if task == "instance":
        return model_detection_trials(cfg, model, choice, strengths, counts)
    by = f"training {cfg.DATASETS.LT.SEM_SEG.GROUP_BY}"
    return SegmentationTrials(cfg, model, choice, strengths, counts, by)


def part_sizes(args, sets, size_of):
    """Part -> images of its set; none for tuning where the strength is given."""
    return {
        part: 0 if part == TUNING and args.strength is not None else size_of(name)
        for part, name in sets.items()
    }


# ------------------------------------------------------------------ saved predictions


def read_counts(path, names, unit):
    """(C,) counts of the classes by name, from the file of class_counts.py; with all its units."""
    if not Path(path).is_file():
        raise MissingFileError(f"no file {path}; tools/class_counts.py --json writes it")
    try:
        columns = json.loads(Path(path).read_text(encoding="utf-8"))["per_class"]
        places = {name: k for k, name in enumerate(columns["name"])}
        counts = {u: columns[u] for u in ("images", "instances") if u in columns}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no file of tools/class_counts.py --json: {error!r}") from error
    if unit not in counts:
        raise DataError(f"{path} has no counts of {unit}; it has {', '.join(counts) or 'none'}")
    missing = [name for name in names if name not in places]
    if missing:
        raise DataError(f"{path} has no count of class {missing[0]!r} and {len(missing) - 1} more")
    return {u: [c[places[name]] for name in names] for u, c in counts.items()}


def prediction_trials(args, method, strengths):
    """The trials, and the re-scored predictions by index of the strength."""
    if not Path(args.gt).is_file():
        raise MissingFileError(f"no annotation file {args.gt}")
    content = json.loads(Path(args.gt).read_text(encoding="utf-8"))
    categories = sorted(content["categories"], key=lambda c: c["id"])
    names, ids = [c["name"] for c in categories], [c["id"] for c in categories]
    counts = read_counts(args.counts, names, args.unit)
    predictions = load_predictions(args.pred)

    def results(strength):
        return rescored_results(predictions, ids, counts[args.unit], method, strength)

    name = Path(args.gt).stem
    truth = GroundTruthFile(name, args.gt, names, ids, None, counts)
    image_ids = [image["id"] for image in content["images"]]
    sets = dict.fromkeys(PARTS, name)
    sizes = part_sizes(args, sets, lambda _: len(image_ids))
    choice = choose_images(sets, sizes, limit=args.limit, seed=args.seed)
    tasks = [t for t, key in (("bbox", "bbox"), ("segm", "segmentation")) if key in predictions[0]]
    trials = DetectionTrials(
        strengths,
        dict.fromkeys(PARTS, truth),
        {part: [image_ids[k] for k in places] for part, places in choice.places.items()},
        {part: [lambda s=s: results(s) for s in strengths] for part in PARTS},
        tasks=tasks,
    )
    return trials, results, name


# ------------------------------------------------------------------ report


def found_of(args, trials, metric):
    """The search; with --strength the two records of all images."""
    if args.strength is None:
        return search(trials, metric)
    last = len(trials.strengths) - 1
    records = {"before": trials.record(0, REPORTING), "after": trials.record(last, REPORTING)}
    return Found(last, [], {REPORTING: records})


def report(args, method, metric, trials, found, sets):
    """What is printed, in Markdown."""
    strength = trials.strengths[found.best]
    lines = []
    if found.values:
        where = (
            f"the other {trials.num_images[REPORTING]}"
            if sets[TUNING] == sets[REPORTING]
            else f"{trials.num_images[REPORTING]} of {sets[REPORTING]}"
        )
        lines += [
            f"{method}: {metric} on {trials.num_images[TUNING]} images of {sets[TUNING]} (seed "
            f"{args.seed}) chooses the strength, {where} are for the report.",
            "",
            curve(trials, found, metric),
            "",
        ]
    else:
        lines += [
            f"{method} with strength {strength:g} on {trials.num_images[REPORTING]} images of "
            f"{sets[REPORTING]}; nothing was chosen on them.",
            "",
        ]
    lines += [result_table(found, strength), "", *verdict(trials, found)]
    if strength:
        lines += ["", "Switch it on:", "", "```yaml", switch(method, strength), "```"]
    return "\n".join(lines)


def curve(trials, found, metric):
    rows = [["strength", f"{metric}, tuning"]]
    for k, value in enumerate(found.values):
        mark = " *" if k == found.best else ""
        rows.append([f"{trials.strengths[k]:g}{mark}", f"{value:.2f}"])
    return markdown(rows)


def result_table(found, strength):
    words = {TUNING: "tuning images", REPORTING: "reporting images"}
    rows = [
        (f"{words[part]}, {'as it is' if when == 'before' else f'strength {strength:g}'}", [record])
        for part in PARTS
        for when, record in found.records.get(part, {}).items()
    ]
    return format_rows(rows, digits=2)


def verdict(trials, found):
    if not found.values:
        return []
    if found.best == 0:
        return ["No strength that was tried is better than none: leave the calibration off."]
    if found.best == len(found.values) - 1:
        return ["The largest strength that was tried is the best: try larger ones (--strengths)."]
    return []


def switch(method, strength):
    return f"MODEL:\n  LT:\n    CALIBRATION: {{NAME: {method}, STRENGTH: {strength:g}}}"


def result_of(args, method, metric, trials, found, sets):
    """What is written."""
    strength = trials.strengths[found.best]
    return {
        "format_version": FORMAT_VERSION,
        "method": method,
        "strength": strength,
        "chosen_by": metric if found.values else None,
        "sets": sets,
        "images": dict(trials.num_images),
        "seed": args.seed,
        "strengths": list(trials.strengths),
        "tuning_values": [None if v != v else v for v in found.values],
        "records": found.records,
        "run": None if args.run is None else str(args.run),
        "predictions": args.pred,
        "yaml": switch(method, strength) if strength else None,
    }


def main(argv=None):
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        method = method_of(args.method)
        given = args.strengths if args.strength is None else [args.strength]
        if args.pred:
            task, results = "instance", None
            strengths = strength_grid(given or GRIDS[task])
            trials, results, name = prediction_trials(args, method, strengths)
            sets = dict.fromkeys(PARTS, name)
        else:
            cfg, sets = run_config(args)
            task = task_of(cfg).name
            strengths = strength_grid(given or GRIDS[task])
            if task == "classification":
                trials = classification_trials(args, cfg, sets, method, strengths)
            else:
                trials = model_trials(args, cfg, sets, method, strengths, task)
        metric = args.metric or DEFAULT_METRICS[task]
        found = found_of(args, trials, metric)
        print(report(args, method, metric, trials, found, sets))
        if args.pred:
            print("\n" + __doc__[__doc__.index("--pred knows") :].split("--counts is")[0].strip())
        if args.pred and args.output:
            write_predictions(args.output, results(strengths[found.best]))
        path = args.json
        if path is None and args.run is not None:
            path = args.run / "calibration" / f"{sets[REPORTING]}.{method}.json"
        if path:
            with atomic_file(path) as file:
                json.dump(result_of(args, method, metric, trials, found, sets), file, indent=1)
            print(f"\nwrote {path}")
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
