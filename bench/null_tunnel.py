"""A tunnel that does nothing but wait, read and write: what a ping through any tunnel costs at least.

Its program is native/generator/examples/waking. It is no VPN: it has no keys, and accepts every packet.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from functools import cache, partial
from pathlib import Path

from engines import START_SECONDS, Engine, Running, wait_for_ping
from links import Pair

ROOT = Path(__file__).resolve().parents[1]
_INTERFACE, _PORT = "null0", 51820

LAYOUTS = {
    "two": "two threads, one for each way",
    "answer": "the same, and the one that wrote to the interface sends the host's answer",
    "one": "one thread for both ways",
    "spin": "the same, but it never sleeps",
}


@cache
def program() -> Path:
    """Return the program, built if necessary."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / ".venv/cargo"))
    argv = ["cargo", "build", "--locked", "--release", "-q", "-p", "generator", "--example", "waking"]
    subprocess.run(argv, cwd=ROOT / "native", env={**os.environ, "CARGO_TARGET_DIR": str(target)}, check=True)
    return target / "release" / "examples" / "waking"


def delays(times: int, waker: int, sleeper: int, pause: float) -> list[float]:
    """Return the time of each of so many wake-ups from core to core, in µs; `pause` seconds lie between two."""
    argv: list[str | Path] = [program(), "pair", str(waker), str(sleeper), str(round(pause * 1e6)), str(times)]
    report = json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    return [delay / 1000 for delay in report["delays"]]


def null_tunnel(layout: str, core: int | None = None) -> Engine:
    """Return a null tunnel as an engine; both ends stay on `core` if one is given."""
    where = "" if core is None else f", all on core {core}"
    return Engine(LAYOUTS[layout] + where, partial(_start, layout, core))


def _start(layout: str, core: int | None, pair: Pair, _: Path) -> Running:
    inside, own = "10.90.0.1", "10.90.0.2"
    pids = []
    for host, address, far in ((pair.server, inside, pair.here), (pair.client, own, pair.there)):
        argv: list[str | Path] = [program(), "tunnel", _INTERFACE, layout, str(_PORT), f"{far.ipv4}:{_PORT}"]
        if core is not None:
            argv.append(str(core))
        pids.append(host.popen(argv).pid)
        deadline = time.monotonic() + START_SECONDS
        while host.run(["ip", "link", "show", _INTERFACE], check=False).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the null tunnel made no interface within {START_SECONDS:.0f} s")
            time.sleep(0.01)
        host.ip([f"addr add {address}/24 dev {_INTERFACE}", f"link set {_INTERFACE} mtu 1420 up"])
    wait_for_ping(pair.client, inside)
    return Running(inside, pids[1], pids[0])
