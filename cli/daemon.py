"""Finds the daemon that a command is for, and calls it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import click

from rustguard_py.daemon.control.client import call, listens
from rustguard_py.model.errors import InUseError, NotRunningError, UsageError
from rustguard_py.state import paths

Result = TypeVar("Result")

# How long a daemon that is just starting is waited for, and how often it is looked for, seconds.
STARTING, _LOOK = 30.0, 0.05
START = "Start one: `sudo rustguard serve …` or `sudo rustguard join …`."


def ask_or_do(directory: Path, ask: Callable[[Path], Result], do: Callable[[], Result]) -> Result:
    """Ask the daemon of a state directory for something, or do it here if none runs.

    A daemon that is just starting holds the directory but doesn't answer yet, so it is waited for.

    Args:
        directory: The state directory.
        ask: Asks the daemon at this control socket.
        do: Does it here. Raises InUseError if a daemon holds the directory.

    Raises:
        InUseError: The process that holds it didn't answer within STARTING seconds.
    """
    deadline = time.monotonic() + STARTING
    while True:
        socket = paths.find_socket(directory)
        if socket is not None and listens(socket):
            return ask(socket)
        try:
            return do()
        except InUseError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK)


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
