"""`rustguard import`: a server made of a wg-quick file."""

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
        ("sudo rustguard serve --token -", "after that: the peers go on, and others can join"),
    ],
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@state_option
def command(file: Path, state: Path | None) -> None:
    """Make a server of what the wg-quick file FILE has served: identity, port, pools and peers.

    The peers needn't notice: key, addresses and preshared keys stay. Their names are read from comments.
    """
    from rustguard_py.enroll.server import import_wg_quick
    from rustguard_py.quick import conf_files
    from rustguard_py.state.paths import state_directory

    directory = state_directory("server", state)
    taken = import_wg_quick.take_over(conf_files.load(file), str(file))
    import_wg_quick.save(directory, taken.state)
    _say_kept(directory, taken.state)
    if taken.left_out:
        click.echo(f"Not taken over, a server has no use for it: {', '.join(taken.left_out)}.", err=True)
    click.echo("Stop what serves it now, then: rustguard serve", err=True)


def _say_kept(directory: Path, state: ServerState) -> None:
    pools = " and ".join(str(pool) for pool in (state.pool4, state.pool6) if pool is not None)
    click.echo(
        f"Kept in {directory}: a server of {pools}, port {state.port}, {len(state.peers)} peers.",
        err=True,
    )
