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

import colorsys
import json
import math
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lt_det.errors import DataError

__all__ = ["SyntheticSpec", "ensure_generated", "generate", "register_synthetic"]

SHAPES = ("disc", "square", "triangle", "star", "cross")
SHAPES += ("ring", "heart", "crescent", "arrow", "hourglass")
SURFACES = ("striped", "checked", "dotted")
SPLITS = ("train", "val")

# Raised whenever the same spec no longer gives the same files: an old copy is then an error.
GENERATOR_VERSION = 1

_CLASSES_PER_VAL_IMAGE = 3.6  # about what the default train split has
_OBJECTS = (3, 6)  # objects an image, before the federated extras
_OBJECT_SIZE = (20.0, 56.0)  # pixels at image_size 128, before the aspect jitter
_ASPECT = 1.25
_SIDE_JITTER = 0.125  # 112 ... 144 pixels at image_size 128

_MIN_VISIBLE = 0.5  # of an object's own pixels
_MIN_PART = 12  # pixels; smaller crumbs of a mask do not survive a round trip through a polygon
_PLACEMENT_TRIES = 40
_SCENE_TRIES = 50

_NUM_NEGATIVES = {"train": 8, "val": 16}
_NOT_EXHAUSTIVE_SHARE = 0.05
_UNLISTED_SHARE = 0.05

_SUBSAMPLES = 4  # a side; coverage has 16 levels
_GRID = 64  # outline vertices lie on 1/64 pixel
_POLYGON_TOLERANCE = 0.4  # pixels; from 0.45 on, right angles are lost and IoU falls to 0.95

_ORDER_STREAM, _TRAIN_STREAM, _VAL_STREAM = 0, 1, 2
_STREAM = {"train": _TRAIN_STREAM, "val": _VAL_STREAM}
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
    rng = _generator(spec.seed, _ORDER_STREAM, 0)
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


def _permutation(rng: np.random.Generator, n: int) -> np.ndarray:
    # Only rng.random() is used in this file: NumPy may change the streams of its other methods.
    return np.argsort(rng.random(n), kind="stable")


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer from low to high, both included."""
    return low + int((high - low + 1) * rng.random())


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
    missing = _integer(rng, *_OBJECTS) - len(objects)
    if classes:
        repeats = [classes[_integer(rng, 0, len(classes) - 1)] for _ in range(missing)]
        objects += [(c, True) for c in repeats]

    not_exhaustive = []
    if classes and rng.random() < _NOT_EXHAUSTIVE_SHARE:
        not_exhaustive = [classes[_integer(rng, 0, len(classes) - 1)]]
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
# Shapes: closed outlines (V, 2) inside the box from -0.5 to 0.5, y downwards
# --------------------------------------------------------------------------------------------------


def _polar(radius: np.ndarray | float, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _circle(radius: float, first: float, last: float, num: int = 40) -> np.ndarray:
    return _polar(radius, np.linspace(first, last, num))


def _mirrored(right: list[tuple[float, float]], *, skip: int = 0) -> np.ndarray:
    """Close the right half of an outline by its mirror image; ``skip`` points lie on the axis."""
    return np.array(right + [(-x, y) for x, y in right[skip:][::-1]])


def _star() -> np.ndarray:
    corner = np.arange(10)
    return _polar(np.where(corner % 2, 0.24, 0.54), corner * math.pi / 5)


def _cross() -> np.ndarray:
    a, b = 0.17, 0.5  # half the width of an arm, half its length
    corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    return np.array(corners + [(-x, -y) for x, y in corners])


def _ring() -> np.ndarray:
    gap = math.radians(25)  # to each side; a closed ring would be a mask with a hole
    outer = _circle(0.5, gap, 2 * math.pi - gap)
    return np.concatenate([outer, _circle(0.24, 2 * math.pi - gap, gap)])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 49)[:-1]
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 32, -(y + 2.5) / 32], axis=1)


def _crescent() -> np.ndarray:
    outer = _circle(0.5, math.radians(35), math.radians(325))
    tip, center = outer[0], np.array([0.0, -0.32])
    radius, angle = math.dist(tip, center), math.atan2(tip[0], center[1] - tip[1])
    return np.concatenate([outer, center + _circle(radius, 2 * math.pi - angle, angle)])


_OUTLINES = {
    "disc": _circle(0.5, 0, 2 * math.pi, 49)[:-1],
    "square": _mirrored([(0.44, -0.44), (0.44, 0.44)]),
    "triangle": _mirrored([(0.0, -0.5), (0.5, 0.42)], skip=1),
    "star": _star(),
    "cross": _cross(),
    "ring": _ring(),
    "heart": _heart(),
    "crescent": _crescent(),
    "arrow": _mirrored([(0.0, -0.5), (0.44, 0.0), (0.17, 0.0), (0.17, 0.5)], skip=1),
    "hourglass": _mirrored([(0.42, -0.5), (0.09, 0.0), (0.42, 0.5)]),
}


@dataclass(frozen=True)
class _Pose:
    """Where a shape is: pixel = centre + R(angle) @ (sides * unit point)."""

    center: np.ndarray
    sides: np.ndarray
    angle: float

    def rotation(self) -> np.ndarray:
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.array([(c, -s), (s, c)])

    def to_pixels(self, outline: np.ndarray) -> np.ndarray:
        return (outline * self.sides) @ self.rotation().T + self.center

    def to_local(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates to coordinates in pixels along the shape's own axes."""
        (a, b), (c, d) = self.rotation()
        dx, dy = x - self.center[0], y - self.center[1]
        return a * dx + c * dy, b * dx + d * dy


