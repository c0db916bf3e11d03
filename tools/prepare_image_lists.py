#!/usr/bin/env python
"""Check the lists of ImageNet-LT, Places-LT or iNaturalist 2018 against the image folder.

    python tools/prepare_image_lists.py imagenet_lt --images /data/imagenet --lists lists
    python tools/prepare_image_lists.py inat2018 --images /data/inat --lists /data/inat \\
        --output lists --decode

Lists are files of "path label" lines: ImageNet_LT_{train,val,test}.txt,
Places_LT_{train,val,test}.txt, iNaturalist18_{train,val}.txt. The latter are built from
train2018.json and val2018.json if they are not there. Every path is looked up, labels and class
sizes are checked. --output writes the lists, with paths that start in the image folder, if
nothing is missing; exit code 1 says that something is.
"""

import argparse
import sys
from pathlib import Path

import command_line  # noqa: F401  a warning

from lt_det.data.datasets.image_list import read_image_list, write_image_list
from lt_det.data.datasets.image_list_checks import (
    KNOWN_SETS,
    FolderIndex,
    broken_images,
    differences,
    empty_classes,
    find_rerooting,
    missing_paths,
    read_inat_json,
)
from lt_det.data.datasets.parallel import default_workers
from lt_det.errors import ConfigError, LtDetError, MissingFileError

SHOWN = 10  # missing or broken files printed one by one


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=KNOWN_SETS)
    parser.add_argument("--images", type=Path, required=True, help="folder the paths start in")
    parser.add_argument("--lists", type=Path, required=True, help="folder of the lists")
    parser.add_argument("--output", type=Path, help="folder to write checked lists to")
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="by default all: train, val, and test"
    )
    parser.add_argument("--decode", action="store_true", help="open every image")
    parser.add_argument(
        "--workers",
        type=int,
        default=default_workers(),
        help="processes of --decode (default: %(default)s)",
    )
    return parser.parse_args(argv)


def check_args(args, known):
    """The splits to check."""
    splits = args.splits or list(known.files)
    for split in splits:
        if split not in known.files:
            raise ConfigError(
                f"{args.set} has no split {split!r} (--splits); accepted: {', '.join(known.files)}"
            )
    if not args.images.is_dir():
        raise MissingFileError(
            f"--images {args.images} is not a folder (looked for {args.images.resolve()})"
        )
    if args.output and args.output.resolve() == args.lists.resolve():
        raise ConfigError(f"--output {args.output} is the folder of --lists; name another one")
    return splits


def read_split(args, known, split):
    path = args.lists / known.files[split]
    annotations = known.annotations.get(split)
    if path.is_file():
        return read_image_list(path, num_classes=known.num_classes)
    if annotations and (args.lists / annotations).is_file():
        return read_inat_json(args.lists / annotations, num_classes=known.num_classes)
    raise MissingFileError(
        f"no {path.name}{f' and no {annotations}' if annotations else ''} in {args.lists} (looked "
        f"in {args.lists.resolve()}). It comes from {known.source}; --splits leaves a split out."
    )


def print_some(title, lines):
    print(title)
    for line in lines[:SHOWN]:
        print(f"  {line}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more")


def locate(images, split, args, index):
    """Paths as they are in the image folder, or None if some are not there."""
    missing = missing_paths(images.paths, index)
    print(f"{split}: {len(images) - len(missing)} images found, {len(missing)} missing")
    if not missing:
        return images.paths
    change = find_rerooting(images.paths, index) if len(missing) == len(images) else None
    if change is None:
        print_some(f"missing in {args.images}:", missing)
        return None
    changed = [change.apply(path) for path in images.paths]
    missing = missing_paths(changed, index)
    print(f"{len(images) - len(missing)} are there {change.describe(images.paths[0])}")
    if missing:
        print_some(f"missing in {args.images}, with these paths:", missing)
        return None
    if not args.output:
        print("--output FOLDER writes a list with these paths")
        return None
    return changed


def labels_are_sound(images, split, known):
    for text in differences(images.labels, known, split):
        print(f"warning: {split} has {text}")
    empty = empty_classes(images.labels, known.num_classes) if split == "train" else []
    if empty:
        print_some(f"{split} has no image of {len(empty)} classes:", empty)
    return not empty


def check_split(args, known, split, index):
    """Report on a split and write its list; whether all is well."""
    images = read_split(args, known, split)
    sound = labels_are_sound(images, split, known)
    paths = locate(images, split, args, index)
    if paths is not None and args.decode:
        broken = broken_images(paths, args.images, workers=args.workers, title=split)
        if broken:
            print_some(f"{split}: {len(broken)} broken images:", [": ".join(b) for b in broken])
        sound = sound and not broken
    if paths is None or not sound:
        return False
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        write_image_list(args.output / known.files[split], paths, images.labels)
        print(args.output / known.files[split])
    return True


def main(argv=None) -> int:
    args = parse_args(argv)
    known = KNOWN_SETS[args.set]
    well = True
    try:
        index = FolderIndex(args.images)
        for split in check_args(args, known):
            try:
                well = check_split(args, known, split, index) and well
            except LtDetError as error:  # the other splits are checked all the same
                print(f"error: {error}", file=sys.stderr)
                well = False
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
