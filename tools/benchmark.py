#!/usr/bin/env python
"""Measure speed and memory of lt_det's parts.

    python tools/benchmark.py losses
    python tools/benchmark.py losses --segmentation --threads 2 --output losses_seg.json
    python tools/benchmark.py load-lvis --output load_lvis.json
    python tools/benchmark.py samplers --output samplers.json
    python tools/benchmark.py load-images --output load_images.json
    python tools/benchmark.py sem-seg-eval --output sem_seg_eval.json
    python tools/benchmark.py lvis-eval --images 1000 5000 --output lvis_eval.json
    python tools/benchmark.py mask-rle --output mask_rle.json

Each part is a file benchmark_*.py, which says what it measures. Run it on a machine that does
nothing else, or with one thread.
"""

import argparse
import sys

import benchmark_images
import benchmark_loading
import benchmark_losses
import benchmark_lvis
import benchmark_masks
import benchmark_samplers
import benchmark_sem_seg

from lt_det.errors import LtDetError

PARTS = (
    benchmark_losses,
    benchmark_loading,
    benchmark_samplers,
    benchmark_images,
    benchmark_sem_seg,
    benchmark_lvis,
    benchmark_masks,
)


def parser() -> argparse.ArgumentParser:
    """One subparser per part; its `run` default is what it does."""
    root = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = root.add_subparsers(required=True)
    for part in PARTS:
        part.add_parser(parts)
    return root


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (LtDetError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
