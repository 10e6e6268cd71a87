"""Where a peer is, which addresses are its own, and who is no peer."""

from __future__ import annotations

import os

import pytest

from rustguard_py.lab.hosts import Host, Lab
from support.product import eventually
from support.wireguard_go import Peer
from support.wireguards import (
    HERE4,
    HERE6,
    THERE4,
    THERE6,
    Implementation,
    Pair,
    at,
    carry,
    linked,
    ping,
    reaches,
    text,
    uapi,
    wg,
)

# The points of order 1, 2, 4 and 8, and what is the same beyond the field's prime (RFC 7748 section 7).
LOW_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    *((2**255 - 19 + n).to_bytes(32, "little") for n in (-1, 0, 1)),
]


def _readdress(host: Host, interface: str, gone: object, new: str) -> None:
    nodad = " nodad" if ":" in new else ""
    host.ip([f"address del {gone} dev {interface}", f"address add {new} dev {interface}{nodad}"])


@pytest.mark.parametrize("family", [4, 6])
def test_a_peer_is_followed_to_another_address_on_either_side(
    lab: Lab, implementation: Implementation, family: int
) -> None:
    pair = Pair(*linked(lab), implementation)
    here, there = pair.here, pair.there
    network, bits = ("192.0.2.{}", 24) if family == 4 else ("2001:db8::{}", 64)
    pair.set_one("endpoint", at(network.format(2), pair.other.port))
    ping(here.host, THERE4)
    _readdress(here.host, here.interface, network.format(1) + f"/{bits}", network.format(11) + f"/{bits}")
    ping(here.host, THERE4)
    assert pair.seen_by_other() == at(network.format(11), pair.one.port)
    _readdress(there.host, there.interface, network.format(2) + f"/{bits}", network.format(12) + f"/{bits}")
    ping(there.host, HERE4)
    assert pair.seen_by_one() == at(network.format(12), pair.other.port)
    ping(here.host, THERE4)
    ping(there.host, HERE6)


def test_allowed_ips_come_and_go_one_by_one_and_an_update_makes_no_peer(
    lab: Lab, implementation: Implementation
) -> None:
    pair = Pair(*linked(lab), implementation)
    one = pair.here.host
    key, stranger = (f"public_key={each.hex()}" for each in (pair.other.public_key, os.urandom(31) + b"\x40"))
    ping(one, THERE4)

    def networks() -> list[str]:
        return wg(one, "show", "wg0", "allowed-ips").split()[1:]

    # What another has, or nobody, isn't taken from this one.
    gone = ["allowed_ip=-fd09::2/128", "allowed_ip=-10.77.0.0/16"]
    assert uapi(one, "set=1", key, "update_only=true", *gone, "allowed_ip=10.7.0.0/16") == ["errno=0"]
    assert sorted(networks()) == ["10.7.0.0/16", f"{THERE4}/32"]
    ping(one, THERE4)
    assert not reaches(one, THERE6)
    assert uapi(one, "set=1", stranger, "update_only=true", f"allowed_ip={THERE4}/32") == ["errno=0"]
    assert len(wg(one, "show", "wg0", "peers").split()) == 1
    assert f"{THERE4}/32" in networks()
    assert uapi(one, "set=1", stranger, "allowed_ip=10.7.0.0/16") == ["errno=0"]
    assert uapi(one, "set=1", key, "allowed_ip=-10.7.0.0/16", "allowed_ip=fd09::2/128") == ["errno=0"]
    owners = dict(line.split("\t") for line in wg(one, "show", "wg0", "allowed-ips").splitlines())
    assert sorted(owners[text(pair.other.public_key)].split()) == [f"{THERE4}/32", "fd09::2/128"]
    assert "10.7.0.0/16" in owners.values()
    ping(one, THERE6)


def test_allowed_ips_move_with_what_they_let_in_and_out(lab: Lab, implementation: Implementation) -> None:
    pair = Pair(*linked(lab), implementation)
    one, other = pair.here.host, pair.there.host
    ping(one, THERE4)
    stranger = text(os.urandom(31) + b"\x40")
    wg(one, "set", "wg0", "peer", stranger, "allowed-ips", f"{THERE4}/32")
    owners = dict(line.split("\t") for line in wg(one, "show", "wg0", "allowed-ips").splitlines())
    assert owners == {text(pair.other.public_key): "fd09::2/128", stranger: f"{THERE4}/32"}
    assert not reaches(one, THERE4)
    assert not reaches(other, HERE4)
    ping(other, HERE6)
    pair.set_one("allowed-ips", "10.9.0.0/24,fd09::2/128")
    assert not reaches(one, THERE4), "the longer prefix decides"
    wg(one, "set", "wg0", "peer", stranger, "remove")
    ping(one, THERE4)
    ping(other, HERE4)
    pair.set_one("allowed-ips", "")
    assert not reaches(other, HERE6)
    pair.set_one("allowed-ips", f"{THERE4}/32")
    ping(other, HERE4)


