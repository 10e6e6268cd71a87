"""Errors as a program sees them: the fix is in the traceback, and names arguments in place of options."""

from __future__ import annotations

from typing import TypeVar

from rustguard_py.model.errors import ClosedError, RustGuardError

Error = TypeVar("Error", bound=RustGuardError)

# Options of the command line, which errors of a join name.
_ARGUMENTS = {"--server": "fingerprint=", "--name": "name=", "--state": "state=", "--routes ": "routes="}


def with_its_fix(error: Error) -> Error:
    """Return an error with its fix as a note, which a traceback shows."""
    for option, argument in _ARGUMENTS.items():
        error.message = error.message.replace(option, argument)
        error.fix = error.fix.replace(option, argument)
    error.args = (error.message,)
    if error.fix and error.fix not in getattr(error, "__notes__", ()):
        error.add_note(error.fix)
    return error


def elsewhere() -> ClosedError:
    """Return the error for a tunnel in a forked child."""
    return with_its_fix(
        ClosedError(
            "The tunnel is open in the process that this one was forked from, and closed here.",
            "Open one here: call connect() in the child. Or start it with the method `spawn`.",
        )
    )


def closed() -> ClosedError:
    """Return the error for a tunnel that is closed, or is being closed."""
    return with_its_fix(ClosedError("The tunnel is closed.", "Use it inside its `with` block."))
