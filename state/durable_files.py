"""Durable files: the system calls that they need, in a class that tests replace to record them or make them fail."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from shlex import quote

from rustguard_py.model.errors import StateError

# Of a file that is read. A peer has about 500 bytes in the state, so this is enough for a million.
MOST_BYTES = 512 << 20
# Errors of opening a directory, a socket or a FIFO that nobody reads, and a device without a driver.
_NOT_FILES = {errno.EISDIR, errno.ENXIO, errno.ENODEV}
_FIXES = {
    errno.ENOSPC: "Free some space on the filesystem of {directory}.",
    errno.EDQUOT: "Free some space on the filesystem of {directory}, or have the quota raised.",
    errno.EIO: "Check the disk under {directory}: `dmesg` says more.",
    errno.EROFS: "Mount the filesystem of {directory} writable, or choose another directory with --state.",
    errno.ENOENT: "Is {directory} still there? If not, end the daemon and start it again, or put the directory back.",
    errno.EACCES: "Run as the owner of {directory}, or choose another directory with --state.",
    errno.EPERM: "Run as the owner of {directory}, or choose another directory with --state.",
}


class Files:
    """One method per system call. No method follows a symbolic link in a path's last component."""

    __slots__ = ()

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """Return a descriptor of a file, close-on-exec."""
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def stat(self, descriptor: int) -> os.stat_result:
        """Return the file's status: fstat(2)."""
        return os.fstat(descriptor)

    def read(self, descriptor: int, size: int) -> bytes:
        """Return up to `size` bytes from the current position."""
        return os.read(descriptor, size)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        """Write at an offset: pwrite(2). Return how many bytes were written, maybe not all."""
        return os.pwrite(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        """Set the file's size: ftruncate(2)."""
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        """Make the file durable, with all its metadata."""
        os.fsync(descriptor)

    def fdatasync(self, descriptor: int) -> None:
        """Make the file's content and size durable."""
        os.fdatasync(descriptor)

    def chmod(self, descriptor: int, mode: int) -> None:
        """Set the permissions of a file: fchmod(2)."""
        os.fchmod(descriptor, mode)

    def chown(self, descriptor: int, user: int, group: int) -> None:
        """Set the owner of a file: fchown(2)."""
        os.fchown(descriptor, user, group)

    def flock(self, descriptor: int) -> None:
        """Lock the file exclusively. Raise BlockingIOError if another process has locked it."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        os.link(source, target, follow_symlinks=False)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file, replacing the target if there is one."""
        os.rename(source, target)  # noqa: PTH104 - one method, one system call

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        os.unlink(path)  # noqa: PTH108

    def mkdir(self, path: Path, mode: int) -> None:
        """Make a directory."""
        os.mkdir(path, mode)  # noqa: PTH102


def unusable(action: str, path: Path, error: OSError) -> StateError:
    """Return the error for a system call that failed on one of our files.

    Args:
        action: What was tried: "written", "read", "locked".
        path: The file or directory.
        error: The kernel's answer.
    """
    fix = _FIXES.get(error.errno or 0, "Choose another directory with --state.")
    reason = error.strerror or type(error).__name__
    return StateError(f"{path} can't be {action}: {reason}.", fix.format(directory=path.parent))


def make_directory(files: Files, directory: Path) -> None:
    """Make a directory (0700) and its parents durably. Raise StateError if others can write in it."""
    missing = [directory, *directory.parents]
    missing = [path for path in missing if not path.exists()]
    for path in reversed(missing):
        with suppress(FileExistsError):
            files.mkdir(path, 0o700 if path == directory else 0o755)
        sync_directory(files, path.parent)
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    if status.st_uid not in (0, os.geteuid()):
        raise StateError(
            f"{directory} belongs to another user (uid {status.st_uid}), who could put other keys in it.",
            "Choose a directory of your own with --state.",
        )
    if status.st_mode & 0o022:
        raise StateError(
            f"Others can write in {directory} (mode {stat.S_IMODE(status.st_mode):04o}).",
            f"If it's yours alone: chmod go-w {quote(str(directory))}; else choose another with --state.",
        )


def open_plain(files: Files, path: Path, flags: int) -> int:
    """Return a descriptor of a plain file, close-on-exec. What else is there is neither waited for nor followed.

    Args:
        files: The system calls.
        path: The file.
        flags: As for `Files.open`.

    Raises:
        StateError: It isn't a plain file.
        OSError: The kernel refused.
    """
    try:
        # Non-blocking, because a FIFO would be waited for until somebody opens its other end.
        descriptor = files.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StateError(
                f"{path} is a symbolic link.", "Put the file itself there, or name its directory with --state."
            ) from error
        if error.errno in _NOT_FILES:
            raise _not_plain(path) from error
        raise
    try:
        check_plain(path, files.stat(descriptor))
    except BaseException:
        files.close(descriptor)
        raise
    return descriptor


def check_plain(path: Path, status: os.stat_result) -> None:
    """Raise StateError if a path leads to something else than a plain file."""
    if not stat.S_ISREG(status.st_mode):
        raise _not_plain(path)


def _not_plain(path: Path) -> StateError:
    where = quote(str(path))
    return StateError(f"{path} is not a plain file.", f"Move it away: mv {where} {where}.odd")


def read_private(files: Files, path: Path) -> bytes | None:
    """Return the content of a file that only we may read or write, or None if there is no file.

    Raises:
        StateError: It isn't a plain file, belongs to another user, others can access it, or it is far too large.
        OSError: The kernel refused.
    """
    try:
        descriptor = open_plain(files, path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        _check_private(path, files.stat(descriptor))
        return read_all(files, descriptor, path)
    finally:
        files.close(descriptor)


def read_all(files: Files, descriptor: int, path: Path) -> bytes:
    """Return the rest of a file's content.

    Raises:
        StateError: There is more of it than any file of ours has.
        OSError: The kernel refused.
    """
    chunks, size = [], 0
    while chunk := files.read(descriptor, 1 << 20):
        chunks.append(chunk)
        size += len(chunk)
        if size > MOST_BYTES:
            where = quote(str(path))
            raise StateError(
                f"{path} has more than {MOST_BYTES >> 20} MiB, so RustGuard didn't write it.",
                f"Move it away: mv {where} {where}.odd",
            )
    return b"".join(chunks)


def _check_private(path: Path, status: os.stat_result) -> None:
    where = quote(str(path))
    if status.st_uid != os.geteuid():
        raise StateError(
            f"{path} belongs to uid {status.st_uid}, and this is uid {os.geteuid()}.",
            f"Run as that user, or, if the file is yours: chown {os.geteuid()} {where}",
        )
    if status.st_mode & 0o077:
        raise StateError(
            f"Others can access {path} (mode {stat.S_IMODE(status.st_mode):04o}), and it holds secret keys.",
            f"If nobody else has been on this machine: chmod 600 {where}",
        )


def write_fresh(files: Files, path: Path, content: bytes) -> int:
    """Write a new file (0600), replacing a leftover of that name, and fsync it.

    A leftover is unlinked, never overwritten, because after a crash its inode may have another name too.

    Returns:
        The file's descriptor, which the caller closes.
    """
    with suppress(FileNotFoundError):
        files.unlink(path)
    descriptor = files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        write_all(files, descriptor, content, 0)
        files.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            files.close(descriptor)
        raise
    return descriptor


def write_all(files: Files, descriptor: int, content: bytes, offset: int) -> None:
    """Write all of `content` at an offset, with as many calls as needed."""
    rest = memoryview(content)
    while rest:
        written = files.write(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def sync_directory(files: Files, directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = files.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.fsync(descriptor)
    finally:
        files.close(descriptor)
