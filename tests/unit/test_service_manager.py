"""What a service manager is told, and when its watchdog isn't fed."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from rustguard_py.daemon.overseer import oversee
from rustguard_py.daemon.service_manager import ServiceManager
from rustguard_py.model.tunnel import AnyTunnel


class Listening:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(5)

    def heard(self) -> list[str]:
        return self.socket.recv(4096).decode().split("\n")


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    made = Listening(str(tmp_path / "notify"))
    with made.socket:
        yield made


def manager_at(listening: Listening, watchdog: float | None = None) -> ServiceManager:
    return ServiceManager(listening.socket.getsockname(), watchdog)


def test_the_environment_names_the_manager_and_no_child_inherits_it(tmp_path: Path) -> None:
    environment = {
        "NOTIFY_SOCKET": str(tmp_path / "s"),
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    manager = ServiceManager.from_environment(environment)
    assert (manager.address, manager.watchdog) == (str(tmp_path / "s"), 30.0)
    assert environment == {}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "0"},
    ],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(environment: dict[str, str]) -> None:
    assert ServiceManager.from_environment(dict(environment)).watchdog is None


def test_ready_status_reloading_and_stopping_are_told_in_the_managers_words(listening: Listening) -> None:
    manager = manager_at(listening)
    manager.ready("rg0: up")
    assert listening.heard() == ["READY=1", "STATUS=rg0: up"]
    manager.status("rg0: up")
    manager.status("two\nlines")
    assert listening.heard() == ["STATUS=two lines"]
    manager.reloading()
    reloading, at = listening.heard()
    assert reloading == "RELOADING=1"
    assert at.removeprefix("MONOTONIC_USEC=").isdecimal()
    manager.reloaded()
    assert listening.heard() == ["READY=1", "STATUS=two lines"]
    manager.stopping()
    assert listening.heard() == ["STOPPING=1", "STATUS=Stopping."]


def test_an_abstract_socket_is_reached(tmp_path: Path) -> None:
    name = f"rustguard-test-{os.getpid()}-{tmp_path.name}"
    listening = Listening("\0" + name)
    with listening.socket:
        ServiceManager("@" + name).feed_watchdog()
        assert listening.heard() == ["WATCHDOG=1"]


def test_a_manager_that_is_gone_or_absent_is_no_error(tmp_path: Path) -> None:
    ServiceManager(str(tmp_path / "nobody")).feed_watchdog()
    ServiceManager().ready("up")


class Plane:
    def __init__(self) -> None:
        self.silent: list[str] = []

    def roll_call(self) -> list[str]:
        return self.silent


class FakeTunnel:
    def __init__(self) -> None:
        self.plane, self.fault = Plane(), None


def test_the_watchdog_is_fed_only_while_every_thread_of_every_plane_answers(
    listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    tunnels: list[Any] = [FakeTunnel(), FakeTunnel()]

    async def run() -> list[str]:
        manager = manager_at(listening, watchdog=0.08)
        task = asyncio.create_task(oversee(manager, cast(list[AnyTunnel], tunnels), lambda: "fine"))
        loop = asyncio.get_running_loop()
        heard = [await loop.run_in_executor(None, listening.heard) for _ in range(2)]
        tunnels[1].plane.silent = ["in-0"]
        await asyncio.sleep(0.1)
        listening.socket.setblocking(False)
        # What was under way when the thread fell silent.
        while True:
            try:
                listening.heard()
            except BlockingIOError:
                break
        await asyncio.sleep(0.2)
        with pytest.raises(BlockingIOError):
            listening.heard()
        tunnels[1].fault = OSError("it broke, and the other goes on")
        await asyncio.sleep(0.1)
        heard.append(listening.heard())
        task.cancel()
        return [line for lines in heard for line in lines]

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(run()) == ["WATCHDOG=1", "STATUS=fine", "WATCHDOG=1"]
    assert "in-0 of tunnel 1" in caplog.text


def test_without_a_manager_the_planes_are_asked_too_so_that_status_can_tell(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rustguard_py.daemon.overseer.PACE", 0.01)
    tunnel: Any = FakeTunnel()

    async def run() -> None:
        task = asyncio.create_task(oversee(ServiceManager(), [tunnel], lambda: "fine"))
        tunnel.plane.silent = ["rg-in"]
        await asyncio.sleep(0.05)
        assert tunnel.silent == ["rg-in"]
        tunnel.plane.silent = []
        await asyncio.sleep(0.05)
        assert tunnel.silent == []
        task.cancel()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert "no answer from the plane for 0.01 s: rg-in" in caplog.text
    assert "watchdog" not in caplog.text
