"""What pycocotools does not check of compressed run lengths, and then reads or counts for ever.

A mask is coded as the lengths of its runs, column by column, of 0 and 1 in turn. From the fourth on
a length is stored as its difference to the last but one. A number has groups of 5 bits, the lowest
first, each with 48 added; bit 5 says that another one follows, and the highest bit of the last
group is the sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FIRST, _LAST, _MORE, _SIGN = 48, 111, 32, 16


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


def pixels_covered(texts: Sequence[bytes]) -> np.ndarray:
    """(N,) int64, the sum of the run lengths of each of N texts, which end with a whole number."""
    code = np.frombuffer(b"".join(texts), dtype=np.uint8) - np.uint8(_FIRST)
    last = np.flatnonzero((code & _MORE) == 0)
    size = np.diff(last, prepend=-1)
    value = ((code[last] & 31) ^ _SIGN).astype(np.int64) - _SIGN
    for k in range(1, int(size.max()) if len(size) else 0):
        longer = np.flatnonzero(size > k)
        value[longer] = (value[longer] << 5) + (code[last[longer] - k] & 31)
    ends = np.cumsum([len(text) for text in texts])
    stop = np.searchsorted(last, ends, side="left")
    start = np.concatenate([np.zeros(1, stop.dtype), stop[:-1]])
    # A difference is part of every second run that follows; the first length is of the first run.
    following = np.repeat(stop, stop - start) - np.arange(len(value))
    times = (following + 1) // 2
    times[start[start < stop]] = 1
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(value * times)])
    return total[stop] - total[start]
