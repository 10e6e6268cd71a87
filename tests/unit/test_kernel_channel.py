"""What goes over the socket to the kernel's WireGuard, and what is made of its answers.

The kernel's end is played here, byte for byte as linux/netlink.h has it; `tests/kernel` has the real one.
"""

from __future__ import annotations

import errno
import socket
import struct
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic.wireguard import wgmsg

from rustguard_py.kernel import channel, netlink
from rustguard_py.kernel.channel import WireGuardChannel
from rustguard_py.kernel.messages import KernelPeerChange, device_request
from rustguard_py.kernel.netlink import KernelInterface
from rustguard_py.model.errors import RustGuardError

# linux/netlink.h and linux/genetlink.h
REQUEST, ACK, DUMP, MULTI, INTERRUPTED = 0x1, 0x4, 0x300, 0x2, 0x10
ERROR, DONE, CONTROL = 2, 3, 16
GET_FAMILY, FAMILY_ID, FAMILY_NAME = 3, 1, 2
GET_DEVICE, SET_DEVICE = 0, 1
HERE = 27
KEY = bytes(range(32))


@dataclass
class Request:
    """A message to the kernel."""

    to: object
    kind: int
    flags: int
    sequence: int
    command: int
    version: int
    attributes: dict[int, bytes]


def attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", len(content) + 4, kind) + content + bytes(-len(content) % 4)


def message(kind: int, flags: int, sequence: int, content: bytes) -> bytes:
    """A netlink message, padded as the next one begins only at four bytes."""
    header = struct.pack("=IHHII", 16 + len(content), kind, flags, sequence, 0)
    return header + content + bytes(-len(content) % 4)


def done(code: int = 0) -> Callable[[int], bytes]:
    return lambda sequence: message(ERROR, 0, sequence, struct.pack("=i", -code))


