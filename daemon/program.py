"""What runs: role, state directory, interface, engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rustguard_py.engine import Engine
from rustguard_py.state.paths import Role


@dataclass(frozen=True, slots=True)
class Program:
    """What runs.

    Attributes:
        role: Of the state that it runs on.
        directory: Where that lies.
        interface: The name of its interface.
        engine: What moves its packets.
        began: When, on the clock of `rustguard_py.model.clock`.
    """

    role: Role
    directory: Path
    interface: str
    engine: Engine
    began: float
