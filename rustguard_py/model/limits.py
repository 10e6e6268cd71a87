"""Recognizes an error that comes of a limit: of open files, of threads and processes, or of memory."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rustguard_py.model.sudo import as_root

_NO_MEMORY: Final = re.compile(
    "cannot allocate memory|failed to map segment|out of memory|malloc failure", re.IGNORECASE
)
# What Python says when the kernel refuses a thread.
_NO_THREAD: Final = "can't start new thread"


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that was reached.

    Attributes:
        message: Which one, as a sentence.
        fix: How to raise it.
    """

    message: str
    fix: str


THREADS: Final = Limit(
    "The system refused a further thread or process.",
    "Raise the limit of processes (`ulimit -u`, TasksMax= in a systemd unit, --pids-limit of a container), or that "
    "of memory (`ulimit -v`).",
)
MEMORY: Final = Limit(
    "There isn't enough memory.",
    "Free some, or raise the limit: `ulimit -v`, MemoryMax= in a systemd unit, or --memory of a container.",
)
_GROUPS: Final = Path("/proc/self/cgroup")
_ROOT: Final = Path("/sys/fs/cgroup")


def limit_of(error: BaseException) -> Limit | None:
    """Return the limit that an error, or one that caused it, comes of; None if it is none that is known."""
    return next((limit for each in _causes(error) if (limit := _limit(each)) is not None), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _causes(each)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _limit(error: BaseException) -> Limit | None:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EMFILE:
        return _files()
    if number == errno.ENFILE:
        return Limit(
            "This machine has too many open files.", f"Raise the limit: {as_root('sysctl -w fs.file-max=1000000')}"
        )
    if _NO_THREAD in str(error) or (number == errno.EAGAIN and _is_fork(error)):
        return THREADS
    if number == errno.ENOMEM or isinstance(error, MemoryError) or _says_no_memory(error):
        return MEMORY
    return None


def _files() -> Limit:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limit(
        f"Too many open files: this process may have {allowed}.",
        "Raise the limit: `ulimit -n 1024`, LimitNOFILE=1024 in a systemd unit, or --ulimit nofile=1024 of a "
        "container.",
    )


def lack_of_files(wanted: int) -> OSError | None:
    """Return the system's error if the process can't open so many more descriptors, else None.

    The C library says of a name only that it can't be resolved, even where it got no socket to ask with.
    """
    held: list[int] = []
    try:
        for _ in range(wanted):
            held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error
    finally:
        for each in held:
            os.close(each)
    return None


def _is_fork(error: BaseException) -> bool:
    """Return whether a call that starts a process failed. A busy lock or a full socket is EAGAIN too."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_name == "_execute_child"


def _says_no_memory(error: BaseException) -> bool:
    return isinstance(error, ImportError | ValueError) and _NO_MEMORY.search(str(error)) is not None


def has_memory(wanted: int) -> bool:
    """Return whether the process's control group lets it have so much more memory, bytes; True if that is unknown.

    The kernel kills a process that takes more, so it can't be tried.
    """
    allowed = _group_memory()
    if allowed is None:
        return True
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resident + wanted <= allowed


def _group_memory() -> int | None:
    """Return how much memory the process's control group may have, bytes; None if there is no limit."""
    limits = []
    with suppress(OSError):
        for line in _GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                places = [_ROOT / path.strip("/") / "memory.max", _ROOT / "memory.max"]
            elif controllers == "memory":
                # A container sees its own group as the root.
                places = [_ROOT / "memory" / each / "memory.limit_in_bytes" for each in (path.strip("/"), "")]
            else:
                continue
            limits += [int(text) for place in places if (text := _read(place)).isdecimal()]
    return min(limits, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
