"""The greatest TAI64N timestamp of each key, kept through a crash in an append-only file.

A responder must refuse an initiation whose timestamp isn't above the greatest it has had from that peer (WireGuard
paper, section 5.1), also after a restart; and what we sent must never go back, whatever the wall clock does.

The file `timestamps` is a row of records of 48 bytes: public key 32, TAI64N 12, CRC-32 of both 4 (big-endian). A
record is in the kernel's hands before `record` returns, so kill -9 loses nothing; `sync` makes it outlive a
power cut. A record that a crash tore or that the disk spoilt is skipped: each one says all there is to say.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from struct import Struct
from zlib import crc32

from rustguard_py.model.errors import StateError
from rustguard_py.model.keys import KEY_SIZE
from rustguard_py.state.files import Files, read_private, sync_directory, unusable, write_all, write_fresh

TIMESTAMP_SIZE = 12

_RECORD = Struct(">32s12sI")
# The file is rewritten when it exceeds both.
_COMPACT_ABOVE = 64 * 1024
_COMPACT_RATIO = 4


class TimestampJournal:
    """The journal of one state directory; open it while holding that directory's `Document`.

    `record` and `greatest` belong to one thread (the loop's); `sync` may run in another.

    Attributes:
        bad: How many spoilt records were skipped when it was opened; a torn tail isn't one.
    """

    __slots__ = ("_bad", "_descriptor", "_dirty", "_end", "_files", "_greatest", "_path", "_syncing", "_writing")

    def __init__(self, path: Path, files: Files) -> None:
        self._path = path
        self._files = files
        self._greatest: dict[bytes, bytes] = {}
        self._descriptor: int | None = None
        self._end = 0
        self._bad = 0
        # What is in memory isn't all in the file, or the disk has lost some of it: only rewriting it fixes that.
        self._dirty = False
        self._writing = threading.Lock()
        self._syncing = threading.Lock()

    @classmethod
    def open(cls, directory: Path, files: Files | None = None) -> TimestampJournal:
        """Read the journal of a state directory, or make an empty one.

        Raises:
            StateError: It can't be read or written, or others can get at it.
        """
        journal = cls(directory.resolve() / "timestamps", files or Files())
        try:
            journal._load()
        except OSError as error:
            raise unusable("used", journal._path, error) from error
        return journal

    @property
    def bad(self) -> int:
        """How many spoilt records were skipped when it was opened; a torn tail isn't one."""
        return self._bad

    def greatest(self, key: bytes) -> bytes | None:
        """Give the greatest timestamp (12 bytes, they sort as bytes do) recorded for a key, or None."""
        return self._greatest.get(key)

    def record(self, key: bytes, timestamp: bytes) -> None:
        """Record a timestamp (12 bytes) for a key (32 bytes); one that isn't above the greatest changes nothing.

        Raises:
            StateError: It couldn't be written. This process knows it all the same, and `sync` tries again.
        """
        if len(key) != KEY_SIZE or len(timestamp) != TIMESTAMP_SIZE:
            raise ValueError("a key has 32 bytes, a timestamp 12")
        if timestamp <= self._greatest.get(key, b""):
            return
        with self._writing:
            self._greatest[key] = timestamp
            try:
                # At its own offset: what a failed write left is written over, so records stay aligned.
                write_all(self._files, self._open_descriptor(), _pack(key, timestamp), self._end)
            except OSError as error:
                self._dirty = True
                raise unusable("written", self._path, error) from error
            self._end += _RECORD.size

    def sync(self) -> None:
        """Make all that was recorded before this call outlive a power cut; rewrites the file when it has grown.

        Takes as long as the disk does: call it in a thread, within a second or so of a `record`.

        Raises:
            StateError: It couldn't. The next call tries again.
        """
        with self._syncing:
            try:
                if self._dirty or self._end > max(_COMPACT_ABOVE, _COMPACT_RATIO * self._live_size()):
                    self._compact()
                else:
                    self._files.fdatasync(self._open_descriptor())
            except OSError as error:
                # After a failed fdatasync the kernel forgets which pages it owes the disk.
                self._dirty = True
                raise unusable("written", self._path, error) from error

    def close(self) -> None:
        """Sync and close. May be called twice."""
        if self._descriptor is None:
            return
        try:
            self.sync()
        finally:
            self._files.close(self._descriptor)
            self._descriptor = None

    def _load(self) -> None:
        with suppress(FileNotFoundError):
            self._files.unlink(self._path.with_suffix(".new"))
        content = read_private(self._files, self._path)
        if content is not None:
            self._read(content)
        self._end = len(content or b"") // _RECORD.size * _RECORD.size
        oversize = self._end > max(_COMPACT_ABOVE, _COMPACT_RATIO * self._live_size())
        if content is None or oversize or self._bad:
            self._compact()
        else:
            self._descriptor = self._files.open(self._path, os.O_RDWR)

    def _read(self, content: bytes) -> None:
        greatest = self._greatest
        whole = len(content) // _RECORD.size * _RECORD.size
        for start, (key, timestamp, check) in zip(
            range(0, whole, _RECORD.size), _RECORD.iter_unpack(memoryview(content)[:whole]), strict=True
        ):
            if crc32(content[start : start + KEY_SIZE + TIMESTAMP_SIZE]) != check:
                self._bad += 1
            elif timestamp > greatest.get(key, b""):
                greatest[key] = timestamp

    def _compact(self) -> None:
        """Rewrite the file with the greatest of each key. Records made meanwhile are carried over."""
        with self._writing:
            live = dict(self._greatest)
        content = b"".join(_pack(key, timestamp) for key, timestamp in live.items())
        temporary = self._path.with_suffix(".new")
        fresh = write_fresh(self._files, temporary, content)
        with self._writing:
            late = [item for item in self._greatest.items() if live.get(item[0]) != item[1]]
            try:
                write_all(self._files, fresh, b"".join(_pack(*item) for item in late), len(content))
                self._files.rename(temporary, self._path)
            except OSError:
                with suppress(OSError):
                    self._files.close(fresh)
                raise
            previous, self._descriptor = self._descriptor, fresh
            self._end = len(content) + len(late) * _RECORD.size
            self._dirty = False
        if previous is not None:
            self._files.close(previous)
        sync_directory(self._files, self._path.parent)

    def _live_size(self) -> int:
        return len(self._greatest) * _RECORD.size

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise StateError(f"{self._path} is closed.")
        return self._descriptor


def _pack(key: bytes, timestamp: bytes) -> bytes:
    return _RECORD.pack(key, timestamp, crc32(timestamp, crc32(key)))
