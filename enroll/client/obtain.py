"""The network to connect to: paired now, or kept by an earlier join.

resolve the server's name · pair · check the networks · save · ask about routes
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from shlex import quote
from typing import Protocol

from rustguard_py.daemon.console import Voice
from rustguard_py.enroll.client import routes
from rustguard_py.enroll.client.checks import check_fingerprint, check_networks
from rustguard_py.enroll.client.kept import usable
from rustguard_py.enroll.client.pair import ask
from rustguard_py.enroll.pairing.client import FORGET_COPIES, PairingClient
from rustguard_py.enroll.pairing.key_schedule import require_memory
from rustguard_py.enroll.pairing.outcome import Joined, UnprovenError
from rustguard_py.model.address import LAST_PORT, parse, typed
from rustguard_py.model.clock import now
from rustguard_py.model.defaults import DEFAULT_PORT
from rustguard_py.model.endpoint import Endpoint, with_port
from rustguard_py.model.errors import RefusedError, RustGuardError, UnansweredError, UsageError
from rustguard_py.model.keys import generate_private_key, parse_fingerprint
from rustguard_py.model.sudo import as_root
from rustguard_py.state.client_records import ClientState, NetworkRecord, TunnelRecord
from rustguard_py.state.records import MOST_TUNNELS
from rustguard_py.system.resolve import resolve

# How long to try pairing with a server joined before, seconds. Its window is probably closed, and what was kept is
# enough to connect.
PATIENCE_WHEN_KEPT = 4.0


class Keeps(Protocol):
    """Where a client's state is kept: a `state.document.Document`, or only memory."""

    def load(self) -> dict[str, object] | None:
        """Return what was saved last, or None if nothing was."""

    def save(self, data: Mapping[str, object], /) -> None:
        """Replace it, durably where it is a file."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server to join or to connect to.

    Attributes:
        host: As typed, or None for the network joined last.
        port: UDP, or None if none was typed.
        fingerprint: The fingerprint that the server must have, or None for any.
    """

    host: str | None = None
    port: int | None = None
    fingerprint: str | None = None

    @classmethod
    def parse(cls, server: str | None, fingerprint: str | None) -> Target:
        """Return the target of a command line: `HOST[:PORT]` and a fingerprint, either of them optional.

        Raises:
            UsageError: One of the two is malformed.
        """
        host, port = parse(server) if server is not None else (None, None)
        return cls(host, port, None if fingerprint is None else parse_fingerprint(fingerprint))


@dataclass(frozen=True, slots=True)
class Applicant:
    """What a client pairs with.

    Attributes:
        token: The shared token.
        name: The name to ask for.
        insists: Whether a person gave the name. Then another one that the server gives is reported.
    """

    token: str = field(repr=False)
    name: str
    insists: bool = False


@dataclass(frozen=True, slots=True)
class Obtained:
    """The network to connect to.

    Attributes:
        network: It.
        endpoint: Where its server answered, or None if it wasn't asked.
        joined: The join, if this is the first to this network.
    """

    network: NetworkRecord
    endpoint: Endpoint | None = None
    joined: Joined | None = None


def load(document: Keeps) -> ClientState:
    """Return the client's state; the first time, make its key and save it."""
    data = document.load()
    if data is not None:
        kept = ClientState.from_json(data)
        state = routes.adopt(kept)
        if state != kept:
            document.save(state.to_json())
        return state
    # Saved before pairing: after a crash the client comes back with the same key, and so gets the same address.
    state = ClientState(generate_private_key())
    document.save(state.to_json())
    return state


