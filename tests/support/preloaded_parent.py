"""The process that forks programs for `support.preloaded`: a script, `preloaded_parent.py SOCKET MODULE...`.

It imports the modules, and then serves the socket until its other end is closed. A fork leaves the loop and runs its
program at the end of this file, so that it ends as any program in Python does: it waits for threads, calls what is
registered for the end, and flushes its streams.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

# Bytes of the longest request: mostly the environment.
LONGEST = 1 << 17
_STREAMS = 3


@dataclass(frozen=True, slots=True)
class _Request:
    """A program to start.

    Attributes:
        words: The module, and its arguments.
        environment: All of it.
        namespaces: Paths of those to enter, in order.
        folder: The working folder.
        descriptors: For standard input, output and error, and the pipe that gets the exit code.
    """

    words: list[str]
    environment: dict[str, str]
    namespaces: list[str]
    folder: str
    descriptors: list[int]


def _received(channel: socket.socket) -> _Request | None:
    # Not `socket.recv_fds`, which doesn't set close-on-exec: hooks of a daemon would keep the streams open.
    space = socket.CMSG_SPACE((_STREAMS + 1) * array.array("i").itemsize)
    text, ancillary, _, _ = channel.recvmsg(LONGEST, space, socket.MSG_CMSG_CLOEXEC)
    if not text:
        return None
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    given: dict[str, Any] = json.loads(text)
    return _Request(**given, descriptors=list(descriptors))


def _serve(channel: socket.socket) -> _Request | None:
    """Fork for each request. Return it in the fork, and None once the other end is closed."""
    libc = ctypes.CDLL(None, use_errno=True)
    running: dict[int, tuple[int, int]] = {}
    # What was imported stays in memory that all share: the collector would write to it.
    gc.collect()
    gc.freeze()
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd != channel.fileno():
                    _tell_the_end(selector, key.fd, *running.pop(key.fd))
                    continue
                request = _received(channel)
                if request is None:
                    return None
                process = os.fork()
                if not process:
                    for watched, (_, status) in running.items():
                        os.close(watched)
                        os.close(status)
                    selector.close()
                    channel.close()
                    _settle(request, libc)
                    return request
                watched = os.pidfd_open(process)
                running[watched] = process, request.descriptors[_STREAMS]
                selector.register(watched, selectors.EVENT_READ)
                for descriptor in request.descriptors[:_STREAMS]:
                    os.close(descriptor)
                channel.send(str(process).encode())


def _tell_the_end(selector: selectors.BaseSelector, watched: int, process: int, status: int) -> None:
    selector.unregister(watched)
    os.close(watched)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    # Perhaps nobody waits for it any more.
    with suppress(BrokenPipeError):
        os.write(status, str(code).encode())
    os.close(status)


def _settle(request: _Request, libc: ctypes.CDLL) -> None:
    """Make a fork what a new process would be."""
    os.setsid()
    for path in request.namespaces:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # setns(2); the C library's, as Python has it only since 3.12.
        if libc.setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), f"setns {path}")
        os.close(descriptor)
    # Entering a mount namespace changes to its root.
    os.chdir(request.folder)
    for number, descriptor in enumerate(request.descriptors[:_STREAMS]):
        os.dup2(descriptor, number)
    for descriptor in request.descriptors:
        os.close(descriptor)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(request.environment)


def _main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        importlib.import_module(name)
    request = _serve(channel)
    if request is None:
        return
    module, *arguments = request.words
    sys.orig_argv[:] = [sys.executable, "-m", module, *arguments]
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
