"""Who asked for what a handler of the control socket does."""

from __future__ import annotations

from contextvars import ContextVar

# Set in the task of each connection, so that it holds for all that a handler awaits.
ASKER: ContextVar[int | None] = ContextVar("ASKER", default=None)


def asker() -> int | None:
    """Return the user id at the other end of the control socket; None outside a handler.

    A timer or task that a handler starts inherits it, although nobody may be asking any more.
    """
    return ASKER.get()