async def obtain(
    target: Target,
    applicant: Applicant | None,
    document: Keeps,
    state: ClientState,
    sockets: Sequence[socket.socket],
    voice: Voice,
    answers: routes.RouteAnswers,
    check: Callable[[NetworkRecord], None] = check_networks,
) -> Obtained:
    """Pair with the server, or take what an earlier join kept.

    Args:
        target: The server.
        applicant: What to pair with, or None to take what was kept.
        document: Where a new network is saved.
        state: The client's state.
        sockets: Bound, one per family; pairing uses the port that the tunnel then uses.
        voice: Prints what happens.
        answers: Which routes the user accepts.
        check: Raises RustGuardError if a network can't be used here.

    Raises:
        RustGuardError: Pairing failed and nothing was kept, or the network can't be used here.
    """
    joins = applicant is not None and target.host is not None
    kept = usable(state.network(target.host, target.port), joins=joins)
    if applicant is None or target.host is None:
        network = routes.choose(_find_kept(kept, target, state), kept, answers)
        return Obtained(_use_kept(network, document, state, voice, answers, check))
    host, port = target.host, target.port or DEFAULT_PORT
    require_memory()
    make_client = partial(_make_client, applicant, target, kept, state.private_key)
    try:
        async with asyncio.timeout(None if kept is None else PATIENCE_WHEN_KEPT):
            joined = await _pair(make_client, host, port, sockets, voice)
    except (UnansweredError, TimeoutError) as error:
        if kept is None:
            raise
        why = error.message if isinstance(error, UnansweredError) else f"{host} lets nobody new in now."
        voice.say(f"{why} It was joined before, so we connect with what was kept.")
        return Obtained(_use_kept(routes.choose(kept, kept, answers), document, state, voice, answers, check))
    other = state.network_of(joined.admission.server_key)
    if kept is None and other is not None and (other.host, other.port) != (host, port):
        # Saving this join drops the record of that server, and with it the key that later joins are checked against.
        make_client = partial(_make_client, applicant, target, other, state.private_key)
        joined = await _prove(joined, other, make_client, host, port, sockets, voice)
    network = _record(joined, host, port)
    try:
        routes.check_pools(network, kept, answers)
        network = routes.choose(network, kept, answers)
        check(network)
        document.save(state.with_network(network).to_json())
    except RustGuardError:
        _take_back(joined, sockets)
        raise
    state = state.with_network(network)
    voice.say(
        f"Joined {host} as {network.name}, {network.address4}; the server's fingerprint is {network.fingerprint}."
    )
    if applicant.insists and network.name != applicant.name:
        voice.say(
            f"The name {applicant.name} wasn't given. To change it, on the server: "
            f"sudo rustguard peers rename {quote(network.name)} {quote(applicant.name)}"
        )
    # Asked when the join is saved: who leaves the question unanswered has joined, without the routes.
    new = routes.unanswered(network, kept)
    if new and answers.choice is None and answers.confirm is not None:
        network = await routes.ask(network, new, answers.confirm)
        check(network)
        document.save(state.with_network(network).to_json())
    routes.show(network, answers, voice)
    return Obtained(network, with_port(joined.server, port), joined if kept is None else None)


def _use_kept(
    network: NetworkRecord,
    document: Keeps,
    state: ClientState,
    voice: Voice,
    answers: routes.RouteAnswers,
    check: Callable[[NetworkRecord], None],
) -> NetworkRecord:
    """Check a kept network, and save it if the user chose other routes."""
    check(network)
    if network not in state.networks:
        networks = (network if each.server_key == network.server_key else each for each in state.networks)
        document.save(replace(state, networks=tuple(networks)).to_json())
    routes.show(network, answers, voice)
    return network


def _find_kept(kept: NetworkRecord | None, target: Target, state: ClientState) -> NetworkRecord:
    if kept is None:
        if target.host is None:
            raise UsageError("Nothing was joined before.", f"Join with: {as_root('rustguard join HOST --token -')}")
        where = typed(target.host, target.port)
        fix = [f"Join with: {as_root(f'rustguard join {quote(where)} --token -')}"]
        if (other := state.network(target.host, None)) is not None:
            known = typed(other.host, other.port)
            fix.append(f"To connect to {known}, which was: {as_root(f'rustguard join {quote(known)}')}")
        raise UsageError(f"{where} was not joined before.", "\n".join(fix))
    check_fingerprint(kept, target.fingerprint)
    return kept


def _make_client(
    applicant: Applicant, target: Target, kept: NetworkRecord | None, private_key: bytes, now: float
) -> PairingClient:
    return PairingClient(
        applicant.token,
        private_key,
        applicant.name,
        os.urandom,
        now,
        expected=target.fingerprint,
        known_server=None if kept is None else kept.server_key,
    )


