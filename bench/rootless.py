"""A join without root against one with root: TCP by the proxy against TCP by the interface, and many connections.

    python bench/rootless.py [--rounds 5] [--seconds 2] [--connections 1000] [--engine native]

Both clients join the same server, in hosts of their own. Each round takes them in turn, first one and then the other,
so that only ratios within a round count. The sender and the receiver are the same program in both cases.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rustguard_py.lab.hosts import Host, Lab

INNER, OUTER, PORT = "10.150.0.1", "198.51.100.1", 7007
SOCKS = ("127.0.0.1", 1080)
START_SECONDS = 60.0
_BLOCK = bytes(1 << 18)
_MODES = {"download": b"d", "upload": b"u", "echo": b"e"}
_TOKEN = "bench-only-token"  # noqa: S105 - it opens a pairing window between namespaces, for seconds


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the two clients.

    Attributes:
        name: What the table calls it.
        options: Of `join`.
        way: The argument of `client`, by which it reaches the server.
    """

    name: str
    options: tuple[str, ...]
    way: str


@dataclass(frozen=True, slots=True)
class Result:
    """A run.

    Attributes:
        engine: Of all three.
        samples: Bits per second, by direction and by client.
        ratios: Of each round, by direction: without root over with root.
        connections: How many were open at once by the proxy, how many failed, and the seconds to open them.
    """

    engine: str
    samples: dict[str, dict[str, list[float]]]
    ratios: dict[str, list[float]]
    connections: dict[str, float]


ROOTED = Arm("with root", (), "direct")
ROOTLESS = Arm("--rootless --socks", ("--rootless", "--socks"), "socks")


# -- the programs in the hosts ------------------------------------------------------------------------------


def _check(happened: bool) -> None:
    if not happened:
        raise SystemExit("The other end answered with something else.")


async def serve() -> None:
    """Answer connections: the first byte says how."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mode = await reader.readexactly(1)
        try:
            if mode == b"d":
                while True:
                    writer.write(_BLOCK)
                    await writer.drain()
            count = 0
            while data := await reader.read(1 << 18):
                count += len(data)
                if mode == b"e":
                    writer.write(data)
                    await writer.drain()
            if mode == b"u":
                writer.write(count.to_bytes(8, "big"))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, INNER, PORT, backlog=2048)
    print("ready", flush=True)
    await server.serve_forever()


async def reach(way: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the server: directly, or by SOCKS5."""
    if way == "direct":
        return await asyncio.open_connection(INNER, PORT)
    reader, writer = await asyncio.open_connection(*SOCKS)
    writer.write(b"\5\1\0")
    _check(await reader.readexactly(2) == b"\5\0")
    writer.write(b"\5\1\0\1" + bytes(map(int, INNER.split("."))) + PORT.to_bytes(2, "big"))
    _check((await reader.readexactly(10))[1] == 0)
    return reader, writer


async def transfer(way: str, mode: str, seconds: float) -> float:
    """Move bytes for so long in one connection. Return bits per second, of those that arrived."""
    reader, writer = await reach(way)
    writer.write(_MODES[mode])
    began = time.monotonic()
    count = 0
    if mode == "download":
        while time.monotonic() - began < seconds:
            count += len(await reader.read(1 << 18))
    else:
        while time.monotonic() - began < seconds:
            writer.write(_BLOCK)
            await writer.drain()
        writer.write_eof()
        count = int.from_bytes(await reader.readexactly(8), "big")
    elapsed = time.monotonic() - began
    writer.close()
    return 8 * count / elapsed


async def many(way: str, count: int) -> dict[str, float]:
    """Open connections, and keep all open while each has something echoed. Return how long that took."""
    began = time.monotonic()

    async def one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await reach(way)
        writer.write(b"e" + bytes(1000))
        _check(await reader.readexactly(1000) == bytes(1000))
        return reader, writer

    opened = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    open_seconds = time.monotonic() - began
    alive = [each for each in opened if not isinstance(each, BaseException)]

    async def again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 1000)
        _check(await reader.readexactly(1000) == b"x" * 1000)

    await asyncio.gather(*(again(*each) for each in alive))
    for _, writer in alive:
        writer.close()
    return {"open": len(alive), "failed": count - len(alive), "seconds": open_seconds}


