"""`rustguard export`: write a wg-quick file for a machine that runs stock WireGuard."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from rustguard_py import conf, conf_writer
from rustguard_py.cli import complete
from rustguard_py.cli.daemon import ask_or_do, server_meant, servers
from rustguard_py.cli.genkey import warn_if_world_accessible
from rustguard_py.cli.verb import Verb, state_option
from rustguard_py.daemon.control.client import call
from rustguard_py.model.errors import RefusedError, RustGuardError, UsageError
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root
from rustguard_py.state import paths


@click.command(
    "export",
    cls=Verb,
    examples=[
        (
            "sudo rustguard export --new phone -o phone.conf",
            "on a server: admit a phone that runs the WireGuard app",
        ),
        ("sudo rustguard export --new phone | qrencode -t ansiutf8", "the same, as a QR code for its camera"),
        ("sudo rustguard export -o home.conf", "on a client: its own tunnel, for WireGuard to run instead"),
    ],
)
@click.argument("server", metavar="[HOST[:PORT]]", required=False, shell_complete=complete.networks)
@click.option("--new", "name", metavar="NAME", help="On a server: make keys for a new peer, and admit it.")
@click.option("--endpoint", metavar="HOST[:PORT]", help="Address at which the new peer reaches this server.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to a new file, mode 0600, instead of standard output.",
)
@state_option
def command(
    server: str | None, name: str | None, endpoint: str | None, output: Path | None, state: Path | None
) -> None:
    """Write a wg-quick file that any WireGuard can read. It contains a private key.

    On a client: the tunnel to the network joined last, or to HOST. On a server, with --new: the tunnel of a new peer.
    """
    if name is None and endpoint is not None:
        raise UsageError("--endpoint is only for a new peer.", "Add: --new NAME")
    if name is not None and server is not None:
        raise UsageError(
            f"With --new, {server} can't be given.", "To say where the peer reaches this server: --endpoint HOST"
        )
    with _Output(output) as out:
        if name is None:
            out.write(_own(server, state))
            click.echo("It contains this machine's key: use it on one machine at a time.", err=True)
        else:
            config = _new(name, endpoint, state)
            try:
                out.write(config)
            except OSError as error:
                raise RustGuardError(
                    f"{printable(name)} is admitted, but its file couldn't be written: {error.strerror}. "
                    "Nothing else has its key.",
                    f"Remove it: {as_root(f'rustguard peers revoke {printable(name)}')}",
                ) from error


def _own(server: str | None, state: Path | None) -> conf.Config:
    from rustguard_py.enroll.export import of_client
    from rustguard_py.model.address import parse
    from rustguard_py.state.client_records import ClientState
    from rustguard_py.state.document import Document

    directory = paths.state_directory("client", state)
    kept = Document.peek(directory)
    if kept is not None and kept.get("role") == "server":
        raise _server_has_no_tunnel()
    if kept is None and Document.peek(paths.state_directory("server", None)) is not None:
        raise _server_has_no_tunnel()
    if kept is None:
        raise UsageError(
            f"Nothing was joined here ({directory}).", f"Join with: {as_root('rustguard join HOST --token -')}"
        )
    client = ClientState.from_json(kept)
    host, port = parse(server) if server is not None else (None, None)
    network = client.network(host, port)
    if network is None:
        what = "Nothing" if server is None else server
        raise UsageError(f"{what} was not joined before.", f"Join with: {as_root('rustguard join HOST --token -')}")
    return of_client(client, network)


def _server_has_no_tunnel() -> UsageError:
    return UsageError(
        "This is a server, and only a peer itself has its private key.",
        "For a new peer: rustguard export --new NAME. For one that joined: rustguard export, on that machine.",
    )


def _new(name: str, endpoint: str | None, state: Path | None) -> conf.Config:
    from rustguard_py.enroll import export
    from rustguard_py.enroll.server import admissions
    from rustguard_py.model.address import parse
    from rustguard_py.model.keys import encode_key, generate_private_key, public_key

    host, port = parse(endpoint) if endpoint is not None else (_likely(), None)
    private, preshared = generate_private_key(), os.urandom(32)
    directory = server_meant(state, servers() if state is None else (), "rustguard export --new NAME")
    keys = {"public_key": encode_key(public_key(private)), "preshared_key": encode_key(preshared)}
    offered = ask_or_do(
        directory,
        lambda socket: call(socket, "admit", {"name": name, **keys}),
        lambda: admissions.admit_at_rest(directory, name, public_key(private), preshared),
    )
    config = export.of_peer(offered, private, preshared, host, port)
    name = printable(offered["name"])
    click.echo(
        f"Admitted {name}, {offered['addresses'][0]}. Its key is in this file and nowhere else.",
        err=True,
    )
    if endpoint is None:
        where = config.peers[0].endpoint
        click.echo(f"It will look for this server at {where}. If that is wrong: --endpoint HOST[:PORT]", err=True)
    return config


def _likely() -> str:
    from rustguard_py.enroll.server.banner import likely_address

    found = likely_address()
    if found == "HOST":
        raise UsageError(
            "This machine has no address that others could reach.", "Give one with: --endpoint HOST[:PORT]"
        )
    return found


def _goes_nowhere() -> bool:
    """Return whether standard output is /dev/null, as it also is where it was closed."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), Path(os.devnull).stat())
    except (OSError, ValueError):
        # It isn't a file: another program runs the command within itself.
        return False


class _Output:
    """The output, made before anything else is done; a file is removed again if that fails."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> _Output:
        if self._path is None:
            if _goes_nowhere():
                raise UsageError(
                    "Standard output is closed or /dev/null, so the key would be lost.", "Name a file: -o FILE"
                )
            return self
        try:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError as error:
            raise RefusedError(
                f"There is a file {self._path} already.", "Name another one, or move it away."
            ) from error
        return self

    def write(self, config: conf.Config) -> None:
        """Write the configuration, and report where it went."""
        if self._descriptor is None:
            warn_if_world_accessible()
            click.echo(conf_writer.write(config), nl=False)
            sys.stdout.flush()
        else:
            os.write(self._descriptor, conf_writer.write(config).encode())
            click.echo(f"Written to {self._path}.", err=True)

    def __exit__(self, kind: object, *_: object) -> None:
        if self._descriptor is not None and self._path is not None:
            os.close(self._descriptor)
            if kind is not None:
                with suppress(OSError):
                    self._path.unlink()
