"""Many datagrams a second at one UDP port, from made-up sources or from one: a program for a host of the lab.

They are made once and go out as frames, many in one system call, past the routing of the host that sends them. It
says `flooding` when it has begun, goes on until SIGTERM, and then says how many it sent in how many seconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import cycle
from pathlib import Path

from rustguard_py.enroll.pairing import messages
from rustguard_py.lab.hosts import End
from rustguard_py.protocol import cookie, wire
from support.packets import naive_sum

# Enough that no source comes often, few enough to be made in a second.
SOURCES = 1 << 14
BATCH = 64
_ETHERTYPE_IPV4 = 0x0800
_PACKET_QDISC_BYPASS = 20
_SOL_PACKET = 263


class _Message(ctypes.Structure):
    """`struct mmsghdr`, with pointers as numbers."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("name", "name_size", "vectors", "vector_count")],
        *[(name, ctypes.c_void_p) for name in ("control", "control_size", "flags", "sent")],
    ]


class _Vector(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


def initiation(public_key: bytes, chance: random.Random, given: bytes | None = None) -> bytes:
    """Make a first message with a valid MAC1 for who has this key, and chance in place of what it should hold.

    With a cookie it has a MAC2 too.
    """
    body = bytes([wire.INITIATION, 0, 0, 0]) + chance.randbytes(wire.INITIATION_SIZE - 4 - 2 * wire.MAC_SIZE)
    return cookie.add_macs(body, cookie.mac1_key(public_key), given)


@dataclass(frozen=True, slots=True)
class Flooded:
    """What a flood came to."""

    datagrams: int
    seconds: float

    @property
    def rate(self) -> float:
        """Datagrams a second."""
        return self.datagrams / self.seconds


class Flood:
    """A flood that is going on.

    Args:
        end: From where: the interface, and the host.
        target: The other end of that link.
        port: Where to.
        rate: How many a second, if the machine can.
        what: `initiation` (with a valid MAC1 for `public_key`, chance besides), `initiation with a cookie` (one that
            nobody gave), `hello` (of a join), `share` (a SHARE_C with a cookie that nobody gave) or `short` (five
            bytes of pairing).
        source: An address, or a network whose hosts send by turns; made-up addresses by default.
        public_key: Of the target.
    """

    def __init__(
        self,
        end: End,
        target: End,
        port: int,
        rate: int,
        what: str,
        *,
        source: str = "",
        public_key: bytes = bytes(32),
    ) -> None:
        ends = [f"{target.ipv4}", f"{port}", _mac(end), _mac(target)]
        argv = [sys.executable, __file__, end.interface, *ends, f"{rate}", what, source, public_key.hex()]
        environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        self._program = end.host.popen(argv, stdout=subprocess.PIPE, env=environment)
        assert self._program.stdout is not None
        assert self._program.stdout.readline() == "flooding\n"

    def end(self) -> Flooded:
        """End it; give what it came to."""
        self._program.terminate()
        said, _ = self._program.communicate(timeout=60)
        return Flooded(**json.loads(said))


def _mac(end: End) -> str:
    shown = end.host.run(["ip", "-j", "link", "show", end.interface]).stdout
    address: str = json.loads(shown)[0]["address"]
    return address


# -- the program ----------------------------------------------------------------------------------------------------


def _datagram(what: str, public_key: bytes, chance: random.Random) -> bytes:
    if what.startswith("initiation"):
        return initiation(public_key, chance, chance.randbytes(16) if what.endswith("cookie") else None)
    if what == "share":
        return b"RGE3\3\0\0\0" + chance.randbytes(124)
    if what == "short":
        return b"RGE3\1"
    return messages.Hello(chance.randbytes(messages.NONCE_SIZE), 0).encode()


def _frame(here: bytes, there: bytes, source: IPv4Address, target: IPv4Address, port: int, datagram: bytes) -> bytes:
    size = 28 + len(datagram)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, size, 0, 0x4000, 64, socket.IPPROTO_UDP, 0) + source.packed + target.packed
    ip = ip[:10] + struct.pack(">H", 0xFFFF - naive_sum(ip)) + ip[12:]
    # Without a checksum, as IPv4 allows.
    udp = struct.pack(">HHHH", 40_000, port, size - 20, 0)
    return there + here + struct.pack(">H", _ETHERTYPE_IPV4) + ip + udp + datagram


def _headers(frames: list[bytes]) -> tuple[ctypes.Array[_Message], list[object]]:
    """The headers for sendmmsg, and what they point to."""
    size = len(frames[0])
    content = ctypes.create_string_buffer(b"".join(frames), size * len(frames))
    vectors = (_Vector * len(frames))()
    headers = (_Message * len(frames))()
    for number in range(len(frames)):
        vectors[number].base = ctypes.addressof(content) + number * size
        vectors[number].size = size
        headers[number].vectors = ctypes.addressof(vectors) + number * ctypes.sizeof(_Vector)
        headers[number].vector_count = 1
    return headers, [content, vectors]


def _send(descriptor: int, headers: ctypes.Array[_Message], rate: int) -> int:
    """Send until SIGTERM; give how many went out."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
    first, each = ctypes.addressof(headers), ctypes.sizeof(_Message)
    count = at = 0
    began = time.monotonic()
    while not ended:
        due = int((time.monotonic() - began) * rate) - count
        if due < BATCH:
            time.sleep(BATCH / rate / 2)
            continue
        sent = sendmmsg(descriptor, ctypes.c_void_p(first + at * each), BATCH, 0)
        if sent < 0:
            # No room in a queue: those are lost, as any flood's.
            time.sleep(0.0005)
            continue
        count += sent
        at = (at + BATCH) % len(headers)
        # What it couldn't send in time it doesn't make up for: a flood is steady.
        if due > rate // 10:
            began += (due - BATCH) / rate
    return count


def main() -> None:
    """Run by itself."""
    interface, to, port, here, there, rate, what, source, public_key = sys.argv[1:]
    chance = random.Random(5)
    ends = bytes.fromhex(here.replace(":", "")), bytes.fromhex(there.replace(":", ""))
    frames = []
    # In 11.0.0.0/8, where nothing of a lab is.
    sources = cycle(IPv4Network(source).hosts()) if source else None
    for _ in range(SOURCES):
        by = next(sources) if sources else IPv4Address(0x0B000000 + chance.randrange(1 << 24))
        frames.append(
            _frame(*ends, by, IPv4Address(to), int(port), _datagram(what, bytes.fromhex(public_key), chance))
        )
    headers, _kept = _headers(frames)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        out.bind((interface, 0))
        out.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        sys.stdout.write("flooding\n")
        sys.stdout.flush()
        began = time.monotonic()
        count = _send(out.fileno(), headers, int(rate))
        sys.stdout.write(json.dumps({"datagrams": count, "seconds": time.monotonic() - began}) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