class Kernel:
    """The kernel's end of each socket: requests are kept, and answered with the datagrams that a test has put."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: list[list[Callable[[int], bytes]]] = []
        self.family = [self._here, done()]
        self.open = 0
        self._mail: list[bytes] = []

    def socket(self, *kind: int) -> Kernel:
        assert kind == (socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, CONTROL)
        self.open += 1
        return self

    def bind(self, address: tuple[int, int]) -> None:
        assert address == (0, 0)

    def close(self) -> None:
        self.open -= 1

    def sendto(self, data: bytes, to: object) -> None:
        length, kind, flags, sequence, _, command, version = struct.unpack_from("=IHHIIBB", data)
        # What is sent again has zeros at its end from pyroute2, where the kernel stops.
        assert not any(data[length:])
        attributes, rest = {}, bytes(data[20:length])
        while rest:
            size, each = struct.unpack_from("=HH", rest)
            attributes[each & 0x3FFF], rest = rest[4:size], rest[(size + 3) & ~3 :]
        self.requests.append(Request(to, kind, flags, sequence, command, version, attributes))
        self._mail += [each(sequence) for each in (self.family if kind == CONTROL else self.answers.pop(0))]

    def recv(self, size: int) -> bytes:
        # A dump's datagrams have up to 32 KiB.
        assert size >= 1 << 15
        return self._mail.pop(0)

    @staticmethod
    def _here(sequence: int) -> bytes:
        content = struct.pack("=BBxx", 1, 2) + attribute(FAMILY_ID, struct.pack("=H", HERE))
        return message(CONTROL, 0, sequence, content)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    played = Kernel()
    names = ("AF_NETLINK", "SOCK_RAW", "SOCK_CLOEXEC")
    there = SimpleNamespace(socket=played.socket, **{name: getattr(socket, name) for name in names})
    monkeypatch.setattr(channel, "socket", there)
    return played


def part(flags: int, *peers: bytes, **settings: Any) -> Callable[[int], bytes]:
    """A message of a dump of an interface with these peers."""
    read = wgmsg()
    read["attrs"] = [[f"WGDEVICE_A_{name.upper()}", value] for name, value in settings.items()]
    read["attrs"] += [["WGDEVICE_A_PEERS", [{"attrs": [["WGPEER_A_PUBLIC_KEY", b64encode(key)]]} for key in peers]]]
    read.encode()
    content = bytes(read.data[16:])
    return lambda sequence: message(HERE, MULTI | flags, sequence, content)


def end(sequence: int) -> bytes:
    return message(DONE, MULTI, sequence, bytes(4))


def test_wireguards_number_is_asked_for_by_name_and_then_used(kernel: Kernel) -> None:
    made = WireGuardChannel()
    [asked] = kernel.requests
    assert (asked.to, asked.kind, asked.flags) == ((0, 0), CONTROL, REQUEST | ACK)
    assert (asked.command, asked.version, asked.attributes) == (GET_FAMILY, 1, {FAMILY_NAME: b"wireguard\0"})
    kernel.answers = [[done()], [end]]
    made.command(device_request(SET_DEVICE, 7, [["WGDEVICE_A_LISTEN_PORT", 9]]))
    assert made.dump(device_request(GET_DEVICE, 7, [])) == ([], True)
    sent = [(each.kind, each.flags, each.command, each.version) for each in kernel.requests[1:]]
    assert sent == [(HERE, REQUEST | ACK, SET_DEVICE, 1), (HERE, REQUEST | DUMP, GET_DEVICE, 1)]
    assert kernel.requests[1].attributes == {1: struct.pack("=I", 7), 6: struct.pack("=H", 9)}
    assert [each.sequence for each in kernel.requests] == [1, 2, 3]
    made.close()
    assert kernel.open == 0


def test_a_kernel_without_wireguard_is_named_and_no_socket_stays_open(kernel: Kernel) -> None:
    kernel.family = [done(errno.ENOENT)]
    with pytest.raises(OSError, match="No such file") as refused:
        WireGuardChannel()
    assert (refused.value.errno, kernel.open) == (errno.ENOENT, 0)
    assert "has no WireGuard" in str(netlink.why_absent())
    kernel.family = [done(errno.EPERM)]
    assert "can't be asked: Operation not permitted" in str(netlink.why_absent())
    kernel.family = [kernel._here, done()]
    assert netlink.why_absent() is None
    assert kernel.open == 0


def test_a_refusal_is_an_error_and_what_comes_late_is_no_answer_to_the_next(kernel: Kernel) -> None:
    made = WireGuardChannel()
    # The refusal ends the exchange, so what follows it is still to be received.
    kernel.answers = [
        [lambda now: done(errno.EBUSY)(now) + message(HERE, 0, now, b"late")],
        [lambda now: message(ERROR, 0, now - 1, struct.pack("=i", -errno.EPERM)), done()],
        [lambda now: message(HERE, MULTI, now - 1, b"late") + message(HERE, MULTI, now, b"this"), end],
    ]
    with pytest.raises(OSError, match="busy") as refused:
        made.command(device_request(SET_DEVICE, 7, []))
    assert refused.value.errno == errno.EBUSY
    made.command(device_request(SET_DEVICE, 7, []))
    messages, _ = made.dump(device_request(GET_DEVICE, 7, []))
    assert [each[16:] for each in messages] == [b"this"]


@pytest.mark.parametrize("flags", [(0, 0, 0), (INTERRUPTED, 0, 0), (0, INTERRUPTED, 0), (0, 0, INTERRUPTED)])
def test_a_dump_is_whole_unless_any_of_its_messages_was_interrupted(kernel: Kernel, flags: tuple[int, ...]) -> None:
    made = WireGuardChannel()
    contents = (b"one", b"second", b"the third")

    def piece(number: int, now: int) -> bytes:
        return message(HERE, MULTI | flags[number], now, contents[number])

    kernel.answers = [[lambda now: piece(0, now) + piece(1, now), lambda now: piece(2, now) + end(now)]]
    messages, whole = made.dump(device_request(GET_DEVICE, 7, []))
    assert [each[16:] for each in messages] == list(contents)
    assert whole == (not any(flags))


def test_a_reading_that_changed_underway_is_done_again_four_times_at_most(kernel: Kernel) -> None:
    device = KernelInterface(7)
    old, new = [part(INTERRUPTED, KEY), end], [part(0, bytes(32), listen_port=51820, fwmark=4), end]
    kernel.answers = [old, new]
    state = device.read()
    assert (list(state.peers), state.port, state.fwmark) == ([bytes(32)], 51820, 4)
    kernel.answers = [old, old, old, old, new]
    assert list(device.read_counters()) == [KEY]
    assert len(kernel.answers) == 1
    asked = kernel.requests[-1]
    assert (asked.command, asked.attributes) == (GET_DEVICE, {1: struct.pack("=I", 7)})


def test_only_the_settings_that_are_named_are_sent(kernel: Kernel) -> None:
    device = KernelInterface(7)
    kernel.answers = [[done()] for _ in range(4)]
    device.configure(private_key=KEY, port=0, fwmark=0)
    device.configure(port=51820)
    device.configure(fwmark=9)
    device.set_peers([KernelPeerChange(KEY, remove=True)])
    index, sent = struct.pack("=I", 7), [each.attributes for each in kernel.requests[1:]]
    assert sent[:3] == [
        {1: index, 3: KEY, 6: bytes(2), 7: bytes(4)},
        {1: index, 6: struct.pack("=H", 51820)},
        {1: index, 7: struct.pack("=I", 9)},
    ]
    assert KEY in sent[3][8]
    # No change is no message.
    device.set_peers([])
    assert len(kernel.requests) == 5


def test_a_refusal_says_whether_the_interface_is_gone(kernel: Kernel) -> None:
    device = KernelInterface(7)
    kernel.answers = [[done(errno.ENODEV)], [done(errno.ENODEV)], [done(errno.EADDRINUSE)]]
    with pytest.raises(RustGuardError, match="interface is gone"):
        device.read_counters()
    with pytest.raises(RustGuardError, match="interface is gone"):
        device.configure(port=1)
    with pytest.raises(RustGuardError, match="WireGuard refused: Address already in use"):
        device.configure(port=1)


def test_an_interface_is_removed_once_and_one_that_is_gone_not_at_all(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[int] = []
    monkeypatch.setattr(netlink, "_remove", removed.append)
    mine, gone = KernelInterface(7), KernelInterface(8)
    for device in (mine, gone):
        for end in (device.remove, device.close) if device is mine else (device.close, device.remove):
            end()
            end()
    assert (removed, kernel.open) == ([7], 0)


@pytest.mark.parametrize(
    ("code", "text", "fix"),
    [
        (errno.EPERM, "needs root or the capability CAP_NET_ADMIN", "sudo"),
        (errno.EEXIST, "There is an interface wg0 already", "--interface"),
        (errno.EOPNOTSUPP, "refused to make the WireGuard interface wg0: Operation not supported", "--engine native"),
    ],
)
def test_why_an_interface_is_not_made_is_told(
    monkeypatch: pytest.MonkeyPatch, code: int, text: str, fix: str
) -> None:
    def refuse(_: object) -> int:
        raise NetlinkError(code)

    monkeypatch.setattr(netlink, "with_netlink", refuse)
    with pytest.raises(RustGuardError, match=text) as refused:
        KernelInterface.make("wg0", "mine")
    assert fix in refused.value.fix
