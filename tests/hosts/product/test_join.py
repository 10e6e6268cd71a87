"""Joining, and coming back, as a person does it: the commands themselves, in hosts of a lab."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rustguard_py.engine import has_native
from rustguard_py.lab.hosts import Lab
from rustguard_py.model.sudo import as_root
from support.engines import on_both_engines
from support.product import HOME4, HOME6, INNER, OPEN, PATIENCE, POOL, TOKEN, Site, eventually


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


@pytest.mark.parametrize("outer", [HOME4, HOME6], ids=["IPv4", "IPv6"])
def test_a_join_carries_traffic_both_ways_over_both_families(site: Site, outer: str) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 {OPEN}")
    began = time.monotonic()
    program = laptop.start(f"join {outer}", TOKEN)
    eventually(lambda: laptop.alive(program) and laptop.pings(INNER, 0.2))
    seconds = time.monotonic() - began
    ours, theirs = laptop.status()["addresses"], home.status()["addresses"]
    assert ours[0] == "10.150.0.2/24"
    for machine, addresses in ((laptop, theirs), (home, ours)):
        assert len(addresses) == 2
        assert all(machine.reaches(address.split("/")[0]) for address in addresses)
    assert outer in laptop.status()["peers"][0]["endpoint"]
    print(f"from command to first ping answered over {outer}: {seconds:.2f} s")
    assert seconds < 30


@pytest.mark.parametrize("server", ["native", "portable"])
@pytest.mark.parametrize("client", ["native", "portable"])
def test_each_engine_talks_to_each(site: Site, server: str, client: str) -> None:
    if "native" in (server, client) and not has_native():
        pytest.skip("the native plane isn't built here (no cargo at installation)")
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 {OPEN} --engine {server}")
    laptop.join(HOME4, f"--engine {client}")
    assert (home.status()["engine"], laptop.status()["engine"]) == (server, client)
    for address in home.status()["addresses"]:
        assert laptop.reaches(address.split("/")[0])
    size = ["-s", "1392", "-M", "do"]
    laptop.host.run(["ping", "-c", "20", "-i", "0.01", "-W", "20", "-q", *size, INNER])


def test_who_joined_comes_back_without_token_or_window_to_the_same_address(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 {OPEN}")
    first = laptop.join(HOME4)
    addresses = laptop.status()["addresses"]
    home.run("close")
    for server in ("", HOME4):
        first.terminate()
        assert first.wait(PATIENCE) == 0
        began = time.monotonic()
        first = laptop.join(server, token=None)
        print(f"`join {server}` without a token reached the server after {time.monotonic() - began:.2f} s")
        assert laptop.status()["addresses"] == addresses
    assert list(home.peers()) == ["laptop"]


def test_what_save_only_kept_connects_later(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 {OPEN}")
    before = laptop.network()
    said = laptop.run(f"join {HOME4} --save-only --name laptop", TOKEN).stderr
    assert f"To connect: {as_root('rustguard join')}" in said
    assert laptop.network() == before
    assert laptop.sockets() == []
    home.run("close")
    laptop.join("", token=None)
    eventually(lambda: home.peers()["laptop"]["state"] == "active", what="its state")


def test_name_interface_and_mtu_are_what_was_asked_and_a_taken_name_gets_a_number(site: Site) -> None:
    home = site.home()
    one, other = site.client("one", home), site.client("other", home)
    home.serve(f"--pool 10.150.0.0/24 {OPEN} --mtu 1380 --interface wgserver --port 4242")
    one.join(f"{HOME4}:4242", "--name tablet --interface homenet")
    other.join("198.51.100.9:4242", "--name tablet")
    assert (one.status()["name"], other.status()["name"]) == ("tablet", "tablet-2")
    assert sorted(home.peers()) == ["tablet", "tablet-2"]
    for machine, interface in ((home, "wgserver"), (one, "homenet"), (other, "rg0")):
        assert machine.status()["interface"] == interface
        assert "mtu 1380" in machine.host.run(["ip", "link", "show", interface]).stdout
        assert machine.status()["mtu"] == 1380


def test_pool6_none_is_ipv4_only_and_stays_so(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    server = home.serve(f"--pool 10.150.0.0/24 --pool6 none {OPEN}")
    laptop.join(HOME4)
    assert laptop.status()["addresses"] == ["10.150.0.2/24"]
    server.terminate()
    assert server.wait(PATIENCE) == 0
    home.serve("")
    assert home.status()["addresses"] == ["10.150.0.1/24"]
    assert home.status()["pool"]["network6"] is None


def test_a_restart_without_options_keeps_pool_peers_ula_port_and_mtu(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    server = home.serve(f"--pool 10.150.0.0/24 {OPEN} --port 4242 --mtu 1380")
    laptop.join(f"{HOME4}:4242")
    before = home.status()
    server.terminate()
    assert server.wait(PATIENCE) == 0
    home.serve("", token=None)
    after = home.status()
    for member in ("addresses", "pool", "port", "mtu", "public_key", "fingerprint"):
        assert after[member] == before[member]
    assert after["mtu"] == 1380
    assert home.peers()["laptop"]["address4"] == "10.150.0.2"
    eventually(lambda: laptop.pings(INNER), what="traffic after the restart")


def test_daemon_comes_back_when_connected_leaves_the_terminal_and_ends_on_sigterm(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 {OPEN}")
    before = laptop.network()
    # It would not come back if anything of it still held the pipes that this reads to their end.
    said = laptop.run(f"join {HOME4} --daemon", TOKEN).stderr
    assert "In the background, process" in said
    pid = laptop.status()["pid"]
    assert f"process {pid}." in said
    eventually(lambda: laptop.pings(INNER))
    log = laptop.state.with_suffix(".log")
    eventually(lambda: "Connected to" in log.read_text(), what="its word in the log")
    assert log.stat().st_mode & 0o777 == 0o600
    tty = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4]
    assert tty == "0"
    laptop.host.run(["kill", str(pid)])
    eventually(lambda: not Path(f"/proc/{pid}").exists(), what="its end")
    assert laptop.network() == before
    assert laptop.sockets() == []
    print(f"in the background as process {pid}; its log {log.stat().st_size} bytes")


def test_two_clients_reach_each_other_when_the_server_forwards(site: Site) -> None:
    home = site.home()
    one, other = site.client("one", home), site.client("other", home)
    home.serve(f"--pool 10.150.0.0/24 {OPEN}")
    one.join(HOME4)
    other.join("198.51.100.9")
    theirs = [address.split("/")[0] for address in other.status()["addresses"]]
    assert not one.pings(theirs[0], 0.3)
    assert "net.ipv4.ip_forward is 0" in " ".join(home.status()["notes"])
    home.host.forward()
    assert all(one.reaches(address) for address in theirs)
    print("from client to client: nothing while net.ipv4.ip_forward is 0 on the server, all with it set")


@on_both_engines
def test_a_server_whose_link_is_down_goes_on_pairing_and_begins_when_it_comes_up(site: Site, engine: str) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool {POOL} {OPEN} --engine {engine}")
    home.host.ip(["link set rg0 down"])
    laptop.start(f"join {HOME4} --name laptop --engine {engine}", TOKEN)
    # The address is given and kept, and no handshake is answered.
    eventually(lambda: "laptop" in home.peers(), what="the pairing")
    time.sleep(1)
    assert home.status()["counters"]["handshakes"] == 0
    assert not laptop.pings(INNER)
    home.host.ip(["link set rg0 up"])
    eventually(lambda: laptop.pings(INNER), 20, "a ping")
