"""Reads a JSON object strictly: each member must be there, have its type, and none may be left over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rustguard_py.model.errors import StateError, UsageError
from rustguard_py.model.keys import decode_key

T = TypeVar("T")

# Far behind any date, and small enough for a float: NaN, infinity and a thousand digits are no times.
_LAST_SECOND = 2**53


class Members:
    """The members of one JSON object, each of which is taken once.

    Args:
        value: The JSON object.
        where: The object's name in errors, `peers[17]`; empty for the outermost.
    """

    __slots__ = ("_left", "_where")

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise _bad(where or "the state", "is not a JSON object")
        self._left = dict(value)
        self._where = where

    def name(self, member: str) -> str:
        """Return a member's name in errors: `peers[17].name`."""
        return f"{self._where}.{member}" if self._where else member

    def bad(self, member: str, why: str) -> StateError:
        """Return the error for an invalid member. `why` must contain no secret."""
        return _bad(self.name(member), why)

    def has(self, member: str) -> bool:
        """Return whether an optional member is there."""
        return member in self._left

    def take(self, member: str) -> object:
        """Take a member of any type."""
        if member not in self._left:
            raise self.bad(member, "is missing")
        return self._left.pop(member)

    def text(self, member: str) -> str:
        """Take a string."""
        value = self.take(member)
        if not isinstance(value, str):
            raise self.bad(member, "is not a string")
        return value

    def integer(self, member: str, least: int, most: int) -> int:
        """Take an integer between two bounds, both included."""
        value = self.take(member)
        if type(value) is not int or not least <= value <= most:
            raise self.bad(member, f"is not an integer from {least} to {most}")
        return value

    def seconds(self, member: str) -> float:
        """Take a time in seconds, not negative."""
        value = self.take(member)
        if type(value) not in (int, float) or not isinstance(value, int | float) or not 0 <= value <= _LAST_SECOND:
            raise self.bad(member, "is not a number of seconds")
        return float(value)

    def boolean(self, member: str) -> bool:
        """Take true or false."""
        value = self.take(member)
        if not isinstance(value, bool):
            raise self.bad(member, "is not true or false")
        return value

    def key(self, member: str) -> bytes:
        """Take 32 bytes, in base64."""
        return self._key(member, self.text(member))

    def keys(self, member: str) -> list[bytes]:
        """Take a list of keys: 32 bytes each, as base64."""
        return [self._key(f"{member}[{index}]", text) for index, text in enumerate(self._texts(member))]

    def parsed(self, member: str, parse: Callable[[str], T]) -> T:
        """Take a string and return its parsed value. `parse`, such as `IPv4Address`, may raise ValueError."""
        return self._parse(member, self.text(member), parse)

    def optional(self, member: str, parse: Callable[[str], T]) -> T | None:
        """Take a string and return its parsed value, or None for null."""
        if self._left.get(member, "") is None:
            del self._left[member]
            return None
        return self.parsed(member, parse)

    def each(self, member: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        """Take a list of strings and return their parsed values."""
        texts = enumerate(self._texts(member))
        return tuple(self._parse(f"{member}[{index}]", text, parse) for index, text in texts)

    def array(self, member: str) -> list[object]:
        """Take a list of anything."""
        value = self.take(member)
        if not isinstance(value, list):
            raise self.bad(member, "is not a list")
        return value

    def end(self) -> None:
        """Refuse members that were not taken, because the next save would lose them."""
        for member in self._left:
            raise StateError(
                self.bad(member, "is not known to this version").message,
                "A later version of RustGuard wrote it: upgrade. To stay with this version: rustguard restore FILE "
                "--overwrite, with a backup that it made.",
            )

    def _texts(self, member: str) -> list[str]:
        texts = []
        for index, value in enumerate(self.array(member)):
            if not isinstance(value, str):
                raise self.bad(f"{member}[{index}]", "is not a string")
            texts.append(value)
        return texts

    def _key(self, member: str, text: str) -> bytes:
        try:
            return decode_key(text)
        except UsageError:
            raise self.bad(member, "is not 32 bytes in base64") from None

    def _parse(self, member: str, text: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise self.bad(member, f"is invalid: {error}") from None


def _bad(name: str, why: str) -> StateError:
    return StateError(
        f"The state can't be used: {name} {why}.",
        "Go back to the state.json.bak next to it, or upgrade RustGuard if a later version wrote it.",
    )
