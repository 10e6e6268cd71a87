"""`rustguard audit`: who joined, who was refused, and who changed what."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from rustguard_py.cli.daemon import server_meant
from rustguard_py.cli.verb import Verb, json_option, state_option
from rustguard_py.daemon import audit, audit_events
from rustguard_py.model.duration import parse_duration
from rustguard_py.model.errors import RefusedError, RustGuardError, UsageError
from rustguard_py.model.printable import printable
from rustguard_py.state import paths

SCHEMA = 1


@click.command(
    "audit",
    cls=Verb,
    examples=[
        ("sudo rustguard audit", "everything that is kept"),
        ("sudo rustguard audit --since 7d", "the last week"),
        ("sudo rustguard audit --json | jq '.events[] | select(.event == \"refused\")'", "for scripts"),
    ],
)
@json_option
@click.option("--since", metavar="TIME", help="Only what is newer: 90s, 10m, 12h, 7d, 1w, or 2026-11-26T09:30.")
@state_option
def command(as_json: bool, since: str | None, state: Path | None) -> None:
    """Show the server's audit log: joins, refusals, wrong tokens, and changes of peers and window.

    It works while no server runs too.
    """
    after = None if since is None else parse_since(since, time.time())
    running = [each.state_directory for each in paths.running() if (each.state_directory / audit.NAME).exists()]
    directory = server_meant(state, running, "rustguard audit")
    try:
        events = audit.read(directory, after)
    except PermissionError as error:
        raise RefusedError(f"{error.filename} can't be read: {error.strerror}.", "Run it as root.") from error
    if events is None:
        raise RustGuardError(
            f"There is no audit log in {directory}.",
            "Name the state directory of a server: rustguard audit --state DIR",
        )
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "events": events}, indent=2))
        return
    rows = [
        (f"{datetime.fromisoformat(event['time']).astimezone():%Y-%m-%d %H:%M:%S%z}", audit_events.sentence(event))
        for event in events
    ]
    if sys.stdout.isatty():
        from rustguard_py.cli.render import moments

        moments(rows)
    else:
        for at, sentence in rows:
            click.echo(f"{at}  {printable(sentence)}")
    if not events:
        click.echo("Nothing happened.", err=True)


def parse_since(text: str, now: float) -> datetime:
    """Return the time that `--since` means.

    Args:
        text: A duration before now, or a time in ISO 8601; without a zone it is local.
        now: Unix time.

    Raises:
        UsageError: It is neither.
    """
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromtimestamp(now - parse_duration(text), UTC)
    except (UsageError, ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"{text!r} is neither a duration nor a time.", "Write --since like 90s, 10m, 7d, 1w or 2026-11-26T09:30."
        ) from error
