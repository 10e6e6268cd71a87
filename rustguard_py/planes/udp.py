"""The tunnel's UDP sockets: one port, both families, with the kernel's batching."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import sys
from collections.abc import Callable, Sequence

from rustguard_py.errors import RefusedError
from rustguard_py.planes.contract import Endpoint
from rustguard_py.planes.offload import SOL_UDP, UDP_GRO, UDP_SEGMENT

BUFFER_SIZE = 7 << 20
# Tries to find a port free over both families, when any will do.
_PORT_TRIES = 16
# How long to wait for room in the send buffer before a message is given up, seconds.
SEND_PATIENCE = 0.5
_CONTROL_SIZE = socket.CMSG_SPACE(4)
_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_DONT = 0


def bind(port: int, hosts: Sequence[str] = ("0.0.0.0", "::")) -> list[socket.socket]:  # noqa: S104
    """Bind a socket for each address of `hosts`, all on one port.

    Args:
        port: 0 for any.
        hosts: IPv4 and IPv6 addresses. A family that this machine lacks is left out.

    Raises:
        RefusedError: The port is taken, or no family is there.
    """
    for attempt in range(_PORT_TRIES):
        sockets: list[socket.socket] = []
        try:
            for host in hosts:
                made = _bind_one(host, sockets[0].getsockname()[1] if sockets else port)
                if made is not None:
                    sockets.append(made)
        except OSError as error:
            for made in sockets:
                made.close()
            if port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < _PORT_TRIES:
                continue
            raise RefusedError(
                f"UDP port {port} can't be bound: {error.strerror}.",
                "Look with `ss -ulnp` who has it, or choose another --port.",
            ) from error
        if sockets:
            return sockets
        break
    raise RefusedError("This machine has neither IPv4 nor IPv6.", "Bring an interface up.")


def _bind_one(host: str, port: int) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRNOTAVAIL and host == "::":
            return None
        raise
    return made


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

    __slots__ = ("_note", "_receive", "_writable", "family", "fd", "segmenting", "socket", "system_calls")

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
        bound.setblocking(False)
        for forced, plain in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                bound.setsockopt(socket.SOL_SOCKET, forced, BUFFER_SIZE)
            except PermissionError:
                bound.setsockopt(socket.SOL_SOCKET, plain, BUFFER_SIZE)
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
        return size, segment, source

    def send(self, message: memoryview | bytes, segment: int, endpoint: Endpoint) -> None:
        """Send `message` as datagrams of `segment` bytes, the last perhaps shorter, `MAX_SEGMENTS` at most.

        Waits up to SEND_PATIENCE for room in the buffer: so the TUN device fills and whoever sends notices. Where
        the kernel refuses to cut the message it is sent datagram by datagram, none lost.

        Raises:
            OSError: The network refused it; TimeoutError when there was no room.
        """
        if len(message) <= segment:
            self._send(message, (), endpoint)
            return
        if self.segmenting:
            try:
                self._send(message, [(SOL_UDP, UDP_SEGMENT, segment.to_bytes(2, sys.byteorder))], endpoint)
            except OSError as error:
                # EINVAL and EMSGSIZE: not for this size on this path. EIO: the device can't at all.
                if error.errno not in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
                    raise
                self.segmenting = error.errno != errno.EIO
                self._note(f"The kernel refuses to cut UDP messages ({error.strerror}): they go one by one.")
            else:
                return
        for start in range(0, len(message), segment):
            self._send(message[start : start + segment], (), endpoint)

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
