"""`rustguard import`: make a server from a wg-quick file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rustguard_py.cli.verb import Verb, state_option

if TYPE_CHECKING:
    from rustguard_py.state.records import ServerState


@click.command(
    "import",
    cls=Verb,
    examples=[
        ("sudo rustguard import /etc/wireguard/wg0.conf", "its key, port, pool and peers become this server's"),
        ("sudo rustguard serve --token -", "after that: the peers stay connected, and others can join"),
    ],
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@state_option
def command(file: Path, state: Path | None) -> None:
    """Make a server from the wg-quick file FILE, with its identity, port, pools and peers.

    The peers need no change: key, addresses and preshared keys stay. Their names are read from comments.
    """
    from rustguard_py.enroll.server import import_wg_quick
    from rustguard_py.quick import conf_files
    from rustguard_py.state.paths import state_directory

    directory = state_directory("server", state)
    imported = import_wg_quick.read_server(conf_files.load(file), str(file))
    import_wg_quick.save(directory, imported.state)
    _report(directory, imported.state)
    if imported.left_out:
        click.echo(f"Not imported, because a server doesn't use it: {', '.join(imported.left_out)}.", err=True)
    click.echo("Stop the program that serves it now, then run: rustguard serve", err=True)


def _report(directory: Path, state: ServerState) -> None:
    pools = " and ".join(str(pool) for pool in (state.pool4, state.pool6) if pool is not None)
    click.echo(
        f"Saved in {directory}: a server of {pools}, port {state.port}, {len(state.peers)} peers.",
        err=True,
    )
