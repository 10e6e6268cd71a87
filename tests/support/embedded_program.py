"""A program with an embedded tunnel, in a host of the lab: it answers pings, and sends five a second.

Its argument is a JSON object: `source`, the `arguments` of `connect`, and whom to `ping`. It writes JSON lines:
`{"open": …}` or `{"error": …}`, then `{"answered": …}` for each ping that was answered, and `{"stats": …}` at the
end, which comes with the end of its input.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
from functools import cached_property
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import rustguard_py
from rustguard_py.lab.hosts import Host
from support.product import PATIENCE

_ROOT = Path(__file__).parents[2]


class EmbeddedProgram:
    """The program as a test sees it."""

    def __init__(self, host: Host, source: str, *, ping: str = "", **arguments: Any) -> None:
        given = json.dumps({"source": source, "ping": ping, "arguments": arguments})
        self._process = host.popen(
            [sys.executable, __file__, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": str(_ROOT / "tests")},
        )

    @cached_property
    def first(self) -> dict[str, Any]:
        """The first line that it writes."""
        return self.line()

    @property
    def open(self) -> dict[str, Any]:
        """What it has: `addresses`, `name`, `mtu`, `engine`. It is an error if it couldn't open its tunnel."""
        first = self.first
        assert "open" in first, first
        opened: dict[str, Any] = first["open"]
        return opened

    @property
    def error(self) -> tuple[str, str]:
        """The name and the message of the error that it has met."""
        assert "error" in self.first, self.first
        return self.first["error"]["type"], self.first["error"]["message"]

    def line(self) -> dict[str, Any]:
        """The next line that it writes."""
        assert self._process.stdout is not None
        read: dict[str, Any] = json.loads(self._process.stdout.readline())
        return read

    def more(self, count: int) -> None:
        """Wait until this many more pings are answered."""
        assert self.open
        deadline = time.monotonic() + PATIENCE
        for _ in range(count):
            while "answered" not in self.line():
                assert time.monotonic() < deadline

    def end(self) -> dict[str, Any]:
        """End it, and give its counters."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        while "stats" not in (line := self.line()):
            pass
        assert self._process.wait(PATIENCE) == 0
        stats: dict[str, Any] = line["stats"]
        return stats


def _say(**what: object) -> None:
    print(json.dumps(what, default=str), flush=True)


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("ping", _ROOT / "examples/ping.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _answer(packet: memoryview) -> bytes | None:
    """The answer to a ping without IP options; None to anything else."""
    if packet[0] != 0x45 or packet[9] != 1 or packet[20] != 8:
        return None
    reply = bytearray(packet)
    reply[12:16], reply[16:20], reply[20] = packet[16:20], packet[12:16], 0
    total = int.from_bytes(reply[22:24], "big") + 0x0800
    reply[22:24] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    return bytes(reply)


async def _read(tunnel: rustguard_py.AsyncTunnel) -> None:
    while True:
        for packet in await tunnel.read_batch():
            if (reply := _answer(packet)) is not None:
                await tunnel.write_batch([reply])
            elif packet[9] == 1 and packet[20] == 0:
                _say(answered=int.from_bytes(packet[26:28], "big"))


async def _ping(tunnel: rustguard_py.AsyncTunnel, target: IPv4Address) -> None:
    example, sequence = _example(), 0
    source = next(each.ip for each in tunnel.addresses if each.version == 4)
    while True:
        await tunnel.write_batch([example.echo_request(source, target, 1, sequence & 0xFFFF)])
        sequence += 1
        await asyncio.sleep(0.2)


async def _main() -> None:
    given = json.loads(sys.argv[1])
    try:
        async with rustguard_py.connect(given["source"], **given["arguments"]) as tunnel:
            _say(
                open={
                    "addresses": tunnel.addresses,
                    "name": tunnel.name,
                    "mtu": tunnel.mtu,
                    "engine": tunnel.engine,
                    "port": tunnel.port,
                }
            )
            tasks = [asyncio.create_task(_read(tunnel))]
            if given["ping"]:
                tasks.append(asyncio.create_task(_ping(tunnel, IPv4Address(given["ping"]))))
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
            for task in tasks:
                task.cancel()
            stats = dataclasses.asdict(tunnel.stats())
        _say(stats=stats)
    except rustguard_py.RustGuardError as error:
        _say(error={"type": type(error).__name__, "message": error.message, "fix": error.fix})


if __name__ == "__main__":
    asyncio.run(_main())
