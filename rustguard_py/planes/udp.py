"""The tunnel's UDP sockets: one per family, all on one port, with the kernel's batching."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import sys
from collections.abc import Callable, Sequence

from rustguard_py.model.endpoint import Endpoint, heard, local_of, plain
from rustguard_py.model.offloads import ALL, Offloads
from rustguard_py.planes.offload import REFUSALS, SOL_UDP, UDP_GRO, UDP_SEGMENT

# How long to wait for room in the send buffer before a message is dropped, seconds.
SEND_PATIENCE = 0.5
# Room for the control messages of a receive: the segment size, the traffic class, and an in6_pktinfo or the shorter
# in_pktinfo. The kernel silently leaves out what doesn't fit.
_CONTROL_SIZE = 2 * socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)
_IP_PKTINFO, _IP_RECVTOS = 8, 13
_MULTICAST = 0xFF
_IPV4_SIZE = 4
# Errors with which the kernel may refuse the local address of a datagram.
_REFUSES_LOCAL = frozenset(
    (errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENETUNREACH, errno.EHOSTUNREACH),
)
# Bytes of each socket's buffers, both ways.
BUFFER_SIZE = 7 << 20
# include/uapi/asm-generic/socket.h, linux/in.h and linux/in6.h; the socket module doesn't name them.
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0


_NO_GRO = "The kernel gives UDP datagrams one by one (no UDP_GRO)."


def _origin(local: bytes) -> tuple[int, int, bytes]:
    """Return the control message that sends a datagram from `local`. The route decides on the interface."""
    if len(local) == _IPV4_SIZE:
        return socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + local + bytes(4)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local + bytes(4)


class Udp:
    """One bound socket, which is closed with this object.

    Args:
        bound: A bound datagram socket.
        note: Called with a sentence for each feature that is missing; the same may come again.
        offloads: The offloads to use where the kernel has them.

    Attributes:
        family: AF_INET or AF_INET6.
        segmenting: Whether the kernel cuts messages into datagrams.
        system_calls: Calls so far to receive, send and wait for room.
    """

    __slots__ = (
        "_heard",
        "_merging",
        "_note",
        "_receive",
        "_writable",
        "family",
        "fd",
        "segmenting",
        "socket",
        "system_calls",
    )

    def __init__(
        self,
        bound: socket.socket,
        note: Callable[[str], None],
        offloads: Offloads = ALL,
    ) -> None:
        self.socket = bound
        self.family = bound.family
        self.fd = bound.fileno()
        self._note = note
        self.segmenting = offloads.udp_segmentation
        self._merging = offloads.udp_gro
        self.system_calls = 0
        self._writable = select.poll()
        self._writable.register(self.fd, select.POLLOUT)
        self._receive = bound.recvmsg_into
        # The source of the last message, the local address that it came to and the interface, and the endpoint made
        # of them.
        self._heard: tuple[Endpoint, bytes, bytes, Endpoint] | None = None
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
            bound.setsockopt(SOL_UDP, UDP_GRO, int(self._merging))
        except OSError:
            if self._merging:
                self._merging = False
                note(_NO_GRO)
        try:
            bound.getsockopt(SOL_UDP, UDP_SEGMENT)
        except OSError:
            # Linux before 4.18 ignores it in a message and sends one large datagram.
            if self.segmenting:
                self.segmenting = False
                note("The kernel can't cut UDP messages (no UDP_SEGMENT): datagrams go one by one.")
        # As in the kernel's WireGuard, routers on the way may fragment datagrams.
        with contextlib.suppress(OSError):
            if self.family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
            else:
                bound.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        # If the kernel can't report the local address of a datagram, it also chooses the source of the answer.
        with contextlib.suppress(OSError):
            if self.family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                bound.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        # Without it, congestion on the way isn't reported inside the tunnel.
        with contextlib.suppress(OSError):
            if self.family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            else:
                bound.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)

    def receive(self, into: list[memoryview]) -> tuple[int, int, Endpoint, int]:
        """Receive one message.

        Returns:
            Its size, the size of each datagram in it but the last, its source, and its TOS or traffic class.

        Raises:
            BlockingIOError: There is none.
            OSError: The network reported an error of a datagram sent earlier.
        """
        self.system_calls += 1
        size, control, _, source = self._receive(into, _CONTROL_SIZE)
        segment, tos = size, 0
        for level, kind, data in control:
            if level == SOL_UDP and kind == UDP_GRO:
                segment = int.from_bytes(data[:4], sys.byteorder)
            elif level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                # For a broadcast this is the address to answer from.
                source = self._at(source, data[4:8], data[:4])
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and data[0] != _MULTICAST:
                source = self._at(source, data[:16], data[16:20])
            elif level == socket.IPPROTO_IP and kind == socket.IP_TOS:
                tos = data[0]
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_TCLASS:
                tos = int.from_bytes(data[:4], sys.byteorder)
        return size, segment, source, tos

    def end_merging(self) -> bool:
        """Have the kernel deliver each datagram by itself from now on. Return False if it does so already."""
        if not self._merging:
            return False
        self._merging = False
        self.socket.setsockopt(SOL_UDP, UDP_GRO, 0)
        self._note(_NO_GRO)
        return True

    def _at(self, source: Endpoint, local: bytes, interface: bytes) -> Endpoint:
        """Return `source` as heard at an address of an interface: the same object as long as all stay the same."""
        last = self._heard
        if last is None or last[0] != source or last[1] != local or last[2] != interface:
            number = int.from_bytes(interface, sys.byteorder)
            last = self._heard = (source, local, interface, heard(source, local, number))
        return last[3]

    def send_from(self, message: memoryview | bytes, segment: int, endpoint: Endpoint, tos: int = 0) -> bool:
        """Send as `send` does. If the kernel refuses the endpoint's local address, let it choose another.

        Returns:
            False if the local address was refused.

        Raises:
            OSError: The network refused it either way.
        """
        try:
            self.send(message, segment, endpoint, tos)
        except OSError as error:
            # The kernel may also refuse to cut because of the address. Then `send` has sent single datagrams from it.
            if error.errno not in _REFUSES_LOCAL or local_of(endpoint) is None:
                raise
            self.send(message, segment, plain(endpoint), tos)
            return False
        return True

    def send(self, message: memoryview | bytes, segment: int, endpoint: Endpoint, tos: int = 0) -> None:
        """Send `message` as datagrams of `segment` bytes, at most `MAX_SEGMENTS`; the last may be shorter.

        `tos` is their TOS or traffic class.
        Waits up to SEND_PATIENCE for room in the buffer. Meanwhile the TUN device fills, which slows the sender down.
        If the kernel refuses to cut the message, it is sent datagram by datagram and nothing is lost.

        Raises:
            OSError: The network refused it; TimeoutError when there was no room.
        """
        local = local_of(endpoint)
        origin: tuple[tuple[int, int, bytes], ...] = () if local is None else (_origin(local),)
        if tos:
            v6 = self.family == socket.AF_INET6
            level, kind = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if v6 else (socket.IPPROTO_IP, socket.IP_TOS)
            origin = (*origin, (level, kind, tos.to_bytes(4, sys.byteorder)))
        if len(message) <= segment:
            self._send(message, origin, endpoint)
            return
        refused = None
        if self.segmenting:
            try:
                cut = (SOL_UDP, UDP_SEGMENT, segment.to_bytes(2, sys.byteorder))
                self._send(message, (cut, *origin), endpoint)
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise
                # EINVAL and EMSGSIZE: it can't be cut at this size on this path. The others, such as EIO: the device
                # can't cut at all.
                self.segmenting = error.errno in (errno.EINVAL, errno.EMSGSIZE)
                refused = error.strerror
            else:
                return
        self.send_singly(message, segment, endpoint)
        if refused is not None and self.segmenting:
            text = "The kernel refused to cut a UDP message ({}): its datagrams went one by one. It is asked again."
            self._note(text.format(refused))
        elif refused is not None:
            self._note(f"The kernel can't cut UDP messages here ({refused}): datagrams go one by one from now on.")

    def send_singly(self, message: memoryview | bytes, segment: int, endpoint: Endpoint) -> None:
        """Send `message` as datagrams of `segment` bytes, each by itself.

        Raises:
            OSError: The network refused one of them. The others were sent, unless it was the first or there was no
                room.
        """
        local = local_of(endpoint)
        origin = () if local is None else (_origin(local),)
        failed = None
        for start in range(0, len(message), segment):
            try:
                self._send(message[start : start + segment], origin, endpoint)
            except OSError as error:
                # The others would fail for the same reason.
                if not start or isinstance(error, TimeoutError):
                    raise
                failed = error
        if failed is not None:
            raise failed

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
