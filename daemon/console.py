"""Output of the daemons for the person at the terminal, and for the service manager."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rustguard_py.daemon.service_manager import ServiceManager


@dataclass(frozen=True, slots=True)
class Voice:
    """Two functions that print a line, and the service manager.

    Attributes:
        change: Prints a change to the system, `[#] ip …`.
        say: Prints anything else.
        manager: Who started the daemon as a service, if somebody did.
    """

    change: Callable[[str], None]
    say: Callable[[str], None]
    manager: ServiceManager = field(default_factory=ServiceManager)
