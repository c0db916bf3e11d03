"""Registries whose errors list what is known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator


class Registry:
    """A name -> object table.

    Args:
        kind: what the entries are, in the words of an error message ("loss").
        config_key: the configuration key whose value is looked up here.
    """

    def __init__(self, kind: str, config_key: str):
        self.kind = kind
        self.config_key = config_key
        self._entries: dict[str, object] = {}

    def register(self, name: str | None = None) -> Callable:
        """Decorator; the name is the object's ``__name__`` unless given.

        Raises:
            ValueError: the name is taken.
        """

        def add(entry):
            key = name or entry.__name__
            if key in self._entries:
                raise ValueError(f"{self.kind} {key!r} is registered twice")
            self._entries[key] = entry
            return entry

        return add

    def get(self, name: str):
        """The entry of that name.

        Raises:
            ValueError: unknown name; the message lists the known ones.
        """
        if name not in self._entries:
            raise ValueError(unknown_name(self.kind, name, self._entries, self.config_key))
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def unknown_name(kind: str, name: str, known, config_key: str) -> str:
    """The message of an unknown name: the name, the nearest known one, all known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r} in {config_key}.{hint} Known: {', '.join(known) or 'none'}."
