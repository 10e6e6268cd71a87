"""The status documents that a daemon sends over the control socket (schema 1, docs/reference/json.md)."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rustguard_py.daemon import places
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.reports import Reports
from rustguard_py.model.endpoint import endpoint_text
from rustguard_py.model.keys import fingerprint
from rustguard_py.model.statistics import PeerStats, WorkerStats
from rustguard_py.model.tunnel import AnyTunnel

STATUS_SCHEMA = 1
_NO_REPORTS = (
    "The other program of the memif has our inner address, so no reports are exchanged there: segmentation stays on, "
    "and a client that leaves isn't removed from the server by itself."
)
# A peer heard within this time is active, seconds: sessions are renewed every 120 s while anything is sent.
ACTIVE_FOR = 180.0


@dataclass(frozen=True, slots=True)
class PeerLine:
    """A peer's data that only the caller knows.

    Attributes:
        name: The peer's name.
        public_key: 32 bytes.
        address4: Its inner IPv4 address.
        address6: Its inner IPv6 address.
        endpoint: Its last known endpoint from before the start, or the one to look for it at.
        was_heard: Whether it was heard at that endpoint. One that somebody wrote into a file proves nothing.
        keepalive: Seconds, 0 for none.
        clock_ahead: What time its clock once had, if that is far ahead (`clocks.clock_ahead`).
        has_to_join_again: Whether it can't connect before it joins again.
        has_connected: Whether it has ever had a session.
        dns_name: Its DNS name; None for what isn't a peer of a server.
    """

    name: str
    public_key: bytes
    address4: str | None
    address6: str | None
    endpoint: str | None
    keepalive: int = 0
    has_to_join_again: bool = False
    has_connected: bool = True
    dns_name: str | None = None
    clock_ahead: str | None = None
    was_heard: bool = True


def peers(
    tunnels: Sequence[AnyTunnel], lines: Iterable[PeerLine], now: float, *, keys: Sequence[bytes] | None = None
) -> dict[str, Any]:
    """Return the document of all peers, with counters over all tunnels. Each plane's counters are read once.

    Args:
        tunnels: All tunnels. The first one has the peer's endpoint.
        lines: The peers.
        now: The time.
        keys: With one peer that has several keys, its public key in each tunnel.
    """
    stats = [tunnel.plane.stats().peers for tunnel in tunnels]
    return {"schema": STATUS_SCHEMA, "peers": [_peer(tunnels, line, stats, now, keys) for line in lines]}


def _peer(
    tunnels: Sequence[AnyTunnel],
    line: PeerLine,
    stats: Sequence[dict[int, PeerStats]],
    now: float,
    keys: Sequence[bytes] | None,
) -> dict[str, Any]:
    found = [
        (peer, read.get(peer.id, PeerStats()))
        for tunnel, read, key in zip(tunnels, stats, keys or [line.public_key] * len(tunnels), strict=True)
        if (peer := tunnel.node.get(key)) is not None
    ]
    counters = [each for _, each in found]
    began = max((peer.session_began for peer, _ in found if peer.session_began is not None), default=None)
    heard = max((each.last_received for each in counters if each.last_received is not None), default=None)
    known = (line.endpoint is not None and line.was_heard) or began is not None
    return {
        "name": line.name,
        "dns_name": line.dns_name,
        "public_key": b64encode(line.public_key).decode(),
        "address4": line.address4,
        "address6": line.address6,
        "endpoint": (endpoint_text(counters[0].endpoint) if counters else None) or line.endpoint,
        # The handshake that began the session was heard too, though no data has come since.
        "state": _state(line, max((at for at in (heard, began) if at is not None), default=None), now, known=known),
        "last_handshake": None if began is None else round(now - began, 3),
        "last_received": None if heard is None else round(now - heard, 3),
        "rx_bytes": sum(each.rx_bytes for each in counters),
        "tx_bytes": sum(each.tx_bytes for each in counters),
        "rx_packets": sum(each.rx_packets for each in counters),
        "tx_packets": sum(each.tx_packets for each in counters),
        "handshakes": sum(each.handshakes for each in counters),
        "drops": sum(each.drops for each in counters),
        "keepalive": line.keepalive,
        "clock_ahead": line.clock_ahead,
    }


def _state(line: PeerLine, heard: float | None, now: float, *, known: bool) -> str:
    if line.has_to_join_again:
        return "has-to-join-again"
    if not line.has_connected and heard is None:
        return "never-connected"
    if heard is not None and now - heard <= ACTIVE_FOR:
        return "active"
    return "idle" if heard is not None or known else "never"


def common(
    program: Program, tunnels: Sequence[AnyTunnel], now: float, reports: Reports | None = None
) -> dict[str, Any]:
    """Return the members that the status of server and client share: program, key, and counters of the planes."""
    own_key = tunnels[0].node.public_key
    stats = [tunnel.plane.stats() for tunnel in tunnels]
    drops: dict[str, int] = {}
    for each in stats:
        for reason, count in each.drops.items():
            drops[reason] = drops.get(reason, 0) + count
    return {
        "schema": STATUS_SCHEMA,
        "role": program.role,
        "state_directory": str(program.directory),
        "pid": os.getpid(),
        "interface": program.interface,
        "engine": program.engine.name,
        "engine_reason": program.engine.reason,
        "sandbox": {"applied": list(program.sandbox.applied), "refused": list(program.sandbox.refused)},
        "public_key": b64encode(own_key).decode(),
        "fingerprint": fingerprint(own_key),
        "counters": {
            "handshakes": sum(peer.handshakes for each in stats for peer in each.peers.values()),
            "drops": drops,
        },
        "memif": None if (memif := stats[0].memif) is None else memif.to_json(),
        "workers": [
            _worker(worker, f"{worker.name} of {place}" if place else worker.name)
            for place, each in enumerate(stats)
            for worker in each.workers
        ],
        "healthy": all(tunnel.fault is None and not tunnel.silent for tunnel in tunnels),
        "notes": [
            *program.engine.notes,
            *dict.fromkeys(note for each in stats for note in each.notes),
            *(reports.notes if reports is not None else ()),
            *([_NO_REPORTS] if program.engine.memif is not None and program.role != "tunnel" else ()),
        ],
        "uptime": round(now - program.began, 3),
    }


def broken(tunnels: Sequence[AnyTunnel]) -> list[str]:
    """Return a warning for each tunnel that broke while others go on, and for each whose plane doesn't answer.

    One more says that the helper for sockets is gone.
    """
    warnings = places.warnings()
    warnings += [
        f"Tunnel {place} of {len(tunnels)} broke: {tunnel.fault.message} The others go on; a restart fixes it."
        for place, tunnel in enumerate(tunnels)
        if tunnel.fault is not None
    ]
    silent = dict.fromkeys(thread for tunnel in tunnels for thread in tunnel.silent)
    if silent:
        warnings.append(f"The data plane doesn't answer ({', '.join(silent)}). A restart fixes it.")
    return warnings


def _worker(worker: WorkerStats, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "packets": worker.packets,
        "bytes": worker.bytes,
        "batches": worker.batches,
        "batch_sizes": list(worker.batch_sizes),
        "system_calls": worker.system_calls,
    }
