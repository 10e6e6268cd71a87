"""The audit log of a server: who joined, who was refused, and who changed what (`audit_events`).

`record(event)` writes one line to the log, and one JSON object to `audit.jsonl` in the state directory of the running
server. A thread writes the file, so a slow or full disk never delays the server. What can't be written waits in
memory and is tried again. Events hold no tokens, private keys or preshared keys.

Strangers and peers can cause some kinds of events as often as they like. So few of those are recorded, of each site
and each key and of all together, that pushing the other lines out of the file takes weeks. The rest is counted in
`Omitted` events.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rustguard_py.daemon.audit_events import Event, Omitted
from rustguard_py.model.errors import StateError
from rustguard_py.model.printable import printable
from rustguard_py.model.rate_limit import RateLimit, SourceRateLimits
from rustguard_py.state.durable_files import Files, open_plain, read_all, unusable

log = logging.getLogger(__name__)

NAME: Final = "audit.jsonl"
MAX_BYTES: Final = 10 << 20
# Of what others can cause, lines of each site and of each key, and of all of them: at once, and then per hour. A line
# has at most 400 bytes or so, and a file holds 26,000 of those.
EACH_AT_ONCE: Final = 20
EACH_PER_HOUR: Final = 6
ALL_AT_ONCE: Final = 1000
ALL_PER_HOUR: Final = 30
# How long what is left out is counted before that is recorded, and how often: at once, and then per hour.
COUNT_SECONDS: Final = 60.0
COUNTS_AT_ONCE: Final = 5
COUNTS_PER_HOUR: Final = 1
# Seconds until a failed write is tried again. Short, so that a person who made room sees the effect.
RETRY_SECONDS: Final = 3.0
# Lines that wait for a full disk, about 2 MiB.
MAX_WAITING: Final = 10_000
# How long the end of the server waits for the last lines.
_CLOSE_SECONDS = 2.0


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
        self._each = SourceRateLimits(EACH_PER_HOUR / 3600, EACH_AT_ONCE, os.urandom)
        self._all = RateLimit(ALL_PER_HOUR / 3600, ALL_AT_ONCE)
        self._counts = RateLimit(COUNTS_PER_HOUR / 3600, COUNTS_AT_ONCE)
        self._omitted = 0
        self._omitted_since = 0.0
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def record(self, event: Event) -> None:
        """Write an event to the log and, soon, to the file. Never waits for the disk and never fails."""
        at = self._clock()
        if self._omitted and at - self._omitted_since >= COUNT_SECONDS and self._counts.take(at):
            self._record_omitted()
        if self._may_record(event.charged_to(), at):
            self._take(event)
            return
        if not self._omitted:
            self._omitted_since = at
        self._omitted += 1

    def close(self) -> None:
        """Write what waits, and stop. Takes at most two seconds; what the disk refuses until then is lost."""
        self._record_omitted()
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)

    def _may_record(self, charged: tuple[str, ...], at: float) -> bool:
        # Those of each first: one that causes too many must not use up what is for all.
        return not charged or (all(self._each.take(who, at) for who in charged) and self._all.take(at))

    def _record_omitted(self) -> None:
        omitted, self._omitted = self._omitted, 0
        if omitted:
            self._take(Omitted(omitted, "too many came"))

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
        descriptor = open_plain(self._files, self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            status = self._files.stat(descriptor)
            if status.st_mode & 0o7777 != 0o600:
                # A daemon that gave up changing modes leaves it as somebody has set it.
                with suppress(PermissionError):
                    os.fchmod(descriptor, 0o600)
            size = status.st_size
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


def narrow(directory: Path) -> None:
    """Let nobody else read the audit log of a state directory. A daemon may not change modes later."""
    for name in (NAME, f"{NAME}.1"):
        with suppress(OSError):
            descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                # A directory without its search bits would be worse than what `_append` reports about it.
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)


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
        StateError: It isn't a plain file.
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
        descriptor = open_plain(files, path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return files.stat(descriptor).st_ino, read_all(files, descriptor, path)
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
