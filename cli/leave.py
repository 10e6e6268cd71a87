"""`rustguard leave`: forget a network."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from rustguard_py.cli import complete
from rustguard_py.cli.stop import end
from rustguard_py.cli.verb import Verb, state_option
from rustguard_py.daemon.control.client import call, listens
from rustguard_py.model.errors import RefusedError, RustGuardError, UsageError
from rustguard_py.model.keys import encode_key, public_key
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root, is_ordinary_user
from rustguard_py.service import systemd
from rustguard_py.state import paths
from rustguard_py.state.client_records import ClientState, NetworkRecord
from rustguard_py.state.document import Document

# The daemon waits for three of them.
SECONDS = 10.0


@click.command(
    "leave",
    cls=Verb,
    examples=[
        ("sudo rustguard leave home.example", "leave this network"),
        ("sudo rustguard leave home.example --yes", "without being asked"),
    ],
)
@click.argument("server", metavar="[HOST]", required=False, shell_complete=complete.networks)
@click.option("--yes", is_flag=True, help="Don't ask.")
@state_option
def command(server: str | None, yes: bool, state: Path | None) -> None:
    """Leave a network: tell its server, disconnect, and forget its keys. Coming back takes token and window again.

    A connected client tells the server inside the tunnel, which frees name and address. If no answer comes within
    three seconds, nothing is connected, or there is a memif in place of the interface, it says so: `rustguard peers
    revoke NAME` on the server does the same. Where nothing is joined it does nothing, with exit code 0.
    """
    directory = paths.state_directory("client", state)
    document = Document.peek(directory)
    kept = None if document is None else ClientState.from_json(document)
    if kept is None or not kept.networks:
        click.echo(printable(f"Nothing is joined here ({directory}), so there is nothing to leave."), err=True)
        if is_ordinary_user():
            click.echo(f"For what was joined as root: {as_root('rustguard leave')}", err=True)
        return
    networks = kept.networks
    hosts = list(dict.fromkeys(each.host for each in networks))
    if server is None and len(hosts) > 1:
        raise UsageError(f"{len(hosts)} networks were joined.", "\n".join(["Name one:", *hosts]))
    leaving = [each for each in networks if each.host == (server or hosts[0])]
    if not leaving:
        raise UsageError(f"{server} was not joined.", "\n".join(["These were:", *hosts]))
    host, name = leaving[0].host, leaving[0].name
    running = [
        each for each in paths.running() if each.state_directory == directory.resolve() and listens(each.socket)
    ]
    for candidate in running:
        _refuse_if_elsewhere(candidate.socket, host)
    if not yes and not _confirm(f"Leave {host}, where this machine is {name}?"):
        raise RefusedError("Nothing was changed.")
    answered: dict[NetworkRecord, bool | None] = {}
    for candidate in running:
        for each in leaving:
            with suppress(RustGuardError):
                answered[each] = _tell(candidate.socket, each)
        end(candidate)
    _forget(directory, host)
    for service in systemd.installed():
        if (
            service.name == systemd.service_name("join", None if state is None else directory.name)
            and len(hosts) == 1
            and service.user == (os.geteuid() != 0)
        ):
            systemd.remove(service)
    click.echo(printable(f"Left {host}."), err=True)
    key = encode_key(public_key(kept.private_key))
    for each in leaving:
        # The server may have given the name to another peer since.
        fix = f"may still list {each.name}. On the server: rustguard peers revoke {key}"
        line = f"It wasn't connected, so its server {fix}"
        if each in answered:
            line = {
                True: f"The server has removed {each.name}, and its address is free.",
                False: f"The server didn't answer within three seconds. It {fix}",
                None: f"With a memif, the server can't be told. It {fix}",
            }[answered[each]]
        click.echo(printable(line), err=True)


def _confirm(question: str) -> bool:
    try:
        return click.confirm(printable(question), err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)
        raise UsageError("There is no answer on standard input.", "To leave without being asked: --yes") from None


def _refuse_if_elsewhere(socket: Path, host: str) -> None:
    """Raise RefusedError if a daemon is connected to another network than that of `host`, which would end with it."""
    try:
        peers = call(socket, "status").get("peers", [])
    except RustGuardError:
        # Whatever keeps it from answering, `leave` ends it.
        return
    others = [str(each["name"]) for each in peers if each["name"] != host]
    if others:
        raise RefusedError(
            f"This machine is connected to {others[0]} now. Leaving {host} would disconnect it.",
            f"Disconnect it first: {as_root('rustguard stop')}",
        )


def _tell(socket: Path, network: NetworkRecord) -> bool | None:
    """Have the daemon tell the server. Return whether the server has answered; None if it can't be asked.

    Raises:
        RustGuardError: The daemon is connected elsewhere, has another version, or doesn't answer.
    """
    found = call(socket, "leave", {"host": network.host, "port": network.port}, timeout=SECONDS).get("answered")
    return None if found is None else found is True


def _forget(directory: Path, host: str) -> None:
    document = Document.open(directory)
    try:
        state = ClientState.from_json(document.load())
        left = tuple(each for each in state.networks if each.host != host)
        document.save(replace(state, networks=left).to_json())
        document.remove_copies()
    finally:
        document.close()
