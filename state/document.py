"""One durable JSON document: `state.json` in its own directory, with a lock and a backup of the previous version.

A save has four steps. After a crash at any point, loading returns the old document or the new one:

1. `state.json.new` is written and fsynced. Until step 3 nothing reads it.
2. `state.json` gets a second name, which is renamed to `state.json.bak`. `state.json` itself stays in place.
3. `state.json.new` is renamed to `state.json`: the old one or the new one, both fsynced, has that name.
4. The directory is fsynced. Only now does `save` return. If that fails, the old file gets its name back: the caller
   learns that its change isn't saved, so the next start must not find it. After a power cut it still may.

The very first save writes `state.json.first` instead of `state.json.new`. So an interrupted first save (the directory
counts as new) differs from a lost `state.json` (which is refused).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote

from rustguard_py.model.errors import InUseError, StateError
from rustguard_py.model.sudo import as_root
from rustguard_py.state import envelope, interrupted
from rustguard_py.state.durable_files import (
    Files,
    make_directory,
    open_plain,
    read_private,
    sync_directory,
    unusable,
    write_fresh,
)

# Errors of filesystems without hard links, or of a file with too many.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Document:
    """The document of one directory, which is locked while this object is open.

    Call `load` once, then `save` as often as needed, one save at a time and from any thread. Call `close` at the end.
    """

    __slots__ = ("_durable", "_files", "_generation", "_lock", "directory", "path")

    def __init__(self, directory: Path, lock: int | None, files: Files) -> None:
        self.directory = directory
        self.path = directory / "state.json"
        self._lock = lock
        self._files = files
        self._generation: int | None = None
        self._durable = False

    @classmethod
    def open(cls, directory: Path, files: Files | None = None) -> Document:
        """Lock the directory, and make it (0700) if it doesn't exist.

        Raises:
            StateError: Another process has locked it, others can write in it, or the kernel refused.

        A restore that was interrupted is finished or taken back first (`interrupted`).
        """
        files = files or Files()
        directory = directory.resolve()
        try:
            make_directory(files, directory)
            lock = open_plain(files, directory / "lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise unusable("used", directory, error) from error
        try:
            _take(files, directory, lock)
            interrupted.finish(files, directory)
        except BaseException:
            files.close(lock)
            raise
        return cls(directory, lock, files)

    @classmethod
    def peek(cls, directory: Path) -> dict[str, object] | None:
        """Return the data last saved in a directory that another process may have locked, or None if there is none.

        Raises:
            StateError: See `load`.
        """
        document = cls(directory.resolve(), None, Files())
        return document.load() if os.path.lexists(document.path) else None

    @staticmethod
    def is_held(directory: Path) -> bool:
        """Return whether a process holds the lock of a directory. Nothing is made."""
        try:
            lock = open_plain(Files(), directory.resolve() / "lock", os.O_RDONLY)
        except (OSError, StateError):
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def load(self) -> dict[str, object] | None:
        """Return the data last saved, or None if nothing was ever saved.

        Raises:
            StateError: The file can't be trusted or read, or it is missing although there is a copy. The error names
                the command that restores a valid copy.
        """
        found: tuple[int, dict[str, object]] | None = None
        try:
            content = read_private(self._files, self.path)
            if content is not None:
                found = envelope.decode(content)
            elif any(os.path.lexists(copy) for copy in self._copies()):
                raise self._refusal("is missing, though a copy of it is there")
            # A process that was killed between the rename and the directory's fsync left this to be done.
            sync_directory(self._files, self.directory)
        except envelope.DamagedError as error:
            raise self._refusal(f"can't be trusted: {error}") from error
        except envelope.NewerSchemaError as error:
            raise self._newer(error.schema) from error
        except OSError as error:
            raise self._refusal(f"can't be read: {error.strerror}") from error
        self._generation, data = found or (0, None)
        self._durable = found is not None
        return data

    def save(self, data: Mapping[str, object]) -> None:
        """Replace the data. It is durable on return.

        Args:
            data: JSON values. A member may be an `envelope.Canonical` instead.

        Raises:
            StateError: The data couldn't be made durable. The document on disk is whole, the old or the new one, and
                the next save may be tried at any time.
        """
        if self._generation is None:
            raise RuntimeError("save before a load that succeeded")
        self._generation += 1
        content = envelope.encode(self._generation, data)
        temporary = self._beside("new" if self._durable else "first")
        try:
            self._replace(temporary, content)
        except OSError as error:
            with suppress(OSError):
                self._files.unlink(temporary)
            raise unusable("written", self.path, error) from error

    def remove_copies(self) -> None:
        """Remove the copies of earlier data, for secrets that are not to outlast what was saved last.

        Raises:
            StateError: A copy couldn't be removed.
        """
        try:
            for copy in self._copies():
                with suppress(FileNotFoundError):
                    self._files.unlink(copy)
            sync_directory(self._files, self.directory)
        except OSError as error:
            raise unusable("written", self.path, error) from error

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._lock is not None:
            self._files.close(self._lock)
            self._lock = None

    def _replace(self, temporary: Path, content: bytes) -> None:
        self._files.close(write_fresh(self._files, temporary, content))
        kept = self._durable and self._keep_the_one_before()
        self._files.rename(temporary, self.path)
        try:
            sync_directory(self._files, self.directory)
        except OSError:
            with suppress(OSError):
                if kept:
                    self._files.rename(self._beside("bak"), self.path)
                elif not self._durable:
                    self._files.unlink(self.path)
            raise
        self._durable = True

    def _keep_the_one_before(self) -> bool:
        """Give the file on disk the name of a copy; return whether there was one."""
        # A rename between two names of one inode does nothing, so this name may remain from a failed save.
        second_name = self._beside("bak.new")
        with suppress(FileNotFoundError):
            self._files.unlink(second_name)
        try:
            self._files.link(self.path, second_name)
        except FileNotFoundError:
            # Another program deleted it. What is being saved is complete, so the file comes back.
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            content = read_private(self._files, self.path)
            if content is None:
                return False
            self._files.close(write_fresh(self._files, second_name, content))
        self._files.rename(second_name, self._beside("bak"))
        return True

    def _beside(self, suffix: str) -> Path:
        return self.directory / f"state.json.{suffix}"

    def _copies(self) -> tuple[Path, ...]:
        return self._beside("new"), self._beside("bak"), self._beside("bak.new")

    def _refusal(self, what: str) -> StateError:
        return StateError(f"{self.path} {what}.", self._way_back())

    def _newer(self, schema: int) -> StateError:
        return StateError(
            f"{self.path} was written by a later version of RustGuard "
            f"(schema {schema}, this one knows {envelope.STATE_SCHEMA}).",
            f"Upgrade RustGuard. To stay with this version, restore a backup that it made (rustguard restore FILE "
            f"--overwrite). If there is none: {self._way_back()}",
        )

    def _way_back(self) -> str:
        copies: list[tuple[int, Path]] = []
        for copy in self._copies():
            with suppress(OSError, StateError, envelope.DamagedError, envelope.NewerSchemaError):
                content = read_private(self._files, copy)
                if content is not None:
                    copies.append((envelope.decode(content)[0], copy))
        if not copies:
            restore = "rustguard restore FILE --overwrite"
            return f"No copy next to it is valid. Restore a backup ({restore}), or start again: {self._start_again()}"
        generation, copy = max(copies)
        command = f"mv {quote(str(copy))} {quote(str(self.path))}"
        return f"Go back to the copy next to it (save number {generation}; later changes are lost): {command}"

    def _start_again(self) -> str:
        where = str(self.directory)
        return f"mv {quote(where)} {quote(where + '.damaged')} (every peer must then join again)"


def _take(files: Files, directory: Path, lock: int) -> None:
    try:
        files.flock(lock)
        holder_line = b"%d\n" % os.getpid()
        # In this order, because even on a full disk the existing bytes can be overwritten.
        files.write(lock, holder_line, 0)
        files.truncate(lock, len(holder_line))
    except BlockingIOError as error:
        holder = files.read(lock, 32).decode(errors="replace").strip()
        who = f"process {holder}" if holder.isdecimal() else "another process"
        end = as_root(f"rustguard stop {quote(str(directory))}")
        what = f" What it is: ps {holder}." if holder.isdecimal() else ""
        raise InUseError(
            f"{directory} is in use by {who}.",
            f"End it: {end}. Or choose another directory: --state DIR.{what}",
        ) from error
    except OSError as error:
        raise unusable("locked", directory / "lock", error) from error
