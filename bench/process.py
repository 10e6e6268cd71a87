"""What a running process costs, from /proc."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """What it has used so far, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def core_seconds() -> list[float]:
    """What each core of this machine spent so far on anything, interrupts and stolen time included."""
    cores = []
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("cpu") and line[3].isdigit():
            user, nice, system, _, _, *interrupts_and_stolen = map(int, line.split()[1:9])
            cores.append((user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK"))
    return cores


def resident_mib(pid: int) -> float:
    """Memory that it has, in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
