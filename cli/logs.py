"""The level that a daemon logs from, and how each line begins."""

from __future__ import annotations

import logging
import os
import sys
from datetime import datetime
from typing import Any

import click

from rustguard_py.cli.failures import describe
from rustguard_py.cli.verb import LOG_LEVEL
from rustguard_py.model.printable import printable

# sd-daemon(3): what journald reads at the start of a line.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))
# pyroute2 would log netlink messages, which carry keys. asyncio has little to tell a user.
_OTHERS = {"pyroute2": logging.CRITICAL, "asyncio": logging.WARNING}


def configure(default: int = logging.INFO) -> None:
    """Log to standard error, from the level that `--log-level` chose, else from `default`."""
    context = click.get_current_context(silent=True)
    chosen = context.meta.get(LOG_LEVEL) if context is not None else None
    level = logging.getLevelNamesMapping()[chosen.upper()] if chosen else default
    # Otherwise logging prints a traceback when standard error can't be written.
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    # Also on the handler: loggers with a level of their own don't ask the root's.
    handler.setLevel(level)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, theirs in _OTHERS.items():
        logging.getLogger(name).setLevel(theirs)


class LineFormatter(logging.Formatter):
    """Begin a record with its time, or each of its lines with its priority where journald reads them.

    Journald is looked for at each record, because a daemon in the background gets another standard error.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base's name
        """Return the line without a traceback, made printable: names and hosts may be anyone's."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the base's name
        """Return one line in place of the traceback, which goes to a report."""
        return describe(ei[1]) if ei[1] is not None else ""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines."""
        text = super().format(record)
        if not is_journal():
            return f"{timestamp(record.created)} {text}"
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def timestamp(seconds: float) -> str:
    """Return a Unix time as local date, time and offset in ISO 8601, to the second."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def is_journal() -> bool:
    """Return whether journald reads standard error.

    JOURNAL_STREAM then names it as DEVICE:INODE (systemd.exec(5)).
    """
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
