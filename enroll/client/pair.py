"""A join over real sockets: sends the datagrams of `PairingClient` and hands it what comes back."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Sequence

from rustguard_py.enroll.pairing.client import PairingClient
from rustguard_py.enroll.pairing.outcome import Failed, Failure, Joined
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import UnansweredError

# ip(7), ipv6(7): with these the kernel reports an ICMP "port unreachable" as an error of the socket.
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_REFUSED = errno.ECONNREFUSED.to_bytes(4, sys.byteorder)
# How long the first datagram is tried at the tunnel's port alone before it goes to the other port too, seconds.
# The other port may belong to another server.
_OTHERS_AFTER = 0.3
# Number of refusals from every address of the server after which silence means that nothing listens there. Refusals
# alone prove nothing, because anybody can forge an ICMP error.
_REFUSALS = 3
# Number of datagrams in a row that this machine itself can't send before we give up.
_UNSENT = 3
# How often a datagram is sent again because an earlier one's ICMP error came in its place.
_SENDS = 8


async def ask(
    client: PairingClient,
    sockets: Sequence[socket.socket],
    servers: Sequence[Endpoint],
    others: Sequence[Endpoint] = (),
) -> Joined:
    """Run a join to its end.

    Args:
        client: A new one.
        sockets: Bound, one per family. They stay open, and the tunnel uses them afterwards.
        servers: The server's possible addresses.
        others: The same addresses with the port that pairing may be answered on instead.

    Raises:
        RustGuardError: The join failed; the error says why.
    """
    asking = _Asking(client, sockets, servers, others)
    try:
        return await asking.run()
    finally:
        asking.close()


class _Asking:
    def __init__(
        self,
        client: PairingClient,
        sockets: Sequence[socket.socket],
        servers: Sequence[Endpoint],
        others: Sequence[Endpoint],
    ) -> None:
        self._client = client
        self._sockets = {each.family: each for each in sockets}
        self._servers = servers
        self._others = others
        self._others_timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refused: dict[tuple[str, int], int] = {}
        self._unreachable: str | None = None
        self._unsent = 0

    async def run(self) -> Joined:
        loop = asyncio.get_running_loop()
        for each in self._sockets.values():
            each.setblocking(False)
            _report_refusals(each, on=True)
            loop.add_reader(each.fileno(), self._receive, each)
        self._transmit()
        while (due := self._client.poll_timeout()) is not None and not self._done.done():
            await asyncio.wait({self._done}, timeout=max(0.0, due - now()))
            self._client.handle_timeout(now())
            self._transmit()
        self._done.cancel()
        return self._outcome()

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        if self._others_timer is not None:
            self._others_timer.cancel()
        for each in self._sockets.values():
            loop.remove_reader(each.fileno())
            _report_refusals(each, on=False)

    def _outcome(self) -> Joined:
        outcome = self._client.outcome
        if isinstance(outcome, Joined):
            return outcome
        silent = isinstance(outcome, Failed) and outcome.failure is Failure.SILENT
        if silent and self._all_refused():
            where = self._servers[0]
            raise UnansweredError(
                f"Nothing listens on UDP port {where[1]} of {where[0]}: that machine refused the datagrams.",
                "Start the server there: sudo rustguard serve …; or check the port.",
            )
        if outcome is None or self._unreachable is not None:
            raise UnansweredError(
                f"The server can't be reached from here: {self._unreachable or 'no network'}.",
                "Check this machine's network, and the address.",
            )
        raise outcome.error()

    def _all_refused(self) -> bool:
        """Return whether every address refused the tunnel's port. The other port is not looked at."""
        return all(self._refused.get((place[0], place[1]), 0) >= _REFUSALS for place in self._servers)

    def _transmit(self) -> None:
        while (transmit := self._client.poll_transmit()) is not None:
            places = self._servers if transmit.destination is None else [transmit.destination]
            if transmit.destination is None:
                self._transmit_to_others(transmit.datagram)
            failures = [self._send(transmit.datagram, place) for place in places]
            self._unreachable = failures[0] if all(failures) else None
            self._unsent = self._unsent + 1 if all(failures) else 0
            if self._unsent >= _UNSENT and not self._done.done():
                self._done.set_result(None)
        if self._client.outcome is not None and not self._done.done():
            self._done.set_result(None)

    def _transmit_to_others(self, datagram: bytes) -> None:
        """Send to the other port too. The first datagram waits, and is dropped if an answer comes meanwhile."""
        if self._others_timer is None:
            loop = asyncio.get_running_loop()
            self._others_timer = loop.call_later(_OTHERS_AFTER, self._transmit_to_others, datagram)
            return
        for place in self._others:
            self._send(datagram, place)

    def _send(self, datagram: bytes, place: Endpoint) -> str | None:
        """Send a datagram; return why it couldn't be sent, or None."""
        each = self._sockets.get(socket.AF_INET6 if ":" in place[0] else socket.AF_INET)
        if each is None:
            return "this machine has no address of that family"
        # An ICMP error of an earlier datagram may be reported first. Reporting clears it, so we try again. If there
        # was no ICMP error, the error is this machine's own.
        for _ in range(_SENDS):
            try:
                each.sendto(datagram, place)
            except OSError as error:
                if not self._note_refusals(each):
                    return error.strerror or "unknown error"
            else:
                return None
        return None

    def _receive(self, each: socket.socket) -> None:
        while True:
            try:
                datagram, source = each.recvfrom(65536)
            except BlockingIOError:
                break
            except OSError:
                self._note_refusals(each)
                continue
            if self._others_timer is not None:
                self._others_timer.cancel()
            self._client.handle(datagram, source, now())
        self._transmit()

    def _note_refusals(self, each: socket.socket) -> bool:
        """Count the datagrams that were refused; return whether there was any ICMP error."""
        refused, errors = _take_errors(each)
        for place in refused:
            self._refused[place] = self._refused.get(place, 0) + 1
        return errors > 0


def _take_errors(each: socket.socket) -> tuple[list[tuple[str, int]], int]:
    """Return the destinations of the datagrams that were refused and the number of ICMP errors, and clear them."""
    refused: list[tuple[str, int]] = []
    errors = 0
    try:
        while True:
            _, control, _, place = each.recvmsg(1, 512, socket.MSG_ERRQUEUE)
            errors += 1
            # struct sock_extended_err begins with the errno, 32 bits.
            if any(data[:4] == _REFUSED for _, _, data in control):
                refused.append((place[0], place[1]))
    except OSError:
        return refused, errors


def _report_refusals(each: socket.socket, *, on: bool) -> None:
    if each.family == socket.AF_INET6:
        each.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, int(on))
    else:
        each.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, int(on))
    if not on:
        _take_errors(each)
