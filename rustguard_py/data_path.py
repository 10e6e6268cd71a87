"""The data path that a command line asks for; `rustguard_py.engine` chooses the engine by it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
        memif: The value of `--memif`, which stands for the interface. Empty for an interface even if a memif is kept;
            None for what is kept.
    """

    engine: str = "auto"
    queues: str = "auto"
    uring: bool = False
    xdp: str | None = None
    threaded_napi: bool = False
    offloads: str | None = None
    keep_offloads: bool = False
    rootless: bool = False
    memif: str | None = field(default=None, repr=False)

    def to_keep(self, kept: str) -> str:
        """Return the offloads to keep (empty for `auto`): those on the command line, else those that were kept."""
        return ("" if self.offloads == "auto" else self.offloads or "") if self.keep_offloads else kept

    def memif_to_keep(self, kept: str) -> str:
        """Return the memif to keep (empty for none): the one on the command line, else the one that was kept."""
        return kept if self.memif is None else self.memif

    def with_kept(self, offloads: str, memif: str = "") -> DataPath:
        """Return the same with the offloads and the memif that were kept, unless others were given."""
        return replace(
            self,
            offloads=self.offloads if self.offloads is not None else offloads or None,
            memif=self.memif_to_keep(memif),
        )
