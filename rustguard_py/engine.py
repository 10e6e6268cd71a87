"""Which data plane runs a tunnel, and why."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from rustguard_py.data_path import DataPath
from rustguard_py.model.clock import now
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.planes.contract import EventfulPlane

ENGINES = ("auto", "kernel", "native", "portable")
# What RUSTGUARD_AEAD may be. `auto` seals and opens sixteen packets at once where the processor can.
_AEADS = ("auto", "ring")
# A queue has two threads that are busy when traffic is: one for either direction.
_THREADS_A_QUEUE = 2
# More than this many don't pay: a peer's datagrams come in on one of them anyway.
_MOST_QUEUES = 8
# The kernel's MAX_TAP_QUEUES.
_QUEUES_LIMIT = 256


@dataclass(frozen=True, slots=True)
class Engine:
    """A choice.

    Attributes:
        name: One of `ENGINES` but `auto`.
        reason: Why this one, for people.
        queues: Of the interface.
        uring: Whether the plane is to use io_uring where it can.
        xdp: The interface to use AF_XDP on.
        threaded_napi: Whether the kernel is to receive in threads.
    """

    name: str
    reason: str
    queues: int = 1
    uring: bool = False
    xdp: str | None = None
    threaded_napi: bool = False

    @property
    def in_kernel(self) -> bool:
        """Whether the kernel shakes hands and moves the packets: no plane of ours is made."""
        return self.name == "kernel"

    def for_tunnels(self, tunnels: int, queues: str) -> Engine:
        """Give the same for several tunnels: a queue each, unless a number of `queues` was asked for."""
        if self.in_kernel:
            return replace(self, reason=f"{self.reason}; {tunnels} tunnels")
        if queues != "auto":
            return self
        return replace(self, queues=1, reason=f"{self.reason}; {tunnels} tunnels of one queue each")

    def make_plane(
        self,
        public_key: bytes,
        interface: str,
        sockets: Sequence[socket.socket],
        mtu: int,
        tun: Sequence[int] = (),
    ) -> EventfulPlane:
        """Make the plane, and with it the interface.

        Args:
            public_key: Ours, 32 bytes.
            interface: The name that the interface shall have.
            sockets: Bound UDP sockets, one a family; the plane owns them from here on.
            mtu: Of the interface, bytes.
            tun: Descriptors of its queues where it is there already; they stay the caller's.
        """
        # Imported here, so that who only asks for a status doesn't pay for it.
        assert not self.in_kernel, "the kernel has no plane of ours"  # noqa: S101
        if self.name == "native":
            from rustguard_py.planes.native import NativePlane

            return NativePlane(
                public_key,
                interface=interface,
                sockets=sockets,
                mtu=mtu,
                queues=self.queues,
                uring=self.uring,
                xdp=self.xdp,
                tun=tun,
            )
        from rustguard_py.planes.portable import PortablePlane

        return PortablePlane(public_key, interface=interface, sockets=sockets, mtu=mtu, clock=now, tun=tun)


def has_native() -> bool:
    """Say whether this installation has the native plane."""
    return find_spec("rustguard_py._native") is not None


def uring_refusal() -> str | None:
    """Say why the native plane can't use io_uring here; None if it can."""
    from rustguard_py import _native

    return _native.uring_refusal()


