"""The audit log of a server: who joined, who was refused, and who changed what.

`record(event)` writes one line to the log, and one JSON object to `audit.jsonl` in the state directory of the running
server. A thread writes the file, so a slow or full disk never delays the server. What can't be written waits in
memory and is tried again. Events hold no tokens, private keys or preshared keys.

Anyone who can reach the server can cause some kinds of events. At most `BUDGET` of those are recorded per minute, so
that nobody can push the other lines out of the file. The rest is counted in an `Omitted` event.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

from rustguard_py.model.errors import StateError
from rustguard_py.state.durable_files import Files, unusable

log = logging.getLogger(__name__)

NAME: Final = "audit.jsonl"
MAX_BYTES: Final = 10 << 20
BUDGET: Final = 120
BUDGET_SECONDS: Final = 60.0
# Seconds until a failed write is tried again. Short, so that a person who made room sees the effect.
RETRY_SECONDS: Final = 3.0
# Lines that wait for a full disk, about 2 MiB.
MAX_WAITING: Final = 10_000
# How long the end of the server waits for the last lines.
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something to record.

    Attributes:
        kind: Its name in the file.
        level: Its level in the log.
        limited: Whether others can cause as many as they like.
    """

    kind: ClassVar[str]
    level: ClassVar[int] = logging.INFO
    limited: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Joined(Event):
    """A client joined. `key` is its public key in base64, `address` its inner one, `source` its UDP address."""

    kind = "joined"
    name: str
    key: str
    address: str
    source: str

    def __str__(self) -> str:
        return f"{self.name} joined from {self.source} as {self.address}"


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
    limited = True
    reason: str
    source: str

    def __str__(self) -> str:
        return f"a join from {self.source} was refused: {self.reason}"


@dataclass(frozen=True, slots=True)
class WrongToken(Event):
    """A wrong token was counted; `count` is how many there were in this window."""

    kind = "wrong-token"
    level = logging.WARNING
    limited = True
    source: str
    count: int

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
        most = f", for {self.most} new machines at most" if self.most is not None else ""
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
        return f"{self.count} events are missing from the audit log: {self.why}"


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


def _by(user: int | None) -> str:
    return "" if user is None else f", by uid {user}"


def printable(text: str) -> str:
    """Return text whose control characters are escaped: a terminal could take them as commands."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


# -- writing --------------------------------------------------------------------------------------------------------


class AuditLog:
    """The file of a running server. Only one may be open per state directory.

    Args:
        directory: The state directory.
        files: The system calls.
        wall: Returns Unix time in seconds.
        clock: Returns monotonic seconds.
        retry: Seconds until a failed write is tried again.
    """

    def __init__(
        self,
        directory: Path,
        files: Files | None = None,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        retry: float = RETRY_SECONDS,
    ) -> None:
        self._path = directory / NAME
        self._files = files or Files()
        self._wall = wall
        self._clock = clock
        self._retry = retry
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._changed = threading.Condition()
        self._closing = False
        self._refused = False
        self._minute_began = clock()
        self._minute_count = 0
        self._minute_omitted = 0
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def record(self, event: Event) -> None:
        """Write an event to the log and, soon, to the file. Never waits for the disk and never fails."""
        self._count_omitted()
        if event.limited:
            self._minute_count += 1
            if self._minute_count > BUDGET:
                self._minute_omitted += 1
                return
        self._take(event)

    def close(self) -> None:
        """Write what waits, and stop. Takes at most two seconds; what the disk refuses until then is lost."""
        self._count_omitted(now=True)
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)

    def _count_omitted(self, *, now: bool = False) -> None:
        """At the end of a minute, record how many events were left out in it."""
        if not now and self._clock() - self._minute_began < BUDGET_SECONDS:
            return
        omitted, self._minute_omitted = self._minute_omitted, 0
        self._minute_began, self._minute_count = self._clock(), 0
        if omitted:
            self._take(Omitted(omitted, "too many came in one minute"))

    def _take(self, event: Event) -> None:
        log.log(event.level, "%s", printable(str(event)))
        line = self._line(event)
        with self._changed:
            self._make_room(MAX_WAITING - 1)
            self._waiting.append(line)
            self._changed.notify()

    def _make_room(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft()
            self._lost += 1

    def _line(self, event: Event) -> bytes:
        at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"time": at, "event": event.kind, **asdict(event)}).encode() + b"\n"

    # -- in the thread --------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        """Write what comes until `close`; begin a failed write again after a while."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                lines = list(self._waiting)
                lost, self._lost = self._lost, 0
                self._waiting.clear()
                closing = self._closing
            # The number of lost lines is written before the lines that are left.
            batch = [self._line(Omitted(lost, "the disk refused them")), *lines] if lost else lines
            written = self._write(batch)
            if written < len(batch):
                with self._changed:
                    self._lost += 0 if written else lost
                    self._waiting.extendleft(reversed(batch[max(written, int(lost > 0)) :]))
                    self._make_room(MAX_WAITING)
                    if not closing:
                        self._changed.wait_for(lambda: self._closing, self._retry)
            if closing:
                return

    def _write(self, lines: list[bytes]) -> int:
        """Append lines to the file; return how many are in it."""
        written = 0
        try:
            while written < len(lines):
                written += self._append(lines[written:])
        except (OSError, StateError) as error:
            if not self._refused:
                reason = unusable("written", self._path, error) if isinstance(error, OSError) else error
                log.warning("the audit log can't be written; it is tried again: %s", reason)
            self._refused = True
        else:
            if self._refused:
                log.warning("the audit log can be written again")
            self._refused = False
        return written

    def _append(self, lines: list[bytes]) -> int:
        """Append as many lines as the file has room for, at least one, after a rotation if it has none."""
        descriptor = self._files.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK)
        try:
            os.fchmod(descriptor, 0o600)
            size = self._files.stat(descriptor).st_size
            begins = b"" if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n" else b"\n"
            content, count = begins, 0
            for line in lines:
                if size + len(content) + len(line) > MAX_BYTES and (size or count):
                    break
                content, count = content + line, count + 1
            if count:
                self._append_whole(descriptor, content, size)
        finally:
            self._files.close(descriptor)
        if not count:
            self._files.rename(self._path, self._path.with_name(f"{NAME}.1"))
        return count

    def _append_whole(self, descriptor: int, content: bytes, size: int) -> None:
        """Append, or leave the file as it was."""
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._files.write(descriptor, rest, size + len(content) - len(rest)) :]
        except OSError:
            with suppress(OSError):
                self._files.truncate(descriptor, size)
            raise


