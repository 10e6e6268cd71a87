"""JSON files of people: each key with its line, so that an error or a warning can name it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rustguard_py.model.errors import UsageError
from rustguard_py.model.printable import printable

# A file of people is short. A device or a fifo that was named by mistake isn't read without end.
_MOST_BYTES = 1 << 20
# Any string of JSON, and whether it is a key.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value and place.

    Attributes:
        key: As it is written.
        value: From JSON: None, bool, int, float, str, list, or a tuple of entries for an object.
        path: The file.
        line: In which the key is, from 1.
    """

    key: str
    value: object
    path: Path
    line: int

    def refuse(self, what: str, fix: str) -> NoReturn:
        """Raise a UsageError which names the file, the line and the key."""
        raise UsageError(f"{self.path}, line {self.line}: {printable(self.key)} {what}.", fix)


def read_object(path: Path) -> tuple[Entry, ...]:
    """Return the entries of the object that a file holds.

    Raises:
        UsageError: It isn't there or can't be read, or it isn't JSON, or no object.
    """
    try:
        with path.open("rb") as file:
            # Editors on Windows begin a file with a byte order mark.
            text = file.read(_MOST_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it isn't UTF-8"
        raise UsageError(
            f"{path} can't be read: {why}.", "Write that file; docs/guide/vpp.md has an example."
        ) from error
    if len(text) > _MOST_BYTES:
        raise UsageError(f"{path} is longer than 1 MiB.", "Is it the right file?")
    try:
        found = json.loads(text, object_pairs_hook=tuple, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise UsageError(
            f"{path}, line {line}: this isn't JSON ({error}).",
            "Correct it. JSON has no comments, and no comma before } or ].",
        ) from error
    if not isinstance(found, tuple):
        raise UsageError(f"{path} holds no JSON object.", "It begins with { and ends with }.")
    return _with_lines(found, path, _lines_of_keys(text))


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _lines_of_keys(text: str) -> Iterator[int]:
    """Yield the line of each key, in the order in which they stand in the text."""
    line, seen = 1, 0
    for found in _STRING.finditer(text):
        if found[1] is not None:
            line += text.count("\n", seen, found.start())
            seen = found.start()
            yield line


def _with_lines(pairs: tuple[tuple[str, object], ...], path: Path, lines: Iterator[int]) -> tuple[Entry, ...]:
    """Return entries for pairs. The keys of a value come after its own key and before the next."""
    entries = []
    for key, value in pairs:
        line = next(lines)
        entries.append(Entry(key, _valued(value, path, lines), path, line))
    return tuple(entries)


def _valued(value: object, path: Path, lines: Iterator[int]) -> object:
    if isinstance(value, tuple):
        return _with_lines(value, path, lines)
    if isinstance(value, list):
        return [_valued(each, path, lines) for each in value]
    return value
