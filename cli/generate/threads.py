"""CPU time of this process's threads, as the kernel counts it. Reading it costs the threads nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# Threads of the native plane have this prefix; the sink is no part of the engine.
_PREFIX = "rg-"
_SINK = "rg-sink"


@dataclass(frozen=True, slots=True)
class Time:
    """What a thread has used so far, in nanoseconds.

    Attributes:
        whole: The scheduler's count, which is exact.
        user: In the program; this and the next are the kernel's, in steps of a clock tick (proc(5)).
        system: In the kernel.
    """

    whole: int
    user: int
    system: int


def read(tasks: Path = Path("/proc/self/task")) -> dict[str, Time]:
    """Return the times of the native plane's threads, by name."""
    times = {}
    for task in tasks.iterdir():
        try:
            name = (task / "comm").read_text().strip()
            if not name.startswith(_PREFIX) or name == _SINK:
                continue
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            whole = int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
        times[name] = Time(whole, int(fields[11]) * _TICK, int(fields[12]) * _TICK)
    return times


def used(before: dict[str, Time], after: dict[str, Time]) -> dict[str, dict[str, int]]:
    """Return the user and system nanoseconds of each thread in between.

    Their sum is exact. Its division is as exact as clock ticks are: within some percent after a second.
    """
    parts = {}
    for name, now in after.items():
        then = before.get(name, Time(0, 0, 0))
        whole, user, system = now.whole - then.whole, now.user - then.user, now.system - then.system
        in_kernel = whole * system // (user + system) if user + system > 0 else 0
        parts[name] = {"user": whole - in_kernel, "system": in_kernel}
    return parts
