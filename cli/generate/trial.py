"""What one trial sent, received and cost, and whether it passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rustguard_py.cli.generate.histogram import Histogram
from rustguard_py.model.errors import RustGuardError

# A generator that offered less than this share of its load, because it had no processor, has tried another load.
KEPT_UP = 0.98


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time in nanoseconds, as a program uses it itself and as the kernel uses it for the program."""

    user: int = 0
    system: int = 0

    @property
    def total(self) -> int:
        """Both together, in nanoseconds."""
        return self.user + self.system


@dataclass(frozen=True, slots=True)
class Trial:
    """One load, offered for some time.

    Attributes:
        load: The load asked for, in packets per second; None for as much as the device takes.
        seconds: How long packets were offered.
        offered: Packets that the generator made.
        sent: Those of them that the device took. The others found it full.
        received: Packets that arrived, each counted once.
        duplicates: Packets that arrived again.
        reordered: Packets that arrived after a later one of their flow (RFC 4737).
        extent: How many places late the latest of these was.
        invalid: Packets that aren't whole or aren't ours.
        bytes: Of the IP packets that arrived.
        arriving: Seconds from the first packet's arrival to the last one's: longer, if queues filled meanwhile.
        latency: Nanoseconds from when a packet was due to when the sink had it.
        lateness: Nanoseconds from when a burst was due to when the generator made it: the part of the latency that
            isn't the engine's.
        out: CPU time of the sending end's engine, by thread.
        inward: The same at the receiving end.
        generator: CPU time of the generator.
        sink: The same of the sink.
        drops: Packets that the engines counted as dropped, by reason, and those that found a UDP socket full.
        device: Nanoseconds of the device calls, by `read` and `write`, where the engine has figures of them.
    """

    load: float | None
    seconds: float
    offered: int
    sent: int
    received: int
    duplicates: int = 0
    reordered: int = 0
    extent: int = 0
    invalid: int = 0
    bytes: int = 0
    arriving: float = 0.0
    latency: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)
    out: Mapping[str, Cpu] = field(default_factory=dict)
    inward: Mapping[str, Cpu] = field(default_factory=dict)
    generator: Cpu = Cpu()
    sink: Cpu = Cpu()
    drops: Mapping[str, int] = field(default_factory=dict)
    device: Mapping[str, float] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Packets that were sent and didn't arrive."""
        return self.sent - self.received

    @property
    def refused(self) -> int:
        """Packets that found the device full."""
        return self.offered - self.sent

    @property
    def loss(self) -> float:
        """The share of the offered packets that didn't arrive, for either reason."""
        return (self.offered - self.received) / self.offered if self.offered else 0.0

    @property
    def rate(self) -> float:
        """Packets per second that arrived."""
        return self.received / max(self.seconds, self.arriving)

    @property
    def bits(self) -> float:
        """Bits per second of the IP packets that arrived."""
        return 8 * self.bytes / max(self.seconds, self.arriving)

    @property
    def kept_up(self) -> bool:
        """Whether the generator offered the load that was asked for."""
        return self.load is None or self.offered >= KEPT_UP * self.load * self.seconds

    def passes(self, most_loss: float) -> bool:
        """Return whether the load was offered, no more than this share of it lost, and nothing damaged."""
        return self.kept_up and self.received > 0 and self.loss <= most_loss and not self.invalid

    def cost(self, side: Mapping[str, Cpu]) -> float | None:
        """Return the CPU nanoseconds of a side per packet that arrived."""
        return sum(cpu.total for cpu in side.values()) / self.received if self.received else None


def put_together(
    load: float | None, sent: Mapping[str, Any], received: Mapping[str, Any], drops: Mapping[str, int]
) -> Trial:
    """Return a trial from the answers of its two ends.

    Args:
        load: What was asked for.
        sent: The sender's answer.
        received: The receiver's.
        drops: What was dropped elsewhere, by reason.

    Raises:
        RustGuardError: The ends contradict each other: more arrived than was sent.
    """
    trial = Trial(
        load=load,
        seconds=sent["nanoseconds"] / 1e9,
        offered=sent["offered"],
        sent=sent["sent"],
        received=received["received"],
        duplicates=received["duplicates"],
        reordered=received["reordered"],
        extent=received["extent"],
        invalid=received["invalid"],
        bytes=received["bytes"],
        arriving=received["nanoseconds"] / 1e9,
        latency=Histogram(received["latency"]),
        lateness=Histogram(sent["lateness"]),
        out=_cpus(sent["engine"]),
        inward=_cpus(received["engine"]),
        generator=Cpu(**sent["generator"]),
        sink=Cpu(**received["sink"]),
        drops=_together(sent.get("drops", {}), received.get("drops", {}), drops),
        device={**sent.get("device", {}), **received.get("device", {})},
    )
    expected = received["expected"]
    in_order = trial.received <= expected <= trial.sent <= trial.offered
    if not in_order or trial.latency.count != trial.received:
        raise RustGuardError(
            f"The ends contradict each other: {trial.offered} packets were offered, {trial.sent} sent, "
            f"{expected} expected, {trial.received} received, and {trial.latency.count} latencies counted."
        )
    return trial


def _cpus(threads: Mapping[str, Mapping[str, int]]) -> dict[str, Cpu]:
    return {name: Cpu(**cpu) for name, cpu in threads.items()}


def _together(*counts: Mapping[str, int]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return {reason: count for reason, count in total.items() if count}
