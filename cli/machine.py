"""A host of a lab that runs `rustguard` as a person would. `demo` and `bench` use it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rustguard_py.lab.hosts import Host
from rustguard_py.model.errors import RustGuardError
from rustguard_py.system.own_python import import_path

# Seconds after which anything counts as failed.
PATIENCE = 30.0


@dataclass(slots=True)
class Machine:
    """A host, and how `rustguard` runs on it.

    Attributes:
        host: The host.
        state: Its state directory.
        runtime: Its runtime directory.
        token: The token of its commands.
    """

    host: Host
    state: Path
    runtime: Path
    token: str = field(repr=False)

    def _environment(self) -> dict[str, str]:
        own = {"RUSTGUARD_RUNTIME": str(self.runtime), "RUSTGUARD_TOKEN": self.token, "COLUMNS": "110"}
        return {**own, **import_path()}

    def _argv(self, words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "rustguard_py.cli", *words.split(), "--state", str(self.state)]

    def start(self, words: str) -> subprocess.Popen[str]:
        """Start `rustguard WORDS`, with its output in `log`."""
        return self.host.popen(self._argv(words), log=self.log, env=self._environment())

    def run(self, words: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `rustguard WORDS` and return its output once it has ended."""
        return self.host.run(self._argv(words), env=self._environment(), check=check, timeout=PATIENCE)

    def status(self) -> dict[str, Any]:
        """Return the status document."""
        document: dict[str, Any] = json.loads(self.run("status --json").stdout)
        return document

    def reaches(self, address: str) -> bool:
        """Return whether a ping is answered."""
        return self.host.run(["ping", "-c", "1", "-W", "1", address], check=False).returncode == 0

    @property
    def log(self) -> Path:
        """The file with the output of its programs."""
        return self.state.with_suffix(".log")


def offload_words(offloads: str | None) -> str:
    """Return the words that hand a list of `--offloads` on to `serve` or `join`; none without a list."""
    return "" if offloads is None else f" --offloads {''.join(offloads.split())}"


def eventually(what: str, attempt: Callable[[], Any], programs: Mapping[str, subprocess.Popen[str]]) -> Any:
    """Return the first true result of repeated attempts.

    Args:
        what: What the attempts wait for, for the error.
        attempt: Called repeatedly. A RustGuardError of it is no failure before the time is up.
        programs: Programs that must keep running meanwhile, by name.

    Raises:
        RustGuardError: It didn't come within `PATIENCE`, or a program ended.
    """
    deadline = time.monotonic() + PATIENCE
    why = "nothing"
    while time.monotonic() < deadline:
        for name, program in programs.items():
            if program.poll() is not None:
                raise RustGuardError(f"{name} ended with exit code {program.returncode}")
        try:
            if result := attempt():
                return result
        except RustGuardError as error:
            why = error.message
        time.sleep(0.02)
    raise RustGuardError(f"{what} did not come within {PATIENCE:.0f} s: {why}")
