"""Class counts as one JSON object and as tables.

The report of a data set of C classes is a dict::

    format_version              1
    source, kind                what was opened, and "annotations", "label maps" or "image list"
    fingerprint                 of the class names and counts
    num_images                  images; `num_images_without_class`: of these, without any class
    num_classes                 C; `num_classes_without_images`: of these, in no image
    group_by                    what the groups are by: "borders", "file" (its own groups), or
                                "pixels" or "images" (thirds of the classes ranked by these)
    borders                     [last image count of r, last of c]; null unless group_by "borders"
    totals                      {unit: sum over the classes}; a unit is "images" (an image counts
                                once for each of its classes), "instances" or "pixels"
    imbalance_factor            {unit: largest / smallest count of the classes that have any}
    gini                        {unit: Gini coefficient; classes without images are zeros}
    top_tenth                   {unit: part, 0..1, that the C / 10 largest classes hold}
    groups                      {"r", "c", "f": {"classes": number, unit: part, 0..1}}
    per_class                   {"name", "group", unit: (C,) list}, by class id
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lt_det.data.examine import IMAGE_LIST, JSON, LABEL_MAPS, Examined
from lt_det.data.imbalance import gini, group_shares, imbalance_factor, top_share
from lt_det.evaluation.groups import GROUP_WORDS, GROUPS, group_sizes
from lt_det.evaluation.results import markdown

FORMAT_VERSION = 1
# Task of a kind of data, for the words of its groups.
_TASKS = {JSON: "instance", LABEL_MAPS: "sem_seg", IMAGE_LIST: "classification"}
# More classes than these are shown by both ends of the order.
MAX_ROWS = 40
ROWS_PER_END = 10


def class_report(found: Examined) -> dict:
    """The report, in plain Python types; see the module."""
    counts, amounts = found.counts, found.amounts
    top = max(1, round(len(counts.names) / 10))
    shares = {unit: group_shares(n, counts.groups) for unit, n in amounts.items()}
    sizes = group_sizes(counts.groups)
    return {
        "format_version": FORMAT_VERSION,
        "source": counts.source,
        "kind": found.kind,
        "fingerprint": counts.fingerprint,
        "num_images": counts.num_images,
        "num_images_without_class": counts.empty_images,
        "num_classes": len(counts.names),
        "num_classes_without_images": int((counts.images == 0).sum()),
        "group_by": found.group_by,
        "borders": None if found.borders is None else list(found.borders),
        "totals": {unit: int(n.sum()) for unit, n in amounts.items()},
        "imbalance_factor": {unit: imbalance_factor(n) for unit, n in amounts.items()},
        "gini": {unit: gini(n) for unit, n in amounts.items()},
        "top_tenth": {unit: top_share(n, top) for unit, n in amounts.items()},
        "groups": {
            g: {"classes": sizes[g], **{unit: shares[unit][g] for unit in amounts}} for g in GROUPS
        },
        "per_class": {
            "name": list(counts.names),
            "group": list(counts.groups),
            **{unit: n.tolist() for unit, n in amounts.items()},
        },
    }


def units_of(report: Mapping) -> list[str]:
    """The units: "images" and, if the data have it, "instances" or "pixels"."""
    return list(report["totals"])


def group_words(report: Mapping) -> dict[str, str]:
    """What the groups of data of this kind are called: letter -> word."""
    return GROUP_WORDS[_TASKS[report["kind"]]]


def group_rule(report: Mapping) -> str:
    """Which rule made the groups, in words."""
    if report["group_by"] == "file":
        return "groups of the file"
    words = group_words(report)
    rare, common, frequent = (f"{words[g]} ({g})" for g in GROUPS)
    if report["group_by"] == "borders":
        low, high = report["borders"]
        return f"{rare}: up to {low} images, {common}: up to {high}, {frequent}: more"
    return f"{frequent}, {common}, {rare}: thirds of the classes by {report['group_by']}"


def frequency_order(report: Mapping) -> np.ndarray:
    """(C,) class ids from the most to the fewest images; then by the other unit, then by id."""
    columns = [-np.array(report["per_class"][unit]) for unit in units_of(report)]
    return np.lexsort(columns[::-1])


def shown_classes(report: Mapping, top: int | None) -> np.ndarray:
    """Class ids of a table, from frequent to rare.

    Args:
        report: see the module.
        top: as many of either end; 0: all; None: all of up to 40 classes, else 10 of either end.
    """
    order = frequency_order(report)
    if top is None:
        top = 0 if len(order) <= MAX_ROWS else ROWS_PER_END
    return order if not 0 < top < len(order) / 2 else np.concatenate([order[:top], order[-top:]])


def summary_text(report: Mapping) -> str:
    """A line on the data and a table of each unit's total, imbalance and groups."""
    units = units_of(report)
    number = f"{report['num_images']:,} images ({report['num_images_without_class']:,} without"
    lines = [
        ["", "classes", *units],
        ["total", str(report["num_classes"]), *(f"{report['totals'][u]:,}" for u in units)],
        ["imbalance factor", "", *(f"{report['imbalance_factor'][u]:,.1f}" for u in units)],
        ["Gini coefficient", "", *(f"{report['gini'][u]:.3f}" for u in units)],
        ["top tenth of classes", "", *(_percent(report["top_tenth"][u]) for u in units)],
    ]
    for g in reversed(GROUPS):
        group = report["groups"][g]
        shares = [_percent(group[u]) for u in units]
        lines.append([f"{group_words(report)[g]} ({g})", str(group["classes"]), *shares])
    return (
        f"{report['source']} ({report['kind']})\n"
        f"{number} any class), {report['num_classes']:,} classes "
        f"({report['num_classes_without_images']:,} without images); "
        f"{group_rule(report)}\n\n{markdown(lines)}"
    )


def class_table(report: Mapping, classes: Sequence[int]) -> str:
    """A Markdown table with one row for each of these class ids."""
    units, columns = units_of(report), report["per_class"]
    lines = [["class", "id", "group", *(word for u in units for word in (u, "share"))]]
    for k in classes:
        numbers = [
            cell
            for u in units
            for cell in (f"{columns[u][k]:,}", _percent(columns[u][k] / report["totals"][u]))
        ]
        lines.append([columns["name"][k], str(k), columns["group"][k], *numbers])
    return markdown(lines, left=1)


def _percent(part: float) -> str:
    return f"{100 * part:.2f} %"
