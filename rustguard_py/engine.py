"""The choice of the engine that moves a tunnel's packets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from rustguard_py.data_path import QUEUES_LIMIT, DataPath
from rustguard_py.model.clock import now
from rustguard_py.model.counted import counted
from rustguard_py.model.endpoint import InterfaceAddress, Network
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.memif import MemifOptions
from rustguard_py.model.memif import parse as parse_memif
from rustguard_py.model.offloads import ALL, Offloads, choose_offloads
from rustguard_py.model.sudo import as_root
from rustguard_py.planes import known_kernels
from rustguard_py.planes.contract import CHANNEL_BYTES, CHANNEL_PACKETS, EventfulPlane, PacketChannel

ENGINES = ("auto", "kernel", "native", "portable")
# Values of RUSTGUARD_AEAD. `auto` seals and opens several packets at once where the processor can,
# `lanes8` as if it had no AVX-512, `ring` one by one.
_AEADS = ("auto", "lanes8", "ring")
# A queue has two threads that are busy under traffic, one per direction.
_THREADS_PER_QUEUE = 2
# More queues than this bring nothing: all datagrams of one peer come in on the same queue.
_MOST_QUEUES = 8


@dataclass(frozen=True, slots=True)
class Engine:
    """A chosen engine.

    Attributes:
        name: One of `ENGINES`, but not `auto`.
        reason: Why it was chosen, for people.
        queues: Number of queues of the interface.
        uring: Whether the native engine uses io_uring where the kernel allows it.
        xdp: The Ethernet interface on which the native engine uses AF_XDP, or None.
        threaded_napi: Whether the kernel's engine receives in threads.
        queues_asked: Whether the number of queues was given on the command line.
        offloads: The offloads that an engine of ours uses where the kernel has them.
        notes: What it does without, and why, one sentence each.
        memif: What stands for the interface, or None.
    """

    name: str
    reason: str
    queues: int = 1
    uring: bool = False
    xdp: str | None = None
    threaded_napi: bool = False
    queues_asked: bool = False
    offloads: Offloads = ALL
    notes: tuple[str, ...] = ()
    memif: MemifOptions | None = None

    @property
    def in_kernel(self) -> bool:
        """Whether this is the kernel's engine, which also does the handshakes: no plane is made then."""
        return self.name == "kernel"

    def for_tunnels(self, tunnels: int) -> Engine:
        """Return the same engine for several tunnels: one queue each, unless a number of queues was asked for."""
        if self.in_kernel:
            return replace(self, reason=f"{self.reason}; {tunnels} tunnels")
        if self.queues_asked:
            return self
        return replace(self, queues=1, reason=f"{self.reason}; {tunnels} tunnels of one queue each")

    def on_memif(self, memif: MemifOptions) -> Engine:
        """Return the same engine with a memif in place of the interface.

        Raises:
            UsageError: It isn't the native engine, which alone has memifs.
        """
        if self.name != "native":
            raise UsageError(
                f"The {self.name} engine has no memif.",
                "Leave out --memif; or choose RUSTGUARD_ENGINE=native, and install RustGuard where cargo is.",
            )
        return replace(self, memif=memif, queues=memif.queues)

    def answering(self, ranges: Iterable[Network], own: Iterable[InterfaceAddress]) -> Engine:
        """Return the same engine; in Ethernet, its memif answers for these ranges unless it has others.

        Args:
            ranges: Where the tunnel leads.
            own: The inner addresses, which the program on the other side of the memif has.
        """
        if self.memif is None or self.memif.ethernet is None:
            return self
        ethernet = self.memif.ethernet.answering(ranges, (each.ip for each in own))
        return replace(self, memif=replace(self.memif, ethernet=ethernet))

    def make_plane(
        self,
        public_key: bytes,
        interface: str,
        sockets: Sequence[socket.socket],
        mtu: int,
        tun: Sequence[int] = (),
        channel: PacketChannel | None = None,
        listener: socket.socket | None = None,
    ) -> EventfulPlane:
        """Make the plane, and with it the interface, unless there is one or a channel stands for it.

        Args:
            public_key: Ours, 32 bytes.
            interface: Name of the interface.
            sockets: Bound UDP sockets, one per family; the plane owns them from now on.
            mtu: Of the interface, bytes.
            tun: Descriptors of the interface's queues if it exists already; they stay the caller's.
            channel: What stands for the interface, from `make_channel`. It needs no privilege. `interface` is then
                only a name for messages.
            listener: The listening socket of a memif that is a server, if the caller has made it and removes it.
        """
        assert not self.in_kernel, "the kernel's engine has no plane"  # noqa: S101
        # Imported here, so that verbs that only ask for a status start faster.
        if self.name == "native":
            from rustguard_py import _native
            from rustguard_py.planes.native import NativePlane

            assert channel is None or isinstance(channel, _native.Channel)  # noqa: S101
            return NativePlane(
                public_key,
                interface=interface,
                sockets=sockets,
                mtu=mtu,
                queues=self.queues,
                uring=self.uring,
                xdp=self.xdp,
                offloads=self.offloads,
                tun=tun,
                channel=channel,
                memif=self.memif,
                listener=listener,
            )
        from rustguard_py.planes.channel import Channel
        from rustguard_py.planes.portable import PortablePlane

        assert channel is None or isinstance(channel, Channel)  # noqa: S101
        return PortablePlane(
            public_key,
            interface=interface,
            sockets=sockets,
            mtu=mtu,
            clock=now,
            offloads=self.offloads,
            tun=tun,
            channel=channel,
        )

    def make_channel(self, capacity: int = CHANNEL_PACKETS, memory: int = CHANNEL_BYTES) -> PacketChannel:
        """Make a channel for one plane of this engine.

        Args:
            capacity: Packets that may wait in each direction and queue.
            memory: Their bytes together.
        """
        assert not self.in_kernel, "the kernel's engine has no plane"  # noqa: S101
        if self.name == "native":
            from rustguard_py import _native

            return _native.Channel(queues=self.queues, capacity=capacity, memory=memory)
        from rustguard_py.planes.channel import Channel

        return Channel(capacity=capacity, memory=memory)


