"""Being somebody else for a moment: a thread of this process with another user's credentials."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from support.machine import why_no_second_uid

Result = TypeVar("Result")

NOBODY = 65534

# The C library's functions change every thread of the process; the system calls change one.
_CALLS = {
    "x86_64": {"setgroups": 116, "setresuid": 117, "setresgid": 119},
    "aarch64": {"setgroups": 159, "setresuid": 147, "setresgid": 149},
}


needs_other_users = pytest.mark.skipif(why_no_second_uid() != "", reason=why_no_second_uid())


def as_user(
    function: Callable[[], Result], uid: int = NOBODY, gid: int = NOBODY, groups: Sequence[int] = ()
) -> Result:
    """Call `function` as another user, without capabilities, and give what it gives. Needs root."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            _call("setgroups", len(groups), (ctypes.c_uint32 * len(groups))(*groups))
            _call("setresgid", gid, gid, gid)
            _call("setresuid", uid, uid, uid)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error
    return results[0]


def _call(name: str, *arguments: int | ctypes.Array[ctypes.c_uint32]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_CALLS[os.uname().machine][name], *arguments):
        raise OSError(ctypes.get_errno(), name)
