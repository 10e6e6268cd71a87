"""Makes text that others wrote safe to show: on a terminal, in a log, in an error."""

from __future__ import annotations

import json
import re
from typing import Final

# Letters, marks and symbols that Python counts as printable, but that a terminal shows as nothing or as a blank: the
# combining grapheme joiner, Hangul and Khmer fillers, variation selectors, the blank Braille pattern.
_HIDDEN_CHARACTER: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def is_hidden(character: str) -> bool:
    """Return whether a terminal wouldn't show this character, or would obey it.

    These are control characters, format characters such as the marks that change the direction of text, separators
    other than the space, unpaired surrogates, unassigned characters, and those that look like nothing.
    """
    return not character.isprintable() or _HIDDEN_CHARACTER.match(character) is not None


def printable(text: str) -> str:
    r"""Return the text with each hidden character (see `is_hidden`) as an escape: `\x1b`, `\u202e`, `\U000e0100`."""
    if text.isprintable() and _HIDDEN_CHARACTER.search(text) is None:
        return text
    return "".join(_escape(character) if is_hidden(character) else character for character in text)


def printable_json(document: object, indent: int | None = None) -> str:
    """Return a document as JSON, with the hidden characters inside its strings as JSON's own escapes."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    return "\n".join(
        line if printable(line) == line else "".join(map(_json_escape, line)) for line in text.split("\n")
    )


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1] if is_hidden(character) else character


def _escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
