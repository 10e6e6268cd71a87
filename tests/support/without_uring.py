"""Run a command under a policy that forbids io_uring, as containers have it: `without_uring.py COMMAND…`.

The filter answers EPERM to io_uring_setup (seccomp(2), linux/filter.h) and lets all else pass.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

# The same number on every architecture that Linux had when it came.
_IO_URING_SETUP = 425
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid() -> None:
    """Forbid it to this process and all that it starts."""
    instructions = [
        (_LOAD_WORD, 0, 0, 0),  # seccomp_data.nr
        (_JUMP_IF_EQUAL, 0, 1, _IO_URING_SETUP),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *each) for each in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((_PR_SET_NO_NEW_PRIVS, 1, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*call, 0, 0):
            raise OSError(ctypes.get_errno(), "no filter can be set")


if __name__ == "__main__":
    forbid()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - the caller's own command
