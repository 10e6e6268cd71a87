"""The data path that a command line asks for; `rustguard_py.engine` chooses the engine by it."""

from __future__ import annotations

from dataclasses import dataclass

# The most queues of an interface: the kernel's MAX_TAP_QUEUES.
QUEUES_LIMIT = 256


@dataclass(frozen=True, slots=True)
class DataPath:
    """Options as typed, not yet checked.

    Attributes:
        engine: One of `engine.ENGINES`.
        queues: Number of queues of the interface, or `auto`.
        uring: Whether the native engine uses io_uring; it runs without where the kernel refuses it.
        xdp: The Ethernet interface on which the native engine uses AF_XDP, or None; it runs without where the kernel
            refuses it.
        threaded_napi: Whether the kernel's engine receives in threads.
    """

    engine: str = "auto"
    queues: str = "auto"
    uring: bool = False
    xdp: str | None = None
    threaded_napi: bool = False
