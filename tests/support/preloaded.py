"""Our programs as forks of a process that has imported them already.

A start of Python that imports a daemon takes a quarter of a second of a core, and the tests make a thousand starts.
So a test run keeps a process for each kind of program. It has imported what a start of that kind imports at first,
and forks. What a program imports later, perhaps without the right to read files, it still imports itself.

Programs are started as usual in the long form (`make soak`), in tests marked `fresh`, which test the start itself,
and where the command line is of another kind: with a program before ours, for example.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, cast

from rustguard_py.lab.hosts import Host
from rustguard_py.model.errors import RustGuardError
from support import preloaded_parent
from support.child import Child

_NOTHING = Path(os.devnull)
_PROGRAMS = {"rustguard_py.cli", "rustguard_py.cli.wg"}
_DAEMON = ("cli.app", "cli.daemon", "cli.foreground")
_WG = ("cli.wg", "cli.foreground", "quick.wg_daemon", "quick.wg_vpp")
_VERBS = ("status", "peers", "open_window", "close_window", "stop")
# Of each kind, the parts of `rustguard_py` that it imports.
_KINDS = {
    "serve": (*_DAEMON, "cli.serve", "enroll.server.settings", "enroll.server.start"),
    "join": (*_DAEMON, "cli.join", "enroll.client.routes", "enroll.client.start"),
    "up": (*_DAEMON, "cli.up", "quick.conf_files", "quick.up"),
    "down": ("cli.app", "cli.down", "quick.conf_files"),
    "wg": _WG,
    # It makes a plane before it does anything else, and gives no rights up.
    "wg portable": (*_WG, "planes.portable"),
    "ask": ("cli.app", "cli.daemon", "cli.render", *(f"cli.{name}" for name in _VERBS)),
}
_ASKING = {"status", "peers", "open", "close", "stop"}
# What Python and the C library read at their start only.
_READ_ONCE = ("PYTHON", "LC_", "LANG", "LD_", "TZ", "GLIBC_", "MALLOC_", "OPENSSL_", "OPENBLAS_")
# Some tests start programs in several threads.
_LOCK = threading.Lock()


class Switch:
    """Whether programs are forks; `conftest.py` sets it for each test."""

    on = False


class Preloaded(Child):
    """A program, with those parts of `subprocess.Popen` that the lab and the tests use."""

    def __init__(self, args: Sequence[str], pid: int, status: int) -> None:
        self.args = args
        self.pid = pid
        self._status = status

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            told = os.read(self._status, 16)
            os.close(self._status)
            assert told, "the process that forks is gone"
            self.returncode = int(told)
        return self.returncode


class _Parent:
    """The process that forks programs of a kind."""

    def __init__(self, kind: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, preloaded_parent.__file__, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                [*argv, *(f"rustguard_py.{name}" for name in _KINDS[kind])],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._channel.close()
        self._process.wait()

    def fork(self, program: _Program, host: Host, streams: Sequence[IO[str]]) -> Preloaded:
        """Fork a program in a host, with these standard streams."""
        namespaces, folder = _entering(host)
        request = {
            "words": program.words,
            "environment": program.environment,
            "namespaces": namespaces,
            "folder": folder,
        }
        status, told = os.pipe2(os.O_CLOEXEC)
        with _LOCK:
            try:
                descriptors = [*(each.fileno() for each in streams), told]
                socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
            finally:
                os.close(told)
            answer = self._channel.recv(preloaded_parent.LONGEST)
        assert answer, f"the process that forks is gone: {self._process.wait()}"
        return Preloaded(program.words, int(answer), status)


@cache
def _made(kind: str) -> _Parent:
    return _Parent(kind)


def _parent(kind: str) -> _Parent:
    with _LOCK:
        return _made(kind)


@dataclass(frozen=True, slots=True)
class _Program:
    """A program that can be a fork.

    Attributes:
        kind: Which process forks it.
        words: Its module and arguments.
        environment: All of it.
    """

    kind: str
    words: list[str]
    environment: dict[str, str]

    @classmethod
    def of(cls, argv: Sequence[str], host: Host, env: Mapping[str, str] | None) -> _Program | None:
        """Return the program of a command line, or None where it is started as usual."""
        if not Switch.on:
            return None
        environment = {**os.environ, **host._environment, **(env or {})}
        words = list(argv)
        if words[0] == "env":
            del words[0]
            while "=" in words[0]:
                name, _, value = words.pop(0).partition("=")
                environment[name] = value
        # It has an effect only where PYTHONSAFEPATH isn't set, as it is for all tests.
        if words[1:2] == ["-P"]:
            del words[1]
        if words[:2] != [sys.executable, "-m"] or words[2] not in _PROGRAMS or len(words) < 4:
            return None
        names = {name for name in environment.keys() | os.environ.keys() if name.startswith(_READ_ONCE)}
        if any(environment.get(name) != os.environ.get(name) for name in names):
            return None
        if words[2].endswith(".wg"):
            kind = "wg portable" if environment.get("RUSTGUARD_ENGINE") == "portable" else "wg"
        else:
            kind = "ask" if words[3] in _ASKING else words[3]
        return cls(kind, words[2:], environment) if kind in _KINDS else None


def _entering(host: Host) -> tuple[list[str], str]:
    """Return the namespaces of a host and the folder to work in, as its command of nsenter(1) has them."""
    program, *options, end = host.command([])
    given = dict(option.removeprefix("--").split("=", 1) for option in options)
    assert (program, end) == ("nsenter", "--")
    assert given.keys() <= {"net", "mount", "wdns"}
    return [given[name] for name in ("net", "mount") if name in given], given.get("wdns", str(Path.cwd()))


def popen(
    host: Host, argv: Sequence[str], *, log: Path | None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a program as `Host.popen` does. Without a log, its output is discarded."""
    program = _Program.of(argv, host, env)
    if program is None:
        return host.popen(argv, log=log or _NOTHING, env=env)
    with _NOTHING.open() as nothing, (log or _NOTHING).open("a") as said:
        started = cast("subprocess.Popen[str]", _parent(program.kind).fork(program, host, [nothing, said, said]))
    # It is ended with the host, as others are.
    host._programs.append(started)
    return started


def run(
    host: Host,
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end as `Host.run` does."""
    program = _Program.of(argv, host, env)
    if program is None:
        return host.run(argv, timeout=timeout, check=check, env=env)
    with _NOTHING.open() as nothing, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        started = _parent(program.kind).fork(program, host, [nothing, out, err])
        try:
            code = started.wait(timeout)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
            raise
        for file in (out, err):
            file.seek(0)
        done = subprocess.CompletedProcess(argv, code, out.read(), err.read())
    if check and code:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise RustGuardError(f"In host {host.name}, {argv[0]} ended with {code}: {said}")
    return done
