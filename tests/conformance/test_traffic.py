"""What goes through a tunnel: both families over both families, any size.

Where a datagram is larger than a link on its way, wireguard-go is only asked for pings: the kernel refuses to cut a
message into such datagrams (EINVAL), and wireguard-go loses it, where we send them one by one.
"""

from __future__ import annotations

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import eventually
from support.wireguards import HERE4, HERE6, THERE4, THERE6, Implementation, Pair, at, carry, linked, ping, reaches


def test_both_families_go_through_over_both_families(lab: Lab, implementation: Implementation) -> None:
    pair = Pair(*linked(lab), implementation)
    here, there = pair.here, pair.there
    for outside in ((here.ipv4, there.ipv4), (here.ipv6, there.ipv6)):
        ends = at(outside[1], pair.other.port), at(outside[0], pair.one.port)

        def goes_over(ends: tuple[str, str] = ends) -> bool:
            # What was on its way over the other family when it was told may lead it back: it is told again.
            pair.set_one("endpoint", ends[0])
            ping(here.host, THERE4)
            return (pair.seen_by_one(), pair.seen_by_other()) == ends

        eventually(goes_over, what=f"traffic over {outside[1]}")
        for inside in (THERE4, THERE6):
            ping(here.host, inside)
            ping(here.host, inside, "-s", "1000", "-l", "10", count=20)
            carry(here.host, there.host, inside)
        for inside in (HERE4, HERE6):
            ping(there.host, inside)
            carry(there.host, here.host, inside)
        assert (pair.seen_by_one(), pair.seen_by_other()) == ends


@pytest.mark.parametrize("mtu", [1280, 1420, 2900])
def test_a_tunnel_of_another_mtu_carries_packets_up_to_it_and_fragments(
    lab: Lab, implementation: Implementation, mtu: int
) -> None:
    pair = Pair(*linked(lab), implementation)
    ping(pair.here.host, THERE4)
    for host in (pair.here.host, pair.there.host):
        host.ip([f"link set dev wg0 mtu {mtu}"])
    for address, headers in ((THERE4, 28), (THERE6, 48)):
        ping(pair.here.host, address, "-M", "do", "-s", str(mtu - headers))
        assert not reaches(pair.here.host, address, "-M", "do", "-s", str(mtu - headers + 1))
        ping(pair.here.host, address, "-s", "5000")
        if mtu < 1500 or implementation.name != "wireguard-go":
            carry(pair.here.host, pair.there.host, address, 500_000)


def test_a_narrow_link_on_the_way_is_passed_in_fragments(lab: Lab, implementation: Implementation) -> None:
    one, router, other = lab.host("one", own_run=True), lab.host("router"), lab.host("other", own_run=True)
    here, _, towards, there = lab.through(one, router, other, nets4=("192.0.2.0/25", "198.51.100.0/24"))
    for end in (towards, there):
        end.host.ip([f"link set dev {end.interface} mtu 1280"])
    pair = Pair(here, there, implementation)
    ping(one, THERE4)
    # A sender that forbids fragments hears of the narrow link, and cuts from then on.
    reaches(one, THERE4, "-s", "1392")
    ping(one, THERE4, "-s", "1392", "-M", "do")
    ping(other, HERE4, "-s", "1392", "-M", "do")
    if implementation.name != "wireguard-go":
        carry(one, other, THERE4)
    assert pair.seen_by_one() == at(there.ipv4, pair.other.port)
