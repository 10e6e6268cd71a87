"""Finds the daemon that a command is for, and calls it."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any, Final, TypeVar

import click

from rustguard_py.daemon.control.client import call, listens
from rustguard_py.model.errors import (
    InUseError,
    NotRunningError,
    RefusedError,
    RustGuardError,
    UnansweredError,
    UsageError,
)
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root
from rustguard_py.state import paths
from rustguard_py.state.paths import Candidate
from rustguard_py.system.place import namespace_number

Result = TypeVar("Result")

# How long a daemon that is just starting is waited for, and how often it is looked for, seconds.
STARTING, _LOOK = 30.0, 0.05
# How long to wait for the socket of a process that has the state, seconds. A removed one is back within 2.
PATIENCE: Final = 3.0
_ROLES: Final[tuple[paths.Role, ...]] = ("server", "client")
# What only a server can do, so that another daemon next to it isn't meant.
_OF_A_SERVER: Final = {"open", "close", "revoke", "restore", "rename", "reset"}


def how_to_start() -> str:
    """Return what starts a daemon, for errors."""
    return f"Start one: `{as_root('rustguard serve …')}` or `{as_root('rustguard join …')}`."


def ask_or_do(directory: Path, ask: Callable[[Path], Result], do: Callable[[], Result]) -> Result:
    """Ask the daemon of a state directory for something, or do it here if none runs.

    A daemon that is just starting holds the directory but doesn't answer yet, so it is waited for.

    Args:
        directory: The state directory.
        ask: Asks the daemon at this control socket.
        do: Does it here. Raises InUseError if a daemon holds the directory.

    Raises:
        InUseError: The process that holds it didn't answer within STARTING seconds.
    """
    deadline = time.monotonic() + STARTING
    while True:
        socket = paths.find_socket(directory)
        if socket is not None and listens(socket):
            return ask(socket)
        try:
            return do()
        except InUseError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK)


def ask(state: Path | None, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the daemon's answer to a request.

    Args:
        state: The daemon's state directory, or None for the one that is meant, see `find_socket`.
        method: The method of the control socket.
        params: Its parameters.

    Raises:
        NotRunningError: None runs, or not on this state.
        UsageError: Several run that may be meant, and `state` is None.
        RustGuardError: The daemon's own error.
    """
    return _answer(find_socket(state, method), method, params)


