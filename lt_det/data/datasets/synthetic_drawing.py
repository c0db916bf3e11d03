"""Drawing of ``lt_synthetic``: outlines, surfaces, scenes, and the polygons of a mask.

A class index is ``shape * len(SURFACES) + surface``. Everything random comes from ``rng.random()``:
NumPy may change the streams of its other methods.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_OBJECT_SIZE = (20.0, 56.0)  # pixels at image_size 128, before the aspect jitter
_ASPECT = 1.25
_SIDE_JITTER = 0.125  # 112 ... 144 pixels at image_size 128

_MIN_VISIBLE = 0.5  # of an object's own pixels
_MIN_PART = 12  # pixels; smaller crumbs of a mask do not survive a round trip through a polygon
_PLACEMENT_TRIES = 40
_SCENE_TRIES = 50

_SUBSAMPLES = 4  # a side; coverage has 16 levels
_GRID = 64  # outline vertices lie on 1/64 pixel
_POLYGON_TOLERANCE = 0.4  # pixels; from 0.45 on, right angles are lost and IoU falls to 0.95

# Hues in turns. The families overlap at their ends, so that colour alone does not tell the surface.
_SURFACE_HUE = {"striped": 0.03, "checked": 0.36, "dotted": 0.69}
_HUE_JITTER = 0.17
SURFACES = tuple(_SURFACE_HUE)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from low to high."""
    return low + (high - low) * rng.random()


def integer(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer from low to high, both included."""
    return low + int((high - low + 1) * rng.random())


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


OUTLINES = {
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
SHAPES = tuple(OUTLINES)


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


def mask_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _border_loops(mask: np.ndarray) -> list[np.ndarray]:
    """Closed border loops of a mask along pixel edges, each (V, 2) corners (x, y).

    The foreground is on the right of the direction of travel, so an outer loop has a positive
    shoelace area and a hole a negative one. Pixels that touch at a corner belong together.
    """
    if not mask.any():
        return []
    box = mask_box(mask)
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
# Scenes
# --------------------------------------------------------------------------------------------------


@dataclass
class SceneObject:
    """One drawn object; ``mask`` (H, W) bool is its visible part."""

    class_index: int
    annotated: bool
    pose: _Pose
    coverage: np.ndarray
    mask: np.ndarray


def draw_scene(
    entries: Sequence[tuple[int, bool]], image_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw one image.

    Args:
        entries: (class index, annotated) of each object, later ones in front.
        image_size: mean side in pixels.
        rng: decides everything random.

    Returns:
        Pixels (H, W, 3) uint8 and the objects in drawing order.
    """
    spread = round(_SIDE_JITTER * image_size)
    height, width = (image_size + integer(rng, -spread, spread) for _ in range(2))
    objects = _place_objects(entries, height, width, image_size / 128, rng)
    pixels = _background(height, width, rng)
    for item in objects:
        _paint(pixels, item, rng)
    return _expose(pixels, rng), objects


def _place_objects(
    entries: Sequence[tuple[int, bool]],
    height: int,
    width: int,
    zoom: float,
    rng: np.random.Generator,
) -> list[SceneObject]:
    for _ in range(_SCENE_TRIES):
        objects: list[SceneObject] = []
        if all(_place(objects, *entry, height, width, zoom, rng) for entry in entries):
            return objects
    raise RuntimeError(
        f"no room for {len(entries)} objects in {width} x {height} pixels "
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
    outline = OUTLINES[SHAPES[class_index // len(SURFACES)]]
    for attempt in range(_PLACEMENT_TRIES):
        # Ever smaller, so that a crowded image is filled too.
        upper = high - (high - low) * attempt / _PLACEMENT_TRIES
        pose = _random_pose(outline, math.exp(uniform(rng, low, upper)), height, width, rng)
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
    stretch = _ASPECT ** uniform(rng, -0.5, 0.5)
    sides = np.array([size * stretch, size / stretch])
    pose = _Pose(np.zeros(2), sides, uniform(rng, 0, 2 * math.pi))
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
    tones = [_color(rng.random(), uniform(rng, 0.02, 0.22), uniform(rng, 0.3, 0.8))]
    tones.append(_color(rng.random(), uniform(rng, 0.02, 0.22), uniform(rng, 0.3, 0.8)))
    mix = 0.65 * _clouds(height, width, 4, rng) + 0.35 * _clouds(height, width, 14, rng)
    pixels = tones[0] + mix[..., None] * (tones[1] - tones[0])
    x, y = _pixel_centers(height, width)
    for _ in range(integer(rng, 4, 9)):
        tone = _color(rng.random(), uniform(rng, 0.0, 0.3), uniform(rng, 0.15, 0.95))
        ends = rng.random((2, 2)) * (width, height)
        alpha = 0.8 * np.clip(uniform(rng, 0.8, 1.6) - _segment_distance(x, y, *ends), 0, 1)
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


def _paint(pixels: np.ndarray, item: SceneObject, rng: np.random.Generator) -> None:
    """Blend one object into the image, in place."""
    surface = SURFACES[item.class_index % len(SURFACES)]
    box = mask_box(item.coverage > 0)
    alpha = np.pad(item.coverage[box] / _SUBSAMPLES**2, 1)  # a border for the four shifts below
    core = np.minimum.reduce([alpha[:-2, 1:-1], alpha[2:, 1:-1], alpha[1:-1, :-2], alpha[1:-1, 2:]])
    alpha = alpha[1:-1, 1:-1, None]
    rim = alpha - np.minimum(alpha, core[..., None])

    hue = _SURFACE_HUE[surface] + uniform(rng, -_HUE_JITTER, _HUE_JITTER)
    dark = _color(hue, uniform(rng, 0.7, 1.0), uniform(rng, 0.5, 0.75))
    light = _color(hue + uniform(rng, -0.05, 0.05), uniform(rng, 0.3, 0.6), uniform(rng, 0.85, 1.0))
    x, y = _pixel_centers(*pixels.shape[:2])
    u, v = item.pose.to_local(x[:, box[1]], y[box[0]])
    pattern = _pattern(surface, u, v, rng)[..., None]
    paint = (dark + pattern * (light - dark)) * (1 - 0.55 * rim)
    pixels[box] += alpha * (paint - pixels[box])


def _pattern(surface: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share of the light tone in [0, 1] at local coordinates in pixels."""
    period = uniform(rng, 6.0, 9.0)  # pixels: still 2-3 periods on the smallest object
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
    direction, slope = uniform(rng, 0, 2 * math.pi), uniform(rng, 0.0, 0.35)
    ramp = math.cos(direction) * (x / width - 0.5) + math.sin(direction) * (y / height - 0.5)
    gain = uniform(rng, 0.8, 1.1) * (1 + slope * ramp)
    noise = 0.06 * (rng.random(pixels.shape) - 0.5)
    return np.rint(255 * np.clip(pixels * gain[..., None] + noise, 0, 1)).astype(np.uint8)
