"""Class lists that come in a file of their own, as those of label maps and list files do."""

from __future__ import annotations

import json
import os

from lt_det.errors import DataError, MissingFileError

ID_KEYS = ("id", "index")


def read_class_names(path: str | os.PathLike) -> list[str]:
    """Class names in the order of their class ids.

    Accepted are

    * JSON: a list of names, or of objects with a `name`, or an object that has one of these as
      its `categories` or `classes`. Objects that also have an `id` or `index` are sorted by it;
      these numbers must run from 0 or from 1 without a gap.
    * A table with a heading whose last column is called Name, separated by tabs or commas:
      ADE20K's objectInfo150.txt.
    * Any other text: one name per line; empty lines are left out.

    Raises:
        MissingFileError: no such file.
        DataError: none of these forms, or no name. A name may come twice, as ImageNet's "crane".
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise MissingFileError(
            f"class list {path} does not exist (looked for {os.path.abspath(path)})"
        )
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as e:
        raise DataError(f"class list {path} is not a text file, see byte {e.start}") from e
    names = _from_json(text, path) if text.lstrip()[:1] in ("[", "{") else _from_text(text)
    if not names:
        raise DataError(f"class list {path} holds no name")
    return names


def _from_text(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for separator in "\t,":
        if lines and lines[0].lower().endswith(f"{separator}name"):
            return [line.rsplit(separator, 1)[-1].strip() for line in lines[1:]]
    return lines


def _from_json(text: str, path: str) -> list[str]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as e:
        raise DataError(
            f"class list {path}: not valid JSON at line {e.lineno} column {e.colno}: {e.msg}"
        ) from e
    if isinstance(content, dict):
        content = content.get("categories", content.get("classes"))
    if not isinstance(content, list):
        raise DataError(
            f"class list {path}: expected a list, or an object with `categories` or `classes`"
        )
    if all(isinstance(entry, str) for entry in content):
        return content
    for number, entry in enumerate(content):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise DataError(
                f"class list {path}: entry {number} is {entry!r}, expected a name or an object "
                "with a `name`"
            )
    return [entry["name"] for entry in _in_order(content, path)]


def _in_order(entries: list[dict], path: str) -> list[dict]:
    key = next((k for k in ID_KEYS if any(k in entry for entry in entries)), None)
    if key is None:
        return entries
    ids = [entry.get(key) for entry in entries]
    first = 0 if 0 in ids else 1
    place = {number: i for i, number in enumerate(ids)}
    missing = [k for k in range(first, first + len(ids)) if k not in place]
    if missing:
        raise DataError(
            f"class list {path}: `{key}` must run from 0 or 1 without a gap; "
            f"there are {len(ids)} entries, and none has {key} {missing[0]}"
        )
    return [entries[place[k]] for k in range(first, first + len(ids))]
