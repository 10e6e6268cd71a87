"""How an interface is set up and taken back: each change in order, and all of them undone when one is refused."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, cast

import pytest

from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.system import interface
from rustguard_py.system.interface import InterfaceSetup, set_up
from rustguard_py.system.netlink_library import NetlinkError

LAYOUT = InterfaceSetup(
    "wg0",
    1280,
    (ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")),
    (ip_network("10.9.0.0/16"), ip_network("fd09::/64")),
    64,
)
UNDONE = [
    "[#] ip -6 route delete fd09::/64 dev wg0",
    "[#] ip -4 route delete 10.9.0.0/16 dev wg0",
    "[#] ip -6 address delete fd00::1/64 dev wg0",
    "[#] ip -4 address delete 10.0.0.1/24 dev wg0",
    "[#] ip link set mtu 1500 down dev wg0",
]


class Message(dict[str, Any]):
    get_attr = dict.get


class Kernel:
    """An interface 7 named wg0, and what it was told.

    Attributes:
        refuses: For each kind of change, the errors of the next calls; 0 for none.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.refuses: dict[str, list[int]] = {}
        self.echoed: list[str] = []
        monkeypatch.setattr(interface, "with_netlink", lambda work: work(cast(Any, self)))

    def set_up(self, layout: InterfaceSetup = LAYOUT) -> interface.Applied:
        return set_up(layout, self.echoed.append)

    def link_lookup(self, *, ifname: str) -> list[int]:
        return [7] if ifname == "wg0" else []

    def get_links(self, index: int) -> list[Message]:
        assert index == 7
        return [Message(IFLA_MTU=1500)]

    def get_addr(self, **what: Any) -> list[Message]:
        assert what == {"index": 7, "family": 10, "scope": 253}
        return [Message(IFA_ADDRESS="fe80::1", prefixlen=64)]

    def link(self, verb: str, **what: Any) -> None:
        kind = "quiet" if "IFLA_AF_SPEC" in what else "segments" if "gso_max_segs" in what else "link"
        self._tell(kind, verb, what)

    def addr(self, verb: str, **what: Any) -> None:
        self._tell("addr", verb, what)

    def route(self, verb: str, **what: Any) -> None:
        self._tell("route", verb, what)

    def _tell(self, kind: str, verb: str, what: dict[str, Any]) -> None:
        codes = self.refuses.get(kind, [])
        if codes and (code := codes.pop(0)):
            raise NetlinkError(code)
        self.told.append((kind, verb, what))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def test_it_is_set_up_in_order_and_undone_in_the_other_order_once(kernel: Kernel) -> None:
    applied = kernel.set_up()
    assert applied.notes == []
    quiet, *rest = kernel.told
    inner = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
    assert quiet == ("quiet", "set", {"index": 7, "IFLA_AF_SPEC": inner})
    assert rest == [
        ("segments", "set", {"index": 7, "gso_max_segs": 64}),
        ("link", "set", {"index": 7, "mtu": 1280, "state": "up"}),
        ("addr", "add", {"index": 7, "address": "10.0.0.1", "prefixlen": 24}),
        ("addr", "add", {"index": 7, "address": "fd00::1", "prefixlen": 64, "flags": 2}),
        ("route", "add", {"dst": "10.9.0.0/16", "oif": 7, "family": 2}),
        ("route", "add", {"dst": "fd09::/64", "oif": 7, "family": 10}),
    ]
    assert kernel.echoed == [
        "[#] ip link set dev wg0 addrgenmode none",
        "[#] ip link set dev wg0 gso_max_segs 64",
        "[#] ip link set mtu 1280 up dev wg0",
        "[#] ip -4 address add 10.0.0.1/24 dev wg0",
        "[#] ip -6 address add fd00::1/64 dev wg0 nodad",
        "[#] ip -4 route add 10.9.0.0/16 dev wg0",
        "[#] ip -6 route add fd09::/64 dev wg0",
    ]
    del kernel.told[:], kernel.echoed[:]
    for _ in range(2):
        applied.undo(kernel.echoed.append)
        assert kernel.echoed == UNDONE
    assert kernel.told == [
        ("route", "del", {"dst": "fd09::/64", "oif": 7, "family": 10}),
        ("route", "del", {"dst": "10.9.0.0/16", "oif": 7, "family": 2}),
        ("addr", "del", {"index": 7, "address": "fd00::1", "prefixlen": 64}),
        ("addr", "del", {"index": 7, "address": "10.0.0.1", "prefixlen": 24}),
        ("link", "set", {"index": 7, "mtu": 1500, "state": "down"}),
    ]


def test_when_a_change_is_refused_the_earlier_ones_are_undone(kernel: Kernel) -> None:
    kernel.refuses = {"route": [0, errno.EEXIST]}
    with pytest.raises(RustGuardError, match="ip -6 route add fd09::/64 dev wg0` was refused: it's there already"):
        kernel.set_up()
    assert kernel.echoed[-4:] == UNDONE[1:]
    # What is gone by then is skipped.
    kernel.refuses = {"route": [errno.EPERM], "addr": [0, 0, errno.ENODEV, errno.ENODEV]}
    with pytest.raises(RefusedError, match="CAP_NET_ADMIN"):
        kernel.set_up()
    assert kernel.echoed[-1:] == UNDONE[4:]
    assert UNDONE[3] not in kernel.echoed[-3:]


