"""JSON files of annotations and predictions: reading with checks, reading and writing in pieces."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
from collections.abc import Iterable, Iterator

import orjson

from lt_det.errors import DataError
from lt_det.evaluation.results import atomic_file

# Bytes that are read at once. The entries of a piece are some ten times as large in memory.
BLOCK_BYTES = 8 << 20
# Where one entry of a list of objects ends and the next one begins. It also matches inside an
# entry that holds a list of objects itself; a piece cut there is not JSON.
_BORDER = re.compile(rb"\}\s*,\s*(?=\{)")


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """No garbage collection inside: it would walk millions of live objects again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def parse_json(raw: bytes, path: str):
    """The value that the JSON text `raw` holds; `path` is for the message.

    Raises:
        DataError: not JSON; the message names file, line, column and character.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass  # NaN or Infinity, which `json` reads, or broken text, whose place `json` tells
    try:
        return json.loads(raw)
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not a JSON file: byte {e.start} is not text") from e
    except json.JSONDecodeError as e:
        raise DataError(
            f"{path} is not a JSON file: {e.msg} at line {e.lineno} column {e.colno} "
            f"(character {e.pos} of {len(e.doc)}). Is it cut off?"
        ) from e


def read_json(path: str):
    """The value of a JSON file; raises as :func:`parse_json`."""
    with open(path, "rb") as f:
        raw = f.read()
    with gc_paused():
        return parse_json(raw, path)


def read_json_list(path: str, block_bytes: int = BLOCK_BYTES) -> Iterator[list]:
    """The entries of a JSON file that holds one list, in pieces, so that memory stays low.

    A file whose entries are not objects or that `orjson` does not read is read at once.

    Args:
        path: the file.
        block_bytes: the least size of the text of a piece, but for the last.

    Raises:
        DataError: not JSON, or not a list; the message names the file.
    """
    done = 0
    with contextlib.suppress(orjson.JSONDecodeError):
        for piece in _pieces(path, block_bytes):
            with gc_paused():
                entries = orjson.loads(piece)
            yield entries
            done += len(entries)
        return
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list, got {type(entries).__name__}")
    yield entries[done:]


def _pieces(path: str, block_bytes: int) -> Iterator[bytes]:
    """Texts of lists that together hold the entries of the list in the file.

    Raises:
        orjson.JSONDecodeError: the file does not begin as a list does.
    """
    with open(path, "rb") as f:
        rest = f.read(block_bytes).lstrip()
        if not rest.startswith(b"["):
            raise orjson.JSONDecodeError("not a list", "", 0)
        rest, searched = rest[1:], 0
        while block := f.read(block_bytes):
            rest += block
            border = _last_border(rest, searched)
            if border is None:
                # Not far before the end: a border may be cut in two.
                searched = max(0, len(rest) - 64)
                continue
            yield b"[" + rest[: border.start() + 1] + b"]"
            rest, searched = rest[border.end() :], 0
        yield b"[" + rest


def _last_border(text: bytes, start: int) -> re.Match | None:
    """The last border between entries in the last 4 kB that have one, after `start`."""
    step, end = 4096, len(text)
    while end > start:
        begin = max(start, end - step)
        found = list(_BORDER.finditer(text, begin))
        if found:
            return found[-1]
        end, step = begin, 2 * step
    return None


def write_json_list(path: str | os.PathLike, pieces: Iterable[bytes]) -> None:
    """Write one JSON list, all or nothing.

    Args:
        path: the file.
        pieces: JSON of some entries each, at least one, with commas between them.
    """
    with atomic_file(path, binary=True) as f, gc_paused():
        start = b"[\n"
        for entries in pieces:
            f.write(start)
            f.write(entries)
            start = b",\n"
        f.write(b"\n]\n" if start == b",\n" else b"[\n]\n")
