"""What is measured side by side: each engine joins two hosts of a lab by a tunnel, or by nothing but their link."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.engine import has_native
from rustguard_py.errors import RustGuardError
from rustguard_py.lab import End, Host, Lab
from support.wireguard_go import Peer, WireGuardGo

START_SECONDS = 20.0
_TOKEN = "bench-only-token"  # noqa: S105 - it opens a pairing window inside two namespaces, for seconds


@dataclass(frozen=True, slots=True)
class Pair:
    """Two hosts and the link between them; the client sends."""

    client: Host
    server: Host
    here: End
    there: End


@dataclass(frozen=True, slots=True)
class Running:
    """A tunnel that carries traffic.

    Attributes:
        target: The server's address inside.
        client_pid: The process whose CPU time the client's end costs; None for the bare link.
        server_pid: The same at the server's end.
    """

    target: str
    client_pid: int | None = None
    server_pid: int | None = None


def make_pair(lab: Lab, *, udp_segmentation: bool) -> Pair:
    """Two hosts on one link."""
    client, server = lab.host("client", own_run=True), lab.host("server", own_run=True)
    here, there = lab.link(client, server, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")
    if not udp_segmentation:
        lab.udp_segmentation(client, on=False)
        lab.udp_segmentation(server, on=False)
    return Pair(client, server, here, there)


def bare_veth(pair: Pair, _: Path) -> Running:
    """No tunnel: the link itself."""
    return Running(str(pair.there.ipv4))


def wireguard_go(pair: Pair, folder: Path) -> Running:
    """wireguard-go at both ends."""
    key = X25519PrivateKey.generate()
    client_peer = Peer(key.public_key().public_bytes_raw(), ["10.90.0.2/32"])
    server = WireGuardGo(
        pair.server, ["10.90.0.1/32"], [client_peer], port=51820, log=folder / "wireguard-go-server.log"
    )
    server_peer = Peer(server.public_key, ["10.90.0.1/32"], f"{pair.there.ipv4}:51820")
    client = WireGuardGo(
        pair.client,
        ["10.90.0.2/32"],
        [server_peer],
        private_key=key.private_bytes_raw(),
        log=folder / "wireguard-go-client.log",
    )
    wait_for_ping(pair.client, "10.90.0.1")
    return Running("10.90.0.1", client.process.pid, server.process.pid)


def rustguard(pair: Pair, folder: Path, *options: str) -> Running:
    """`rustguard serve` and `rustguard join`, as a user starts them.

    Args:
        pair: The hosts.
        folder: For states, runtime directories and logs.
        options: More of `serve` and `join` alike, such as `--engine portable`.
    """
    serve = _start(pair.server, folder, "serve", "--pool", "10.90.0.0/24", "--open", "60", *options)
    _or_its_log(folder, pair.server, lambda: pair.server.wait_listening("udp", 51820, START_SECONDS))
    join = _start(pair.client, folder, "join", str(pair.there.ipv4), "--name", "client", *options)
    _or_its_log(folder, pair.client, lambda: wait_for_ping(pair.client, "10.90.0.1"))
    return Running("10.90.0.1", client_pid=join.pid, server_pid=serve.pid)


def _start(host: Host, folder: Path, *words: str) -> subprocess.Popen[str]:
    runtime = folder / f"run-{host.name}"
    runtime.mkdir(mode=0o700)
    return host.popen(
        [Path(sys.executable).with_name("rustguard"), *words, "--state", folder / f"state-{host.name}"],
        log=folder / f"rustguard-{host.name}.log",
        env={"RUSTGUARD_TOKEN": _TOKEN, "RUSTGUARD_RUNTIME": str(runtime)},
    )


def _or_its_log(folder: Path, host: Host, wait: Callable[[], None]) -> None:
    try:
        wait()
    except (RustGuardError, TimeoutError) as error:
        said = (folder / f"rustguard-{host.name}.log").read_text().strip()[-1000:]
        raise RustGuardError(f"{error} It said: {said or 'nothing'}") from error


Engine = Callable[[Pair, Path], Running]


def portable(pair: Pair, folder: Path) -> Running:
    """RustGuard on the data plane in Python."""
    return rustguard(pair, folder, "--engine", "portable")


def native(pair: Pair, folder: Path) -> Running:
    """RustGuard on the data plane in Rust."""
    return rustguard(pair, folder, "--engine", "native")


ENGINES: dict[str, Engine] = {"veth": bare_veth, "wireguard-go": wireguard_go, "portable": portable}
if has_native():
    ENGINES["native"] = native


def wait_for_ping(host: Host, address: str) -> None:
    """Come back with the first answer.

    Raises:
        TimeoutError: After START_SECONDS without one.
    """
    deadline = time.monotonic() + START_SECONDS
    while host.run(["ping", "-c1", "-W1", address], check=False).returncode:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{address} didn't answer within {START_SECONDS:.0f} s")
        time.sleep(0.05)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
