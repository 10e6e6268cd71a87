"""Paths: state directories, the runtime directory, and control sockets with their state directories.

Next to each control socket `<digest>.sock` there is a marker `<digest>.state`. Its one line is the state directory.
"""

from __future__ import annotations

import os
import stat
import warnings
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Literal

from rustguard_py.model.errors import StateError
from rustguard_py.system.place import in_namespace

Role = Literal["server", "client", "tunnel"]

# sun_path has 108 bytes, the last of them zero. `control.listening.bind` first adds a dot and its process id, up to 7
# digits, to the name.
_SOCKET_PATH_LIMIT = 107 - 8
_MARKER_LIMIT = 4096
# More than the digits of a process id.
_LOCK_LIMIT = 32
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SYSTEM_RUNTIME = Path("/run/rustguard")
_SYSTEM_STATE = Path("/var/lib/rustguard")
# Where systemd makes $XDG_RUNTIME_DIR of each user.
_USERS_RUNTIME = Path("/run/user")
_LOCKS = Path("/proc/locks")
_UID_MAP = Path("/proc/self/uid_map")
_OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A daemon that runs, or was killed. Connecting to its socket tells which.

    Attributes:
        state_directory: Its state directory, resolved.
        socket: Its control socket.
    """

    state_directory: Path
    socket: Path


def state_directory(role: Role, override: Path | None = None) -> Path:
    """Return the state directory. It isn't made here.

    Args:
        role: The role of the state.
        override: The value of `--state`; else `RUSTGUARD_STATE`, else /var/lib/rustguard/<role> for root, else the
            user's own state directory.
    """
    named = override or _from_environment("RUSTGUARD_STATE")
    if named is not None:
        return named.expanduser().resolve()
    return state_root() / role


def state_root() -> Path:
    """Return the directory of state directories that nobody named."""
    if os.geteuid() == 0:
        # RUSTGUARD_SYSTEM_STATE keeps the state of this machine out of sight of the tests and of what they start.
        return _from_environment("RUSTGUARD_SYSTEM_STATE") or _SYSTEM_STATE
    # Imported here, because most commands run as root or with a given directory and don't need it.
    from platformdirs import user_state_path

    return user_state_path("rustguard", appauthor=False)


def option_for(role: Role, directory: Path) -> str:
    """Return the option that selects a state directory, with a blank before it; empty if it is the usual one."""
    return "" if directory == state_directory(role) else f" --state {quote(str(directory))}"


def tunnel_directory(name: str) -> Path:
    """Return the state directory of a wg-quick file's tunnel, by its interface. It isn't made here.

    Each network namespace may have an interface of that name, and so has a directory of its own.
    """
    return state_root() / "tunnels" / in_namespace(name)


def log_file(state_directory: Path) -> Path:
    """Return the log of a daemon in the background: next to its state directory. `up` has its own inside."""
    # Not `with_suffix`: directories may have a dot in their name, as interfaces do.
    return state_directory.with_name(f"{state_directory.name}.log")


def down_command(interface: str, directory: Path) -> str:
    """Return the command that ends the tunnel of a wg-quick file.

    Args:
        interface: The tunnel's.
        directory: Its state directory.
    """
    usual = directory.resolve() == tunnel_directory(interface).resolve()
    return f"rustguard down {interface}{'' if usual else f' --state {quote(str(directory))}'}"


def runtime_directory() -> Path:
    """Return the directory of control sockets. If it doesn't exist, make it (0755 for root, 0700 for others).

    Raises:
        StateError: Another user could put a socket in it or replace it.
    """
    directory = runtime_path()
    try:
        if not os.path.lexists(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                directory.mkdir(0o700)
                directory.chmod(0o755 if os.geteuid() == 0 else 0o700)
        _check_runtime(directory)
    except OSError as error:
        raise StateError(
            f"The runtime directory {directory} can't be made: {error.strerror}.",
            "Name another one: RUSTGUARD_RUNTIME=DIR",
        ) from error
    return directory


def _check_runtime(directory: Path) -> None:
    """Raise StateError if another user could put a socket in the runtime directory or replace it."""
    if trouble := _trouble(directory, os.geteuid()):
        raise StateError(
            f"The runtime directory {directory} {trouble}.",
            f"Remove it (rm -r {quote(str(directory))}), or name another one: RUSTGUARD_RUNTIME=DIR",
        )


def control_socket(state_directory: Path) -> Path:
    """Return the control socket's path for a state directory, and make the runtime directory.

    Raises:
        StateError: The runtime directory can't be trusted, or its path is too long for a socket.
    """
    runtime_directory()
    socket = _socket_path(state_directory)
    if len(os.fsencode(socket)) > _SOCKET_PATH_LIMIT:
        raise StateError(
            f"The path of the control socket is longer than {_SOCKET_PATH_LIMIT} bytes: {socket}.",
            "Name a shorter directory for it: RUSTGUARD_RUNTIME=DIR",
        )
    return socket


def _socket_path(state_directory: Path) -> Path:
    return runtime_path() / f"{_digest(state_directory.resolve())}.sock"


def undo_file(state_directory: Path) -> Path:
    """Return the path of the ledger in a state directory."""
    return state_directory.resolve() / "undo.json"


def undo_files(state_directory: Path) -> list[Path]:
    """Return where a killed tunnel's ledger may be: as now, or in the runtime directory as with earlier versions.

    Raises:
        StateError: The runtime directory can't be trusted.
    """
    socket = _socket_path(state_directory)
    with suppress(OSError):
        _check_runtime(socket.parent)
    return [undo_file(state_directory), socket.with_suffix(".undo")]


def holder(state_directory: Path) -> int | None:
    """Return the process that has locked a state directory, or None. It may belong to another user."""
    with suppress(OSError, ValueError):
        lock = state_directory / "lock"
        descriptor = os.open(lock, _READ)
        with os.fdopen(descriptor, "rb") as file:
            inode, process = os.fstat(descriptor).st_ino, int(file.read(_LOCK_LIMIT))
        for line in _LOCKS.read_text().splitlines():
            # 1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF
            words = line.split()
            # Not by the device, because some filesystems have another one here than for stat.
            if words[1] == "FLOCK" and words[4] == str(process) and words[5].rpartition(":")[2] == str(inode):
                return process
    return None


def announce(state_directory: Path) -> Path:
    """Write the control socket's marker and return the socket's path. The daemon calls this before it binds."""
    socket = control_socket(state_directory)
    marker = socket.with_suffix(".state")
    temporary = socket.with_suffix(f".{os.getpid()}")
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.fsencode(state_directory.resolve()) + b"\n")
            os.fchmod(file.fileno(), 0o644)
        temporary.replace(marker)
    except OSError as error:
        fix = "Free some space on /run."
        if marker.is_dir():
            fix = f"Remove it: rm -r {quote(str(marker))}"
        raise StateError(f"{marker} can't be written: {error.strerror}.", fix) from error
    return socket


def withdraw(state_directory: Path) -> None:
    """Remove the control socket of a state directory and its marker, if they are there.

    What is in the socket's place and isn't one is somebody else's.
    """
    socket = control_socket(state_directory)
    if socket.is_socket():
        socket.unlink(missing_ok=True)
    socket.with_suffix(".state").unlink(missing_ok=True)


def is_announced(state_directory: Path) -> bool:
    """Return whether the marker of a control socket is there.

    Raises:
        StateError: The runtime directory can't be trusted.
    """
    socket = _socket_path(state_directory)
    try:
        _check_runtime(socket.parent)
    except OSError:
        return False
    return socket.with_suffix(".state").exists()


def running() -> list[Candidate]:
    """Return the daemons that may be running, ours and root's, sorted by state directory.

    Nothing is made. Directories, sockets and markers that another user could have made are left out.
    """
    owners = {_system_runtime_path(): 0, runtime_path(): os.geteuid()}
    found = set()
    for directory, owner in owners.items():
        with suppress(OSError):
            if _trouble(directory, owner) is None:
                found |= {candidate for path in directory.glob("*.sock") if (candidate := _candidate(path))}
    return sorted(found, key=lambda candidate: (candidate.state_directory, candidate.socket))


def of_users() -> list[tuple[int, Candidate]]:
    """Return the daemons of ordinary users that may be running, each with its user's number.

    They are only to be named to root. Root must not use such a socket as its own: its user chooses what the marker
    says, and which process answers.
    """
    found = []
    for runtime in sorted(_USERS_RUNTIME.glob("*/rustguard")):
        with suppress(OSError, ValueError):
            user = int(runtime.parent.name)
            if user != 0 and _trouble(runtime, user) is None:
                markers = (_candidate(path) for path in sorted(runtime.glob("*.sock")))
                found += [(user, candidate) for candidate in markers if candidate is not None]
    return found


def find_socket(state_directory: Path) -> Path | None:
    """Return the control socket of a state directory's daemon, ours before root's, or None."""
    wanted = state_directory.resolve()
    sockets = [candidate.socket for candidate in running() if candidate.state_directory == wanted]
    return min(sockets, key=lambda socket: socket.parent != runtime_path(), default=None)


def runtime_path() -> Path:
    """Return the directory of control sockets. It isn't made here."""
    named = _from_environment("RUSTGUARD_RUNTIME")
    if named is not None:
        return named.expanduser().absolute()
    if os.geteuid() == 0:
        return _system_runtime_path()
    from platformdirs import user_runtime_path

    # It warns about a user without $XDG_RUNTIME_DIR (sudo -u, cron), but still chooses a directory, which we check.
    try:
        with warnings.catch_warnings(action="ignore"):
            return user_runtime_path("rustguard", appauthor=False)
    except PermissionError as error:
        raise StateError(
            f"This user has no runtime directory: {error}.", "Name one of your own: RUSTGUARD_RUNTIME=DIR"
        ) from error


