"""Machines in a lab that run the command `rustguard` as a person would, and what can be seen of them.

The server is `home`; each client has a link of its own to it, so that any of them can lose its network:

    home 198.51.100.1 ── 198.51.100.2 first        2001:db8:0::1 ── 2001:db8:0::2
    home 198.51.100.9 ── 198.51.100.10 second      2001:db8:1::1 ── 2001:db8:1::2
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from rustguard_py.daemon.control.client import call
from rustguard_py.engine import has_native
from rustguard_py.lab.hosts import End, Host, Lab
from rustguard_py.model.errors import RustGuardError
from support import preloaded
from support.waiting import rest

TOKEN = "maple-comet-fjord"  # noqa: S105 - of a lab that lives for seconds
POOL = "10.150.0.0/24"
HOME4, HOME6 = "198.51.100.1", "2001:db8::1"
INNER = "10.150.0.1"
# For what takes a moment, on a machine that is slow and busy.
PATIENCE = 60.0
# Long enough for any test: where a window should close, the test closes it.
OPEN = "--open 3600"

Result = TypeVar("Result")


def eventually(attempt: Callable[[], Result], seconds: float = PATIENCE, what: str = "it") -> Result:
    """Try until something true comes of it; what the lab or a daemon refuses meanwhile is no failure yet."""
    deadline = time.monotonic() + seconds
    why: object = "nothing true came"
    while (began := time.monotonic()) < deadline:
        try:
            if result := attempt():
                return result
        except RustGuardError as error:
            why = error
        time.sleep(rest(began))
    raise AssertionError(f"{what} did not happen within {seconds:g} s: {why}")


@dataclass(slots=True)
class Machine:
    """A host, a state directory on it, and the programs of ours that use it.

    Attributes:
        end: Its end of the link to the server; None for the server.
        gateway: The server's end of it.
    """

    host: Host
    state: Path
    runtime: Path
    end: End | None = None
    gateway: End | None = None
    programs: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, words: str, *, state: bool = True) -> list[str]:
        """The command line of `rustguard WORDS`."""
        own = ["--state", str(self.state)] if state else []
        return [sys.executable, "-m", "rustguard_py.cli", *words.split(), *own]

    def environment(self, token: str | None) -> dict[str, str]:
        """What is added to our environment."""
        given = {} if token is None else {"RUSTGUARD_TOKEN": token}
        # `auto` would take the kernel's where that is there, and `tests/kernel` is about it.
        ours = os.environ.get("RUSTGUARD_ENGINE", "native" if has_native() else "portable")
        return {"RUSTGUARD_RUNTIME": str(self.runtime), "RUSTGUARD_ENGINE": ours, **given}

    def start(self, words: str, token: str | None = None) -> subprocess.Popen[str]:
        """Start `rustguard WORDS`; what it says goes to the log."""
        program = preloaded.popen(self.host, self.command(words), log=self.log, env=self.environment(token))
        self.programs.append(program)
        return program

    def run(
        self, words: str, token: str | None = None, *, check: bool = True, state: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `rustguard WORDS` to its end."""
        argv = self.command(words, state=state)
        return preloaded.run(self.host, argv, env=self.environment(token), check=check, timeout=120)

    def serve(self, words: str = f"--pool {POOL}", token: str | None = TOKEN) -> subprocess.Popen[str]:
        """Start a server and wait until it can be asked."""
        listening = self._listening()
        program = self.start(f"serve {words}", token)
        eventually(lambda: self.alive(program) and self._listening() > listening, what=f"serve {words}")
        return program

    def join(
        self, server: str = HOME4, words: str = "", token: str | None = TOKEN, reach: str = INNER
    ) -> subprocess.Popen[str]:
        """Start a client and wait until it reaches an inner address."""
        if token is not None and "--name" not in words:
            words += f" --name {self.state.name}"
        program = self.start(f"join {server} {words}", token)
        eventually(lambda: self.alive(program) and self.pings(reach), what=f"join {server} {words}")
        return program

    def alive(self, program: subprocess.Popen[str]) -> bool:
        """Whether it still runs; that it ended early is told with what it said."""
        if program.poll() is not None:
            raise AssertionError(f"{self.host.name} ended with {program.returncode}:\n{self.said()}")
        return True

    def pings(self, address: str, seconds: float = 1.0) -> bool:
        """Whether one ping is answered."""
        return self.host.run(["ping", "-n", "-c1", f"-W{seconds}", address], check=False).returncode == 0

    def reaches(self, address: str) -> bool:
        """Wait until a ping is answered."""
        return eventually(lambda: self.pings(address), what=f"a ping to {address}")

    @property
    def control(self) -> Path:
        """The daemon's control socket."""
        return self.runtime / f"{sha256(str(self.state.resolve()).encode()).hexdigest()[:16]}.sock"

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the daemon, as the commands do, without the start of one."""
        return call(self.control, method, params)

    def status(self) -> dict[str, Any]:
        """The status document."""
        return self.ask("status")

    def peers(self) -> dict[str, dict[str, Any]]:
        """The server's peers, by name."""
        return {peer["name"]: peer for peer in self.ask("peers")["peers"]}

    def saved(self) -> dict[str, Any]:
        """What the state file holds."""
        document: dict[str, Any] = json.loads((self.state / "state.json").read_text())
        return document

    @property
    def own_end(self) -> End:
        """A client's end of the link to the server."""
        assert self.end is not None, f"{self.host.name} has no link to a server"
        return self.end

    @property
    def servers_end(self) -> End:
        """The server's end of a client's link."""
        assert self.gateway is not None, f"{self.host.name} has no link to a server"
        return self.gateway

    @property
    def log(self) -> Path:
        """Where what its programs say goes."""
        return self.state.with_suffix(".said")

    def said(self) -> str:
        """What its programs said."""
        return self.log.read_text() if self.log.exists() else ""

    def name_server(self, hosts: str) -> None:
        """Say what names this machine knows, as /etc/hosts has it; its host has an `own_run`, and so own mounts.

        Called again, it is what the names are from then on.
        """
        names, nothing = (self.state.with_suffix(suffix) for suffix in (".hosts", ".resolv"))
        first = not names.exists()
        names.write_text(f"127.0.0.1 localhost\n{hosts}")
        if first:
            nothing.touch()
            for file, over in ((names, "/etc/hosts"), (nothing, "/etc/resolv.conf")):
                self.host.run(["mount", "--bind", file, over])

    def network(self) -> set[str]:
        """Its interfaces, addresses and routes, a line each, but for what the kernel makes of a link by itself."""
        lines: list[str] = []
        for what in ("-o addr", "-4 route show table all", "-6 route show table all"):
            lines += self.host.run(["ip", *what.split()]).stdout.splitlines()
        return {
            re.sub(r"^\d+: |valid_lft.*| linkdown", "", line).strip()
            for line in lines
            if not re.search("fe80|ff00", line)
        }

    def settings(self) -> list[str]:
        """What a tunnel could change here, besides its sockets."""
        read = (
            "ip -o link | cut -d' ' -f2; ip -o addr | sed 's/valid_lft.*//'; ip rule; ip -6 rule;"
            "ip route show table all; ip -6 route show table all | sed 's/expires [0-9]*sec//';"
            "nft list ruleset; md5sum /etc/hosts /etc/resolv.conf;"
            "sysctl -a 2> /dev/null | grep -E '^net\\.(ipv4|ipv6)\\.(conf|ip_forward)'"
        )
        return self.host.run(["sh", "-c", read]).stdout.splitlines()

    def _listening(self) -> int:
        return sum(name.endswith(".sock") for name in self.sockets())

    def sockets(self) -> list[str]:
        """Its control sockets and what belongs to them."""
        return sorted(path.name for path in self.runtime.glob("*")) if self.runtime.exists() else []


