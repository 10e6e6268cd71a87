"""Ethernet on a memif with the Linux kernel as the neighbour: testpmd joins the memif and a veth."""

from __future__ import annotations

import select
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import End, Lab
from rustguard_py.model.ethernet import EthernetOptions
from rustguard_py.planes.native import NativePlane
from support.channel_pair import ALICE4, ALICE6, BOB4, BOB6, eventually
from support.engines import needs_native
from support.memif_pair import MAC, MemifPair, options
from support.packets import ip_header, naive_sum, pseudo_sum
from support.testpmd import Testpmd

# testpmd spins, so one of them at a time.
pytestmark = [needs_native, pytest.mark.needs_testpmd, pytest.mark.xdist_group("testpmd"), pytest.mark.timeout(120)]
FAMILIES = pytest.mark.parametrize("family", [4, 6])
OURS, THEIRS = {4: BOB4, 6: BOB6}, {4: ALICE4, 6: ALICE6}
ICMP, ICMPV6 = 1, 58
ECHO = {4: (8, 0), 6: (128, 129)}
OWN_MAC = MAC.hex(":")
# Sends a frame to our MAC address, in 802.1Q's VLAN 5. The kernel needs no VLANs for that.
TAGGED = f"""
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind((sys.argv[1], 0))
wire.send(bytes.fromhex({MAC.hex()!r}) + wire.getsockname()[4] + b"\\x81\\0\\0\\5\\x08\\0" + bytes(60))
"""


class Neighbours:
    """A kernel with 10.9.0.1 and fd09::1 on its Ethernet link, on which we stand in for Bob.

    Attributes:
        wire: The kernel's end of the link.
        pair: Alice is at the memif; Bob sends and receives over the tunnel.
    """

    def __init__(self, lab: Lab, path: Path, learnt: tuple[IPv4Network | IPv6Network, ...]) -> None:
        kernel, between = lab.host("kernel"), lab.host("wire")
        between.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        self.wire, port = lab.link(kernel, between)
        kernel.ip([f"address add {ALICE4}/24 dev {self.wire.interface}"])
        kernel.ip([f"address add {ALICE6}/64 dev {self.wire.interface} nodad"])
        answered = (ip_network(BOB4), ip_network(BOB6))
        ethernet = EthernetOptions(MAC, answered=answered, learnt=learnt)
        self.pair = MemifPair(replace(options(path, server=True), ethernet=ethernet))
        self.testpmd = Testpmd(path, server=False, mode="io", wire=port.interface, enter=between.command([]))
        try:
            self.pair.wait_for_connection()
            self.testpmd.start()
        except BaseException:
            self.close()
            raise

    def ping(self, family: int, *words: str) -> tuple[str, list[bytes]]:
        """Ping Bob from the kernel. Return what ping(8) printed, and what came to Bob, who answers."""
        command = ["ping", f"-{family}", "-n", "-i", "0.2", "-W", "5", *words, OURS[family]]
        running = self.wire.host.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        came: list[bytes] = []
        while running.poll() is None:
            packets = self.read(family)
            came += packets
            self.pair.bob.write([reply for packet in packets if (reply := _reply(packet))])
        assert running.stdout is not None
        return running.stdout.read(), came + self.read(family)

    def read(self, family: int) -> list[bytes]:
        """Return the packets of one family that came to Bob, or come within a moment."""
        select.select([self.pair.bob.channel], [], [], 0.05)
        packets = map(bytes, self.pair.bob.channel.read_batch(256))
        return [packet for packet in packets if packet[0] >> 4 == family]

    def ask(self, family: int, sequence: int) -> bool:
        """Ping the kernel from Bob. Return whether it answers within half a second."""
        self.pair.bob.write([_echo(family, sequence)])
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            if any(_is_reply(packet, sequence) for packet in self.read(family)):
                return True
        return False

    def drops(self) -> dict[str, int]:
        """What the memif has dropped, by reason. (What the kernel sends to groups finds no peer.)"""
        return {name: count for name, count in self.pair.drops().items() if name.startswith("memif_")}

    def close(self) -> None:
        self.testpmd.kill()
        self.pair.close()


@pytest.fixture
def met(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Neighbours]:
    """Both of them. A test's parameter of this fixture says what we learn."""
    both = Neighbours(lab, tmp_path / "m", getattr(request, "param", ()))
    yield both
    both.close()


def test_the_kernel_resolves_what_we_answer_for_and_reaches_it_through_the_tunnel(met: Neighbours) -> None:
    alice = met.pair.alice
    assert isinstance(alice, NativePlane)
    for family, address in OURS.items():
        said, _ = met.ping(family, "-c", "3")
        assert " 0% packet loss" in said, said
        known = met.wire.host.run(["ip", "neighbour", "show", "to", address]).stdout
        assert f"lladdr {OWN_MAC}" in known
        print(f"{said.splitlines()[-1]}; {known.strip()}")
    assert select.select([alice.answered_fileno()], [], [], 0)[0]
    assert sorted(map(str, alice.take_answered())) == [BOB4, BOB6]
    assert met.drops() == {}


