"""The greatest TAI64N timestamp of each key, kept in an append-only file that survives crashes.

A responder must refuse an initiation whose timestamp isn't above the greatest from that peer (whitepaper, 5.1),
even after a restart. And the timestamps that we send must never go back, even if the wall clock does.

The file `timestamps` is a sequence of 48-byte records: public key (32), TAI64N (12), CRC-32 of both (4, big-endian).
The kernel has a record before `record` returns, so SIGKILL loses nothing. `sync` makes it survive a power cut. Torn
or damaged records are skipped, because each record is complete in itself.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from struct import Struct
from zlib import crc32

from rustguard_py.model.clock import TIMESTAMP_SIZE
from rustguard_py.model.errors import StateError
from rustguard_py.model.keys import KEY_SIZE
from rustguard_py.state.durable_files import Files, read_private, sync_directory, unusable, write_all, write_fresh

_RECORD = Struct(f">{KEY_SIZE}s{TIMESTAMP_SIZE}sI")
# In place of a timestamp: the records of that key before this one don't count.
_FORGOTTEN = bytes(TIMESTAMP_SIZE)
# The file is rewritten when it exceeds both.
_COMPACT_ABOVE = 64 * 1024
_COMPACT_RATIO = 4


class TimestampJournal:
    """The journal of one state directory. Open it while holding that directory's `Document`.

    Call `record` and `greatest` in one thread, the loop's. `sync` may run in another.
    """

    __slots__ = ("_bad", "_descriptor", "_dirty", "_end", "_files", "_greatest", "_path", "_syncing", "_writing")

    def __init__(self, path: Path, files: Files) -> None:
        self._path = path
        self._files = files
        self._greatest: dict[bytes, bytes] = {}
        self._descriptor: int | None = None
        self._end = 0
        self._bad = 0
        # The file lacks some of what is in memory, so it must be rewritten.
        self._dirty = False
        self._writing = threading.Lock()
        self._syncing = threading.Lock()

    @classmethod
    def open(cls, directory: Path, files: Files | None = None) -> TimestampJournal:
        """Open the journal of a state directory, or make an empty one.

        Raises:
            StateError: It can't be read or written, or others can access it.
        """
        journal = cls(directory.resolve() / "timestamps", files or Files())
        try:
            journal._load()
        except OSError as error:
            raise unusable("used", journal._path, error) from error
        return journal

    @property
    def bad(self) -> int:
        """Number of damaged records that were skipped when it was opened. A torn tail doesn't count."""
        return self._bad

    def greatest(self, key: bytes) -> bytes | None:
        """Return the greatest timestamp (12 bytes) recorded for a key, or None. Timestamps sort as bytes do."""
        return self._greatest.get(key)

    def is_new(self, key: bytes, timestamp: bytes) -> bool:
        """Return whether a timestamp is above the greatest one recorded for a key."""
        return timestamp > self._greatest.get(key, b"")

    def record(self, key: bytes, timestamp: bytes) -> None:
        """Record a timestamp (12 bytes) for a key (32 bytes), if it is above the greatest one.

        Raises:
            StateError: It couldn't be written. It is kept in memory, and `sync` tries again.
        """
        if len(key) != KEY_SIZE or len(timestamp) != TIMESTAMP_SIZE:
            raise ValueError(f"a key has {KEY_SIZE} bytes, a timestamp {TIMESTAMP_SIZE}")
        if timestamp <= self._greatest.get(key, b""):
            return
        with self._writing:
            self._greatest[key] = timestamp
            try:
                # At its own offset, so it overwrites what a failed write left, and records stay aligned.
                write_all(self._files, self._open_descriptor(), _pack(key, timestamp), self._end)
            except OSError as error:
                self._dirty = True
                raise unusable("written", self._path, error) from error
            self._end += _RECORD.size

    def forget(self, key: bytes) -> bytes | None:
        """Forget a key's timestamp and return it, or None if there is none. `sync` makes it survive a power cut.

        Raises:
            StateError: It couldn't be written. The timestamp is still known.
        """
        with self._writing:
            known = self._greatest.pop(key, None)
            if known is None:
                return None
            try:
                write_all(self._files, self._open_descriptor(), _pack(key, _FORGOTTEN), self._end)
            except OSError as error:
                self._greatest[key] = known
                raise unusable("written", self._path, error) from error
            self._end += _RECORD.size
        return known

    def sync(self) -> None:
        """Make all earlier records survive a power cut. If the file has grown too large, rewrite it.

        It waits for the disk, so call it in a thread, about a second after a `record`.

        Raises:
            StateError: The disk refused. The next call tries again.
        """
        with self._syncing:
            try:
                if self._dirty or self._end > max(_COMPACT_ABOVE, _COMPACT_RATIO * self._live_size()):
                    self._compact()
                else:
                    self._files.fdatasync(self._open_descriptor())
            except OSError as error:
                # After a failed fdatasync, the kernel doesn't write the lost pages again.
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
            elif timestamp == _FORGOTTEN:
                greatest.pop(key, None)
            elif timestamp > greatest.get(key, b""):
                greatest[key] = timestamp

    def _compact(self) -> None:
        """Rewrite the file with the greatest timestamp of each key, including those recorded meanwhile."""
        with self._writing:
            live = dict(self._greatest)
        content = b"".join(_pack(key, timestamp) for key, timestamp in live.items())
        temporary = self._path.with_suffix(".new")
        fresh = write_fresh(self._files, temporary, content)
        with self._writing:
            late = [item for item in self._greatest.items() if live.get(item[0]) != item[1]]
            late += [(key, _FORGOTTEN) for key in live if key not in self._greatest]
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
