"""Programs of ours as forks of the test run, each in a host of the lab.

On an emulated processor a start of Python that imports everything takes ten seconds and more, a fork none. What they
run is the same.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from rustguard_py.lab.hosts import Host
from support.child import Child
from support.product import Machine, Site


class Forked(Child):
    """A child process with what of `subprocess.Popen` the lab and the tests use.

    Args:
        host: Whose network it has.
        work: What it does; its exit code is 0, or 1 if it raised something.
        log: A file to append stdout and stderr to.
    """

    def __init__(self, host: Host, work: Callable[[], None], log: Path) -> None:
        with warnings.catch_warnings():
            # Later Pythons warn of forks beside threads; ours are ended when nothing runs.
            warnings.simplefilter("ignore")
            self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                _settle(host, log)
                work()
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        # It is ended with the lab, as others are.
        host._programs.append(cast("subprocess.Popen[str]", self))

    def poll(self) -> int | None:
        """Give the exit code, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a fork", timeout)
            time.sleep(0.02)
        return code


def _settle(host: Host, log: Path) -> None:
    os.setsid()
    for name in ("net", "mnt") if any(word.startswith("--mount") for word in host.command([])) else ("net",):
        with Path(f"/proc/{host.pid}/ns/{name}").open() as namespace:
            # setns(2); the C library's, as Python has it only since 3.12.
            _setns(namespace.fileno())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    # By the end of such pipes the hosts know that they shall end. Put aside, not closed: their numbers stay taken.
    for descriptor in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.dup2(nothing, descriptor)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(nothing, 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    warnings.simplefilter("ignore")


def _setns(descriptor: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
        raise OSError(ctypes.get_errno(), "setns")


class ForkedMachine(Machine):
    """A `Machine` whose programs are forks."""

    def start(self, words: str, token: str | None = None) -> Any:
        """Start `rustguard WORDS`; what it says goes to the log."""
        program = Forked(self.host, lambda: self._main(words, token, state=True), self.log)
        self.programs.append(program)  # type: ignore[arg-type]
        return program

    def run(
        self, words: str, token: str | None = None, *, check: bool = True, state: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `rustguard WORDS` to its end."""
        said = self.state.with_suffix(".ran")
        said.unlink(missing_ok=True)
        code = Forked(self.host, lambda: self._main(words, token, state=state), said).wait()
        text = said.read_text()
        assert code == 0 or not check, f"rustguard {words} ended with {code}: {text}"
        return subprocess.CompletedProcess(words, code, text, text)

    def environment(self, token: str | None) -> dict[str, str]:
        """What is added to our environment; the engine is the command line's choice."""
        return super().environment(token) | {"RUSTGUARD_ENGINE": "auto"}

    def _main(self, words: str, token: str | None, *, state: bool) -> None:
        from rustguard_py.cli import main

        os.environ.update(self.environment(token))
        sys.argv = ["rustguard", *self.command(words, state=state)[3:]]
        main()


class ForkedSite(Site):
    """A `Site` of such machines."""

    def machine(self, name: str, host: Host | None = None, *, own_run: bool = False) -> Machine:
        """See `Site.machine`."""
        host = host or self.lab.host(name, own_run=own_run)
        made = ForkedMachine(host, self.directory / name, self.directory / f"{host.name}.run")
        self.machines.append(made)
        return made


def preload(modules: Sequence[str]) -> None:
    """Import what the forks will need, once."""
    for name in modules:
        __import__(name)
