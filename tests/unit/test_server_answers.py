"""What the server answers over its control socket without a window and without a disk, and what an import names."""

from __future__ import annotations

import os
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from rustguard_py import conf, conf_reader
from rustguard_py.daemon.program import Program
from rustguard_py.engine import Engine
from rustguard_py.enroll.pairing.window import Closed
from rustguard_py.enroll.server import import_wg_quick
from rustguard_py.enroll.server.control import ServerControl
from rustguard_py.model.errors import StateError
from rustguard_py.model.keys import encode_key
from support import virtual_loop
from support.shell import Run, Shell, runner


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(monkeypatch, tmp_path / "state")


def test_without_a_token_nobody_waits_and_nothing_is_unconfirmed(run: Run) -> None:
    async def test(shell: Shell) -> None:
        window = (await shell.ask("close"))["window"]
        assert (window["waiting"], window["unconfirmed"], window["unconfirmed_sources"]) == (0, 0, 0)

    run(test)


def test_the_status_shows_the_pool_and_how_much_of_it_is_used(run: Run, tmp_path: Path) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        await shell.join()
        program = Program("server", tmp_path, "rg0", Engine("portable", "asked for"), 0.0)
        status = ServerControl(shell.server, program, None)._status({})
        # Of 254 hosts one is the server, which isn't counted.
        assert status["pool"] == {"network4": "10.150.0.0/24", "network6": "fd00:1::/64", "size": 253, "used": 1}
        assert (status["port"], status["mtu"], status["tunnels"]) == (shell.state.port, shell.state.mtu, [])

    run(test)


def test_a_window_that_can_not_be_saved_is_an_error_and_stays_closed(run: Run) -> None:
    async def test(shell: Shell) -> None:
        await shell.open()
        shell.full = True
        with pytest.raises(StateError, match=r"full.* So the window is closed\."):
            await shell.ask("open", seconds=60)
        assert not shell.server.window.state(virtual_loop.BEGAN).is_open
        # Nobody closed it.
        assert shell.server.window.state(virtual_loop.BEGAN).closed is Closed.UNSAVED
        assert shell.server.pairing is not None
        assert shell.server.pairing.half_open == 0
        shell.full = False

    run(test)


def _read(addresses: str, *names: str) -> import_wg_quick.Imported:
    lines = [f"[Interface]\nPrivateKey = {encode_key(bytes([1]) * 32)}\nAddress = {addresses}"]
    for place, name in enumerate(names):
        key = encode_key(os.urandom(32))
        lines.append(f"# {name}\n[Peer]\nPublicKey = {key}\nAllowedIPs = 10.0.0.{place + 100}/32")
    return import_wg_quick.read_server(conf_reader.parse("\n".join(lines) + "\n"), "x")


@pytest.mark.parametrize(
    ("addresses", "own", "pool4", "pool6"),
    [
        ("10.0.0.1/32", "10.0.0.1/24", "10.0.0.0/24", None),
        ("10.0.0.1/31", "10.0.0.1/24", "10.0.0.0/24", None),
        ("10.0.0.1/30", "10.0.0.1/30", "10.0.0.0/30", None),
        ("10.0.0.1/24, fd00::1/128", "10.0.0.1/24, fd00::1/64", "10.0.0.0/24", "fd00::/64"),
        ("10.0.0.1/24, fd00::1/127", "10.0.0.1/24, fd00::1/64", "10.0.0.0/24", "fd00::/64"),
        ("10.0.0.1/24, fd00::1/126", "10.0.0.1/24, fd00::1/126", "10.0.0.0/24", "fd00::/126"),
        # Only the first of each family has a pool. The others stay as they are.
        ("10.0.0.1/24, fd00::1/64, fd01::1/128", "10.0.0.1/24, fd00::1/64, fd01::1/128", "10.0.0.0/24", "fd00::/64"),
        ("10.0.0.1/24, 10.1.0.1/32", "10.0.0.1/24, 10.1.0.1/32", "10.0.0.0/24", None),
        ("fe80::1/128, 10.0.0.1/24", "fe80::1/128, 10.0.0.1/24", "10.0.0.0/24", None),
    ],
)
def test_an_address_without_a_network_gets_a_usual_one(
    addresses: str, own: str, pool4: str, pool6: str | None
) -> None:
    state = _read(addresses).state
    assert state.pool4 == ip_network(pool4)
    assert state.pool6 == (None if pool6 is None else ip_network(pool6))
    config = conf.Config(bytes(32), addresses=tuple(map(ip_interface, addresses.split(", "))))
    assert import_wg_quick._pools(config, "x")[2] == tuple(map(ip_interface, own.split(", ")))


def test_peers_of_one_name_get_the_next_numbers_that_are_free() -> None:
    names = [each.name for each in _read("10.0.0.1/24", "a", "a", "a", "peer-4", "a").state.peers.values()]
    assert names == ["a", "peer-2", "peer-3", "peer-4", "peer-5"]
    for taken, name in ({"peer-2"}, "peer-3"), ({"peer-2", "peer-3"}, "peer-4"), ({"peer-3"}, "peer-2"):
        assert import_wg_quick._name(conf.PeerSection(bytes(32)), 2, taken) == name
