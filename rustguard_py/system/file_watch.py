"""Notices when another program changes a file or a directory (inotify(7))."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

# linux/inotify.h: CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF. A created file counts,
# because a symbolic link isn't written.
_EVENTS = 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_IN_IGNORED, _IN_Q_OVERFLOW = 0x8000, 0x4000
_HEADER = struct.Struct("iIII")
_BUFFER = 1 << 16


class FileWatch:
    """Calls `changed` when one of some files or directories may have changed. Make it inside the running loop.

    Args:
        changed: The callback.

    Raises:
        OSError: The kernel refuses: this user has too many of them, or a sandbox forbids it.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        import ctypes  # only a tunnel that sets name servers needs it

        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._changed = changed
        # What of each watched inode counts: a name in that directory, or everything (None).
        self._names: dict[int, set[str | None]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch these paths, and no longer those of before. To be called again when one was replaced.

        A path may be missing: then the nearest directory above it is watched. A file is watched itself too, because
        a mount on it hides it from its directory.
        """
        names: dict[int, set[str | None]] = {}
        for path in paths:
            self._add(names, path, None)
            at = path
            while at != at.parent and not self._add(names, at.parent, at.name):
                at = at.parent
        for gone in self._names.keys() - names.keys():
            self._libc.inotify_rm_watch(self._descriptor, gone)
        self._names = names

    def _add(self, names: dict[int, set[str | None]], path: Path, name: str | None) -> bool:
        number: int = self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), _EVENTS)
        if number >= 0:
            names.setdefault(number, set()).add(name)
        return number >= 0

    def close(self) -> None:
        """Stop watching. May be called twice."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        changed = False
        with suppress(BlockingIOError):
            while received := os.read(self._descriptor, _BUFFER):
                at = 0
                while at < len(received):
                    number, events, _, size = _HEADER.unpack_from(received, at)
                    at += _HEADER.size + size
                    name = os.fsdecode(received[at - size : at].rstrip(b"\0"))
                    wanted = self._names.get(number, set())
                    # An event without a name is of the watched inode itself.
                    changed = changed or bool(events & _IN_Q_OVERFLOW)
                    changed = changed or (not events & _IN_IGNORED and (None in wanted or name in wanted or not name))
        if changed:
            self._changed()
