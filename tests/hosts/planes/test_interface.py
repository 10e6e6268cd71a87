"""Setting up an interface and undoing it, each test in a network namespace of its own."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.system import interface
from rustguard_py.system.interface import (
    InterfaceSetup,
    free_interface_name,
    interface_exists,
    require_tun,
    set_up,
    why_no_ipv6,
)
from rustguard_py.system.networks import taken_networks
from support.machine import why_no_namespaces
from support.other_user import as_user, needs_other_users

pytestmark = pytest.mark.skipif(why_no_namespaces() != "", reason=why_no_namespaces())

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001


def in_fresh_network(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test in a thread of its own with a new network namespace, which ends with the thread."""

    @functools.wraps(test)
    def wrapped() -> None:
        outcome: list[BaseException] = []

        def run() -> None:
            try:
                assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
                test()
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        for error in outcome:
            raise error

    return wrapped


@contextmanager
def tun(name: str) -> Iterator[None]:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
        yield
    finally:
        os.close(descriptor)


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


LAYOUT = InterfaceSetup(
    "rg0",
    1420,
    (ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")),
    (ip_network("10.78.0.0/16"), ip_network("fd78::/48")),
    gso_max_segs=45,
)


@in_fresh_network
def test_an_interface_gets_its_mtu_addresses_and_routes_and_each_change_is_echoed() -> None:
    echoed: list[str] = []
    with tun("rg0"):
        set_up(LAYOUT, echoed.append)
        link = ip("-d", "link", "show", "rg0")
        assert "mtu 1420" in link
        assert "gso_max_segs 45" in link
        assert ",UP," in link
        assert "10.77.0.1/24" in ip("-4", "address", "show", "rg0")
        address6 = ip("-6", "address", "show", "rg0")
        assert "fd77::1/64" in address6
        assert "tentative" not in address6
        assert "fe80" not in address6
        assert "10.78.0.0/16" in ip("-4", "route", "show", "dev", "rg0")
        assert "fd78::/48" in ip("-6", "route", "show", "dev", "rg0")
    assert echoed == [
        "[#] ip link set dev rg0 addrgenmode none",
        "[#] ip link set dev rg0 gso_max_segs 45",
        "[#] ip link set mtu 1420 up dev rg0",
        "[#] ip -4 address add 10.77.0.1/24 dev rg0",
        "[#] ip -6 address add fd77::1/64 dev rg0 nodad",
        "[#] ip -4 route add 10.78.0.0/16 dev rg0",
        "[#] ip -6 route add fd78::/48 dev rg0",
    ]


@in_fresh_network
def test_every_echoed_command_is_one_that_ip_takes() -> None:
    echoed: list[str] = []
    with tun("rg0"):
        set_up(LAYOUT, echoed.append)
    with tun("rg0"):
        for line in echoed:
            prompt, *command = line.split()
            assert prompt == "[#]"
            subprocess.run(command, check=True)
        assert "10.78.0.0/16" in ip("-4", "route", "show", "dev", "rg0")


@in_fresh_network
def test_undo_takes_everything_back_and_may_be_called_twice() -> None:
    with tun("rg0"):
        applied = set_up(LAYOUT, lambda _: None)
        echoed: list[str] = []
        applied.undo(echoed.append)
        link = ip("link", "show", "rg0")
        assert "mtu 1500" in link
        assert "UP" not in link
        assert ip("address", "show", "rg0").count("inet") == 0
        assert ip("route", "show") == ""
        assert echoed[0] == "[#] ip -6 route delete fd78::/48 dev rg0"
        assert echoed[-1] == "[#] ip link set mtu 1500 down dev rg0"
        told = len(echoed)
        applied.undo(echoed.append)
        assert len(echoed) == told


@in_fresh_network
def test_undo_after_the_interface_is_gone_says_and_does_nothing() -> None:
    with tun("rg0"):
        applied = set_up(LAYOUT, lambda _: None)
    echoed: list[str] = []
    applied.undo(echoed.append)
    assert echoed == []


@in_fresh_network
def test_a_change_that_fails_leaves_nothing_of_those_before() -> None:
    impossible = InterfaceSetup("rg0", 1420, LAYOUT.addresses, (ip_network("10.78.0.0/16"),) * 2)
    with tun("rg0"):
        with pytest.raises(RustGuardError, match="there already") as caught:
            set_up(impossible, lambda _: None)
        assert "ip route" in caught.value.fix
        assert ip("address", "show", "rg0").count("inet") == 0
        assert "UP" not in ip("link", "show", "rg0")


@in_fresh_network
def test_a_missing_interface_is_an_error_not_a_crash() -> None:
    with pytest.raises(RustGuardError, match="no interface rg7"):
        set_up(InterfaceSetup("rg7", 1420), lambda _: None)


@in_fresh_network
def test_it_works_inside_a_running_event_loop() -> None:
    import asyncio

    async def main() -> list[tuple[Network, str]]:
        set_up(LAYOUT, lambda _: None)
        return taken_networks()

    with tun("rg0"):
        assert ip_network("10.77.0.0/24") in dict(asyncio.run(main()))


@in_fresh_network
def test_taken_networks_names_addresses_and_routes_once_and_leaves_out_default_routes() -> None:
    with tun("eth7"), tun("rg0"):
        set_up(InterfaceSetup("eth7", 1500, (ip_interface("192.168.7.5/24"),)), lambda _: None)
        set_up(LAYOUT, lambda _: None)
        ip("route", "add", "10.0.0.0/8", "via", "192.168.7.1")
        ip("route", "add", "default", "via", "192.168.7.1")
        ip("route", "add", "0.0.0.0/1", "via", "192.168.7.1")
        ip("route", "add", "128.0.0.0/1", "via", "192.168.7.1")
        ip("route", "add", "10.55.0.0/16", "dev", "eth7", "table", "77")
        taken = taken_networks(exclude=["rg0"])
        assert dict(taken) == {
            ip_network("192.168.7.0/24"): "address 192.168.7.5/24 on eth7",
            ip_network("10.0.0.0/8"): "route 10.0.0.0/8 via 192.168.7.1 on eth7",
        }
        everything = dict(taken_networks())
        assert everything[ip_network("fd77::/64")] == "address fd77::1/64 on rg0"
        assert everything[ip_network("fd78::/48")] == "route fd78::/48 on rg0"


@in_fresh_network
def test_a_point_to_point_address_takes_both_ends() -> None:
    with tun("ppp0"):
        ip("link", "set", "up", "dev", "ppp0")
        ip("address", "add", "10.1.0.1", "peer", "10.2.0.0/24", "dev", "ppp0")
        taken = dict(taken_networks())
        assert {ip_network("10.1.0.1/32"), ip_network("10.2.0.0/24")} <= set(taken)


@in_fresh_network
def test_the_first_free_name_is_the_lowest() -> None:
    assert free_interface_name() == "rg0"
    with tun("rg0"), tun("rg2"):
        assert free_interface_name() == "rg1"
        assert interface_exists("rg2")
    assert not interface_exists("rg2")


@needs_other_users
@in_fresh_network
def test_no_capability_is_refused_with_the_way_out() -> None:
    with tun("rg0"):
        with pytest.raises(RefusedError, match="CAP_NET_ADMIN") as caught:
            as_user(lambda: set_up(InterfaceSetup("rg0", 1420), lambda _: None))
        assert "as root" in caught.value.fix


@in_fresh_network
def test_switched_off_ipv6_is_noticed_and_the_refusal_says_so() -> None:
    assert why_no_ipv6() is None
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    assert "conf.all.disable_ipv6" in (why_no_ipv6() or "")
    with tun("rg0"), pytest.raises(RustGuardError, match="IPv6 is switched off"):
        set_up(LAYOUT, lambda _: None)


def test_a_missing_tun_device_tells_the_line_that_a_container_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(interface, "TUN_DEVICE", tmp_path / "tun")
    for container, line in (
        ("docker", "--device /dev/net/tun"),
        ("lxc", "lxc.mount.entry: /dev/net/tun"),
        (None, "modprobe tun"),
    ):
        monkeypatch.setattr("rustguard_py.system.container.kind", lambda container=container: container)
        with pytest.raises(RustGuardError, match="missing") as caught:
            require_tun()
        assert line in caught.value.fix
