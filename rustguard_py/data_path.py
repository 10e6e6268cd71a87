"""The data path that a command line asks for; `rustguard_py.engine` chooses the engine by it."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        offloads: The list of `--offloads` or RUSTGUARD_OFFLOADS (`model.offloads`), or None for what is kept.
        keep_offloads: Whether that list is kept for the next start, because it was on the command line.
        rootless: Whether the interface is in a network namespace of its own, made without privileges.
    """

    engine: str = "auto"
    queues: str = "auto"
    uring: bool = False
    xdp: str | None = None
    threaded_napi: bool = False
    offloads: str | None = None
    keep_offloads: bool = False
    rootless: bool = False

    def to_keep(self, kept: str) -> str:
        """Return the offloads to keep (empty for `auto`): those on the command line, else those that were kept."""
        return ("" if self.offloads == "auto" else self.offloads or "") if self.keep_offloads else kept

    def with_kept(self, kept: str) -> DataPath:
        """Return the same with the offloads that were kept, unless others were given."""
        return self if self.offloads is not None else replace(self, offloads=kept or None)
