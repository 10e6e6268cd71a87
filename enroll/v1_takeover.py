"""The peers that the first RustGuard's server kept, taken into a server's state.

Its file has a line a peer: the public key in base64, the address in the tunnel, and where the peer was last heard
from, which may be missing. The peers have no preshared key and needn't notice, if the server keeps its private key.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from rustguard_py.enroll.address import DEFAULT_PORT, parse_endpoint
from rustguard_py.enroll.pool import Pool, make_ula
from rustguard_py.enroll.report import endpoint_text
from rustguard_py.enroll.serving import DEFAULT_MTU
from rustguard_py.errors import RefusedError, UsageError
from rustguard_py.noise import NO_PRESHARED_KEY
from rustguard_py.state.document import Document
from rustguard_py.state.identity import decode_key, generate_private_key
from rustguard_py.state.records import PeerRecord, ServerState

_NOTHING = {"-", "none"}


@dataclass(frozen=True, slots=True)
class OldPeer:
    """A line of the file.

    Attributes:
        public_key: 32 bytes.
        address: In the tunnel.
        endpoint: Where it was, or None.
        line: Its number, from 1.
    """

    public_key: bytes
    address: IPv4Address
    endpoint: str | None
    line: int


def parse(text: str, where: str) -> list[OldPeer]:
    """Read the file; empty lines and those that begin with `#` are passed over.

    Raises:
        UsageError: A line can't be meant, with its number.
    """
    peers = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.replace(",", " ").split()
        if words and not line.lstrip().startswith("#"):
            peers.append(_peer(words, f"{where}, line {number}", number))
    if not peers:
        raise UsageError(f"{where} has no peers.", "A line a peer: public key, address, last endpoint.")
    _check_unique(peers, where)
    return peers


def _peer(words: list[str], where: str, number: int) -> OldPeer:
    if len(words) not in (2, 3):
        raise UsageError(
            f"{where}: {len(words)} words, not a key, an address and an endpoint.", "Correct or remove it."
        )
    try:
        key = decode_key(words[0])
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", "Correct or remove that line.") from error
    try:
        address = IPv4Address(words[1].removesuffix("/32"))
    except ValueError as error:
        raise UsageError(f"{where}: {words[1]!r} is no IPv4 address.", "Correct that line.") from error
    endpoint = words[2] if len(words) == 3 and words[2].lower() not in _NOTHING else None
    return OldPeer(key, address, None if endpoint is None else _endpoint(endpoint, where), number)


def _endpoint(text: str, where: str) -> str | None:
    endpoint = parse_endpoint(text)
    if endpoint is None:
        raise UsageError(f"{where}: {text!r} is no endpoint.", "Write 192.0.2.1:51820, or leave it out.")
    return endpoint_text(endpoint)


def _check_unique(peers: list[OldPeer], where: str) -> None:
    keys: dict[bytes, int] = {}
    addresses: dict[IPv4Address, int] = {}
    for peer in peers:
        first = keys.setdefault(peer.public_key, peer.line), addresses.setdefault(peer.address, peer.line)
        if first != (peer.line, peer.line):
            raise UsageError(
                f"{where}, line {peer.line}: the same key or address as in line {min(first)}.", "Remove one of them."
            )


def take_over(
    directory: Path, peers: list[OldPeer], pool: IPv4Network | None, private_key: bytes | None
) -> tuple[ServerState, int]:
    """Put peers into a server's state, which is made where there is none; give it, and how many were new.

    Args:
        directory: The server's state directory.
        peers: Those of the file.
        pool: What a new server gives addresses out of; None where there is a server.
        private_key: What a new server shall have (32 bytes), or None for a fresh one.

    Raises:
        UsageError: A pool is needed, or there is a server that has its own.
        RefusedError: An address isn't free; nothing is changed.
        StateError: It can't be saved, or a server runs on that directory.
    """
    document = Document.open(directory)
    try:
        kept = document.load()
        state = _fresh(pool, private_key) if kept is None else _existing(kept, pool, private_key)
        added = _add(state, peers)
        document.save(state.to_json())
    finally:
        document.close()
    return state, added


def _fresh(pool: IPv4Network | None, private_key: bytes | None) -> ServerState:
    if pool is None:
        raise UsageError(
            "There is no server here yet, and the file doesn't say its pool.", "Add: --pool 10.150.0.0/24"
        )
    return ServerState(
        private_key=private_key or generate_private_key(),
        server_id=os.urandom(32),
        pool4=pool,
        pool6=make_ula(os.urandom),
        port=DEFAULT_PORT,
        mtu=DEFAULT_MTU,
    )


def _existing(kept: dict[str, object], pool: IPv4Network | None, private_key: bytes | None) -> ServerState:
    if pool is not None or private_key is not None:
        raise UsageError(
            "There is a server here already, with a pool and a key of its own.",
            "Leave --pool and --private-key out, or make another server: --state DIR",
        )
    return ServerState.from_json(kept)


def _add(state: ServerState, peers: list[OldPeer]) -> int:
    pool = Pool(state.pool4, state.pool6)
    for record in state.peers.values():
        if record.address4 is not None:
            pool.take(record.public_key, record.address4)
    names = {record.name for record in state.peers.values()}
    added = 0
    for peer in peers:
        known = state.peers.get(peer.public_key)
        if known is not None:
            state.peers[peer.public_key] = replace(known, endpoint=known.endpoint or peer.endpoint)
            continue
        if not pool.take(peer.public_key, peer.address):
            raise RefusedError(
                f"Line {peer.line}: {peer.address} is not free in the pool {state.pool4}.",
                "Serve a pool that has it, or take the line out and let that machine join anew.",
            )
        name = _name(peer, names)
        names.add(name)
        state.peers[peer.public_key] = PeerRecord(
            name, peer.public_key, NO_PRESHARED_KEY, peer.address, None, time.time(), peer.endpoint
        )
        added += 1
    return added


def _name(peer: OldPeer, taken: set[str]) -> str:
    name, number = f"peer-{peer.address}", 2
    while name in taken:
        name, number = f"peer-{peer.address}-{number}", number + 1
    return name
