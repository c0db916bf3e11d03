"""What pictures of runs share: which images, which colours, how they stand on one page."""

import colorsys
import math
import random
from pathlib import Path

import numpy as np

from lt_det.evaluation.groups import GROUPS
from lt_det.evaluation.results import read_record

DPI = 100
MARGIN, HEADER = 12, 46
GUTTER = 36  # between the columns of the overview
# Labels of more objects than this leave little to see of a 640 pixel panel.
CROWDED = 12
FONT = 8.5  # points; 12 pixels
# Degrees of the colour circle that look about equally far apart: it has much green and violet.
HUES = (0, 28, 50, 85, 140, 178, 205, 232, 275, 310, 338, 360)


# ---- which images ----------------------------------------------------------------------------


def rarest_group(record: dict, groups: list[str] | None) -> str | None:
    """Group of the rarest class in an image; None if it is empty or there are no groups."""
    found = {groups[a["category_id"]] for a in record["annotations"]} if groups else ()
    return next((g for g in GROUPS if g in found), None)


def choose_images(records: list[dict], groups: list[str] | None, num: int, seed: int = 0) -> list:
    """The records to draw, those with rare classes first; see the text at the top.

    Args:
        records: dataset dicts with contiguous class ids.
        groups: (C,) 'r', 'c' or 'f'; None: all classes are alike.
        num: how many; all records if there are fewer.
        seed: another one prefers other images.
    """
    order = sorted(records, key=lambda record: record["image_id"])
    random.Random(seed).shuffle(order)
    pools = {group: [] for group in (*GROUPS, None)}
    for record in order:
        pools[rarest_group(record, groups)].append(record)
    rare = math.ceil(num / 2)
    common = math.ceil((num - rare) / 2)
    wanted = {"r": rare, "c": common, "f": num - rare - common, None: 0}
    shares = {g: min(wanted[g], len(pools[g])) for g in pools}
    for g, pool in pools.items():  # a group without enough images leaves room to the others
        shares[g] += min(num - sum(shares.values()), len(pool) - shares[g])
    return [record for g, pool in pools.items() for record in _take(pool, groups, g, shares[g])]


def _take(pool: list[dict], groups, group, num: int) -> list[dict]:
    """Remove `num` records from `pool`, each time one with most unseen classes of `group`."""
    taken, seen = [], set()
    while len(taken) < num:
        fresh = [_classes(record, groups, group) - seen for record in pool]
        best = max(
            range(len(pool)), key=lambda i: (len(pool[i]["annotations"]) <= CROWDED, len(fresh[i]))
        )
        seen |= fresh[best]
        taken.append(pool.pop(best))
    return taken


def _classes(record: dict, groups, group) -> set[int]:
    """The classes in an image that are of `group`; all of them if there are no groups."""
    found = {a["category_id"] for a in record["annotations"]}
    return {k for k in found if groups[k] == group} if groups else found


def groups_of_run(run: Path, dataset: str) -> list[str] | None:
    """(C,) groups as the result record of a run has them; None: it has none."""
    record = run / "results" / f"{dataset}.json"
    return read_record(record)["per_class"].get("group") if record.is_file() else None


# ---- drawing ---------------------------------------------------------------------------------


def class_color(class_id: int) -> tuple[float, float, float]:
    """RGB in [0, 1]; the same class has the same colour in every picture."""
    turn = class_id * 0.6180339887 % 1  # golden ratio: classes that follow each other differ
    hue = np.interp(turn, np.linspace(0, 1, len(HUES)), HUES) / 360
    return colorsys.hsv_to_rgb(hue, 0.85, (1.0, 0.75)[class_id // 5 % 2])


def text_color(background: tuple[float, float, float]) -> str:
    """Black or white, whichever reads better (luma weights of ITU-R BT.601)."""
    return "black" if np.dot(background, (0.299, 0.587, 0.114)) > 0.55 else "white"


def fit_text(text, width: float) -> None:
    """Shorten a text until it is at most `width` pixels wide."""
    full = text.get_text()
    for length in range(len(full) - 1, 0, -1):
        if text.get_window_extent().width <= width:
            return
        text.set_text(full[:length] + "…")


def contact_sheet(pictures: list[np.ndarray], columns: int = 2) -> np.ndarray:
    """All pictures on one white page, row by row."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    column_width = max(p.shape[1] for p in pictures)
    heights = [max(p.shape[0] for p in row) for row in rows]
    used = min(columns, len(pictures))
    width = used * (column_width + GUTTER) - GUTTER
    sheet = np.full((sum(heights), width, 3), 255, dtype=np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for i, picture in enumerate(row):
            left = i * (column_width + GUTTER)
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        top += height
    return sheet
