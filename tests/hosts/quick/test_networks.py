"""A file with thousands of allowed networks, and what a second `up` leaves alone while it changes the others."""

from __future__ import annotations

import random
import re
import time
from ipaddress import IPv4Network

import pytest

from rustguard_py.lab.hosts import Lab
from support.quick import PORT, Lan, Quick, lan
from support.route_events import deleted_routes

# As many as a list of a country's networks has.
MANY = 11_216
SECONDS = 10.0


@pytest.fixture
def net(lab: Lab) -> Lan:
    return lan(lab)


def networks(seed: int, number: int = MANY) -> set[str]:
    """Return networks of 1.0.0.0 to 9.255.255.255."""
    chosen: set[str] = set()
    source = random.Random(seed)
    while len(chosen) < number:
        length = source.randint(16, 28)
        address = source.randint(0x01000000, 0x09FFFFFF) >> 32 - length << 32 - length
        chosen.add(str(IPv4Network((address, length))))
    return chosen


def routes(host: Quick) -> set[str]:
    return {line.split()[0] for line in host.says("ip", "route", "show", "dev", "wg0").splitlines()}


def test_thousands_of_networks_take_seconds_and_a_route_that_stays_is_never_gone(net: Lan) -> None:
    laptop = net.laptop
    end = f"Endpoint = 192.0.2.2:{PORT}"
    first, second = networks(1), networks(2)
    stays = set(sorted(first)[: MANY // 4])

    def takes(behind: set[str]) -> float:
        laptop.file("Address = 10.99.0.1/32", net.home.peer(f"AllowedIPs = {', '.join(sorted(behind))}\n{end}"))
        began = time.monotonic()
        laptop.run("up wg0")
        took = time.monotonic() - began
        assert routes(laptop) == {each.removesuffix("/32") for each in behind}
        return took

    assert takes(first) < SECONDS
    with deleted_routes(laptop.host) as gone:
        assert takes(second | stays) < SECONDS
    assert first - second - stays <= set(gone)
    assert not stays & set(gone)


@pytest.mark.parametrize(
    "after",
    [
        # The only address, another one of the same network, and one whose network takes the place of a route.
        "10.98.0.1/32, fd98::1/128",
        "10.99.0.2/24, fd99::2/64",
        "10.99.0.1/32, fd99::1/128",
    ],
)
def test_another_address_leaves_the_routes(net: Lan, after: str) -> None:
    laptop = net.laptop
    peer = net.home.peer("AllowedIPs = 10.7.0.0/16, 10.99.0.0/24, fd07::/32, fd99::/64\n")
    laptop.file("Address = 10.99.0.1/24, fd99::1/64", peer)
    laptop.run("up wg0")
    laptop.file(f"Address = {after}", peer)
    with deleted_routes(laptop.host) as gone:
        laptop.run("up wg0")
    assert not {"10.7.0.0/16", "fd07::/32"} & set(gone)
    assert "10.7.0.0/16" in routes(laptop)
    for destination in ("10.7.0.1", "10.99.0.9", "fd07::1", "fd99::9"):
        assert "dev wg0" in laptop.says("ip", "route", "get", destination)
    shown = laptop.says("ip", "-o", "address", "show", "dev", "wg0")
    assert set(re.findall(r"inet6? (\S+)", shown)) == set(after.split(", "))
    laptop.file("Address = 10.99.0.1/24, fd99::1/64", peer)
    laptop.run("up wg0")
    assert "dev wg0" in laptop.says("ip", "route", "get", "10.7.0.1")
