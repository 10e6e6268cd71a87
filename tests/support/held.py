"""Holds one thread of another program, which SIGSTOP can't: it stops the whole process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000


def comm(process: int, thread: int) -> str:
    """Return the kernel's name of a thread."""
    return Path(f"/proc/{process}/task/{thread}/comm").read_text()


def threads_named(process: int, beginning: str) -> list[int]:
    """Return the threads of a plane whose name begins so; `plane` stands for all of the portable one's."""
    threads = sorted(int(each.name) for each in Path(f"/proc/{process}/task").iterdir())
    if beginning == "plane":
        # The kernel knows the names of Python's threads only since 3.14, so all but the main one are meant.
        return threads[1:]
    return [next(each for each in threads if comm(process, each).startswith(beginning))]


@contextmanager
def held(thread: int) -> Iterator[None]:
    """Stop one thread alone, and let it go on at the end."""
    library = ctypes.CDLL(None, use_errno=True)
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        assert library.ptrace(request, thread, None, None) == 0, os.strerror(ctypes.get_errno())
    os.waitpid(thread, WALL)
    try:
        yield
    finally:
        library.ptrace(PTRACE_DETACH, thread, None, None)


def let_die(thread: int) -> None:
    """Take note of the end of a held thread, without which its killed process doesn't end."""
    with suppress(ChildProcessError):
        os.waitpid(thread, WALL | os.WNOHANG)
