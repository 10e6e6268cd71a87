"""The reports between two of ours, over UDP inside the tunnel (`protocol.report`, docs/internals/reports.md).

A datagram counts only if it came in by the tunnel's interface. Cryptokey routing then proves who sent it.

A client says hello with each session, and the server answers. From then on each end looks at the counters of the
other one's sessions, reports what is missing (`segmentation.Arrivals`), and hears how much of its own arrived
(`segmentation.PathWatch`).

A client that leaves its network says so here, and the server answers once it has removed it. Both also work with the
kernel's engine, which needs none of the rest.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from rustguard_py.daemon.segmentation import LOOK, Arrivals, PathWatch, Stage
from rustguard_py.daemon.tasks import Tasks
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import IpAddress
from rustguard_py.model.tunnel import AnyTunnel
from rustguard_py.planes.contract import Flow
from rustguard_py.protocol import report
from rustguard_py.protocol.report import REPORT_LIMIT, REPORT_PORT, Arrived, Hello, Item, Leave, Left
from rustguard_py.tunnel import Tunnel

log = logging.getLogger(__name__)

# Seconds between two looks while nothing moves.
_IDLE_LOOK = 1.0
# Looks at partners per second, at most: with more partners, each is looked at less often.
_LOOKS_A_SECOND = 1000
# Seconds between two hellos without an answer, and how many there are.
_ASK_AGAIN, _ASKS = 2.0, 5
# How often a client says that it leaves, and the seconds between: it waits for three seconds.
_LEAVES, _LEAVE_AGAIN = 6, 0.5
# Seconds for which the answer to that can be given again, because it was lost. Longer than a client asks.
FAREWELL = 4.0
# linux/in.h; the socket module doesn't name them.
_IP_PKTINFO, _IP_FREEBIND = 8, 15
_PKTINFO = struct.Struct("=i4s4s")


@dataclass(frozen=True, slots=True)
class Partner:
    """The other end.

    Attributes:
        name: For the log.
        keys: Its public key in each tunnel, 32 bytes.
    """

    name: str
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Inside:
    """The network namespace of the interface, where it isn't ours.

    Attributes:
        index: The interface's number there.
        open_socket: Makes a non-blocking socket there, of a family and a kind.
    """

    index: int
    open_socket: Callable[[int, int], Awaitable[socket.socket]]


@dataclass(slots=True)
class _Path:
    """One tunnel to a partner."""

    arrivals: Arrivals = field(default_factory=Arrivals)
    watch: PathWatch = field(default_factory=PathWatch)
    segmenting: bool = True
    stage: Stage = Stage.ON
    moved: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class _Speaker:
    """A partner that understands reports."""

    partner: Partner
    paths: list[_Path]


class Reports:
    """The reports of one daemon.

    Args:
        tunnels: All tunnels, the first one first.
        interfaces: The names of their interfaces.
        address: Our own inner IPv4 address.
        find: Returns the partner that has an inner address, or None.
        segments: Whether segmentation is used at all.
        ask: The inner address of the end to say hello to, for a client.
        looks: Whether arrivals are reported at all: the kernel's engine has no counters for it.
        remove: For a server: removes a partner that proved that it leaves, and returns what proves the answer.
        inside: Where the interface is, if not in our network namespace.
    """

    def __init__(
        self,
        tunnels: Sequence[AnyTunnel],
        interfaces: Sequence[str],
        address: IpAddress,
        find: Callable[[str], Partner | None],
        *,
        segments: bool = True,
        ask: IpAddress | None = None,
        looks: bool = True,
        remove: Callable[[Partner, bytes], Awaitable[bytes | None]] | None = None,
        inside: Inside | None = None,
    ) -> None:
        self._tunnels = [tunnel if isinstance(tunnel, Tunnel) else None for tunnel in tunnels]
        self._interfaces = frozenset(interfaces)
        self._address = str(address)
        self._find = find
        self._segments = segments
        self._ask = None if ask is None else str(ask)
        self._asks_left = 0 if ask is None else _ASKS
        self._ask_at = float("-inf")
        self._speakers: dict[str, _Speaker] = {}
        self._socket: socket.socket | None = None
        self._wake = asyncio.Event()
        self._looks = looks
        self._remove = remove
        self._inside = inside
        # By address: the leave that was answered, and the answer.
        self._farewells: dict[str, tuple[bytes, bytes]] = {}
        # What a client waits for.
        self._goodbye: tuple[bytes, asyncio.Event] | None = None
        self._tasks = Tasks()

    async def run(self) -> None:
        """Exchange reports until cancelled."""
        try:
            self._socket = await self._bind()
        except OSError as error:
            log.warning("lost datagrams aren't reported: UDP port %d can't be bound: %s", REPORT_PORT, error.strerror)
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket.fileno(), self._read)
        try:
            while True:
                moved = self._look_at_all(now())
                pause = max(LOOK if moved else _IDLE_LOOK, len(self._speakers) / _LOOKS_A_SECOND)
                await self._rest(pause)
        finally:
            loop.remove_reader(self._socket.fileno())
            made, self._socket = self._socket, None
            made.close()
            await self._tasks.close()

    async def leave(self, server: IpAddress, leave: bytes, left: bytes) -> bool:
        """Tell the server that we leave, for three seconds. Return whether it has answered.

        Args:
            server: Its inner address.
            leave: What proves that it is us.
            left: What proves that the answer is the server's.
        """
        answered = asyncio.Event()
        self._goodbye = left, answered
        for _ in range(_LEAVES):
            if self._socket is None:
                break
            self._send(str(server), [Leave(leave)])
            with suppress(TimeoutError):
                await asyncio.wait_for(answered.wait(), _LEAVE_AGAIN)
                break
        return answered.is_set()

    def session(self) -> None:
        """Note that a client has a session: it says hello."""
        if self._ask is None:
            return
        self._asks_left = _ASKS
        self._ask_at = float("-inf")
        self._wake.set()

    @property
    def notes(self) -> list[str]:
        """A sentence for each path on which segmentation is off."""
        return [
            f"Off towards {speaker.partner.name}{_of(place, speaker)}: udp-segmentation, because "
            f"{path.watch.evidence}. It is tried again after an hour."
            for speaker in self._speakers.values()
            for place, path in enumerate(speaker.paths)
            if path.watch.stage is Stage.OFF
        ]

    async def _bind(self) -> socket.socket:
        if self._inside is None:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        else:
            made = await self._inside.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            # The address may be set later, or again.
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            # Nobody forwards it.
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            made.bind((self._address, REPORT_PORT))
        except OSError:
            made.close()
            raise
        return made

    async def _rest(self, seconds: float) -> None:
        """Wait for the next look: only for a partner or a session, if there is nobody to look at or to ask."""
        self._wake.clear()
        waits = bool(self._speakers) or self._asks_left > 0
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds if waits else None)

    # -- what comes in --------------------------------------------------------------------------------------

    def _read(self) -> None:
        assert self._socket is not None  # noqa: S101 - `run` reads only while it is there
        while True:
            try:
                datagram, control, _, source = self._socket.recvmsg(
                    REPORT_LIMIT + 1, socket.CMSG_SPACE(_PKTINFO.size)
                )
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier report
            if source[1] == REPORT_PORT and self._is_inside(control):
                self._take(datagram, source[0])

    def _is_inside(self, control: Sequence[tuple[int, int, bytes]]) -> bool:
        """Return whether a datagram came in by the tunnel's interface, and not from another network or this host."""
        for level, kind, data in control:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                index = _PKTINFO.unpack(data)[0]
                if self._inside is not None:
                    return bool(index == self._inside.index)
                with suppress(OSError):
                    return socket.if_indextoname(index) in self._interfaces
        return False

    def _take(self, datagram: bytes, address: str) -> None:
        partner, farewell = self._find(address), self._farewells.get(address)
        if partner is None and farewell is None:
            return
        try:
            items = report.decode(datagram)
        except ValueError as error:
            log.debug("%s sent a report that can't be read: %s", partner.name if partner else address, error)
            return
        for item in items:
            match item:
                case Leave(proof) if farewell is not None and farewell[0] == proof:
                    self._send(address, [Left(farewell[1])])
                case Leave(proof) if partner is not None and self._remove is not None:
                    self._tasks.spawn(self._let_go(address, partner, proof, self._remove))
                case Left(proof) if self._goodbye is not None:
                    if hmac.compare_digest(proof, self._goodbye[0]):
                        self._goodbye[1].set()
                case Hello(asks) if partner is not None and self._looks:
                    self._meet(address, partner)
                    if asks:
                        self._send(address, [Hello(asks=False)])
                case Arrived() if (speaker := self._speakers.get(address)) is not None:
                    self._arrived(speaker, item)

    async def _let_go(
        self,
        address: str,
        partner: Partner,
        leave: bytes,
        remove: Callable[[Partner, bytes], Awaitable[bytes | None]],
    ) -> None:
        """Remove a partner that leaves, and answer."""
        left = await remove(partner, leave)
        if left is None or self._socket is None:
            return
        self._speakers.pop(address, None)
        self._send(address, [Left(left)])
        # The partner isn't found any more, but the answer may be lost.
        self._farewells[address] = leave, left
        asyncio.get_running_loop().call_later(FAREWELL, self._farewells.pop, address, None)

    def _meet(self, address: str, partner: Partner) -> None:
        known = self._speakers.get(address)
        if known is None or known.partner.keys != partner.keys:
            self._speakers[address] = _Speaker(partner, [_Path() for _ in self._tunnels])
        self._asks_left = 0
        self._wake.set()

    def _arrived(self, speaker: _Speaker, item: Arrived) -> None:
        if item.tunnel < len(speaker.paths):
            path = speaker.paths[item.tunnel]
            path.watch.arrived(item.index, item.first, item.stop, item.received, now())
            self._carry_out(speaker, item.tunnel)

    # -- looking --------------------------------------------------------------------------------------------

    def _look_at_all(self, at: float) -> bool:
        """Look at every partner's counters. Return whether any have moved."""
        if self._ask is not None and self._asks_left > 0 and at >= self._ask_at:
            self._asks_left -= 1
            self._ask_at = at + _ASK_AGAIN
            self._send(self._ask, [Hello(asks=True)])
        moved = False
        for address, speaker in list(self._speakers.items()):
            partner = self._find(address)
            if partner is None or partner.keys != speaker.partner.keys:
                del self._speakers[address]
                continue
            items: list[Item] = []
            for place in range(len(speaker.paths)):
                moved |= self._look_at(speaker, place, items, at)
            if items:
                self._send(address, items)
        return moved

    def _look_at(self, speaker: _Speaker, place: int, items: list[Item], at: float) -> bool:
        tunnel, path, keys = self._tunnels[place], speaker.paths[place], speaker.partner.keys
        peer = None if tunnel is None or place >= len(keys) else tunnel.node.get(keys[place])
        if tunnel is None or peer is None:
            return False
        flows = tunnel.plane.flows(peer.id)
        flow: Flow | None = flows[0] if flows else None
        path.watch.look(flow, None if peer.endpoint is None else peer.endpoint[0], at)
        self._carry_out(speaker, place)
        if flow is None:
            return False
        if (found := path.arrivals.look(flow, at)) is not None:
            items.append(Arrived(place, flow.local_index, *found))
        before, path.moved = path.moved, (flow.sent, flow.next)
        return before != path.moved

    def _carry_out(self, speaker: _Speaker, place: int) -> None:
        """Have the plane do what the watch decided, and log what changed."""
        path, tunnel = speaker.paths[place], self._tunnels[place]
        watch = path.watch
        if self._segments and watch.segmenting != path.segmenting and tunnel is not None:
            path.segmenting = watch.segmenting
            if (peer := tunnel.node.get(speaker.partner.keys[place])) is not None:
                tunnel.plane.set_segmenting(peer.id, path.segmenting)
        before, path.stage = path.stage, watch.stage
        where = speaker.partner.name + _of(place, speaker)
        if before is path.stage or not self._segments:
            return
        if path.stage is Stage.OFF:
            log.warning("UDP segmentation is off towards %s for an hour: %s", where, watch.evidence)
        elif before is Stage.OFF:
            log.info("UDP segmentation is tried again towards %s", where)

    def _send(self, address: str, items: Sequence[Item]) -> None:
        assert self._socket is not None  # noqa: S101 - only `run` and what it reads send
        # A lost report is followed by others.
        with suppress(OSError):
            self._socket.sendto(report.encode(items), (address, REPORT_PORT))


def _of(place: int, speaker: _Speaker) -> str:
    return f" (tunnel {place})" if len(speaker.paths) > 1 else ""
