"""What one command measures: tables, each with its way between the hosts, its engines and its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines import ENGINES
from links import Way
from measures import STEPS, estimate


@dataclass(frozen=True, slots=True)
class Table:
    """Engines measured in turn, in rounds, over one way.

    Attributes:
        way: What lies between the hosts.
        engines: Of `ENGINES`.
        steps: Of `STEPS`.
    """

    way: Way
    engines: Sequence[str]
    steps: Sequence[str]

    def estimate(self, rounds: int, seconds: int) -> float:
        """About how many seconds it takes."""
        return rounds * len(self.engines) * estimate(self.steps, seconds)


# What the other ways are about: wireguard-go, and what people choose between.
_COMPARED = ("wireguard-go", "gotatun", "boringtun", "portable", "native", "native-uring", "native-xdp")


def full(engines: Sequence[str]) -> list[Table]:
    """Every engine with every step; then no UDP segmentation, IPv6 and loss, with what these change."""
    compared = [engine for engine in engines if engine in _COMPARED]
    return [
        Table(Way(), engines, list(STEPS)),
        Table(Way(udp_segmentation=False), compared, ["tcp1", "tcp1r", "udp1372"]),
        Table(Way(ipv6=True), compared, ["ping", "tcp1", "tcp1r", "udp1372"]),
        Table(Way(loss=0.01), compared, ["tcp1"]),
    ]


def able(engines: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return which of the engines run here, and why the others don't."""
    reasons = {name: ENGINES[name].why_not() for name in engines}
    return [name for name in engines if not reasons[name]], {name: why for name, why in reasons.items() if why}