async def _prove(
    joined: Joined,
    other: NetworkRecord,
    make_client: Callable[[float], PairingClient],
    host: str,
    port: int,
    sockets: Sequence[socket.socket],
    voice: Voice,
) -> Joined:
    """Pair once more with a server that has the key of one joined before, so that it proves that it owns that key.

    In a first join a server only says what its key is. One that is known has to prove it.

    Args:
        joined: The join that named the key.
        other: The network of the server with that key, under its other address.
        make_client: Makes a client that knows that server.
        host: The address typed.
        port: Its port.
        sockets: Bound, one per family.
        voice: Prints what happens.

    Returns:
        The second join, which replaces the first one on the server too.

    Raises:
        RefusedError: It isn't that server.
        RustGuardError: The second pairing failed otherwise.
    """
    it = f"{host}, port {port}," if host == other.host else host
    before = f"{other.host}, port {other.port}" if host == other.host else other.host
    voice.say(f"{it} gave the key of {before}, which was joined before. Pairing again, so that it proves it.")
    try:
        return await _pair(make_client, host, port, sockets, voice)
    except RustGuardError as error:
        _take_back(joined, sockets)
        if isinstance(error, UnprovenError):
            raise RefusedError(
                f"{it} gave the key of {before}, which was joined before, but doesn't own it. "
                "Nothing was changed here.",
                f"Ask whoever runs {host}: no two servers have the same key.",
            ) from error
        raise


async def _pair(
    make_client: Callable[[float], PairingClient],
    host: str,
    port: int,
    sockets: Sequence[socket.socket],
    voice: Voice,
) -> Joined:
    servers = await resolve(host, port)
    # A server whose engine is the kernel's answers pairing on the next port: the kernel has the tunnel's to itself.
    others = [] if port >= LAST_PORT else [with_port(each, port + 1) for each in servers]
    voice.say(f"Asking {host}, UDP port {port}.")
    # Its deadlines run from now on, so the client is made only when the server's name is resolved.
    return await ask(make_client(now()), sockets, servers, others)


def _take_back(joined: Joined, sockets: Sequence[socket.socket]) -> None:
    """Tell the server to forget an admission that this machine can't use."""
    family = socket.AF_INET6 if ":" in joined.server[0] else socket.AF_INET
    for each in sockets:
        if each.family == family:
            for _ in range(FORGET_COPIES):
                with suppress(OSError):
                    each.sendto(joined.forget, joined.server)


def withdraw(joined: Joined, document: Keeps, state: ClientState, sockets: Sequence[socket.socket]) -> None:
    """Take back a join that is saved already, but that this machine can't use: here and on the server.

    Args:
        joined: The join.
        document: Where it is saved.
        state: The state before it.
        sockets: Bound to the port that it was made from; the server takes it back only for that one.
    """
    _take_back(joined, sockets)
    with suppress(RustGuardError):
        document.save(state.to_json())


def _record(joined: Joined, host: str, port: int) -> NetworkRecord:
    given = joined.admission
    pools = [each.network for each in (given.address4, given.address6) if each is not None]
    return NetworkRecord(
        host=host,
        # The port that was typed: behind a forwarded port the server doesn't know the one it is reached at.
        port=port,
        server_key=given.server_key,
        preshared_key=joined.preshared_key,
        name=given.name,
        address4=given.address4,
        address6=given.address6,
        routes=(),
        mtu=given.mtu,
        keepalive=given.keepalive,
        gateway4=given.gateway4,
        gateway6=given.gateway6,
        joined=time.time(),
        tunnels=_tunnels(joined, port),
        offered=routes.offered_beyond(pools, given.routes),
    )


def _tunnels(joined: Joined, port: int) -> tuple[TunnelRecord, ...]:
    """Return the server's further tunnels.

    Their ports are as far from the first one's as they are at the server, also behind forwarded ports.
    """
    given = joined.admission
    moved = [(each.server_key, each.port - given.port + port) for each in given.tunnels[: MOST_TUNNELS - 1]]
    return tuple(TunnelRecord(key, at) for key, at in moved if 1 <= at <= LAST_PORT)
