"""`rustguard-wg` in wireguard-go-vpp's place: when it is, what it says, and what runs while the interface does."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner, Result

from rustguard_py.cli.wg import command
from rustguard_py.daemon.console import Voice
from rustguard_py.model.errors import RustGuardError, UsageError
from rustguard_py.quick import wg_vpp
from rustguard_py.quick.wg_device import WgDevice
from rustguard_py.quick.wg_vpp import VppLink, VppOptions, asked_for
from rustguard_py.state.document import Document
from rustguard_py.vpp.wiring import Wiring
from support.played_vpp import DEFINITIONS, PlayedVpp
from support.played_vppctl import PlayedVppctl

GATEWAY = "42:42:42:42:42:42"


def _write(folder: Path, method: str = "vppctl", **changes: object) -> None:
    interface = {"uid": 3, "secret": "psst", "IPv4ArpResponseRanges": ["10.0.0.1/32"], "VppBridgeID": 4242}
    bridge = {
        "GatewayMacAddr": GATEWAY,
        "WgIfMacaddrPrefix": "98:D2:93",
        "VppIfMacaddrPrefix": "A4:77:33",
        "VppBridgeLoop_InstallMethod": method,
        "VppBridgeLoop_VppctlBin": str(folder / "vppctl"),
        "VppBridgeLoop_SwIfName": "loop42",
        "VppBridgeLoop_InstallNeighbor": {"IPv4": True},
    }
    (folder / "if.home.json").write_text(json.dumps(interface | changes))
    (folder / "gw.4242.json").write_text(json.dumps(bridge))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the environment names."""
    monkeypatch.setenv("VPP_MEMIF_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("VPP_MEMIF_SOCKET_DIR", str(tmp_path / "run/deep"))
    monkeypatch.setenv("VPP_API_SOCKET_PATH", str(tmp_path / "api.sock"))
    monkeypatch.setenv("VPP_API_DIR", str(DEFINITIONS))
    return tmp_path


def test_our_end_is_what_the_files_ask_for(places: Path) -> None:
    _write(places, IPv4ArpLearningRanges=["10.1.0.0/16"], Other=1)
    said: list[str] = []
    options = asked_for("home", said.append)
    assert options is not None
    memif, ethernet = options.memif, options.memif.ethernet
    assert ethernet is not None
    assert (memif.socket, memif.number, memif.server) == (places / "run/deep/home.sock", 3, True)
    assert (memif.secret, memif.queues) == (b"psst", 1)
    assert (ethernet.mac, ethernet.gateway) == (bytes.fromhex("98d293000003"), bytes.fromhex("42" * 6))
    assert (ethernet.answered, ethernet.learnt) == ((IPv4Network("10.0.0.1/32"),), (IPv4Network("10.1.0.0/16"),))
    assert (places / "run/deep").stat().st_mode & 0o777 == 0o755
    assert said == [
        "home is a memif of VPP, as with wireguard-go-vpp, because VPP_MEMIF_SOCKET_DIR is set.",
        f"{places}/if.home.json, line 1: Other isn't known, so it is ignored.",
    ]


def test_without_its_files_and_variables_nothing_is_said(monkeypatch: pytest.MonkeyPatch, places: Path) -> None:
    monkeypatch.delenv("VPP_MEMIF_SOCKET_DIR")
    monkeypatch.setenv("VPP_MEMIF_CONFIG_DIR", "")
    said: list[str] = []
    assert asked_for("no-such-name", said.append) is None
    assert said == []
    assert not (places / "run").exists()


@pytest.mark.parametrize(("method", "way"), [("none", "BinaryApi"), ("api", "BinaryApi"), ("vppctl", "Vppctl")])
@pytest.mark.needs_vpp_papi
def test_each_method_is_a_way_to_vpp(places: Path, method: str, way: str) -> None:
    _write(places, method)
    options = asked_for("home", lambda _: None)
    assert options is not None
    assert type(options.way()).__name__ == way


def _invoke(*words: str) -> Result:
    return CliRunner().invoke(command, ["-f", *words], standalone_mode=False)


def test_the_command_says_what_is_missing(places: Path) -> None:
    done = _invoke("home")
    assert isinstance(done.exception, UsageError)
    assert f"{places}/if.home.json can't be read: No such file" in done.exception.message
    assert "because VPP_MEMIF_SOCKET_DIR is set" in done.output


def test_a_directory_that_cannot_be_made_is_named(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(places)
    monkeypatch.setenv("VPP_MEMIF_SOCKET_DIR", str(places / "if.home.json/x"))
    done = _invoke("home")
    assert isinstance(done.exception, RustGuardError)
    assert "can't be made" in done.exception.message
    monkeypatch.setenv("VPP_MEMIF_SOCKET_DIR", "/" + "x" * 100)
    done = _invoke("home")
    assert isinstance(done.exception, UsageError)
    assert "too long" in done.exception.message


def test_an_interface_of_the_command_line_comes_before_its_files(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables may be set for all programs of a session."""
    _write(places)
    monkeypatch.setenv("RUSTGUARD_ENGINE", "portable")
    done = _invoke("--memif", str(places / "m"), "home")
    assert isinstance(done.exception, UsageError)
    assert "engine has no memif" in done.exception.message
    assert "wireguard-go-vpp" not in done.output


class Device:
    """A memif whose state is in the test's hands. Its descriptor is a pipe."""

    def __init__(self) -> None:
        self._readable, self._writable = os.pipe()
        self.answered: list[IPv4Address | IPv6Address] = []
        self.connected = True

    def answer(self, *addresses: str) -> None:
        self.answered += map(ip_address, addresses)
        os.write(self._writable, b"x")

    def is_connected(self) -> bool:
        return self.connected

    def answered_fileno(self) -> int:
        return self._readable

    def take_answered(self) -> list[IPv4Address | IPv6Address]:
        os.read(self._readable, 1)
        taken, self.answered = self.answered, []
        return taken

    def close(self) -> None:
        os.close(self._readable)
        os.close(self._writable)


async def _until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


def _link(options: VppOptions | None, document: Document, device: Device, said: list[str]) -> VppLink:
    assert options is not None
    return VppLink(options, document, cast(WgDevice, device), 1420, Voice(said.append, said.append))


@pytest.mark.needs_vpp_papi
def test_while_it_runs_neighbours_are_added_and_a_restart_is_repaired(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wg_vpp, "LOOK", 0.05)
    _write(places, "api")
    vpp, device, said = PlayedVpp(places / "api.sock"), Device(), []  # type: tuple[PlayedVpp, Device, list[str]]
    document = Document.open(places / "state")

    async def work() -> None:
        link = _link(asked_for("home", lambda _: None), document, device, said)
        await link.start()
        device.answer("10.0.0.1", "fe80::1")
        await _until(lambda: vpp.neighbours)
        assert [each[0] for each in vpp.neighbours] == ["10.0.0.1"]
        vpp.stop()
        device.connected = False
        await _until(lambda: said)
        await asyncio.sleep(0.3)
        assert len(said) == 1, "what goes on is said once"
        vpp.forget()
        vpp._open()
        await _until(lambda: len(said) > 1)
        device.connected = True
        assert "It was set up again." in said[1]
        assert len(vpp.neighbours) == len(vpp.memifs) == 1
        await link.close()

    try:
        asyncio.run(work())
        assert vpp.is_clean
        assert "It is tried again." in said[0]
        assert document.load() == {}
    finally:
        document.close()
        device.close()
        vpp.stop()


def test_a_vpp_that_is_gone_at_the_end_is_left_to_the_next_start(places: Path) -> None:
    _write(places)
    vppctl, said = PlayedVppctl(places), []  # type: tuple[PlayedVppctl, list[str]]
    document, device = Document.open(places / "state"), Device()

    async def work() -> None:
        link = _link(asked_for("home", lambda _: None), document, device, said)
        await link.start()
        vppctl.stop()
        await link.close()

    try:
        asyncio.run(work())
    finally:
        document.close()
        device.close()
    assert "taken back at the next start" in said[0]
    assert Document.peek(places / "state") not in (None, {})


def test_what_was_set_up_while_the_start_was_interrupted_is_taken_back(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(places)
    vppctl, document, device = PlayedVppctl(places), Document.open(places / "state"), Device()
    begun, goes_on, make = threading.Event(), threading.Event(), Wiring.make

    def slowly(wiring: Wiring) -> None:
        begun.set()
        assert goes_on.wait(20)
        make(wiring)

    monkeypatch.setattr(Wiring, "make", slowly)

    async def work() -> None:
        link = _link(asked_for("home", lambda _: None), document, device, [])
        start = asyncio.create_task(link.start())
        await _until(begun.is_set)
        # As Ctrl-C does.
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        goes_on.set()
        await link.close()

    try:
        asyncio.run(work())
        assert document.load() == {}
    finally:
        document.close()
        device.close()
    assert any(line.startswith("create interface memif") for line in vppctl.said)
    assert vppctl.is_clean


def test_a_vpp_that_refuses_ends_the_start(places: Path) -> None:
    _write(places)
    vppctl, document, device = PlayedVppctl(places), Document.open(places / "state"), Device()
    vppctl.refuse("set interface state")

    async def work() -> None:
        link = _link(asked_for("home", lambda _: None), document, device, [])
        try:
            with pytest.raises(RustGuardError, match="a problem of the tests"):
                await link.start()
        finally:
            await link.close()

    try:
        asyncio.run(work())
    finally:
        document.close()
        device.close()
    assert vppctl.is_clean
