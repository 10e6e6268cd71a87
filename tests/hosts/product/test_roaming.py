"""The client's address changes, also from one family to the other, and its traffic goes on."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import HOME4, HOME6, INNER, OPEN, POOL, Machine, Pinging, Site, eventually

# Of five a second. The row says one second; a program that has no core notices later.
_MAY_BE_LOST = 15


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


def _endpoint(home: Machine) -> str:
    endpoint: str = home.peers()["laptop"]["endpoint"]
    return endpoint.rpartition(":")[0].strip("[]")


def _is_at(home: Machine, address: str) -> bool:
    return _endpoint(home) == address


@pytest.mark.fault(13)
def test_a_new_ipv4_address_costs_at_most_a_second(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool {POOL} {OPEN}")
    laptop.join(HOME4)
    pinging = Pinging.begin(laptop, INNER)
    for address in ("198.51.100.5", "198.51.100.6"):
        laptop.own_end.readdress(f"{address}/29")
        pinging.more(5)
        eventually(partial(_is_at, home, address), what="the exact endpoint")
    lost = pinging.end()
    print(f"row 13: two new IPv4 addresses, {len(lost)} pings of 5/s lost; the endpoint is exact")
    assert len(lost) <= 2 * _MAY_BE_LOST


@pytest.mark.fault(13)
def test_the_server_reaches_a_silent_client_that_moved(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool {POOL} {OPEN}")
    laptop.join(HOME4)
    pinging = Pinging.begin(home, "10.150.0.2")
    laptop.own_end.readdress("198.51.100.5/29")
    pinging.more(5)
    lost = pinging.end()
    print(f"row 13: moved while only the server sends, {len(lost)} pings of 5/s lost")
    assert len(lost) <= _MAY_BE_LOST
    eventually(lambda: _endpoint(home) == "198.51.100.5", what="the exact endpoint")


@pytest.mark.fault(13)
def test_a_lost_family_is_replaced_by_the_other(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home, own_run=True)
    laptop.name_server(f"{HOME4} home.test\n{HOME6} home.test\n")
    home.serve(f"--pool {POOL} {OPEN}")
    laptop.join("home.test")
    kept = {4: laptop.own_end.address4, 6: laptop.own_end.address6}
    version = 6 if ":" in _endpoint(home) else 4
    pinging = Pinging.begin(laptop, INNER)
    for _ in range(2):
        other = 10 - version
        began = time.monotonic()
        laptop.own_end.drop_address(version)
        expected = kept[other]
        assert expected is not None
        eventually(partial(_is_at, home, str(expected.ip)), what="the other family")
        pinging.more(5)
        print(
            f"row 13: from IPv{version} to IPv{other}; noticed by the server within {time.monotonic() - began:.1f} s"
        )
        laptop.own_end.readdress(str(kept[version]))
        version = other
    lost = pinging.end()
    print(f"row 13: from one family to the other and back, {len(lost)} pings of 5/s lost")
    assert len(lost) <= 2 * _MAY_BE_LOST
