"""``lt_synthetic``: a small generated long-tailed set for detection and instance segmentation.

It lets the whole pipeline run, and a gain on the tail show, on a laptop CPU and without a download.
A class is a *composition*: one of ten shapes (disc, star, heart, ...) with one of three surfaces
(striped, checked, dotted). Every shape and every surface also belongs to frequent classes, so a
rare class ("dotted heart") needs no feature that the frequent ones do not train; what it lacks is
only logit mass against its frequent neighbours ("striped heart", "dotted star"). Plain softmax
cross-entropy loses it there, a re-balanced loss does not.

Counts. With C classes, ranked from frequent to rare by a seed-dependent order that is *not* the
order of category ids, the class of rank j is annotated in exactly

    n_j = max(1, round(n_max * imbalance ** (-j / (C - 1)))),    n_max = round(head_share * images)

training images. The default (30 classes, 900 images, n_max = 540, imbalance 200) gives 540 ... 3
images a class (a ratio of 180 after rounding) and 10 frequent, 12 common and 8 rare classes by the
thresholds of LVIS (rare: 1-10 training images, common: 11-100, frequent: more than 100). All ten
shapes and all three surfaces are among the frequent ones.

Files, LVIS v1 schema: ``annotations/{train,val}.json``, ``{train,val}/000001.png``, ``spec.json``.

How it differs from LVIS:

* val is nearly class-balanced (every class is in the same number of images), so that the AP of a
  rare class rests on some 25 instances rather than one. ``frequency``, ``image_count`` and
  ``instance_count`` come from *train* in both files, as the groups of LVIS do.
* An image has ``file_name`` (``train/000001.png``) beside ``coco_url``; the host of the latter is
  reserved and never resolves, its last two components are the file name. ``flickr_url`` and
  ``date_captured`` are empty.
* ``synset``, ``synonyms`` and ``def`` are made up in form; they are not in WordNet.
* Objects lie wholly inside the image and a mask never has a hole. At least half of every object is
  visible; the annotation is the visible part.

Federated annotation, as in LVIS but milder: an image lists some classes verified absent
(``neg_category_ids``); in 5% of the images one class has an object that is drawn but not annotated
and is listed in ``not_exhaustive_category_ids``; in 5% there is one object of a class that is in no
list at all, which an LVIS evaluator ignores there. The latter are drawn by training frequency and
are not part of n_j.

Every image has its own PCG64 stream, seeded by (seed, split, index); only uniform doubles are drawn
from it, and outlines are rasterised in integers. So annotations and pixels do not depend on the
machine, unless the last digit of a sine happens to decide a rounding; the bytes of a PNG also
depend on the zlib inside Pillow.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lt_det.data.datasets.catalog import register_lvis_format
from lt_det.data.datasets.paths import datasets_root
from lt_det.data.datasets.synthetic_drawing import (
    SHAPES,
    SURFACES,
    SceneObject,
    draw_scene,
    integer,
    mask_box,
    mask_to_polygons,
)
from lt_det.errors import DataError

__all__ = ["SyntheticSpec", "ensure_generated", "generate", "register_synthetic"]

SPLITS = ("train", "val")

# Raised whenever the same spec no longer gives the same files: an old copy is then an error.
GENERATOR_VERSION = 1

_CLASSES_PER_VAL_IMAGE = 3.6  # about what the default train split has
_OBJECTS = (3, 6)  # objects an image, before the federated extras

_NUM_NEGATIVES = {"train": 8, "val": 16}
_NOT_EXHAUSTIVE_SHARE = 0.05
_UNLISTED_SHARE = 0.05

_STREAM = {"order": 0, "train": 1, "val": 2}
_PLAN_INDEX = 0  # images count from 1


# --------------------------------------------------------------------------------------------------
# Specification and counts
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SyntheticSpec:
    """What to generate; two equal specifications give the same pixels and annotations.

    Attributes:
        num_classes: a multiple of 3 from 9 to 30; the first ``num_classes / 3`` shapes are used.
        num_train_images: images of the train split.
        num_val_images: images of the val split.
        image_size: mean side in pixels; each side varies by an eighth around it.
        head_share: share of the training images in which the most frequent class is annotated.
        imbalance: ratio of the largest to the smallest training image count, before rounding.
        seed: seed of everything random.
    """

    num_classes: int = 30
    num_train_images: int = 900
    num_val_images: int = 180
    image_size: int = 128
    head_share: float = 0.6
    imbalance: float = 200.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        largest = len(SHAPES) * len(SURFACES)
        if self.num_classes % len(SURFACES) or not 9 <= self.num_classes <= largest:
            raise ValueError(
                f"num_classes must be a multiple of {len(SURFACES)} from 9 to {largest}, "
                f"got {self.num_classes}"
            )
        if min(self.num_train_images, self.num_val_images) < 1:
            raise ValueError(
                "num_train_images and num_val_images must be positive, "
                f"got {self.num_train_images} and {self.num_val_images}"
            )
        if self.image_size < 96:
            raise ValueError(f"image_size must be at least 96 pixels, got {self.image_size}")
        if not 0 < self.head_share <= 0.8:
            raise ValueError(f"head_share must be in (0, 0.8], got {self.head_share}")
        if self.imbalance < 1:
            raise ValueError(f"imbalance must be at least 1, got {self.imbalance}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


def class_name(class_index: int) -> str:
    """Name of a class, ``surface_shape``; its category id is ``class_index + 1``."""
    shape, surface = divmod(class_index, len(SURFACES))
    return f"{SURFACES[surface]}_{SHAPES[shape]}"


def class_order(spec: SyntheticSpec) -> list[int]:
    """Class indices from the most to the least frequent, (C,).

    Three rounds over all shapes, each in an order of its own; the surface of a shape moves on by
    one from round to round. So the first third of the ranks has every shape once and every surface.
    """
    rng = _generator(spec.seed, _STREAM["order"], 0)
    num_shapes = spec.num_classes // len(SURFACES)
    first_surface = _permutation(rng, num_shapes)
    order = []
    for round_ in range(len(SURFACES)):
        for shape in _permutation(rng, num_shapes):
            surface = (first_surface[shape] + round_) % len(SURFACES)
            order.append(int(shape * len(SURFACES) + surface))
    return order


def train_image_counts(spec: SyntheticSpec) -> np.ndarray:
    """Training images in which a class is annotated, (C,), by class index."""
    largest = round(spec.head_share * spec.num_train_images)
    counts = np.zeros(spec.num_classes, dtype=np.int64)
    for rank, class_index in enumerate(class_order(spec)):
        share = spec.imbalance ** (-rank / (spec.num_classes - 1))
        counts[class_index] = max(1, round(largest * share))
    return counts


def lvis_group(image_count: int) -> str:
    """LVIS group of a class by its number of training images: ``r``, ``c`` or ``f``."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


