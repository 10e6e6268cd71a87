"""A memif in place of an interface: its option, its refusals, and IP packets between two ends of ours.

Against a program that others wrote it is tested in `tests/hosts/planes/test_memif.py`.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from rustguard_py.cli.values import BadValueError
from rustguard_py.cli.wg import command
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.memif import introduce
from rustguard_py.data_path import DataPath
from rustguard_py.engine import Engine, choose
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.ethernet import EthernetOptions, own_mac
from rustguard_py.model.memif import MemifOptions, absolute, parse
from rustguard_py.planes.contract import AnsweringPlane
from rustguard_py.system import memif_socket
from support.channel_pair import BOB4, BOB6, PATIENCE, PEER, eventually
from support.engines import needs_native
from support.memif_pair import MemifPair, options
from support.packets import ip_header, udp_packet


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The control channel's socket."""
    return tmp_path / "m"


def _ip(path: Path, *, server: bool) -> MemifOptions:
    return replace(options(path, server=server), ethernet=None)


def test_the_option_names_a_socket_and_what_is_special_about_it() -> None:
    assert parse("/run/m") == MemifOptions(Path("/run/m"))
    text = "m,id=7,role=server,secret=psst,queues=2,mode=ip"
    assert parse(text) == MemifOptions(Path("m").absolute(), 7, server=True, secret=b"psst", queues=2)
    assert "psst" not in repr(parse(text)) + str(parse(text))


def test_the_option_names_our_side_of_an_ethernet_link() -> None:
    text = "/m,mode=ethernet,mac=02:00:00:00:00:0A,gateway=42:42:42:42:42:42,learn=10.0.0.0/8,answer=10.1.1.1"
    ten, one, six = ip_network("10.0.0.0/8"), ip_network("10.1.1.1"), ip_network("fd00::/8")
    ethernet = EthernetOptions(b"\x02\0\0\0\0\x0a", b"B" * 6, (one, six), (ten,), fixed=True)
    assert parse(f"{text},answer=fd00::/8").ethernet == ethernet
    assert parse("/m,mode=ethernet").ethernet == EthernetOptions()
    assert parse("/m,mode=ethernet,answer=none").ethernet == EthernetOptions(fixed=True)
    assert parse("/m").ethernet is None


def test_a_mac_address_of_ours_stays_and_is_no_other_interfaces() -> None:
    mac = own_mac("wg0", 1)
    assert mac == own_mac("wg0", 1)
    assert len({mac, own_mac("wg1", 1), own_mac("wg0", 2)}) == 3
    assert (len(mac), mac[0] & 3) == (6, 2)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "path"),
        ("/" + "x" * 107, "path"),
        ("/m,id", "'id'"),
        ("/m,ID=1", "'ID'"),
        ("/m,id=1,id=1", "'id'"),
        ("/m,id=-1", "id=-1"),
        ("/m,id=4294967296", "4294967295"),
        ("/m,queues=0", "from 1"),
        ("/m,queues=65", "to 64"),
        ("/m,role=master", "'master'"),
        ("/m,mode=punt", "'punt'"),
        ("/m,secret=" + "x" * 24, "23 bytes"),
        ("/m,mac=02:00:00:00:00:01", "mode=ethernet"),
        ("/m,learn=10.0.0.0/8", "mode=ethernet"),
        ("/m,answer=none", "mode=ethernet"),
        ("/m,mode=ethernet,answer=none,answer=10.0.0.0/8", "exclude each other"),
        ("/m,mode=ethernet,learn=none", "learn=none isn't a range"),
        ("/m,mode=ethernet,mac=02:00:00:00:00", "mac=02"),
        ("/m,mode=ethernet,mac=03:00:00:00:00:01", "one interface"),
        ("/m,mode=ethernet,gateway=00:00:00:00:00:00", "one interface"),
        ("/m,mode=ethernet,answer=10.0.0.1/8", "host bits"),
        ("/m,mode=ethernet,answer=10.0.0.0/8,learn=10.0.0.0/8", "in answer and in learn"),
    ],
)
def test_what_the_option_does_not_have_is_refused_with_its_form(text: str, word: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert word in refused.value.message
    assert refused.value.fix


def test_the_value_that_is_kept_has_the_path_from_everywhere() -> None:
    assert absolute("m,id=7,secret=psst") == f"{Path('m').absolute()},id=7,secret=psst"
    assert absolute("/run/m") == "/run/m"
    assert DataPath(memif=None).with_kept("", "/run/m").memif == "/run/m"
    assert DataPath(memif="").with_kept("", "/run/m").memif == ""
    assert DataPath(memif="/run/n,secret=psst").memif_to_keep("/run/m") == "/run/n,secret=psst"
    assert "psst" not in repr(DataPath(memif="/run/n,secret=psst"))


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        (DataPath(engine="kernel"), "--engine kernel"),
        (DataPath(engine="portable"), "--engine portable"),
        (DataPath(queues="2"), "--queues"),
        (DataPath(rootless=True), "--rootless"),
        (DataPath(threaded_napi=True), "--threaded-napi"),
    ],
)
def test_what_a_memif_excludes_is_refused_with_both_ways_out(asked: DataPath, option: str) -> None:
    with pytest.raises(UsageError) as refused:
        choose(asked.with_kept("", "/run/m,queues=2"))
    assert refused.value.fix is not None
    assert f"Leave out {option}" in refused.value.fix
    assert "--memif none" in refused.value.fix