def _system_runtime_path() -> Path:
    # RUSTGUARD_SYSTEM_RUNTIME keeps the daemons of this machine out of sight of the tests and of what they start.
    return (_from_environment("RUSTGUARD_SYSTEM_RUNTIME") or _SYSTEM_RUNTIME).absolute()


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _trouble(directory: Path, owner: int) -> str | None:
    """Return why a directory can't be trusted, or None. The parent's owner counts too, because it could swap it."""
    status, parent = directory.lstat(), directory.parent.stat()
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return "is not a directory"
    if status.st_uid != owner:
        return f"belongs to another user (uid {status.st_uid})"
    if status.st_mode & 0o022:
        return f"can be written in by others (mode {stat.S_IMODE(status.st_mode):04o})"
    if parent.st_uid not in _owners_above(owner) or (parent.st_mode & 0o022 and not parent.st_mode & stat.S_ISVTX):
        return f"lies in {directory.parent}, where others can swap it"
    return None


def _owners_above(owner: int) -> set[int]:
    """Return the users who may own the parent of a directory: its owner and root.

    In a user namespace, so may users who aren't mapped into it. There the machine's root, which owns /tmp and /run,
    can't be told from the machine's other users.
    """
    owners = {0, owner}
    with suppress(OSError):
        if _UID_MAP.read_text().split() != ["0", "0", str(2**32 - 1)]:
            owners.add(int(_OVERFLOW_UID.read_text()))
    return owners


def _digest(state_directory: Path) -> str:
    return sha256(os.fsencode(state_directory)).hexdigest()[:16]


def _candidate(socket: Path) -> Candidate | None:
    try:
        descriptor = os.open(socket.with_suffix(".state"), _READ)
        with os.fdopen(descriptor, "rb") as file:
            line = file.read(_MARKER_LIMIT + 2)
    except OSError:
        return None
    directory = Path(os.fsdecode(line.removesuffix(b"\n")))
    return Candidate(directory, socket) if _digest(directory) == socket.stem else None
