"""The kinds of events in a server's audit log, and the sentence that each one is shown as."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

from rustguard_py.model.address import parse_endpoint
from rustguard_py.model.counted import counted
from rustguard_py.model.errors import UsageError
from rustguard_py.model.printable import printable
from rustguard_py.model.rate_limit import site_of, source_of


@dataclass(frozen=True, slots=True)
class Event:
    """Something to record.

    Attributes:
        kind: Its name in the file.
        level: Its level in the log.
    """

    kind: ClassVar[str]
    level: ClassVar[int] = logging.INFO

    def charged_to(self) -> tuple[str, ...]:
        """Return whose budgets pay for the record: the site and the key of whoever can cause as many as it likes.

        Nobody's for what a person did, and for what happens only as often as a person allows.
        """
        return ()


@dataclass(frozen=True, slots=True)
class Joined(Event):
    """A client joined.

    Attributes:
        name: Its label.
        key: Its public key in base64.
        address: Its inner address.
        source: Its UDP address.
        new: Whether it was no peer before. A window admits few new peers. One that is known may join as often as it
            likes.
    """

    kind = "joined"
    name: str
    key: str
    address: str
    source: str
    new: bool = True

    def charged_to(self) -> tuple[str, ...]:
        """Return the site and the key of a peer that joined again."""
        return () if self.new else (_site(self.source), self.key)

    def __str__(self) -> str:
        # Lines of older versions don't say whether it was new.
        again = " again" if self.new is False else ""
        return f"{self.name} joined{again} from {self.source} as {self.address}"


@dataclass(frozen=True, slots=True)
class Admitted(Event):
    """Somebody admitted a peer that runs stock WireGuard."""

    kind = "admitted"
    name: str
    key: str
    address: str
    by: int | None

    def __str__(self) -> str:
        return f"{self.name} was admitted for stock WireGuard, as {self.address}{_by(self.by)}"


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """A client that knows the token was refused all the same."""

    kind = "refused"
    level = logging.WARNING
    reason: str
    source: str

    def charged_to(self) -> tuple[str, ...]:
        """Return the site."""
        return (_site(self.source),)

    def __str__(self) -> str:
        return f"a join from {self.source} was refused: {self.reason}"


@dataclass(frozen=True, slots=True)
class WrongToken(Event):
    """A wrong token was counted; `count` is how many there were in this window."""

    kind = "wrong-token"
    level = logging.WARNING
    source: str
    count: int

    def charged_to(self) -> tuple[str, ...]:
        """Return the site."""
        return (_site(self.source),)

    def __str__(self) -> str:
        return f"a wrong token was tried from {self.source}; in this window: {self.count}"


@dataclass(frozen=True, slots=True)
class BudgetSpent(Event):
    """So many wrong tokens were tried that further ones are checked slowly."""

    kind = "budget-spent"
    level = logging.WARNING
    count: int

    def __str__(self) -> str:
        return f"{self.count} wrong tokens were tried in this window: from now on one is checked every 10 s"


@dataclass(frozen=True, slots=True)
class WindowOpened(Event):
    """The pairing window was opened, or its time was changed."""

    kind = "window-opened"
    seconds: float
    by: int | None
    sources: tuple[str, ...] = ()
    most: int | None = None

    def __str__(self) -> str:
        only = f" to {', '.join(self.sources)} only" if self.sources else ""
        most = f", for {counted(self.most, 'new machine')} at most" if self.most is not None else ""
        return f"the pairing window is open{only} for {self.seconds:g} s{most}{_by(self.by)}"


@dataclass(frozen=True, slots=True)
class WindowClosed(Event):
    """The pairing window closed; `reason` says why."""

    kind = "window-closed"
    reason: str
    by: int | None

    def __str__(self) -> str:
        return f"the pairing window is closed: {self.reason}{_by(self.by)}"


@dataclass(frozen=True, slots=True)
class Revoked(Event):
    """A peer was removed, and its key is refused from now on."""

    kind = "revoked"
    name: str
    key: str
    by: int | None

    def __str__(self) -> str:
        return f"{self.name} was revoked{_by(self.by)}"


@dataclass(frozen=True, slots=True)
class Restored(Event):
    """A revoked key may join again."""

    kind = "restored"
    key: str
    by: int | None

    def __str__(self) -> str:
        return f"the key {self.key} may join again{_by(self.by)}"


@dataclass(frozen=True, slots=True)
class Left(Event):
    """A peer left the network by itself, and was removed; its key may join again."""

    kind = "left"
    name: str
    key: str
    address: str

    def __str__(self) -> str:
        return f"{self.name} left the network and was removed: {self.address} is free"


@dataclass(frozen=True, slots=True)
class TakenBack(Event):
    """A new peer said that it can't use its admission, and was removed; its key may join again."""

    kind = "taken-back"
    name: str
    key: str
    address: str
    source: str

    def __str__(self) -> str:
        return f"{self.name} at {self.source} can't use its admission and was removed: {self.address} is free"


@dataclass(frozen=True, slots=True)
class GivenAway(Event):
    """A peer that never connected was removed, because the pool was full; its key may join again."""

    kind = "given-away"
    level = logging.WARNING
    name: str
    key: str
    address: str

    def __str__(self) -> str:
        return f"{self.name} never connected and was removed: the pool is full, {self.address} is free"


@dataclass(frozen=True, slots=True)
class Renamed(Event):
    """A peer has another name."""

    kind = "renamed"
    old: str
    new: str
    key: str
    by: int | None

    def __str__(self) -> str:
        return f"{self.old} was renamed to {self.new}{_by(self.by)}"


@dataclass(frozen=True, slots=True)
class ClockReset(Event):
    """The handshake timestamp of a peer was forgotten; `was` is its time in ISO 8601, or None."""

    kind = "reset"
    name: str
    key: str
    was: str | None
    by: int | None

    def __str__(self) -> str:
        return f"the handshake timestamp of {self.name} was forgotten ({self.was or 'there was none'}){_by(self.by)}"


@dataclass(frozen=True, slots=True)
class Omitted(Event):
    """Events that were not recorded."""

    kind = "omitted"
    level = logging.WARNING
    count: int
    why: str

    def __str__(self) -> str:
        return f"the audit log lacks {counted(self.count, 'event')}: {self.why}"


_KINDS: Final[Mapping[str, type[Event]]] = {
    each.kind: each
    for each in (
        Joined,
        Admitted,
        Refused,
        WrongToken,
        BudgetSpent,
        WindowOpened,
        WindowClosed,
        Revoked,
        Restored,
        Left,
        TakenBack,
        GivenAway,
        Renamed,
        ClockReset,
        Omitted,
    )
}


def _site(source: str) -> str:
    """Return the site of a UDP address as text."""
    try:
        endpoint = parse_endpoint(source)
    except UsageError:
        endpoint = None
    return source if endpoint is None else site_of(source_of(endpoint))


def _by(user: int | None) -> str:
    return "" if user is None else f", by uid {user}"


def sentence(event: Mapping[str, Any]) -> str:
    """Return an event of `read` as a printable sentence; of a kind that is unknown here, its members."""
    members = {name: value for name, value in event.items() if name not in ("time", "event")}
    kind = _KINDS.get(event["event"])
    if kind is not None:
        known = {each.name: members.get(each.name) for each in fields(kind)}
        with suppress(TypeError, ValueError):
            return printable(str(kind(**known)))
    return printable(" ".join([event["event"], *(f"{name}={value}" for name, value in members.items())]))
