"""`rustguard stop`: end what runs in the background or as a service of ours."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote

import click

from rustguard_py.cli import complete
from rustguard_py.cli.daemon import how_to_start, of_other_users, running
from rustguard_py.cli.verb import Verb
from rustguard_py.daemon.control.client import call, listener, listens
from rustguard_py.model.errors import NotRunningError, RefusedError, UnansweredError, UsageError
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root
from rustguard_py.service import openrc, systemd
from rustguard_py.state import paths
from rustguard_py.state.paths import Candidate

# Hooks of `up` may take long.
SECONDS = 120.0


@click.command(
    "stop",
    cls=Verb,
    examples=[
        ("sudo rustguard stop", "the only one that runs"),
        ("sudo rustguard stop client", "the one on the state directory …/client"),
        ("sudo rustguard stop --all", "all of them"),
    ],
)
@click.argument("name", required=False, shell_complete=complete.daemons)
@click.option("--all", "everything", is_flag=True, help="End all that runs; with nothing there, do nothing.")
def command(name: str | None, everything: bool) -> None:
    """End a server, a client or a tunnel, in the background, in a terminal or as a service.

    NAME is its state directory or the last part of it: server, client, or the name of `up`'s interface. A service
    that is stopped starts again at the next boot; `rustguard service remove` takes it back for good.
    """
    if everything and name is not None:
        raise UsageError("A name and --all exclude each other.", "Leave one out.")
    candidates = running(named=name is not None)
    if everything:
        chosen = candidates
    else:
        chosen = candidates if name is None else called(candidates, name)
        if not chosen:
            what = "Nothing runs here." if name is None else f"No {name} runs here."
            raise NotRunningError(what, of_other_users("stop", name) or how_to_start())
        if len(chosen) > 1:
            lines = [f"rustguard stop {quote(str(each.state_directory))}" for each in chosen]
            raise UsageError(f"{len(chosen)} run here.", "\n".join(["Choose one, or --all:", *lines]))
    for each in chosen:
        end(each)
    if not chosen:
        click.echo("Nothing runs here.", err=True)


def called(running: Sequence[Candidate], name: str) -> list[Candidate]:
    """Return the daemons that a person means by a name: in a network namespace, that namespace's own tunnel first."""
    wanted = {Path(name).expanduser().resolve()} | ({paths.tunnel_directory(name)} if "/" not in name else set())
    own = [each for each in running if each.state_directory in wanted]
    return own or [each for each in running if each.state_directory.name == name]


def end(candidate: Candidate) -> None:
    """End a daemon in good order, and wait until it has ended."""
    process = listener(candidate.socket)
    unit = systemd.running_unit(process)
    service = openrc.running_service(process)
    # Ended otherwise, what supervises it might start it again.
    if unit is not None:
        systemd.systemctl(*systemd.manager_of(process), "stop", unit)
    elif service is not None:
        openrc.stop(service)
    elif paths.tunnel_directory("x").parent == candidate.state_directory.parent:
        call(candidate.socket, "down", timeout=SECONDS)
    else:
        _terminate(process)
    deadline = time.monotonic() + SECONDS
    while listens(candidate.socket) or (unit is None and _is_there(process)):
        if time.monotonic() > deadline:
            raise UnansweredError(
                f"Process {process} doesn't end.", f"End it at once: {as_root(f'kill -9 {process}')}"
            )
        time.sleep(0.02)
    click.echo(
        printable(f"Ended {unit or service or f'process {process}'} on {candidate.state_directory}."), err=True
    )


def _terminate(process: int) -> None:
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise RefusedError(f"Process {process} belongs to another user.", "Run it as root.") from None


def _is_there(process: int) -> bool:
    """Return whether a process runs; one that has ended and waits for its parent doesn't."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
