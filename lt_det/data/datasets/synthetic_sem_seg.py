"""``lt_synthetic_sem_seg``: a small generated long-tailed set for semantic segmentation.

Three classes of background ("ground", "sky", "water") and the object classes of ``lt_synthetic``
(a shape with a surface, see :mod:`.synthetic`) on it. The ground is in every image, sky in 60 %,
water in 15 %; the training images that hold an object class fall as in ``lt_synthetic``, from 240
to 4 by default, while every object class is in a quarter of the val images.

Files: ``images/{train,val}/00001.png``, ``labels/{train,val}/00001.png``, ``classes.txt``,
``spec.json``. The label maps follow ADE20K as it is downloaded: 0 is unlabelled, k is class k - 1.
Unlabelled are the pixels on the border of an object, which are partly background, and in some
images an object that no annotator saw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lt_det.data.datasets.image_sets import ROOT
from lt_det.data.datasets.paths import datasets_root
from lt_det.data.datasets.sem_seg_sets import SemSegSet, register_sem_seg_set
from lt_det.data.datasets.synthetic import (
    SPLITS,
    SyntheticSpec,
    class_name,
    ensure_generated,
    image_generator,
    train_image_counts,
    write_spec,
)
from lt_det.data.datasets.synthetic_drawing import SceneObject, draw_scene, integer, uniform

FOLDER = "lt_synthetic_sem_seg"
# `num_classes` are those of objects.
SPEC = SyntheticSpec(
    num_classes=12, num_train_images=400, num_val_images=80, image_size=112, imbalance=60.0
)

BACKGROUNDS = ("ground", "sky", "water")
UNLABELLED = 0
_SKY_SHARE, _WATER_SHARE = 0.6, 0.15  # of the images
_VAL_SHARE = 0.25  # of the val images hold an object class
_UNSEEN_SHARE = 0.1  # of the images have an object that is not labelled
_OBJECTS = (3, 6)  # in an image that holds any; a class may come several times
_FULL = 16  # coverage of a pixel inside an object


def class_names(spec: SyntheticSpec = SPEC) -> list[str]:
    """(C,) names; the first three are backgrounds."""
    return [*BACKGROUNDS, *(class_name(k) for k in range(spec.num_classes))]


def object_image_counts(spec: SyntheticSpec, split: str) -> np.ndarray:
    """Images that hold each object class, (C - 3,)."""
    if split == "train":
        return train_image_counts(spec)
    return np.full(spec.num_classes, max(1, round(_VAL_SHARE * spec.num_val_images)))


def plan_split(spec: SyntheticSpec, split: str) -> list[list[int]]:
    """Object classes of each image; not too many, so that they have room."""
    rng = image_generator(spec.seed, split, 0)  # images count from 1
    num_images = {"train": spec.num_train_images, "val": spec.num_val_images}[split]
    counts = object_image_counts(spec, split)
    images: list[list[int]] = [[] for _ in range(num_images)]
    for k in np.argsort(-counts, kind="stable").tolist():
        order = np.argsort(rng.random(num_images), kind="stable").tolist()
        free = [i for i in order if len(images[i]) < _OBJECTS[1]]
        for i in free[: counts[k]]:
            images[i].append(k)
    return images


def draw_image(
    spec: SyntheticSpec, split: str, index: int, objects: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """One image with its label map.

    Returns:
        (H, W, 3) uint8 and (H, W) uint8: 0 = unlabelled, k = class k - 1.
    """
    rng = image_generator(spec.seed, split, index)
    again = integer(rng, *_OBJECTS) - len(objects) if objects else 0
    repeated = [objects[integer(rng, 0, len(objects) - 1)] for _ in range(again)]
    entries = [(k, True) for k in [*objects, *repeated]]
    if rng.random() < _UNSEEN_SHARE:
        entries.insert(0, (integer(rng, 0, spec.num_classes - 1), False))
    pixels, drawn = draw_scene(entries, spec.image_size, rng)
    background, textures = _background(*pixels.shape[:2], rng)
    pixels = _behind(pixels, drawn, background, textures)
    return pixels, _label_map(background, drawn)


def _background(
    height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """(H, W) class of the background and, for each class but the ground, (H, W, 3) colours."""
    x, y = np.arange(width) / width, np.arange(height)[:, None] / height
    classes = np.zeros((height, width), dtype=np.uint8)
    textures = {}
    if rng.random() < _SKY_SHARE:
        classes[y < _wave(x, 0.25, 0.5, rng)] = BACKGROUNDS.index("sky")
        tone = 160 + 70 * y + 12 * rng.random((height, width))
        textures[1] = tone[..., None] * (uniform(rng, 0.6, 0.8), uniform(rng, 0.8, 0.95), 1.0)
    if rng.random() < _WATER_SHARE:
        classes[y > _wave(x, 0.65, 0.85, rng)] = BACKGROUNDS.index("water")
        ripples = np.sin(2 * math.pi * (y * uniform(rng, 14, 20) + 0.3 * np.sin(9 * x)))
        tone = 110 + 30 * ripples + 20 * rng.random((height, width))
        textures[2] = tone[..., None] * (uniform(rng, 0.1, 0.4), uniform(rng, 0.7, 0.9), 1.0)
    return classes, textures


def _wave(x: np.ndarray, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """(W,) heights of a border around a height from low to high."""
    phase, periods = 2 * math.pi * rng.random(), uniform(rng, 1, 3)
    return uniform(rng, low, high) + 0.04 * np.sin(2 * math.pi * periods * x + phase)


def _behind(
    pixels: np.ndarray,
    objects: Sequence[SceneObject],
    background: np.ndarray,
    textures: dict[int, np.ndarray],
) -> np.ndarray:
    """The scene with the colours of its background where no object covers it."""
    covered = np.zeros(background.shape)
    for item in objects:
        covered = np.maximum(covered, item.coverage / _FULL)
    result = pixels.astype(np.float64)
    for k, texture in textures.items():
        open_ = ((background == k) * (1 - covered))[..., None]
        result += open_ * (texture - result)
    return np.rint(np.clip(result, 0, 255)).astype(np.uint8)


def _label_map(background: np.ndarray, objects: Sequence[SceneObject]) -> np.ndarray:
    """(H, W) uint8 values of the file; later objects lie in front."""
    labels = background + np.uint8(1)
    for item in objects:
        labels[item.coverage > 0] = UNLABELLED
        if item.annotated:
            labels[item.coverage == _FULL] = 1 + len(BACKGROUNDS) + item.class_index
    return labels


def _write(folder: Path, spec: SyntheticSpec) -> None:
    for split in SPLITS:
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index, objects in enumerate(plan_split(spec, split), start=1):
            pixels, values = draw_image(spec, split, index, objects)
            Image.fromarray(pixels).save(images / f"{index:05d}.png")
            Image.fromarray(values).save(labels / f"{index:05d}.png")
    (folder / "classes.txt").write_text("\n".join(class_names(spec)) + "\n")
    write_spec(folder, spec)


def generate_sem_seg(root: str | Path, spec: SyntheticSpec = SPEC) -> Path:
    """Generate the set at `root` unless it is there; see `synthetic.ensure_generated`."""
    return ensure_generated(root, spec, _write)


def _prepare() -> None:
    generate_sem_seg(Path(datasets_root()) / FOLDER)


def register_synthetic_sem_seg() -> None:
    """Register ``lt_synthetic_sem_seg_train`` and ``_val``; generated when first used."""
    folder = f"{ROOT}/{FOLDER}"
    for split in SPLITS:
        register_sem_seg_set(
            SemSegSet(
                f"{FOLDER}_{split}",
                f"{folder}/images/{split}",
                f"{folder}/labels/{split}",
                f"{folder}/classes.txt",
                zero_is_unlabelled=True,
            ),
            prepare=_prepare,
        )
