"""Users and groups by name, because the same ones may have other numbers on another machine."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable
from contextlib import suppress

# Ten digits may be more than the kernel's 32 bits hold.
_DIGITS = 10


def names(user: int, group: int) -> tuple[str, str]:
    """Return the names of a user and a group; of one without a name, its number."""
    user_name, group_name = str(user), str(group)
    with suppress(KeyError):
        user_name = pwd.getpwuid(user).pw_name
    with suppress(KeyError):
        group_name = grp.getgrgid(group).gr_name
    return user_name, group_name


def numbers(user: str, group: str) -> tuple[int, int]:
    """Return the numbers of a user and a group; of one that this machine doesn't know, root's."""
    return (
        _number(user, lambda: pwd.getpwnam(user).pw_uid),
        _number(group, lambda: grp.getgrnam(group).gr_gid),
    )


def _number(name: str, look_up: Callable[[], int]) -> int:
    if name.isascii() and name.isdecimal() and len(name) < _DIGITS:
        return int(name)
    try:
        return look_up()
    except (KeyError, ValueError):
        return 0
