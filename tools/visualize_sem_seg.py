"""Pictures of semantic segmentation for visualize.py: image, ground truth, prediction, legend."""

from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import read_image
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
)
from PIL import Image

from lt_det.data.datasets.label_png import IGNORED, read_class_map
from lt_det.data.datasets.sem_seg_sets import sem_seg_class_names, sem_seg_records
from lt_det.data.sem_seg_mapper import read_record_classes
from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.sem_seg_predictions import PREDICTIONS_FOLDER

# Longest side of an image, in pixels: on a picture of its own and on the overview.
PANEL, OVERVIEW_PANEL = 480, 300
LEGEND = 230  # pixels
ROW = 15  # pixels of a line of the legend
# Of the labels over the image.
OPACITY = 0.65


def class_colors(num_classes: int) -> np.ndarray:
    """(256, 3) uint8, the colour of each value of a label map; black where there is no class."""
    table = np.zeros((256, 3), np.uint8)
    table[:num_classes] = np.round(255 * np.array([class_color(k) for k in range(num_classes)]))
    return table


def colored(image: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(H, W, 3) uint8: the colours of (H, W) labels over the grey image; ignored pixels black."""
    grey = image.mean(axis=2, keepdims=True)
    mixed = OPACITY * class_colors(num_classes)[labels] + (1 - OPACITY) * grey
    mixed[labels == IGNORED] = 0
    return mixed.astype(np.uint8)


def legend_rows(truth: np.ndarray, predicted: np.ndarray, num_rows: int) -> list[tuple]:
    """(class id, share of the image in the truth, in the prediction), the largest in truth first.

    Args:
        truth: (H, W), `IGNORED` where there is no label; such pixels count in neither share.
        predicted: (H, W).
        num_rows: classes beyond so many are left out, those with the fewest pixels in either.
    """
    valid = truth != IGNORED
    of_truth = np.bincount(truth[valid], minlength=256) / max(1, valid.sum())
    of_predicted = np.bincount(predicted[valid], minlength=256) / max(1, valid.sum())
    present = np.flatnonzero(of_truth + of_predicted)
    most = present[np.argsort(-np.maximum(of_truth, of_predicted)[present], kind="stable")]
    shown = most[:num_rows]
    order = np.lexsort((-of_predicted[shown], -of_truth[shown]))
    return [(int(k), float(of_truth[k]), float(of_predicted[k])) for k in shown[order]]


def draw_maps(image, truth, predicted, names, groups, panel: int) -> np.ndarray:
    """Image, ground truth, prediction and a legend side by side.

    Args:
        image: (H, W, 3) uint8, RGB.
        truth: (H, W) class ids, `IGNORED` where there is no label.
        predicted: (H, W) class ids.
        names: (C,) class names.
        groups: (C,) 'r', 'c', 'f', or None.
        panel: the longer side of the image is drawn this long.

    Returns:
        RGB picture, uint8.
    """
    scale = panel / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    body = max(height, 8 * ROW)
    total = 3 * (width + MARGIN) + MARGIN + LEGEND, HEADER + body + MARGIN
    # The small term keeps matplotlib from rounding the size down.
    size = [(pixels + 0.01) / DPI for pixels in total]
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, total[0]), ylim=(total[1], 0))
    canvas.axis("off")
    panels = (
        ("image", image),
        ("ground truth (black: no label)", colored(image, truth, len(names))),
        ("prediction", colored(image, predicted, len(names))),
    )
    for k, (title, pixels) in enumerate(panels):
        left = MARGIN + k * (width + MARGIN)
        smooth = "antialiased" if k == 0 else "nearest"
        box = (left, left + width, HEADER + height, HEADER)
        canvas.imshow(pixels, extent=box, interpolation=smooth)
        text = canvas.text(left, 14, title, va="top", fontweight="bold", fontsize=10)
        fit_text(text, width)
    canvas.set(xlim=(0, total[0]), ylim=(total[1], 0))
    _draw_legend(
        canvas, total[0] - LEGEND, legend_rows(truth, predicted, body // ROW), names, groups
    )
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _draw_legend(canvas, left: int, rows: list[tuple], names, groups) -> None:
    """One line a class: colour, name, group, share of the pixels in truth and prediction."""
    canvas.text(left, 14, "% of pixels: truth, prediction", va="top", fontsize=FONT, color="0.35")
    for line, (k, of_truth, of_predicted) in enumerate(rows):
        y = HEADER + line * ROW
        canvas.add_patch(Rectangle((left, y), 10, 10, facecolor=class_color(k), lw=0))
        tag = f" [{groups[k]}]" if groups else ""
        bold = {"fontweight": "bold"} if groups and groups[k] == "r" else {}
        text = canvas.text(left + 15, y - 1, names[k] + tag, va="top", fontsize=FONT, **bold)
        fit_text(text, LEGEND - 15 - 78)
        shares = f"{100 * of_truth:.1f}  {100 * of_predicted:.1f}"
        at = left + LEGEND - MARGIN, y - 1
        canvas.text(*at, shares, va="top", ha="right", fontsize=FONT)


# ---- a run -----------------------------------------------------------------------------------


def records_with_classes(run: Path, dataset: str, num_classes: int) -> list[dict]:
    """Records of the images that have a kept prediction, with the classes of each.

    Raises:
        MissingFileError: the run keeps none.
    """
    folder = run / "inference" / dataset / PREDICTIONS_FOLDER
    found = []
    for number, record in enumerate(sem_seg_records(dataset)):
        path = folder / f"{Path(record['file_name']).stem}.png"
        if not path.is_file():
            continue
        classes = np.unique(read_record_classes(record, num_classes))
        annotations = [{"category_id": int(k)} for k in classes if k != IGNORED]
        found.append(
            {**record, "image_id": number, "annotations": annotations, "predicted": str(path)}
        )
    if not found:
        raise MissingFileError(
            f"no predictions in {folder}; evaluate with TEST.LT.SEM_SEG.SAVE png (also with "
            "--eval-only --resume) to keep them"
        )
    return found


def draw_record(record: dict, names, groups, panel: int) -> np.ndarray:
    """The picture of a record of `records_with_classes`.

    Raises:
        DataError: a file that cannot be read, or files of different sizes.
    """
    try:
        image = read_image(record["file_name"], "RGB")
    except OSError as error:
        raise DataError(f"image {record['file_name']} cannot be read: {error}") from error
    truth = read_record_classes(record, len(names))
    predicted = read_class_map(record["predicted"], len(names))
    if not image.shape[:2] == truth.shape == predicted.shape:
        raise DataError(
            f"image {record['file_name']}, its label map and its prediction differ in size: "
            f"{image.shape[:2]}, {truth.shape}, {predicted.shape}"
        )
    return draw_maps(image, truth, predicted, names, groups, panel)


def visualize_sem_seg(run: Path, dataset: str, num: int, seed: int, output: Path) -> list[Path]:
    """Write the pictures of a run; returns their paths, the overview last.

    Raises:
        MissingFileError: the run keeps no predictions.
        DataError: see `draw_record`.
    """
    names, groups = sem_seg_class_names(dataset), groups_of_run(run, dataset)
    records = records_with_classes(run, dataset, len(names))
    output.mkdir(parents=True, exist_ok=True)
    paths, overview = [], []
    for record in choose_images(records, groups, num, seed):
        paths.append(output / f"{Path(record['file_name']).stem}.png")
        Image.fromarray(draw_record(record, names, groups, PANEL)).save(paths[-1])
        overview.append(draw_record(record, names, groups, OVERVIEW_PANEL))
    paths.append(output / "overview.png")
    Image.fromarray(contact_sheet(overview, columns=1)).save(paths[-1])
    return paths