_CURRENT: ContextVar[AuditLog | None] = ContextVar("_CURRENT", default=None)


@contextmanager
def recording(directory: Path) -> Iterator[None]:
    """Let `record` write to the file of a state directory, in this task and in all that it starts."""
    audit = AuditLog(directory)
    token = _CURRENT.set(audit)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        audit.close()


def record(event: Event) -> None:
    """Record an event of the running server; without a file (see `recording`) in the log alone."""
    audit = _CURRENT.get()
    if audit is None:
        log.log(event.level, "%s", printable(str(event)))
    else:
        audit.record(event)


# -- reading --------------------------------------------------------------------------------------------------------


def read(directory: Path, since: datetime | None = None) -> list[dict[str, Any]] | None:
    """Return the events in a state directory, oldest first; None if there is no audit log.

    Lines that a crash cut or that the disk damaged are skipped.

    Args:
        directory: The state directory; a server may be running on it.
        since: Leave out what is older; with a time zone.

    Raises:
        OSError: It can't be read.
    """
    now, before = (_read_file(directory / name) for name in (NAME, f"{NAME}.1"))
    # The file was rotated in between.
    contents = [now] if before is not None and now is not None and before[0] == now[0] else [before, now]
    if all(content is None for content in contents):
        return None
    events = []
    for content in contents:
        for line in [] if content is None else content[1].split(b"\n"):
            event = _read_line(line)
            if event is not None and (since is None or datetime.fromisoformat(event["time"]) >= since):
                events.append(event)
    return events


def _read_file(path: Path) -> tuple[int, bytes] | None:
    """Return a file's inode and content; None if there is none."""
    files = Files()
    try:
        descriptor = files.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        chunks = []
        while chunk := files.read(descriptor, 1 << 20):
            chunks.append(chunk)
        return files.stat(descriptor).st_ino, b"".join(chunks)
    finally:
        files.close(descriptor)


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
        if (
            isinstance(event, dict)
            and isinstance(event["event"], str)
            and datetime.fromisoformat(event["time"]).tzinfo
        ):
            return event
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return None


def sentence(event: Mapping[str, Any]) -> str:
    """Return an event of `read` as a printable sentence; of a kind that is unknown here, its members."""
    members = {name: value for name, value in event.items() if name not in ("time", "event")}
    kind = _KINDS.get(event["event"])
    if kind is not None:
        known = {each.name: members.get(each.name) for each in fields(kind)}
        with suppress(TypeError, ValueError):
            return printable(str(kind(**known)))
    return printable(" ".join([event["event"], *(f"{name}={value}" for name, value in members.items())]))
