"""Signals at any moment of a start: what the program has made by then is taken back."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.state import envelope
from support import rustguard_wg
from support.attack_table import is_long
from support.engines import needs_native
from support.product import HOME4, OPEN, PATIENCE, POOL, TOKEN, Machine, Site, eventually
from support.quick import Key, base64

# Of each program in the long run.
MOMENTS = 40
# What starts, and whether on a memif. The short run leaves out those that differ little from another.
FORMS = [("serve", True), ("join", True), ("up", False), ("rustguard-wg", True)]
FORMS += [("serve", False), ("join", False), ("up", True), ("rustguard-wg", False)] if is_long() else []


@dataclass(slots=True)
class Starting:
    """A program that is started again and again, and stopped on the way.

    Attributes:
        machine: Where it runs.
        argv: Its command line.
        memif: The socket of its memif, or None if it makes an interface.
    """

    machine: Machine
    argv: list[str]
    memif: Path | None

    def start(self) -> subprocess.Popen[str]:
        """Start it."""
        return self.machine.host.popen(self.argv, log=self.machine.log, env=self.machine.environment(TOKEN))

    def is_made(self) -> bool:
        """Return whether its memif or its interface is there."""
        if self.memif is not None:
            return self.memif.exists()
        return "wg7:" in Path(f"/proc/{self.machine.host.pid}/net/dev").read_text()

    def left(self) -> tuple[list[str], int, set[str]]:
        """Return what is there that a start could leave: settings, the number of processes, files."""
        host = self.machine.host
        places = [Path(f"/proc/{host.pid}/root/run"), self.machine.state, self.machine.runtime]
        files = {str(each) for place in places for each in place.rglob("*") if not each.is_dir()}
        made = {str(self.memif)} if self.memif is not None and self.memif.exists() else set()
        return self.machine.settings(), _processes(host.pid), files | made


def _processes(holder: int) -> int:
    """Return how many processes are in the network namespace of a process."""
    count, wanted = 0, Path(f"/proc/{holder}/ns/net").readlink()
    for each in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):
            count += each.readlink() == wanted
    return count


def _make(site: Site, form: str, *, memif: bool) -> Starting:
    home = site.machine("home", own_run=True)
    socket = site.directory / "m" if memif else None
    words = f"--engine native --memif {socket},role=server" if memif else "--interface wg7"
    machine = home
    if form == "serve":
        argv = home.command(f"serve --pool {POOL} {OPEN} {words}")
    elif form == "join":
        machine = site.client("first", home, own_run=True)
        home.serve(f"--pool {POOL} {OPEN}")
        machine.run(f"join {HOME4} --save-only --name first", TOKEN)
        argv = machine.command(f"join {words}")
    elif form == "up":
        file = site.directory / "wg7.conf"
        file.write_text(
            f"[Interface]\nPrivateKey = {base64(Key().private)}\nAddress = 10.7.0.1/24\n"
            f"[Peer]\nPublicKey = {base64(Key().public)}\nAllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.9:9\n"
        )
        file.chmod(0o600)
        argv = home.command(f"up {file} --foreground {words if memif else ''}")
    else:
        argv = [*rustguard_wg.argv(site.directory), *(words.split()[2:] if memif else []), "wg7"]
    return Starting(machine, argv, socket)


def _after(pause: float, _: subprocess.Popen[str]) -> None:
    time.sleep(pause)


def _stop(starting: Starting, moment: Callable[[subprocess.Popen[str]], None], number: int) -> None:
    program = starting.start()
    moment(program)
    if program.poll() is None:
        program.send_signal(number)
    code = program.wait(PATIENCE)
    assert code in {-number, 0, 1}, starting.machine.said()


@pytest.mark.fault(52)
@pytest.mark.parametrize(
    ("form", "memif"),
    [
        pytest.param(form, memif, marks=[needs_native] * memif, id=f"{form}-{'memif' if memif else 'tun'}")
        for form, memif in FORMS
    ],
)
def test_a_start_that_a_signal_ends_leaves_nothing(
    lab: Lab, tmp_path: Path, form: str, *, memif: bool, soak: bool
) -> None:
    starting = _make(Site(lab, tmp_path), form, memif=memif)
    # What the first run keeps, stays: keys, the lock, the log.
    began = time.monotonic()
    program = starting.start()
    eventually(starting.is_made, what="the start")
    length = time.monotonic() - began
    time.sleep(1.0 if soak else 0.3)
    program.terminate()
    program.wait(PATIENCE)
    before = starting.left()

    def at_once(program: subprocess.Popen[str]) -> None:
        while not starting.is_made() and program.poll() is None:
            time.sleep(0.0005)

    for number in (signal.SIGTERM, signal.SIGHUP):
        _stop(starting, at_once, number)
        assert starting.left() == before, starting.machine.said()
    chance = random.Random(form)
    for _ in range(MOMENTS if soak else 0):
        pause = chance.uniform(0.0, 1.3 * length)
        _stop(starting, partial(_after, pause), signal.SIGTERM)
        assert starting.left() == before, (pause, starting.machine.said())
    if (state := starting.machine.state / "state.json").exists():
        envelope.decode(state.read_bytes())
