"""How this user types a command that needs root: with sudo, doas or su, or as it is."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Final

_STATUS: Final = Path("/proc/self/status")
_CAP_NET_ADMIN: Final = 12


class _Rootless:
    """Whether this process is one of `join --rootless`, whose user needs no root for it."""

    is_it = False


def need_no_root() -> None:
    """Have `as_root` return commands of ours as this user types them, for a tunnel without root."""
    _Rootless.is_it = True


def is_ordinary_user() -> bool:
    """Return whether this process has no right to change the network, so that its tunnels are without root."""
    return os.geteuid() != 0 and not _has_net_admin()


def as_root(command: str) -> str:
    """Return a command line that needs root, as the reader must type it.

    Where there is sudo, root may type it too, and a root who came by sudo or reads the log as another user has to.
    A root without it, as in a container, needs nothing. Nor does a user who has CAP_NET_ADMIN, for `rustguard`:
    with sudo, it would look for another user's state. Where there is neither sudo nor doas, su(1) runs it.

    Args:
        command: A command line for this machine, without sudo.
    """
    if _Rootless.is_it and command.startswith("rustguard"):
        return command.replace("rustguard join", "rustguard join --rootless", 1)
    runner = _runner()
    if os.geteuid() == 0:
        return command if runner != "sudo" else f"sudo {command}"
    if command.split(" ", 1)[0].startswith("rustguard") and _has_net_admin():
        return command
    return f"su -c {quote(command)}" if runner is None else f"{runner} {command}"


@cache
def _runner() -> str | None:
    # Imported where it's used, like all that only some commands need: each start of a command waits for its imports.
    import shutil

    return next((each for each in ("sudo", "doas") if shutil.which(each)), None)


def _has_net_admin() -> bool:
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return bool(int(lines["CapEff"], 16) >> _CAP_NET_ADMIN & 1)
    except (OSError, ValueError, KeyError):
        return False
