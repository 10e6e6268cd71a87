"""Each device with each UDP side, and wireguard-go, in turns."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rustguard_py import engine as engines
from rustguard_py.cli.generate.layout import sizes
from rustguard_py.cli.generate.measure import Traffic, measure
from rustguard_py.cli.generate.pair import Contender, running
from rustguard_py.cli.generate.report import REFERENCE, SHARES, Results
from rustguard_py.cli.generate.search import Limits
from rustguard_py.data_path import DataPath
from rustguard_py.model.errors import RefusedError, RustGuardError, UsageError
from rustguard_py.system.interface import check_interface_name

SIZES = ("64", "1420")
# No turn begins that may end later.
MOST_MINUTES = 14
# With longer trials few contenders would have a turn.
MOST_SECONDS = 2
# `make wireguard-go-generate` puts it where our Python is.
PROGRAM = "wireguard-go-generate"
# Seconds that a contender's start and end take, and a trial beyond its own length, at most.
_START, _EXTRA = 4.0, 0.4


def ours(name: str, *, uring: bool, xdp: str | None) -> Contender:
    """Return the contender for these options.

    Raises:
        UsageError: The options exclude each other, or the name can't be an interface's.
        RefusedError: The engine isn't here or can't be measured so.
    """
    if name == "kernel":
        raise RefusedError(
            "The kernel's engine takes its packets from a device of the kernel, so no channel can feed it.",
            "Measure it with TCP: rustguard bench",
        )
    if name == "auto":
        name = "native" if engines.has_native() else "portable"
    # The interface is in a namespace that doesn't exist yet.
    engines.choose(DataPath(name, uring=uring))
    if xdp is not None and (uring or name == "portable"):
        raise UsageError("--xdp needs the native engine, without --uring.", "Leave one of them out.")
    if xdp is not None:
        check_interface_name(xdp)
    if uring and (refusal := engines.uring_refusal()) is not None:
        raise RefusedError(f"The kernel refuses io_uring: {refusal}.", "Leave out --uring.")
    side = "io_uring" if uring else "AF_XDP" if xdp is not None else "sockets"
    return Contender(f"{name}, {side}", "channel", side, name)


def contenders() -> tuple[list[Contender], dict[str, str]]:
    """Return what is compared, and why others aren't, by name."""
    found, missing = [], {}
    if not engines.has_native():
        missing["native"] = "this installation has no native engine"
    else:
        # A device that the plane gets later needs its name here, and a generator in `end.start`.
        for device in ("channel", "memif", "tun"):
            for side in ("sockets", "io_uring", "AF_XDP"):
                each = Contender(f"{device}, {side}", device, side)
                if side == "io_uring" and (refusal := engines.uring_refusal()) is not None:
                    missing[each.name] = f"the kernel refuses io_uring: {refusal}"
                else:
                    found.append(each)
    if (program := _reference()) is not None:
        found.append(Contender(REFERENCE, "channel", "wireguard-go", program=(program,)))
    else:
        missing[REFERENCE] = f"{PROGRAM} isn't built (in a checkout, with Go: make {PROGRAM})"
    return found, missing


def _reference() -> str | None:
    built = Path(sys.executable).with_name(PROGRAM)
    return str(built) if built.exists() else shutil.which(PROGRAM)


def limits(seconds: float) -> Limits:
    """Return the limits of a search in a comparison, where many have to fit into the time."""
    return Limits(resolution=0.06, trials=9, seconds=9 * (seconds + _EXTRA))


def longest_turn(seconds: float) -> float:
    """Return how long a contender's turn may take: all sizes, each with a search and its further trials."""
    return _START + len(SIZES) * (limits(seconds).trials + 1 + len(SHARES)) * (seconds + _EXTRA)


def run(
    traffic: Traffic,
    rounds: int,
    doing: Callable[[str, Callable[[], None]], None],
    clock: Callable[[], float],
    found: tuple[list[Contender], dict[str, str]] | None = None,
) -> Results:
    """Measure all in each round, beginning with another one each time.

    Args:
        traffic: What to send; its size is replaced by each of `SIZES`.
        rounds: How many. Fewer are taken if the time is up.
        doing: Called with what is done and a function that does it.
        clock: Returns the time in seconds.
        found: What is compared, if not all that run here.
    """
    here, missing = found or contenders()
    results = Results(traffic, {each.name: each for each in here}, left_out=missing)
    deadline = clock() + 60 * MOST_MINUTES
    for number in range(rounds):
        turn = number % max(1, len(here))
        for each in here[turn:] + here[:turn]:
            if each.name in results.left_out:
                continue
            if clock() + longest_turn(traffic.seconds) > deadline:
                results.left_out.setdefault("the rest", f"the time was up in round {number + 1} of {rounds}")
                return _settled(results)

            def act(each: Contender = each) -> None:
                _turn(results, each, traffic)

            try:
                doing(f"round {number + 1} of {rounds}: {each.name}", act)
            except (RustGuardError, OSError, ValueError) as error:
                results.left_out[each.name] = f"in round {number + 1}: {error}"
    return _settled(results)


def _turn(results: Results, contender: Contender, traffic: Traffic) -> None:
    with running(contender, segmentation=traffic.segmentation) as pair:
        results.about[contender.name], results.notes[contender.name] = pair.about, pair.notes
        for size in SIZES:
            of = replace(traffic, size=size, sizes=sizes(size))
            results.rounds.setdefault(contender.name, []).append(measure(pair, of, SHARES, limits(traffic.seconds)))


def _settled(results: Results) -> Results:
    """Keep only contenders that were measured."""
    for name in [name for name in results.contenders if name not in results.rounds]:
        del results.contenders[name]
    return results
