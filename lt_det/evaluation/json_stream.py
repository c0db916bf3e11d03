"""The lists of objects of a large JSON file, in blocks: the file is never held in memory.

A block of about `BLOCK_BYTES` is cut where one object of a list ends and the next begins, and is
parsed by itself. Such a place is looked for as text (``}``, a comma, ``{``), so it may lie inside
a string or a nested list; what stands before it is then no balanced JSON and does not parse, and
another place is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import orjson

# Large enough that the work per block does not count, small enough for the processor's cache.
BLOCK_BYTES = 2**19
# Places tried in a buffer before it is extended, and what the buffer may grow to.
MAX_TRIES = 32
MAX_BUFFER = 2**26

_SPACE = b" \t\n\r"
_KEY = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:\s*(?=\S)', re.S)
_BETWEEN = re.compile(rb"\}\s*(,)\s*(?=\{)")
_EMPTY_LIST = re.compile(rb"\[\s*\]")
_LIST_OF_OBJECTS = re.compile(rb"\[\s*(?=\{)")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.S)
_SCALAR = re.compile(rb"[^\s,\[\]{}\"]+(?=[\s,}])")


class NotStreamable(Exception):
    """The file has to be read as a whole: it is broken, holds NaN or has an odd form."""


def stream_lists(path: str, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[str, list]]:
    """The lists of objects at the top of a JSON file, in blocks.

    Args:
        path: a local file that holds an object.
        block_bytes: size of a block, about.

    Yields:
        (key, entries) of each block in the order of the file; an empty list gives one empty
        block. Other values are skipped.

    Raises:
        NotStreamable: the file is not JSON as orjson reads it, does not hold an object, or has
            no place to cut in `MAX_BUFFER` bytes. What was yielded before is then of no use.
    """
    with open(path, "rb") as f:
        yield from _Reader(f, block_bytes).lists()


class _Reader:
    """A file and the part of it that is read but not used yet."""

    def __init__(self, file, block_bytes: int):
        self.file, self.block_bytes = file, block_bytes
        self.buffer, self.at_end = b"", False

    def lists(self) -> Iterator[tuple[str, list]]:
        """See `stream_lists`.

        Raises:
            NotStreamable: see there.
        """
        self._expect(b"{")
        seen = set()
        if self._peek() == b"}":
            self._expect(b"}")
        else:
            while True:
                key = self._key()
                if key in seen:
                    raise NotStreamable(f"key {key!r} comes twice")
                seen.add(key)
                yield from self._value(key)
                if self._separator() == b"}":
                    break
        if self._peek():
            raise NotStreamable("text after the end of the object")

    def _more(self) -> None:
        """Extend the buffer by one block."""
        if self.at_end or len(self.buffer) > MAX_BUFFER:
            raise NotStreamable("the file ends early, or has no place to cut")
        block = self.file.read(max(self.block_bytes, len(self.buffer) // 2))
        self.at_end = not block
        self.buffer += block

    def _peek(self) -> bytes:
        """The next character that is not white space, b"" at the end of the file."""
        while True:
            self.buffer = self.buffer.lstrip(_SPACE)
            if self.buffer or self.at_end:
                return self.buffer[:1]
            self._more()

    def _expect(self, characters: bytes) -> bytes:
        found = self._peek()
        if not found or found not in characters:
            raise NotStreamable(f"{found!r} where one of {characters!r} belongs")
        self.buffer = self.buffer[1:]
        return found

    def _separator(self) -> bytes:
        return self._expect(b",}")

    def _match(self, pattern: re.Pattern) -> re.Match:
        """The match of `pattern` at the start of the buffer, which is extended until it does."""
        while (match := pattern.match(self.buffer)) is None:
            self._more()
        return match

    def _key(self) -> str:
        if self._peek() != b'"':
            raise NotStreamable("no key where one belongs")
        match = self._match(_KEY)
        key = _parse(match[1])
        self.buffer = self.buffer[match.end() :]
        return key

    def _value(self, key: str) -> Iterator[tuple[str, list]]:
        first = self._peek()
        if first != b"[":
            self._skip(first)
            return
        while self.buffer[1:].lstrip(_SPACE) == b"":
            self._more()
        if match := _EMPTY_LIST.match(self.buffer):
            self.buffer = self.buffer[match.end() :]
            yield key, []
        elif match := _LIST_OF_OBJECTS.match(self.buffer):
            self.buffer = self.buffer[match.end() :]
            yield from ((key, block) for block in self._objects())
        else:
            self._skip(first)

    def _skip(self, first: bytes) -> None:
        """Leave out a value; it is parsed, so that a broken one does not go unnoticed."""
        if first not in (b"{", b"["):
            pattern = _TOKEN if first == b'"' else _SCALAR
            end = self._match(pattern).end()
        else:
            while (end := _balanced_end(self.buffer)) is None:
                self._more()
        _parse(self.buffer[:end])
        self.buffer = self.buffer[end:]

    def _objects(self) -> Iterator[list]:
        """Blocks of a list whose first object the buffer begins with; the ``]`` is taken too."""
        while True:
            if len(self.buffer) < self.block_bytes and not self.at_end:
                self._more()
            block, end, last = self._cut()
            if block is None:
                self._more()
                continue
            self.buffer = self.buffer[end:]
            yield block
            if last:
                return

    def _cut(self) -> tuple[list | None, int, bool]:
        """The objects up to a cut, where the rest begins, and whether the list ends there."""
        for tries, (stop, rest) in enumerate(_places_between(self.buffer)):
            try:
                return orjson.loads(b"[%b]" % self.buffer[:stop]), rest, False
            except orjson.JSONDecodeError as e:
                if tries == 0 and (end := _list_end(self.buffer, e)):
                    return (*end, True)
            if tries == MAX_TRIES:
                return None, 0, False
        try:
            return orjson.loads(b"[%b" % self.buffer), len(self.buffer), True
        except orjson.JSONDecodeError as e:
            return (*(_list_end(self.buffer, e) or (None, 0)), True)


def _list_end(buffer: bytes, error: orjson.JSONDecodeError) -> tuple[list, int] | None:
    """The objects up to the end of the list, and where it ends, if that is where parsing failed.

    Args:
        buffer: begins after the ``[``.
        error: of ``[`` and the buffer; text after the end of the list is an error there.
    """
    text = b"[%b" % buffer
    place = error.pos  # in characters
    if not text.isascii():
        place = len(text.decode(errors="replace")[:place].encode())
    text = text[:place].rstrip(_SPACE)
    if not text.endswith(b"]"):
        return None
    try:
        return orjson.loads(text), len(text) - 1
    except orjson.JSONDecodeError:
        return None


def _places_between(buffer: bytes) -> Iterator[tuple[int, int]]:
    """Where an object may end and the next begin, the last place first."""
    end = len(buffer)
    while (end := buffer.rfind(b"}", 0, end)) >= 0:
        if match := _BETWEEN.match(buffer, end):
            yield match.start() + 1, match.end()


def _balanced_end(buffer: bytes) -> int | None:
    """Where the object or list at the start of the buffer ends."""
    depth = 0
    for match in _TOKEN.finditer(buffer):
        token = match[0]
        if token in b"[{":
            depth += 1
        elif token in b"]}":
            depth -= 1
            if depth == 0:
                return match.end()
    return None


def _parse(text: bytes):
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as e:
        raise NotStreamable(str(e)) from e
