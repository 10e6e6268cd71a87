"""What a server's tunnels add to the round trip while TCP streams to several clients fill its one slow uplink.

    scripts/in-namespace .venv/bin/python bench/uplink.py [--rate MBIT] [--clients N] [--streams A,B,...] [--rounds N]

A server, a router and the clients. The server's own interface sends as fast as a token bucket (tc-tbf) permits, which
has a queue. In each round, every engine carries the streams in turn, while each client pings the server. The share of
a client is what its streams had of the sum.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles

# What runs wireguard-go is shared with the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from bufferbloat import narrow
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from engines import BEFORE, START_SECONDS, rustguard_program, wait_for_ping
from measures import FAILURES
from report import BARE, REFERENCE
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rustguard_py.lab.hosts import End, Host, Lab
from support.wireguard_go import Peer, WireGuardGo

OUTSIDE, INSIDE, PORT = "192.0.2.1", "10.90.0.1", 51820
_TOKEN = "bench-only-token"  # noqa: S105 - it opens a pairing window between namespaces, for seconds
_WARM_UP = 1.5
_PING_INTERVAL = 0.02


@dataclass(frozen=True, slots=True)
class Star:
    """A server with one uplink, and its clients behind a router."""

    server: Host
    uplink: End
    clients: list[Host]


@dataclass(frozen=True, slots=True)
class Figures:
    """What one turn had.

    Attributes:
        rates: Mbit/s of each client's streams.
        rtts: The round trips of all clients' pings, ms.
    """

    rates: list[float]
    rtts: list[float]


def make_star(lab: Lab, clients: int) -> Star:
    """Make the hosts and their links."""
    server, router = lab.host("server", own_run=True), lab.host("router")
    router.forward()
    uplink, _ = lab.link(server, router, ipv4="192.0.2.0/24")
    server.ip(["route add default via 192.0.2.2"])
    made = []
    for number in range(clients):
        client = lab.host(f"client{number}", own_run=True)
        lab.link(router, client, ipv4=f"198.51.100.{8 * number}/29")
        client.ip([f"route add default via 198.51.100.{8 * number + 1}"])
        made.append(client)
    return Star(server, uplink, made)


def start(engine: str, star: Star, folder: Path, before: Path | None) -> str:
    """Start an engine at every end; return the server's address for the clients."""
    if engine == BARE:
        return OUTSIDE
    if engine == REFERENCE:
        _start_reference(star, folder)
    else:
        _start_own(star, folder, rustguard_program(before if engine == BEFORE else None))
    for client in star.clients:
        wait_for_ping(client, INSIDE)
    return INSIDE


def _start_reference(star: Star, folder: Path) -> None:
    keys = [X25519PrivateKey.generate() for _ in star.clients]
    own = [f"10.90.0.{number}" for number in range(2, 2 + len(keys))]
    peers = [Peer(key.public_key().public_bytes_raw(), [f"{each}/32"]) for key, each in zip(keys, own, strict=True)]
    server = WireGuardGo(star.server, [f"{INSIDE}/24"], peers, port=PORT, log=folder / "server.log")
    for client, key, each in zip(star.clients, keys, own, strict=True):
        peer = Peer(server.public_key, ["10.90.0.0/24"], f"{OUTSIDE}:{PORT}")
        secret, log = key.private_bytes_raw(), folder / f"{client.name}.log"
        WireGuardGo(client, [f"{each}/24"], [peer], private_key=secret, log=log)


def _start_own(star: Star, folder: Path, program: Path) -> None:
    def begin(host: Host, *words: str) -> None:
        runtime = folder / f"run-{host.name}"
        runtime.mkdir(mode=0o700)
        host.popen(
            [program, *words, "--engine", "native", "--state", folder / f"state-{host.name}"],
            log=folder / f"{host.name}.log",
            env={"RUSTGUARD_TOKEN": _TOKEN, "RUSTGUARD_RUNTIME": str(runtime)},
        )

    begin(star.server, "serve", "--pool", "10.90.0.0/24", "--open", "60")
    star.server.wait_listening("udp", PORT, START_SECONDS)
    for client in star.clients:
        begin(client, "join", f"{OUTSIDE}:{PORT}", "--name", client.name)


