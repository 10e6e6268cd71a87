"""A memif in place of an interface: its option, its refusals, and IP packets between two ends of ours.

Against a program that others wrote it is tested in `tests/hosts/planes/test_memif.py`.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner

from rustguard_py.cli.wg import command
from rustguard_py.data_path import DataPath
from rustguard_py.engine import Engine, choose
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.memif import MemifOptions, absolute, parse
from support.channel_pair import BOB4, BOB6, PEER, eventually
from support.engines import needs_native
from support.memif_pair import MemifPair, options
from support.packets import udp_packet


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The control channel's socket."""
    return tmp_path / "m"


def _ip(path: Path, *, server: bool) -> MemifOptions:
    return replace(options(path, server=server), mac=None)


def test_the_option_names_a_socket_and_what_is_special_about_it() -> None:
    assert parse("/run/m") == MemifOptions(Path("/run/m"))
    text = "m,id=7,role=server,secret=psst,queues=2,mode=ip"
    assert parse(text) == MemifOptions(Path("m").absolute(), 7, server=True, secret=b"psst", queues=2)
    assert "psst" not in repr(parse(text)) + str(parse(text))


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


def test_the_command_refuses_what_has_no_memif(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="portable engine has no memif"):
        Engine("portable", "").on_memif(MemifOptions(Path("/m")))
    monkeypatch.setenv("WG_TUN_FD", "3")
    done = CliRunner().invoke(command, ["-f", "--memif", "/m", "wg0"], standalone_mode=False)
    assert isinstance(done.exception, UsageError)
    assert "in place of an interface" in done.exception.message


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
@pytest.mark.parametrize(
    ("change", "why"),
    [({"secret": b"other"}, "another secret"), ({"number": 6}, "id 6"), ({"mac": bytes(6)}, "mode Ethernet")],
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
def test_what_somebody_puts_in_the_sockets_place_stays(path: Path) -> None:
    one = MemifPair(_ip(path, server=True))
    path.unlink()
    path.write_text("precious")
    one.close()
    assert path.read_text() == "precious"
