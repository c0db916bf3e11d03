"""`python tools/benchmark.py load-images`: images per second of the classification loaders.

Small images: files read one by one as with torchvision, the same through our mapper, and the
decoded cache a batch at a time. Large images: RandomResizedCrop and flip on the fully decoded
file as with torchvision, and our crop that decodes at a smaller scale where it can. All on one
core without loader processes, from generated JPEG files that the system holds in memory, to
(3, H, W) uint8 tensors; in turns, so that a slow moment of the machine hits all alike.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from benchmark_common import environment, positive
from PIL import Image
from torchvision import transforms as T

from lt_det.data.build import SeededDataset
from lt_det.data.datasets.image_list import ImageList
from lt_det.data.image_cache import CachedImageDataset, load_image_cache
from lt_det.data.image_mapper import ImageLabelMapper
from lt_det.data.image_records import ImageListRecords
from lt_det.data.samplers import SampleKey

SMALL = (32, 32)
# (width, height): the usual ones of ImageNet and of iNaturalist 2018, and of cameras.
LARGE = ((500, 375), (800, 600), (1600, 1200))
SMALL_IMAGES, BATCH = 2048, 128


@dataclass
class Case:
    """What is timed.

    Attributes:
        name: shown.
        call: loads `images` images.
        images: as above.
        baseline: name of the case it is compared with; "" = none.
        seconds: of each call.
    """

    name: str
    call: Callable[[], object]
    images: int
    baseline: str = ""
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Images per second, median."""
        return self.images / statistics.median(self.seconds)


def write_images(folder: Path, size: tuple[int, int], number: int) -> ImageListRecords:
    """JPEG files with 4.5 bits per pixel, about what those of ImageNet have."""
    rng = np.random.default_rng(0)
    width, height = size
    folder.mkdir()
    paths = [f"{k}.jpg" for k in range(number)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 18, (height, width, 1)).astype(np.float32)
        pixels = noisy.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / path, quality=90)
    return ImageListRecords(ImageList(paths, np.zeros(number), str(folder / "list.txt")), folder)


def torchvision_load(records: ImageListRecords, transform: Callable) -> None:
    """As an ImageFolder does it."""
    for record in records:
        with open(record["file_name"], "rb") as file:
            transform(Image.open(file).convert("RGB"))


def mapper_load(records: ImageListRecords, **kwargs) -> None:
    """Through the mapper, with the random state of each sample."""
    dataset = SeededDataset(records, ImageLabelMapper(is_train=True, **kwargs))
    for index in range(len(records)):
        dataset[SampleKey(index, 0, index)]


def cached_load(dataset: CachedImageDataset) -> None:
    """Batches from the cache."""
    keys = [SampleKey(index, 0, index) for index in range(len(dataset))]
    for start in range(0, len(keys), BATCH):
        dataset.__getitems__(keys[start : start + BATCH])


def small_cases(folder: Path) -> list[Case]:
    """32 x 32: padding, crop and flip."""
    records = write_images(folder / "small", SMALL, SMALL_IMAGES)
    transform = T.Compose([T.RandomCrop(32, 4), T.RandomHorizontalFlip(), T.PILToTensor()])
    cached = CachedImageDataset(load_image_cache(records, folder), records, is_train=True)
    base = "32 x 32, torchvision, file by file"
    return [
        Case(base, partial(torchvision_load, records.select(range(256)), transform), 256),
        Case(
            "32 x 32, mapper, file by file",
            partial(mapper_load, records.select(range(256)), augment="cifar"),
            256,
            base,
        ),
        Case(
            f"32 x 32, cache, batches of {BATCH}",
            partial(cached_load, cached),
            SMALL_IMAGES,
            base,
        ),
    ]


def large_cases(folder: Path, size: tuple[int, int], number: int = 24) -> list[Case]:
    """A random crop of 224 x 224 and flip."""
    shape = f"{size[0]} x {size[1]}"
    records = write_images(folder / shape, size, number)
    transform = T.Compose(
        [T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.PILToTensor()],
    )
    base = f"{shape}, torchvision"
    return [
        Case(base, partial(torchvision_load, records, transform), number),
        Case(f"{shape}, mapper", partial(mapper_load, records), number, base),
    ]


def measure(repeats: int = 9) -> list[Case]:
    """Time every case, in turns, after one call that is not timed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = small_cases(folder)
        for size in LARGE:
            cases += large_cases(folder, size)
        for turn in range(repeats + 1):
            for case in cases:
                start = time.perf_counter()
                case.call()
                if turn:
                    case.seconds.append(time.perf_counter() - start)
    return cases


def table(cases: list[Case]) -> str:
    """Markdown."""
    rates = {case.name: case.rate for case in cases}
    lines = ["| what | images/s | compared with | times faster |", "|---|---|---|---|"]
    for case in cases:
        ratio = f"{case.rate / rates[case.baseline]:.2f}" if case.baseline else "-"
        lines.append(f"| {case.name} | {case.rate:,.0f} | {case.baseline or '-'} | {ratio} |")
    return "\n".join(lines)


def head(record: dict) -> str:
    """How it was measured."""
    env = record["environment"]
    return (
        f"JPEG files, one process, {env['cpu']}, Python {env['python']}, torch {env['torch']}, "
        f"medians of {record['problem']['repeats']}:"
    )


def cases_of(record: dict) -> list[Case]:
    """The cases of a record, without what they call."""
    return [Case(call=lambda: None, **result) for result in record["results"]]


def run_load_images(args) -> None:
    """Measure, print the table, write the record."""
    cases = measure(args.repeats)
    fields = ("name", "images", "baseline", "seconds")
    record = {
        "problem": {"repeats": args.repeats},
        "environment": environment("cpu"),
        "results": [{name: getattr(case, name) for name in fields} for case in cases],
    }
    print(f"{head(record)}\n\n{table(cases)}")
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def add_parser(parts) -> None:
    """Add the subcommand to argparse's `parts`."""
    images = parts.add_parser("load-images", help="loaders of image classification")
    images.add_argument("--repeats", type=positive, default=9)
    images.add_argument("--output", type=Path, help="JSON file for all samples")
    images.set_defaults(run=run_load_images)
