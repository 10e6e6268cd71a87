"""`rustguard peers`: list, revoke, restore, rename."""

from __future__ import annotations

from pathlib import Path

import click

from rustguard_py.cli.daemon import ask
from rustguard_py.cli.verb import VerbGroup, json_option, state_option
from rustguard_py.model.printable import printable, printable_json

SCHEMA = 1


@click.group(
    "peers",
    cls=VerbGroup,
    invoke_without_command=True,
    examples=[
        ("rustguard peers", "one row per peer"),
        ("rustguard peers rename laptop annas-laptop", "its address stays the same"),
        ("rustguard peers revoke annas-laptop", "disconnect it at once; its address is free again"),
    ],
)
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Show whole keys and all addresses.")
@state_option
@click.pass_context
def command(context: click.Context, as_json: bool, verbose: bool, state: Path | None) -> None:
    """List the peers, or rename, revoke or restore one with a command."""
    context.obj = state
    if context.invoked_subcommand is not None:
        return
    peers = ask(state, "peers")["peers"]
    if as_json:
        click.echo(printable_json({"schema": SCHEMA, "peers": peers}, indent=2))
        return
    from rustguard_py.cli import render

    if peers:
        render.show_peers({"peers": peers}, verbose=verbose)
    else:
        click.echo("No peers yet. Let one in: rustguard open", err=True)


@command.command("revoke", examples=[("rustguard peers revoke phone", "works while it is connected, too")])
@click.argument("who", metavar="NAME|KEY")
@state_option
@click.pass_obj
def revoke(above: Path | None, who: str, state: Path | None) -> None:
    """Disconnect a peer at once and refuse its key from then on. Its address is free again."""
    peer = ask(state or above, "revoke", {"who": who})["peer"]
    click.echo(f"Revoked {printable(peer['name'])}; {peer['address4']} is free again.", err=True)
    click.echo(f"To let it join again: rustguard peers restore {peer['public_key']}", err=True)


@command.command(
    "restore",
    examples=[("rustguard peers restore xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "let it join again")],
)
@click.argument("key")
@state_option
@click.pass_obj
def restore(above: Path | None, key: str, state: Path | None) -> None:
    """Undo a revocation: the peer with KEY may join again while the window is open."""
    ask(state or above, "restore", {"key": key})
    click.echo("It may join again while the window is open: rustguard open", err=True)


@command.command("rename", examples=[("rustguard peers rename laptop annas-laptop", "its address stays the same")])
@click.argument("old")
@click.argument("new")
@state_option
@click.pass_obj
def rename(above: Path | None, old: str, new: str, state: Path | None) -> None:
    """Rename the peer OLD to NEW."""
    ask(state or above, "rename", {"old": old, "new": new})
    click.echo(f"{printable(old)} is now {printable(new)}.", err=True)
