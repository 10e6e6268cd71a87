"""Our tunnel in a host of the lab, peers given by hand: no enrollment, no state. The twin of `WireGuardGo`.

The program reads JSON lines on stdin (first what it is, then `{"peer": …}` and `{"ask": "stats"}`), and writes JSON
lines on stdout: `ready`, `session`, `moved`, `known`, `stats`, `note`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.engine import Engine
from rustguard_py.lab.hosts import Host
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.keys import NO_PRESHARED_KEY
from rustguard_py.model.peer import Peer as NodePeer
from rustguard_py.model.peer import PeerConfig
from rustguard_py.model.tunnel import Listeners
from rustguard_py.planes.gate import Gate, Verdict
from rustguard_py.protocol.noise import StaticKey
from rustguard_py.protocol.wire import MAC_SIZE
from rustguard_py.system.interface import InterfaceSetup, set_up
from rustguard_py.system.sockets import bind
from rustguard_py.tunnel import Tunnel

# Deadlines for what takes a moment, on a machine that is slow and busy.
START_SECONDS = ANSWER_SECONDS = 60.0


class OurTunnel:
    """A tunnel in a process of its own, ended with its lab or by `stop`.

    Args:
        host: Where it runs.
        addresses: Of the tunnel interface, with prefix lengths.
        peers: Whom it knows from the start.
        folder: For what it says.
        private_key: 32 bytes; a fresh one by default.
        port: To listen on; 0 for any.
        mtu: Of the tunnel interface.
        interface: Its name.
        engine: The plane that it runs on: `portable` or `native`.
        queues: Of the interface, on the native plane.
        uring: Whether that uses io_uring.
        xdp: The interface that the native plane uses AF_XDP on.
        believing: Whether the portable plane's gate takes any MAC2 but zero for a proof, as a control.
    """

    def __init__(
        self,
        host: Host,
        addresses: Sequence[str],
        peers: Sequence[Any] = (),
        *,
        folder: Path,
        private_key: bytes | None = None,
        port: int = 0,
        mtu: int = 1420,
        interface: str = "rg0",
        engine: str = "portable",
        queues: int = 1,
        uring: bool = False,
        xdp: str | None = None,
        believing: bool = False,
    ) -> None:
        key = X25519PrivateKey.from_private_bytes(private_key) if private_key else X25519PrivateKey.generate()
        self.public_key = key.public_key().public_bytes_raw()
        self.host = host
        self.interface = interface
        self._said = folder / f"our-tunnel-{host.name}-{time.monotonic_ns()}"
        with self._said.open("w") as out:
            self.process = host.popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=out, env={"PYTHONPATH": _tests()}
            )
        self._tell(
            private_key=key.private_bytes_raw().hex(),
            addresses=[*addresses],
            peers=[_peer_object(peer) for peer in peers],
            port=port,
            mtu=mtu,
            interface=interface,
            engine=engine,
            queues=queues,
            uring=uring,
            xdp=xdp,
            believing=believing,
        )
        self.port: int = self.wait_for("ready", START_SECONDS)["ready"]

    def set_peer(self, peer: Any) -> None:
        """Add a peer, or change it; back when it holds."""
        before = len(self.said("known"))
        self._tell(peer=_peer_object(peer))
        self.wait_for("known", ANSWER_SECONDS, before + 1)

    def said(self, kind: str) -> list[dict[str, Any]]:
        """What it said so far of a kind: `ready`, `session` (key), `moved` (endpoint), `known`, `stats` or `note`.

        Lines that are being written are left for the next time.
        """
        lines = [json.loads(line) for line in self._said.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        return [line for line in lines if kind in line]

    def wait_for(self, kind: str, seconds: float, nth: int = 1) -> dict[str, Any]:
        """Wait until it has said something of a kind `nth` times, and give that."""
        deadline = time.monotonic() + seconds
        while len(self.said(kind)) < nth:
            assert self.process.poll() is None, f"the tunnel ended with {self.process.returncode}"
            assert time.monotonic() < deadline, f"no {kind} within {seconds} s"
            time.sleep(0.02)
        return self.said(kind)[nth - 1]

    def wait_moved(self, host: str, port: int) -> None:
        """Wait until the endpoint that it last followed a peer to is this one."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while [each["moved"][:2] for each in self.said("moved")][-1:] != [[host, port]]:
            assert time.monotonic() < deadline, f"no move to {host}: {self.said('moved')}"
            time.sleep(0.02)

    def stats(self) -> dict[str, Any]:
        """Counters: `drops` by reason, `notes`, and `peers` by public key (hex): endpoint, rx_bytes, tx_bytes."""
        before = len(self.said("stats"))
        self._tell(ask="stats")
        stats: dict[str, Any] = self.wait_for("stats", ANSWER_SECONDS, before + 1)["stats"]
        return stats

    def stop(self) -> None:
        """End it; its interface goes with it."""
        self.process.terminate()
        self.process.wait(ANSWER_SECONDS)

    def _tell(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()


def _tests() -> str:
    return str(Path(__file__).resolve().parents[1])


def _peer_object(peer: Any) -> dict[str, Any]:
    return {
        "public_key": peer.public_key.hex(),
        "allowed_ips": [*peer.allowed_ips],
        "endpoint": peer.endpoint,
        "preshared_key": peer.preshared_key.hex() if peer.preshared_key else None,
        "keepalive": peer.keepalive,
    }


# -- the program ----------------------------------------------------------------------------------------------------


class _Timestamps:
    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def greatest(self, key: bytes) -> bytes | None:
        return self._known.get(key)

    def is_new(self, key: bytes, timestamp: bytes) -> bool:
        return timestamp > self._known.get(key, b"")

    def record(self, key: bytes, timestamp: bytes) -> None:
        self._known[key] = timestamp


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _endpoint(text: str | None) -> Endpoint | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port))


