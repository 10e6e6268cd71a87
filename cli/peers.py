"""`rustguard peers`: list, revoke, restore, rename."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rustguard_py.cli.daemon import ask
from rustguard_py.cli.verb import VerbGroup, json_option, state_option

SCHEMA = 1


@click.group(
    "peers",
    cls=VerbGroup,
    invoke_without_command=True,
    examples=[
        ("rustguard peers", "one row a peer"),
        ("rustguard peers rename laptop annas-laptop", "its address stays"),
        ("rustguard peers revoke annas-laptop", "at once; its address is free again"),
    ],
)
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Whole keys and all addresses.")
@state_option
@click.pass_context
def command(context: click.Context, as_json: bool, verbose: bool, state: Path | None) -> None:
    """List the peers; or, with a command, rename, revoke or restore one."""
    context.obj = state
    if context.invoked_subcommand is not None:
        return
    peers = ask(state, "peers")["peers"]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "peers": peers}, indent=2, ensure_ascii=False))
        return
    from rustguard_py.cli import render

    if peers:
        render.show_peers({"peers": peers}, verbose=verbose)
    else:
        click.echo("No peers yet. Let one in: rustguard open", err=True)


@command.command("revoke", examples=[("rustguard peers revoke phone", "also while it's connected")])
@click.argument("who", metavar="NAME|KEY")
@state_option
@click.pass_obj
def revoke(above: Path | None, who: str, state: Path | None) -> None:
    """Shut a peer out at once, and its key for good; its address is free again."""
    answer = ask(state or above, "revoke", {"who": who})
    peer = answer["peer"]
    click.echo(f"Revoked {peer['name']}; {peer['address4']} is free again.", err=True)
    click.echo(f"To let it join again: rustguard peers restore {peer['public_key']}", err=True)
    if answer.get("may_know_token"):
        click.echo(
            "Whoever had it may still know the shared token, and could join with another key while the window is "
            "open. Change the token: stop the server, then run `rustguard serve` with another --token. "
            "Machines that joined so far stay joined and don't need it.",
            err=True,
        )


@command.command(
    "restore",
    examples=[("rustguard peers restore xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "it may join again")],
)
@click.argument("key")
@state_option
@click.pass_obj
def restore(above: Path | None, key: str, state: Path | None) -> None:
    """Take back a revocation: who has KEY may join again while the window is open."""
    ask(state or above, "restore", {"key": key})
    click.echo("It may join again while the window is open: rustguard open", err=True)


@command.command("rename", examples=[("rustguard peers rename laptop annas-laptop", "its address stays")])
@click.argument("old")
@click.argument("new")
@state_option
@click.pass_obj
def rename(above: Path | None, old: str, new: str, state: Path | None) -> None:
    """Give the peer OLD the name NEW."""
    ask(state or above, "rename", {"old": old, "new": new})
    click.echo(f"{old} is now {new}.", err=True)


@command.command("reset", examples=[("rustguard peers reset phone", "its clock was wrong, and is right again")])
@click.argument("who", metavar="NAME|KEY")
@state_option
@click.pass_obj
def reset(above: Path | None, who: str, state: Path | None) -> None:
    """Forget the time of a peer's last handshake, for a peer whose clock was once far ahead.

    A server refuses handshakes that are older than the last one of the same peer.
    """
    answer = ask(state or above, "reset", {"who": who})
    name = answer["peer"]["name"]
    if answer["added_again"]:
        # The kernel kept the timestamp, and forgot it together with the peer.
        click.echo(
            f"Removed {name} from the kernel's WireGuard and added it again; its session begins anew.", err=True
        )
    elif answer["was"] is None:
        click.echo(f"There was no handshake of {name} to forget.", err=True)
    else:
        click.echo(f"Forgot the handshake of {name} at {answer['was']}: the next one is accepted.", err=True)
