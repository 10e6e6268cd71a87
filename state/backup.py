"""What a backup holds: the files of state directories and the settings in /etc, taken while daemons run.

Nothing is locked for it. Each file is whole at any time: `state.json` is replaced by a rename, `timestamps` and
`audit.jsonl` only grow, and what is being appended is left out. `state.json` is read first, so the timestamps are
never older than it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from struct import error as error_of_struct
from zlib import crc32

from rustguard_py.model.errors import StateError, UsageError
from rustguard_py.state import envelope, owners
from rustguard_py.state.client_records import ClientState
from rustguard_py.state.document import Document
from rustguard_py.state.durable_files import Files, check_plain, read_private, unusable
from rustguard_py.state.members import Members
from rustguard_py.state.records import ServerState

# What a state directory holds that is worth keeping. The rest belongs to a process, or is the copy before.
STATE_FILES = ("state.json", "timestamps", "offloads", "audit.jsonl", "audit.jsonl.1")
# `/var/lib/rustguard/wg/NAME`: no directory lies deeper.
_DEPTH = 3
_MOST_FILES = 10_000
_TRIES = 5
_TIMESTAMP = 48
_LENGTH = Struct(">I")
_PART = re.compile(r"[^/\0.][^/\0]{0,254}")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of a machine lie.

    Attributes:
        state: The directory above all state directories; or one state directory, if `single`.
        settings: The directory of tokens and wg-quick files, or None for a user without rights there.
        defaults: The directory of the services' variables, or None.
        single: Whether `state` is the one state directory that was named.
    """

    state: Path
    settings: Path | None = None
    defaults: Path | None = None
    single: bool = False


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file in a backup.

    Attributes:
        area: `state`, `settings` or `defaults`.
        directory: The state directory's name below the area, such as `server` or `tunnels/wg0`; else empty.
        name: The file's name.
        content: Its bytes.
        mode: Its permissions.
        owner: The name or number of its user.
        group: The name or number of its group.
    """

    area: str
    directory: str
    name: str
    content: bytes = field(repr=False)
    mode: int = 0o600
    owner: str = "root"
    group: str = "root"

    @property
    def path(self) -> str:
        """Its place in the backup, as text."""
        return "/".join(filter(None, (self.area, self.directory, self.name)))


@dataclass(frozen=True, slots=True)
class Backup:
    """The content of a backup.

    Attributes:
        version: The version of RustGuard that made it.
        host: The name of the machine.
        made: Unix time in seconds.
        files: All files.
        services: The words after `rustguard service install` of each service that was installed.
    """

    version: str
    host: str
    made: float
    files: tuple[KeptFile, ...]
    services: tuple[tuple[str, ...], ...] = ()

    @property
    def directories(self) -> list[str]:
        """The names of the state directories."""
        return sorted({each.directory for each in self.files if each.area == "state"})

    def encode(self) -> bytes:
        """Return it as bytes: the length of a list in JSON, the list, and the contents in its order."""
        files = [
            {
                "path": each.path,
                "mode": each.mode,
                "owner": each.owner,
                "group": each.group,
                "size": len(each.content),
            }
            for each in self.files
        ]
        about = {"version": self.version, "host": self.host, "made": self.made, "services": self.services}
        listed = json.dumps({**about, "files": files}).encode()
        return b"".join((_LENGTH.pack(len(listed)), listed, *(each.content for each in self.files)))

    @classmethod
    def decode(cls, content: bytes) -> Backup:
        """Return what `encode` made. Everything is checked; nothing is written.

        Raises:
            StateError: It is invalid, or a later version wrote one of its files.
        """
        try:
            backup = cls._parse(content)
        except StateError as error:
            raise _invalid(_reason(error)) from error
        except (ValueError, RecursionError, error_of_struct) as error:
            raise _invalid("its list of files can't be read.") from error
        backup.check()
        return backup

    @classmethod
    def _parse(cls, content: bytes) -> Backup:
        (length,) = _LENGTH.unpack_from(content)
        members = Members(json.loads(content[_LENGTH.size : _LENGTH.size + length]))
        at = _LENGTH.size + length
        listed = members.array("files")
        if len(listed) > _MOST_FILES:
            raise members.bad("files", "has too many")
        files = []
        for index, value in enumerate(listed):
            one = Members(value, f"files[{index}]")
            size = one.integer("size", 0, max(0, len(content) - at))
            files.append(_kept_file(one, content[at : at + size]))
            at += size
        if at != len(content):
            raise members.bad("files", "doesn't list all of it")
        services = tuple(_words(members, each) for each in members.array("services"))
        made = members.seconds("made")
        backup = cls(members.text("version"), members.text("host"), made, tuple(files), services)
        members.end()
        return backup

    def check(self) -> None:
        """Check that this version can use each of the files.

        Raises:
            StateError: It can't, or two are the same.
        """
        if len({each.path for each in self.files}) != len(self.files) or not self.directories:
            raise _invalid("it has no state, or one file twice.")
        for each in self.files:
            if each.area == "state" and each.name == "state.json":
                self._check_state(each)
            elif each.name == "timestamps" and not _are_timestamps(each.content):
                raise _invalid(f"its {each.path} has invalid records.")

    def _check_state(self, file: KeptFile) -> None:
        made_by = f"RustGuard {self.version} made this backup"
        try:
            load(file.content)
        except envelope.NewerSchemaError as error:
            raise StateError(
                f"{made_by}, and its {file.path} is of a later form (schema {error.schema}, this version knows "
                f"{envelope.STATE_SCHEMA}).",
                "Upgrade RustGuard on this machine, then restore it.",
            ) from error
        except envelope.DamagedError as error:
            raise _invalid(f"its {file.path} can't be trusted: {error}.") from error
        except StateError as error:
            raise StateError(
                f"{made_by}, and this version can't use its {file.path}: {_reason(error)}",
                f"Install RustGuard {self.version} or later on this machine, then restore it.",
            ) from error

    def states(self) -> dict[str, ServerState | ClientState | None]:
        """Return what each state directory holds; None for the directory of a tunnel without a state of its own."""
        return {
            name: next(
                (load(each.content) for each in self.files if (each.directory, each.name) == (name, "state.json")),
                None,
            )
            for name in self.directories
        }


def load(content: bytes) -> ServerState | ClientState:
    """Return the record in the bytes of a `state.json`.

    Raises:
        DamagedError: They aren't what was written.
        NewerSchemaError: A later version wrote them.
        StateError: A member is invalid, or unknown to this version.
    """
    _, data = envelope.decode(content)
    return ClientState.from_json(data) if data.get("role") == "client" else ServerState.from_json(data)


def take(places: Places, version: str, host: str, services: tuple[tuple[str, ...], ...] = ()) -> Backup:
    """Read all that is worth keeping, at a moment, while daemons may be running.

    Raises:
        UsageError: There is nothing.
        StateError: A file is damaged, can't be read, or others can access it.
    """
    kept: list[KeptFile] = []
    for directory in state_directories(places):
        kept += _of_directory(directory, _name(places, directory))
    if not kept:
        raise UsageError(
            f"There is nothing to back up in {places.state}.",
            "Is it root's? Run it with sudo. Another directory: --state DIR",
        )
    for area, above in (("settings", places.settings), ("defaults", places.defaults)):
        kept += [
            _setting(area, path)
            for path in ([] if above is None else sorted(above.glob("*")))
            if is_setting(area, path.name) and path.is_file()
        ]
    backup = Backup(version, host, time.time(), tuple(kept), services)
    backup.check()
    return backup


def state_directories(places: Places) -> list[Path]:
    """Return the state directories that there are."""
    if places.single:
        return [places.state.resolve()]

    def walk(above: Path, depth: int) -> Iterator[Path]:
        if any((above / name).exists() for name in STATE_FILES):
            yield above
        if depth:
            for each in sorted(above.glob("*")):
                if each.is_dir() and not each.is_symlink() and _PART.fullmatch(each.name):
                    yield from walk(each, depth - 1)

    below = sorted(places.state.glob("*"))
    return [found for each in below if each.is_dir() and not each.is_symlink() for found in walk(each, _DEPTH - 1)]


def is_setting(area: str, name: str) -> bool:
    """Return whether a file in /etc is one of ours that is kept."""
    return name == "rustguard" if area == "defaults" else _PART.fullmatch(name) is not None


def _name(places: Places, directory: Path) -> str:
    """Return a state directory's name in the backup."""
    if not places.single:
        return str(directory.relative_to(places.state))
    data = Document.peek(directory)
    if data is None:
        return f"tunnels/{directory.name}"
    return "client" if data.get("role") == "client" else "server"


