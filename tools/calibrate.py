#!/usr/bin/env python
"""Find the strength of a post-hoc calibration on held-out images and report it on others.

    python tools/calibrate.py --run output/lvis_softmax --method norcal
    python tools/calibrate.py --run output/lvis_softmax --method norcal --strength 0.6
    python tools/calibrate.py --run output/lvis_softmax --method norcal --tune-on lvis_v1_minival
    python tools/calibrate.py --run output/imagenet_lt_ce --method logit-adjustment
    python tools/calibrate.py --pred results.json --gt lvis_v1_val.json --counts counts.json \\
        --scores softmax --method norcal --output calibrated.json

Half of the images, drawn by --seed, choose the strength; the other half is what is reported, with
intervals of the differences over these images. With --tune-on another set chooses it. With
--strength nothing is chosen, and all images are reported.

--run is exact. Detectors and segmentors run once over the images: everything before the logits is
computed once for all strengths, what follows (scores, thresholds, suppression) for each. Of image
classification the scores that the evaluation kept are enough, and for tau-norm its features
(TEST.LT.KEEP_FEATURES True).

--pred knows no background and only the classes that were kept. What is missing of a region's scores
is taken for background. Scores of sigmoid detectors are exact so, unless an objectness or a quality
is multiplied in (EQLv2, ATSS, FCOS). Of softmax detectors they are an approximation, where equal
boxes of an image show which detections are of one region (boxes regressed without regard to the
class, as in a cascade). Where none does, or with a sigmoid, each class keeps its order: scores of
different classes become comparable, but AP changes only if the file has more than 300 detections
an image. Use --run to see what a calibration does to AP.
--counts is the file of tools/class_counts.py --json.
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from command_line import output_file

from lt_det.engine import load_config, prepare_config
from lt_det.engine.calibration_trials import (
    ClassificationTrials,
    DetectionTrials,
    SegmentationTrials,
    Truth,
    calibrated_model,
    image_number,
    image_rescoring,
    method_of,
    model_detection_trials,
    read_saved_images,
    rescored_predictions,
)
from lt_det.engine.tasks import task_of
from lt_det.errors import ConfigError, DataError, LtDetError, MissingFileError
from lt_det.evaluation.groups import groups_from_counts
from lt_det.evaluation.lvis_ground_truth import load_ground_truth
from lt_det.evaluation.lvis_predictions import read_predictions, write_predictions
from lt_det.evaluation.results import atomic_file, format_rows, markdown, read_record
from lt_det.evaluation.strength_search import (
    DEFAULT_METRICS,
    PARTS,
    REPORTING,
    TUNING,
    Found,
    choose_images,
    differences,
    search,
    strength_grid,
)
from lt_det.modeling.calibration import unit_shift, warn_of_double_correction

GRIDS = {
    "instance": [k / 10 for k in range(0, 13, 2)],
    "sem_seg": [k / 10 for k in range(0, 21, 2)],
    "classification": [k / 10 for k in range(0, 21)],
}
FORMAT_VERSION = 1
MAX_THRESHOLD = 1e-4
PRED_NOTE = (
    "Of each region only the classes in the file are known; the rest of its scores was taken for "
    "background. AP changes only by classes that share a box, or by more than 300 detections an "
    "image: use --run to see what a calibration does to AP."
)


def numbers(text):
    return [float(part) for part in text.split(",")]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder of a finished run")
    source.add_argument("--pred", help="results file of LVIS form, or columns of an evaluation")
    parser.add_argument(
        "--method", required=True, help="norcal, logit-adjustment or tau-norm (--run alone)"
    )
    parser.add_argument("--strength", type=float, help="report this one instead of choosing one")
    parser.add_argument(
        "--strengths", type=numbers, metavar="S,S,...", help="to try; 0 is always tried"
    )
    parser.add_argument(
        "--metric", help="what chooses, e.g. bbox/APr; default: AP, mIoU or mean class accuracy"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the halves and of --limit")
    parser.add_argument("--limit", type=int, default=0, help="take so many images by chance")
    parser.add_argument(
        "--resamples",
        type=int,
        default=1000,
        help="of the reporting images, for intervals of the differences; 0: none",
    )
    parser.add_argument("--json", type=output_file, help="file for the result")
    run = parser.add_argument_group("with --run")
    run.add_argument("--set", help="test set; default: that of DATASETS.TEST")
    run.add_argument("--tune-on", metavar="SET", help="another set to choose the strength on")
    run.add_argument("--weights", help="default: RUN/model_final.pth")
    run.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override the configuration"
    )
    pred = parser.add_argument_group("with --pred")
    pred.add_argument("--gt", help="annotation file, LVIS or COCO form")
    pred.add_argument("--counts", help="training examples of each class")
    pred.add_argument(
        "--unit",
        choices=("images", "instances"),
        default="instances",
        help="of --counts; the model goes by MODEL.LT.COUNT_UNIT, whose default is the same",
    )
    pred.add_argument("--scores", choices=("softmax", "sigmoid"), help="of the detector")
    pred.add_argument("--output", type=output_file, help="re-scored results file to write")
    args = parser.parse_args(argv)
    if args.strength is not None and (args.strengths or args.tune_on or args.metric):
        parser.error("--strength chooses nothing: leave out --strengths, --metric and --tune-on")
    if args.pred and not (args.gt and args.counts and args.scores):
        parser.error("--pred needs --gt, --counts and --scores")
    kind = "run" if args.run else "pred"
    others = {"run": ("gt", "counts", "scores", "output"), "pred": ("set", "tune_on", "weights")}
    for name in others[kind]:
        if getattr(args, name):
            parser.error(f"--{name.replace('_', '-')} does not go with --{kind}")
    if args.pred and args.opts:
        parser.error(f"{' '.join(args.opts)!r}: --pred has no configuration to override")
    if args.seed < 0:
        parser.error(f"--seed must be 0 or more, got {args.seed}")
    if args.resamples < 0 or args.resamples == 1:
        parser.error(f"--resamples must be 0 (no intervals) or at least 2, got {args.resamples}")
    if args.limit < 0:
        parser.error(f"--limit must be 0 (all) or more, got {args.limit}")
    return args


# ------------------------------------------------------------------ runs


@dataclass
class Job:
    """What is to be done.

    Attributes:
        method: its name in the configuration.
        sets: part -> data set.
        trials: of the strengths.
        metric: what chooses.
        file: for the result; None: it is printed alone.
        rescored: the predictions of a file under a strength.
    """

    method: str
    sets: dict
    trials: object
    metric: str
    file: str | None
    rescored: Callable | None = None


def strengths_of(args, task):
    given = args.strengths if args.strength is None else [args.strength]
    return strength_grid(given or GRIDS[task])


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


def run_job(args, method):
    cfg, sets = run_config(args)
    file = args.json or default_file(args.run, sets[REPORTING], method)
    task = task_of(cfg).name
    trials_of = classification_trials if task == "classification" else model_trials
    trials = trials_of(args, cfg, sets, method, strengths_of(args, task))
    if args.strength:
        warn_of_double_correction(cfg.MODEL.LT.LOSS.NAME, method, args.strength)
    return Job(method, sets, trials, args.metric or DEFAULT_METRICS[task], file)


def default_file(run, name, method):
    """For the result of a run; its folder is made now, so that nothing computed is lost."""
    path = run / "calibration" / f"{name}.{method}.json"
    try:
        return str(output_file(path))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{error}; --json names another file") from error


def classification_trials(args, cfg, sets, method, strengths):
    loss, counts = task_of(cfg).loss(cfg), list(cfg.MODEL.LT.CLASS_COUNTS)
    if method != "TauNorm" and not counts:
        raise ConfigError(f"MODEL.LT.CLASS_COUNTS of {args.run / 'config.yaml'} is empty")
    if method == "TauNorm" and cfg.MODEL.LT.CLASS_SCALE:
        raise ConfigError(
            "MODEL.LT.CLASS_SCALE is True, and its factors are not in the kept features: evaluate "
            "with MODEL.LT.CALIBRATION instead"
        )
    rescored = image_rescoring(loss, method, counts)
    saved = {
        name: read_saved_images(args.run / "inference" / name, loss.num_classes, method)
        for name in cfg.DATASETS.TEST
    }
    sizes = part_sizes(args, sets, lambda name: len(saved[name]))
    choice = choose_images(sets, sizes, limit=args.limit, seed=args.seed)
    about = read_record(args.run / "results" / f"{sets[REPORTING]}.json")["per_class"]
    return ClassificationTrials(
        {part: saved[sets[part]].select(choice.places[part]) for part in PARTS},
        rescored,
        strengths,
        dataset=sets[REPORTING],
        class_names=about["name"],
        groups=about.get("group"),
        image_counts=about.get("train_images"),
    )


def model_trials(args, cfg, sets, method, strengths):
    # Masks take long, and their scores are those of the boxes.
    cfg.MODEL.MASK_ON = cfg.MODEL.MASK_ON and str(args.metric).startswith("segm/")
    counts = prepare_config(cfg, training=False)
    warn_of_threshold(cfg, method)
    model = calibrated_model(cfg, method, args.weights or str(args.run / "model_final.pth"))
    sizes = part_sizes(args, sets, image_number)
    choice = choose_images(sets, sizes, limit=args.limit, seed=args.seed)
    if task_of(cfg).name == "instance":
        return model_detection_trials(cfg, model, choice, strengths, counts)
    by = f"training {cfg.DATASETS.LT.SEM_SEG.GROUP_BY}"
    return SegmentationTrials(cfg, model, choice, strengths, counts, by)


def warn_of_threshold(cfg, method):
    """NorCal divides scores by powers of counts, which a usual threshold does not survive."""
    dense = task_of(cfg).classes_key == "MODEL.RETINANET.NUM_CLASSES"
    node = "RETINANET" if dense else "ROI_HEADS"
    threshold = cfg.MODEL[node].SCORE_THRESH_TEST
    if method == "NorCal" and task_of(cfg).name == "instance" and threshold > MAX_THRESHOLD:
        logging.warning(
            f"MODEL.{node}.SCORE_THRESH_TEST is {threshold}: NorCal lowers scores, and what falls "
            f"below it is lost. LVIS recipes have {MAX_THRESHOLD:g} or less"
        )


def part_sizes(args, sets, size_of):
    """Part -> images of its set; none for tuning where the strength is given."""
    return {
        part: 0 if part == TUNING and args.strength is not None else size_of(name)
        for part, name in sets.items()
    }


# ------------------------------------------------------------------ saved predictions


def read_counts(path, names, unit):
    """{unit: (C,) counts} of the classes by name, from the file of class_counts.py."""
    if not Path(path).is_file():
        raise MissingFileError(f"no file {path}; tools/class_counts.py --json writes it")
    try:
        columns = json.loads(Path(path).read_text(encoding="utf-8"))["per_class"]
        places = {name: k for k, name in enumerate(columns["name"])}
        counts = {
            u: whole_numbers(columns[u], len(columns["name"]), u)
            for u in ("images", "instances")
            if u in columns
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no file of tools/class_counts.py --json: {error!r}") from error
    if len(places) < len(columns["name"]):
        raise DataError(f"{path} has two classes of one name, and counts are found by names")
    if unit not in counts:
        raise DataError(f"{path} has no counts of {unit}; it has {', '.join(counts) or 'none'}")
    missing = [name for name in names if name not in places]
    if missing:
        raise DataError(
            f"{path} has no count of {len(missing)} of the {len(names)} classes of the annotation "
            f"file, the first is {missing[0]!r}"
        )
    return {u: [c[places[name]] for name in names] for u, c in counts.items()}


def whole_numbers(counts, number, unit):
    """`counts` themselves, if they are one whole number >= 0 for each of so many classes."""
    if not isinstance(counts, list) or len(counts) != number:
        got = len(counts) if isinstance(counts, list) else repr(counts)
        raise ValueError(f"{unit} of {number} classes, got {got}")
    bad = [n for n in counts if isinstance(n, bool) or not isinstance(n, int) or n < 0]
    if bad:
        raise ValueError(f"{unit} are whole numbers >= 0, got {bad[0]!r}")
    return counts


def read_truth(args):
    """Ground truth of all classes of the file, with --counts; its groups are the file's if any."""
    ground_truth = load_ground_truth(args.gt)
    names = [str(c.get("name", c["id"])) for c in ground_truth.categories]
    counts = read_counts(args.counts, names, args.unit)
    name = Path(args.gt).stem
    if ground_truth.groups or "images" not in counts:
        return Truth(name, ground_truth, names, None, None, counts)
    groups = groups_from_counts(counts["images"])
    return Truth(name, ground_truth, names, groups, "training images", counts)


