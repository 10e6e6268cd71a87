"""Tells systemd, or another service manager, how a daemon does: the protocol of sd_notify(3).

A message is a datagram of lines NAME=value to the socket that NOTIFY_SOCKET names. The protocol is that small and
fixed, and no library for it on PyPI is maintained, so it is written here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass(slots=True)
class ServiceManager:
    """The service manager that started this process; without one, every message goes nowhere.

    Attributes:
        address: Where it listens, or None if there is none.
        watchdog: Seconds within which it wants to hear from the watchdog, or None if it has none.
    """

    address: str | None = None
    watchdog: float | None = None
    _status: str = field(default="", init=False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
        """Return the manager that the environment names, and take it out, so that no child speaks for us."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        # The watchdog may be meant for another process, whose environment we inherited.
        ours = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if not address.startswith(("/", "@")):
            return cls()
        watched = ours and microseconds.isdecimal() and int(microseconds) > 0
        return cls(address, int(microseconds) / 1e6 if watched else None)

    def ready(self, status: str) -> None:
        """Report that the start, or a reload, is over."""
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report that changed settings are being applied; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """Report that the changed settings are applied."""
        self.ready(self._status)

    def stopping(self) -> None:
        """Report that the daemon ends."""
        self._send("STOPPING=1", "STATUS=Stopping.")

    def status(self, text: str) -> None:
        """Report a changed status line."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def feed_watchdog(self) -> None:
        """Report that the daemon works. Without this within `watchdog` seconds it is restarted."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self.address is None:
            return
        # An `@` stands for the zero byte of an abstract socket. A manager that doesn't listen is not our fault.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)  # a daemon doesn't stop because its manager does
            sender.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), address)
