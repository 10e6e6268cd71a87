"""The first handshake of an embedded tunnel: names looked up, peers asked, and who didn't answer named."""

from __future__ import annotations

import asyncio
import time

from rustguard_py import conf
from rustguard_py.embed.fixes import closed, with_its_fix
from rustguard_py.embed.plan import Parts
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint, endpoint_text
from rustguard_py.model.errors import RustGuardError, UnansweredError
from rustguard_py.model.keys import public_key
from rustguard_py.model.peer import Peer
from rustguard_py.model.timers import REJECT_AFTER_TIME
from rustguard_py.node import MIN_INITIATION_INTERVAL
from rustguard_py.protocol import tai64n
from rustguard_py.system.resolve import resolve
from rustguard_py.tunnel import Tunnel

# Seconds between two initiations. A timestamp is up to one grain older than its message, and a peer that is busy sees
# two messages closer together than they were sent.
_DISTANCE = 2 * MIN_INITIATION_INTERVAL + tai64n.GRAIN / 1e9


class FirstContact:
    """Waits until a peer answers. It lives in the control thread.

    Args:
        parts: What the tunnel is made of.
        timeout: Seconds in which a peer's name must be found; None to have it looked up later.
        stop: Set when the tunnel ends.
    """

    def __init__(self, parts: Parts, timeout: float | None, stop: asyncio.Event) -> None:
        self._parts = parts
        self._timeout = timeout
        self._stop = stop
        self._tunnel: Tunnel | None = None
        self._session = asyncio.Event()

    async def look_up(self) -> dict[conf.HostPort, list[Endpoint]]:
        """Return the addresses of the peers' endpoints by name, without those that aren't found now.

        Raises:
            UnansweredError: None of them is found in time.
        """
        found = dict(self._parts.found)
        names = dict.fromkeys(peer.endpoint for peer in self._parts.peers if peer.endpoint is not None)
        first: RustGuardError | None = None
        for name in names:
            if name in found or (name.is_name and self._timeout is None):
                continue
            try:
                async with asyncio.timeout(self._timeout):
                    found[name] = await resolve(name.host, name.port)
            except UnansweredError as error:
                first = first or error
            except TimeoutError:
                first = first or UnansweredError(
                    f"The name {name.host} wasn't resolved within {self._timeout:g} s.",
                    "Check the name and this machine's name servers. An address works without name resolution.",
                )
        if first is not None and not found:
            raise first
        return found

    async def keep_distance(self) -> None:
        """Wait until peers take another initiation, if an earlier run with the same key sent one a moment ago.

        They drop those that come faster than `MIN_INITIATION_INTERVAL`, and the next one is sent only after five
        seconds.
        """
        greatest = self._parts.timestamps.greatest(public_key(self._parts.private_key))
        if greatest is not None:
            # Whatever the clock says, no peer wants a longer distance.
            left = _DISTANCE - (time.time() - tai64n.decode(greatest) / 1e9)
            await asyncio.sleep(min(max(left, 0.0), _DISTANCE))

    def listen(self, tunnel: Tunnel) -> None:
        """Take note of the sessions of a tunnel, besides its listener."""
        self._tunnel = tunnel
        listener = tunnel.listeners.session

        def on_session(peer: Peer) -> None:
            if listener is not None:
                listener(peer)
            self._session.set()

        tunnel.listeners.session = on_session

    async def wait(self, timeout: float | None) -> None:
        """Begin a handshake with each peer that has an endpoint, and wait until one of them has a session.

        Returns at once if a peer has a session already, or if none has an endpoint: then they have to contact us.

        Raises:
            UnansweredError: No peer has answered within `timeout` seconds.
            ClosedError: The tunnel is being closed.
            RustGuardError: The data plane broke.
        """
        assert self._tunnel is not None  # noqa: S101 - `listen` comes first
        tunnel, asked = self._tunnel, [each for each in self._parts.peers if each.endpoint is not None]
        if not asked or any(map(_is_connected, tunnel.node)):
            return
        self._session.clear()
        for peer in tunnel.node:
            # One without an address is asked when its name is found.
            if peer.endpoint is not None:
                tunnel.node.begin_handshake(peer, now())
        tunnel.wake()
        waits = [asyncio.ensure_future(each.wait()) for each in (self._session, tunnel.stopped, self._stop)]
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if tunnel.fault is not None:
            raise tunnel.fault
        if self._stop.is_set():
            raise closed()
        if not self._session.is_set():
            raise with_its_fix(self._unanswered(tunnel, asked, timeout))

    def _unanswered(self, tunnel: Tunnel, asked: list[conf.PeerSection], timeout: float | None) -> UnansweredError:
        peers = [_described(section, tunnel.node.get(section.public_key)) for section in asked]
        who = peers[0] if len(peers) == 1 else f"any of {len(peers)} peers ({', '.join(peers)})"
        return UnansweredError(
            f"No answer from {who} within {timeout:g} s.",
            "Check that it runs, its address and UDP port, and the firewalls on the way. A WireGuard peer also stays "
            "silent if it doesn't know our public key, or if PublicKey or PresharedKey are wrong.",
        )


def _described(section: conf.PeerSection, peer: Peer | None) -> str:
    place = None if peer is None else endpoint_text(peer.endpoint)
    named = str(section.endpoint)
    if place is None:
        return f"{named}, whose name can't be resolved,"
    return named if place == named else f"{named} at {place}"


def _is_connected(peer: Peer) -> bool:
    return peer.session_began is not None and now() - peer.session_began < REJECT_AFTER_TIME
