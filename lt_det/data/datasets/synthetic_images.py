"""``lt_synthetic_images``: a small generated long-tailed set for image classification.

The classes of ``lt_synthetic`` (a shape with a surface, see :mod:`.synthetic`), one object an image
of 32 x 32 pixels, training images by the profile of CIFAR-LT, test images balanced. Files:
``train.txt``, ``val.txt`` ("path label" per line), ``classes.txt``, ``{train,val}/00001.png``,
``spec.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lt_det.data.datasets.image_list import write_image_list
from lt_det.data.datasets.image_sets import ROOT, ImageSet, register_image_set
from lt_det.data.datasets.long_tail import profile
from lt_det.data.datasets.paths import datasets_root
from lt_det.data.datasets.synthetic import (
    SPLITS,
    class_name,
    class_order,
    ensure_generated,
    image_generator,
    write_spec,
)
from lt_det.data.datasets.synthetic_drawing import draw_scene, mask_box

FOLDER = "lt_synthetic_images"
# Side of the scene that the object is cut out of: objects are about 30 pixels wide in it.
_SCENE_SIZE = 96
# Pixels left around the object.
_MARGIN = 3


@dataclass(frozen=True)
class ImagesSpec:
    """What to generate; two equal specifications give the same images.

    Attributes:
        num_classes: a multiple of 3 from 9 to 30.
        largest: training images of the most frequent class.
        imbalance: of the training images, see `long_tail.profile`.
        val_per_class: test images of each class.
        size: side in pixels.
        seed: of everything random.
    """

    num_classes: int = 30
    largest: int = 300
    imbalance: float = 100.0
    val_per_class: int = 20
    size: int = 32
    seed: int = 0


def image_counts(spec: ImagesSpec, split: str) -> np.ndarray:
    """(C,) images of each class."""
    if split == "val":
        return np.full(spec.num_classes, spec.val_per_class)
    counts = np.zeros(spec.num_classes, dtype=np.int64)
    counts[class_order(spec)] = profile(spec.largest, spec.num_classes, spec.imbalance)
    return counts


def draw_image(spec: ImagesSpec, split: str, index: int, label: int) -> np.ndarray:
    """(size, size, 3) uint8: one object of class `label`."""
    rng = image_generator(spec.seed, split, index)
    pixels, objects = draw_scene([(label, True)], _SCENE_SIZE, rng)
    rows, columns = mask_box(objects[0].mask)
    side = max(rows.stop - rows.start, columns.stop - columns.start) + 2 * _MARGIN
    top = (rows.start + rows.stop - side) // 2
    left = (columns.start + columns.stop - side) // 2
    top = min(max(top, 0), max(pixels.shape[0] - side, 0))
    left = min(max(left, 0), max(pixels.shape[1] - side, 0))
    crop = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(crop.resize((spec.size, spec.size), Image.Resampling.BILINEAR))


def _write(folder: Path, spec: ImagesSpec) -> None:
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        labels = np.repeat(np.arange(spec.num_classes), image_counts(spec, split))
        names = [f"{split}/{k:05d}.png" for k in range(1, len(labels) + 1)]
        for k, (name, label) in enumerate(zip(names, labels.tolist(), strict=True), start=1):
            Image.fromarray(draw_image(spec, split, k, label)).save(folder / name)
        write_image_list(folder / f"{split}.txt", names, labels)
    classes = [class_name(k) for k in range(spec.num_classes)]
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    write_spec(folder, spec)


def generate_images(root: str | Path, spec: ImagesSpec = ImagesSpec()) -> Path:
    """Generate the set at `root` unless it is there; see `synthetic.ensure_generated`."""
    return ensure_generated(root, spec, _write)


def _prepare() -> None:
    generate_images(Path(datasets_root()) / FOLDER)


def register_synthetic_images() -> None:
    """Register ``lt_synthetic_images_train`` and ``_val``; generated when first used."""
    folder = f"{ROOT}/{FOLDER}"
    for split in SPLITS:
        register_image_set(
            ImageSet(f"{FOLDER}_{split}", f"{folder}/{split}.txt", folder, f"{folder}/classes.txt"),
            prepare=_prepare,
        )