def prediction_job(args, method):
    if method == "TauNorm":
        raise ConfigError(
            f"--method {args.method} goes by the weights of the classifier, which --pred does not "
            "have: use --run"
        )
    truth, predictions = read_truth(args), read_predictions(args.pred)
    if not len(predictions):
        raise DataError(f"{args.pred} holds no prediction")
    metric = args.metric or ("bbox/AP" if "bbox" in predictions.tasks else "segm/AP")
    task = metric.partition("/")[0]
    if task not in predictions.tasks:
        raise ConfigError(
            f"--metric {metric}: {args.pred} is good for {', '.join(sorted(predictions.tasks))}"
        )
    strengths = strengths_of(args, "instance")
    ids, shift = truth.ground_truth.category_ids, unit_shift(method, truth.class_counts[args.unit])

    def rescored(strength):
        return rescored_predictions(predictions, ids, strength * shift, form=args.scores)

    image_ids, sets = truth.ground_truth.image_ids, dict.fromkeys(PARTS, truth.name)
    sizes = part_sizes(args, sets, lambda _: len(image_ids))
    choice = choose_images(sets, sizes, limit=args.limit, seed=args.seed)
    trials = DetectionTrials(
        strengths,
        dict.fromkeys(PARTS, truth),
        {part: image_ids[places] for part, places in choice.places.items()},
        dict.fromkeys(PARTS, [partial(rescored, s) for s in strengths]),
        tasks=(task,),
    )
    return Job(method, sets, trials, metric, args.json, rescored)


