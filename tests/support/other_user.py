"""Being somebody else for a moment: a thread of this process with another user's credentials."""

import ctypes
import os
import threading

import pytest

from support.machine import why_no_second_uid

NOBODY = 65534

# The C library's functions change every thread of the process; the system calls change one.
_CALLS = {
    "x86_64": {"setgroups": 116, "setresuid": 117, "setresgid": 119},
    "aarch64": {"setgroups": 159, "setresuid": 147, "setresgid": 149},
}


needs_other_users = pytest.mark.skipif(why_no_second_uid() != "", reason=why_no_second_uid())


def as_user(function, uid=NOBODY, gid=NOBODY, groups=()):
    """Call `function` as another user, without capabilities, and give what it gives. Needs root."""
    outcome = []

    def run():
        try:
            _call("setgroups", len(groups), (ctypes.c_uint32 * len(groups))(*groups))
            _call("setresgid", gid, gid, gid)
            _call("setresuid", uid, uid, uid)
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_CALLS[os.uname().machine][name], *arguments):
        raise OSError(ctypes.get_errno(), name)
