"""`rustguard join`: join a server, or connect to one joined before."""

from __future__ import annotations

import asyncio
import socket
import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote

import click

from rustguard_py.cli import complete
from rustguard_py.cli.rootless_options import rootless_options
from rustguard_py.cli.secret import find_token, read_token
from rustguard_py.cli.verb import (
    Verb,
    data_path_options,
    log_level_option,
    sandbox_option,
    state_option,
    token_options,
)
from rustguard_py.data_path import DataPath
from rustguard_py.model.errors import InUseError, RefusedError, UsageError
from rustguard_py.model.peer_names import check_label, label_of
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import need_no_root
from rustguard_py.rootless.options import Rootless
from rustguard_py.system.container import AS_ROOT


@click.command(
    "join",
    cls=Verb,
    examples=[
        ("sudo rustguard join home.example --token -", "join; it asks for the token"),
        ("sudo rustguard join", "connect to the network joined last; needs no token and no window"),
        ("sudo rustguard join home.example --daemon", "the same for a named one, in the background"),
        ("sudo rustguard join --routes 192.168.7.0/24", "also reach this network behind the server, if it offers it"),
        ("rustguard join home.example --rootless --token -", "without root: for `rustguard exec` and proxies"),
    ],
)
@click.argument("server", metavar="[HOST[:PORT]]", required=False, shell_complete=complete.networks)
@token_options
@click.option("--name", metavar="NAME", help="Name of this peer at the server.  [default: this machine's name]")
@click.option(
    "--server",
    "fingerprint",
    metavar="FINGERPRINT",
    help="Refuse a server with another fingerprint (serve prints it).",
)
@click.option(
    "--routes",
    metavar="all|none|LIST",
    help="Networks behind the server to reach through it, of those that it offers: all, none, or a list with commas; "
    "kept.  [default: those accepted before; it asks about others on a terminal]",
)
@click.option("--interface", metavar="NAME", help="Name of the interface.  [default: the first free of rg0, rg1, …]")
@click.option("--save-only", is_flag=True, help="Join and save the network; carry no traffic.")
@click.option("--daemon", is_flag=True, help="Go to the background once the interface is up, connected or not.")
@click.option("--service", is_flag=True, help="Install this as a service of systemd: now, and at each boot.")
@click.option("--group", metavar="NAME", help="Group allowed to use the control socket, besides root.")
@rootless_options
@data_path_options
@sandbox_option
@log_level_option("info")
@state_option
def command(
    server: str | None,
    token: str | None,
    token_file: Path | None,
    name: str | None,
    fingerprint: str | None,
    routes: str | None,
    interface: str | None,
    save_only: bool,
    daemon: bool,
    service: bool,
    group: str | None,
    rootless: Rootless | None,
    data_path: DataPath,
    no_sandbox: bool,
    state: Path | None,
) -> None:
    """Join a server with its token while its window is open, and carry traffic until Ctrl-C or SIGTERM.

    The network (address, keys) is saved, so that `rustguard join` later connects without token or window.
    """
    wished = _name(name)
    if rootless is not None:
        need_no_root()
    if service:
        from rustguard_py.cli.service import install_as

        install_as(click.get_current_context())
        return
    secret = find_token(token, token_file)

    from rustguard_py.cli.daemon import STARTING, runs_already
    from rustguard_py.cli.foreground import Background, in_the_background, run
    from rustguard_py.enroll.client.obtain import Applicant, Target
    from rustguard_py.enroll.client.routes import RouteAnswers, RouteChoice
    from rustguard_py.enroll.client.start import JoinOptions, join
    from rustguard_py.state.paths import log_file, state_directory

    directory = state_directory("client", state)
    target = Target.parse(server, fingerprint)
    rename = (
        ""
        if name is None
        else "The server keeps the name from the first join, so --name changes nothing. To change it, on the server: "
        f"sudo rustguard peers rename OLD {quote(wished)}"
    )
    asked = None if rootless is None else rootless.words()
    if not save_only and runs_already(directory, "client", target.host, again=rename, rootless=asked):
        return
    if secret is None and server is not None and not (directory / "state.json").exists():
        # Nothing is saved, so a token is needed.
        secret = read_token(None, None, warn_if_weak=False)
    if secret is None and rename:
        click.echo(rename, err=True)
    in_background = daemon and not save_only
    # The daemon in the background is in another session than the terminal, and can't read from it.
    asks = not in_background and sys.stdin.isatty() and sys.stderr.isatty()
    log = log_file(directory) if in_background else None
    options = JoinOptions(
        directory=directory,
        target=target,
        applicant=None if secret is None else Applicant(secret, wished, name is not None),
        interface=interface,
        save_only=save_only,
        data_path=replace(data_path, rootless=rootless is not None),
        group=group,
        answers=RouteAnswers(None if routes is None else RouteChoice.parse(routes), _confirm if asks else None),
        sandbox=not no_sandbox,
        log=log,
        rootless=rootless,
    )
    background = None if log is None else Background(log, in_the_background("client", directory))
    try:
        run(lambda voice: join(options, voice, background.ready if background else lambda: None))
    except InUseError:
        # Another start was faster, and this one is the second.
        if save_only:
            raise
        if not runs_already(directory, "client", target.host, patience=STARTING, again=rename, rootless=asked):
            raise
    except RefusedError as error:
        if rootless is None and error.fix == AS_ROOT:
            error.fix = f"{AS_ROOT} Or join without root, in a network of its own: add --rootless"
        raise


def _name(given: str | None) -> str:
    """Return the name to ask for: the one given, or the one that this machine's name makes."""
    if given is not None:
        try:
            return check_label(given)
        except ValueError as error:
            raise UsageError(f"--name: {error}.", "Give a name such as laptop, or leave it out.") from error
    return label_of(socket.gethostname().partition(".")[0])


async def _confirm(question: str) -> bool:
    """Ask at the terminal, so that Ctrl-C still works. Return whether the answer is yes."""
    click.echo(f"{printable(question)} [y/N] ", err=True, nl=False)
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return sys.stdin.readline().strip().lower() in ("y", "yes")