# ------------------------------------------------------------------ report


def find(args, job):
    """The search; with --strength the two records of all images."""
    if args.strength is None:
        return search(job.trials, job.metric)
    last = len(job.trials.strengths) - 1
    records = {
        "before": job.trials.record(0, REPORTING),
        "after": job.trials.record(last, REPORTING),
    }
    return Found(last, [], {REPORTING: records})


def changes(args, job, found):
    """Differences on the reporting images, by metric; {} without a change."""
    if not found.best or not args.resamples:
        return {}
    groups = found.records[REPORTING]["before"]["per_class"].get("group")
    return differences(job.trials, found.best, groups, args.resamples)


def report(args, job, found, changed):
    """What is printed, in Markdown."""
    strength = job.trials.strengths[found.best]
    parts = [introduction(args, job, found, strength)]
    if found.values:
        parts.append(curve(job, found))
    parts.append(result_table(found, strength))
    if changed:
        parts += ["Differences on the reporting images:", change_table(changed)]
    parts += verdict(found)
    if args.pred:
        parts.append(PRED_NOTE)
    elif strength:
        parts += ["Switch it on:", f"```yaml\n{switch(job.method, strength)}\n```"]
    return "\n\n".join(parts)


def introduction(args, job, found, strength):
    number, sets = job.trials.num_images, job.sets
    if not found.values:
        return (
            f"{job.method} with strength {strength:g} on {number[REPORTING]} images of "
            f"{sets[REPORTING]}; nothing was chosen on them."
        )
    others = f"the other {number[REPORTING]}"
    if sets[TUNING] != sets[REPORTING]:
        others = f"{number[REPORTING]} of {sets[REPORTING]}"
    return (
        f"{job.method}: {job.metric} on {number[TUNING]} images of {sets[TUNING]} (seed "
        f"{args.seed}) chooses the strength, {others} are for the report."
    )


