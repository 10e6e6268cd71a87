"""The interpreter's switch interval, which is the whole process's: lowered as long as a portable plane runs."""

from __future__ import annotations

import os
import sys
import threading

# How long another thread may keep the interpreter's lock while the loop waits for it, seconds. The loop releases the
# lock at each system call. With a busy control thread, Python's default of 5 ms left 16 Mbit/s and this value
# left 870, at the cost of 13 % of the control thread's speed.
SWITCH_INTERVAL = 0.0002


class _Lowered:
    """How many planes run, and the interval from before the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planes = 0
        self._before = 0.0

    def lower(self) -> None:
        with self._lock:
            if self._planes == 0:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(SWITCH_INTERVAL, self._before))
            self._planes += 1

    def start_over(self) -> None:
        """In a forked child: no plane of the parent's runs here, and another thread may have held the lock."""
        self._lock = threading.Lock()
        if self._planes:
            self._planes = 0
            self._put_back()

    def restore(self) -> None:
        with self._lock:
            self._planes -= 1
            if self._planes == 0:
                self._put_back()

    def _put_back(self) -> None:
        # If the program has set another one meanwhile, that one stays.
        if sys.getswitchinterval() <= SWITCH_INTERVAL:
            sys.setswitchinterval(self._before)


_LOWERED = _Lowered()
os.register_at_fork(after_in_child=_LOWERED.start_over)


def lower() -> None:
    """Lower the interval for one more plane."""
    _LOWERED.lower()


def restore() -> None:
    """Restore the interval if that was the last plane."""
    _LOWERED.restore()
