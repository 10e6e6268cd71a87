"""What somebody asked of the data path; `rustguard_py.engine` chooses by it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DataPath:
    """As on the command line, unchecked.

    Attributes:
        engine: One of `engine.ENGINES`.
        queues: Of the interface: `auto` or a number.
        uring: Whether the native engine shall use io_uring; where the kernel refuses, it runs without.
        xdp: The Ethernet interface that the native engine shall use AF_XDP on; the same.
        threaded_napi: Whether the kernel's engine shall receive in threads.
    """

    engine: str = "auto"
    queues: str = "auto"
    uring: bool = False
    xdp: str | None = None
    threaded_napi: bool = False
