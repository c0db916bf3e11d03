"""ADE20K scene parsing (``ADEChallengeData2016``): from the archive to what training reads.

Detectron2's ``ade20k_sem_seg_train`` and ``ade20k_sem_seg_val`` read ``images/<split>/*.jpg`` and
``annotations_detectron2/<split>/*.png``. The archive has ``annotations/<split>/*.png``, where 0 is
everything else and 1..150 are the classes; there 0..149 are the classes and 255 is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lt_det.data.datasets.image_size import upright_size
from lt_det.data.datasets.label_png import read_label_png
from lt_det.data.datasets.parallel import map_files
from lt_det.data.datasets.paths import datasets_root
from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.results import atomic_file

NUM_CLASSES = 150
IGNORED = 255
# Images of the release.
EXPECTED = {"training": 20210, "validation": 2000}
IMAGES, ANNOTATIONS, PREPARED = "images", "annotations", "annotations_detectron2"
SOURCE = "http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)"


@dataclass(frozen=True)
class Pair:
    """An image, its annotation, and the file that training reads."""

    image: Path
    annotation: Path
    output: Path


@dataclass(frozen=True)
class Fault:
    """A file that cannot be used, and why."""

    file: Path
    reason: str


@dataclass(frozen=True)
class SplitReport:
    """What became of a split.

    Attributes:
        split: "training" or "validation".
        images: images there are.
        converted: files written.
        kept: files that were there and up to date.
        faults: what is wrong, by file name.
    """

    split: str
    images: int
    converted: int
    kept: int
    faults: list[Fault]


def default_root() -> Path:
    """``$DETECTRON2_DATASETS/ADEChallengeData2016``, with Detectron2's default ``datasets``."""
    return Path(datasets_root()) / "ADEChallengeData2016"


def to_training_labels(values: np.ndarray) -> np.ndarray:
    """Values of the archive as training reads them.

    Args:
        values: (H, W) uint8, 0 = everything else, 1..150 = classes.

    Returns:
        (H, W) uint8: 0..149 = classes, 255 = ignored.

    Raises:
        DataError: a value above 150.
    """
    if values.size and values.max() > NUM_CLASSES:
        raise DataError(f"has the value {values.max()}; accepted: 0..{NUM_CLASSES}")
    return values - np.uint8(1)  # 0 - 1 is 255


def read_annotation(path: Path) -> np.ndarray:
    """(H, W) uint8 values of an annotation of the archive; of a palette image, the indices.

    Raises:
        DataError: see `read_label_png`.
    """
    return np.asarray(read_label_png(path))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as Detectron2 reads it, after decoding all of it.

    Raises:
        DataError: not a readable image.
    """
    return upright_size(_decode(path))


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # decoders raise almost anything on damaged files
        raise DataError(f"cannot be read: {error}") from error
    return image


def convert(pair: Pair) -> bool | Fault:
    """Check a pair and write its output, unless an up-to-date one is there.

    An output is up to date if it is newer than image and annotation and holds what the
    annotation says; the image is not decoded again then.

    Returns:
        True: written. False: kept. A Fault: nothing is written.
    """
    file = pair.annotation
    try:
        labels = to_training_labels(read_annotation(file))
        if _is_current(pair, labels):
            return False
        file = pair.image
        size = image_size(file)
        if size != labels.shape[::-1]:
            raise DataError(
                f"is {size[0]} x {size[1]} pixels, its annotation "
                f"{labels.shape[1]} x {labels.shape[0]}"
            )
    except DataError as error:
        return Fault(file, str(error))
    _write(labels, pair.output)
    return True


def _is_current(pair: Pair, labels: np.ndarray) -> bool:
    """Whether the output is newer than its sources and equal to `labels`."""
    if not pair.output.is_file():
        return False
    newest = max(pair.image.stat().st_mtime_ns, pair.annotation.stat().st_mtime_ns)
    if pair.output.stat().st_mtime_ns < newest:
        return False
    try:
        return np.array_equal(np.asarray(_decode(pair.output)), labels)
    except DataError:
        return False


def _write(labels: np.ndarray, path: Path) -> None:
    # The name of an unfinished file does not end in .png, which training looks for.
    with atomic_file(path, binary=True) as file:
        Image.fromarray(labels).save(file, format="PNG")


def find_pairs(root: Path, split: str) -> tuple[list[Pair], list[Fault]]:
    """The pairs of a split by name, and the files without a partner.

    An output whose image is gone is a fault too: Detectron2 pairs the sorted lists of files.

    Raises:
        MissingFileError: no folder of images or of annotations, or an empty one.
    """
    images = _stems(root / IMAGES / split, ".jpg")
    annotations = _stems(root / ANNOTATIONS / split, ".png")
    prepared = root / PREPARED / split
    pairs = [
        Pair(images[stem], annotations[stem], prepared / f"{stem}.png")
        for stem in sorted(images.keys() & annotations.keys())
    ]
    faults = [
        Fault(images[stem], f"has no annotation {ANNOTATIONS}/{split}/{stem}.png")
        for stem in sorted(images.keys() - annotations.keys())
    ]
    faults += [
        Fault(annotations[stem], f"has no image {IMAGES}/{split}/{stem}.jpg")
        for stem in sorted(annotations.keys() - images.keys())
    ]
    faults += [
        Fault(file, f"is left of an image {IMAGES}/{split}/{file.stem}.jpg that is gone; remove it")
        for file in sorted(prepared.glob("*.png"))
        if file.stem not in images
    ]
    return pairs, faults


def _stems(folder: Path, suffix: str) -> dict[str, Path]:
    files = {p.stem: p for p in folder.glob(f"*{suffix}")} if folder.is_dir() else {}
    if not files:
        raise MissingFileError(
            f"no *{suffix} files in {folder} (looked for {folder.resolve()}). The option --root "
            "names another ADEChallengeData2016 folder; the environment variable "
            "DETECTRON2_DATASETS moves the folder it is in "
            f"(now {datasets_root()!r}). "
            f"The archive comes from {SOURCE}."
        )
    return files


def prepare_split(root: Path, split: str, *, workers: int = 1) -> SplitReport:
    """Convert a split; everything sound is written, whatever is wrong elsewhere.

    Args:
        root: the ``ADEChallengeData2016`` folder.
        split: "training" or "validation".
        workers: processes.

    Raises:
        MissingFileError: see `find_pairs`.
    """
    pairs, faults = find_pairs(root, split)
    images = len(pairs) + sum(f.file.suffix == ".jpg" for f in faults)
    (root / PREPARED / split).mkdir(parents=True, exist_ok=True)
    results = map_files(convert, pairs, workers=workers, title=split)
    faults += [r for r in results if isinstance(r, Fault)]
    return SplitReport(
        split=split,
        images=images,
        converted=sum(r is True for r in results),
        kept=sum(r is False for r in results),
        faults=sorted(faults, key=lambda f: f.file),
    )