@needs_native
def test_a_memif_is_the_native_engines_with_the_queues_that_it_has() -> None:
    chosen = choose(DataPath(memif="/run/m,queues=3"))
    assert (chosen.name, chosen.queues, chosen.memif) == ("native", 3, MemifOptions(Path("/run/m"), queues=3))
    assert "--memif needs it" in chosen.reason
    assert "; 1 queue asked for" in choose(DataPath(memif="/run/m")).reason


def test_the_command_refuses_what_has_no_memif(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="portable engine has no memif"):
        Engine("portable", "").on_memif(MemifOptions(Path("/m")))
    monkeypatch.setenv("WG_TUN_FD", "3")
    done = CliRunner().invoke(command, ["-f", "--memif", "/m", "wg0"], standalone_mode=False)
    assert isinstance(done.exception, UsageError)
    assert "in place of an interface" in done.exception.message
    # `serve` and `join` keep a memif, and `none` forgets it. Here it isn't a path either.
    done = CliRunner().invoke(command, ["-f", "--memif", "none", "wg0"], standalone_mode=False)
    assert isinstance(done.exception, BadValueError)
    assert done.exception.fix == "Leave out --memif."


@pytest.mark.parametrize(
    ("there", "fix"),
    [
        ("nothing", "Make its directory: mkdir -p "),
        ("a file", "What is there isn't a socket."),
        ("a listener", "End the program that listens there"),
    ],
)
def test_why_a_server_cannot_listen_there_decides_what_to_do(tmp_path: Path, there: str, fix: str) -> None:
    path = tmp_path / ("no such" if there == "nothing" else "") / "m"
    if there == "a file":
        path.touch()
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as other:
        if there == "a listener":
            other.bind(str(path))
            other.listen()
        with pytest.raises(RefusedError) as refused:
            memif_socket.bind(path)
    assert refused.value.fix is not None
    assert refused.value.fix.startswith(fix)
    assert "--memif SOCKET" in refused.value.fix


@needs_native
def test_ip_packets_cross_between_two_ends_of_ours(path: Path) -> None:
    one, other = MemifPair(_ip(path, server=True)), MemifPair(_ip(path, server=False))
    for each in (one, other):
        each.wait_for_connection()
        # What comes out there has the addresses of another network.
        each.bob.plane.set_peer(PEER, None, [ip_network("0.0.0.0/0"), ip_network("::/0")], 0)
    assert "connected to wg0 of RustGuard" in one.alice.stats().device
    for here, there in ((one, other), (other, one)):
        addresses = [(BOB4, BOB4), (BOB6, BOB6)]
        packets = [udp_packet(*addresses[size % 2], bytes(size)) for size in range(0, 1370, 7)]
        here.bob.write(packets)
        assert there.bob.read(len(packets)) == packets
        assert here.drops() == {}
    other.close()
    eventually(lambda: not one.is_connected(), "the end isn't noticed")
    assert "RustGuard ends" in one.alice.stats().device
    one.close()
    assert not path.exists()


