"""`rustguard import`: a server made of a wg-quick file."""

from __future__ import annotations

from pathlib import Path

import click

from rustguard_py.cli.verb import Verb, state_option


@click.command(
    "import",
    cls=Verb,
    examples=[
        ("sudo rustguard import /etc/wireguard/wg0.conf", "its key, port, pool and peers become this server's"),
        ("sudo rustguard serve --token -", "after that: the peers go on, and others can join"),
    ],
)
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@state_option
def command(file: Path, state: Path | None) -> None:
    """Make a server of what the wg-quick file FILE has served: identity, port, pools and peers.

    The peers needn't notice: key, addresses and preshared keys stay. Their names are read from comments.
    """
    from rustguard_py.enroll import takeover
    from rustguard_py.quick import files
    from rustguard_py.state.paths import state_directory

    taken = takeover.take_over(files.load(file), str(file))
    directory = state_directory("server", state)
    takeover.save(directory, taken.state)
    pools = " and ".join(str(pool) for pool in (taken.state.pool4, taken.state.pool6) if pool is not None)
    click.echo(
        f"Kept in {directory}: a server of {pools}, port {taken.state.port}, {len(taken.state.peers)} peers.",
        err=True,
    )
    if taken.left_out:
        click.echo(f"Not taken over, a server has no use for it: {', '.join(taken.left_out)}.", err=True)
    click.echo("Stop what serves it now, then: rustguard serve", err=True)
