"""Finds the daemon that a command is for, and calls it."""

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
    """Return the daemon's answer to a request.

    Args:
        state: The daemon's state directory, or None where only one runs.
        method: The method of the control socket.
        params: Its parameters.

    Raises:
        NotRunningError: None runs, or not on this state.
        UsageError: Several run, and `state` is None.
        RustGuardError: The daemon's own error.
    """
    return call(find_socket(state), method, params)


def find_socket(state: Path | None) -> Path:
    """Return the control socket of the daemon; see `ask` for arguments and errors."""
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
            f"{len(candidates)} daemons run here, and the command is for one of them.",
            "\n".join(["Choose one:", *lines]),
        )
    return candidates[0].socket
