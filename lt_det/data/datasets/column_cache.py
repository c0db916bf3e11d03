"""The columns of an annotation file: from the cache, or made and put there.

A data set has one cache file, which processes map into memory. It comes into being under its
name complete, so it is either there or not; what it was made from is in it.
"""

from __future__ import annotations

import contextlib
import glob
import io
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from lt_det.data.datasets.column_builder import ColumnBuilder, UnusualEntry
from lt_det.data.datasets.columns import (
    ColumnFile,
    Columns,
    OtherStamp,
    map_columns,
    read_columns,
)
from lt_det.data.datasets.file_cache import cache_path, file_stamp, lock_if_possible
from lt_det.evaluation.json_stream import NotStreamable, stream_lists

logger = logging.getLogger(__name__)

# Raise it when the columns or the rules for what is left out change: older files are made anew.
VERSION = 1
# Smaller files are read about as fast as a cache file of theirs is checked and mapped; so the
# cache folder holds nothing but what saves time.
MIN_CACHED_BYTES = 2**20

Lists = Iterator[tuple[str, list[dict]]]


@dataclass(frozen=True, eq=False)
class OpenColumns:
    """The columns of an annotation file.

    Attributes:
        columns: of its images and annotations.
        about: `stamp`, what they were made from; `categories`, the entries of the file;
            `left_out`, see `annotations.Tally.rows`.
        path: the file that they are mapped from; None = they are in memory only.
    """

    columns: Columns
    about: dict
    path: str | None


def open_columns(
    local: str,
    file_format: str,
    check: bool,
    cache_dir: str | None,
    read_whole: Callable[[], Lists],
) -> OpenColumns | None:
    """The columns of an annotation file.

    Of several processes that want the same ones at once, one makes them and the others wait.

    Args:
        local: annotation file.
        file_format: "lvis" or "coco".
        check: see `lvis_format.load_lvis_format`.
        cache_dir: folder of the cache file; None or "" = none is read or written. A folder that
            cannot be written means no cache, not an error.
        read_whole: gives the lists of a file that cannot be streamed.

    Returns:
        None if the file has entries that columns cannot hold, or that are wrong.
    """
    stamp = file_stamp(local, version=VERSION, format=file_format, check=check)
    source = _Source(local, stamp, read_whole)
    if not cache_dir or os.path.getsize(local) < MIN_CACHED_BYTES:
        return _make_in_memory(source)
    path = cache_path(os.path.abspath(local), f"{file_format} {check}", cache_dir, ".columns")
    found = _read_cache(path, stamp)
    if found is None:
        with lock_if_possible(path) as locked:
            if locked:
                _remove_unfinished(path)
            found = _read_cache(path, stamp, report=False) or _make(path, source)
    return found


@dataclass(frozen=True)
class _Source:
    local: str
    stamp: dict
    read_whole: Callable[[], Lists]


def _read_cache(path: str, stamp: dict, report: bool = True) -> OpenColumns | None:
    """The cached columns; None, with a log line that says why, if they cannot be used."""
    try:
        return OpenColumns(*map_columns(path, stamp), path)
    except FileNotFoundError:
        return None
    except OtherStamp:
        reason = f"it is not what the cache {path} was made from"
    except (OSError, ValueError) as e:
        reason = f"the cache {path} cannot be used: {e}"
    if report:
        logger.warning(f"file {stamp['path']} is read again, {reason}")
    return None


def _remove_unfinished(path: str) -> None:
    """Remove what processes left that were killed while they wrote; nobody else writes now."""
    for left in glob.glob(f"{glob.escape(path)}.*.tmp"):
        with contextlib.suppress(OSError):
            os.unlink(left)


def _make(path: str, source: _Source) -> OpenColumns | None:
    """Write the cache file and map it; without it, if it cannot be written."""
    # Not `tempfile`, whose files only their owner may read: data folders are shared.
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "w+b") as out:
            if not _write(out, source):
                return None
        os.replace(temporary, path)
        return OpenColumns(*map_columns(path), path)
    except OSError as e:
        logger.info(f"file {source.local} is not cached: {e}")
        return _make_in_memory(source)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _make_in_memory(source: _Source) -> OpenColumns | None:
    out = io.BytesIO()
    return OpenColumns(*read_columns(out.getbuffer()), None) if _write(out, source) else None


def _write(out: BinaryIO, source: _Source) -> bool:
    """Write the columns of a file; False if they cannot hold its entries."""
    try:
        try:
            _write_lists(out, source, stream_lists(source.local))
        except NotStreamable as e:
            logger.info(f"file {source.local} is read as a whole: {e}")
            _write_lists(out, source, source.read_whole())
    except UnusualEntry as e:
        logger.info(f"file {source.local} is read entry by entry: {e}")
        return False
    return True


def _write_lists(out: BinaryIO, source: _Source, lists: Lists) -> None:
    out.seek(0)
    out.truncate()
    file = ColumnFile(out)
    stamp = source.stamp
    builder = ColumnBuilder(file, source.local, stamp["format"], stamp["check"])
    for key, entries in lists:
        builder.add(key, entries)
    categories, tally = builder.finish()
    file.close({"stamp": stamp, "categories": categories, "left_out": tally.rows()})
