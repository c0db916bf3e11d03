"""Pictures of tools/report.py: what a run makes of its best and its worst tail classes."""

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

from lt_det.data import register_from_config
from lt_det.engine.config import load_config
from lt_det.errors import DataError, LtDetError
from reporting.html import Html, element, fixed, note, sentence
from reporting.parts import Section, chip, group_word, groups_with_classes, size_title
from reporting.runs import CONFIG_FILE, Run

# Longest side of a picture in pixels, and quality of its JPEG: about 15 kB each.
SIDE, QUALITY = 320, 78
# Classes of each kind, for one run and for each of several.
CLASSES, CLASSES_OF_MANY = 3, 2
# More runs than this and the pictures of the others are left out, so that the page stays small.
MAX_RUNS = 3


# What follows the name of a group in "worst rare classes".
SHOTS = {"instance": "", "classification": "-shot", "sem_seg": ""}


# ---- which classes ---------------------------------------------------------------------------


def tail_group(run: Run, values: np.ndarray) -> str | None:
    """The rarest group in which two classes have a value; None: no groups."""
    for letter in groups_with_classes(run):
        if (~np.isnan(values[np.array(run.groups) == letter])).sum() > 1:
            return letter
    return None


def extreme_classes(values: np.ndarray, own: np.ndarray, number: int) -> tuple[list, list]:
    """Class ids with the lowest and with the highest values, disjoint, of those in `own`.

    Args:
        values: (C,), NaN: no value.
        own: (C,) bool.
        number: at most so many of each; of an odd number of classes the middle one is the worst's.
    """
    known = np.flatnonzero(own & ~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    worst = order[: min(number, (len(order) + 1) // 2)]
    best = order[::-1][: min(number, len(order) // 2)]
    return worst.tolist(), best.tolist()


# ---- pieces ----------------------------------------------------------------------------------


def jpeg(pixels: np.ndarray, longest: int = SIDE) -> str:
    """Address of an (H, W, 3) uint8 picture that holds the picture itself; made no larger."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def read_rgb(file: str) -> np.ndarray:
    """(H, W, 3) uint8.

    Raises:
        DataError: the image cannot be read.
    """
    try:
        return read_image(file, "RGB")
    except OSError as error:
        raise DataError(f"image {file} cannot be read: {error}") from error


def class_heading(run: Run, k: int, value: str) -> Html:
    """Name, group and value of a class above its pictures."""
    group = chip(run, run.groups[k]) if run.groups else None
    size = run.sizes()[k] if run.size_column() else np.nan
    text = value if np.isnan(size) else f"{value}, {size:,.0f} {size_title(run)}"
    about = element("span", text, class_="muted")
    return element("h4", element("span", run.names[k]), " ", group, " ", about, class_="class")


def register_sets(run: Run) -> None:
    """Make the data sets of a run's configuration known.

    Raises:
        MissingFileError, ConfigError: the configuration is not there or cannot be used.
    """
    register_from_config(load_config(str(run.in_folder(CONFIG_FILE))))


# ---- the section -----------------------------------------------------------------------------


def pictures_section(runs: Sequence[Run], makers: dict[str, Callable]) -> Section:
    """What each run makes of its tail classes.

    Args:
        runs: at least one.
        makers: task -> class that is made of a run and has `explanation()` and `of_class(k)`,
            which give HTML.
    """
    number = CLASSES if len(runs) == 1 else CLASSES_OF_MANY
    content = []
    for run in runs[:MAX_RUNS]:
        if len(runs) > 1:
            content.append(element("h3", run.label))
        try:
            content.append(_pictures(run, makers[run.task], number))
        except LtDetError as error:
            content.append(note(sentence(f"no pictures: {error}")))
    if len(runs) > MAX_RUNS:
        content.append(note(f"Pictures are those of the first {MAX_RUNS} runs."))
    return Section("pictures", "What does it look like?", "Pictures", content)


def _pictures(run: Run, maker: Callable, number: int) -> list:
    if not run.measures:
        raise DataError("the record has no class results")
    register_sets(run)
    measure, pictures = run.measures[0], maker(run)
    values = run.values(measure)
    letter = tail_group(run, values)
    own = np.ones(len(values), bool) if letter is None else np.array(run.groups) == letter
    worst, best = extreme_classes(values, own, number)
    word = f"{group_word(run, letter)}{SHOTS[run.task]} " if letter else ""
    content = [pictures.explanation()]
    for title, classes in ((f"Worst {word}classes", worst), (f"Best {word}classes", best)):
        if classes:
            content.append(element("h3", title))
        for k in classes:
            content.append(class_heading(run, k, f"{measure.title} {fixed(values[k])}"))
            content.append(pictures.of_class(k))
    return content