def _answer(socket: Path, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the daemon's answer. One that doesn't answer is named by its state directory, which a person knows."""
    try:
        return call(socket, method, params)
    except UnansweredError as error:
        directory = next((each.state_directory for each in paths.running() if each.socket == socket), None)
        if directory is None:
            raise
        raise UnansweredError(f"The daemon on {directory} doesn't answer.", error.fix) from error


def statuses(state: Path | None) -> tuple[list[dict[str, Any]], list[RustGuardError]]:
    """Return the status of each daemon that runs, or of the one on a state directory, and the errors of the others.

    Raises:
        NotRunningError: None runs, or not on this state.
        RustGuardError: None of them answers.
    """
    sockets = [find_socket(state)] if state is not None else [each.socket for each in running()]
    documents, errors = [], []
    for socket in sockets or [find_socket(None)]:
        try:
            documents.append(_answer(socket, "status"))
        except RustGuardError as error:
            errors.append(error)
    if not documents:
        raise errors[0]
    return documents, errors


def running(*, named: bool = False) -> list[Candidate]:
    """Return the daemons that take requests, sorted by state directory.

    Args:
        named: Whether a person named the one that is meant. Otherwise those that this user has no permission for,
            such as root's, are left out unless there are no others.
    """
    found = [each for each in paths.running() if listens(each.socket)]
    if named:
        return found
    return [each for each in found if os.access(each.socket, os.W_OK, effective_ids=True)] or found


def runs_already(
    directory: Path,
    role: str,
    host: str | None = None,
    *,
    patience: float = 0.0,
    again: str = "",
    rootless: dict[str, list[str]] | None = None,
) -> bool:
    """Return whether a daemon runs on a state directory, as was asked for, and say so.

    Args:
        directory: The state directory.
        role: The role that was asked for, `server` or `client`.
        host: The server to join, or None for any.
        patience: How long to wait for a process that has the directory and doesn't answer yet, seconds.
        again: What to say of options that were given and don't count now; empty for nothing.
        rootless: The values of `--rootless`'s options as the status has them, or None without it.

    Raises:
        InUseError: Another kind of daemon runs there, a client of another server, or one whose `--rootless` or
            options of it are others.
    """
    found = _status_of(directory, patience)
    if found is None:
        return False
    place = f"on {found['interface']}, process {found['pid']}"
    stop = as_root(f"rustguard stop {quote(str(directory))}")
    if found.get("role") != role:
        what = f"{found.get('role')} that runs {place}"
        raise InUseError(
            f"{directory} belongs to the {what}.", f"Choose another directory: --state DIR. To end it: {stop}"
        )
    server = next((str(each["name"]) for each in found.get("peers", ())), "") if role == "client" else ""
    if role == "client" and host is not None and host != server:
        fix = f"To leave it for {host}: {stop}\nTo join {host} too: give another directory, --state DIR"
        raise InUseError(f"A client of {server} runs {place}.", fix)
    what = f"A client of {server}" if role == "client" else "The server"
    if others := _differing(found, rootless):
        raise InUseError(
            f"{what} runs already {place}, {_without(others)}.",
            f"To start it like this, end it first: {stop}",
        )
    click.echo(printable(f"{what} runs already {place}."), err=True)
    if again:
        click.echo(printable(again), err=True)
    # A client that has joined needs its token no more.
    unneeded = {"--token", "--token-file"} if role == "client" else set[str]()
    if changed := [each for each in given_options() if each not in unneeded]:
        click.echo(f"It goes on as it was started. To change {', '.join(changed)}, end it first: {stop}", err=True)
    return True


def _without(options: Sequence[str]) -> str:
    """Return in which options a daemon differs from what was asked for."""
    if options == ["--rootless"]:
        return "without --rootless"
    last = f"{', '.join(options[:-1])} and {options[-1]}" if len(options) > 1 else options[0]
    return f"with {'another' if len(options) == 1 else 'other'} {last}"


def _differing(found: dict[str, Any], rootless: dict[str, list[str]] | None) -> list[str]:
    """Return the options of `--rootless` that were given now and aren't those of a daemon, as they are typed.

    Args:
        found: The daemon's status.
        rootless: See `runs_already`.
    """
    ways = found.get("rootless")
    if (ways is None) != (rootless is None):
        # Without it, a client that runs is what was asked for: it joined once, and goes on as it was started.
        return [] if rootless is None else ["--rootless"]
    started = (ways or {}).get("options", {})
    return [each for each, values in (rootless or {}).items() if values != started.get(each, [])]


# What a second start may repeat, because it changes nothing of what runs.
_NO_SETTINGS = {
    "state",
    "daemon",
    "foreground",
    "service",
    "trust_file",
    "open_for",
    "most",
    "fingerprint",
    "name",
    # Compared with those of what runs.
    "rootless",
    "dns",
    "socks",
    "forward_in",
    "forward_out",
}


def given_options() -> list[str]:
    """Return the options of this command line that set something of the daemon, as they are typed."""
    context = click.get_current_context(silent=True)
    if context is None:
        return []
    return [
        max(each.opts, key=len)
        for each in context.command.params
        if isinstance(each, click.Option)
        and each.name not in _NO_SETTINGS
        and context.get_parameter_source(each.name or "") is click.core.ParameterSource.COMMANDLINE
    ]


def _status_of(directory: Path, patience: float) -> dict[str, Any] | None:
    """Return the status of the daemon on a state directory, or None if none answers."""
    deadline = time.monotonic() + patience
    while True:
        socket = paths.find_socket(directory)
        # The start reports whatever else keeps it from the directory.
        with suppress(RustGuardError):
            if socket is not None and listens(socket):
                return call(socket, "status")
        if time.monotonic() >= deadline or paths.holder(directory) is None:
            return None
        time.sleep(_LOOK)


def daemons_of(interface: str) -> list[dict[str, Any]]:
    """Return the statuses of the daemons in our network namespace that made an interface of this name.

    Several have one if they run with --rootless.
    """
    found = []
    for candidate in paths.running():
        with suppress(RustGuardError):
            status = call(candidate.socket, "status")
            if status["interface"] == interface and namespace_number(status["pid"]) in (None, namespace_number()):
                found.append(status)
    return found


def of_other_users(verb: str, name: str | None = None) -> str:
    """Return how root runs a command for the daemons of ordinary users; empty if there are none.

    Args:
        verb: The command, such as `stop`.
        name: What a person called the daemon, or None for any.
    """
    if os.geteuid() != 0:
        return ""
    lines = []
    for user, each in paths.of_users():
        directory = each.state_directory
        if name in (None, directory.name, str(directory)) and each.socket.is_socket():
            with suppress(KeyError):
                who = pwd.getpwuid(user).pw_name
                wanted = f" {quote(str(directory))}" if verb == "stop" else f" --state {quote(str(directory))}"
                lines.append(
                    f"sudo -u {quote(who)} XDG_RUNTIME_DIR={each.socket.parent.parent} rustguard {verb}{wanted}"
                )
    if not lines:
        return ""
    return "\n".join(["An ordinary user may have one that runs. As that user:", *map(printable, lines)])


def servers() -> list[Path]:
    """Return the state directories of the servers that run."""
    return [each.state_directory for each in running() if _role(each.socket) == "server"]


def server_meant(state: Path | None, running: Sequence[Path], command: str) -> Path:
    """Return the state directory of the server that is meant: that of `--state`, the usual one, or the only one.

    Args:
        state: The value of `--state`.
        running: The state directories of the servers that may be meant.
        command: What to type, for the error; `--state DIR` is added.

    Raises:
        UsageError: Several run, none of them on the usual directory.
    """
    usual = paths.state_directory("server", state)
    if state is not None or usual in running or not running:
        return usual
    if len(running) > 1:
        lines = [f"{command} --state {quote(str(each))}" for each in running]
        raise UsageError(f"{len(running)} servers run here.", "\n".join(["Choose one:", *lines]))
    return running[0]


def find_socket(state: Path | None, method: str = "status") -> Path:
    """Return the control socket of the daemon that is meant; see `ask` for the errors.

    Args:
        state: Its state directory. None for the only server if the method is one of a server's, or lists peers; else
            for the only daemon, or the only one that isn't a tunnel of `up`.
        method: What it will be asked.

    Raises:
        RefusedError: Several run, none of them is a server, and only a server has the method.
    """
    if state is not None:
        socket = wait_for_socket(state)
        if socket is None:
            raise NotRunningError(f"No daemon runs on {state}.", how_to_start())
        return socket
    candidates: Sequence[Candidate] = running()
    if not candidates:
        # One whose socket was just removed makes it again.
        usual = {paths.state_directory(role) for role in _ROLES}
        found = [socket for each in usual if (socket := wait_for_socket(each)) is not None]
        if not found:
            context = click.get_current_context(silent=True)
            verb = context.command_path.removeprefix("rustguard ") if context else "status"
            raise NotRunningError("No daemon runs here.", of_other_users(verb) or how_to_start())
        return found[0]
    if len(candidates) > 1:
        candidates = meant(candidates, method)
    if len(candidates) > 1:
        context = click.get_current_context(silent=True)
        command = context.command_path if context else "rustguard status"
        lines = [f"{command} --state {quote(str(candidate.state_directory))}" for candidate in candidates]
        raise UsageError(
            f"{len(candidates)} daemons run here, and the command is for one of them.",
            "\n".join(["Choose one:", *lines]),
        )
    return candidates[0].socket


def meant(candidates: Sequence[Candidate], method: str = "status") -> Sequence[Candidate]:
    """Return those of several daemons that a person may mean without a name; see `find_socket` for the arguments."""
    roles = {each: _role(each.socket) for each in candidates}
    servers = [each for each in candidates if roles[each] == "server"]
    if method in _OF_A_SERVER:
        if not servers and None not in roles.values():
            raise RefusedError(
                f"None of the {len(candidates)} daemons here is a server; the window and the peers belong to one.",
                "Run it on the server.",
            )
        return servers or candidates
    if method == "peers" and len(servers) == 1:
        return servers
    joined = [each for each in candidates if roles[each] != "tunnel"]
    return joined if len(joined) == 1 else candidates


def _role(socket: Path) -> str | None:
    """Return what the daemon at a control socket is, or None if it doesn't answer."""
    try:
        return str(call(socket, "status")["role"])
    except RustGuardError:
        return None


def wait_for_socket(state: Path, patience: float | None = None) -> Path | None:
    """Return the control socket of a state directory's daemon, or None if no daemon runs on it.

    A process that has the directory, but no socket, is starting or ending, or somebody has removed the socket, which
    the daemon makes again. So this waits for it.

    Args:
        state: The state directory.
        patience: How long to wait, seconds; PATIENCE if it isn't given.

    Raises:
        UnansweredError: It has no socket after that.
    """
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        socket = paths.find_socket(state)
        if socket is not None and listens(socket):
            return socket
        process = paths.holder(state)
        if process is None:
            return None
        if time.monotonic() > deadline:
            raise UnansweredError(
                f"Process {process} uses {state}, but it has no control socket in {paths.runtime_directory()}.",
                f"Is it starting? See it: ps {process}. Its RUSTGUARD_RUNTIME may be another one.",
            )
        time.sleep(0.05)
