#!/usr/bin/env python
"""Evaluate predictions in a file under the rules of LVIS; needs no Detectron2.

tools/evaluate_json.py --gt lvis_v1_val.json --pred lvis_instances_results.json
tools/evaluate_json.py --gt lvis_v1_val.json --pred results.json --iou-type segm --protocol fixed_ap
tools/evaluate_json.py --gt lvis_v1_val.json --pred results.json --images minival.json -o output/a

The annotation file is in LVIS or COCO format. Predictions are a JSON list in the results format, or
columns: a .npz file or a folder of these.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

import command_line

from lt_det.errors import LtDetError
from lt_det.evaluation import LVISResult, add_run_info, evaluate_lvis, write_record
from lt_det.evaluation.lvis_api import PROTOCOLS, TASKS, read_image_list
from lt_det.evaluation.results import record_path


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gt", required=True, help="annotation file")
    parser.add_argument("--pred", required=True, help="predictions")
    parser.add_argument(
        "--iou-type",
        nargs="+",
        choices=TASKS,
        help="boxes, masks or both; default: what the predictions have",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="standard",
        help="standard: the 300 best of each image; fixed_ap: the 10,000 best of each class over "
        "the set, all of an image",
    )
    parser.add_argument(
        "--images",
        metavar="LIST",
        help='evaluate these images alone: JSON, a list of ids or an object with "images" as '
        "annotation files have them, or text with an id in each line",
    )
    parser.add_argument(
        "--name",
        help="of the data set in the record; default: that of the annotation file, with the image "
        "list and the protocol where they are given",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="folder for the record, results/<name>.json, and for what the matching found, "
        "inference/<name>/matches_<iou type>.npz: as a run has them",
    )
    args = parser.parse_args(argv)
    if args.name is not None and (set(args.name) & set("/\\") or args.name in ("", ".", "..")):
        parser.error(f"--name is the name of a file and a folder, without / or \\: {args.name!r}")
    return args


def default_name(args) -> str:
    """The data set in the record; another one for other images or rules, which have other files."""
    parts = [Path(args.gt).name.split(".")[0]]
    if args.images:
        parts.append(Path(args.images).name.split(".")[0])
    if args.protocol != "standard":
        parts.append(args.protocol)
    return "_".join(parts)


def describe(protocol: dict) -> str:
    """The protocol of a record in words."""
    limits = {
        "max_detections": "{} detections an image",
        "max_detections_per_class": "{} detections a class",
    }
    parts = [f"rules: {protocol['rules']}", f"{protocol['images']} images"]
    if "images_hash" in protocol:
        parts[-1] += f" of a list ({protocol['images_hash']})"
    parts += [text.format(protocol[k]) for k, text in limits.items() if protocol.get(k)]
    parts.append("federated" if protocol["federated"] else "annotated exhaustively")
    return ", ".join(parts)


def write(folder: str, name: str, result: LVISResult, predictions: str) -> str:
    """Write record and matches as a run has them; the path of the record."""
    record = add_run_info(
        result.record(name),
        iteration=None,
        seed=None,
        config=None,
        weights=None,
        predictions=os.path.abspath(predictions),
    )
    result.save_matches(os.path.join(folder, "inference", name))
    path = record_path(folder, record)
    write_record(path, record)
    return path


def main(argv=None) -> int:
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    name = args.name or default_name(args)
    try:
        if args.output:
            command_line.make_folder(args.output)
        images = read_image_list(args.images) if args.images else None
        result = evaluate_lvis(
            args.gt, args.pred, args.iou_type, protocol=args.protocol, image_ids=images
        )
        print(f"{name}, {describe(result.protocol)}; percent:\n\n{result.table()}")
        if args.output:
            print(f"\nwrote {write(args.output, name, result, args.pred)}")
    except (LtDetError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