def test_an_interface_that_is_not_there_is_said_so(kernel: Kernel) -> None:
    with pytest.raises(RustGuardError, match="There is no interface wg1"):
        kernel.set_up(InterfaceSetup("wg1", 1420))
    assert (kernel.told, kernel.echoed) == ([], [])


def test_a_limit_of_segments_is_not_needed_but_permission_is(kernel: Kernel) -> None:
    kernel.refuses = {"segments": [errno.EOPNOTSUPP]}
    [note] = kernel.set_up().notes
    assert "The kernel refused `ip link set dev wg0 gso_max_segs 64`" in note
    kernel.refuses = {"segments": [errno.EPERM]}
    with pytest.raises(RefusedError, match="gso_max_segs 64"):
        kernel.set_up()
    del kernel.told[:]
    kernel.set_up(InterfaceSetup("wg0", 1280))
    assert [kind for kind, *_ in kernel.told] == ["quiet", "link"]


def test_an_interface_that_gets_ipv6_by_its_mtu_is_kept_quiet_then(kernel: Kernel) -> None:
    kernel.refuses = {"quiet": [errno.EAFNOSUPPORT]}
    kernel.set_up(InterfaceSetup("wg0", 1280))
    assert [each[:2] for each in kernel.told] == [("link", "set"), ("quiet", "set"), ("addr", "del")]
    assert kernel.told[2][2] == {"index": 7, "address": "fe80::1", "prefixlen": 64}
    # Without IPv6 there is nothing to keep quiet.
    del kernel.told[:]
    kernel.refuses = {"quiet": [errno.EAFNOSUPPORT] * 2}
    kernel.set_up(InterfaceSetup("wg0", 1200))
    assert [each[:2] for each in kernel.told] == [("link", "set")]


@pytest.mark.parametrize(
    ("code", "command", "text"),
    [
        (errno.EPERM, "ip link", "needs root"),
        (errno.EACCES, "ip -6 route", "IPv6 is switched off"),
        (errno.EOPNOTSUPP, "ip -6 route", "IPv6 is switched off"),
        (errno.EACCES, "ip -4 route", r"by the kernel \(EACCES\)"),
        (errno.EEXIST, "ip -4 route", "it's there already"),
        (errno.EINVAL, "ip -6 route", r"by the kernel \(EINVAL\)"),
        (9999, "ip link", r"by the kernel \(9999\)"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(code: int, command: str, text: str) -> None:
    error = interface.explain(NetlinkError(code), command + " add")
    with pytest.raises(RustGuardError, match=f"`{command} add` was refused.*{text}"):
        raise error
    assert error.fix
    assert isinstance(error, RefusedError) == (code == errno.EPERM)


def test_a_name_is_the_first_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["rg0", "rg2", "lo"]
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(names, 1)))
    assert interface.free_interface_name() == "rg1"
    assert interface.free_interface_name("wg") == "wg0"
    assert interface.interface_exists("rg2")
    assert not interface.interface_exists("rg1")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (None, "without IPv6"),
        ({"all": "0", "default": "0"}, None),
        ({"all": "1", "default": "0"}, "conf.all.disable_ipv6"),
        ({"all": "0", "default": "1"}, "conf.default.disable_ipv6"),
        ({}, None),
    ],
)
def test_a_machine_without_ipv6_is_told_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str] | None, text: str | None
) -> None:
    monkeypatch.setattr(interface, "IPV6_SYSCTLS", tmp_path / "ipv6")
    if settings is not None:
        (tmp_path / "ipv6/conf").mkdir(parents=True)
        for scope, value in settings.items():
            (tmp_path / "ipv6/conf" / scope).mkdir()
            (tmp_path / "ipv6/conf" / scope / "disable_ipv6").write_text(f"{value}\n")
    why = interface.why_no_ipv6()
    assert (why is None) == (text is None)
    assert (text or "") in (why or "")


def test_af_xdp_needs_an_ethernet_interface_that_is_there() -> None:
    with pytest.raises(RefusedError, match="There is no interface"):
        interface.require_ethernet("no-such-one")
    with pytest.raises(RefusedError, match="lo is the loopback of this machine, not an Ethernet interface"):
        interface.require_ethernet("lo")


@pytest.mark.parametrize(
    ("code", "refused", "text"),
    [
        (errno.ENOENT, False, "is missing"),
        (errno.ENOTDIR, False, "is missing"),
        (errno.EACCES, True, "may not be opened: EACCES"),
        (errno.EPERM, True, "may not be opened"),
        (errno.ENODEV, False, "its kernel module is likely not loaded"),
        (errno.ENXIO, False, "its kernel module is likely not loaded"),
        (errno.EIO, False, r"can't be opened \(Input/output error\)\."),
    ],
)
def test_why_no_tun_interface_can_be_made_is_told(
    monkeypatch: pytest.MonkeyPatch, code: int, text: str, *, refused: bool
) -> None:
    class Device:
        def open(self, mode: str, buffering: int) -> None:
            assert (mode, buffering) == ("r+b", 0)
            raise OSError(code, errno.errorcode[code] if code != errno.EIO else "Input/output error")

        def __str__(self) -> str:
            return "/dev/net/tun"

    monkeypatch.setattr(interface, "TUN_DEVICE", Device())
    with pytest.raises(RustGuardError, match=text) as told:
        interface.require_tun()
    assert isinstance(told.value, RefusedError) == refused
    assert told.value.fix