def curve(job, found):
    rows = [["strength", f"{job.metric}, tuning images"]]
    for k, (strength, value) in enumerate(zip(job.trials.strengths, found.values, strict=True)):
        rows.append([f"{strength:g}{' *' if k == found.best else ''}", f"{value:.2f}"])
    return markdown(rows)


def result_table(found, strength):
    when = {"before": "as it is", "after": f"strength {strength:g}"}
    rows = [
        (f"{part} images, {when[moment]}", [record])
        for part in PARTS
        for moment, record in found.records.get(part, {}).items()
        if strength or moment == "before"
    ]
    return format_rows(rows, digits=2)


def change_table(changed):
    rows = [["metric", "as it is", "calibrated", "difference", "95 % interval", "beyond noise"]]
    for name, d in changed.items():
        if not math.isnan(d.difference):
            interval = f"{d.low:+.2f} to {d.high:+.2f}"
            values = [f"{d.value_a:.2f}", f"{d.value_b:.2f}", f"{d.difference:+.2f}", interval]
            word = "yes" if d.beyond_noise else "no"
            rows.append([name, *values, word if d.judged else "too few images"])
    return markdown(rows)


def verdict(found):
    if found.values and found.best == 0:
        return ["No strength that was tried is better than none: leave the calibration off."]
    if found.values and found.best == len(found.values) - 1:
        return ["The largest strength that was tried is the best: try larger ones (--strengths)."]
    return []