def _coverage(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """Samples of each pixel inside a closed outline, (height, width), 0 ... _SUBSAMPLES ** 2.

    The outline must lie inside the image.
    """
    left, top = np.floor(outline.min(axis=0)).astype(int)
    right, bottom = np.ceil(outline.max(axis=0)).astype(int)
    coverage = np.zeros((height, width), dtype=np.int64)
    inner = _coverage_from_origin(outline - (left, top), bottom - top, right - left)
    coverage[top:bottom, left:right] = inner
    return coverage


def _coverage_from_origin(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """Even-odd scan lines in integer arithmetic, so that no machine rounds an edge differently."""
    x0, y0 = np.rint(outline * _GRID).astype(np.int64).T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    step = _GRID // _SUBSAMPLES
    rows = np.arange(height * _SUBSAMPLES)[:, None] * step + step // 2
    row, edge = np.nonzero((y0 <= rows) != (y1 <= rows))
    dx, dy = (x1 - x0)[edge], (y1 - y0)[edge]
    # First sample to the right of the crossing at x0 + (y - y0) * dx / dy.
    crossing = x0[edge] * dy + (rows[row, 0] - y0[edge]) * dx
    column = (crossing - step // 2 * dy) // (step * dy) + 1
    stride = width * _SUBSAMPLES + 1
    column = np.clip(column, 0, stride - 1)
    toggles = np.bincount(row * stride + column, minlength=len(rows) * stride)
    inside = np.cumsum(toggles.reshape(len(rows), stride), axis=1)[:, :-1] & 1
    return inside.reshape(height, _SUBSAMPLES, width, _SUBSAMPLES).sum(axis=(1, 3))


# --------------------------------------------------------------------------------------------------
# Masks to polygons
# --------------------------------------------------------------------------------------------------

_HEADINGS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up


def _border_loops(mask: np.ndarray) -> list[np.ndarray]:
    """Closed border loops of a mask along pixel edges, each (V, 2) corners (x, y).

    The foreground is on the right of the direction of travel, so an outer loop has a positive
    shoelace area and a hole a negative one. Pixels that touch at a corner belong together.
    """
    if not mask.any():
        return []
    box = _box(mask)
    origin = (box[1].start, box[0].start)
    padded = np.pad(mask[box].astype(np.int8), 1)
    down = np.diff(padded, axis=0)[:, 1:-1]
    across = np.diff(padded, axis=1)[1:-1]
    # (start corner, heading) of every border edge
    starts = (
        (down == 1, (0, 0), 0), (across == -1, (0, 0), 1),
        (down == -1, (1, 0), 2), (across == 1, (0, 1), 3),
    )  # fmt: skip
    leaving: dict[tuple[int, int], list[int]] = {}
    for where, (shift_x, shift_y), heading in starts:
        for y, x in np.argwhere(where).tolist():
            leaving.setdefault((x + shift_x, y + shift_y), []).append(heading)

    loops = []
    while leaving:
        point = first = next(iter(leaving))
        heading, loop = leaving[first][0], []
        while True:
            options = leaving[point]
            # Where two diagonal pixels meet, the left turn crosses over to the other one.
            left = (heading - 1) % 4
            heading = left if loop and left in options else options[0]
            options.remove(heading)
            if not options:
                del leaving[point]
            loop.append(point)
            point = (point[0] + _HEADINGS[heading][0], point[1] + _HEADINGS[heading][1])
            if point == first:
                break
        loops.append(np.array(loop, dtype=np.float64) + origin)
    return loops


def _loop_area(loop: np.ndarray) -> float:
    (x, y), (next_x, next_y) = loop.T, np.roll(loop, -1, axis=0).T
    return float((x * next_y - next_x * y).sum() / 2)


def _is_plain(mask: np.ndarray) -> bool:
    """Whether polygons can say it: some pixels, no hole, no crumb."""
    loops = _border_loops(mask)
    return bool(loops) and all(_loop_area(loop) >= _MIN_PART for loop in loops)


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Polygons ``[x, y, x, y, ...]`` of a mask without holes, one for each part.

    The vertices are midpoints of pixel edges: on a slanted border they lie on the line, where
    pixel corners would lie half a pixel outside. Those within ``_POLYGON_TOLERANCE`` are dropped.
    """
    polygons = []
    for loop in _border_loops(mask):
        midpoints = (loop + np.roll(loop, -1, axis=0)) / 2
        polygons.append(_simplify(midpoints).ravel().tolist())
    return polygons


def _simplify(points: np.ndarray) -> np.ndarray:
    """Douglas-Peucker on a closed curve, split at its first point and the one furthest from it."""
    far = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([points, points[:1]])
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far]] = True
    spans = [(0, far), (far, len(closed) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        chord = closed[last] - closed[first]
        offset = closed[first + 1 : last] - closed[first]
        length = math.hypot(*chord) or 1.0
        distance = np.abs(chord[0] * offset[:, 1] - chord[1] * offset[:, 0]) / length
        worst = int(distance.argmax())
        if distance[worst] > _POLYGON_TOLERANCE:
            middle = first + 1 + worst
            keep[middle] = True
            spans += [(first, middle), (middle, last)]
    return closed[keep]


# --------------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------------


@dataclass
class SceneObject:
    """One drawn object; ``mask`` (H, W) bool is its visible part."""

    class_index: int
    annotated: bool
    pose: _Pose
    coverage: np.ndarray
    mask: np.ndarray


def render_scene(
    spec: SyntheticSpec, split: str, index: int, plan: _Plan
) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw one image.

    Args:
        spec: what is generated.
        split: ``train`` or ``val``.
        index: image id, from 1; with the seed and the split it decides everything random.
        plan: the objects, later ones in front.

    Returns:
        Pixels (H, W, 3) uint8 and the objects in drawing order.
    """
    rng = _generator(spec.seed, _STREAM[split], index)
    spread = round(_SIDE_JITTER * spec.image_size)
    height, width = (spec.image_size + _integer(rng, -spread, spread) for _ in range(2))
    objects = _place_objects(plan, height, width, spec.image_size / 128, rng)
    pixels = _background(height, width, rng)
    for item in objects:
        _paint(pixels, item, rng)
    return _expose(pixels, rng), objects


def _place_objects(
    plan: _Plan, height: int, width: int, zoom: float, rng: np.random.Generator
) -> list[SceneObject]:
    for _ in range(_SCENE_TRIES):
        objects: list[SceneObject] = []
        if all(_place(objects, *entry, height, width, zoom, rng) for entry in plan.objects):
            return objects
    raise RuntimeError(
        f"no room for {len(plan.objects)} objects in {width} x {height} pixels "
        f"after {_SCENE_TRIES} attempts"
    )


def _place(
    objects: list[SceneObject],
    class_index: int,
    annotated: bool,
    height: int,
    width: int,
    zoom: float,
    rng: np.random.Generator,
) -> bool:
    """Add one object in front of the others without hiding too much of any; False: no room."""
    low, high = (math.log(side * zoom) for side in _OBJECT_SIZE)
    outline = _OUTLINES[SHAPES[class_index // len(SURFACES)]]
    for attempt in range(_PLACEMENT_TRIES):
        # Ever smaller, so that a crowded image is filled too.
        upper = high - (high - low) * attempt / _PLACEMENT_TRIES
        pose = _random_pose(outline, math.exp(_uniform(rng, low, upper)), height, width, rng)
        coverage = _coverage(pose.to_pixels(outline), height, width)
        mask = coverage >= _SUBSAMPLES**2 // 2
        if not _is_plain(mask):
            continue
        behind = [other for other in objects if (other.mask & mask).any()]
        if all(_stays_visible(other, mask) for other in behind):
            for other in behind:
                other.mask &= ~mask
            objects.append(SceneObject(class_index, annotated, pose, coverage, mask))
            return True
    return False


def _random_pose(
    outline: np.ndarray, size: float, height: int, width: int, rng: np.random.Generator
) -> _Pose:
    """A pose whose outline lies inside the image."""
    stretch = _ASPECT ** _uniform(rng, -0.5, 0.5)
    sides = np.array([size * stretch, size / stretch])
    pose = _Pose(np.zeros(2), sides, _uniform(rng, 0, 2 * math.pi))
    points = pose.to_pixels(outline)
    low = 1 - points.min(axis=0)
    high = np.array([width, height]) - 1 - points.max(axis=0)
    return _Pose(low + (high - low) * rng.random(2), sides, pose.angle)


def _stays_visible(item: SceneObject, front: np.ndarray) -> bool:
    visible = item.mask & ~front
    whole = np.count_nonzero(item.coverage >= _SUBSAMPLES**2 // 2)
    return visible.sum() >= _MIN_VISIBLE * whole and _is_plain(visible)


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Dull two-tone clouds with thin scratches, (H, W, 3) in [0, 1]."""
    tones = [_color(rng.random(), _uniform(rng, 0.02, 0.22), _uniform(rng, 0.3, 0.8))]
    tones.append(_color(rng.random(), _uniform(rng, 0.02, 0.22), _uniform(rng, 0.3, 0.8)))
    mix = 0.65 * _clouds(height, width, 4, rng) + 0.35 * _clouds(height, width, 14, rng)
    pixels = tones[0] + mix[..., None] * (tones[1] - tones[0])
    x, y = _pixel_centers(height, width)
    for _ in range(_integer(rng, 4, 9)):
        tone = _color(rng.random(), _uniform(rng, 0.0, 0.3), _uniform(rng, 0.15, 0.95))
        ends = rng.random((2, 2)) * (width, height)
        alpha = 0.8 * np.clip(_uniform(rng, 0.8, 1.6) - _segment_distance(x, y, *ends), 0, 1)
        pixels += alpha[..., None] * (tone - pixels)
    return pixels


def _clouds(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Bilinear noise in [0, 1] on a grid of ``cells`` x ``cells``."""
    knots = rng.random((cells + 1, cells + 1))
    return _hat_weights(height, cells) @ knots @ _hat_weights(width, cells).T


def _hat_weights(size: int, cells: int) -> np.ndarray:
    position = (np.arange(size)[:, None] + 0.5) * cells / size
    return np.clip(1 - np.abs(position - np.arange(cells + 1)), 0, 1)


def _segment_distance(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    along = b - a
    t = ((x - a[0]) * along[0] + (y - a[1]) * along[1]) / max(float(along @ along), 1.0)
    t = np.clip(t, 0, 1)
    return np.hypot(x - a[0] - t * along[0], y - a[1] - t * along[1])


def _pixel_centers(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


# Hues in turns. The families overlap at their ends, so that colour alone does not tell the surface.
_SURFACE_HUE = {"striped": 0.03, "checked": 0.36, "dotted": 0.69}
_HUE_JITTER = 0.17


def _paint(pixels: np.ndarray, item: SceneObject, rng: np.random.Generator) -> None:
    """Blend one object into the image, in place."""
    surface = SURFACES[item.class_index % len(SURFACES)]
    box = _box(item.coverage > 0)
    alpha = np.pad(item.coverage[box] / _SUBSAMPLES**2, 1)  # a border for the four shifts below
    core = np.minimum.reduce([alpha[:-2, 1:-1], alpha[2:, 1:-1], alpha[1:-1, :-2], alpha[1:-1, 2:]])
    alpha = alpha[1:-1, 1:-1, None]
    rim = alpha - np.minimum(alpha, core[..., None])

    hue = _SURFACE_HUE[surface] + _uniform(rng, -_HUE_JITTER, _HUE_JITTER)
    dark = _color(hue, _uniform(rng, 0.7, 1.0), _uniform(rng, 0.5, 0.75))
    light = _color(
        hue + _uniform(rng, -0.05, 0.05), _uniform(rng, 0.3, 0.6), _uniform(rng, 0.85, 1.0)
    )
    x, y = _pixel_centers(*pixels.shape[:2])
    u, v = item.pose.to_local(x[:, box[1]], y[box[0]])
    pattern = _pattern(surface, u, v, rng)[..., None]
    paint = (dark + pattern * (light - dark)) * (1 - 0.55 * rim)
    pixels[box] += alpha * (paint - pixels[box])


def _pattern(surface: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share of the light tone in [0, 1] at local coordinates in pixels."""
    period = _uniform(rng, 6.0, 9.0)  # pixels: still 2-3 periods on the smallest object
    u = 2 * math.pi * (u / period + rng.random())
    v = 2 * math.pi * (v / period + rng.random())
    if surface == "striped":
        wave = np.sin(u)
    elif surface == "checked":
        wave = 1.6 * np.sin(u / 2) * np.sin(v / 2)
    else:
        wave = np.cos(u) + np.cos(v) - 0.5
    return np.clip(0.5 + 1.5 * wave, 0, 1)


def _expose(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light from one side, sensor noise, eight bits."""
    height, width = pixels.shape[:2]
    x, y = _pixel_centers(height, width)
    direction, slope = _uniform(rng, 0, 2 * math.pi), _uniform(rng, 0.0, 0.35)
    ramp = math.cos(direction) * (x / width - 0.5) + math.sin(direction) * (y / height - 0.5)
    gain = _uniform(rng, 0.8, 1.1) * (1 + slope * ramp)
    noise = 0.06 * (rng.random(pixels.shape) - 0.5)
    return np.rint(255 * np.clip(pixels * gain[..., None] + noise, 0, 1)).astype(np.uint8)


# --------------------------------------------------------------------------------------------------
# LVIS records
# --------------------------------------------------------------------------------------------------


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


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
    rows, columns = _box(item.mask)
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
    _write_json(folder / "spec.json", _stored_spec(spec), indent=2)


# --------------------------------------------------------------------------------------------------
# Public functions
# --------------------------------------------------------------------------------------------------


def _stored_spec(spec: SyntheticSpec) -> dict:
    return {"generator_version": GENERATOR_VERSION, **asdict(spec)}


def generate(root: str | Path, spec: SyntheticSpec = SyntheticSpec()) -> None:
    """Write the set to ``root``: annotations, images and the specification.

    Everything is written to a sibling folder first and renamed at the end, so ``root`` either does
    not exist or is complete. A process killed on the way leaves a folder ``.<name>.tmp-*``, which
    is never read and can be deleted.

    Args:
        root: folder to create; it must not exist or be empty.
        spec: what to generate.

    Raises:
        FileExistsError: ``root`` is not empty, at the start or, if another process was faster, at
            the end.
    """
    root = Path(root)
    _refuse_existing(root)
    work = root.parent / f".{root.name}.tmp-{uuid.uuid4().hex}"
    try:
        _write_all(work, spec)
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


def ensure_generated(root: str | Path, spec: SyntheticSpec = SyntheticSpec()) -> Path:
    """Generate the set at ``root`` unless it is there; safe when several processes call it at once.

    Args:
        root: folder of the set.
        spec: what must be there.

    Returns:
        ``root``.

    Raises:
        DataError: ``root`` holds a set of another specification, or something else.
    """
    root = Path(root)
    if not (root / "spec.json").exists():
        try:
            generate(root, spec)
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
    from lt_det.data.datasets.lvis_format import register_lvis_format

    if root is None:
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "lt_synthetic"
    root = Path(root)
    for split in SPLITS:
        register_lvis_format(
            f"lt_synthetic_{split}",
            root / "annotations" / f"{split}.json",
            root,
            file_format="lvis",
            prepare=lambda: ensure_generated(root, spec),
        )
