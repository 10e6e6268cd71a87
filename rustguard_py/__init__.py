"""RustGuard: a zero-config enrollment VPN that speaks WireGuard on the wire.

`connect` is a tunnel inside a Python program: docs/guide/embedding.md. What is named here is imported when it is
first used, because every command of ours imports this module too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rustguard_py.embed.connect import Connecting, connect
    from rustguard_py.embed.statistics import PeerStatistics, Statistics
    from rustguard_py.embed.tunnels import AsyncTunnel, SyncTunnel
    from rustguard_py.model.errors import (
        ClosedError,
        InUseError,
        RefusedError,
        RustGuardError,
        StateError,
        UnansweredError,
        UsageError,
    )
    from rustguard_py.planes.contract import Packet

__all__ = [
    "AsyncTunnel",
    "ClosedError",
    "Connecting",
    "InUseError",
    "Packet",
    "PeerStatistics",
    "RefusedError",
    "RustGuardError",
    "StateError",
    "Statistics",
    "SyncTunnel",
    "UnansweredError",
    "UsageError",
    "__version__",
    "connect",
]

__version__ = "0.2.0"

_HOMES = {
    "embed.connect": ("Connecting", "connect"),
    "embed.statistics": ("PeerStatistics", "Statistics"),
    "embed.tunnels": ("AsyncTunnel", "SyncTunnel"),
    "planes.contract": ("Packet",),
    "model.errors": (
        "ClosedError",
        "InUseError",
        "RefusedError",
        "RustGuardError",
        "StateError",
        "UnansweredError",
        "UsageError",
    ),
}


def __getattr__(name: str) -> Any:
    """Import what is named here, once."""
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            found = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
