"""A better route over another interface is taken without loss, though a router drops what has the old address there.

As the kernel's own test has it: "another interface route takes precedence over an ongoing one".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rustguard_py.lab.hosts import Lab
from support.better_route import lost_meanwhile, lost_pings, roads
from support.engines import needs_native
from support.product import INNER, OPEN, POOL, Site, eventually


@pytest.mark.parametrize(
    ("engine", "options", "family"),
    [
        pytest.param("portable", {}, 4, id="portable-4"),
        pytest.param("portable", {}, 6, id="portable-6"),
        pytest.param("native", {}, 4, marks=needs_native, id="sockets-4"),
        pytest.param("native", {}, 6, marks=needs_native, id="sockets-6"),
        pytest.param("native", {"uring": True}, 6, marks=needs_native, id="uring-6"),
        pytest.param("native", {"xdp": True}, 4, marks=needs_native, id="xdp-4"),
    ],
)
def test_a_better_route_over_another_interface_costs_at_most_the_ping_on_its_way(
    lab: Lab, tmp_path: Path, engine: str, options: dict[str, Any], family: int
) -> None:
    # A ping may leave after the kernel has changed the route and before we have read of it.
    assert sum(lost_pings(lab, tmp_path, engine, options, family)) <= 1


# How often Ethernet is plugged in, at most.
_TRIES = 4


def test_a_client_that_joined_loses_no_ping_to_a_better_route(lab: Lab, tmp_path: Path) -> None:
    """One ping may be on its way to us while the kernel already has the new route, and we don't know it yet.

    The kernel's own WireGuard looks at the route per packet, so it has no such moment. wireguard-go has it, too: it
    learns of the route by netlink as we do. It is short, and a machine whose cores are taken makes it longer. So one
    change without a loss is enough, of a few.
    """
    site = Site(lab, tmp_path)
    home, laptop = site.home(), site.machine("laptop")
    there = roads(lab, laptop.host, home.host)
    home.serve(f"--pool {POOL} {OPEN}")
    laptop.join(str(there.far.ipv4))

    def is_by(address: object) -> bool:
        return str(home.peers()["laptop"]["endpoint"]).startswith(f"{address}:")

    seen = []
    for _ in range(_TRIES):
        seen.append(lost_meanwhile(there, [(laptop.host, INNER), (home.host, "10.150.0.2")]))
        eventually(lambda: is_by(there.ethernet.ipv4), 40, "the new endpoint")
        if not any(seen[-1]):
            break
        there.unplug()
        eventually(lambda: laptop.pings(INNER) and is_by(there.wifi.ipv4), what="the old way")
    print(f"better route: joined, pings lost at each change: {seen}")
    assert max(map(sum, seen)) <= 2
    assert min(map(sum, seen)) == 0
