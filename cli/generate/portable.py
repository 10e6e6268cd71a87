"""The generator and the sink in Python, for the portable engine. `native/generator` is the fast one.

An installation without the native extension has these alone. They share the interpreter with the engine, so their
time is the engine's loss; the portable engine takes some ten times as long for a packet.
"""

from __future__ import annotations

import resource
import select
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from rustguard_py.cli.generate import layout
from rustguard_py.cli.generate.histogram import Histogram
from rustguard_py.planes.contract import PacketChannel

MOST_AT_ONCE = 64
_BURST_TIME = 100e-6
# A trial that takes longer than its time by more than this share ends.
_MOST_OVERRUN = 0.5
# A trial has ended once nothing has arrived for so long, and in any case after the other, seconds.
_QUIET, _LONGEST = 0.1, 1.0
_LOOK = 0.005


class Generator(Protocol):
    """Both halves at one end of a tunnel. Answers are as in `rustguard_py.cli.generate.end`."""

    def send(
        self, *, trial: int, sizes: Sequence[int], flows: int, rate: float | None, seconds: float
    ) -> dict[str, Any]:
        """Send the packets of a trial, and return what was sent."""

    def receive(self, *, trial: int, flows: int) -> None:
        """Begin to count what arrives."""

    def report(self, *, sent: int) -> dict[str, Any]:
        """Wait until `sent` packets have arrived or nothing more does. Return what did."""


class Received:
    """What arrived in a trial.

    Args:
        trial: Its number.
        flows: How many there are.
    """

    def __init__(self, trial: int, flows: int) -> None:
        self.received = self.expected = self.duplicates = self.reordered = self.extent = self.stale = self.invalid = 0
        self.bytes = self.first = self.last = 0
        self.latency = Histogram()
        self._trial = trial
        self._expected = [0] * flows
        self._seen: list[set[int]] = [set() for _ in range(flows)]

    def take(self, packet: bytes | memoryview, now: int) -> None:
        """Count a packet that arrived at `now`, in nanoseconds."""
        record = layout.parse(packet)
        if record is None or (record.trial == self._trial and record.flow >= len(self._expected)):
            self.invalid += 1
            return
        if record.trial != self._trial:
            self.stale += 1
            return
        flow, sequence = record.flow, record.sequence
        if sequence in self._seen[flow]:
            self.duplicates += 1
            return
        self._seen[flow].add(sequence)
        if sequence < self._expected[flow]:
            self.reordered += 1
            self.extent = max(self.extent, self._expected[flow] - sequence)
        else:
            self.expected += sequence + 1 - self._expected[flow]
            self._expected[flow] = sequence + 1
        self.first = self.first or now
        self.last = now
        self.received += 1
        self.bytes += len(packet)
        self.latency.add(max(0, now - record.due))

    def document(self) -> dict[str, Any]:
        """Return all counts."""
        return {
            "received": self.received,
            "expected": self.expected,
            "duplicates": self.duplicates,
            "reordered": self.reordered,
            "extent": self.extent,
            "stale": self.stale,
            "invalid": self.invalid,
            "bytes": self.bytes,
            "nanoseconds": self.last - self.first,
            "latency": self.latency.pairs(),
        }


class PortableGenerator:
    """`Generator` in Python.

    Args:
        channel: Where packets go in and come out.
        source: Address of what is sent.
        target: Where it goes.
    """

    def __init__(self, channel: PacketChannel, source: str, target: str) -> None:
        self._channel = channel
        self._ends = source, target
        self._received = Received(0, 0)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._sink_cpu: dict[str, int] = {}

    def send(
        self, *, trial: int, sizes: Sequence[int], flows: int, rate: float | None, seconds: float
    ) -> dict[str, Any]:
        """See `Generator.send`."""
        pattern, following = tuple(sizes), [0] * flows
        lateness = Histogram()
        offered = sent = carried = 0
        before, start = _cpu(), time.monotonic_ns()
        burst = MOST_AT_ONCE if rate is None else max(1, min(int(rate * _BURST_TIME), MOST_AT_ONCE))
        planned = None if rate is None else int(rate * seconds)
        until = start + int(seconds * 1e9 * (1 if rate is None else 1 + _MOST_OVERRUN))
        while (now := time.monotonic_ns()) < until:
            due, count = now, burst
            if rate is not None and planned is not None:
                due, count = start + int(offered / rate * 1e9), min(burst, planned - offered)
                if count == 0:
                    break
                if now < due:
                    time.sleep((due - now) / 1e9)
                lateness.add(max(0, time.monotonic_ns() - due))
            numbers = range(sent, sent + count)
            packets = [
                layout.build(
                    layout.Record(trial, number % flows, following[number % flows] + place // flows, due),
                    layout.size_at(number, flows, pattern),
                    *self._ends,
                )
                for place, number in enumerate(numbers)
            ]
            taken = self._channel.write_batch(packets)
            for number in numbers[:taken]:
                following[number % flows] += 1
            sent += taken
            carried += sum(map(len, packets[:taken]))
            offered += taken if rate is None else count
            if taken < count and rate is None:
                select.select([self._channel.writable_fileno()], [], [], _LOOK)
        return {
            "offered": offered,
            "sent": sent,
            "bytes": carried,
            "nanoseconds": time.monotonic_ns() - start,
            "lateness": lateness.pairs(),
            "generator": _since(before),
        }

    def receive(self, *, trial: int, flows: int) -> None:
        """See `Generator.receive`."""
        self._received = Received(trial, flows)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)
        self._thread.start()

    def report(self, *, sent: int) -> dict[str, Any]:
        """See `Generator.report`."""
        began = moved = time.monotonic()
        before = self._received.received
        while before < sent and time.monotonic() - moved < _QUIET and time.monotonic() - began < _LONGEST:
            time.sleep(_LOOK)
            if (now := self._received.received) != before:
                before, moved = now, time.monotonic()
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        return {**self._received.document(), "sink": self._sink_cpu}

    def _run(self) -> None:
        before = _cpu()
        while not self._stopping.is_set():
            packets = self._channel.read_batch(MOST_AT_ONCE)
            now = time.monotonic_ns()
            for packet in packets:
                self._received.take(packet, now)
            if not packets:
                select.select([self._channel.fileno()], [], [], _LOOK)
        self._sink_cpu = _since(before)


def _cpu() -> resource.struct_rusage:
    return resource.getrusage(resource.RUSAGE_THREAD)


def _since(before: resource.struct_rusage) -> dict[str, int]:
    now = _cpu()
    return {
        "user": int((now.ru_utime - before.ru_utime) * 1e9),
        "system": int((now.ru_stime - before.ru_stime) * 1e9),
    }
