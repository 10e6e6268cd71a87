"""What is measured of one contender: saturation, the throughput without loss, and latency at loads below it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rustguard_py.cli.generate.pair import Pair
from rustguard_py.cli.generate.search import Limits, Search
from rustguard_py.cli.generate.trial import Trial

# Of what arrives at saturation: where the search begins.
_FIRST_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent in each trial.

    Attributes:
        size: As typed: a number of bytes, or `imix`.
        sizes: The sizes that follow each other.
        flows: Number of flows.
        seconds: Of a trial.
        most_loss: The share that may be lost in a trial that passes.
        segmentation: Whether the link passes UDP messages of many datagrams whole.
    """

    size: str
    sizes: tuple[int, ...]
    flows: int
    seconds: float
    most_loss: float = 0.0
    segmentation: bool = True


@dataclass(frozen=True, slots=True)
class Measured:
    """A contender's figures with one size.

    Attributes:
        size: As in `Traffic`.
        saturated: The trial that offered as much as the device took.
        best: The trial at the highest load that passed, or None if none did.
        ended: Why the search ended, see `Search`.
        loads: Trials at shares of that load, by share.
        searched: All trials of the search, in order.
    """

    size: str
    saturated: Trial
    best: Trial | None
    ended: str
    loads: dict[float, Trial] = field(default_factory=dict)
    searched: list[Trial] = field(default_factory=list)


def measure(
    pair: Pair,
    traffic: Traffic,
    shares: Sequence[float],
    limits: Limits,
    tell: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Measure one contender with one size.

    Args:
        pair: The contender, running.
        traffic: What to send.
        shares: Shares of the throughput without loss to measure latency at.
        limits: Of the search.
        tell: Told what is done, for people who wait.
    """

    def trial(load: float | None) -> Trial:
        tell("as much as it takes" if load is None else f"{load:,.0f} packets/s")
        return pair.trial(load, traffic.seconds, traffic.sizes, traffic.flows)

    saturated = trial(None)
    search = Search(_FIRST_SHARE * saturated.rate, limits, time.monotonic())
    best: Trial | None = None
    searched = []
    while (load := search.next_load(time.monotonic())) is not None:
        tried = trial(load)
        searched.append(tried)
        passed = tried.passes(traffic.most_loss)
        if passed:
            best = tried
        search.record(passed)
    measured = Measured(traffic.size, saturated, best, search.ended, searched=searched)
    if search.best is None:
        return measured
    return replace(measured, loads={share: trial(share * search.best) for share in shares})
