"""Which peer an inner address belongs to."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.model.endpoint import Network
from rustguard_py.planes.allowed_ips import AllowedIps


def packed(name: str) -> bytes:
    return ip_address(name).packed


def test_the_longest_prefix_wins_in_both_families() -> None:
    table = AllowedIps[str]()
    table.set("all", [ip_network("0.0.0.0/0"), ip_network("::/0")])
    table.set("net", [ip_network("10.0.0.0/8"), ip_network("fd00::/16")])
    table.set("host", [ip_network("10.1.2.3/32"), ip_network("fd00::1/128")])
    found = [
        table.find(packed(name)) for name in ("10.1.2.3", "10.1.2.4", "11.0.0.1", "fd00::1", "fd00::2", "fe80::1")
    ]
    assert found == ["host", "net", "all", "host", "net", "all"]


def test_a_network_moves_to_whom_it_is_given_last() -> None:
    table = AllowedIps[str]()
    table.set("one", [ip_network("10.0.0.0/24"), ip_network("10.0.1.0/24")])
    table.set("two", [ip_network("10.0.0.0/24")])
    assert table.find(packed("10.0.0.1")) == "two"
    table.remove("one")
    assert table.find(packed("10.0.0.1")) == "two"
    assert table.find(packed("10.0.1.1")) is None


def test_setting_again_replaces_and_removing_leaves_nothing() -> None:
    table = AllowedIps[str]()
    table.set("one", [ip_network("10.0.0.0/24")])
    table.set("one", [ip_network("10.0.1.0/24")])
    assert table.find(packed("10.0.0.1")) is None
    table.remove("one")
    table.remove("one")
    assert table.find(packed("10.0.1.1")) is None
    assert table.find(packed("::")) is None


NETWORKS = st.builds(
    lambda address, bits: ip_network((address << 24, bits), strict=False),
    st.integers(0, 255),
    st.integers(0, 12),
)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(NETWORKS, max_size=4))), st.integers(0, 2**32 - 1))
def test_it_agrees_with_a_list_that_is_searched(steps: list[tuple[str, list[Network]]], address: int) -> None:
    table = AllowedIps[str]()
    plain: dict[Network, str] = {}
    for owner, networks in steps:
        table.set(owner, networks)
        plain = {network: who for network, who in plain.items() if who != owner} | dict.fromkeys(networks, owner)
    inside = [network for network in plain if ip_address(address) in network]
    expected = plain[max(inside, key=lambda network: network.prefixlen)] if inside else None
    assert table.find(address.to_bytes(4, "big")) == expected


def test_10000_prefixes_are_as_quick_as_one() -> None:
    def cost(table: AllowedIps[int], address: bytes) -> float:
        best = float("inf")
        for _ in range(20):
            begin = time.perf_counter()
            for _ in range(1000):
                table.find(address)
            best = min(best, time.perf_counter() - begin)
        return best * 1000

    small, large = AllowedIps[int](), AllowedIps[int]()
    small.set(1, [ip_network("10.0.0.1/32")])
    for number in range(1, 10_001):
        large.set(number, [ip_network((0x0A000000 + number, 32))])
    one, many = cost(small, packed("10.0.0.1")), cost(large, packed("10.0.39.16"))
    print(f"allowed IPs: {one:.2f} µs a look-up with 1 prefix, {many:.2f} µs with 10,000")
    assert large.find(packed("10.0.39.16")) == 10_000
    # A search through all of them would take thousands of times as long.
    assert many < 50 * one
