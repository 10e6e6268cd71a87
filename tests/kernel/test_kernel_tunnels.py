"""The kernel's engine talks to itself and to each of our planes: both families, roaming, new sessions."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Host, Lab
from rustguard_py.model.endpoint import Endpoint
from support.forked_tunnel import ForkedTunnel
from support.product import eventually

PORTS = (51820, 51821)
OUTSIDE4, OUTSIDE6 = "198.51.100.0/24", "2001:db8::/64"
INSIDE = (["10.9.0.1/24", "fd09::1/64"], ["10.9.0.2/24", "fd09::2/64"])
PATIENCE = 40.0


def pings(host: Host, address: str) -> bool:
    return host.run(["ping", "-n", "-c1", "-W2", "-s1300", address], check=False).returncode == 0


@pytest.mark.parametrize(
    ("engines", "outside"),
    [
        (("kernel", "kernel"), 6),
        (("kernel", "portable"), 4),
        (("kernel", "native"), 6),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, tuple) else f"over-ipv{each}",
)
def test_both_ways_with_a_preshared_key_roaming_and_new_sessions(
    lab: Lab, tmp_path: Path, engines: tuple[str, str], outside: int, soak: bool
) -> None:
    hosts = lab.host("left"), lab.host("right")
    ends = lab.link(*hosts, ipv4=OUTSIDE4, ipv6=OUTSIDE6)
    left, right = (
        ForkedTunnel(host, engine, inside, tmp_path, port)
        for host, engine, inside, port in zip(hosts, engines, INSIDE, PORTS, strict=True)
    )
    psk = os.urandom(32)

    def place(number: int) -> Endpoint:
        if outside == 4:
            return (str(ends[number].ipv4), PORTS[number])
        return (str(ends[number].ipv6), PORTS[number], 0, 0)

    def introduce(*, left_begins: bool) -> None:
        """Make both known to each other, only one of them knowing where the other is."""
        for tunnel, other in ((left, right), (right, left)):
            tunnel.remove_peer(other.public_key)
        left.set_peer(right.public_key, INSIDE_OF[1], endpoint=place(1) if left_begins else None, psk=psk)
        right.set_peer(left.public_key, INSIDE_OF[0], endpoint=None if left_begins else place(0), psk=psk)

    # The kernel begins, then the other: in each session both families, both ways.
    for left_begins in (True, False):
        introduce(left_begins=left_begins)
        first, second = ("10.9.0.2", "10.9.0.1") if left_begins else ("10.9.0.1", "10.9.0.2")
        beginner, other = (hosts[0], hosts[1]) if left_begins else (hosts[1], hosts[0])
        eventually(partial(pings, beginner, first), PATIENCE, f"a ping, left begins: {left_begins}")
        eventually(partial(pings, other, second), PATIENCE, "a ping back")
        for host, address in ((hosts[0], "fd09::2"), (hosts[1], "fd09::1")):
            eventually(partial(pings, host, address), PATIENCE, "a ping over IPv6")
    told = left.told(right.public_key)
    assert told.rx_bytes > 4 * 1300
    assert told.tx_bytes > 4 * 1300
    assert told.handshakes >= 1
    assert told.sessions >= told.handshakes

    # Another preshared key ends it, on whichever side it is another.
    left.set_peer(right.public_key, INSIDE_OF[1], endpoint=place(1), psk=os.urandom(32))
    assert not pings(hosts[0], "10.9.0.2")
    introduce(left_begins=True)
    eventually(lambda: pings(hosts[0], "10.9.0.2"), PATIENCE, "a ping with the right key again")

    # Who began a used session makes a new one of it after 120 s.
    for left_begins in (True, False) if soak else ():
        introduce(left_begins=left_begins)
        beginner, target = (hosts[0], "10.9.0.2") if left_begins else (hosts[1], "10.9.0.1")
        eventually(partial(pings, beginner, target), PATIENCE, "a ping in a first session")
        before = right.told(left.public_key).handshakes

        def is_renewed(b: Host = beginner, t: str = target, before: int = before) -> bool:
            return pings(b, t) and right.told(left.public_key).handshakes > before

        eventually(is_renewed, 180, f"a rekey, left begins: {left_begins}")

    # Each moves, and is found where it is by what it sends.
    for number, (mover, stays) in enumerate(((left, right), (right, left))):
        end = ends[number]
        old = end.ipv4 if outside == 4 else end.ipv6
        new = f"198.51.100.{100 + number}" if outside == 4 else f"2001:db8::{100 + number}"
        length, nodad = (24, "") if outside == 4 else (64, " nodad")
        end.host.ip(
            [
                f"addr del {old}/{length} dev {end.interface}",
                f"addr add {new}/{length} dev {end.interface}{nodad}",
            ]
        )
        target = ("10.9.0.2", "10.9.0.1")[number]
        eventually(partial(pings, hosts[number], target), PATIENCE, "a ping from elsewhere")
        found = stays.told(mover.public_key).endpoint
        assert found == (f"{new}:{PORTS[number]}" if outside == 4 else f"[{new}]:{PORTS[number]}")
        back = ("10.9.0.1", "10.9.0.2")[number]
        eventually(partial(pings, hosts[1 - number], back), PATIENCE, "a ping to there")

    left.stop()
    right.stop()
    for host in hosts:
        assert "rg0" not in host.run(["ip", "-br", "link"]).stdout


INSIDE_OF = [[each.replace("/24", "/32").replace("/64", "/128") for each in inside] for inside in INSIDE]
