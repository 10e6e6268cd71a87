"""A machine on which an ordinary user runs the command `rustguard`, and what is left of it on this machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import rustguard_py
from rustguard_py.lab.hosts import Host
from support.product import PATIENCE, Machine, Site

# No user of this machine, and another one in each worker: what runs under it is ours.
USER = 64321 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))

# Linux' numbers of system calls.
_CALLS = {"x86_64": {"unshare": 272, "mount": 165}, "aarch64": {"unshare": 97, "mount": 40}}
# A program under a filter by which one system call gets EPERM (seccomp(2)).
_FILTERED = """
import ctypes, os, struct, sys
number, words = int(sys.argv[1]), sys.argv[2:]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(filter))
library = ctypes.CDLL(None, use_errno=True)
assert library.prctl(38, 1, 0, 0, 0) == 0
assert library.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0, ctypes.get_errno()
os.execvp(words[0], words)
"""


@dataclass(slots=True)
class User(Machine):
    """A machine whose programs run as `USER`, without privileges.

    Attributes:
        prefix: Words before each command line, after becoming the user.
    """

    prefix: list[str] = field(default_factory=list)

    def command(self, words: str, *, state: bool = True) -> list[str]:
        """The command line of `rustguard WORDS`, or with `exec` what has its own command line behind `--`."""
        ours = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *self.prefix]
        plain = Machine.command(self, words, state=state and not words.startswith(("exec", "stop")))
        return [*ours, *plain]

    def environment(self, token: str | None) -> dict[str, str]:
        """What is added to our environment."""
        home = str(self.state.parent)
        return {**Machine.environment(self, token), "HOME": home, "XDG_STATE_HOME": f"{home}/xdg"}

    def inside(self, words: str) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end."""
        return self.run(f"exec -- {words}", check=False)

    def pings(self, address: str, seconds: float = 1.0) -> bool:
        """Whether one ping from inside is answered."""
        return self.inside(f"ping -n -c1 -W{seconds:g} {address}").returncode == 0


def let_in(host: Host) -> None:
    """Let every user of a host, which has mounts of its own, reach the interpreter and what it imports."""
    wanted = [Path(sys.executable), Path(sys.executable).resolve(), Path(rustguard_py.__file__).resolve()]
    for path in dict.fromkeys([*wanted, *map(Path, sys.path)]):
        for place in reversed(path.parents):
            below = place / path.relative_to(place).parts[0]
            open_to_all = host.run(["stat", "-c", "%a", place]).stdout.strip()[-1:] in "1357"
            if not open_to_all and below.is_dir():
                cover = (
                    f"mkdir -p /run/kept && mount --bind {below} /run/kept && mount -t tmpfs -o mode=755 t {place}"
                )
                show = f"mkdir {below} && mount --bind /run/kept {below} && umount /run/kept"
                host.run(["sh", "-c", f"{cover} && {show}"])


def processes() -> dict[int, str]:
    """The processes of `USER`, with their command lines."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if entry.stat().st_uid == USER or _owner(entry) == USER:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return found


def left_of(machine: User) -> dict[str, int]:
    """How much of a user is on this machine: processes, their network namespaces, sockets, and files in its home."""
    found = processes()
    namespaces = set()
    for process in found:
        with suppress(OSError):
            namespaces.add(Path(f"/proc/{process}/ns/net").readlink())
    return {
        "processes": len(found),
        "namespaces": len(namespaces),
        "sockets": len(machine.sockets()),
        "files": sum(1 for _ in machine.state.parent.rglob("*")),
    }


def _owner(entry: Path) -> int:
    """Whose process it is: the folder of one that keeps others out belongs to root."""
    lines = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
    return int(lines["Uid"].split()[1])


def without(call: str) -> list[str]:
    """Return the words that run a program to which a system call is refused, as in some containers."""
    return [sys.executable, "-c", _FILTERED, str(_CALLS[platform.machine()][call])]


@contextmanager
def user_on(site: Site, name: str, home: Machine) -> Iterator[User]:
    """A user's machine with a link to the server's, and a home that goes away after the test."""
    place = Path(tempfile.mkdtemp(prefix="rg-home-", dir="/tmp"))
    try:
        os.chown(place, USER, USER)
        plain = site.client(name, home, own_run=True)
        let_in(plain.host)
        (place / "run").mkdir(0o700)
        os.chown(place / "run", USER, USER)
        made = User(plain.host, place / name, place / "run", plain.end, plain.gateway)
        yield made
        for program in made.programs:
            program.terminate()
            program.wait(PATIENCE)
    finally:
        shutil.rmtree(place)
