"""A restore changes files in several directories, all or none, however it is interrupted.

1. A marker in each state directory names the plan and the new files. It is durable before there is any of them.
2. Each new file is written next to its target, under a name that no other restore has, and fsynced.
3. The plan, a list of what to remove and what to rename, is renamed to its name and fsynced. From here on the
   restore counts.
4. The plan is carried out, then the plan and the markers are removed.

Whoever locks a state directory with a marker finishes this: if the plan is there, it is carried out; if not, the new
files are removed. So nobody ever runs on a half of it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rustguard_py.model.errors import StateError
from rustguard_py.state.durable_files import Files, open_plain, read_private, sync_directory, write_fresh

MARKER, PLAN = ".restore", ".restore-plan"
# A marker or plan ends with it. One that was cut by a crash doesn't.
_END = b"\n"


def first(plan: Path) -> Path:
    """Return where a plan is written before it gets its name."""
    return plan.with_name(f"{plan.name}.new")


def mark(files: Files, directories: Sequence[Path], plan: Path, fresh: Sequence[Path]) -> None:
    """Put a marker into each state directory, durably.

    Args:
        files: The system calls.
        directories: The state directories, all locked.
        plan: Where the plan will be.
        fresh: All new files that will be written.
    """
    marker = _encode({"plan": [plan], "fresh": fresh})
    for each in directories:
        files.close(write_fresh(files, each / MARKER, marker))
        sync_directory(files, each)


def commit(
    files: Files, plan: Path, fresh: Mapping[Path, Path], removed: Sequence[Path], directories: Sequence[Path]
) -> None:
    """Make a restore count: write its plan durably.

    Args:
        files: The system calls.
        plan: The plan's path, in one of the directories.
        fresh: The new files, all durable, by what they will replace.
        removed: Files that there mustn't be any more.
        directories: The state directories, which have a marker.
    """
    text = _encode(
        {"removed": removed, "fresh": [*fresh.values()], "targets": [*fresh], "directories": directories},
    )
    files.close(write_fresh(files, first(plan), text))
    files.rename(first(plan), plan)
    sync_directory(files, plan.parent)


def finish(files: Files, directory: Path) -> None:
    """Finish or take back a restore of a state directory that was interrupted. The caller has locked the directory.

    Raises:
        StateError: The disk refused. The next call tries again.
    """
    marker = directory / MARKER
    if not os.path.lexists(marker):
        return
    try:
        content = read_private(files, marker) or b""
        # A marker that was cut off was not durable, so nothing had begun.
        if content.endswith(_END):
            known = _decode(marker, content, "plan", "fresh")
            carry_out(files, known["plan"][0])
            discard(files, known["fresh"])
        discard(files, [marker])
    except OSError as error:
        # A service may write in its state directory alone.
        raise StateError(
            f"A restore of {directory} was interrupted and can't be finished: {error.strerror}.",
            "Run it again as root, with the same file: rustguard restore FILE",
        ) from error


def carry_out(files: Files, path: Path) -> None:
    """Carry out a plan, if it is there. One process does it, and others wait.

    Raises:
        StateError: The plan can't be trusted.
    """
    try:
        descriptor = open_plain(files, path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        content = read_private(files, path)
        if content is None:
            return  # another process has finished meanwhile
        plan = _decode(path, content, "removed", "fresh", "targets", "directories")
        discard(files, plan["removed"])
        for fresh, target in zip(plan["fresh"], plan["targets"], strict=True):
            # It is gone if it was renamed before the interruption.
            with suppress(FileNotFoundError):
                files.rename(fresh, target)
        for each in sorted({each.parent for each in plan["targets"]}):
            sync_directory(files, each)
        # First the plan: a marker without a plan means that nothing is to be done.
        discard(files, [path])
        sync_directory(files, path.parent)
        discard(files, [each / MARKER for each in plan["directories"]])
    finally:
        files.close(descriptor)


def discard(files: Files, paths: Sequence[Path]) -> None:
    """Remove files, as far as they are there."""
    for each in paths:
        with suppress(FileNotFoundError):
            files.unlink(each)


def _encode(lists: Mapping[str, Sequence[Path]]) -> bytes:
    text = {name: [os.fsdecode(each) for each in paths] for name, paths in lists.items()}
    return json.dumps(text).encode() + _END


def _decode(path: Path, content: bytes, *names: str) -> dict[str, list[Path]]:
    try:
        found = json.loads(content)
        return {name: [Path(each) for each in found[name]] for name in names}
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{path} is damaged, so a restore that was interrupted can't be finished.",
            f"Move it away, then restore the backup again, with --overwrite: mv {path} {path}.damaged",
        ) from error