def _config(given: dict[str, Any]) -> PeerConfig:
    preshared = given["preshared_key"]
    return PeerConfig(
        bytes.fromhex(given["public_key"]),
        tuple(ip_network(each) for each in given["allowed_ips"]),
        bytes.fromhex(preshared) if preshared else NO_PRESHARED_KEY,
        _endpoint(given["endpoint"]),
        given["keepalive"],
    )


def _stats(tunnel: Tunnel) -> dict[str, Any]:
    stats = tunnel.plane.stats()
    peers = {
        peer.config.public_key.hex(): {
            "endpoint": counters.endpoint,
            "rx_bytes": counters.rx_bytes,
            "tx_bytes": counters.tx_bytes,
            "handshakes": counters.handshakes,
        }
        for peer in tunnel.node
        if (counters := stats.peers.get(peer.id)) is not None
    }
    workers = {
        worker.name: [worker.packets, worker.bytes, worker.batches, worker.system_calls] for worker in stats.workers
    }
    return {"peers": peers, "drops": stats.drops, "notes": stats.notes, "workers": workers}


def _session(peer: NodePeer) -> None:
    _say(session=peer.config.public_key.hex(), at=time.monotonic())


def _moved(peer: NodePeer, endpoint: Endpoint) -> None:
    _say(moved=endpoint, peer=peer.config.public_key.hex())


def _believe_any_mac2() -> None:
    judge = Gate.judge

    def believing(gate: Gate, datagram: bytes, source: Endpoint, backlog: int, now: float) -> Verdict:
        verdict = judge(gate, datagram, source, backlog, now)
        wrong = verdict in (Verdict.BAD_LENGTH, Verdict.BAD_MAC1)
        return Verdict.PROVEN if any(datagram[-MAC_SIZE:]) and not wrong else verdict

    mock.patch.object(Gate, "judge", believing).start()


async def _run() -> None:
    loop = asyncio.get_running_loop()
    given = json.loads(sys.stdin.readline())
    private_key = bytes.fromhex(given["private_key"])
    sockets = bind(given["port"])
    port = sockets[0].getsockname()[1]
    if given["believing"]:
        _believe_any_mac2()
    engine = Engine(given["engine"], "asked for", given["queues"], given["uring"], given["xdp"])
    plane = engine.make_plane(StaticKey(private_key).public, given["interface"], sockets, given["mtu"])
    tunnel = Tunnel.make(private_key, plane, _Timestamps(), Listeners(session=_session, moved=_moved))
    layout = InterfaceSetup(
        given["interface"], given["mtu"], tuple(ip_interface(each) for each in given["addresses"])
    )
    tunnel.start()
    set_up(layout, lambda _: None)

    def add(peer: dict[str, Any]) -> None:
        config = _config(peer)
        tunnel.node.set_peer(config)
        tunnel.wake()
        for network in config.allowed_ips:
            family = "-4" if network.version == 4 else "-6"
            subprocess.run(["ip", family, "route", "replace", str(network), "dev", given["interface"]], check=True)

    def on_line() -> None:
        line = sys.stdin.readline()
        if not line:
            loop.remove_reader(sys.stdin.fileno())
            return
        told = json.loads(line)
        if "peer" in told:
            add(told["peer"])
            _say(known=told["peer"]["public_key"])
        else:
            _say(stats=_stats(tunnel))

    for peer in given["peers"]:
        add(peer)
    loop.add_reader(sys.stdin.fileno(), on_line)
    _say(ready=port)
    await tunnel.stopped.wait()
    _say(note=str(tunnel.fault))
    raise SystemExit(1)


if __name__ == "__main__":
    asyncio.run(_run())