def has_native() -> bool:
    """Return whether this installation has the native engine."""
    return find_spec("rustguard_py._native") is not None


def uring_refusal() -> str | None:
    """Return why the native engine can't use io_uring here, or None if it can."""
    from rustguard_py import _native

    return _native.uring_refusal()


def choose(asked: DataPath) -> Engine:
    """Choose an engine; `auto` is the fastest that runs here.

    Args:
        asked: The command line's wishes.

    Raises:
        UsageError: An option or RUSTGUARD_AEAD has a value that doesn't exist, or two options exclude each other.
        RefusedError: The engine isn't available here, the AF_XDP interface is missing or isn't Ethernet, or threaded
            NAPI isn't safe on this kernel.
    """
    _check(asked)
    memif = None
    if asked.memif:
        memif = parse_memif(asked.memif)
        _check_memif(asked)
        asked = replace(asked, queues=str(memif.queues))
    chosen = _engine(asked)
    if memif is not None:
        chosen = chosen.on_memif(memif)
    if not chosen.in_kernel:
        return _with_offloads(chosen, asked.offloads or "auto")
    if asked.offloads in (None, "auto"):
        return chosen
    return replace(chosen, reason=f"{chosen.reason}; it has offloads of its own, so --offloads has no effect")


def _with_offloads(chosen: Engine, text: str) -> Engine:
    """Return the engine with the offloads that were asked for, and with what this kernel gets wrong left off."""
    faults = known_kernels.faults_here()
    auto = ALL.without(*(name for fault in faults for name in fault.offloads))
    offloads = choose_offloads(text, auto)
    notes = []
    explained: set[str] = set()
    for fault in faults:
        if off := [name for name in fault.offloads if name in offloads.off]:
            explained.update(off)
            notes.append(f"Off: {', '.join(off)}, because {fault.fault} ({fault.source}).")
    if asked := [name for name in offloads.off if name not in explained]:
        notes.append(f"Off: {', '.join(asked)}, as asked for (--offloads {text}).")
    if lost := offloads.needs_missing:
        notes.append(f"Off: {', '.join(lost)}, because {'it needs' if len(lost) == 1 else 'they need'} tun-checksum.")
    return replace(chosen, offloads=offloads, notes=tuple(notes))


def _engine(asked: DataPath) -> Engine:
    """Choose an engine, without its offloads."""
    wanted, ours = asked.engine, _of_ours(asked)
    if wanted == "kernel" or asked.threaded_napi:
        why = "asked for" if wanted == "kernel" else "--threaded-napi needs it"
        return _kernel(ours, why, threaded_napi=asked.threaded_napi)
    if wanted == "auto" and ours is None and why_no_kernel() is None:
        return Engine("kernel", "the fastest: this kernel has WireGuard")
    if (wanted == "native" or asked.uring or asked.xdp is not None or asked.memif) and not has_native():
        needing = {"--uring": asked.uring, "--xdp": asked.xdp is not None, "--memif": asked.memif}
        raise RefusedError(
            "This installation has no native engine: cargo was missing or too old when it was installed.",
            "Install cargo (1.85 or newer) and install RustGuard again; or use: --engine portable"
            + next((f", without {option}" for option, given in needing.items() if given), ""),
        )
    if asked.xdp is not None:
        from rustguard_py.system.interface import require_ethernet

        require_ethernet(asked.xdp)
    if wanted == "portable" or not has_native():
        why = "asked for" if wanted == "portable" else "the native engine was not built at installation"
        if find_spec("numpy") is None:
            raise RefusedError(
                "The portable engine needs numpy, which isn't installed.",
                f"Install it: {as_root('apt install python3-numpy')} (or: pip install numpy). "
                "Or use: --engine native",
            )
        return Engine("portable", why + _portable_queues(asked.queues), queues_asked=asked.queues != "auto")
    return _native(asked, "asked for" if wanted == "native" else f"{ours} needs it" if ours else "the fastest here")


