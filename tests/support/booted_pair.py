"""A server's machine and a client's, each a Debian that boots, made into a network by four commands."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rustguard_py.lab.hosts import End, Lab
from support.booted import Booted
from support.debian_root import Root, archive, package
from support.product import eventually

# What a usual Debian has that the smallest one lacks; apt then has nothing to fetch.
TOOLS = (
    *("dbus", "iproute2", "iputils-ping", "libpam-systemd", "nftables", "openssh-server", "python3"),
    *("systemd", "systemd-sysv"),
)
INNER, CLIENT_INNER = "10.150.0.1", "10.150.0.2"
TOKEN = "maple-comet-fjord"  # noqa: S105 - of a lab that lives for minutes


@dataclass(slots=True)
class Pair:
    """Two machines that were made a network.

    Attributes:
        server: The one.
        client: The other.
        client_end: The client's end of the link between them.
        address: The server's address on that link.
        typed: The commands that were typed, in order.
        apt_seconds: How long each `apt install` took.
        ping_seconds: How long everything else took, from the first command to the first ping.
    """

    server: Booted
    client: Booted
    client_end: End
    address: str
    typed: list[str] = field(default_factory=list)
    apt_seconds: list[float] = field(default_factory=list)
    ping_seconds: float = 0.0

    def connect(self) -> None:
        """Type the four commands, and wait for the first ping."""
        serve = f"rustguard serve --pool 10.150.0.0/24 --token {TOKEN} --open --service"
        join = f"rustguard join {self.address} --token {TOKEN} --service"
        for machine, command in ((self.server, serve), (self.client, join)):
            shutil.copyfile(package(), machine.root.folder / "root" / package().name)
            began = time.monotonic()
            self._type(machine, f"apt install -y ./{package().name}")
            installed = time.monotonic()
            self._type(machine, command)
            self.apt_seconds.append(installed - began)
            self.ping_seconds += time.monotonic() - installed
        began = time.monotonic()
        eventually(self.reaches, what="the first ping")
        self.ping_seconds += time.monotonic() - began

    def _type(self, machine: Booted, command: str) -> None:
        self.typed.append(command)
        machine.run(["sh", "-c", f"cd /root && {command}"])

    def reaches(self) -> bool:
        """Return whether the client reaches the server through the tunnel."""
        return self.client.run(["ping", "-n", "-c1", "-W1", INNER], check=False).returncode == 0


@contextmanager
def booted_pair(folder: Path, suite: str) -> Iterator[Pair]:
    """Boot two machines of a suite, and make them a network."""
    with Lab() as lab, ExitStack() as stack:
        hosts = lab.host("home"), lab.host("laptop")
        there, here = lab.link(*hosts, ipv4="192.0.2.0/24")
        booted: list[Booted] = []
        for host in hosts:
            booted.append(Booted(Root(folder / host.name, archive(suite, include=TOOLS)), host))
            stack.callback(booted[-1].close)
        pair = Pair(booted[0], booted[1], here, str(there.ipv4))
        pair.connect()
        yield pair


def shown(machine: Booted, unit: str, *names: str) -> list[str]:
    """Return what systemd shows of a unit, by the names of its properties."""
    done = machine.run(["systemctl", "show", unit, *(f"--property={each}" for each in names)])
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return [found[each] for each in names]


def main_process(machine: Booted, unit: str) -> str:
    """Return the main process of a unit that is active; empty if it isn't."""
    state, process = shown(machine, unit, "ActiveState", "MainPID")
    return process if state == "active" and process != "0" else ""


def newer_package(folder: Path, version: str) -> Path:
    """Return our package under a newer version, which the program in it has too."""
    content = folder / "newer"
    subprocess.run(["dpkg-deb", "--raw-extract", package(), content], check=True)
    control = content / "DEBIAN/control"
    lines = [
        f"Version: {version}" if line.startswith("Version:") else line for line in control.read_text().splitlines()
    ]
    control.write_text("\n".join(lines) + "\n")
    program = content / "usr/lib/rustguard/rustguard_py/__init__.py"
    program.write_text(program.read_text() + f'__version__ = "{version}"\n')
    made = folder / f"rustguard_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", "-Zgzip", "-z1", content, made], check=True)
    shutil.rmtree(content)
    return made
