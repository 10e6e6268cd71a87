"""A host of a lab on which `rustguard` runs as a person would run it: for `demo` and `bench`."""

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

# What anything may take before it counts as failed, seconds.
PATIENCE = 30.0


@dataclass(slots=True)
class Machine:
    """A host and the programs of ours on it.

    Attributes:
        host: Where they run.
        state: Its state directory.
        runtime: Its runtime directory.
        token: What the programs are given.
    """

    host: Host
    state: Path
    runtime: Path
    token: str = field(repr=False)

    def _environment(self) -> dict[str, str]:
        return {"RUSTGUARD_RUNTIME": str(self.runtime), "RUSTGUARD_TOKEN": self.token, "COLUMNS": "110"}

    def _argv(self, words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "rustguard_py.cli", *words.split(), "--state", str(self.state)]

    def start(self, words: str) -> subprocess.Popen[str]:
        """Start `rustguard WORDS`; what it says goes to a log."""
        return self.host.popen(self._argv(words), log=self.log, env=self._environment())

    def run(self, words: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `rustguard WORDS` to its end."""
        return self.host.run(self._argv(words), env=self._environment(), check=check, timeout=PATIENCE)

    def status(self) -> dict[str, Any]:
        """Give the status document."""
        document: dict[str, Any] = json.loads(self.run("status --json").stdout)
        return document

    def reaches(self, address: str) -> bool:
        """Say whether a ping is answered."""
        return self.host.run(["ping", "-c", "1", "-W", "1", address], check=False).returncode == 0

    @property
    def log(self) -> Path:
        """Where what its programs say goes."""
        return self.state.with_suffix(".log")


def eventually(what: str, attempt: Callable[[], Any], programs: Mapping[str, subprocess.Popen[str]]) -> Any:
    """Try until it gives something that is true.

    Args:
        what: What is waited for, for the error.
        attempt: Called again and again; what it raises is no failure yet.
        programs: What must go on running meanwhile, by name.

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
