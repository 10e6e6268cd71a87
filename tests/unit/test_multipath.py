"""Routes over several interfaces: what the kernel is told, how often, and what is put back in the end."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, cast

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from rustguard_py.model.errors import RustGuardError
from rustguard_py.system import multipath
from rustguard_py.system.kernel_view import Link, View, split
from rustguard_py.system.multipath import Multipath

FOUR, SIX = ip_network("10.0.0.0/8"), ip_network("fd00::/64")
HASHES = ("ipv4/fib_multipath_hash_policy", "ipv6/fib_multipath_hash_policy")
FILTERS = tuple(f"ipv4/conf/{name}/rp_filter" for name in ("all", "wg0", "wg1"))


class Kernel:
    """The system's settings in a folder, and the routes that it was told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.echoed: list[str] = []
        self.refused = 0
        monkeypatch.setattr(multipath, "_NET_SYSCTLS", folder)
        monkeypatch.setattr(multipath, "with_netlink", lambda work: work(cast(Any, self)))
        monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (7, "wg0"), (8, "wg1")])
        sources = (ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64"))
        self.routes = Multipath(("wg0", "wg1"), sources, self.echoed.append)

    def has(self, settings: Mapping[str, str]) -> None:
        for name, value in settings.items():
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(f"{value}\n")

    def settings(self) -> dict[str, str]:
        found = (each for each in self._folder.rglob("*") if each.is_file())
        return {str(each.relative_to(self._folder)): each.read_text().strip() for each in found}

    def route(self, verb: str, **what: Any) -> None:
        if self.refused:
            raise NetlinkError(self.refused)
        self.told.append((verb, what))

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        told, self.told = self.told, []
        return told


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path / "net", monkeypatch)


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (("0", "0", "0"), ("0", "0", "0")),
        (("1", "0", "0"), ("1", "2", "2")),
        (("0", "1", "0"), ("0", "2", "0")),
        (("1", "2", "1"), ("1", "2", "2")),
        (("2", "1", "1"), ("2", "1", "1")),
    ],
)
def test_a_strict_filter_is_loosened_where_it_holds_and_all_settings_come_back(
    kernel: Kernel, filters: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    before = dict(zip((*FILTERS, *HASHES), (*filters, "0", "1"), strict=True))
    kernel.has(before)
    kernel.routes.prepare()
    assert kernel.settings() == dict(zip((*FILTERS, *HASHES), (*wanted, "1", "1"), strict=True))
    changed = sum(one != other for one, other in zip(filters, wanted, strict=True)) + 1
    assert len(kernel.echoed) == changed
    assert "[#] sysctl -w net.ipv4.fib_multipath_hash_policy=1" in kernel.echoed
    kernel.routes.close()
    assert kernel.settings() == before
    assert kernel.echoed[-1] == "[#] sysctl -w net.ipv4.fib_multipath_hash_policy=0"
    kernel.routes.close()
    assert (len(kernel.echoed), kernel.routes.notes) == (2 * changed, [])


def test_a_setting_that_is_not_there_is_left_and_one_that_is_refused_is_noted(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    kernel.has({HASHES[1]: "0"})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        kernel.routes.prepare()
    assert kernel.routes.notes == [
        "net.ipv6.fib_multipath_hash_policy can't be set to 1 (Read-only file system): flows may not be spread."
    ]
    kernel.routes.close()
    assert (kernel.settings(), kernel.echoed) == ({HASHES[1]: "0"}, [])


def test_a_route_has_a_hop_for_each_interface_and_one_hop_is_no_multipath(kernel: Kernel) -> None:
    assert kernel.routes.differs({FOUR: (0,)})
    kernel.routes.apply({FOUR: (0, 1), SIX: (0, 1)})
    four, six = kernel.take()
    assert four == (
        "replace",
        {"dst": "10.0.0.0/8", "family": 2, "prefsrc": "10.0.0.1", "multipath": [{"oif": 7}, {"oif": 8}]},
    )
    hops = [{"oif": index, "gateway": "fe80::1"} for index in (7, 8)]
    assert six == ("replace", {"dst": "fd00::/64", "family": 10, "prefsrc": "fd00::1", "multipath": hops})
    assert kernel.echoed == [
        "[#] ip -4 route replace 10.0.0.0/8 src 10.0.0.1 nexthop dev wg0 nexthop dev wg1",
        "[#] ip -6 route replace fd00::/64 src fd00::1 nexthop via fe80::1 dev wg0 nexthop via fe80::1 dev wg1",
    ]
    kernel.routes.apply({FOUR: (1,), SIX: (0, 1)})
    assert kernel.take() == [
        ("replace", {"dst": "10.0.0.0/8", "family": 2, "prefsrc": "10.0.0.1", "oif": 8}),
    ]
    assert kernel.echoed[2:] == ["[#] ip -4 route replace 10.0.0.0/8 src 10.0.0.1 dev wg1"]


def test_only_what_differs_is_told_and_what_is_left_out_is_removed(kernel: Kernel) -> None:
    wanted = {FOUR: (0, 1), SIX: (0,)}
    kernel.routes.apply(wanted)
    kernel.take()
    assert not kernel.routes.differs(wanted)
    kernel.routes.apply(wanted)
    assert kernel.take() == []
    kernel.routes.apply({SIX: (0,)})
    assert kernel.take() == [("del", {"dst": "10.0.0.0/8", "family": 2})]
    assert kernel.echoed[-1] == "[#] ip -4 route delete 10.0.0.0/8"
    assert kernel.routes.differs(wanted)
    # The end removes the rest, once, and then nothing is set any more.
    kernel.routes.close()
    assert [(verb, what["dst"]) for verb, what in kernel.take()] == [("del", "fd00::/64")]
    kernel.routes.close()
    kernel.routes.apply(wanted)
    kernel.routes.restore()
    assert kernel.take() == []


def test_a_refusal_is_logged_once_and_tried_again(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    kernel.refused = errno.ENODEV
    for _ in range(3):
        kernel.routes.apply({FOUR: (0, 1)})
    assert len(caplog.records) == 1
    assert kernel.routes.differs({FOUR: (0, 1)})
    kernel.refused = 0
    kernel.routes.apply({FOUR: (0, 1)})
    assert len(kernel.take()) == 1
    kernel.refused = errno.ENODEV
    kernel.routes.apply({FOUR: (0,)})
    assert len(caplog.records) == 2
    # One that is gone went with its interface.
    kernel.routes.apply({})
    assert not kernel.routes.differs({})


def test_what_another_program_removed_is_made_again_or_still_missing(kernel: Kernel) -> None:
    wanted = {FOUR: (0, 1), SIX: (0,)}
    kernel.routes.apply(wanted)
    first = kernel.take()
    kernel.refused = errno.EPERM
    with pytest.raises(RustGuardError):
        kernel.routes.restore()
    assert not kernel.routes.differs(wanted)
    kernel.refused = 0
    kernel.routes.restore()
    assert kernel.take() == first


@pytest.mark.parametrize(
    ("up", "found", "holds"),
    [
        ((True, True), {7, 8}, True),
        ((True, True), {7}, False),
        ((True, True), set(), False),
        # One that is down is left out of it.
        ((True, False), {7}, True),
        ((True, False), {8}, False),
        ((False, False), set(), True),
        # Another program's hop in the same route doesn't matter.
        ((True, True), {7, 8, 3}, True),
    ],
)
def test_a_route_holds_if_it_leads_to_all_that_are_up(
    kernel: Kernel, up: tuple[bool, bool], found: set[int], holds: bool
) -> None:
    kernel.routes.apply({FOUR: (0, 1)})
    links = {"wg0": Link(7, up[0], 1420), "wg1": Link(8, up[1], 1420), "eth0": Link(3, True, 1500)}
    routes = {(254, split("10.0.0.0/8")): [frozenset({3}), frozenset(found)]}
    assert kernel.routes.holds(View(links, {}, routes, set())) is holds
