"""The tunnel's UDP sockets: one port, both families, with the kernel's batching."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import sys
from collections.abc import Callable, Sequence

from rustguard_py.model.endpoint import Endpoint, heard, local_of, plain
from rustguard_py.planes.offload import SOL_UDP, UDP_GRO, UDP_SEGMENT

# How long to wait for room in the send buffer before a message is given up, seconds.
SEND_PATIENCE = 0.5
# Of a receiver's control messages: a datagram's size, and an in6_pktinfo or the shorter in_pktinfo.
_CONTROL_SIZE = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)
_IP_PKTINFO = 8
_MULTICAST = 0xFF
_IPV4_SIZE = 4
# What may be said of a datagram for the address of ours that it was to go out from.
_REFUSES_LOCAL = frozenset(
    (errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENETUNREACH, errno.EHOSTUNREACH),
)
# Bytes of each socket's buffers, both ways.
BUFFER_SIZE = 7 << 20
# include/uapi/asm-generic/socket.h, linux/in.h and linux/in6.h; the socket module doesn't name them.
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0


def _origin(local: bytes) -> tuple[int, int, bytes]:
    """Return the control message that has a datagram go out from `local`; the route decides on the interface."""
    if len(local) == _IPV4_SIZE:
        return socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + local + bytes(4)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local + bytes(4)


class Udp:
    """One bound socket, adopted: it is closed with this.

    Args:
        bound: A bound datagram socket.
        note: Called with a sentence for what it does without; the same may come again.

    Attributes:
        family: AF_INET or AF_INET6.
        segmenting: Whether the kernel cuts messages into datagrams for us.
        system_calls: To receive, send and wait for room, so far.
    """

    __slots__ = ("_heard", "_note", "_receive", "_writable", "family", "fd", "segmenting", "socket", "system_calls")

    def __init__(self, bound: socket.socket, note: Callable[[str], None]) -> None:
        self.socket = bound
        self.family = bound.family
        self.fd = bound.fileno()
        self._note = note
        self.segmenting = True
        self.system_calls = 0
        self._writable = select.poll()
        self._writable.register(self.fd, select.POLLOUT)
        self._receive = bound.recvmsg_into
        # The source of the last message and the address of ours that it came to, and both in one.
        self._heard: tuple[Endpoint, bytes, Endpoint] | None = None
        bound.setblocking(False)
        for forced, ordinary in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                bound.setsockopt(socket.SOL_SOCKET, forced, BUFFER_SIZE)
            except PermissionError:
                bound.setsockopt(socket.SOL_SOCKET, ordinary, BUFFER_SIZE)
        try:
            bound.setsockopt(SOL_UDP, UDP_GRO, 1)
        except OSError:
            note("The kernel gives UDP datagrams one by one (no UDP_GRO).")
        # As in the kernel's WireGuard: routers on the way may fragment what is too large for them.
        with contextlib.suppress(OSError):
            if self.family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
            else:
                bound.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        # A kernel that can't say which address a datagram came to chooses from which to answer.
        with contextlib.suppress(OSError):
            if self.family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                bound.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def receive(self, into: list[memoryview]) -> tuple[int, int, Endpoint]:
        """Receive one message: bytes, the size of each datagram in it but the last, and where it came from.

        Raises:
            BlockingIOError: There is none.
            OSError: What the network said of something sent earlier.
        """
        self.system_calls += 1
        size, control, _, source = self._receive(into, _CONTROL_SIZE)
        segment = size
        for level, kind, data in control:
            if level == SOL_UDP and kind == UDP_GRO:
                segment = int.from_bytes(data[:4], sys.byteorder)
            elif level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                # Of a broadcast this is the address to answer from.
                source = self._at(source, data[4:8])
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and data[0] != _MULTICAST:
                source = self._at(source, data[:16])
        return size, segment, source

    def _at(self, source: Endpoint, local: bytes) -> Endpoint:
        """Return `source` as heard at an address of ours: the same object as long as both stay."""
        last = self._heard
        if last is None or last[0] != source or last[1] != local:
            last = self._heard = (source, local, heard(source, local))
        return last[2]

    def send_from(self, message: memoryview | bytes, segment: int, endpoint: Endpoint) -> bool:
        """Send as `send` does, but where the kernel refuses our address in `endpoint`, from one of its own choice.

        Returns:
            Whether it went out from the endpoint's address of ours, if that has one.

        Raises:
            OSError: The network refused it either way.
        """
        try:
            self.send(message, segment, endpoint)
        except OSError as error:
            # Cutting may be refused for the address too: what went out datagram by datagram went out from it.
            if error.errno not in _REFUSES_LOCAL or local_of(endpoint) is None:
                raise
            self.send(message, segment, plain(endpoint))
            return False
        return True

    def send(self, message: memoryview | bytes, segment: int, endpoint: Endpoint) -> None:
        """Send `message` as datagrams of `segment` bytes, the last perhaps shorter, `MAX_SEGMENTS` at most.

        Waits up to SEND_PATIENCE for room in the buffer: so the TUN device fills and whoever sends notices. Where
        the kernel refuses to cut the message it is sent datagram by datagram, none lost.

        Raises:
            OSError: The network refused it; TimeoutError when there was no room.
        """
        local = local_of(endpoint)
        origin = () if local is None else (_origin(local),)
        if len(message) <= segment:
            self._send(message, origin, endpoint)
            return
        refused = None
        if self.segmenting:
            try:
                cut = (SOL_UDP, UDP_SEGMENT, segment.to_bytes(2, sys.byteorder))
                self._send(message, (cut, *origin), endpoint)
            except OSError as error:
                # EINVAL and EMSGSIZE: not for this size on this path. EIO: the device can't at all.
                if error.errno not in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
                    raise
                self.segmenting = error.errno != errno.EIO
                refused = error.strerror
            else:
                return
        for start in range(0, len(message), segment):
            self._send(message[start : start + segment], origin, endpoint)
        if refused is not None:
            self._note(f"The kernel refuses to cut UDP messages ({refused}): they go one by one.")

    def _send(
        self, message: memoryview | bytes, control: Sequence[tuple[int, int, bytes]], endpoint: Endpoint
    ) -> None:
        self.system_calls += 1
        try:
            self.socket.sendmsg((message,), control, 0, endpoint)
        except BlockingIOError:
            self.system_calls += 2
            if not self._writable.poll(SEND_PATIENCE * 1000):
                raise TimeoutError(errno.EAGAIN, "no room in the send buffer") from None
            try:
                self.socket.sendmsg((message,), control, 0, endpoint)
            except BlockingIOError:
                raise TimeoutError(errno.EAGAIN, "no room in the send buffer") from None

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self.socket.close()
