"""`rustguard up`: bring up the tunnel of a wg-quick file."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from shlex import quote

import click

from rustguard_py.cli import complete
from rustguard_py.cli.daemon import STARTING, daemons_of, given_options, wait_for_socket
from rustguard_py.cli.verb import Verb, data_path_options, log_level_option, sandbox_option
from rustguard_py.daemon.control.client import call
from rustguard_py.data_path import DataPath
from rustguard_py.model.errors import InUseError, NameTakenError
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root
from rustguard_py.state import paths

# A changed file may have names to look up, and programs to run. The daemon gives a sign of life each second.
SILENCE_SECONDS = 20.0
# After so many of them, a second apart, a line says that the work goes on.
SLOW = 5


@click.command(
    "up",
    cls=Verb,
    examples=[
        ("sudo rustguard up wg0", "the tunnel of /etc/wireguard/wg0.conf, in the background"),
        ("sudo rustguard up ./office.conf", "the same for a file elsewhere; the interface is called office"),
        (
            "sudo rustguard up wg0",
            "again, when the file has changed: only the differences are applied, sessions stay",
        ),
        ("sudo rustguard up wg0 --foreground", "for a service: until SIGTERM or Ctrl-C"),
    ],
)
@click.argument("file", metavar="FILE|NAME", shell_complete=complete.files)
@click.option(
    "--foreground", is_flag=True, help="Stay in the foreground; without it the command ends when the tunnel is up."
)
@click.option("--trust-file", is_flag=True, help="Run the file's hooks even if other users can change the file.")
@click.option("--group", metavar="NAME", help="Group allowed to use the control socket, besides root.")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="State directory.")
@data_path_options
@sandbox_option
@log_level_option("info")
def command(
    file: str,
    foreground: bool,
    trust_file: bool,
    group: str | None,
    state: Path | None,
    data_path: DataPath,
    no_sandbox: bool,
) -> None:
    """Bring up the tunnel that the wg-quick file FILE describes, or /etc/wireguard/NAME.conf, as wg-quick does.

    Every key of wg(8) and wg-quick(8) is supported. If the tunnel is up already, changes in the file are applied.
    """
    from rustguard_py.quick import conf_files

    path = conf_files.find(file)
    interface = conf_files.interface_of(file)
    conf_files.load_to_run(path, trust=trust_file)
    if warning := conf_files.warning(path):
        click.echo(f"Warning: {warning}", err=True)
    directory = (state or paths.tunnel_directory(interface)).expanduser().resolve()
    end = paths.down_command(interface, directory)
    socket = wait_for_socket(directory)
    if socket is not None:
        _reload(socket, path, interface, end)
        return

    from rustguard_py.cli.foreground import Background, run
    from rustguard_py.quick.up import UpOptions, up

    options = UpOptions(path, interface, directory, data_path, group, trust_file, not no_sandbox)
    background = None if foreground else Background(directory / "log", lambda _: f"To end it: {as_root(end)}")
    try:
        run(lambda voice: up(options, voice, background.ready if background else lambda: None))
    except InUseError:
        # Another `up` of the file was faster, and this one is the second.
        socket = wait_for_socket(directory, STARTING)
        if socket is None:
            raise
        _reload(socket, path, interface, end)
    except NameTakenError as error:
        raise _taken(interface, error) from error


def _reload(socket: Path, path: Path, interface: str, end: str) -> None:
    """Let the daemon apply the changes of its file, and print them and which options it doesn't apply."""
    beats = count(1)

    def on_beat() -> None:
        if next(beats) == SLOW:
            click.echo(f"The daemon of {interface} is still at work.", err=True)

    changes = call(socket, "reload", {"file": str(path)}, SILENCE_SECONDS, on_beat)["changes"]
    for line in changes or [f"{interface} is up, and nothing in {path} has changed."]:
        click.echo(printable(line), err=True)
    if given := given_options():
        changed = f"{interface} goes on as it was started. To change {', '.join(given)}, end it first: {as_root(end)}"
        click.echo(printable(changed), err=True)


def _taken(interface: str, error: NameTakenError) -> NameTakenError:
    """Return the error for an interface that is there already; it names the daemon of ours that made it."""
    # The interface of a client with --rootless is in a namespace of its own.
    status = next((each for each in daemons_of(interface) if each.get("rootless") is None), None)
    if status is None:
        return error
    directory = quote(status["state_directory"])
    if status["role"] == "tunnel":
        what = "`rustguard up` with another state directory"
        fix = f"To apply changes or end it, add: --state {directory}"
    else:
        what = f"`rustguard {'serve' if status['role'] == 'server' else 'join'}`"
        fix = f"Rename the file and so the interface. Or end it: {as_root(f'rustguard stop {directory}')}"
    return NameTakenError(f"{interface} belongs to {what}, process {status['pid']}.", fix)
