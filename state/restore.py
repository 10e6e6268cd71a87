"""Restoring a backup: everything is checked first, and then all of its files are put in their places, or none."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from shlex import quote

from rustguard_py.model.errors import InUseError, RefusedError, StateError, UsageError
from rustguard_py.model.sudo import as_root
from rustguard_py.state import interrupted, owners
from rustguard_py.state.backup import STATE_FILES, Backup, KeptFile, Places
from rustguard_py.state.document import Document
from rustguard_py.state.durable_files import Files, sync_directory, unusable, write_fresh

# What another state has left in a directory, which mustn't stay next to the restored one.
_LEFT = (*STATE_FILES, "state.json.bak", "state.json.new", "state.json.first", "state.json.bak.new")


@dataclass(frozen=True, slots=True)
class Target:
    """A file of the backup and where it goes."""

    file: KeptFile
    path: Path


@dataclass(frozen=True, slots=True)
class Restoring:
    """What a restore will do.

    Attributes:
        targets: The files that are written.
        directories: The state directories.
        left_out: Paths in the backup that aren't restored, because one state directory was asked for.
    """

    targets: tuple[Target, ...]
    directories: tuple[Path, ...]
    left_out: tuple[str, ...]


def plan(backup: Backup, places: Places, *, overwrite: bool) -> Restoring:
    """Return what a restore will do, after all checks that can be made without writing.

    Args:
        backup: Its content.
        places: Where its files go.
        overwrite: Whether a state or setting that is there may be replaced.

    Raises:
        UsageError: One state directory was asked for, and the backup has several.
        RefusedError: There is something already, or we may not write there.
        InUseError: A daemon runs on one of the directories.
    """
    if places.single and len(backup.directories) > 1:
        listed = "\n".join(backup.directories)
        raise UsageError(
            f"The backup has {len(backup.directories)} state directories, and --state names one.",
            f"Leave --state out to restore all of them:\n{listed}",
        )
    targets = [Target(each, path) for each in backup.files if (path := _place(each, places)) is not None]
    left_out = tuple(each.path for each in backup.files if _place(each, places) is None)
    if left_out and not places.single:
        raise RefusedError(
            f"The backup has settings in /etc, such as {left_out[0]}, which only root can write.",
            "Run it with sudo, or restore one state directory: --state DIR",
        )
    _check_owner(targets)
    directories = tuple(sorted({each.path.parent for each in targets if each.file.area == "state"}))
    for each in directories:
        if Document.is_held(each):
            raise in_use(each)
    if not overwrite and (there := _already_there(targets, directories)):
        raise RefusedError(
            f"There is {there[0]} already{f', and {len(there) - 1} more' if len(there) > 1 else ''}. A restore "
            "replaces it.",
            "If you don't need what is there: --overwrite. To keep it, move it away, or choose another --state DIR.",
        )
    return Restoring(tuple(targets), directories, left_out)


def in_use(directory: Path) -> InUseError:
    """Return the error for a state directory on which a daemon runs."""
    return InUseError(
        f"A daemon runs on {directory}.",
        f"Stop it first: {as_root(f'rustguard stop {quote(directory.name)}')}",
    )


def carry_out(restoring: Restoring, files: Files | None = None) -> None:
    """Restore all files, or none.

    Raises:
        InUseError: A daemon was started meanwhile.
        StateError: The disk refused. Nothing was changed, or the message says how to finish it.
    """
    files = files or Files()
    path = restoring.directories[0].resolve() / interrupted.PLAN
    # No other restore has these names, so nothing that clears up after one touches them.
    suffix = f"restoring-{token_hex(8)}"
    fresh = {each.path: each.path.with_name(f".{each.path.name}.{suffix}") for each in restoring.targets}
    with ExitStack() as stack:
        for each in restoring.directories:
            try:
                document = Document.open(each, files)
            except InUseError as error:
                raise in_use(each) from error
            stack.callback(_close, document)
        try:
            _stage(files, restoring, path, fresh)
        except OSError as error:
            _take_back(files, restoring, path, fresh)
            raise unusable("written", Path(error.filename or path), error) from error
        try:
            interrupted.carry_out(files, path)
        except OSError as error:
            raise StateError(
                f"The restore was interrupted: {error.strerror}.",
                "Run the same command again. Whatever starts before that finishes it too.",
            ) from error


def _close(document: Document) -> None:
    # Whatever the disk answers, the lock is released.
    with suppress(OSError):
        document.close()


def _stage(files: Files, restoring: Restoring, path: Path, fresh: Mapping[Path, Path]) -> None:
    """Write all new files next to their targets, and then the plan."""
    interrupted.mark(files, restoring.directories, path, [*fresh.values(), interrupted.first(path)])
    for target in restoring.targets:
        target.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = write_fresh(files, fresh[target.path], target.file.content)
        try:
            if target.file.area != "state":
                files.chown(descriptor, *owners.numbers(target.file.owner, target.file.group))
                files.chmod(descriptor, target.file.mode)
                files.fsync(descriptor)
        finally:
            files.close(descriptor)
    for above in sorted({each.parent for each in fresh}):
        sync_directory(files, above)
    there = (each / name for each in restoring.directories for name in _LEFT)
    removed = [each for each in there if os.path.lexists(each) and each not in fresh]
    interrupted.commit(files, path, fresh, removed, restoring.directories)


def _take_back(files: Files, restoring: Restoring, path: Path, fresh: Mapping[Path, Path]) -> None:
    """Remove all new files after an error. The plan goes first, and durably: without them it would only remove."""
    with suppress(OSError):
        if os.path.lexists(path):
            interrupted.discard(files, [path])
            sync_directory(files, path.parent)
        interrupted.discard(files, [*fresh.values(), interrupted.first(path)])
        interrupted.discard(files, [each / interrupted.MARKER for each in restoring.directories])


def _place(file: KeptFile, places: Places) -> Path | None:
    """Return where a file goes, or None if it isn't restored."""
    if file.area == "state":
        above = places.state if places.single else places.state / file.directory
        return above / file.name
    above_settings = places.settings if file.area == "settings" else places.defaults
    return None if places.single or above_settings is None else above_settings / file.name


def _check_owner(targets: Sequence[Target]) -> None:
    """Refuse the state of a user for root: a daemon that root starts wouldn't use it, nor the user's find it."""
    owner = next((each.file.owner for each in targets if each.file.area == "state"), "root")
    if os.geteuid() == 0 and owners.numbers(owner, "root")[0] != 0:
        raise RefusedError(
            f"The backup is of directories of the user {owner}, and you are root.",
            f"Restore it as that user: sudo -u {quote(owner)} rustguard restore …",
        )


def _already_there(targets: Sequence[Target], directories: Sequence[Path]) -> list[Path]:
    """Return what would be removed, or replaced by something else."""
    written = {target.path for target in targets}
    left = (each / name for each in directories for name in STATE_FILES)
    found = [each for each in left if os.path.lexists(each) and each not in written]
    for target in targets:
        try:
            if not target.path.exists():
                continue
            # A FIFO would be waited for until somebody writes.
            content = target.path.read_bytes() if target.path.is_file() else None
        except OSError:
            content = None
        # A file of the package has only comments.
        is_empty = content is not None and target.file.area != "state" and not re.search(rb"(?m)^[^#\s]", content)
        if content != target.file.content and not is_empty:
            found.append(target.path)
    return found
