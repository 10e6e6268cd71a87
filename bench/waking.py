"""Measure how long a sleeping process takes to wake, which is what a ping through a tunnel waits for.

One process sleeps in poll(2) on a pipe. Another writes the time to it, after a pause in which the cores fall idle,
as between pings. What is printed is the time from the write until the sleeper has read, in µs.
"""

from __future__ import annotations

import argparse
import os
import select
import statistics
import struct
import time

# As the pings of `bench/run.py`.
PAUSE = 0.005
TIME = struct.Struct("q")


def delays(times: int, writer: int, sleeper: int) -> list[float]:
    """Return the time that each of so many wake-ups took, in µs; the two processes stay on these cores."""
    readable, writable = os.pipe()
    results, results_writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writable)
        os.sched_setaffinity(0, {sleeper})
        _sleep(readable, results_writable)
    os.close(readable)
    os.close(results_writable)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {writer})
    taken = []
    try:
        for _ in range(times):
            time.sleep(PAUSE)
            os.write(writable, TIME.pack(time.monotonic_ns()))
            taken.append(TIME.unpack(os.read(results, TIME.size))[0] / 1000)
    finally:
        os.sched_setaffinity(0, allowed)
        for each in (writable, results):
            os.close(each)
        os.waitpid(child, 0)
    return taken


def _sleep(readable: int, results: int) -> None:
    """Send how long each wake-up took, until the other end is closed."""
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    while True:
        poll.poll()
        written = os.read(readable, TIME.size)
        now = time.monotonic_ns()
        if not written:
            os._exit(0)
        os.write(results, TIME.pack(now - TIME.unpack(written)[0]))


def main() -> None:
    """Print the delay on the writer's core and on another one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=500, metavar="N", help="wake-ups of each kind (500)")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    for what, sleeper in zip(("same core", "another core"), cores, strict=False):
        each = sorted(delays(given.times, cores[0], sleeper))
        print(f"{what}: median {statistics.median(each):.1f} µs, 95 % {each[int(0.95 * len(each))]:.1f} µs")


if __name__ == "__main__":
    main()
