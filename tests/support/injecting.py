"""Run a command whose offloaded sends or writes all fail: `injecting.py CALL CODE LOG COMMAND…`.

CALL is `sendmsg`: messages that the kernel is to cut (UDP_SEGMENT); or `writev`: superpackets for a TUN device. A
seccomp filter hands each of these calls to a process of ours (seccomp_unotify(2)), which looks at what is sent,
answers CODE for an offloaded one, and lets the others pass. LOG gets a line for each refusal.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
import sys
from contextlib import suppress
from pathlib import Path

_X86 = platform.machine() == "x86_64"
_CALLS = {"sendmsg": 46 if _X86 else 211, "writev": 20 if _X86 else 66}
_SECCOMP, _PIDFD_GETFD = (317 if _X86 else 277), 438
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
# linux/seccomp.h: _IOWR('!', 0, struct seccomp_notif), _IOWR('!', 1, struct seccomp_notif_resp).
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_QUESTION = struct.Struct("QIIiIQ6Q")
_SOL_UDP, _UDP_SEGMENT = 17, 103


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter(call: str) -> int:
    """Have this call answered by somebody else from now on, and return the descriptor for the answers."""
    instructions = [
        (_LOAD_WORD, 0, 0, 0),
        (_JUMP_IF_EQUAL, 0, 1, _CALLS[call]),
        (_RETURN, 0, 0, _NOTIFY),
        (_RETURN, 0, 0, _ALLOW),
    ]
    program = _Program(len(instructions), b"".join(struct.pack("HBBI", *each) for each in instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener: int = libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "no filter can be set")
    return listener


def _is_offloaded(call: str, memory: int, process: int, arguments: tuple[int, ...]) -> bool:
    if call == "writev":
        if Path(f"/proc/{process}/fd/{arguments[0]}").readlink() != Path("/dev/net/tun"):
            return False
        # A virtio_net_hdr comes first; its second byte is the kind of superpacket.
        first = struct.unpack("Q", os.pread(memory, 8, arguments[1]))[0]
        return os.pread(memory, 2, first)[1] != 0
    *_, control, length = struct.unpack("6Q", os.pread(memory, 48, arguments[1]))
    messages, at = os.pread(memory, length, control) if length else b"", 0
    while at + 16 <= len(messages):
        size, level, kind = struct.unpack_from("Qii", messages, at)
        if (level, kind) == (_SOL_UDP, _UDP_SEGMENT):
            return True
        at += max(16, size + 7 & ~7)
    return False


def _answer(listener: int, call: str, code: int, log: Path) -> None:
    """Answer until the command has ended."""
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    with log.open("a", buffering=1) as said:
        while not any(event & select.POLLHUP for _, event in waiting.poll()):
            question = bytearray(_QUESTION.size)
            with suppress(OSError):
                fcntl.ioctl(listener, _RECEIVE, question)
                number, process, _, _, _, _, *arguments = _QUESTION.unpack(question)
                memory = os.open(f"/proc/{process}/mem", os.O_RDONLY)
                try:
                    refused = _is_offloaded(call, memory, process, tuple(arguments))
                finally:
                    os.close(memory)
                if refused:
                    said.write(f"{call} {os.strerror(code)}\n")
                answer = (0, -code, 0) if refused else (0, 0, _CONTINUE)
                fcntl.ioctl(listener, _SEND, struct.pack("QqiI", number, *answer))


def main() -> None:
    """Begin to answer in a child, and become the command."""
    call, code, log, *command = sys.argv[1:]
    process, (there, here), (taken, taking) = os.getpid(), os.pipe(), os.pipe()
    if os.fork() == 0:
        number = int(os.read(there, 9))
        libc = ctypes.CDLL(None, use_errno=True)
        listener: int = libc.syscall(_PIDFD_GETFD, os.pidfd_open(process), number, 0)
        os.write(taking, b"1")
        for each in (there, here, taken, taking):
            os.close(each)
        _answer(listener, call, getattr(errno, code), Path(log))
        os._exit(0)
    os.write(here, str(_filter(call)).encode())
    # The descriptor is closed when the command begins.
    os.read(taken, 1)
    os.execvp(command[0], command)  # noqa: S606 - the caller's own command


if __name__ == "__main__":
    main()
