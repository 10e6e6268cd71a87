"""From which of its addresses a host answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import eventually
from support.wireguards import HERE4, Implementation, Pair, at, linked, ping, reaches


@pytest.fixture
def sticky(implementation: Implementation) -> Implementation:
    """Each in turn; wireguard-go without datagrams that the kernel merged.

    With them it doesn't know which address of ours they came to: where it divides them (splitCoalescedMessages in its
    conn/bind_std.go), it leaves behind the control message that says so.
    """
    return replace(implementation, refused="udp_gro")


def _answers_from(pair: Pair, asked: str) -> None:
    """Write to an address, and check that answers come from it."""

    def answers() -> bool:
        # What was on its way from another address may lead the other back: it is told again.
        pair.set_other("endpoint", asked)
        ping(pair.there.host, HERE4)
        return pair.seen_by_other() == asked

    eventually(answers, what=f"answers from {asked}")


def test_answers_come_from_the_address_that_was_written_to(lab: Lab, sticky: Implementation) -> None:
    pair = Pair(*linked(lab), sticky, knows=False)
    here = pair.here
    here.host.ip(
        [
            f"address add 192.0.2.11/24 dev {here.interface}",
            f"address add 2001:db8::11/64 dev {here.interface} nodad",
        ]
    )
    # Not IPv6 after IPv4: wireguard-go then sends to an address put together of both (`Send` in conn/bind_std.go).
    for address in ("2001:db8::11", "2001:db8::1", "192.0.2.11", "192.0.2.1", "192.0.2.11"):
        _answers_from(pair, at(address, pair.one.port))


@pytest.mark.parametrize("network", ["192.0.2.{}", "2001:db8::{}"], ids=["over IPv4", "over IPv6"])
def test_answers_move_with_what_is_written_to(lab: Lab, sticky: Implementation, network: str) -> None:
    pair = Pair(*linked(lab), sticky, knows=False)
    here = pair.here
    bits = "64 dev {} nodad" if ":" in network else "24 dev {}"
    here.host.ip([f"address add {network.format(11)}/{bits.format(here.interface)}"])
    for host in (11, 1, 11):
        _answers_from(pair, at(network.format(host), pair.one.port))


def test_answers_come_from_an_address_of_another_interface(lab: Lab, sticky: Implementation) -> None:
    pair = Pair(*linked(lab), sticky, knows=False)
    pair.here.host.ip(["address add 198.51.100.1/32 dev lo"])
    pair.there.host.ip([f"route add 198.51.100.0/24 via {pair.here.ipv4}"])
    _answers_from(pair, at("198.51.100.1", pair.one.port))


@pytest.mark.parametrize(
    ("network", "bits"), [("192.0.2.{}", 24), ("2001:db8::{}", 64)], ids=["over IPv4", "over IPv6"]
)
def test_an_address_that_has_gone_is_answered_from_no_more(
    lab: Lab, implementation: Implementation, network: str, bits: int
) -> None:
    pair = Pair(*linked(lab), implementation, knows=False)
    here = pair.here
    nodad = " nodad" if ":" in network else ""
    here.host.ip([f"address add {network.format(11)}/{bits} dev {here.interface}{nodad}"])
    pair.set_other("endpoint", at(network.format(11), pair.one.port))
    ping(pair.there.host, HERE4)
    here.host.ip([f"address del {network.format(11)}/{bits} dev {here.interface}"])
    eventually(lambda: reaches(here.host, "10.9.0.2"), what="an answer from the address that is left")
    assert pair.seen_by_other() == at(network.format(1), pair.one.port)
    ping(pair.there.host, HERE4)
