"""A service manager's watchdog: fed by a daemon that works, and not by one with a plane's thread that is stuck."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from rustguard_py.engine import has_native
from rustguard_py.lab.hosts import Lab
from support.held import held, threads_named
from support.product import POOL, Site, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may stop another program's thread alone")

WATCHDOG = 1.0


class Manager:
    """A service manager's socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Return what was said since the last time."""
        lines: list[str] = []
        while True:
            try:
                lines += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return lines


@pytest.mark.parametrize(
    ("options", "thread"),
    [
        *(("--engine native", name) for name in ("rg-in", "rg-out", "rg-gate", "rg-timers")),
        ("--engine native --uring", "rg-in"),
        ("--engine native --uring", "rg-out"),
        ("--engine portable", "plane"),
    ],
)
def test_a_held_thread_of_the_plane_starves_the_watchdog(
    tmp_path: Path, lab: Lab, options: str, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "native" in options and not has_native():
        pytest.skip("the native plane isn't built here")
    manager = Manager(tmp_path / "notify")
    with manager.socket:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG * 1e6)))
        home = Site(lab, tmp_path).home()
        program = home.serve(f"--pool {POOL} {options}")
        eventually(lambda: "READY=1" in manager.heard(), what="READY")
        eventually(lambda: "WATCHDOG=1" in manager.heard(), what="the watchdog fed")
        with ExitStack() as stack:
            for each in threads_named(program.pid, thread):
                stack.enter_context(held(each))
            # It may have answered what it was asked last.
            time.sleep(WATCHDOG)
            manager.heard()
            time.sleep(WATCHDOG)
            assert "WATCHDOG=1" not in manager.heard()
        assert "no answer from the plane" in home.said()
        eventually(lambda: "WATCHDOG=1" in manager.heard(), what="the watchdog fed again")
