"""One function per type of value in wireguard-go-vpp's files. Each names file, line and fix in its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TypeVar

from rustguard_py.model.printable import printable
from rustguard_py.vpp.json_file import Entry

_Kind = TypeVar("_Kind", IPv4Network, IPv6Network)
_MOST = (1 << 32) - 1
# DPDK's and VPP's secrets have 24 bytes, the last of them zero.
_LONGEST_SECRET = 23

Taker = Callable[[Entry], object]


def take(
    entries: Sequence[Entry], known: Mapping[str, Taker], warn: Callable[[str], None], inside: str = ""
) -> dict[str, object]:
    """Return the values of known keys by name.

    Capital and small letters are the same and a later key replaces an earlier one of that name, as in Go's
    encoding/json. null is the same as a key that isn't there.

    Args:
        entries: Of one object.
        known: What takes each key's value.
        warn: Told of each key that isn't known.
        inside: The key that has this object as its value.
    """
    by_folded = {name.casefold(): name for name in known}
    values: dict[str, object] = {}
    for entry in entries:
        name = by_folded.get(entry.key.casefold())
        if name is None:
            place = f" in {inside}" if inside else ""
            warn(f"{entry.path}, line {entry.line}: {printable(entry.key)}{place} isn't known, so it is ignored.")
        elif entry.value is not None:
            values[name] = known[name](entry)
    return values


def number(entry: Entry) -> int:
    """Return a number from 0 to 2^32 - 1."""
    value = entry.value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        entry.refuse(f"must be a number from 0 to {_MOST}", f'Write it without quotes: "{entry.key}": 3')
    return value


def switch(entry: Entry) -> bool:
    """Return true or false."""
    if not isinstance(entry.value, bool):
        entry.refuse("must be true or false", f'Write it without quotes: "{entry.key}": true')
    return entry.value


def text(entry: Entry) -> str:
    """Return a string without control characters."""
    if not isinstance(entry.value, str) or printable(entry.value) != entry.value:
        entry.refuse("must be a string of printable characters", 'Write it with quotes: "…"')
    return entry.value


def secret(entry: Entry) -> bytes:
    """Return a memif's secret."""
    word = text(entry)
    if len(word.encode()) > _LONGEST_SECRET or any(character.isspace() for character in word):
        entry.refuse(f"must have at most {_LONGEST_SECRET} bytes and no blank", "Choose another secret.")
    return word.encode()


def one_of(*words: str) -> Taker:
    """Return what takes one of these words."""

    def taken(entry: Entry) -> str:
        if (word := text(entry)) not in words:
            entry.refuse(f"can't be {word!r}", f"Choose one of: {', '.join(words)}.")
        return word

    return taken


def paths(entry: Entry) -> tuple[Path, ...]:
    """Return a list of absolute paths."""
    strings = _strings(entry, '["/etc/wggo-vpp"]')
    if not all(each.startswith("/") for each in strings):
        entry.refuse("must list absolute paths", 'Write them like: ["/etc/wggo-vpp"]')
    return tuple(map(Path, strings))


def mac(entry: Entry) -> bytes:
    """Return the address of one interface, 6 bytes."""
    address = _octets(entry, 6, 6)
    if not any(address):
        entry.refuse("is no interface's address", "`vppctl show hardware-interfaces` lists those of VPP.")
    return address


def mac_prefix(entry: Entry) -> bytes:
    """Return the first 2 to 5 bytes of an address."""
    return _octets(entry, 2, 5)


def ranges(kind: type[_Kind], example: str) -> Callable[[Entry], tuple[_Kind, ...]]:
    """Return what takes a list of ranges of one family. Bits behind a prefix are cleared, as Go's ParseCIDR does."""

    def taken(entry: Entry) -> tuple[_Kind, ...]:
        found = []
        for word in _strings(entry, f'["{example}"]'):
            # ipaddress takes a netmask too, and an address alone.
            has_length = "/" in word and word.rpartition("/")[2].isdecimal()
            try:
                found.append(kind(word if has_length else "", strict=False))
            except ValueError:
                entry.refuse(f"lists {word!r}, which isn't a range of {kind.__name__[:4]}", f'Write: "{example}"')
        return tuple(found)

    return taken


def _strings(entry: Entry, example: str) -> list[str]:
    value = entry.value
    if not isinstance(value, list) or not all(isinstance(each, str) and printable(each) == each for each in value):
        entry.refuse("must be a list of strings", f"Write it like: {example}")
    return list(value)


def _octets(entry: Entry, least: int, most: int) -> bytes:
    example = ":".join(["42"] * most if least == most else ["98", "D2", "93"])
    octets = text(entry).split(":")
    hexadecimal = all(len(each) == 2 and each.isascii() and each.isalnum() for each in octets)
    try:
        found = bytes(int(each, 16) for each in octets) if hexadecimal else b""
    except ValueError:
        found = b""
    if not least <= len(found) <= most:
        many = f"{least}" if least == most else f"{least} to {most}"
        entry.refuse(f"must have {many} bytes in hexadecimal", f'Write it like: "{example}"')
    if found[0] & 1:
        entry.refuse("is a group's address: its first byte is odd", "Choose an even first byte, such as 42.")
    return found
