"""Reports forwarded connections that can't be made, in the log and not too often."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from rustguard_py.model.rate_limit import RateLimit

_log = logging.getLogger(__name__)
# Reports per second of one forwarded port, and at once.
_RATE: Final = 1 / 60
_BURST: Final = 5


class Failures:
    """Reports failures of one forwarded port. Those beyond the limit are counted, and the next report says how many.

    Args:
        option: `-L` or `-R`.
        target: Where it leads to.
        clock: Returns the time in seconds.
    """

    def __init__(self, option: str, target: str, clock: Callable[[], float]) -> None:
        self._what = f"{option} to {target}"
        self._clock = clock
        self._limit = RateLimit(_RATE, _BURST)
        self._unreported = 0

    def report(self, error: OSError) -> None:
        """Report why a connection couldn't be made."""
        if not self._limit.take(self._clock()):
            self._unreported += 1
            return
        others = f" (and {self._unreported} more that weren't logged)" if self._unreported else ""
        self._unreported = 0
        _log.warning("%s: no connection: %s%s", self._what, reason(error), others)


def reason(error: OSError) -> str:
    """Return why a connection failed, without the error's number."""
    if isinstance(error, socket.gaierror):
        return f"the name isn't resolved ({error.strerror})"
    if isinstance(error, TimeoutError):
        return os.strerror(errno.ETIMEDOUT)
    # asyncio has texts of its own, with the address instead of the reason.
    return os.strerror(error.errno) if error.errno else str(error)