# -- the hosts ----------------------------------------------------------------------------------------------


@contextmanager
def site(engine: str) -> Iterator[dict[Arm, Host]]:
    """A server, and both clients connected to it."""
    # Long names would make the paths of sockets too long.
    with tempfile.TemporaryDirectory(prefix="rg-") as folder, Lab() as lab:
        home = lab.host("home", own_run=True)
        clients = {arm: lab.host(arm.way, own_run=True) for arm in (ROOTED, ROOTLESS)}
        for number, host in enumerate(clients.values()):
            lab.link(home, host, ipv4=f"198.51.100.{8 * number}/29")
        _start(home, folder, "home", ["serve", "--pool", "10.150.0.0/24", "--open", "3600", "--engine", engine])
        for number, (arm, host) in enumerate(clients.items()):
            server = f"198.51.100.{8 * number + 1}"
            _start(host, folder, arm.way, ["join", server, "--engine", engine, "--name", arm.way, *arm.options])
        program = home.popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE)
        _check(program.stdout is not None and program.stdout.readline() == "ready\n")
        yield clients


def _start(host: Host, folder: str, name: str, words: list[str]) -> None:
    log = Path(folder, f"{name}.said")
    environment = {"RUSTGUARD_TOKEN": _TOKEN}
    argv = [sys.executable, "-P", "-m", "rustguard_py.cli", *words, "--state", f"{folder}/{name}"]
    program = host.popen(argv, log=log, env=environment)
    deadline = time.monotonic() + START_SECONDS
    while not any(line in log.read_text() for line in ("Connected to", "window is open for")):
        if program.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} didn't start:\n{log.read_text()}")
        time.sleep(0.05)


def _ask(host: Host, *words: str) -> dict[str, float]:
    answer: dict[str, float] = json.loads(host.run([sys.executable, __file__, *words], timeout=600).stdout)
    return answer


def measure(rounds: int, seconds: float, connections: int, engine: str) -> Result:
    """Return the samples and ratios of a run."""
    samples: dict[str, dict[str, list[float]]] = {"download": {}, "upload": {}}
    with site(engine) as clients:
        for number in range(rounds):
            arms = list(clients)
            for arm in arms if number % 2 == 0 else reversed(arms):
                for mode, found in samples.items():
                    rate = _ask(clients[arm], "client", arm.way, mode, str(seconds))["rate"]
                    found.setdefault(arm.name, []).append(rate)
        crowd = _ask(clients[ROOTLESS], "many", ROOTLESS.way, str(connections))
    ratios = {
        mode: [ours / theirs for ours, theirs in zip(found[ROOTLESS.name], found[ROOTED.name], strict=True)]
        for mode, found in samples.items()
    }
    return Result(engine, samples, ratios, crowd)


def show(result: Result) -> None:
    """Print a run as a table."""
    for mode, found in result.samples.items():
        for name, rates in found.items():
            print(f"{mode:9} {name:20} {statistics.median(rates) / 1e6:8.0f} Mbit/s")
        each = result.ratios[mode]
        print(f"{mode:9} {'ratio':20} {statistics.median(each):8.2f} ({min(each):.2f} to {max(each):.2f})")
    print(f"connections at once  {result.connections}")


def main() -> None:
    """Measure, or be one of the programs in the hosts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 1 << 16)), hard))
    match sys.argv[1:]:
        case ["serve"]:
            asyncio.run(serve())
        case ["client", way, mode, seconds]:
            print(json.dumps({"rate": asyncio.run(transfer(way, mode, float(seconds)))}))
        case ["many", way, count]:
            print(json.dumps(asyncio.run(many(way, int(count)))))
        case _:
            parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
            parser.add_argument("--rounds", type=int, default=5)
            parser.add_argument("--seconds", type=float, default=2.0)
            parser.add_argument("--connections", type=int, default=1000)
            parser.add_argument("--engine", choices=("native", "portable"), default="native")
            parser.add_argument("--json", type=Path, help="also write every sample here")
            given = parser.parse_args()
            result = measure(given.rounds, given.seconds, given.connections, given.engine)
            show(result)
            if given.json is not None:
                given.json.write_text(json.dumps(asdict(result), indent=2))
            print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
