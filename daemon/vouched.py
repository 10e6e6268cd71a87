"""The hooks that root has started a tunnel with, in a file that the tunnel's daemon can't write.

The ledger has the hooks that clean up after a killed tunnel, and root runs them. But the daemon writes the ledger, so
whoever took it over could put other commands there. The digests of the hooks are therefore kept next to the state
directory, where Landlock lets no daemon write. They are written before the daemon gives up its privileges, and by the
helper of `up`, which reads the file again.
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
from rustguard_py.state.durable_files import Files, read_private, write_fresh

log = logging.getLogger(__name__)


def digest(hook: str) -> str:
    """Return the digest that names a hook."""
    return sha256(hook.encode("utf-8", "surrogateescape")).hexdigest()


def lines_of(hooks: conf.Hooks) -> tuple[str, ...]:
    """Return all hooks of a file."""
    return (*hooks.pre_up, *hooks.post_up, *hooks.pre_down, *hooks.post_down)


def vouch(directory: Path, lines: Iterable[str]) -> None:
    """Add hooks to those that may be run for a state directory.

    What can't be written is logged: those hooks aren't run if the tunnel is killed.
    """
    path = _path(directory)
    known = sorted({*_known(directory), *map(digest, lines)})
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        os.close(write_fresh(Files(), temporary, json.dumps(known).encode()))
        temporary.replace(path)
    except OSError as error:
        log.warning("%s can't be written, so a killed tunnel's hooks won't be run: %s", path, error.strerror)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def known_of(directory: Path, hooks: conf.Hooks) -> tuple[conf.Hooks, list[str]]:
    """Return those of the hooks that may be run, and the lines that may not."""
    known = _known(directory)
    kept = {
        name: tuple(line for line in getattr(hooks, name) if digest(line) in known) for name in conf.Hooks.__slots__
    }
    return conf.Hooks(**kept), [line for line in lines_of(hooks) if digest(line) not in known]


def forget(directory: Path) -> None:
    """Remove the file, if we may. Hooks that stay known are only those that root once started the tunnel with."""
    with suppress(OSError):
        _path(directory).unlink(missing_ok=True)


def _path(directory: Path) -> Path:
    directory = directory.resolve()
    return directory.with_name(f"{directory.name}.hooks")


def _known(directory: Path) -> frozenset[str]:
    with suppress(OSError, ValueError, StateError):
        content = read_private(Files(), _path(directory))
        if content is not None:
            return frozenset(map(str, json.loads(content)))
    return frozenset()
