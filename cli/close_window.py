"""`rustguard close`: let no new peers in any more."""

from __future__ import annotations

from pathlib import Path

import click

from rustguard_py.cli.daemon import ask
from rustguard_py.cli.verb import Verb, state_option


@click.command("close", cls=Verb, examples=[("rustguard close", "peers that joined stay")])
@state_option
def command(state: Path | None) -> None:
    """Close the server's window: nobody new may join. Closing a closed one is no error."""
    ask(state, "close")
    click.echo("Closed.", err=True)