def fill(star: Star, target: str, streams: list[int], seconds: float, congestion: str) -> Figures:
    """Send TCP streams to the clients, and pings meanwhile for `seconds`."""
    duration = str(round(seconds + _WARM_UP + 1))
    running = []
    for number, (client, count) in enumerate(zip(star.clients, streams, strict=True)):
        port = str(5201 + number)
        argv = ["iperf3", "-J", "-R", "-c", target, "-p", port, "-t", duration, "-O", "1", "-C", congestion]
        if count:
            star.server.popen(["iperf3", "-s", "-1", "-p", port], stdout=subprocess.DEVNULL)
            star.server.wait_listening("tcp", int(port))
            running.append(client.popen([*argv, "-P", str(count)], stdout=subprocess.PIPE))
    time.sleep(_WARM_UP)
    with ThreadPoolExecutor() as pool:
        rtts = [
            each for found in pool.map(partial(_ping, target=target, seconds=seconds), star.clients) for each in found
        ]
    reports = [json.loads(each.communicate(timeout=seconds + 30)[0]) for each in running]
    return Figures([each["end"]["sum_received"]["bits_per_second"] / 1e6 for each in reports], rtts)


def _ping(client: Host, target: str, seconds: float) -> list[float]:
    argv = ["ping", "-i", str(_PING_INTERVAL), "-W", "2", "-c", str(int(seconds / _PING_INTERVAL)), target]
    said = client.run(argv, timeout=seconds + 30, check=False).stdout
    return [float(each) for each in re.findall(r"time=([\d.]+) ms", said)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0, metavar="MBIT", help="of the uplink (100)")
    parser.add_argument("--queue", type=float, default=50.0, metavar="MS", help="how much its queue holds (50)")
    parser.add_argument("--clients", type=int, default=2, metavar="N", help="how many there are (2)")
    parser.add_argument("--streams", metavar="A,B,...", help="how many each client has (1)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is measured (3)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="N", help="of each run of pings (3)")
    parser.add_argument("--congestion", default="cubic", metavar="NAME", help="TCP's congestion control (cubic)")
    parser.add_argument("--engines", default=f"{BARE},{REFERENCE},native", metavar="A,B")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="the native engine of another checkout too")
    given = parser.parse_args()
    given.engines = given.engines.split(",")
    if given.before is not None:
        given.engines.append(BEFORE)
    given.streams = [int(each) for each in given.streams.split(",")] if given.streams else [1] * given.clients
    return given


def _measured(engine: str, given: argparse.Namespace) -> Figures:
    """Start an engine in fresh hosts and measure it."""
    with tempfile.TemporaryDirectory(prefix="rustguard-bench-") as folder, Lab() as lab:
        star = make_star(lab, given.clients)
        narrow(star.uplink, given.rate, given.queue)
        target = start(engine, star, Path(folder), given.before)
        return fill(star, target, given.streams, given.seconds, given.congestion)


def _table(taken: dict[str, list[Figures]], given: argparse.Namespace) -> Table:
    about = f"{given.rate:g} Mbit/s, a queue of {given.queue:g} ms, streams {given.streams}, {given.rounds} rounds"
    table = Table(title=about, box=SIMPLE_HEAD)
    for column in ("engine", "RTT ms", "least to most", "95 %", "Mbit/s", "least and greatest share"):
        table.add_column(column)
    for engine, figures in taken.items():
        rtts = [median(each.rtts) for each in figures]
        rtt95 = median(quantiles(each.rtts, n=20)[18] for each in figures)
        sums = median(sum(each.rates) for each in figures)
        shares = [median(min(each.rates) / sum(each.rates) for each in figures)]
        shares.append(median(max(each.rates) / sum(each.rates) for each in figures))
        spread = f"{min(rtts):.1f} to {max(rtts):.1f}"
        said = " ".join(f"{share:.0%}" for share in shares)
        table.add_row(engine, f"{median(rtts):.1f}", spread, f"{rtt95:.1f}", f"{sums:.1f}", said)
    return table


def main() -> int:
    """Measure and print; 1 if anything failed."""
    given, said, failed = _arguments(), Console(stderr=True), False
    taken: dict[str, list[Figures]] = {}
    for turn in range(given.rounds):
        first = turn % len(given.engines)
        for engine in [*given.engines[first:], *given.engines[:first]]:
            try:
                taken.setdefault(engine, []).append(_measured(engine, given))
            except FAILURES as error:
                said.print(f"failed: {engine}: {error}", highlight=False)
                failed = True
    Console(width=118).print(_table({engine: found for engine, found in taken.items() if found}, given))
    return 1 if failed or not any(taken.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
