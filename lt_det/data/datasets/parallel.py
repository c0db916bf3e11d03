"""A function over many files, in processes, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from lt_det.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items a process takes at a time: few enough that the bar moves.
_CHUNK = 16


def default_workers() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_files(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, title: str
) -> list[Result]:
    """``[function(i) for i in items]``, in that order.

    Args:
        function: defined at the top of a module, so that processes can receive it.
        items: what it is called with.
        workers: processes; 1 stays in this one.
        title: in front of the bar, on stderr; the bar is shown on a terminal only.

    Raises:
        ConfigError: fewer than one worker.
    """
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    if workers == 1 or len(items) <= _CHUNK:
        return _with_bar(map(function, items), len(items), title)
    with ProcessPoolExecutor(min(workers, len(items) // _CHUNK + 1)) as pool:
        return _with_bar(pool.map(function, items, chunksize=_CHUNK), len(items), title)


def _with_bar(results: Iterable[Result], total: int, title: str) -> list[Result]:
    bar: Iterator[Result] = tqdm(results, desc=title, total=total, unit="file", disable=None)
    return list(bar)
