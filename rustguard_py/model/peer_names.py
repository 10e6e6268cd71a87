"""A peer's two names: the label that people gave it, and the DNS name made from it.

A label is normalized (NFKC), so that characters that only look different, such as full-width letters, are the same.
A command can't take it for an option or a key.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container
from typing import Final

from rustguard_py.model.printable import is_hidden

PEER_NAME_LIMIT: Final = 45
DNS_NAME_LIMIT: Final = 63
# The label of a peer whose own one is unusable, and the start of a DNS name that would be empty or a number.
FALLBACK: Final = "peer"

# WireGuard's keys, and text that could be mistaken for one: 44 characters of base64.
# Most names are like this, and need no closer look.
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,44}")
_LIKE_A_KEY: Final = re.compile(r"[A-Za-z0-9+/]{43}=")


def label_of(text: str) -> str:
    """Return the label that is closest to any text, or "" if nothing usable is left."""
    if _PLAIN.fullmatch(text):
        return text
    label = None
    while label != text:
        label, text = text, _closer(text)
    return "" if _LIKE_A_KEY.fullmatch(text) else text


def normalized(text: str) -> str:
    """Return a text in the form that labels have (NFKC), to look a label up."""
    return unicodedata.normalize("NFKC", text)


def is_label(text: str) -> bool:
    """Return whether a text is a label as it stands."""
    return text != "" and label_of(text) == text


def check_label(text: str) -> str:
    """Return the label that a person typed, normalized.

    Raises:
        ValueError: It can't be one. The message says why.
    """
    label = normalized(text)
    if any(map(is_hidden, label)):
        raise ValueError("a name can only have printable characters")
    if not 1 <= len(label.encode()) <= PEER_NAME_LIMIT:
        raise ValueError(f"a name has 1 to {PEER_NAME_LIMIT} bytes of UTF-8")
    if label != label.strip():
        raise ValueError("a name can't begin or end with a blank")
    if label.startswith("-"):
        raise ValueError("a name can't begin with a hyphen, which begins an option")
    if _LIKE_A_KEY.fullmatch(label):
        raise ValueError("a name can't look like a key")
    return label


def dns_name_of(label: str) -> str:
    """Return the DNS name that a label makes: lower-case letters, digits and single hyphens, at most 63.

    Accents are dropped; all other characters become hyphens. "Anna's Läptop" makes "anna-s-laptop".
    """
    plain = unicodedata.normalize("NFKD", label.casefold())
    bare = "".join(character for character in plain if not unicodedata.combining(character))
    name = re.sub(r"[^a-z0-9]+", "-", bare).strip("-")
    if not re.search(r"[a-z]", name):
        name = f"{FALLBACK}-{name}".strip("-")
    return name[:DNS_NAME_LIMIT].strip("-")


def numbered(name: str, number: int) -> str:
    """Return a label or DNS name with a number behind it, cut so that both fit into `PEER_NAME_LIMIT` bytes."""
    suffix = f"-{number}"
    return name.encode()[: PEER_NAME_LIMIT - len(suffix)].decode(errors="ignore") + suffix


def first_free(name: str, taken: Container[str]) -> str:
    """Return a name, with the lowest number behind it that makes it free if it is taken."""
    free, number = name, 2
    while free in taken:
        free, number = numbered(name, number), number + 1
    return free


def _closer(text: str) -> str:
    shown = "".join(character for character in normalized(text) if not is_hidden(character))
    bare = shown.lstrip("- ").encode(errors="ignore")
    return bare[:PEER_NAME_LIMIT].decode(errors="ignore").rstrip(" ")
