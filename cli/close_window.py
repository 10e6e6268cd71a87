"""`rustguard close`: admit no more new peers."""

from __future__ import annotations

from pathlib import Path

import click

from rustguard_py.cli.daemon import ask
from rustguard_py.cli.verb import Verb, state_option


@click.command("close", cls=Verb, examples=[("rustguard close", "peers that joined stay connected")])
@state_option
def command(state: Path | None) -> None:
    """Close the server's window: no new peer may join. Closing a closed window is no error."""
    ask(state, "close")
    click.echo("Closed.", err=True)
