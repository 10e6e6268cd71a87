"""Who may use a daemon: what its errors say to a user who may not."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

from rustguard_py.model.sudo import as_root


def fix_for_strangers(path: Path) -> str:
    """Return what a user without permission for a control socket can do."""
    # Imported here, because most commands don't need them.
    import grp
    import pwd

    with suppress(OSError, KeyError):
        status = path.lstat()
        if status.st_mode & stat.S_IWGRP and status.st_gid != pwd.getpwuid(status.st_uid).pw_gid:
            return fix_for(grp.getgrgid(status.st_gid).gr_name)
    return fix_for(None)


def fix_for(group: str | None) -> str:
    """Return what a user can do who isn't in the group of `--group`; None for a daemon without one."""
    if group is None:
        return "Run the same command as root."
    joining = as_root(f'usermod -aG {group} "$USER"')
    return f"Run the same command as root, or join the group {group}: {joining}, then log in again."
