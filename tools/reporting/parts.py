"""What the sections of a report share: names and marks of groups and runs, axes of class size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lt_det.evaluation.groups import GROUP_WORDS, GROUPS
from reporting.charts import LEFT, RIGHT, WIDTH, Scale, log_range
from reporting.html import Html, element
from reporting.runs import Measure, Run

# Pixels of a chart that stands alone.
WIDE = 860


@dataclass(frozen=True)
class Section:
    """Part of the page: its id in links, its title, its short title in the contents."""

    key: str
    title: str
    short: str
    content: Sequence


def group_word(run: Run, letter: str) -> str:
    """Such as "rare"; "all" for all classes."""
    return GROUP_WORDS[run.task].get(letter, letter)


def chip(run: Run, letter: str) -> Html:
    """The name of a group with its mark."""
    if letter == "all":
        return Html("all")
    mark = element("i", class_=f"chip g-{letter}")
    return element("span", mark, group_word(run, letter), class_="group")


def groups_with_classes(run: Run) -> list[str]:
    """Letters of the groups that have classes, in the order of the tables."""
    return [g for g in GROUPS if run.groups and g in run.groups]


def legend(run: Run) -> Html:
    """What the marks of the groups stand for, with the number of their classes."""
    parts = [
        element("li", chip(run, g), element("span", str(run.groups.count(g)), class_="muted"))
        for g in groups_with_classes(run)
    ]
    return element("ul", parts, class_="legend")


def run_legend(runs: Sequence[Run]) -> Html | None:
    """The colour of each run, where there are several."""
    if len(runs) == 1:
        return None
    rows = [
        element("li", element("i", class_=f"stroke run-{k % 6}"), run.label)
        for k, run in enumerate(runs)
    ]
    return element("ul", rows, class_="legend")


def parts_switch(measures: Sequence[Measure]) -> Html | None:
    """Buttons that choose what is shown, where there are boxes and masks."""
    if len(measures) == 1:
        return None
    buttons = [
        element(
            "button", m.title, type="button", data_part=m.column, aria_pressed=str(not k).lower()
        )
        for k, m in enumerate(measures)
    ]
    return element("div", buttons, class_="switch", role="group", aria_label="what is shown")


def part(measure: Measure, *content) -> Html:
    """What belongs to one measure; the switch hides the others."""
    return element("div", content, data_shown=measure.column)


def class_text(run: Run, k: int, rest: str) -> str:
    """What is shown of class `k`: group, size, and `rest`."""
    parts = [group_word(run, run.groups[k])] if run.groups else []
    if run.size_column():
        size = run.record["per_class"][run.size_column()][k]
        parts += [] if size is None else [f"{size:,.0f} {size_title(run)}"]
    return ", ".join([*parts, rest])


def size_title(run: Run) -> str:
    """Such as "training images"."""
    return run.size_column().replace("train_", "training ")


def size_axis(run: Run, width: int = WIDTH) -> tuple[np.ndarray, Scale]:
    """(C,) sizes, NaN: not known, and their axis; one half stands for no training examples."""
    size = run.sizes()
    positive = size[size > 0]
    zero = 0.5 if (size == 0).any() else None
    low, high = log_range(positive if len(positive) else np.array([1.0, 10.0]))
    return size, Scale(zero * 0.8 if zero else low, high, LEFT, width - RIGHT, True, zero)


def group_value(run: Run, measure: Measure, letter: str) -> float:
    """The mean of a group, or of all classes, as the record has it; NaN: none."""
    return run.total(measure.total if letter == "all" else measure.groups[letter])


def mark_group(letter: str) -> str:
    """The letter that gives a mark its shape; all classes have none."""
    return "" if letter == "all" else letter