def choose(asked: DataPath) -> Engine:
    """Choose an engine: with `auto` the fastest that is here.

    Args:
        asked: What was asked for.

    Raises:
        UsageError: There is no such engine, that is no number of queues, the engine hasn't what was asked for, both
            io_uring and AF_XDP are wanted, or RUSTGUARD_AEAD is neither auto nor ring.
        RefusedError: It isn't here, the interface isn't here or isn't Ethernet, or threaded NAPI isn't safe here.
    """
    wanted, queues, uring, xdp = asked.engine, asked.queues, asked.uring, asked.xdp
    if wanted not in ENGINES:
        raise UsageError(f"There is no engine {wanted!r}.", f"Choose one of: {', '.join(ENGINES)}.")
    if queues != "auto" and not (queues.isdecimal() and 1 <= int(queues) <= _QUEUES_LIMIT):
        raise UsageError(f"{queues!r} is no number of queues.", f"Give a number from 1 to {_QUEUES_LIMIT}, or auto.")
    if wanted == "portable" and uring:
        raise UsageError("The portable engine has no io_uring.", "Leave out --uring, or use: --engine native")
    if wanted == "portable" and xdp is not None:
        raise UsageError("The portable engine has no AF_XDP.", "Leave out --xdp, or use: --engine native")
    if uring and xdp is not None:
        raise UsageError("io_uring and AF_XDP can't be used together.", "Leave out --uring or --xdp.")
    ours = _of_ours(asked)
    if asked.threaded_napi and wanted not in ("auto", "kernel"):
        raise UsageError(
            f"--threaded-napi is of the kernel's engine, not of the {wanted} one.",
            "Leave it out, or use: --engine kernel",
        )
    if wanted == "kernel" or asked.threaded_napi:
        why = "asked for" if wanted == "kernel" else "--threaded-napi needs it"
        return _kernel(ours, why, threaded_napi=asked.threaded_napi)
    if wanted == "auto" and ours is None and why_no_kernel() is None:
        return Engine("kernel", "the fastest: this kernel has WireGuard")
    if (wanted == "native" or uring or xdp is not None) and not has_native():
        raise RefusedError(
            "This installation has no native engine: there was no cargo, or too old a one, when it was installed.",
            "Install cargo (1.85 or newer) and install RustGuard again; or use: --engine portable"
            + (", without --uring" if uring else ", without --xdp" if xdp is not None else ""),
        )
    if xdp is not None:
        from rustguard_py.system.interface import require_ethernet

        require_ethernet(xdp)
    if wanted == "portable" or not has_native():
        why = "asked for" if wanted == "portable" else "the native engine was not built at installation"
        return Engine("portable", why + _portable_queues(queues))
    if (aead := os.environ.get("RUSTGUARD_AEAD", "auto")) not in _AEADS:
        raise UsageError(f"RUSTGUARD_AEAD={aead!r} is no AEAD.", f"Choose one of: {', '.join(_AEADS)}.")
    why = "asked for" if wanted == "native" else f"{ours} needs it" if ours else "the fastest here"
    number, chosen = _queues(queues, os.cpu_count() or 1)
    return Engine("native", f"{why}; {chosen}{_uring(uring)}; AEAD: {_aead()}", number, uring, xdp)


def _aead() -> str:
    """Say what seals and opens packets in the native plane."""
    from rustguard_py import _native

    return _native.aead()


def _uring(wanted: bool) -> str:
    if not wanted:
        return ""
    refusal = uring_refusal()
    return "; io_uring" if refusal is None else f"; system calls, because the kernel refuses io_uring ({refusal})"


def why_no_kernel() -> str | None:
    """Say in one sentence why the kernel's WireGuard can't be used, or None where it can."""
    from rustguard_py.kernel import netlink

    return netlink.why_absent()


def _of_ours(asked: DataPath) -> str | None:
    """Name an option that only our own engines have, if one was given."""
    if asked.uring:
        return "--uring"
    if asked.xdp is not None:
        return "--xdp"
    return None if asked.queues == "auto" else "--queues"


def _kernel(ours: str | None, why: str, *, threaded_napi: bool) -> Engine:
    if ours is not None:
        raise UsageError(f"{ours} is for RustGuard's own engines, not for the kernel's.", "Leave one of the two out.")
    if (absent := why_no_kernel()) is not None:
        mend = "Load it: sudo modprobe wireguard (Linux 5.6 or newer); or use: --engine auto"
        raise RefusedError(absent, mend + (", without --threaded-napi" if threaded_napi else ""))
    if threaded_napi:
        from rustguard_py.kernel import napi

        napi.require()
        why += "; threaded NAPI"
    return Engine("kernel", why, threaded_napi=threaded_napi)


def _portable_queues(queues: str) -> str:
    if queues in ("auto", "1"):
        return ""
    return "; it uses one queue whatever --queues says, because Python runs one thread at a time"


def _queues(wanted: str, cores: int) -> tuple[int, str]:
    """Give how many queues, and why."""
    if wanted != "auto":
        return int(wanted), f"{wanted} queues asked for"
    number = min(_MOST_QUEUES, max(1, cores // _THREADS_A_QUEUE))
    return number, f"{number} queue{'s' if number > 1 else ''} of two threads for {cores} cores"
