"""Small sets of semantic segmentation for tests."""

import numpy as np
from PIL import Image

from lt_det.data.datasets.sem_seg_sets import SemSegSet, register_sem_seg_set

# Values in the convention of ADE20K as it is downloaded: 0 is unlabelled, k is class k - 1.
MAPS = {
    "a": [[1, 1, 2, 0], [1, 1, 2, 0]],
    "b": [[3, 3, 3, 3], [255, 1, 1, 1]],
    "sub/c": [[2, 2, 2, 2], [2, 2, 2, 2]],
    "sub/d": [[0, 0, 0, 0], [255, 255, 0, 0]],
}
CLASSES = ("wall", "door", "lamp")


def write_sem_seg(folder, maps=MAPS, classes=CLASSES, suffix=".png", scale=4):
    """Images (pixel value = 10 x label value), label maps, a class list; the folder."""
    for name, values in maps.items():
        values = np.asarray(values, dtype=np.uint8).repeat(scale, 0).repeat(scale, 1)
        for place, pixels in (("labels", values), ("images", (values % 25 * 10)[..., None])):
            path = folder / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if place == "images":
                Image.fromarray(pixels.repeat(3, 2)).save(f"{path}{suffix}")
            else:
                Image.fromarray(pixels).save(f"{path}.png")
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    return folder


def register_sem_seg(name, folder, *, zero_is_unlabelled=True):
    """Register what `write_sem_seg` wrote."""
    paths = (f"{folder}/images", f"{folder}/labels", f"{folder}/classes.txt")
    register_sem_seg_set(SemSegSet(name, *paths, zero_is_unlabelled))
    return name