def test_a_peer_with_hundreds_of_allowed_ips_has_them_all(lab: Lab, implementation: Implementation) -> None:
    pair = Pair(*linked(lab), implementation)
    fours = [f"10.{20 + n // 200}.{n % 200}.0/{24 + n % 9}" for n in range(600)]
    sixes = [f"fd10:{n:x}::/{64 + n % 65}" for n in range(1, 601)]
    pair.one.set_peer(Peer(pair.other.public_key, [*fours, *sixes, f"{THERE4}/32"]))
    ((_, told),) = [line.split("\t") for line in wg(pair.here.host, "show", "wg0", "allowed-ips").splitlines()]
    assert sorted(told.split()) == sorted([*fours, *sixes, f"{THERE4}/32"])
    inside = ["10.20.7.0", "10.22.199.0", "fd10:1::", "fd10:258::"]
    nodad = {True: " nodad", False: ""}
    pair.there.host.ip([f"address add {each} dev wg0{nodad[':' in each]}" for each in inside])
    for each in inside:
        ping(pair.here.host, each)


def test_a_public_key_of_low_order_has_nothing_sent_to_it(lab: Lab, implementation: Implementation) -> None:
    here, there = linked(lab)
    one = implementation.start(here.host, "10.9.0.1/24")
    there.host.nft(
        "table inet heard {\n chain arriving {\n  type filter hook prerouting priority raw\n"
        "  udp dport 7777 counter\n }\n}\n"
    )

    def heard() -> int:
        rules = there.host.run(["nft", "list", "table", "inet", "heard"]).stdout
        return int(rules.split("packets ")[1].split()[0])

    for number, key in enumerate(LOW_ORDER, start=2):
        inside = f"10.9.0.{number}"
        words = ["endpoint", f"{there.ipv4}:7777", "allowed-ips", f"{inside}/32", "persistent-keepalive", "1"]
        wg(here.host, "set", "wg0", "peer", text(key), *words)
        here.host.run(["ping", "-c2", "-i0.02", "-W0.1", inside], check=False)
    told = wg(here.host, "show", "wg0", "transfer").splitlines()
    assert len(told) >= len(LOW_ORDER) - 1
    assert all(line.endswith("\t0\t0") for line in told)
    assert heard() == 0
    wg(here.host, "set", "wg0", "peer", text(os.urandom(31) + b"\x40"), *words)
    here.host.run(["ping", "-c2", "-i0.02", "-W0.1", inside], check=False)
    eventually(lambda: heard() > 0, what="an initiation for an honest key")
    assert one.process.poll() is None


def test_an_interface_that_goes_away_under_load_ends_its_program_alone(
    lab: Lab, implementation: Implementation
) -> None:
    pair = Pair(*linked(lab), implementation)
    one, other = pair.here.host, pair.there.host
    ping(one, THERE4)
    for host, address in ((one, THERE4), (other, HERE4), (one, "fd09::2"), (other, HERE6)):
        host.popen(["ping", "-q", "-f", "-s", "1200", address], stdout=-3, stderr=-3)
    before = pair.other.peer(pair.one.public_key).received
    eventually(lambda: pair.other.peer(pair.one.public_key).received > before + 500_000, what="the load")
    one.ip(["link delete dev wg0"])
    pair.one.process.wait(60)
    assert "wg0" not in one.run(["ip", "-o", "link"]).stdout
    # The link goes as well, and with it the other's only way.
    other.ip([f"link delete dev {pair.there.interface}"])
    assert pair.other.peer(pair.one.public_key).received > before
    assert pair.other.process.poll() is None


def test_a_link_that_comes_back_is_used_again(lab: Lab, implementation: Implementation) -> None:
    pair = Pair(*linked(lab), implementation)
    one, end = pair.here.host, pair.here
    carry(one, pair.there.host, THERE4)
    one.ip([f"link set dev {end.interface} down"])
    assert not reaches(one, THERE4)
    one.ip([f"link set dev {end.interface} up"])
    eventually(lambda: reaches(one, THERE4), what="an answer over the link that is back")