# --------------------------------------------------------------------------------------------------
# Random numbers
# --------------------------------------------------------------------------------------------------


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, index))))


def image_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """Decides everything random in one image; indices count from 1."""
    return _generator(seed, _STREAM[split], index)


def _permutation(rng: np.random.Generator, n: int) -> np.ndarray:
    # Only rng.random() is used here too; see synthetic_drawing.
    return np.argsort(rng.random(n), kind="stable")


# --------------------------------------------------------------------------------------------------
# Which image holds what
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Content of one image: (class index, annotated) for each object, and the federated lists."""

    objects: tuple[tuple[int, bool], ...]
    negatives: tuple[int, ...]
    not_exhaustive: tuple[int, ...]


def _plan_split(spec: SyntheticSpec, split: str) -> list[_Plan]:
    rng = _generator(spec.seed, _STREAM[split], _PLAN_INDEX)
    train_counts = train_image_counts(spec)
    if split == "train":
        counts, num_images = train_counts, spec.num_train_images
    else:
        num_images = spec.num_val_images
        per_class = max(1, round(num_images * _CLASSES_PER_VAL_IMAGE / spec.num_classes))
        counts = np.full(spec.num_classes, min(per_class, num_images))
    by_image = _spread(counts, num_images, rng)
    return [_plan_image(classes, train_counts, split, rng) for classes in by_image]


def _spread(counts: np.ndarray, num_images: int, rng: np.random.Generator) -> list[list[int]]:
    """Put class c into exactly ``counts[c]`` images, with a similar number of classes in each."""
    room = counts.sum() / num_images + 3.0 * (rng.random(num_images) - 0.5)
    by_image: list[list[int]] = [[] for _ in range(num_images)]
    for class_index in np.argsort(-counts, kind="stable"):
        emptiest = np.argsort(-(room + rng.random(num_images)), kind="stable")
        for image in emptiest[: counts[class_index]]:
            by_image[image].append(int(class_index))
            room[image] -= 1
    return by_image


def _plan_image(
    classes: list[int], train_counts: np.ndarray, split: str, rng: np.random.Generator
) -> _Plan:
    objects = [(c, True) for c in classes]
    missing = integer(rng, *_OBJECTS) - len(objects)
    if classes:
        repeats = [classes[integer(rng, 0, len(classes) - 1)] for _ in range(missing)]
        objects += [(c, True) for c in repeats]

    not_exhaustive = []
    if classes and rng.random() < _NOT_EXHAUSTIVE_SHARE:
        not_exhaustive = [classes[integer(rng, 0, len(classes) - 1)]]
        objects += [(c, False) for c in not_exhaustive]

    absent = np.ones(len(train_counts), dtype=bool)
    absent[classes] = False
    if rng.random() < _UNLISTED_SHARE and absent.any():
        cumulative = np.cumsum(train_counts * absent)
        unlisted = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        objects.append((unlisted, False))
        absent[unlisted] = False

    candidates = np.flatnonzero(absent)
    negatives = candidates[_permutation(rng, len(candidates))][: _NUM_NEGATIVES[split]]
    objects = [objects[i] for i in _permutation(rng, len(objects))]
    return _Plan(tuple(objects), tuple(sorted(negatives.tolist())), tuple(not_exhaustive))


# --------------------------------------------------------------------------------------------------
# Images and LVIS records
# --------------------------------------------------------------------------------------------------


def render_scene(
    spec: SyntheticSpec, split: str, index: int, plan: _Plan
) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw image `index`; with the seed and the split it decides everything random.

    Returns:
        Pixels (H, W, 3) uint8 and the objects in drawing order.
    """
    return draw_scene(plan.objects, spec.image_size, image_generator(spec.seed, split, index))


