"""The status document: what a daemon tells of itself over the control socket (schema 1, docs/commands.md)."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rustguard_py.engine import Engine
from rustguard_py.enroll.window import Closed, WindowState
from rustguard_py.planes.contract import Endpoint, PeerStats, WorkerStats
from rustguard_py.state.identity import fingerprint
from rustguard_py.state.paths import Role
from rustguard_py.tunnel import Tunnel

SCHEMA = 1
# A session is renewed every 120 s while anything is sent; a peer heard from since then is there.
ACTIVE_FOR = 180.0
_CLOSED = {
    Closed.NEVER_OPENED: "never-opened",
    Closed.TIME: "time",
    Closed.PERSON: "asked",
    Closed.GUESSES: "guesses",
}


@dataclass(frozen=True, slots=True)
class Program:
    """What runs.

    Attributes:
        role: Of the state that it runs on.
        directory: Where that lies.
        interface: The name of its interface.
        engine: What moves its packets.
        began: When, on the clock of `rustguard_py.clock`.
    """

    role: Role
    directory: Path
    interface: str
    engine: Engine
    began: float


@dataclass(frozen=True, slots=True)
class PeerLine:
    """What only the caller knows of a peer.

    Attributes:
        public_key: 32 bytes.
        endpoint: Where it was last known to be, from before the start.
        keepalive: Seconds, 0 for none.
    """

    name: str
    public_key: bytes
    address4: str | None
    address6: str | None
    endpoint: str | None
    keepalive: int = 0


def endpoint_text(endpoint: Endpoint | None) -> str | None:
    """Write an endpoint as people do: `192.0.2.1:51820`, `[2001:db8::1]:51820`."""
    if endpoint is None:
        return None
    host, port = endpoint[0], endpoint[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peers(tunnel: Tunnel, lines: Iterable[PeerLine], now: float) -> dict[str, Any]:
    """Describe each peer; the plane's counters are read once."""
    stats = tunnel.plane.stats().peers
    return {"schema": SCHEMA, "peers": [_peer(tunnel, line, stats, now) for line in lines]}


def _peer(tunnel: Tunnel, line: PeerLine, stats: dict[int, PeerStats], now: float) -> dict[str, Any]:
    peer = tunnel.node.get(line.public_key)
    counters = stats.get(peer.id, PeerStats()) if peer is not None else PeerStats()
    began = peer.session_began if peer is not None else None
    heard = counters.last_received
    return {
        "name": line.name,
        "public_key": b64encode(line.public_key).decode(),
        "address4": line.address4,
        "address6": line.address6,
        "endpoint": endpoint_text(counters.endpoint) or line.endpoint,
        "state": _state(heard, now, known=line.endpoint is not None or began is not None),
        "last_handshake": None if began is None else round(now - began, 3),
        "last_received": None if heard is None else round(now - heard, 3),
        "rx_bytes": counters.rx_bytes,
        "tx_bytes": counters.tx_bytes,
        "rx_packets": counters.rx_packets,
        "tx_packets": counters.tx_packets,
        "handshakes": counters.handshakes,
        "drops": counters.drops,
        "keepalive": line.keepalive,
    }


def _state(heard: float | None, now: float, *, known: bool) -> str:
    if heard is not None and now - heard <= ACTIVE_FOR:
        return "active"
    return "idle" if heard is not None or known else "never"


def window(state: WindowState) -> dict[str, Any]:
    """Describe the pairing window."""
    return {
        "open": state.is_open,
        "remaining": round(state.remaining, 3),
        "guesses_used": state.guesses,
        "guesses_allowed": state.guesses_allowed,
        "closed_because": None if state.closed is None else _CLOSED[state.closed],
    }


def common(program: Program, tunnel: Tunnel, now: float) -> dict[str, Any]:
    """Describe what either end's status has: the program, its key, and the plane's counters but for the peers'."""
    own_key = tunnel.node.static.public
    stats = tunnel.plane.stats()
    return {
        "schema": SCHEMA,
        "role": program.role,
        "state_directory": str(program.directory),
        "pid": os.getpid(),
        "interface": program.interface,
        "engine": program.engine.name,
        "engine_reason": program.engine.reason,
        "public_key": b64encode(own_key).decode(),
        "fingerprint": fingerprint(own_key),
        "counters": {
            "handshakes": sum(peer.handshakes for peer in stats.peers.values()),
            "drops": dict(stats.drops),
        },
        "workers": [_worker(worker) for worker in stats.workers],
        "notes": list(stats.notes),
        "uptime": round(now - program.began, 3),
    }


def _worker(worker: WorkerStats) -> dict[str, Any]:
    return {
        "name": worker.name,
        "packets": worker.packets,
        "bytes": worker.bytes,
        "batches": worker.batches,
        "batch_sizes": list(worker.batch_sizes),
        "system_calls": worker.system_calls,
    }
