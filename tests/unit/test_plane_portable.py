"""The portable plane and its device, with a socket pair as the TUN interface's queue."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.planes.portable import PortablePlane
from rustguard_py.planes.tun import Tun
from rustguard_py.system.sockets import bind

# linux/if_tun.h
TUNGETIFF, TUNSETOFFLOAD = 0x800454D2, 0x400454D0
TUN, NO_PI, VNET_HDR = 0x0001, 0x1000, 0x4000
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
PATIENCE = 10.0


class Queue:
    """A queue of the interface rg0.

    Attributes:
        fd: The descriptor that a plane or a `Tun` can adopt.
        offloads: What was asked for, one by one.
        fault: The error that it answers with when it is asked for offloads.
    """

    def __init__(self) -> None:
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd = self._ends[0].fileno()
        self.offloads: list[int] = []
        self.fault: int | None = None

    def ioctl(self, _: int, request: int, given: bytes | int) -> bytes | int:
        if request == TUNGETIFF:
            return struct.pack("16sH22x", b"rg0", TUN | NO_PI | VNET_HDR)
        assert request == TUNSETOFFLOAD
        assert isinstance(given, int)
        self.offloads.append(given)
        if self.fault is not None:
            raise OSError(self.fault, os.strerror(self.fault))
        return 0

    def close(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    made = Queue()
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    yield made
    made.close()


def at(family: socket.AddressFamily, port: int) -> Endpoint:
    return (LOOPBACK[family], port) if family == socket.AF_INET else (LOOPBACK[family], port, 0, 0)


@pytest.mark.parametrize("family", LOOPBACK)
def test_a_datagram_leaves_by_the_socket_of_its_family(queue: Queue, family: socket.AddressFamily) -> None:
    sockets = bind(0, tuple(LOOPBACK.values()))
    port = sockets[0].getsockname()[1]
    plane = PortablePlane(b"k" * 32, interface="rg0", sockets=sockets, tun=[queue.fd])
    with socket.socket(family, socket.SOCK_DGRAM) as other:
        other.bind((LOOPBACK[family], 0))
        plane.send(at(family, other.getsockname()[1]), b"datagram")
        arrived = select.select([other], [], [], PATIENCE)[0]
        stats = plane.stats()
        plane.close()
        assert (bool(arrived), stats.drops) == (True, {})
        assert other.recvfrom(100) == (b"datagram", at(family, port))


@pytest.mark.parametrize("family", LOOPBACK)
def test_a_datagram_of_a_family_without_a_socket_is_counted(queue: Queue, family: socket.AddressFamily) -> None:
    (other,) = LOOPBACK.keys() - {family}
    plane = PortablePlane(b"k" * 32, interface="rg0", sockets=bind(0, (LOOPBACK[other],)), tun=[queue.fd])
    plane.send(at(family, 9), b"datagram")
    ends = time.monotonic() + PATIENCE
    while not (drops := plane.stats().drops) and time.monotonic() < ends:
        time.sleep(0.001)
    runs = plane.is_running()
    plane.close()
    assert (drops, runs) == ({"no_socket": 1}, True)


def test_a_refused_read_is_tried_without_superpackets_but_not_for_ever(queue: Queue) -> None:
    """Superpackets that wait in the device are refused too, one by one; then there is another reason."""
    device = Tun.adopt(queue.fd, pytest.fail)
    assert queue.offloads.pop() > 0
    answers = [device.end_offloads() for _ in range(4096 + 2)]
    assert answers == [True] * 4096 + [False] * 2
    assert set(queue.offloads) == {0}
    device.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADFD])
def test_a_device_that_refuses_plain_packets_too_is_not_asked_again(queue: Queue, code: int) -> None:
    device = Tun.adopt(queue.fd, pytest.fail)
    queue.fault = code
    assert device.end_offloads() is False
    device.close()
