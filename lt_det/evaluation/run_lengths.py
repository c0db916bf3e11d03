"""Masks as text: COCO's coding of run lengths, of many masks at once."""

from __future__ import annotations

import numpy as np


def encode_edges(edges: np.ndarray, of: np.ndarray, number: int, pixels: int) -> list[bytes]:
    """The compressed run lengths of masks, as of ``pycocotools.mask.encode``.

    Args:
        edges: (E,) int64 pixels where masks start and end in turn, rising in each.
        of: (E,) int64 mask of each, 0..number - 1, rising.
        number: of masks; those that have no edge are empty.
        pixels: of the image.
    """
    edges, of = _with_ends(edges, of, number, pixels)
    if pixels < 2**31:
        edges = edges.astype(np.int32)
    sizes = np.bincount(of, minlength=number)
    starts = np.cumsum(sizes) - sizes
    counts = np.diff(edges, prepend=0)
    counts[starts] = edges[starts]
    # From the fourth on, a count is coded as its difference to the last but one.
    values = counts.copy()
    values[2:] -= counts[:-2]
    for k in range(3):
        some = starts[sizes > k] + k
        values[some] = counts[some]
    characters, lengths = _base_32(values)
    text = characters.tobytes()
    ends = np.add.reduceat(lengths, starts).cumsum().tolist() if number else []
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def _with_ends(edges: np.ndarray, of: np.ndarray, number: int, pixels: int):
    """With the last pixel as an edge of each mask that ends before it."""
    last = np.searchsorted(of, np.arange(number), side="right") - 1
    ended = np.zeros(number, dtype=bool)
    if len(edges):
        ended = (last >= 0) & (of[last] == np.arange(number)) & (edges[last] == pixels)
    wanting = np.flatnonzero(~ended)
    place = last[wanting] + 1
    return np.insert(edges, place, pixels), np.insert(of, place, wanting)


def _base_32(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed numbers in groups of 5 bits, lowest first: all uint8 characters, number of each.

    Bit 5 says that a group of the number follows, and 48 ("0") is added. The last group is the
    first whose highest bit is the sign of the number.
    """
    magnitude = values ^ (values >> (8 * values.itemsize - 1))  # of -n: n - 1
    sizes = np.ones(len(values), dtype=np.int64)
    longer, bits = np.flatnonzero(magnitude >= 16), 4
    while len(longer):
        sizes[longer] += 1
        bits += 5
        longer = longer[magnitude[longer] >> bits > 0]
    place = np.cumsum(sizes) - sizes
    characters = np.empty(int(sizes.sum()), dtype=np.uint8)
    characters[place] = (values & 31) + 48
    group, longer = 1, np.flatnonzero(sizes > 1)
    while len(longer):
        at = place[longer] + group
        characters[at - 1] += 32
        characters[at] = (values[longer] >> (5 * group) & 31) + 48
        group += 1
        longer = longer[sizes[longer] > group]
    return characters, sizes
