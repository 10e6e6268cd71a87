"""Threaded NAPI of the kernel's WireGuard: a thread for each peer's reception, where that is safe.

From 6.16 on Linux turns it on by itself. Stable releases took that change alone, and there a peer's reception can
stall for good (CVE-2026-52945) until a later release took it back: it is turned off where it is found on there.
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
# The releases that stall, the first and the last of each series.
STALLING = {(5, 15): (186, 200), (6, 1): (142, 163), (6, 6): (94, 126), (6, 12): (34, 73)}
_SYSFS = Path("/sys/class/net")
_NUMBERS = r"(\d+)\.(\d+)(?:\.(\d+))?"


def linux_version(release: str, version: str) -> Version | None:
    """Read which Linux a kernel was made of; None if it doesn't say.

    Args:
        release: As `uname -r` has it. Debian's may name the series alone: `6.1.0-56-amd64` is not 6.1.0.
        version: As `uname -v` has it: `#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)`.
    """
    found = re.search(rf"\bDebian {_NUMBERS}", version) or re.match(_NUMBERS, release)
    if found is None:
        return None
    major, minor, patch = (int(each or 0) for each in found.groups())
    return major, minor, patch


def this_linux() -> Version | None:
    """Read it of the kernel that runs."""
    told = os.uname()
    return linux_version(told.release, told.version)


def why_unsafe(linux: Version | None) -> str | None:
    """Say in one sentence why threaded NAPI isn't to be turned on, or None where it is safe."""
    if linux is None:
        return f"It can't be told from {os.uname().release!r} which Linux this is made of."
    if linux >= SAFE_FROM:
        return None
    name = ".".join(map(str, linux))
    first, last = STALLING.get(linux[:2], (0, -1))
    if first <= linux[2] <= last:
        return f"Linux {name} stalls reception with threaded NAPI (CVE-2026-52945)."
    return f"Threaded NAPI is known to be safe with WireGuard from Linux 6.16 on, and this is {name}."


def require() -> None:
    """Refuse where it isn't safe.

    Raises:
        RefusedError: With the reason.
    """
    if (unsafe := why_unsafe(this_linux())) is not None:
        raise RefusedError(unsafe, "Leave out --threaded-napi, or run Linux 6.16 or newer.")


def settle(interface: str, device: KernelInterface, *, wanted: bool) -> list[str]:
    """Turn it on for a fresh interface if that is wanted, or off if it is on where it isn't safe.

    Args:
        interface: The name; it has no peer yet.
        device: The same.
        wanted: Whether it was asked for; then `require` came before.

    Returns:
        What a person should know of it, one sentence each.

    Raises:
        RefusedError: It is wanted and can't be turned on.
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
    """Say whether an interface receives in threads; None where /sys doesn't tell: it shows one namespace's alone."""
    try:
        return (_SYSFS / interface / "threaded").read_text().strip() == "1"
    except OSError:
        return None


def _set(interface: str, device: KernelInterface, *, threaded: bool) -> str | None:
    """Set it; give why not, or None."""
    from rustguard_py.kernel.messages import KernelPeerChange

    # The kernel takes it while there is a peer, and keeps to it for those to come.
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
