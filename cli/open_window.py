"""`rustguard open`: admit new peers for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rustguard_py.cli.daemon import find_socket
from rustguard_py.cli.values import Duration, Number
from rustguard_py.cli.verb import Verb, state_option
from rustguard_py.daemon.control.client import call
from rustguard_py.model.defaults import DEFAULT_PORT


@click.command(
    "open",
    cls=Verb,
    examples=[
        ("rustguard open", "for a minute"),
        ("rustguard open 10m", "for ten minutes from now, also when it is open already"),
        ("rustguard open 10m --from 192.168.1.0/24", "only machines in this network may try"),
    ],
)
@click.argument("seconds", type=Duration(1, whole=True), metavar="[TIME]", default=60)
@click.option(
    "--from",
    "networks",
    multiple=True,
    metavar="CIDR",
    help="Let only machines with an address in this network try; may be given several times.",
)
@click.option(
    "--most",
    type=Number(min=1),
    metavar="N",
    help="How many new machines may join in this window.  [default: 50]",
)
@state_option
def command(seconds: int, networks: tuple[str, ...], most: int | None, state: Path | None) -> None:
    """Open the server's window for TIME: anyone who knows the token may join meanwhile.

    TIME is a duration such as 10m or 1h, or a number of seconds; 60 if none is given.
    """
    params: dict[str, Any] = {"seconds": seconds}
    if networks:
        params["from"] = list(networks)
    if most is not None:
        params["most"] = most
    socket = find_socket(state, "open")
    opened = call(socket, "open", params)
    server = call(socket, "status")
    port = "" if server["port"] == DEFAULT_PORT else f":{server['port']}"
    before = opened.get("before", {})
    if before.get("guesses_used"):
        from rustguard_py.cli.render import guesses

        click.echo(f"In the window before: {guesses(before)}.", err=True)
    only = f" to {', '.join(networks)} only" if networks else ""
    click.echo(f"Open{only} for {seconds} s. On the other machine:", err=True)
    click.echo(f"  sudo rustguard join HOST{port} --server {server['fingerprint']} --token -", err=True)
