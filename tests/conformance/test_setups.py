"""Where tunnels stand: behind a NAT, under a default route, in another namespace, on a route into itself."""

from __future__ import annotations

import time

import pytest

from rustguard_py.lab.hosts import End, Lab
from support.product import eventually
from support.wireguard_go import Peer
from support.wireguards import HERE4, HERE6, THERE4, THERE6, Implementation, Pair, at, linked, ping, reaches

FORGETS = 2


def _behind_a_nat(lab: Lab, implementation: Implementation) -> tuple[Pair, End]:
    """Return a host behind a NAT and one outside, with a session between them, and the NAT's outer end."""
    one, router, other = lab.host("one", own_run=True), lab.host("router"), lab.host("other", own_run=True)
    here, _, out, there = lab.through(one, router, other, nets4=("192.168.9.0/24", "192.0.2.0/24"))
    router.masquerade(out, forget_after=FORGETS)
    other.ip(["route del default"])
    pair = Pair(here, there, implementation, knows=False)
    ping(one, THERE4)
    return pair, out


@pytest.mark.fault(14)
def test_a_persistent_keepalive_keeps_a_nat_open_that_forgets_after_two_seconds(
    lab: Lab, implementation: Implementation
) -> None:
    pair, out = _behind_a_nat(lab, implementation)
    one, other = pair.here.host, pair.there.host
    assert pair.seen_by_other().startswith(f"{out.ipv4}:")
    ping(other, HERE4)
    time.sleep(FORGETS + 0.5)
    assert not reaches(other, HERE4), "the NAT still knows: this test shows nothing"
    pair.set_one("persistent-keepalive", "1")
    ping(one, THERE4)
    time.sleep(FORGETS + 0.5)
    ping(other, HERE4)


@pytest.mark.fault(14)
def test_a_nat_that_maps_to_another_port_is_followed_at_the_next_packet(
    lab: Lab, implementation: Implementation
) -> None:
    pair, out = _behind_a_nat(lab, implementation)
    took = []
    for port in (40_001, 40_002, 40_003):
        out.host.remap(out, f"{port}")
        time.sleep(FORGETS + 0.5)
        began = time.monotonic()
        ping(pair.here.host, THERE4, count=1)
        took.append(time.monotonic() - began)
        assert pair.seen_by_other() == at(out.ipv4, port)
        ping(pair.there.host, HERE4)
    print(f"row 14: three other ports of a NAT: each found at the next packet, within {max(took):.2f} s")


def test_a_default_route_leads_into_the_tunnel_and_what_is_marked_past_it(
    lab: Lab, implementation: Implementation
) -> None:
    one, router, other = lab.host("one", own_run=True), lab.host("router"), lab.host("other", own_run=True)
    nets4, nets6 = ("192.0.2.0/25", "198.51.100.0/24"), ("2001:db8:1::/64", "2001:db8:2::/64")
    here, _, _, there = lab.through(one, router, other, nets4=nets4, nets6=nets6)
    pair = Pair(here, there, implementation)
    far = {"4": "203.0.113.9", "6": "2001:db8:9::9"}
    other.ip([f"address add {far['4']}/32 dev lo", f"address add {far['6']}/128 dev lo"])
    pair.set_one("allowed-ips", "0.0.0.0/0,::/0")
    one.run(["wg", "set", "wg0", "fwmark", "51820"])
    for family in ("4", "6"):
        for words in (
            "route add default dev wg0 table 51820",
            "rule add not fwmark 51820 table 51820",
            "rule add table main suppress_prefixlength 0",
        ):
            one.run(["ip", f"-{family}", *words.split()])
    for outside in (there.ipv4, there.ipv6):
        asked = at(outside, pair.other.port)

        def goes_over(asked: str = asked) -> bool:
            # What was on its way over the other family when it was told may lead it back: it is told again.
            pair.set_one("endpoint", asked)
            for address in far.values():
                # Nobody on the way has a route there: it is in the tunnel or nowhere.
                ping(one, address)
            return pair.seen_by_one() == asked

        eventually(goes_over, what=f"traffic over {outside}")
        # The peer's own address too is reached through the tunnel, by all but the tunnel itself.
        ping(one, there.ipv4)
        ping(one, there.ipv6)


def test_an_interface_in_another_namespace_sends_from_where_it_was_made(
    lab: Lab, implementation: Implementation
) -> None:
    pair = Pair(*linked(lab), implementation)
    inner, outer = lab.host("inner"), pair.here.host
    ping(outer, THERE4)
    outer.ip([f"link set dev wg0 netns {inner.pid}"])
    inner.ip([f"address add {HERE4}/24 dev wg0", f"address add {HERE6}/64 dev wg0 nodad", "link set dev wg0 up"])
    inner.ip(["route add default dev wg0"])
    # It has no other interface, and its own host none of the tunnel's addresses.
    ping(inner, THERE4)
    ping(inner, THERE6)
    ping(pair.there.host, HERE4)
    assert pair.seen_by_other() == at(pair.here.ipv4, pair.one.port)
    assert inner.run(["ss", "-Huln"]).stdout == ""
    assert not reaches(outer, THERE4)


def test_a_route_to_the_peer_through_its_own_tunnel_does_not_run_away(
    lab: Lab, implementation: Implementation
) -> None:
    if implementation.name == "wireguard-go":
        pytest.skip(
            "it seals what it sent again and again: nothing there knows its own datagrams, as the kernel does"
        )
    pair = Pair(*linked(lab), implementation)
    one, outside = pair.here.host, pair.there.ipv4
    ping(one, THERE4)
    pair.one.set_peer(Peer(pair.other.public_key, [f"{THERE4}/32", f"{outside}/32"]))
    before = pair.one.peer(pair.other.public_key).sent
    one.run(["ping", "-c10", "-i0.02", "-W0.5", THERE4], check=False)
    sent = pair.one.peer(pair.other.public_key).sent - before
    print(f"{sent} bytes")
    # The kernel was seen to send 121 kB, ours 1,280 bytes.
    assert sent < (200_000 if implementation.name == "kernel" else 100_000)
    one.ip([f"route del {outside}/32 dev wg0"])
    ping(one, THERE4)
