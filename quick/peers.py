"""The peers of a wg-quick file: their names looked up, and as a tunnel and the status want them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rustguard_py import conf
from rustguard_py.daemon.status import PeerLine
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint, Network
from rustguard_py.model.errors import UnansweredError
from rustguard_py.model.limits import limit_of
from rustguard_py.model.peer import PeerConfig
from rustguard_py.system.interface import Echo
from rustguard_py.system.resolve import has_route, resolve

# How long the start waits for peers' names, seconds. With a default route it must wait for them: once that route is
# there, the name server may be reached only through the tunnel.
PATIENCE, PATIENCE_FOR_A_DEFAULT_ROUTE = 2.0, 15.0
_RETRY = 0.5

Found = dict[conf.HostPort, list[Endpoint]]


async def look_up(peers: Sequence[conf.PeerSection], *, must: bool, say: Echo) -> Found:
    """Look up the names of all peers that have one.

    Args:
        peers: Of the file.
        must: Whether every name has to be found; the wait is longer then.
        say: Called with a line if a name isn't found.

    Returns:
        The addresses by name, without the names that were not found.

    Raises:
        UnansweredError: A name that must be found wasn't.
    """
    names = dict.fromkeys(peer.endpoint for peer in peers if peer.endpoint is not None)
    found: Found = {}
    deadline = now() + (PATIENCE_FOR_A_DEFAULT_ROUTE if must else PATIENCE)
    for name in names:
        while name not in found:
            try:
                async with asyncio.timeout(max(0.1, deadline - now())):
                    found[name] = await resolve(name.host, name.port)
            except (UnansweredError, TimeoutError) as error:
                if limit_of(error) is not None:
                    # The tunnel would meet the limit too.
                    raise
                if now() + _RETRY < deadline:
                    await asyncio.sleep(_RETRY)
                    continue
                if must:
                    raise UnansweredError(
                        f"The name {name.host} can't be resolved, and with a default route through the tunnel it "
                        "couldn't be resolved later.",
                        "Check the name and this machine's network, or write the peer's address instead.",
                    ) from error
                say(f"The name {name.host} can't be resolved now; it's tried again.")
                break
    return found


def endpoints(peer: conf.PeerSection, found: Found) -> list[Endpoint]:
    """Return the addresses of a peer: those that this machine has a route to, or all if there are none."""
    ends = [] if peer.endpoint is None else found.get(peer.endpoint, [])
    return [each for each in ends if has_route(each)] or ends


def peer_config(peer: conf.PeerSection, found: Found) -> PeerConfig:
    """Return a peer as a tunnel takes it, at the first of its addresses."""
    endpoint = next(iter(endpoints(peer, found)), None)
    return PeerConfig(peer.public_key, peer.allowed_ips, peer.preshared_key, endpoint, peer.keepalive)


def name_and_addresses(peer: conf.PeerSection, found: Found) -> tuple[conf.HostPort | None, list[Endpoint]]:
    """Return the name to look a peer up by and the addresses found for it, or None and no addresses."""
    if peer.endpoint is None or not peer.endpoint.is_name:
        return None, []
    return peer.endpoint, found.get(peer.endpoint, [])


def peer_line(peer: conf.PeerSection) -> PeerLine:
    """Return what the status shows of a peer, besides its counters."""

    def first(version: int) -> str | None:
        return next((_bare(each) for each in peer.allowed_ips if each.version == version), None)

    known = None if peer.endpoint is None else str(peer.endpoint)
    name = peer.name or (peer.endpoint.host if peer.endpoint is not None else conf.short(peer.public_key))
    return PeerLine(name, peer.public_key, first(4), first(6), known, peer.keepalive, was_heard=False)


def _bare(network: Network) -> str:
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)
