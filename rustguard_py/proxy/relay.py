"""What moves the bytes of the proxy's connections: its interface, and the choice between the two there are."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

# Threads of the native relay, for all connections.
_THREADS: Final = 2
# Descriptors left for everything else in the process.
_RESERVE: Final = 64
# More descriptors than this are of no use: the kernel's own default limit (fs.nr_open).
_MOST_FILES: Final = 1 << 20
# Connections per pipe: only those have one in which bytes wait for a slow reader.
_PER_PIPE: Final = 4


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection that ended.

    Attributes:
        number: What `add` returned.
        how: `finished` (both streams came to their end), `reset` or `idle`.
        bytes_in: Bytes moved into the tunnel.
        bytes_out: Bytes moved out of it.
    """

    number: int
    how: str
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """What a relay has done so far.

    Attributes:
        active: Connections now.
        added: Connections ever taken on.
        refused: Connections refused because there were too many.
        resets: Connections that ended with a reset.
        idle: Connections that ended because nothing moved for the idle time.
        bytes_in: Bytes moved into the tunnel.
        bytes_out: Bytes moved out of it.
        bytes_copied: Of these, bytes that went through a buffer of the process instead of a pipe.
    """

    active: int = 0
    added: int = 0
    refused: int = 0
    resets: int = 0
    idle: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_copied: int = 0


class Relay(Protocol):
    """Moves bytes both ways between pairs of connected stream sockets.

    The end of a stream and a reset are passed on. More is read of a direction only when all that was read before is
    written, so a slow reader stops its writer.
    """

    def add(self, outside: int, inside: int, early: bytes) -> int:
        """Move bytes between two descriptors from now on, and return the connection's number.

        The relay owns the descriptors, also if it refuses them: then they are closed.

        Args:
            outside: The host's side.
            inside: The tunnel's side.
            early: What was read of the host's side before. It is written to the tunnel's side first.

        Raises:
            OSError: There are too many connections, counting those whose end wasn't taken by `ended` (EMFILE), or the
                relay is closed (ESHUTDOWN).
        """
        ...

    def statistics(self) -> RelayStatistics:
        """Return what was done so far."""
        ...

    def fileno(self) -> int:
        """Return the descriptor that is readable while `ended` has something to return; -1 when closed."""
        ...

    def ended(self) -> list[Ended]:
        """Return the connections that ended since the last call."""
        ...

    def close(self) -> None:
        """Close all connections. Those that bytes wait in are reset, so that nobody takes a part for the whole."""
        ...


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections and pipes the limit of open files leaves room for."""

    connections: int
    pipes: int


def raise_limit_of_files() -> Room:
    """Raise the limit of open files (RLIMIT_NOFILE) to the hard limit. Return what there is room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        used = len(list(Path("/proc/self/fd").iterdir()))
    except OSError:  # a sandbox, or no /proc
        used = _RESERVE
    return room_for(_MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES), used)


def room_for(limit: int, used: int) -> Room:
    """Return what a limit of open files leaves room for when some are used: two for each connection and each pipe."""
    pairs = max(limit - used - _RESERVE, 0) // 2
    pipes = pairs // (_PER_PIPE + 1)
    return Room(max(pairs - pipes, 1), pipes)


def make_relay(room: Room, idle: float | None = None) -> Relay:
    """Return the native relay, or the portable one where the extension isn't built. Call it inside the running loop.

    Args:
        room: The most connections and pipes at once.
        idle: Seconds without a byte after which a connection ends. None: never.

    Raises:
        OSError: The kernel refuses a descriptor or a thread.
    """
    # Each of them needs what the other may lack: the extension, or a running loop.
    try:
        from rustguard_py.proxy.native_relay import NativeRelay
    except ImportError:
        from rustguard_py.proxy.portable_relay import PortableRelay

        return PortableRelay(connections=room.connections, idle=idle)
    return NativeRelay(threads=_THREADS, connections=room.connections, pipes=room.pipes, idle=idle)
