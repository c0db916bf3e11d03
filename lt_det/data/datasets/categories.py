"""The category list of a file in LVIS or COCO form."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lt_det.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassList:
    """The category list of a file, in order of id: (C,) each."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    synonyms: tuple[str, ...]  # first synonym, or the name: what Detectron2 calls an LVIS class
    frequency: tuple[str, ...] | None

    def contiguous(self) -> dict[int, int]:
        """Category id -> class id 0..C-1."""
        return {category_id: i for i, category_id in enumerate(self.ids)}


def read_classes(categories: list[dict], path: str) -> ClassList:
    """The class list, sorted by category id.

    Raises:
        DataError: no category, a category without `id` or `name`, an id that is used twice,
            a frequency other than r, c, f.
    """
    if not categories:
        raise DataError(f"file {path}: lists no category")
    for i, category in enumerate(categories):
        for key in ("id", "name"):
            if key not in category:
                raise DataError(f"file {path}: category number {i} lacks the key {key!r}")
        if not isinstance(category["id"], int):
            raise DataError(f"file {path}: category id {category['id']!r} is not a whole number")
    ordered = sorted(categories, key=lambda c: c["id"])
    ids = tuple(c["id"] for c in ordered)
    names = tuple(str(c["name"]) for c in ordered)
    repeated = first_repeated(ids)
    if repeated is not None:
        raise DataError(f"file {path}: category id {repeated} is used twice")
    if len(set(names)) < len(names):
        logger.warning(f"file {path}: several categories are named {first_repeated(names)!r}")
    synonyms = tuple((c.get("synonyms") or [n])[0] for c, n in zip(ordered, names, strict=True))
    return ClassList(ids, names, synonyms, _read_frequency(ordered, path))


def _read_frequency(categories: list[dict], path: str) -> tuple[str, ...] | None:
    frequency = tuple(c.get("frequency") for c in categories)
    for category, value in zip(categories, frequency, strict=True):
        if value not in ("r", "c", "f", None):
            raise DataError(
                f"file {path}: category id {category['id']} has frequency {value!r}; "
                "accepted: 'r', 'c', 'f'"
            )
    missing = frequency.count(None)
    if 0 < missing < len(frequency):
        logger.warning(
            f"file {path}: {missing} of {len(frequency)} categories have no `frequency`; "
            "the groups r, c, f will come from image counts"
        )
    return None if missing else frequency


def first_repeated(values):
    """The first value that came before, or None."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
