"""Whether datagrams may leave from the address at which their peer was heard, as the kernel's WireGuard decides it.

They may only while the route from that address leads over the interface at which the peer was heard. So a better
route over another interface is taken at once, with that interface's address. A router that filters by source would
drop the old one. Each answer is kept until links, addresses, routes or rules change (rtnetlink(7)).
"""

from __future__ import annotations

import errno
import socket
import struct

from rustguard_py.model.endpoint import Endpoint, interface_of, local_of, plain

# linux/rtnetlink.h: links, addresses, routes and rules of both families, next hops. When a link goes down, the kernel
# reports the link, but not the routes that go with it.
_GROUPS = (1, 5, 9, 7, 11, 8, 19, 32)
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_ERROR, _NEW_ROUTE, _GET_ROUTE, _REQUEST = 2, 24, 26, 1
_DESTINATION, _SOURCE, _INTERFACE, _MARK, _PROTOCOL = 1, 2, 4, 16, 27
_HEADER, _ROUTE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBBBBBBI"), struct.Struct("=HH")
_IPV4_SIZE = 4
# Answers kept.
_MOST = 16384


class Sources:
    """The answers so far.

    Raises:
        OSError: The kernel can't be asked.
    """

    __slots__ = ("_answers", "_last", "_mark", "_news", "_questions", "fd")

    def __init__(self) -> None:
        self._mark = 0
        self._answers: dict[tuple[str, bytes, int], bool] = {}
        # The endpoint that was asked for last, and the answer.
        self._last: tuple[Endpoint, Endpoint] | None = None
        self._news, self._questions = (
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            for _ in range(2)
        )
        # Readable when something changed: call `renew` then.
        self.fd = self._news.fileno()
        self._news.setblocking(False)
        self._news.bind((0, 0))
        for group in _GROUPS:
            self._news.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._questions.connect((0, 0))

    def renew(self) -> None:
        """Forget all answers, because something changed."""
        try:
            while self._news.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            # ENOBUFS: some news were lost, which also means a change.
            if error.errno != errno.ENOBUFS:
                raise
        self._forget()

    def set_mark(self, mark: int) -> None:
        """Ask for datagrams with this mark from now on."""
        self._mark = mark
        self._forget()

    def usable(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint to send to: without its local address if that must not be used."""
        last = self._last
        if last is not None and last[0] is endpoint:
            return last[1]
        local, interface = local_of(endpoint), interface_of(endpoint)
        # A link-local peer is on one link.
        if local is None or not interface or "%" in endpoint[0] or (len(endpoint) == 4 and endpoint[3]):
            return endpoint
        key = (endpoint[0], local, interface)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._ask(*key)
            if len(self._answers) >= _MOST:
                self._answers.clear()
            self._answers[key] = answer
        made = endpoint if answer else plain(endpoint)
        self._last = endpoint, made
        return made

    def close(self) -> None:
        """Close the descriptors."""
        self._news.close()
        self._questions.close()

    def _forget(self) -> None:
        self._answers.clear()
        self._last = None

    def _ask(self, remote: str, local: bytes, interface: int) -> bool:
        v4 = len(local) == _IPV4_SIZE
        family = socket.AF_INET if v4 else socket.AF_INET6
        bits = 8 * len(local)
        body = _ROUTE.pack(family, bits, bits, 0, 0, 0, 0, 0, 0)
        body += _attribute(_DESTINATION, socket.inet_pton(family, remote)) + _attribute(_SOURCE, local)
        body += _attribute(_PROTOCOL, bytes((socket.IPPROTO_UDP,)))
        if self._mark:
            body += _attribute(_MARK, struct.pack("=I", self._mark))
        try:
            self._questions.send(_HEADER.pack(_HEADER.size + len(body), _GET_ROUTE, _REQUEST, 0, 0) + body)
            return _permits(self._questions.recv(65536), interface)
        except OSError:
            # Nobody knows.
            return True


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _permits(answer: bytes, interface: int) -> bool:
    """Return whether the answer names this interface."""
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _ERROR:
        # The address isn't ours any more, or no route leads from it.
        return False
    at = _HEADER.size + _ROUTE.size
    while kind == _NEW_ROUTE and at + _ATTRIBUTE.size <= len(answer):
        size, name = _ATTRIBUTE.unpack_from(answer, at)
        if name == _INTERFACE:
            return bool(struct.unpack_from("=I", answer, at + _ATTRIBUTE.size)[0] == interface)
        at += max(size + -size % 4, _ATTRIBUTE.size)
    return True