def switch(method, strength):
    # A float even where it is whole: the configuration takes no integer for it.
    number = float(f"{strength:.6g}")
    return f"MODEL:\n  LT:\n    CALIBRATION: {{NAME: {method}, STRENGTH: {number}}}"


def result_of(args, job, found, changed):
    """What is written."""
    strength = job.trials.strengths[found.best]
    return {
        "format_version": FORMAT_VERSION,
        "method": job.method,
        "strength": strength,
        "chosen_by": job.metric if found.values else None,
        "sets": job.sets,
        "images": dict(job.trials.num_images),
        "seed": args.seed,
        "strengths": list(job.trials.strengths),
        "tuning_values": [None if math.isnan(v) else v for v in found.values],
        "records": found.records,
        "differences": {
            name: {
                "difference": d.difference,
                "interval": [d.low, d.high],
                "judged": d.judged,
                "beyond_noise": d.beyond_noise,
            }
            for name, d in changed.items()
            if not math.isnan(d.difference)
        },
        "run": None if args.run is None else str(args.run),
        "predictions": args.pred,
        "yaml": switch(job.method, strength) if strength else None,
    }


def write(args, job, found, changed):
    """The result and, with --output, the predictions with other scores."""
    if args.output:
        write_predictions(args.output, job.rescored(job.trials.strengths[found.best]))
    if job.file:
        with atomic_file(job.file) as file:
            json.dump(result_of(args, job, found, changed), file, indent=1, allow_nan=False)
            file.write("\n")
    for name in (args.output, job.file):
        if name:
            print(f"\nwrote {name}")


def main(argv=None):
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        method = method_of(args.method)
        job = prediction_job(args, method) if args.pred else run_job(args, method)
        found = find(args, job)
        changed = changes(args, job, found)
        print(report(args, job, found, changed))
        write(args, job, found, changed)
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
