"""`rustguard open`: admit new peers for a while."""

from __future__ import annotations

from pathlib import Path

import click

from rustguard_py.cli.daemon import ask
from rustguard_py.cli.verb import Verb, state_option
from rustguard_py.model.defaults import DEFAULT_PORT


@click.command(
    "open",
    cls=Verb,
    examples=[
        ("rustguard open", "for a minute"),
        ("rustguard open 600", "for ten minutes from now, also when it is open already"),
    ],
)
@click.argument("seconds", type=click.IntRange(min=1), default=60)
@state_option
def command(seconds: int, state: Path | None) -> None:
    """Open the server's window for SECONDS (60): anyone who knows the token may join meanwhile."""
    ask(state, "open", {"seconds": seconds})
    server = ask(state, "status")
    port = "" if server["port"] == DEFAULT_PORT else f":{server['port']}"
    click.echo(f"Open for {seconds} s. On the other machine:", err=True)
    click.echo(f"  sudo rustguard join HOST{port} --server {server['fingerprint']} --token -", err=True)
