"""`rustguard peers`: list, revoke, restore, rename, reset."""

from __future__ import annotations

from pathlib import Path

import click

from rustguard_py.cli import complete
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
    """List the peers. Its commands rename, revoke, restore or reset one."""
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
@click.argument("who", metavar="NAME|KEY", shell_complete=complete.peers)
@state_option
@click.pass_obj
def revoke(above: Path | None, who: str, state: Path | None) -> None:
    """Disconnect a peer at once and refuse its key from then on. Its address is free again."""
    answer = ask(state or above, "revoke", {"who": who})
    peer = answer["peer"]
    address = peer["address4"] or peer["address6"]
    click.echo(f"Revoked {printable(peer['name'])}{f'; {address} is free again' if address else ''}.", err=True)
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
@click.argument("old", shell_complete=complete.peers)
@click.argument("new")
@state_option
@click.pass_obj
def rename(above: Path | None, old: str, new: str, state: Path | None) -> None:
    """Rename the peer OLD to NEW."""
    ask(state or above, "rename", {"old": old, "new": new})
    click.echo(f"{printable(old)} is now {printable(new)}.", err=True)


@command.command("reset", examples=[("rustguard peers reset phone", "its clock was wrong, and is right again")])
@click.argument("who", metavar="NAME|KEY", shell_complete=complete.peers)
@state_option
@click.pass_obj
def reset(above: Path | None, who: str, state: Path | None) -> None:
    """Forget the time of a peer's last handshake, for a peer whose clock was once far ahead.

    A server refuses handshakes that are older than the last one of the same peer.
    """
    answer = ask(state or above, "reset", {"who": who})
    name = printable(answer["peer"]["name"])
    if answer["added_again"]:
        # The kernel kept the timestamp, and forgot it together with the peer.
        click.echo(
            f"Removed {name} from the kernel's WireGuard and added it again; its session starts again.", err=True
        )
    elif answer["was"] is None:
        click.echo(f"There was no handshake of {name} to forget.", err=True)
    else:
        click.echo(f"Forgot the handshake of {name} at {answer['was']}: the next one is accepted.", err=True)
