"""Run a command under a policy that refuses something, as containers have them: `refusing.py WHAT COMMAND…`.

WHAT is `io_uring`, `seccomp`, `landlock` or a call of its, or `udp_gro`: that the kernel merges datagrams for who
receives them. The filter answers EPERM to the system call (seccomp(2), linux/filter.h) and lets all else pass.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

# Where a little-endian machine's seccomp_data has the call's number, and the low words of two of its arguments.
_NUMBER, _SECOND, _THIRD = 0, 24, 32
# The same number on every architecture that Linux had when it came; the other has one of its own on x86-64.
_IO_URING_SETUP = 425
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_SETSOCKOPT = 54 if platform.machine() == "x86_64" else 208
_SECCOMP = 317 if platform.machine() == "x86_64" else 277
_SOL_UDP, _UDP_GRO = 17, 104
_CALLS = {
    "io_uring": ((_NUMBER, _IO_URING_SETUP),),
    "seccomp": ((_NUMBER, _SECCOMP),),
    "landlock": ((_NUMBER, _LANDLOCK_CREATE_RULESET),),
    "landlock_restrict_self": ((_NUMBER, _LANDLOCK_RESTRICT_SELF),),
    "udp_gro": ((_NUMBER, _SETSOCKOPT), (_SECOND, _SOL_UDP), (_THIRD, _UDP_GRO)),
}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse(what: str) -> None:
    """Refuse it to this process and all that it starts."""
    instructions = []
    words = _CALLS[what]
    for left, (place, word) in zip(range(len(words) - 1, -1, -1), words, strict=True):
        # Unless it is this, over what is left and the first return.
        instructions += [(_LOAD_WORD, 0, 0, place), (_JUMP_IF_EQUAL, 0, 2 * left + 1, word)]
    instructions += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("HBBI", *each) for each in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((_PR_SET_NO_NEW_PRIVS, 1, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*call, 0, 0):
            raise OSError(ctypes.get_errno(), "no filter can be set")


if __name__ == "__main__":
    refuse(sys.argv[1])
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the caller's own command
