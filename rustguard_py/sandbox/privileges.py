"""Giving up privileges, for one process: capabilities, then what it could gain again."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rustguard_py.sandbox import capabilities
from rustguard_py.sandbox.capabilities import Capability
from rustguard_py.sandbox.report import Report

# A thread that was joined is gone from the kernel's list a moment later, seconds.
_THREADS_END = 1.0
_TASKS = Path("/proc/self/task")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a process needs after it has given up the rest.

    Attributes:
        capabilities: To keep, of those that it has.
        places: Directories to list, write in and make files in; of each the files in it too.
        files: Files to read and write, or directories to make others in.
    """

    capabilities: Collection[Capability]
    places: Sequence[Path] = ()
    files: Sequence[Path] = ()

    def __add__(self, other: Needs) -> Needs:
        return Needs(
            {*self.capabilities, *other.capabilities}, [*self.places, *other.places], [*self.files, *other.files]
        )


def give_up(needs: Needs) -> Report:
    """Give up everything else. To be called once, while the process has one thread.

    CAP_DAC_OVERRIDE, which ignores the modes of files, is kept only if a place can't be used without it: a daemon of
    root's may have its state in a directory of another user.

    Returns:
        What was given up. What the kernel refuses is reported there: the process goes on.
    """
    refused = _other_threads()
    keep = capabilities.held() & frozenset(needs.capabilities)
    try:
        keep |= _to_reach(needs, keep)
        still = capabilities.keep_only(keep)
    except OSError as error:
        return Report((), (*refused, f"All capabilities stay: {error.strerror}."))
    if still is not None:
        refused.append(f"The bounding set of capabilities stays as it is: {still}.")
    names = ", ".join(str(each) for each in sorted(keep)) or "none"
    applied = [f"capabilities: {names}"]
    try:
        capabilities.gain_nothing()
        applied.append("no new privileges")
    except OSError as error:
        refused.append(f"Programs that it starts can gain privileges: {error.strerror}.")
    return Report(tuple(applied), tuple(refused))


def _to_reach(needs: Needs, keep: frozenset[Capability]) -> frozenset[Capability]:
    """Return CAP_DAC_OVERRIDE if a place can't be used without it, else nothing."""
    if Capability.DAC_OVERRIDE not in capabilities.held():
        return frozenset()
    capabilities.use_only(keep)
    wanted = [(place, os.R_OK | os.W_OK | os.X_OK) for place in needs.places]
    wanted += [(file, os.R_OK | os.W_OK) for file in needs.files]
    wanted += [
        (file, os.R_OK | os.W_OK)
        for place in needs.places
        if os.access(place, os.R_OK | os.X_OK, effective_ids=True)
        for file in place.iterdir()
        if file.is_file()
    ]
    if all(os.access(path, how, effective_ids=True) for path, how in wanted):
        return frozenset()
    return frozenset([Capability.DAC_OVERRIDE])


def _other_threads() -> list[str]:
    """Return a sentence if other threads run, which keep what they have."""
    deadline = time.monotonic() + _THREADS_END
    while (others := len(os.listdir(_TASKS)) - 1) and time.monotonic() < deadline:  # noqa: PTH208 - names alone
        time.sleep(0.001)
    return [f"Threads that began earlier keep their capabilities: {others}."] if others else []
