"""The hooks that root has started a tunnel with, in a file that the tunnel's daemon can't write.

The ledger has the hooks that clean up after a killed tunnel, and root runs them. But the daemon writes the ledger, so
whoever took it over could put other commands there. The digests of the hooks are therefore kept next to the state
directory, where Landlock lets no daemon write. They are written before the daemon gives up its privileges, and by the
helper of `up`, which reads the file again.

A digest is of the interface and the hook. In a hook, `%i` stands for the interface, and with another one in its place
the same line may do something else.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from rustguard_py import conf
from rustguard_py.model.errors import StateError
from rustguard_py.state import paths
from rustguard_py.state.durable_files import Files, read_private, write_fresh

log = logging.getLogger(__name__)


def digest(hook: str) -> str:
    """Return the digest that names a hook."""
    return sha256(hook.encode("utf-8", "surrogateescape")).hexdigest()


def lines_of(hooks: conf.Hooks) -> tuple[str, ...]:
    """Return all hooks of a file."""
    return (*hooks.pre_up, *hooks.post_up, *hooks.pre_down, *hooks.post_down)


def vouch(directory: Path, interface: str, lines: Iterable[str]) -> None:
    """Add an interface, and hooks of its file, to what may be undone and run for a state directory.

    What can't be written is logged: those hooks aren't run if the tunnel is killed.
    """
    path = _path(directory)
    known = sorted({*_known(directory), *(_digest(interface, each) for each in ("", *lines))})
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        os.close(write_fresh(Files(), temporary, json.dumps(known).encode()))
        temporary.replace(path)
    except OSError as error:
        log.warning("%s can't be written, so a killed tunnel's hooks won't be run: %s", path, error.strerror)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_known(directory: Path, interface: str) -> bool:
    """Return whether root has started a tunnel with this state directory and interface."""
    return _digest(interface, "") in _known(directory)


def known_of(directory: Path, interface: str, hooks: conf.Hooks) -> tuple[conf.Hooks, list[str]]:
    """Return those of the hooks that may be run for an interface, and the lines that may not."""
    known = _known(directory)

    def may_run(line: str) -> bool:
        return _digest(interface, line) in known

    kept = {name: tuple(filter(may_run, getattr(hooks, name))) for name in conf.Hooks.__slots__}
    return conf.Hooks(**kept), [line for line in lines_of(hooks) if not may_run(line)]


def forget(directory: Path) -> None:
    """Remove the file, if we may, unless a killed tunnel's ledger still needs it. The caller holds the lock."""
    if not any(path.exists() for path in paths.undo_files(directory)):
        with suppress(OSError):
            _path(directory).unlink(missing_ok=True)


def _digest(interface: str, hook: str) -> str:
    """Return the digest of a hook of an interface; of the interface itself if the hook is empty."""
    return digest(f"{interface}\0{hook}")


def _path(directory: Path) -> Path:
    directory = directory.resolve()
    return directory.with_name(f"{directory.name}.hooks")


def _known(directory: Path) -> frozenset[str]:
    with suppress(OSError, ValueError, StateError):
        content = read_private(Files(), _path(directory))
        if content is not None:
            return frozenset(map(str, json.loads(content)))
    return frozenset()