def _of_directory(directory: Path, name: str) -> list[KeptFile]:
    """Return the files of a state directory."""
    # It refuses a damaged state, and names the way back.
    Document.peek(directory)
    log = directory / "audit.jsonl"
    for _ in range(_TRIES):
        before = _inode(log)
        contents = {each: _read(directory / each) for each in STATE_FILES}
        # Otherwise the audit log was begun again meanwhile, and a part of it is twice here or nowhere.
        if _inode(log) == before:
            break
    whole = contents["timestamps"]
    if whole is not None:
        contents["timestamps"] = whole[: len(whole) // _TIMESTAMP * _TIMESTAMP]
    for each in ("audit.jsonl", "audit.jsonl.1"):
        lines = contents[each]
        if lines is not None:
            contents[each] = lines[: lines.rfind(b"\n") + 1]
    owner, group = owners.names(os.geteuid(), os.getegid())
    return [
        KeptFile("state", name, each, content, 0o600, owner, group)
        for each, content in contents.items()
        if content is not None
    ]


def _read(path: Path) -> bytes | None:
    try:
        return read_private(Files(), path)
    except OSError as error:
        raise unusable("read", path, error) from error


def _setting(area: str, path: Path) -> KeptFile:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            check_plain(path, status)
            content = file.read()
    except OSError as error:
        raise unusable("read", path, error) from error
    owner, group = owners.names(status.st_uid, status.st_gid)
    return KeptFile(area, "", path.name, content, stat.S_IMODE(status.st_mode) & 0o755, owner, group)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _kept_file(members: Members, content: bytes) -> KeptFile:
    area, _, rest = members.text("path").partition("/")
    directory, _, name = rest.rpartition("/")
    parts = directory.split("/") if directory else []
    mode = members.integer("mode", 0, 0o777)
    fits = (
        1 <= len(parts) <= _DEPTH and name in STATE_FILES
        if area == "state"
        else area in ("settings", "defaults") and not parts and is_setting(area, name)
    )
    if not fits or not all(map(_PART.fullmatch, parts)):
        raise members.bad("path", "is none that RustGuard keeps")
    # Others can write in none of them, and read none of the first kind.
    if mode & (0o077 if area == "state" else 0o022):
        raise members.bad("mode", "lets others in")
    file = KeptFile(area, directory, name, content, mode, members.text("owner"), members.text("group"))
    members.end()
    return file


def _words(members: Members, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise members.bad("services", "has something else than words")
    return tuple(value)


def _are_timestamps(content: bytes) -> bool:
    """Return whether at least one record is right, or there is none: a damaged one is skipped when it is read."""
    records = [content[at : at + _TIMESTAMP] for at in range(0, len(content), _TIMESTAMP)]
    return not records or any(
        len(each) == _TIMESTAMP and crc32(each[:-4]) == int.from_bytes(each[-4:]) for each in records
    )


def _reason(error: StateError) -> str:
    return error.message.removeprefix("The state can't be used: ")


def _invalid(why: str) -> StateError:
    return StateError(f"The backup can't be used: {why}", "Take another one: `rustguard backup` wrote none like it.")