@pytest.mark.parametrize("met", [(ip_network(ALICE4), ip_network(ALICE6))], indirect=True)
def test_we_resolve_the_kernel_and_notice_its_new_mac_address(met: Neighbours) -> None:
    """The packets that ask are dropped and counted. Later the kernel announces its address by itself."""
    for count, family in enumerate((4, 6), 1):
        assert not met.ask(family, 0)
        assert met.drops() == {"memif_unresolved": count}
        assert met.ask(family, 1)
    _announce(met.wire)
    met.wire.set("address", "02:00:00:00:00:77")
    for family in (4, 6):
        # Nobody is asked again for a minute.
        eventually(lambda family=family: met.ask(family, 2), f"IPv{family}: {met.drops()}")  # type: ignore[misc]
    assert met.drops() == {"memif_unresolved": 2}


@FAMILIES
def test_the_kernel_learns_the_tunnels_mtu_and_fragments(met: Neighbours, family: int) -> None:
    """A link of 1500 bytes, and a tunnel of 1420."""
    header = 28 if family == 4 else 48
    said, came = met.ping(family, "-M", "do", "-c", "1", "-s", str(1421 - header))
    assert "mtu = 1420" in said or "mtu=1420" in said, said
    assert came == []
    assert met.drops() == {"memif_too_long": 1}
    said, came = met.ping(family, "-M", "do", "-c", "1", "-s", str(1420 - header))
    assert " 0% packet loss" in said, said
    if family == 6:
        # Nobody puts these together and answers. Those of IPv4 don't come so far: DPDK's af_packet has the kernel put
        # them together (PACKET_FANOUT_FLAG_DEFRAG).
        _, came = met.ping(family, "-M", "want", "-c", "1", "-s", "3000", "-W", "0.3")
        print(f"fragments of {Counter(map(len, came))} bytes")
        assert len(came) == 3
        assert max(map(len, came)) <= 1420
    assert met.drops() == {"memif_too_long": 1}


def test_a_frame_of_a_vlan_is_dropped_and_counted(met: Neighbours) -> None:
    met.wire.host.run([sys.executable, "-c", TAGGED, met.wire.interface])
    eventually(lambda: met.drops() == {"memif_vlan": 1}, str(met.drops()))


def _announce(wire: End) -> None:
    """Have the kernel announce a changed MAC address: gratuitous ARP, and an unsolicited advertisement."""
    wire.host.sysctl(f"net.ipv4.conf.{wire.interface}.arp_notify", 1)
    wire.host.sysctl(f"net.ipv6.conf.{wire.interface}.ndisc_notify", 1)


def _echo(family: int, sequence: int) -> bytes:
    """An echo request from Bob to the kernel."""
    addresses = OURS[family], THEIRS[family]
    message = struct.pack(">BBHHH", ECHO[family][0], 0, 0, 7, sequence) + bytes(16)
    protocol = ICMP if family == 4 else ICMPV6
    total = naive_sum(message)
    if family == 6:
        total = naive_sum(struct.pack(">HH", total, pseudo_sum(*addresses, protocol, len(message))))
    message = message[:2] + struct.pack(">H", 0xFFFF - total) + message[4:]
    return ip_header(*addresses, protocol, len(message)) + message


def _reply(packet: bytes) -> bytes | None:
    """Return Bob's answer to a whole echo request; None to anything else."""
    family = packet[0] >> 4
    start, size, protocol = (12, 4, packet[9]) if family == 4 else (8, 16, packet[6])
    at = start + 2 * size
    if protocol != (ICMP if family == 4 else ICMPV6) or packet[at] != ECHO[family][0]:
        return None
    if family == 4 and packet[6] & 0x3F | packet[7]:
        return None
    swapped = packet[:start] + packet[start + size : at] + packet[start : start + size]
    # The sum changes as the type does.
    (before,) = struct.unpack_from(">H", packet, at + 2)
    total = naive_sum(struct.pack(">HH", before, ((ECHO[family][0] - ECHO[family][1]) << 8) % 0xFFFF))
    return swapped + struct.pack(">BBH", ECHO[family][1], packet[at + 1], total) + packet[at + 4 :]


def _is_reply(packet: bytes, sequence: int) -> bool:
    """Whether a packet is the kernel's answer to `_echo`."""
    family = packet[0] >> 4
    start = 20 if family == 4 else 40
    source = packet[12:16] if family == 4 else packet[8:24]
    named = struct.unpack_from(">BxxxHH", packet, start)
    return source == ip_address(THEIRS[family]).packed and named == (ECHO[family][1], 7, sequence)
