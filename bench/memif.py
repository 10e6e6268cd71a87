"""A memif and a TUN: packets per second through two tunnels, and the engine's CPU per packet.

    python bench/memif.py [--rounds 7] [--seconds 1] [--output DIR] [--publish]

Ways to feed the same native engine, over sockets, in turns: a TUN, a memif with our generator at the other end, and a
memif with DPDK's testpmd there (`txonly` at one tunnel, `rxonly` at the other), with rings of 4,096 slots and with
its own 1,024. Each offers as much as the device takes. What counts is what arrives behind the second tunnel. Only
ratios within a round count.

testpmd never gives its core away. Where it has the core of an engine's thread, a ring has to hold what comes until
the scheduler takes the core from it. So there the size of the rings decides.

A TUN's packets come from our generator too: a packet socket in bursts of 64 by sendmmsg, and a UDP socket that is
read in bursts of 64 by recvmmsg. DPDK has a TUN of its own (`net_tap`), which reads and writes one packet per system
call. That would flatter a memif.

CPU is the scheduler's count of the engine's threads at both ends. Generators and testpmd aren't in it: testpmd spins
on its cores whether packets come or not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rustguard_py.cli.generate import threads
from rustguard_py.cli.generate.pair import ADDRESSES, PATIENCE, Contender, EndProcess, memif_path, running, start_ends
from rustguard_py.cli.generate.report import Table, machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support import testpmd  # noqa: E402
from support.memif_pair import MAC  # noqa: E402

SIZES = (64, 512, 1420)
FLOWS = 16
BEGIN, END = "<!-- memif -->\n", "<!-- /memif -->\n"
TUN, GENERATOR = "TUN", "memif, generator"
TESTPMD, SHORT = "memif, testpmd 4,096", "memif, testpmd 1,024"
# Of the issue: a memif's rate at 64 bytes over a TUN's, at least, and its CPU per packet over a TUN's, at most.
GOALS = {GENERATOR: 3.0, TESTPMD: 1.5, SHORT: 1.5}
MOST_CPU = 0.6
# Slots of testpmd's rings, as exponents of 2: those of a channel's queue, and testpmd's own choice.
LOG2, SHORT_LOG2 = 12, 10
_ETHERNET = 14
# For the handshake, and until queues have filled.
_WARM_UP = 0.3


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Attributes:
        rate: Packets per second that arrived.
        cpu: CPU nanoseconds of the engine per packet that arrived, both ends together.
    """

    rate: float
    cpu: float


def generated(device: str, seconds: float) -> Iterator[tuple[int, Sample]]:
    """Yield each size and its sample, with our generator."""
    with running(Contender(device, device, "sockets")) as pair:
        for size in SIZES:
            trial = pair.trial(None, seconds, (size,), FLOWS)
            yield size, Sample(trial.rate, (trial.cost(trial.out) or 0.0) + (trial.cost(trial.inward) or 0.0))


def forwarded(seconds: float, log2: int = LOG2) -> Iterator[tuple[int, Sample]]:
    """Yield each size and its sample, with testpmd and rings of this size."""
    program = (sys.executable, "-P", str(ROOT / "bench/testpmd_end.py"))
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with (
            start_ends(Contender(TESTPMD, "memif", "sockets", program=program), path) as ends,
            both(path, log2) as two,
        ):
            for size in SIZES:
                yield size, counted(ends, *two, size, seconds)


@contextmanager
def both(folder: Path, log2: int) -> Iterator[tuple[testpmd.Testpmd, testpmd.Testpmd]]:
    """Run the testpmd that sends and the one that receives."""
    addresses = f"--tx-ip={','.join(ADDRESSES)}"
    sending = (addresses, f"--eth-peer=0,{MAC.hex(':')}")
    sender = testpmd.Testpmd(memif_path(folder, 0), server=False, log2=log2, mode="txonly", more=sending)
    try:
        receiver = testpmd.Testpmd(memif_path(folder, 1), server=False, log2=log2, mode="rxonly")
        try:
            yield sender, receiver
        finally:
            receiver.kill()
    finally:
        sender.kill()


def counted(
    ends: list[EndProcess], sender: testpmd.Testpmd, receiver: testpmd.Testpmd, size: int, seconds: float
) -> Sample:
    """Return what arrived and what it cost, once packets arrive."""
    sender.set_size(size + _ETHERNET)
    receiver.start()
    sender.start()
    before, deadline = receiver.received(), time.monotonic() + PATIENCE
    while receiver.received() == before:
        if time.monotonic() > deadline:
            raise TimeoutError(f"No packet came through the tunnel; see {receiver.log} and {sender.log}.")
    time.sleep(_WARM_UP)
    first, used, start = receiver.received(), cpu(ends), time.monotonic()
    time.sleep(seconds)
    last, whole, end = receiver.received(), cpu(ends), time.monotonic()
    sender.stop()
    receiver.stop()
    packets = last - first
    return Sample(packets / (end - start), (whole - used) / max(1, packets))


