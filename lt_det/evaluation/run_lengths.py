"""Masks as text: COCO's coding of run lengths, of many masks at once.

A mask is coded as the lengths of its runs, column by column, of 0 and 1 in turn. From the fourth on
a length is stored as its difference to the last but one. A number has groups of 5 bits, the lowest
first, each with 48 added; bit 5 says that another one follows, and the highest bit of the last
group is the sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FIRST, _LAST, _MORE, _SIGN = 48, 111, 32, 16


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


# ---- what pycocotools does not check, and then reads or counts for ever ------------------------


def is_run_length_text(text: bytes) -> bool:
    """Whether all characters are of the coding."""
    codes = np.frombuffer(text, dtype=np.uint8)
    return not len(codes) or bool(codes.min() >= _FIRST and codes.max() <= _LAST)


def first_broken_text(counts: np.ndarray, offsets: np.ndarray) -> int | None:
    """The first text that no numbers can be read from; None: all are fine.

    Args:
        counts: (B,) uint8 characters of N texts, one after the other.
        offsets: (N + 1,) ints, where each begins, and B.
    """
    if not len(counts):
        return None
    if counts.min() < _FIRST or counts.max() > _LAST:
        at = int(np.argmax((counts < _FIRST) | (counts > _LAST)))
        return int(np.searchsorted(offsets, at, side="right")) - 1
    ends = offsets[1:]
    unfinished = (counts[ends - 1] - np.uint8(_FIRST)) & _MORE > 0
    unfinished &= ends > offsets[:-1]
    return int(np.argmax(unfinished)) if unfinished.any() else None


def not_run_lengths(text: bytes | str) -> str:
    """What a message says of a mask with such counts."""
    text = text.encode() if isinstance(text, str) else text
    return f"has a mask whose counts are not run lengths as pycocotools codes them: {text!r:.60}"


def joined(texts: Sequence[bytes] | Sequence[str]) -> bytes:
    """One after the other; characters that are not of the coding may raise UnicodeEncodeError."""
    if texts and isinstance(texts[0], str):
        return "".join(texts).encode("ascii")
    return b"".join(texts)


def pixels_covered(texts: Sequence[bytes] | Sequence[str]) -> np.ndarray:
    """(N,) int64, the sum of the run lengths of each of N texts, which end with a whole number."""
    code = np.frombuffer(joined(texts), dtype=np.uint8) - np.uint8(_FIRST)
    last = np.flatnonzero(code < _MORE)
    value = (code[last] ^ _SIGN).astype(np.int64)
    value -= _SIGN
    # The numbers with more groups, and where the next one is; before a text, others end.
    at = last - 1
    longer = np.flatnonzero(code[at] >= _MORE)
    longer = longer[at[longer] >= 0]
    at = at[longer]
    while len(longer):
        value[longer] = (value[longer] << 5) + (code[at] & 31)
        at -= 1
        more = (code[at] >= _MORE) & (at >= 0)
        longer, at = longer[more], at[more]
    stop = np.searchsorted(last, np.cumsum(list(map(len, texts))))
    start = np.concatenate([np.zeros(1, stop.dtype), stop[:-1]])
    # A difference is part of every second run that follows; the first length is of the first run.
    times = np.repeat(stop + 1, stop - start)
    times -= np.arange(len(value))
    times >>= 1
    times[start[start < stop]] = 1
    value *= times
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(value)])
    return total[stop] - total[start]
