"""What a process that `subprocess` didn't start needs so that the lab and the tests can use it like one of its."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from typing import IO


class Child(ABC):
    """A process that takes signals."""

    stdin: IO[str] | None = None
    stdout: IO[str] | None = None
    stderr: IO[str] | None = None
    pid: int
    returncode: int | None = None

    @abstractmethod
    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)