def _image_record(split: str, index: int, shape: tuple[int, int], plan: _Plan) -> dict:
    file_name = f"{split}/{index:06d}.png"
    return {
        "id": index,
        "width": shape[1],
        "height": shape[0],
        "file_name": file_name,
        "coco_url": f"http://images.invalid/{file_name}",
        "flickr_url": "",
        "date_captured": "",
        "license": 1,
        "neg_category_ids": [c + 1 for c in plan.negatives],
        "not_exhaustive_category_ids": [c + 1 for c in plan.not_exhaustive],
    }


def _annotation_record(annotation_id: int, image_id: int, item: SceneObject) -> dict:
    rows, columns = mask_box(item.mask)
    box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": item.class_index + 1,
        "bbox": [float(side) for side in box],
        "area": float(item.mask.sum()),
        "segmentation": mask_to_polygons(item.mask),
    }


def _category_records(train_annotations: list[dict], num_classes: int) -> list[dict]:
    instances = np.zeros(num_classes, dtype=np.int64)
    images: list[set[int]] = [set() for _ in range(num_classes)]
    for annotation in train_annotations:
        instances[annotation["category_id"] - 1] += 1
        images[annotation["category_id"] - 1].add(annotation["image_id"])
    return [
        {
            "id": c + 1,
            "name": class_name(c),
            "synset": f"{class_name(c)}.n.01",
            "synonyms": [class_name(c)],
            "def": f"a {class_name(c).replace('_', ' ')}, drawn by lt_det",
            "frequency": lvis_group(len(images[c])),
            "image_count": len(images[c]),
            "instance_count": int(instances[c]),
        }
        for c in range(num_classes)
    ]


def _write_split(folder: Path, spec: SyntheticSpec, split: str) -> tuple[list[dict], list[dict]]:
    """Write the images of a split and return its image and annotation records."""
    (folder / split).mkdir()
    images, annotations = [], []
    for index, plan in enumerate(_plan_split(spec, split), start=1):
        pixels, objects = render_scene(spec, split, index, plan)
        images.append(_image_record(split, index, pixels.shape[:2], plan))
        Image.fromarray(pixels).save(folder / images[-1]["file_name"])
        for item in objects:
            if item.annotated:
                annotations.append(_annotation_record(len(annotations) + 1, index, item))
    return images, annotations


def _write_json(path: Path, content: object, **options) -> None:
    path.write_text(json.dumps(content, **options) + "\n", encoding="utf-8")


