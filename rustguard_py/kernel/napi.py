"""Threaded NAPI of the kernel's WireGuard: one receiving thread per peer, where that is safe.

From 6.16 on, Linux turns it on by itself. Some stable releases took only that change, and there a peer's reception
can stall forever (CVE-2026-52945). Later stable releases reverted it. On an affected release it is turned off here.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rustguard_py.model.errors import RefusedError, RustGuardError

if TYPE_CHECKING:
    from rustguard_py.kernel.netlink import KernelInterface

Version = tuple[int, int, int]

SAFE_FROM: Version = (6, 16, 0)
# First and last affected release of each series.
STALLING = {(5, 15): (186, 200), (6, 1): (142, 163), (6, 6): (94, 126), (6, 12): (34, 73)}
_SYSFS = Path("/sys/class/net")
_NUMBERS = r"(\d+)\.(\d+)(?:\.(\d+))?"


def linux_version(release: str, version: str) -> Version | None:
    """Return the Linux version that a kernel was built from, or None if it can't be told.

    Args:
        release: From `uname -r`. Debian's may name only the series: `6.1.0-56-amd64` is not 6.1.0.
        version: From `uname -v`: `#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)`.
    """
    found = re.search(rf"\bDebian {_NUMBERS}", version) or re.match(_NUMBERS, release)
    if found is None:
        return None
    major, minor, patch = (int(each or 0) for each in found.groups())
    return major, minor, patch


def this_linux() -> Version | None:
    """Return the Linux version of the running kernel."""
    system = os.uname()
    return linux_version(system.release, system.version)


def why_unsafe(linux: Version | None) -> str | None:
    """Return in one sentence why threaded NAPI must stay off, or None if it is safe."""
    if linux is None:
        return f"The release {os.uname().release!r} doesn't tell which Linux version this kernel was built from."
    if linux >= SAFE_FROM:
        return None
    name = ".".join(map(str, linux))
    first, last = STALLING.get(linux[:2], (0, -1))
    if first <= linux[2] <= last:
        return f"Linux {name} stalls reception with threaded NAPI (CVE-2026-52945)."
    return f"Threaded NAPI is known to be safe with WireGuard from Linux 6.16 on, and this is {name}."


def require() -> None:
    """Check that threaded NAPI is safe on this kernel.

    Raises:
        RefusedError: It isn't, with the reason.
    """
    if (unsafe := why_unsafe(this_linux())) is not None:
        raise RefusedError(unsafe, "Leave out --threaded-napi, or run Linux 6.16 or newer.")


def settle(interface: str, device: KernelInterface, *, wanted: bool) -> list[str]:
    """Turn threaded NAPI on for a new interface if requested, or off if it is on where it isn't safe.

    Args:
        interface: The interface's name. It has no peer yet.
        device: The same interface.
        wanted: Whether it was requested. Call `require` first in that case.

    Returns:
        Notes for people, one sentence each.

    Raises:
        RefusedError: It was requested and can't be turned on.
    """
    before = is_threaded(interface)
    if wanted:
        if not before and (why := _set(interface, device, threaded=True)) is not None:
            raise RefusedError(
                f"The kernel refused threaded NAPI on {interface}: {why}.", "Leave out --threaded-napi."
            )
        return []
    if not before or (unsafe := why_unsafe(this_linux())) is None:
        return []
    why = _set(interface, device, threaded=False)
    end = "it is turned off" if why is None else f"it can't be turned off: {why}. Choose --engine native"
    return [f"{unsafe} It was on by itself; {end}."]


def is_threaded(interface: str) -> bool | None:
    """Return whether an interface receives in threads; None if /sys, which shows one namespace, doesn't have it."""
    try:
        return (_SYSFS / interface / "threaded").read_text().strip() == "1"
    except OSError:
        return None


def _set(interface: str, device: KernelInterface, *, threaded: bool) -> str | None:
    """Set it. Return why that failed, or None."""
    from rustguard_py.kernel.messages import KernelPeerChange

    # The kernel accepts the change only while there is a peer. It holds for later peers too.
    stand_in = os.urandom(32)
    try:
        device.set_peers([KernelPeerChange(stand_in)])
        try:
            (_SYSFS / interface / "threaded").write_text("1" if threaded else "0")
        finally:
            device.set_peers([KernelPeerChange(stand_in, remove=True)])
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "/sys shows no such interface: is it that of another network namespace?"
        return error.strerror or "unknown error"
    except RustGuardError as error:
        return error.message
    return None
