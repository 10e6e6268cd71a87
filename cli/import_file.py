"""`rustguard import`: make a server from a wg-quick file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rustguard_py.cli.verb import Verb, state_option
from rustguard_py.model.counted import counted
from rustguard_py.model.errors import UsageError
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root

if TYPE_CHECKING:
    from rustguard_py import conf
    from rustguard_py.model.endpoint import Network
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

    The peers need no change: key, addresses and preshared keys stay. Their names are read from comments. `serve` runs
    no hooks: what is lost with them is printed, with the commands that bring it back.
    """
    from rustguard_py.enroll.server import import_wg_quick
    from rustguard_py.quick import conf_files
    from rustguard_py.state.paths import option_for, state_directory

    directory = state_directory("server", state)
    config = conf_files.load(file)
    imported = import_wg_quick.read_server(config, str(file), _interface(file))
    import_wg_quick.save(directory, imported.state)
    _report(directory, imported.state)
    if imported.left_out:
        click.echo(f"Not imported, because a server doesn't use it: {', '.join(imported.left_out)}.", err=True)
    if imported.named:
        click.echo(
            f"Found once they connect, because a server looks no names up: {printable(', '.join(imported.named))}.",
            err=True,
        )
    _report_lost(config, imported.state)
    serve = as_root(f"rustguard serve{option_for('server', directory)}")
    click.echo(f"Stop the program that serves it now, then run: {serve}", err=True)


def _interface(file: Path) -> str | None:
    """Return the name of the interface that wg-quick would make of a file, or None if it would make none."""
    from rustguard_py.quick import conf_files

    try:
        return conf_files.interface_of(str(file)) if file.suffix == ".conf" else None
    except UsageError:
        return None


def _report(directory: Path, state: ServerState) -> None:
    pools = " and ".join(str(pool) for pool in (state.pool4, state.pool6) if pool is not None)
    click.echo(
        f"Saved in {directory}: a server of {pools}, port {state.port}, {counted(len(state.peers), 'peer')}.",
        err=True,
    )
    for peer in state.peers.values():
        addresses = ", ".join(map(_address, peer.allowed)) or "no address"
        click.echo(f"  {printable(peer.name)}: {addresses}", err=True)


def _address(network: Network) -> str:
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)


def _report_lost(config: conf.Config, state: ServerState) -> None:
    """Print what is lost with the hooks, and the commands that bring it back."""
    from rustguard_py.enroll.server.lost_hooks import Machine, lost

    found = lost(config.hooks, state.interface, state.port, Machine.look())
    if found is None:
        return
    click.echo("`serve` runs no hooks. Without them:", err=True)
    for effect in found.effects:
        click.echo(f"- {effect}", err=True)
    click.echo(f"To have it again, run these lines as root once {found.interface} is up, after each start:", err=True)
    for line in found.commands:
        click.echo(f"  {printable(line)}", err=True)
    if found.replaced is not None:
        click.echo(
            f"The hooks name {found.replaced}, which this machine doesn't have: likely it was a container's. These "
            "lines name the interface of the default route instead.",
            err=True,
        )
