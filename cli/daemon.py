"""Which daemon a command means, and asking it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import click

from rustguard_py.daemon.control.client import call, listens
from rustguard_py.model.errors import NotRunningError, UsageError
from rustguard_py.state import paths

START = "Start one: `sudo rustguard serve …` or `sudo rustguard join …`."


def ask(state: Path | None, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Ask the daemon that is meant.

    Args:
        state: Its state directory, or None where only one runs.
        method: What to do.
        params: With what.

    Raises:
        NotRunningError: None runs, or not on this state.
        UsageError: Several run and none was named.
        RustGuardError: What the daemon said.
    """
    return call(find_socket(state), method, params)


def find_socket(state: Path | None) -> Path:
    """Find the control socket of the daemon that is meant; see `ask` for the errors."""
    if state is not None:
        socket = paths.find_socket(state)
        if socket is None:
            raise NotRunningError(f"No daemon runs on {state}.", START)
        return socket
    candidates = [candidate for candidate in paths.running() if listens(candidate.socket)]
    if not candidates:
        raise NotRunningError("No daemon runs here.", START)
    if len(candidates) > 1:
        context = click.get_current_context(silent=True)
        command = context.command_path if context else "rustguard status"
        lines = [f"{command} --state {quote(str(candidate.state_directory))}" for candidate in candidates]
        raise UsageError(
            f"{len(candidates)} daemons run here; say which one is meant.", "\n".join(["One of:", *lines])
        )
    return candidates[0].socket
