"""`rustguard join`: join a server, or connect to one joined before."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from rustguard_py.cli.secret import find_token, read_token
from rustguard_py.cli.verb import Verb, data_path_options, log_level_option, state_option, token_options
from rustguard_py.data_path import DataPath


@click.command(
    "join",
    cls=Verb,
    examples=[
        ("sudo rustguard join home.example --token -", "join; it asks for the token"),
        ("sudo rustguard join", "connect to the network joined last; needs no token and no window"),
        ("sudo rustguard join home.example --daemon", "the same for a named one, in the background"),
    ],
)
@click.argument("server", metavar="[HOST[:PORT]]", required=False)
@token_options
@click.option("--name", metavar="NAME", help="Name of this peer at the server.  [default: this machine's name]")
@click.option(
    "--server",
    "fingerprint",
    metavar="FINGERPRINT",
    help="Refuse a server with another fingerprint (serve prints it).",
)
@click.option("--interface", metavar="NAME", help="Name of the interface.  [default: the first free of rg0, rg1, …]")
@click.option("--save-only", is_flag=True, help="Join and save the network; carry no traffic.")
@click.option("--daemon", is_flag=True, help="Go to the background once the interface is up, connected or not.")
@click.option("--group", metavar="NAME", help="Group allowed to use the control socket, besides root.")
@data_path_options
@log_level_option("info")
@state_option
def command(
    server: str | None,
    token: str | None,
    token_file: Path | None,
    name: str | None,
    fingerprint: str | None,
    interface: str | None,
    save_only: bool,
    daemon: bool,
    group: str | None,
    data_path: DataPath,
    state: Path | None,
) -> None:
    """Join a server with its token while its window is open, and carry traffic until Ctrl-C or SIGTERM.

    The network (address, keys) is saved, so that `rustguard join` later connects without token or window.
    """
    secret = find_token(token, token_file)

    from rustguard_py.cli.foreground import Background, run
    from rustguard_py.enroll.client.obtain import Applicant, Target
    from rustguard_py.enroll.client.start import JoinOptions, join
    from rustguard_py.state.paths import state_directory

    directory = state_directory("client", state)
    if secret is None and server is not None and not (directory / "state.json").exists():
        # Nothing is saved, so a token is needed.
        secret = read_token(None, None, warn_if_weak=False)
    options = JoinOptions(
        directory=directory,
        target=Target.parse(server, fingerprint),
        applicant=None if secret is None else Applicant(secret, _name(name)),
        interface=interface,
        save_only=save_only,
        data_path=data_path,
        group=group,
    )
    background = Background(directory.with_suffix(".log")) if daemon and not save_only else None
    run(lambda voice: join(options, voice, background.ready if background else lambda: None))


def _name(given: str | None) -> str:
    """Return the name to ask for: the one given, or this machine's name cut to the length that a name may have."""
    if given is not None:
        return given
    short = socket.gethostname().partition(".")[0]
    return short.encode()[:45].decode(errors="ignore")
