"""Every error a user can meet: what happened, and the command or change that fixes it."""

from __future__ import annotations


class RustGuardError(Exception):
    """Something went wrong that the user can act on.

    Args:
        message: What happened and why that is likely, one or two sentences, no secret in it.
        fix: What to run or change to fix it; empty where there is nothing to do.
    """

    exit_code = 1

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class UsageError(RustGuardError):
    """The command line, a file or a message is invalid."""

    exit_code = 2


class NotRunningError(RustGuardError):
    """No daemon answers at the control socket."""

    exit_code = 3


class RefusedError(RustGuardError):
    """A request was refused: closed window, wrong token, full or colliding pool, or no permission."""

    exit_code = 4


class NameTakenError(RefusedError):
    """There is an interface of that name already."""


class UnansweredError(RustGuardError):
    """No answer came in time."""

    exit_code = 5


class StateError(RustGuardError):
    """A state file can't be trusted, read, written or locked."""


class InUseError(StateError):
    """Another process has locked the state directory: a daemon that runs, or one that is just starting."""


class ClosedError(RustGuardError):
    """A tunnel was used after it was closed, or was closed while it was being used."""