@dataclass(slots=True)
class Site:
    """A server and its clients."""

    lab: Lab
    directory: Path
    machines: list[Machine] = field(default_factory=list)

    def machine(self, name: str, host: Host | None = None, *, own_run: bool = False) -> Machine:
        """Make a machine; a second one on the same host shares its runtime directory."""
        host = host or self.lab.host(name, own_run=own_run)
        made = Machine(host, self.directory / name, self.directory / f"{host.name}.run")
        self.machines.append(made)
        return made

    def home(self) -> Machine:
        """Make the server's machine."""
        return self.machine("home")

    def client(self, name: str, home: Machine, *, own_run: bool = False) -> Machine:
        """Make a client's machine, with a link to the server's."""
        made = self.machine(name, own_run=own_run)
        number = len(home.host.ends)
        made.gateway, made.end = self.lab.link(
            home.host, made.host, ipv4=f"198.51.100.{8 * number}/29", ipv6=f"2001:db8:{number}::/64"
        )
        return made


@dataclass(slots=True)
class Pinging:
    """A ping that goes on and on, and how it was answered.

    Attributes:
        interval: Seconds between two.
    """

    program: subprocess.Popen[str]
    output: Path
    interval: float

    @classmethod
    def begin(cls, machine: Machine, address: str, interval: float = 0.2) -> Pinging:
        """Begin, and wait for the first answer."""
        output = machine.state.with_suffix(".pings")
        program = machine.host.popen(["ping", "-n", "-O", f"-i{interval}", address], log=output)
        made = cls(program, output, interval)
        eventually(lambda: made.answered(), what="the first answer")
        return made

    def answered(self) -> list[int]:
        """The numbers of those that were answered, in order."""
        text = self.output.read_text() if self.output.exists() else ""
        return sorted({int(each) for each in re.findall(r"bytes from .*icmp_seq=(\d+)", text)})

    def more(self, count: int, seconds: float = PATIENCE) -> None:
        """Wait until this many more are answered."""
        wanted = len(self.answered()) + count
        eventually(lambda: len(self.answered()) >= wanted, seconds, f"{count} more answers")

    def end(self) -> list[int]:
        """End it; give the numbers of those that were never answered, though a later one was."""
        self.program.terminate()
        self.program.wait()
        answered = set(self.answered())
        return [number for number in range(1, max(answered)) if number not in answered]
