#!/usr/bin/env python
"""Make a long-tailed training list from a balanced set.

    python tools/make_long_tailed.py images/train --output lists --imbalance 100
    python tools/make_long_tailed.py train.txt --output train_lt.txt --imbalance 50 --profile step
    python tools/make_long_tailed.py cifar-10-python.tar.gz --output cifar10 --imbalance 100

SOURCE is a folder with one sub-folder per class, a list file ("path label" per line), or CIFAR-10
or CIFAR-100 as distributed for Python (cifar-10-batches-py, cifar-100-python, or their archives).
Of a folder or a list a new list is written, with paths relative to the folder, or as in the list;
no image is copied. Of CIFAR all images are written once as PNG files, with test.txt beside.

Profiles and selection are those of the published code (imbalance_cifar.py of LDAM-DRW): the same
seed selects the same images of CIFAR. KPS was published with seed 666, the others with seed 0.
"""

import argparse
import sys
import textwrap
from pathlib import Path

import numpy as np
from command_line import make_folder

from lt_det.data.datasets.cifar import image_paths, is_cifar, read_cifar, write_images
from lt_det.data.datasets.image_folder import read_image_folder
from lt_det.data.datasets.image_list import read_image_list, write_image_list
from lt_det.data.datasets.long_tail import ORDERS, PROFILES, assign, profile, select
from lt_det.errors import ConfigError, DataError, LtDetError


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder, list file or CIFAR")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="a list file (*.txt), or a folder for train_<profile>_if<factor>_seed<seed>.txt",
    )
    parser.add_argument(
        "--imbalance", type=float, required=True, help="largest over smallest class, at least 1"
    )
    parser.add_argument("--profile", choices=PROFILES, default="exp")
    parser.add_argument("--seed", type=int, default=0, help="of the selection")
    parser.add_argument(
        "--max-per-class",
        type=int,
        help="images of the largest class; by default as many as every class of SOURCE has",
    )
    parser.add_argument(
        "--order",
        choices=ORDERS,
        default="label",
        help="which class is the largest: class 0, or the one with the most images in SOURCE",
    )
    return parser.parse_args(argv)


def list_name(args) -> str:
    """Name of the list in a folder: what differs has different names."""
    name = f"train_{args.profile}_if{args.imbalance:g}_seed{args.seed}"
    name += f"_max{args.max_per_class}" if args.max_per_class is not None else ""
    return name + ("_by_count" if args.order == "count" else "") + ".txt"


def choose(labels, args):
    """Indices kept, and the images of each class before and after."""
    available = np.bincount(labels)
    if not available.all():
        raise DataError(f"{args.source} has no image of class {available.argmin()}")
    largest = available.min() if args.max_per_class is None else args.max_per_class
    sizes = profile(int(largest), len(available), args.imbalance, args.profile)
    counts = assign(sizes, available, args.order)
    return select(labels, counts, args.seed), available, counts


def read_source(args):
    """Training images: paths, labels, class names or None, and the set if it is CIFAR."""
    if is_cifar(args.source):
        cifar = read_cifar(args.source)
        return image_paths(cifar, "train"), cifar.labels["train"], cifar.names, cifar
    if args.source.is_dir():
        return *read_image_folder(args.source), None
    source = read_image_list(args.source)
    return source.paths, source.labels, None, None


def output_list(args, cifar) -> Path:
    """The list file to write; its folder is made."""
    is_list = args.output.suffix == ".txt"
    if is_list and cifar is not None:
        raise ConfigError(f"--output {args.output}: CIFAR needs a folder, for its images")
    path = args.output if is_list else args.output / list_name(args)
    if path.exists() and path.samefile(args.source):
        raise ConfigError(f"--output {path} is the list that is read")
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; a list file has a name of its own")
    try:
        make_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"--output {args.output} cannot be written: {error}") from error
    return path


def write_cifar(cifar, root):
    for split, labels in cifar.labels.items():
        written = write_images(cifar, split, root)
        print(f"{root / split}: {written} images written, {len(labels) - written} kept")
    write_image_list(root / "test.txt", image_paths(cifar, "test"), cifar.labels["test"])


def print_counts(available, counts, args):
    per_class = " ".join(map(str, counts))
    print("images per class: " + textwrap.fill(per_class, 78, subsequent_indent="  "))
    print(
        f"{counts.sum()} of {available.sum()} images of {len(counts)} classes, {counts.max()} to "
        f"{counts.min()} per class: imbalance factor {counts.max() / counts.min():g}, "
        f"asked for {args.imbalance:g}"
    )


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        paths, labels, names, cifar = read_source(args)
        kept, available, counts = choose(labels, args)
        path = output_list(args, cifar)
        if cifar is not None:
            write_cifar(cifar, args.output)
        if names is not None and path.parent == args.output:
            (args.output / "classes.txt").write_text("".join(f"{name}\n" for name in names))
        write_image_list(path, [paths[i] for i in kept], labels[kept])
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_counts(available, counts, args)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