@needs_native
@pytest.mark.parametrize("ethernet", [None, EthernetOptions()], ids=["ip", "ethernet"])
def test_what_is_longer_than_the_mtu_is_counted_and_its_sender_told(
    path: Path, ethernet: EthernetOptions | None
) -> None:
    one = MemifPair(
        replace(_ip(path, server=True), ethernet=ethernet and replace(ethernet, gateway=b"\x02A\0\0\0\1"))
    )
    other = MemifPair(replace(_ip(path, server=False), ethernet=ethernet and replace(ethernet, mac=b"\x02A\0\0\0\1")))
    for each in (one, other):
        each.wait_for_connection()
        each.bob.plane.set_peer(PEER, None, [ip_network("0.0.0.0/0"), ip_network("::/0")], 0)
    other.alice.set_mtu(1300)
    for address, header in ((BOB4, 20), (BOB6, 40)):
        fits, longer = (udp_packet(address, address, bytes(size - header - 8)) for size in (1300, 1301))
        one.bob.write([longer, fits])
        assert other.bob.read(1) == [fits]
        (told,) = one.bob.read(1)
        # RFC 1191, section 4, and RFC 4443, section 3.2.
        kind, mtu = (told[20:22], told[26:28]) if header == 20 else (told[40:42], told[46:48])
        assert (kind, int.from_bytes(mtu)) == (b"\3\4" if header == 20 else b"\2\0", 1300)
        assert told[header + 8 :] == longer[: len(told) - header - 8]
    assert other.drops() == {"memif_too_long": 2}
    other.alice.set_mtu(1420)
    one.bob.write([longer])
    assert other.bob.read(1) == [longer]
    one.close()
    other.close()


@needs_native
def test_fragments_of_no_possible_packet_are_counted(path: Path) -> None:
    one, other = MemifPair(_ip(path, server=True)), MemifPair(_ip(path, server=False))
    for each in (one, other):
        each.wait_for_connection()
        each.bob.plane.set_peer(PEER, None, [ip_network("0.0.0.0/0"), ip_network("::/0")], 0)
    # The flag that more follow, and offsets, RFC 791, section 3.1.
    good, bad = (
        [ip_header(BOB4, BOB4, 17, size, fragment=field) + bytes(size) for field, size in chosen]
        for chosen in ([(0x2000, 800), (0x2064, 8), (0x0065, 5)], [(0x2000, 801), (0x1FFF, 800), (0x0065, 0)])
    )
    one.bob.write(bad + good)
    assert other.bob.read(len(good)) == good
    assert other.drops() == {"memif_bad_fragment": len(bad)}
    one.close()
    other.close()


@needs_native
def test_ethernet_asks_for_what_it_learns_and_answers_for_its_ranges(path: Path) -> None:
    """Both addresses of the other end are asked for. The packets that ask are dropped and counted."""
    ranges = (ip_network("10.9.0.0/24"), ip_network("fd09::/64"))
    one = MemifPair(replace(_ip(path, server=True), ethernet=EthernetOptions(learnt=ranges)))
    other = MemifPair(
        replace(_ip(path, server=False), ethernet=EthernetOptions(answered=ranges, mac=b"\x02A\0\0\0\1"))
    )
    for each in (one, other):
        each.wait_for_connection()
        each.bob.plane.set_peer(PEER, None, [ip_network("0.0.0.0/0"), ip_network("::/0")], 0)
    from rustguard_py.planes.native import NativePlane

    asking, answering = one.alice, other.alice
    assert isinstance(asking, NativePlane)
    assert isinstance(answering, NativePlane)
    first = [udp_packet(BOB4, BOB4, b"asks"), udp_packet(BOB6, BOB6, b"asks")]
    one.bob.write(first)
    assert select.select([answering.answered_fileno()], [], [], PATIENCE)[0]
    answered: set[object] = set()
    until = time.monotonic() + PATIENCE
    while len(answered) < 2 and time.monotonic() < until:
        answered |= set(answering.take_answered())
    assert answered == {ip_address(BOB4), ip_address(BOB6)}
    assert not select.select([answering.answered_fileno()], [], [], 0)[0]
    assert one.drops() == {"memif_unresolved": 2}
    packets = [udp_packet(*pair, bytes(size)) for size in range(0, 1370, 70) for pair in ((BOB4,) * 2, (BOB6,) * 2)]
    # The replies lie in the ring by now, and are read before or after the next packets.
    time.sleep(0.2)
    one.bob.write(packets)
    assert other.bob.read(len(packets)) == packets
    assert asking.take_answered() == []
    one.close()
    other.close()


@needs_native
def test_a_socket_that_is_not_there_is_reported_in_the_systems_words(path: Path) -> None:
    pair = MemifPair(_ip(path, server=False))
    eventually(lambda: pair.alice.stats().device.endswith(": not connected (No such file or directory)"), "why")
    pair.close()


@needs_native
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"secret": b"other"}, "another secret"),
        ({"number": 6}, "id 6"),
        ({"ethernet": EthernetOptions(b"\x02\0\0\0\0\1")}, "mode Ethernet"),
    ],
)
def test_each_end_says_why_the_other_is_refused(path: Path, change: dict[str, object], why: str) -> None:
    one = MemifPair(_ip(path, server=True))
    other = MemifPair(replace(_ip(path, server=False), **change))  # type: ignore[arg-type]
    for each in (one, other):
        eventually(lambda each=each: why in each.alice.stats().device, why)  # type: ignore[misc]
        assert not each.is_connected()
    one.close()
    other.close()