def _write_all(folder: Path, spec: SyntheticSpec) -> None:
    (folder / "annotations").mkdir(parents=True)
    records = {split: _write_split(folder, spec, split) for split in SPLITS}
    categories = _category_records(records["train"][1], spec.num_classes)
    for split, (image_records, annotation_records) in records.items():
        content = {
            "info": {"description": "lt_det synthetic long-tailed set", "version": "v1"},
            "licenses": [{"id": 1, "name": "generated; no rights reserved", "url": ""}],
            "categories": categories,
            "images": image_records,
            "annotations": annotation_records,
        }
        path = folder / "annotations" / f"{split}.json"
        _write_json(path, content, separators=(",", ":"))
    write_spec(folder, spec)


# --------------------------------------------------------------------------------------------------
# Public functions
# --------------------------------------------------------------------------------------------------


def write_spec(folder: Path, spec: SyntheticSpec) -> None:
    """Write the file that tells one generated set from another."""
    _write_json(folder / "spec.json", _stored_spec(spec), indent=2)


def _stored_spec(spec: SyntheticSpec) -> dict:
    return {"generator_version": GENERATOR_VERSION, **asdict(spec)}


def generate(
    root: str | Path,
    spec: SyntheticSpec = SyntheticSpec(),
    write: Callable[[Path, SyntheticSpec], None] | None = None,
) -> None:
    """Write the set to ``root``: annotations, images and the specification.

    Everything is written to a sibling folder first and renamed at the end, so ``root`` either does
    not exist or is complete. A process killed on the way leaves a folder ``.<name>.tmp-*``, which
    is never read and can be deleted.

    Args:
        root: folder to create; it must not exist or be empty.
        spec: what to generate.
        write: fills a folder with the set of a specification; None: with a set of this file.

    Raises:
        FileExistsError: ``root`` is not empty, at the start or, if another process was faster, at
            the end.
    """
    root = Path(root)
    _refuse_existing(root)
    work = root.parent / f".{root.name}.tmp-{uuid.uuid4().hex}"
    try:
        (write or _write_all)(work, spec)
        try:
            os.rename(work, root)
        except OSError:
            _refuse_existing(root)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _refuse_existing(root: Path) -> None:
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise FileExistsError(f"'{root}' already exists; delete it to generate the set again")


def ensure_generated(
    root: str | Path,
    spec: SyntheticSpec = SyntheticSpec(),
    write: Callable[[Path, SyntheticSpec], None] | None = None,
) -> Path:
    """Generate the set at ``root`` unless it is there; safe when several processes call it at once.

    Args:
        root: folder of the set.
        spec: what must be there.
        write: see :func:`generate`.

    Returns:
        ``root``.

    Raises:
        DataError: ``root`` holds a set of another specification, or something else.
    """
    root = Path(root)
    if not (root / "spec.json").exists():
        try:
            generate(root, spec, write)
            return root
        except FileExistsError:
            pass  # another process was faster, or it is no set of ours: the check below tells
    _check_stored(root, spec)
    return root


def _check_stored(root: Path, spec: SyntheticSpec) -> None:
    path = root / "spec.json"
    if not path.is_file():
        raise DataError(
            f"'{root}' exists but has no spec.json, so it is not a generated set; "
            "move it away or choose another folder"
        )
    stored, wanted = json.loads(path.read_text(encoding="utf-8")), _stored_spec(spec)
    different = [
        f"{key} is {stored.get(key)!r} there, {wanted.get(key)!r} is wanted"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key) != wanted.get(key)
    ]
    if different:
        raise DataError(
            f"'{path}' describes another set: {'; '.join(different)}. "
            f"Delete '{root}' to generate it again, or choose another folder"
        )


def register_synthetic(
    *, root: str | Path | None = None, spec: SyntheticSpec = SyntheticSpec()
) -> None:
    """Register ``lt_synthetic_train`` and ``lt_synthetic_val`` with Detectron2.

    Nothing is read or generated here; that happens when one of them is first loaded.

    Args:
        root: folder of the set; ``$DETECTRON2_DATASETS/lt_synthetic`` by default, and
            ``datasets/lt_synthetic`` where the variable is not set.
        spec: what to generate.
    """
    if root is None:
        root = Path(datasets_root()) / "lt_synthetic"
    root = Path(root)
    for split in SPLITS:
        register_lvis_format(
            f"lt_synthetic_{split}",
            root / "annotations" / f"{split}.json",
            root,
            file_format="lvis",
            prepare=lambda: ensure_generated(root, spec),
        )
