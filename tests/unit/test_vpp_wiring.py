"""What is set up in VPP, by its API and by vppctl: all of it or nothing, and nothing stays at the end.

Both are played. Neither has met a real VPP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.vpp.binary_api import BinaryApi
from rustguard_py.vpp.plan import Bvi, Wanted
from rustguard_py.vpp.settings import Families
from rustguard_py.vpp.vppctl import Vppctl
from rustguard_py.vpp.ways import DeclinedError, UnreachableError, Way
from rustguard_py.vpp.wiring import Wiring
from support.played_vpp import DEFINITIONS, PlayedVpp
from support.played_vppctl import PlayedVppctl

OWN, THEIRS = bytes.fromhex("98d293000003"), bytes.fromhex("a47733000003")
ONE, LOCAL = ip_address("172.22.77.33"), ip_address("fe80::42:1817:1")


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    routes = (ip_network("172.22.77.33/32"), ip_network("fe80::42:1817:1/128"))
    where = Families(ipv4=True, link_local=True)
    bvi = Bvi("loop42", 0)
    return Wanted(3, tmp_path / "home.sock", THEIRS, OWN, 4242, bvi, b"psst", routes, where, static=True)


@pytest.fixture
def vpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedVpp]:
    monkeypatch.setenv("VPP_API_DIR", str(DEFINITIONS))
    played = PlayedVpp(tmp_path / "api.sock", index=5)
    yield played
    played.stop()


@pytest.fixture
def vppctl(tmp_path: Path) -> PlayedVppctl:
    return PlayedVppctl(tmp_path)


class Record:
    """The record of a process, and of the next one."""

    def __init__(self) -> None:
        self.kept: dict[str, object] = {}

    def save(self, data: object) -> None:
        assert isinstance(data, dict)
        self.kept = data

    def wiring(self, way: Way, wanted: Wanted) -> Wiring:
        return Wiring(way, wanted, 1420, self.kept, self.save)


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.mark.needs_vpp_papi
def test_the_api_sets_everything_up_and_takes_it_back(vpp: PlayedVpp, wanted: Wanted, record: Record) -> None:
    wiring = record.wiring(BinaryApi(vpp.path), wanted)
    wiring.make()
    assert vpp.sockets[3] == str(wanted.socket)
    (memif,) = vpp.memifs.values()
    assert {name: memif[name] for name in ("id", "socket_id", "secret", "mtu", "up", "bridge")} == {
        "id": 3,
        "socket_id": 3,
        "secret": "psst",
        "mtu": [1420, 0, 0, 0],
        "up": True,
        "bridge": 4242,
    }
    assert (bytes(memif["hw_addr"]), int(memif["role"]), int(memif["mode"])) == (THEIRS, 1, 0)
    assert vpp.routes == [("172.22.77.33/32", 5), ("fe80::42:1817:1/128", 5)]
    assert vpp.neighbours == []
    wiring.take_back()
    assert vpp.is_clean
    assert record.kept == {}


def test_vppctl_sets_everything_up_and_takes_it_back(vppctl: PlayedVppctl, wanted: Wanted, record: Record) -> None:
    wiring = record.wiring(Vppctl(str(vppctl.program)), wanted)
    wiring.make()
    assert vppctl.said == [
        f"create memif socket id 3 filename {wanted.socket}",
        "create interface memif id 3 socket-id 3 slave hw-addr a4:77:33:00:00:03 no-zero-copy secret psst",
        "set interface mtu 1420 memif3/3",
        "set interface state memif3/3 up",
        "set interface l2 bridge memif3/3 4242",
        "ip route add 172.22.77.33/32 via 172.22.77.33 loop42",
        "ip route add fe80::42:1817:1/128 via fe80::42:1817:1 loop42",
    ]
    wiring.add_neighbours([ONE])
    wiring.take_back()
    assert vppctl.said[7:] == [
        "set ip neighbor loop42 172.22.77.33 98:d2:93:00:00:03 static",
        "set ip neighbor del loop42 172.22.77.33 98:d2:93:00:00:03",
        "ip route del fe80::42:1817:1/128 via fe80::42:1817:1 loop42",
        "ip route del 172.22.77.33/32 via 172.22.77.33 loop42",
        "delete interface memif memif3/3",
        "delete memif socket id 3",
    ]
    assert vppctl.is_clean
    assert record.kept == {}


@pytest.mark.needs_vpp_papi
@pytest.mark.parametrize(("static", "no_fib_entry", "flags"), [(False, False, 0), (True, False, 1), (False, True, 2)])
def test_a_neighbour_is_added_once_it_was_answered(
    vpp: PlayedVpp, wanted: Wanted, record: Record, static: bool, no_fib_entry: bool, flags: int
) -> None:
    wanted = replace(wanted, static=static, no_fib_entry=no_fib_entry)
    wiring = record.wiring(BinaryApi(vpp.path), wanted)
    wiring.make()
    wiring.add_neighbours([ONE, ip_address("fd00::1"), LOCAL, ONE])
    wiring.add_neighbours([ONE])
    mac = OWN.hex(":")
    assert vpp.neighbours == [(str(ONE), 5, mac, flags), (str(LOCAL), 5, mac, flags)]
    wiring.take_back()
    assert vpp.is_clean


def test_a_scan_of_a_whole_range_adds_no_more_neighbours_than_there_is_room_for(
    vppctl: PlayedVppctl,
    wanted: Wanted,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("rustguard_py.vpp.wiring.MOST_NEIGHBOURS", 3)
    wiring = record.wiring(Vppctl(str(vppctl.program)), wanted)
    wiring.make()
    wiring.add_neighbours([ip_address(f"10.0.0.{number}") for number in range(5)])
    wiring.add_neighbours([ip_address("10.0.0.9"), ip_address("10.0.0.1")])
    assert sum(line.startswith("set ip neighbor") for line in vppctl.said) == 3
    assert record.kept["neighbours"] == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]
    assert caplog.text.count("no more than 3 neighbours") == 1
    wiring.take_back()
    assert vppctl.is_clean


@pytest.mark.needs_vpp_papi
def test_the_next_start_takes_back_what_a_killed_one_left(vpp: PlayedVpp, wanted: Wanted, record: Record) -> None:
    """Routes of a file that has changed since are taken back too, and so is an interface without a record."""
    killed = record.wiring(BinaryApi(vpp.path), wanted)
    killed.make()
    killed.add_neighbours([ONE])
    before = record.kept
    following = record.wiring(BinaryApi(vpp.path), replace(wanted, uid=4, routes=()))
    following.make()
    assert list(vpp.sockets) == [0, 4]
    assert (len(vpp.memifs), vpp.routes, vpp.neighbours) == (1, [], [])
    assert record.kept != before
    record.kept = {}
    last = record.wiring(BinaryApi(vpp.path), replace(wanted, uid=4))
    last.make()
    assert (len(vpp.memifs), len(vpp.routes)) == (1, 2)
    last.take_back()
    assert vpp.is_clean


STEPS = [
    ("memif_socket_filename_add_del_v2", "create memif socket"),
    ("memif_create", "create interface memif"),
    ("sw_interface_set_mtu", "set interface mtu"),
    ("sw_interface_set_flags", "set interface state"),
    ("sw_interface_set_l2_bridge", "set interface l2"),
    ("ip_route_add_del", "ip route add fe80"),
]


@pytest.mark.needs_vpp_papi
@pytest.mark.parametrize("message", [message for message, _ in STEPS])
def test_what_the_api_refuses_leaves_nothing_behind(
    vpp: PlayedVpp, wanted: Wanted, record: Record, message: str
) -> None:
    vpp.refuse = {message}
    with pytest.raises(DeclinedError, match=f"VPP refused {message} .its error -3.") as refused:
        record.wiring(BinaryApi(vpp.path), wanted).make()
    assert refused.value.fix
    assert vpp.is_clean
    assert record.kept == {}


@pytest.mark.parametrize("command", [command for _, command in STEPS])
def test_what_vppctl_refuses_leaves_nothing_behind(
    vppctl: PlayedVppctl, wanted: Wanted, record: Record, command: str
) -> None:
    vppctl.refuse(command)
    with pytest.raises(DeclinedError, match="a problem of the tests") as refused:
        record.wiring(Vppctl(str(vppctl.program)), wanted).make()
    assert "psst" not in refused.value.message
    assert vppctl.is_clean
    assert record.kept == {}


@pytest.mark.needs_vpp_papi
def test_after_vpps_restart_everything_is_made_again(vpp: PlayedVpp, wanted: Wanted, record: Record) -> None:
    wiring = record.wiring(BinaryApi(vpp.path), wanted)
    wiring.make()
    wiring.add_neighbours([ONE])
    assert wiring.repair() is False
    vpp.stop()
    with pytest.raises(UnreachableError, match="can't be used") as refused:
        wiring.repair()
    assert "VPP_API_SOCKET_PATH" in refused.value.fix
    vpp.index = 8
    vpp.forget()
    vpp._open()
    assert wiring.repair() is True
    assert (len(vpp.memifs), len(vpp.routes)) == (1, 2)
    assert [(address, index) for address, index, _, _ in vpp.neighbours] == [(str(ONE), 8)]
    wiring.take_back()
    assert vpp.is_clean


def test_vppctl_makes_it_again_too(vppctl: PlayedVppctl, wanted: Wanted, record: Record) -> None:
    wiring = record.wiring(Vppctl(str(vppctl.program)), wanted)
    wiring.make()
    assert wiring.repair() is False
    vppctl.stop()
    with pytest.raises(UnreachableError, match="Connection refused"):
        wiring.repair()
    with pytest.raises(UnreachableError):
        wiring.take_back()
    assert record.kept["uid"] == 3
    vppctl.start()
    assert wiring.repair() is True
    wiring.take_back()
    assert vppctl.is_clean


@pytest.mark.needs_vpp_papi
def test_another_programs_socket_of_that_number_is_left_alone(vpp: PlayedVpp, wanted: Wanted, record: Record) -> None:
    vpp.sockets[3] = "/run/other.sock"
    with pytest.raises(RefusedError, match="/run/other") as refused:
        record.wiring(BinaryApi(vpp.path), wanted).make()
    assert "another uid" in refused.value.fix
    assert vpp.calls == []
    # Nor is it taken for ours if the record has that number.
    record.kept = {"uid": 3, "socket": "/x", "bvi": "", "bvi_index": 0, "routes": [], "neighbours": []}
    record.wiring(BinaryApi(vpp.path), wanted).take_back()
    assert vpp.sockets[3] == "/run/other.sock"


def test_another_socket_is_seen_by_vppctl_too(vppctl: PlayedVppctl, wanted: Wanted, record: Record) -> None:
    way = Vppctl(str(vppctl.program))
    way.add_socket(3, Path("/run/other.sock"))
    with pytest.raises(RefusedError, match="/run/other"):
        record.wiring(way, wanted).make()


@pytest.mark.needs_vpp_papi
def test_an_interface_that_vpp_has_not_is_named(
    vpp: PlayedVpp, vppctl: PlayedVppctl, wanted: Wanted, record: Record
) -> None:
    elsewhere = replace(wanted, bvi=Bvi("loop4", 0))
    for way in (BinaryApi(vpp.path), Vppctl(str(vppctl.program))):
        with pytest.raises(DeclinedError, match="no interface loop4") as refused:
            record.wiring(way, elsewhere).make()
        assert "SwIfName" in refused.value.fix
    assert vpp.calls == vppctl.said == []


@pytest.mark.needs_vpp_papi
def test_what_is_missing_on_the_machine_is_named(
    tmp_path: Path, vpp: PlayedVpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(work: object) -> RustGuardError:
        assert callable(work)
        with pytest.raises(RustGuardError) as raised:
            work()
        assert raised.value.fix
        return raised.value

    assert "no program /x/vppctl" in refused(lambda: Vppctl("/x/vppctl").has_memif(3)).message
    (tmp_path / "data").write_text("")
    assert "can't be started" in refused(lambda: Vppctl(str(tmp_path / "data")).has_memif(3)).message
    monkeypatch.setenv("VPP_API_DIR", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    assert "definitions" in refused(lambda: BinaryApi(vpp.path)).message
    monkeypatch.setitem(__import__("sys").modules, "vpp_papi", None)
    assert "rustguard-py[vpp]" in refused(lambda: BinaryApi(vpp.path)).fix


@pytest.mark.needs_vpp_papi
def test_a_vpp_without_memif_is_named(vpp: PlayedVpp, wanted: Wanted, record: Record) -> None:
    vpp._ids.pop("memif_create")
    with pytest.raises(DeclinedError, match="no message memif_create") as refused:
        record.wiring(BinaryApi(vpp.path), wanted).make()
    assert "plugin" in refused.value.fix
    assert vpp.is_clean


def test_a_record_that_is_no_record_is_ignored(vppctl: PlayedVppctl, wanted: Wanted, record: Record) -> None:
    for kept in (
        {"uid": "x"},
        {"uid": 3, "socket": "/x", "bvi": "", "bvi_index": 0, "routes": ["y"], "neighbours": []},
    ):
        record.kept = dict(kept)
        wiring = record.wiring(Vppctl(str(vppctl.program)), wanted)
        wiring.make()
        wiring.take_back()
    assert vppctl.is_clean
