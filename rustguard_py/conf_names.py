"""Finds a peer's name in the comments of a wg-quick file, as people and programs write them.

### Client anna             angristan's script
# BEGIN_PEER anna           Nyr's script, and hwdsl2's
### begin anna ###          PiVPN
# Client: anna (7)          wg-easy; before version 15 with a UUID
# Name:     anna            wireguard-ui, below an ID, above a mail address and dates
# anna / a@b / Updated: …   wg-gen-web
# friendly_name = anna      OPNsense, and others for the Prometheus exporter
# anna                      linuxserver and many people, above [Peer] or inside it
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# What isspace(3) takes for space in the C locale.
BLANKS = " \t\r\v\f"

_EDGES = f"#{BLANKS}"
# Comments that say that they have a name. The first group is the name.
_EXPLICIT = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"###\s*client\s+(?!:)(.+)",
        r"#+\s*begin_peer\s+(.+)",
        r"###\s*begin\s+(.+?)\s*###",
        r"#+\s*client\s*:\s*(.+?)(?:\s*\(\d+\))?",
        r"#+\s*(?:friendly[_ ]?name|(?:user|host)?name#?|peer|description)\s*[:=]\s*(.+)",
        r"#+\s*(.+?) / .*\bupdated: .*",
    )
)
_UUID = re.compile(r"\s*\([0-9a-f-]{32,36}\)$", re.IGNORECASE)
_KEYS = (
    "privatekey|listenport|fwmark|address|dns|mtu|table|preup|postup|predown|postdown|saveconfig|publickey|"
    "presharedkey|allowedips|endpoint|persistentkeepalive"
)
# What isn't a name: a key that was commented out, or that OpenWrt says isn't used; the end of a block; a switched-off
# peer; JSON; a link.
_NO_NAME = re.compile(rf"(?:{_KEYS})\s*(?:=|not\b)|(?:\[|\{{|end_peer\b|friendly_json\b)|.*://", re.IGNORECASE)
_END = re.compile(r"###\s*end\b.*", re.IGNORECASE)
_DETAIL = re.compile(
    r"(?:id|uuid|e-?mail|created?|updated?|modified|changed|added|date|time|expir\w*|last|ip|allowed|key|port|group|"
    r"enabled|disabled|status|notes?|telegram)\b[^:=]{0,20}[:=]",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}|\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?|[+-]\d{4}\b|"
    r"\b(?:created|added|updated?|generated|since|at|on|utc|am|pm|gmt|t|z)\b",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Comments:
    """The comments around one [Peer] section, without their first comment sign.

    Attributes:
        above: Those between the line before the section and its head.
        inside: Those below the head, before a further line of the section.
        beside: Those on the lines of the section.
    """

    above: list[str] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)

    def name(self) -> str:
        """Return the name of the peer, or "" if there is none."""
        ordered = (*reversed(self.above), *self.inside, *self.beside)
        return _first(map(_explicit, ordered)) or _first(map(_plain, ordered))


def _first(names: Iterable[str]) -> str:
    return next(filter(None, names), "")


def _explicit(comment: str) -> str:
    """Return the name in a comment that says so."""
    named = _unwrapped(f"#{comment}")
    return "" if named is None else _plain(f" {named}")


def _plain(comment: str) -> str:
    """Return the name that a comment is, so that the same name is found in a comment that has nothing else."""
    name = comment.strip(_EDGES)
    if _END.fullmatch(f"#{comment}".strip(BLANKS)) is not None:
        return ""
    while (bare := _bare(name)) != name:
        name = bare
    return "" if _is_no_name(name) else name


def _bare(name: str) -> str:
    return _UUID.sub("", _unwrapped(f"# {name}") or name).strip(_EDGES)


def _unwrapped(comment: str) -> str | None:
    text = comment.strip(BLANKS)
    found = (pattern.fullmatch(text) for pattern in _EXPLICIT)
    return next((match[1] for match in found if match is not None), None)


def _is_no_name(text: str) -> bool:
    if _NO_NAME.match(text) is not None or _DETAIL.match(text) is not None:
        return True
    return not any(map(str.isalnum, _DATE.sub("", text)))
