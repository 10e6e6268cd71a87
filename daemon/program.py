"""The running program: role, state directory, interface and engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rustguard_py.engine import Engine
from rustguard_py.sandbox.report import NOTHING, Report
from rustguard_py.state.paths import Role


@dataclass(frozen=True, slots=True)
class Program:
    """The running program.

    Attributes:
        role: The role of its state.
        directory: The state directory.
        interface: The name of its interface.
        engine: The engine that runs its tunnel.
        began: When it started, on the clock of `rustguard_py.model.clock`.
        sandbox: What it gave up of its privileges.
        tun: Descriptors of the interface's queues if it exists already, as with `--rootless`.
    """

    role: Role
    directory: Path
    interface: str
    engine: Engine
    began: float
    sandbox: Report = NOTHING
    tun: tuple[int, ...] = ()