@needs_native
def test_a_socket_that_another_program_listens_on_is_left_alone(path: Path) -> None:
    from rustguard_py.planes.native import NativePlane

    one = MemifPair(_ip(path, server=True))
    with pytest.raises(RefusedError, match="in use"):
        NativePlane(bytes(32), interface="wg0", sockets=[], memif=_ip(path, server=True))
    assert path.exists()
    one.close()


@needs_native
@pytest.mark.parametrize("link", [False, True])
def test_what_is_not_a_socket_is_neither_followed_nor_removed(path: Path, link: bool) -> None:
    from rustguard_py.planes.native import NativePlane

    target = path.with_name("precious") if link else path
    target.write_text("precious")
    if link:
        path.symlink_to(target)
    with pytest.raises(RefusedError):
        NativePlane(bytes(32), interface="wg0", sockets=[], memif=_ip(path, server=True))
    assert target.read_text() == "precious"
    assert path.is_symlink() is link


@needs_native
def test_other_ranges_are_answered_for_while_it_runs(path: Path) -> None:
    ranges = (ip_network("10.9.0.0/24"),)
    one = MemifPair(replace(_ip(path, server=True), ethernet=EthernetOptions(learnt=ranges)))
    other = MemifPair(replace(_ip(path, server=False), ethernet=EthernetOptions(mac=b"\x02A\0\0\0\1")))
    for each in (one, other):
        each.wait_for_connection()
        each.bob.plane.set_peer(PEER, None, [ip_network("0.0.0.0/0")], 0)
    packet = udp_packet(BOB4, BOB4, b"asks")
    one.bob.write([packet])
    eventually(lambda: one.drops() == {"memif_unresolved": 1}, "the packet that asks is dropped")
    time.sleep(0.2)
    answering = cast(AnsweringPlane, other.alice)
    assert answering.take_answered() == []
    held = (ip_address(BOB4),)
    answering.answer_for(EthernetOptions(answered=ranges, excepted=held))
    answering.answer_for(EthernetOptions(answered=ranges))

    def arrives() -> bool:
        one.bob.write([packet])
        time.sleep(0.05)
        return bool(other.bob.channel.read_batch(64))

    eventually(arrives, "the other end answers")
    assert answering.take_answered() == [ip_address(BOB4)]
    one.close()
    other.close()


@needs_native
def test_what_somebody_puts_in_the_sockets_place_stays(path: Path) -> None:
    one = MemifPair(_ip(path, server=True))
    path.unlink()
    path.write_text("precious")
    one.close()
    assert path.read_text() == "precious"


def test_the_tunnels_ranges_are_answered_for_unless_others_are_named() -> None:
    four, six, own4, own6 = ip_network("10.7.0.0/30"), ip_network("fd07::/126"), "10.7.0.1", "fd07::2"
    routes = [ip_network(each) for each in ("0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1")]
    own = [ip_address(each) for each in (own4, own6, "192.0.2.1")]
    chosen = EthernetOptions().answering([four, *routes, six, four], own)
    assert (chosen.answered, chosen.excepted) == ((four, six), tuple(own[:2]))
    held = [str(each) for part in chosen.parts for each in part]
    assert sorted(held) == ["10.7.0.0", "10.7.0.2", "10.7.0.3", "fd07::", "fd07::1", "fd07::3"]
    for named in ((six,), ()):
        fixed = EthernetOptions(answered=named, fixed=True)
        assert fixed.answering([four], own) == fixed
    assert chosen.answering([six], []) == EthernetOptions(answered=(six,))
    assert EthernetOptions(learnt=(four,)).answering([four, six], own).answered == (six,)
    assert EthernetOptions().answering(routes, own) == EthernetOptions()


def test_the_start_says_for_what_is_answered() -> None:
    ranges = tuple(ip_network(f"10.{each}.0.0/16") for each in range(10))
    lines: list[str] = []
    voice = Voice(lines.append, lines.append)
    for ethernet in (EthernetOptions(), EthernetOptions(answered=ranges), None, EthernetOptions(fixed=True)):
        introduce(voice, MemifOptions(Path("/m"), ethernet=ethernet), [], 1420)
    assert len(lines) == 11
    assert lines[10] == "ARP and neighbour solicitations aren't answered."
    assert "aren't answered. To answer for a range, add to --memif: answer=RANGE" in lines[2]
    assert lines[5].endswith("10.6.0.0/16, 10.7.0.0/16 and 2 more.")
