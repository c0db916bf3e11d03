#!/usr/bin/env python
"""Draw the ground truth and the predictions of a finished run side by side.

    python tools/visualize.py --run output/lvis_eqlv2
    python tools/visualize.py --run output/lvis_eqlv2 --num 16 --score 0.5 --seed 1

Half of the images hold a rare class, the rest common classes without rare ones, then frequent
ones only. In each part those images come first that show classes not shown yet and that hold
few enough objects to read. The choice depends on the data set, --num and --seed alone: two runs
are drawn on the same images.

Of semantic segmentation the image, the ground truth, the prediction and a legend are drawn. Such
predictions are kept by an evaluation with TEST.LT.SEM_SEG.SAVE png; --score and --top are for
detectors.

A label is "class [group] score", in bold for rare classes. Labels never cover each other: one
that finds no free place at its box is left out. Rare classes and high scores get theirs first.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import command_line  # noqa: F401  a warning
import numpy as np
import pycocotools.mask as mask_utils
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pictures import (
    DPI,
    FONT,
    HEADER,
    MARGIN,
    choose_images,
    class_color,
    contact_sheet,
    fit_text,
    groups_of_run,
    text_color,
)
from PIL import Image
from visualize_sem_seg import visualize_sem_seg

from lt_det.data import dataset_info, get_records, register_from_config
from lt_det.data.datasets.sem_seg_sets import find_sem_seg_set
from lt_det.engine.config import load_config
from lt_det.errors import ConfigError, DataError, LtDetError, MissingFileError
from lt_det.evaluation.groups import GROUPS
from lt_det.evaluation.lvis_predictions import PREDICTIONS_FILE, drop_non_finite, load_predictions

# Longest side of an image, in pixels: on a picture of its own and on the overview.
PANEL, OVERVIEW_PANEL = 640, 420
# Narrower than this part of the longest side, a panel has no room for its title. On the overview
# all panels are equally wide, so that they stand in columns.
MIN_WIDTH, OVERVIEW_MIN_WIDTH = 0.6, 1.0


@dataclass(frozen=True)
class Item:
    """An object to draw: class id 0..C-1, box XYXY in pixels, mask (H, W) bool or None."""

    class_id: int
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None
    score: float | None = None


@dataclass(frozen=True)
class Sample:
    """An image with all that is drawn on it.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        truth, predictions: what the left and the right panel show.
        truth_note, predictions_note: line under the title of either panel.
        score: threshold, for the title.
    """

    image: np.ndarray
    truth: list[Item]
    predictions: list[Item]
    truth_note: str
    predictions_note: str
    score: float


# ---- what to draw ----------------------------------------------------------------------------


def decode_mask(segmentation, height: int, width: int) -> np.ndarray:
    """(H, W) bool from polygons or RLE."""
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    return mask_utils.decode(segmentation).astype(bool)


def truth_items(record: dict) -> list[Item]:
    """The annotations of an image; crowds are neither trained on nor evaluated."""
    size = record["height"], record["width"]
    return [
        Item(
            a["category_id"],
            tuple(BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)),
            decode_mask(a["segmentation"], *size) if a.get("segmentation") else None,
        )
        for a in record["annotations"]
        if not a.get("iscrowd")
    ]


def prediction_items(predictions: list[dict], record: dict, class_of: dict[int, int]) -> list[Item]:
    """Predictions in the results format of LVIS as items.

    Args:
        predictions: of this image.
        record: the image.
        class_of: category id of the annotation file -> class id.

    Raises:
        DataError: a category that the data set does not have, a mask of another size.
    """
    size = record["height"], record["width"]
    items = []
    for p in predictions:
        where = f"prediction for image id {record['image_id']}"
        if p["category_id"] not in class_of:
            raise DataError(f"{where}: the data set has no category id {p['category_id']}")
        segmentation = p.get("segmentation")
        if segmentation and tuple(segmentation["size"]) != size:
            raise DataError(f"{where}: mask of {segmentation['size']}, image of {list(size)}")
        x, y, w, h = p["bbox"] if "bbox" in p else mask_utils.toBbox(segmentation).tolist()
        mask = decode_mask(segmentation, *size) if segmentation else None
        items.append(Item(class_of[p["category_id"]], (x, y, x + w, y + h), mask, p["score"]))
    return items


def truth_note(record: dict, names: list[str]) -> str:
    """Image id, and the classes of which the image holds more than is annotated."""
    note = f"image {record['image_id']}"
    partial = [names[k] for k in record.get("not_exhaustive_category_ids", ())]
    if partial:
        more = f" +{len(partial) - 3}" if len(partial) > 3 else ""
        note += f" · not exhaustive: {', '.join(partial[:3])}{more}"
    return note


def predictions_note(shown: int, above: int, highest: float | None) -> str:
    """What the right panel shows, or why it is empty."""
    if highest is None:
        return "no prediction for this image"
    if not above:
        return f"none; the highest score is {highest:.2g}"
    if shown < above:
        return f"the {shown} highest of {above}"
    return f"{shown} prediction{'s' if shown > 1 else ''}"


# ---- drawing ---------------------------------------------------------------------------------


def label_text(item: Item, names: list[str], groups: list[str] | None) -> str:
    """Such as ``cup [f] 0.83``; ground truth has no score."""
    tag = f" [{groups[item.class_id]}]" if groups else ""
    score = ""
    if item.score is not None:
        score = f" {item.score:.2f}" if item.score >= 0.005 else f" {item.score:.1g}"
    return f"{names[item.class_id]}{tag}{score}"


def place_labels(boxes, sizes, width: float, height: float) -> list[tuple | None]:
    """Places of labels at their boxes such that none covers another; the first ones go first.

    Args:
        boxes: (N, 4) XYXY.
        sizes: (N, 2) width and height of the labels.
        width: of the panel that all labels stay in.
        height: of the panel.

    Returns:
        N upper left corners (x, y); None for a label that found no place.
    """
    places, taken = [], []
    for (x1, y1, x2, y2), (w, h) in zip(boxes, sizes, strict=True):
        # Above the box, inside at the top, inside at the bottom, below.
        corners = [(x, y) for y in (y1 - h, y1, y2 - h, y2) for x in (x1, x2 - w)]
        place = None
        for x, y in corners:
            x, y = max(0, min(x, width - w)), max(0, min(y, height - h))
            if all(x >= c or x + w <= a or y >= d or y + h <= b for a, b, c, d in taken):
                place = (x, y)
                taken.append((x, y, x + w, y + h))
                break
        places.append(place)
    return places


def _draw_items(ax, items: list[Item], names, groups, scale: float, width, height) -> None:
    """Masks, boxes and labels; data units of `ax` are pixels of the panel."""
    area = {id(i): (i.box[2] - i.box[0]) * (i.box[3] - i.box[1]) for i in items}
    for item in sorted(items, key=lambda i: -area[id(i)]):  # small ones on top
        color = class_color(item.class_id)
        if item.mask is not None and item.mask.any():
            _draw_mask(ax, item.mask, color, scale)
        x1, y1, x2, y2 = (v * scale for v in item.box)
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=0.8))

    def urgency(item):
        if item.score is not None:
            return -item.score, 0
        return GROUPS.index(groups[item.class_id]) if groups else 0, -area[id(item)]

    ordered = sorted(items, key=urgency)
    texts = [_label(ax, item, names, groups) for item in ordered]
    patches = [text.get_bbox_patch().get_window_extent() for text in texts]
    boxes = [[v * scale for v in item.box] for item in ordered]
    places = place_labels(boxes, [(p.width, p.height) for p in patches], width, height)
    origin_x, origin_y = ax.transData.transform((0, 0))
    for text, patch, place in zip(texts, patches, places, strict=True):
        text.set_visible(place is not None)
        if place is not None:
            text.set_position((place[0] - patch.x0 + origin_x, place[1] + patch.y1 - origin_y))


def _label(ax, item: Item, names, groups):
    color = class_color(item.class_id)
    style = {
        "fontsize": FONT,
        "fontweight": "bold" if groups and groups[item.class_id] == "r" else "normal",
        "color": text_color(color),
        "bbox": {"boxstyle": "square,pad=0.18", "fc": color, "ec": "none"},
    }
    text = ax.text(0, 0, label_text(item, names, groups), **style)
    text.draw(ax.figure.canvas.get_renderer())  # gives the coloured patch its size
    return text


def _draw_mask(ax, mask: np.ndarray, color, scale: float) -> None:
    # A border of zeros closes contours at the edge of the image.
    padded = np.pad(mask, 1).astype(np.float32)
    x = (np.arange(padded.shape[1]) - 0.5) * scale
    y = (np.arange(padded.shape[0]) - 0.5) * scale
    ax.contourf(x, y, padded, levels=[0.5, 1.5], colors=[color], alpha=0.25)
    ax.contour(x, y, padded, levels=[0.5], colors=[color], linewidths=1.8)


def draw_sample(
    sample: Sample, names, groups, panel: int = PANEL, min_width: float = MIN_WIDTH
) -> np.ndarray:
    """Both panels of an image.

    Args:
        sample: the image, H x W.
        names: (C,) class names.
        groups: (C,) 'r', 'c', 'f', or None.
        panel: the longer side of the image is drawn this long.
        min_width: of the place for a panel, as a part of `panel`.

    Returns:
        RGB picture, uint8. The left panel begins at (MARGIN, HEADER), the right one MARGIN
        behind the place for the left one.
    """
    image_height, image_width = sample.image.shape[:2]
    scale = panel / max(image_height, image_width)
    width, height = max(1, round(image_width * scale)), max(1, round(image_height * scale))
    cell = max(width, round(min_width * panel))
    total_width, total_height = 2 * cell + 3 * MARGIN, height + HEADER + MARGIN
    # The small term keeps matplotlib from rounding the size down.
    size = (total_width + 0.01) / DPI, (total_height + 0.01) / DPI
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    sides = (
        ("ground truth", sample.truth_note, sample.truth),
        (f"predictions (score > {sample.score:g})", sample.predictions_note, sample.predictions),
    )
    for k, (title, note, items) in enumerate(sides):
        left = MARGIN + k * (cell + MARGIN)
        for y, text, style in (
            (8, title, {"fontweight": "bold", "fontsize": 10}),
            (26, note, {"fontsize": FONT, "color": "0.35"}),
        ):
            at = left / total_width, 1 - y / total_height
            fit_text(figure.text(*at, text, va="top", **style), cell)
        ax = figure.add_axes(
            (
                left / total_width,
                MARGIN / total_height,
                width / total_width,
                height / total_height,
            )
        )
        ax.imshow(
            sample.image,
            extent=(0, width, height, 0),
            interpolation="lanczos" if scale > 1 else "antialiased",
        )
        ax.axis("off")
        ax.autoscale(False)
        _draw_items(ax, items, names, groups, scale, width, height)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


# ---- a run -----------------------------------------------------------------------------------


def predictions_of_run(run: Path, dataset: str) -> dict[object, list[dict]]:
    """Image id -> its predictions, the highest score first."""
    path = run / "inference" / dataset / PREDICTIONS_FILE
    if not path.is_file():
        found = sorted(p.parent.name for p in run.glob(f"inference/*/{PREDICTIONS_FILE}"))
        raise MissingFileError(
            f"no predictions {path}; tools/train_net.py writes them when it evaluates, also with "
            f"--eval-only. Data sets with predictions in this run: {', '.join(found) or 'none'}"
        )
    by_image = {}
    for p in sorted(drop_non_finite(load_predictions(str(path)))[0], key=lambda p: -p["score"]):
        by_image.setdefault(p["image_id"], []).append(p)
    return by_image


def make_sample(record: dict, predictions: list[dict], info, score: float, top: int) -> Sample:
    """Read the image and put together what is drawn on it.

    Args:
        record: dataset dict.
        predictions: of this image, the highest score first.
        info: class list.
        score: predictions of a higher one are drawn,
        top: but no more than this many.
    """
    try:
        image = read_image(record["file_name"], "RGB")
    except OSError as error:
        raise DataError(f"image id {record['image_id']} cannot be read: {error}") from error
    if image.shape[:2] != (record["height"], record["width"]):
        raise DataError(
            f"image {record['file_name']} is {image.shape[1]} x {image.shape[0]} pixels, "
            f"its annotations are for {record['width']} x {record['height']}"
        )
    above = [p for p in predictions if p["score"] > score]
    class_of = {category_id: k for k, category_id in enumerate(info.category_ids)}
    items = prediction_items(above[:top], record, class_of)
    highest = predictions[0]["score"] if predictions else None
    return Sample(
        image=image,
        truth=truth_items(record),
        predictions=items,
        truth_note=truth_note(record, info.class_names),
        predictions_note=predictions_note(len(items), len(above), highest),
        score=score,
    )


def visualize(run: Path, dataset, num, score, top, seed, output: Path | None) -> list[Path]:
    """Write the pictures of a run; returns their paths, the overview last."""
    if not run.is_dir():
        raise MissingFileError(f"no run directory {run}")
    cfg = load_config(str(run / "config.yaml"))
    register_from_config(cfg)
    if not dataset and not cfg.DATASETS.TEST:
        raise ConfigError(f"DATASETS.TEST of {run / 'config.yaml'} is empty; name a --dataset")
    dataset = dataset or cfg.DATASETS.TEST[0]
    output = output or run / "pictures"
    if find_sem_seg_set(dataset):
        return visualize_sem_seg(run, dataset, num, seed, output)
    info = dataset_info(dataset)
    predictions = predictions_of_run(run, dataset)
    groups = info.frequency or groups_of_run(run, dataset)
    output.mkdir(parents=True, exist_ok=True)
    paths, overview, drawn = [], [], 0
    for record in choose_images(get_records(dataset), groups, num, seed):
        own = predictions.get(record["image_id"], [])
        sample = make_sample(record, own, info, score, top)
        drawn += len(sample.predictions)
        paths.append(output / f"{record['image_id']}.png")
        Image.fromarray(draw_sample(sample, info.class_names, groups)).save(paths[-1])
        overview.append(
            draw_sample(sample, info.class_names, groups, OVERVIEW_PANEL, OVERVIEW_MIN_WIDTH)
        )
    paths.append(output / "overview.png")
    Image.fromarray(contact_sheet(overview)).save(paths[-1])
    if not drawn:
        highest = max((own[0]["score"] for own in predictions.values()), default=0)
        print(
            f"no prediction above {score:g} on these images; the highest of the data set is "
            f"{highest:.2g}, see --score",
            file=sys.stderr,
        )
    return paths


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, required=True, metavar="RUN_DIR", help="output directory of a run"
    )
    parser.add_argument("--dataset", help="a test set of the run; default: the first one")
    parser.add_argument("--num", type=positive, default=8, help="images to draw; default 8")
    parser.add_argument(
        "--score", type=float, default=0.3, help="draw predictions above this; default 0.3"
    )
    parser.add_argument(
        "--top",
        type=positive,
        default=30,
        help="but at most this many per image, of the highest scores; default 30",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed prefers other images; default 0"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="for <image id>.png and overview.png; default RUN_DIR/pictures",
    )
    return parser.parse_args(argv)


def main(argv=None) -> int:
    try:
        for path in visualize(**vars(parse_args(argv))):
            print(path)
    except LtDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