def _check(asked: DataPath) -> None:
    """Refuse values that don't exist and options that exclude each other."""
    wanted, queues = asked.engine, asked.queues
    if wanted not in ENGINES:
        raise UsageError(f"There is no engine {wanted!r}.", f"Choose one of: {', '.join(ENGINES)}.")
    choose_offloads(asked.offloads or "auto", ALL)
    if queues != "auto" and not (queues.isdecimal() and 1 <= int(queues) <= QUEUES_LIMIT):
        raise UsageError(
            f"{queues!r} is not a number of queues.", f"Give a number from 1 to {QUEUES_LIMIT}, or auto."
        )
    if wanted == "portable" and asked.uring:
        raise UsageError("The portable engine has no io_uring.", "Leave out --uring, or use: --engine native")
    if wanted == "portable" and asked.xdp is not None:
        raise UsageError("The portable engine has no AF_XDP.", "Leave out --xdp, or use: --engine native")
    if asked.uring and asked.xdp is not None:
        raise UsageError("io_uring and AF_XDP can't be used together.", "Leave out --uring or --xdp.")
    if asked.rootless and asked.xdp is not None:
        raise UsageError(
            "AF_XDP needs root, and --rootless has none of its rights.", "Leave out --xdp or --rootless."
        )
    if asked.threaded_napi and wanted not in ("auto", "kernel"):
        raise UsageError(
            f"--threaded-napi is an option of the kernel's engine, not of the {wanted} one.",
            "Leave it out, or use: --engine kernel",
        )


def _check_memif(asked: DataPath) -> None:
    """Refuse options that a memif excludes."""
    # One that was kept has to be given up.
    without = "Or, to use an interface instead: --memif none"
    if asked.engine in ("kernel", "portable"):
        raise UsageError(
            f"The {asked.engine} engine has no memif; only the native one has.",
            f"Leave out --engine {asked.engine}. {without}",
        )
    if asked.threaded_napi:
        raise UsageError(
            "--threaded-napi is an option of the kernel's engine, which has no memif.",
            f"Leave out --threaded-napi. {without}",
        )
    if asked.queues != "auto":
        raise UsageError(
            "The queues of a memif aren't those of an interface.",
            f"Leave out --queues, and write --memif SOCKET,queues={asked.queues}. {without}",
        )
    if asked.rootless:
        raise UsageError(
            "--rootless makes an interface, and a memif stands in place of one.", f"Leave out --rootless. {without}"
        )


def _native(asked: DataPath, why: str) -> Engine:
    if (aead := os.environ.get("RUSTGUARD_AEAD") or "auto") not in _AEADS:
        raise UsageError(f"There is no AEAD {aead!r} (RUSTGUARD_AEAD).", f"Choose one of: {', '.join(_AEADS)}.")
    number, chosen = _queues(asked.queues, os.cpu_count() or 1)
    return Engine(
        "native",
        f"{why}; {chosen}{_uring(asked.uring)}; AEAD: {_aead()}",
        number,
        asked.uring,
        asked.xdp,
        queues_asked=asked.queues != "auto",
    )


def _aead() -> str:
    """Return the name of the native engine's AEAD implementation."""
    from rustguard_py import _native

    return _native.aead()


def _uring(wanted: bool) -> str:
    if not wanted:
        return ""
    refusal = uring_refusal()
    return "; io_uring" if refusal is None else f"; system calls, because the kernel refuses io_uring ({refusal})"


def why_no_kernel() -> str | None:
    """Return a sentence that says why the kernel's WireGuard can't be used, or None if it can."""
    from rustguard_py.kernel import netlink

    return netlink.why_absent()


def _of_ours(asked: DataPath) -> str | None:
    """Return an option that was given and that only our own engines have, or None."""
    if asked.uring:
        return "--uring"
    if asked.xdp is not None:
        return "--xdp"
    if asked.rootless:
        return "--rootless"
    if asked.memif:
        return "--memif"
    return None if asked.queues == "auto" else "--queues"


def _kernel(ours: str | None, why: str, *, threaded_napi: bool) -> Engine:
    if ours is not None:
        raise UsageError(
            f"{ours} is an option of RustGuard's own engines, not of the kernel's.", "Leave one of the two out."
        )
    if (absent := why_no_kernel()) is not None:
        fix = f"Load it: {as_root('modprobe wireguard')} (Linux 5.6 or newer); or use: --engine auto"
        raise RefusedError(absent, fix + (", without --threaded-napi" if threaded_napi else ""))
    if threaded_napi:
        from rustguard_py.kernel import napi

        napi.require()
        why += "; threaded NAPI"
    return Engine("kernel", why, threaded_napi=threaded_napi)


def _portable_queues(queues: str) -> str:
    if queues in ("auto", "1"):
        return ""
    return "; it uses one queue despite --queues, because Python runs one thread at a time"


def _queues(wanted: str, cores: int) -> tuple[int, str]:
    """Return the number of queues, and the reason for it."""
    if wanted != "auto":
        return int(wanted), f"{counted(int(wanted), 'queue')} asked for"
    number = min(_MOST_QUEUES, max(1, cores // _THREADS_PER_QUEUE))
    return number, f"{counted(number, 'queue')} of two threads for {counted(cores, 'core')}"
