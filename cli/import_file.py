"""`rustguard import`: a server made of a wg-quick file, or of what the first RustGuard kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rustguard_py.cli.verb import Verb, state_option
from rustguard_py.errors import UsageError

if TYPE_CHECKING:
    from rustguard_py.state.records import ServerState

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    "import",
    cls=Verb,
    examples=[
        ("sudo rustguard import /etc/wireguard/wg0.conf", "its key, port, pool and peers become this server's"),
        (
            "sudo rustguard import --rustguard-state peers --pool 10.150.0.0/24 --private-key key",
            "the same of the first RustGuard's list of peers, and its server's private key",
        ),
        ("sudo rustguard serve --token -", "after that: the peers go on, and others can join"),
    ],
)
@click.argument("file", metavar="[FILE]", required=False, type=_FILE)
@click.option("--rustguard-state", "old", metavar="FILE", type=_FILE, help="The first RustGuard's list of peers.")
@click.option("--pool", metavar="CIDR", help="With --rustguard-state: of the new server.")
@click.option(
    "--private-key", metavar="FILE", type=_FILE, help="With --rustguard-state: of the new server, as `genkey` has it."
)
@state_option
def command(
    file: Path | None, old: Path | None, pool: str | None, private_key: Path | None, state: Path | None
) -> None:
    """Make a server of what the wg-quick file FILE has served: identity, port, pools and peers.

    The peers needn't notice: key, addresses and preshared keys stay. Their names are read from comments. With
    --rustguard-state the peers that the first RustGuard kept (a line each: public key, address, last endpoint)
    become a server's, a new one's or one that is here already.
    """
    if (file is None) == (old is None):
        raise UsageError("`import` takes one file.", "Give a wg-quick file, or --rustguard-state FILE.")
    from rustguard_py.state.paths import state_directory

    directory = state_directory("server", state)
    if old is not None:
        _import_old(old, pool, private_key, directory)
    elif pool is not None or private_key is not None:
        raise UsageError("A wg-quick file has its own pool and key.", "Leave --pool and --private-key out.")
    elif file is not None:
        _import_quick(file, directory)
    click.echo("Stop what serves it now, then: rustguard serve", err=True)


def _import_quick(file: Path, directory: Path) -> None:
    from rustguard_py.enroll import takeover
    from rustguard_py.quick import files

    taken = takeover.take_over(files.load(file), str(file))
    takeover.save(directory, taken.state)
    _say_kept(directory, taken.state)
    if taken.left_out:
        click.echo(f"Not taken over, a server has no use for it: {', '.join(taken.left_out)}.", err=True)


def _import_old(old: Path, pool: str | None, private_key: Path | None, directory: Path) -> None:
    from rustguard_py.cli.serve import network4
    from rustguard_py.enroll import v1_takeover
    from rustguard_py.state.identity import decode_key

    peers = v1_takeover.parse(_text(old), str(old))
    key = None if private_key is None else decode_key(_text(private_key).strip())
    state, added = v1_takeover.take_over(directory, peers, network4(pool), key)
    _say_kept(directory, state)
    click.echo(f"{added} of {len(peers)} peers are new here.", err=True)
    if key is None and added == len(state.peers):
        click.echo("The server has a fresh key, so each peer must join again (it keeps its address).", err=True)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} isn't text in UTF-8.", f"Look at it: file {path}") from error


def _say_kept(directory: Path, state: ServerState) -> None:
    pools = " and ".join(str(pool) for pool in (state.pool4, state.pool6) if pool is not None)
    click.echo(
        f"Kept in {directory}: a server of {pools}, port {state.port}, {len(state.peers)} peers.",
        err=True,
    )
