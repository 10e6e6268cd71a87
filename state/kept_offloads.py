"""The list of `--offloads` that `rustguard up` keeps: one line in the file `offloads` of a tunnel's state directory.

A server and a client keep theirs in `state.json`. A tunnel of a wg-quick file has none. The caller holds the
directory's lock.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from shlex import quote

from rustguard_py.model.errors import StateError, UsageError
from rustguard_py.model.offloads import ALL, choose_offloads
from rustguard_py.state.durable_files import Files, read_private, sync_directory, unusable, write_fresh

_NAME = "offloads"


def load(directory: Path) -> str:
    """Return the list that is kept in a state directory (`model.offloads`); empty if there is none.

    Raises:
        StateError: The file can't be read, or isn't one of ours.
    """
    path = directory / _NAME
    try:
        content = read_private(Files(), path)
    except OSError as error:
        raise unusable("read", path, error) from error
    if content is None:
        return ""
    text = content.decode(errors="replace").strip()
    try:
        choose_offloads(text, ALL)
    except UsageError as error:
        raise StateError(f"{path} is damaged: {error.message}", f"Remove it: rm {quote(str(path))}") from error
    return text


def save(directory: Path, text: str) -> None:
    """Keep a list; an empty one removes the file.

    Raises:
        StateError: The file can't be written.
    """
    path = directory / _NAME
    files = Files()
    try:
        if text:
            new = path.with_name(f"{_NAME}.new")
            files.close(write_fresh(files, new, f"{text}\n".encode()))
            files.rename(new, path)
        else:
            with suppress(FileNotFoundError):
                files.unlink(path)
        sync_directory(files, directory)
    except OSError as error:
        raise unusable("written", path, error) from error