def cpu(ends: list[EndProcess]) -> int:
    """Return the nanoseconds that the engine's threads have used so far."""
    tasks = (Path(f"/proc/{end.pid}/task") for end in ends)
    return sum(thread.whole for each in tasks for thread in threads.read(each).values())


Samples = dict[str, dict[int, list[Sample]]]


def measure(rounds: int, seconds: float, tell: Callable[[str], None]) -> Samples:
    """Measure all in each round, beginning with another one each time."""
    arms: dict[str, Callable[[], Iterator[tuple[int, Sample]]]] = {
        TUN: lambda: generated("tun", seconds),
        GENERATOR: lambda: generated("memif", seconds),
    }
    if why := testpmd.why_not():
        tell(f"testpmd is left out: {why}")
    else:
        arms[TESTPMD] = lambda: forwarded(seconds)
        arms[SHORT] = lambda: forwarded(seconds, SHORT_LOG2)
    samples: Samples = {name: {size: [] for size in SIZES} for name in arms}
    names = list(arms)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for size, sample in arms[name]():
                samples[name][size].append(sample)
                tell(f"round {number + 1} of {rounds}: {name}, {size} bytes: {sample.rate / 1e3:,.0f} k/s")
    return samples


def tables(samples: Samples) -> list[Table]:
    """Return the rates, and the CPU per packet."""
    made = []
    for what, style, of in (
        ("k/s", "{:,.0f}", lambda sample: sample.rate / 1e3),
        ("CPU ns", "{:,.0f}", lambda sample: sample.cpu),
    ):
        others = [name for name in samples if name != TUN]
        headings = ["BYTES", f"{TUN} {what}", *(f"{name} {what}" for name in others)]
        headings += [f"{name} \N{DIVISION SIGN} {TUN}" for name in others]
        rows = []
        for size in SIZES:
            row = [str(size), *(style.format(median(map(of, each[size]))) for each in samples.values())]
            rows.append(row + [spread(ratios(samples, name, size, of)) for name in others])
        made.append(Table(headings, rows))
    return made


def ratios(samples: Samples, name: str, size: int, of: Callable[[Sample], float]) -> list[float]:
    """Return a figure over the TUN's of the same round."""
    pairs = zip(samples[name][size], samples[TUN][size], strict=True)
    return [of(one) / of(tun) for one, tun in pairs]


def spread(values: list[float]) -> str:
    """Return the median, and the least and the most in brackets."""
    return f"{median(values):.2f} ({min(values):.2f}\N{EN DASH}{max(values):.2f})"


def goals(samples: Samples) -> list[str]:
    """Return a line for each goal: what it is and what was measured."""
    lines = []
    for name, least in GOALS.items():
        if name in samples:
            rate = median(ratios(samples, name, 64, lambda sample: sample.rate))
            cost = median(ratios(samples, name, 64, lambda sample: sample.cpu))
            lines.append(f"- {name}, 64 bytes: rate {rate:.2f} of TUN's (goal: at least {least:g}), CPU per packet")
            lines.append(f"  {cost:.2f} of TUN's (goal: at most {MOST_CPU:g}).")
    return lines


def document(samples: Samples, seconds: float) -> str:
    """Return the part of the page: the machine, the tables and the goals."""
    here = machine()
    rounds = len(samples[TUN][SIZES[0]])
    head = f"{here['cores']} cores of {here['cpu']}, Linux {here['kernel']}; {rounds} rounds of {seconds:g} s.\n"
    return "\n".join([head, *(table.markdown() for table in tables(samples)), *goals(samples), ""])


def publish(text: str, page: Path) -> None:
    """Put it between the marks of a page."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}")


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--output", type=Path, help="write every sample into memif.json in this folder")
    parser.add_argument("--publish", action="store_true", help="write the tables into docs/internals/devices.md")
    given = parser.parse_args()
    samples = measure(given.rounds, given.seconds, lambda line: print(line, file=sys.stderr, flush=True))
    for table in tables(samples):
        print(table.text())
    print("\n".join(goals(samples)))
    print(f"load {os.getloadavg()[0]:.1f}")
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        every = {name: {size: list(map(asdict, each)) for size, each in of.items()} for name, of in samples.items()}
        (given.output / "memif.json").write_text(json.dumps({"machine": machine(), "samples": every}, indent=2))
    if given.publish:
        publish(document(samples, given.seconds), ROOT / "docs/internals/devices.md")


if __name__ == "__main__":
    main()
