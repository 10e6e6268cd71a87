"""`rustguard exec`: run a program inside a tunnel that `join --rootless` made."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import join, quote
from typing import NoReturn

import click

from rustguard_py.cli import complete
from rustguard_py.cli.stop import called
from rustguard_py.cli.verb import Verb
from rustguard_py.daemon.control.client import call, listens
from rustguard_py.model.errors import NotRunningError, RefusedError, RustGuardError, UsageError
from rustguard_py.state import paths
from rustguard_py.state.paths import Candidate

# Of a program that is there and can't be run, and of one that isn't there, as in sh(1).
CANNOT_RUN, NOT_FOUND = 126, 127
_USAGE = "Write it like: rustguard exec -- ping 10.150.0.1"


class _BehindDashes(Verb):
    """A command whose last arguments are a command line of their own, behind `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what is behind `--` as it is."""
        line: list[str] = []
        if "--" in args and not ctx.resilient_parsing:
            at = args.index("--")
            args, line = args[:at], args[at + 1 :]
        elif len(args) > 1 and not ctx.resilient_parsing and not args[0].startswith("-"):
            raise UsageError(
                "A program to run is written behind --.", f"Write it like: rustguard exec -- {join(args)}"
            )
        rest = super().parse_args(ctx, args)
        ctx.params["line"] = tuple(line)
        return rest


@click.command(
    "exec",
    cls=_BehindDashes,
    options_metavar="[OPTIONS]",
    examples=[
        ("rustguard exec -- ping 10.150.0.1", "reach the server through the tunnel"),
        ("rustguard exec -- bash", "a shell in which every program uses the tunnel"),
        ("rustguard exec work -- ssh db.internal", "by the client on the state directory …/work"),
    ],
)
@click.argument("name", metavar="[NAME] -- COMMAND…", required=False, shell_complete=complete.daemons)
def command(name: str | None, line: tuple[str, ...]) -> None:
    """Run a program inside the tunnel of a client that runs with --rootless; the exit code is the program's.

    NAME is the client's state directory or the last part of it, as for `rustguard stop`. The program reaches the
    tunnel and nothing else, with the tunnel's names (/etc/resolv.conf, /etc/hosts). It has no privileges.
    """
    if not line or not line[0]:
        raise UsageError("There is no program to run.", _USAGE)
    chosen = _choose(name)
    if not _is_rootless(chosen):
        raise RefusedError(
            f"What runs on {chosen.state_directory} isn't a client with --rootless: its tunnel is on this machine.",
            "Run the program as it is.",
        )
    found: list[int] = []
    answer = call(chosen.socket, "enter", descriptors=found)
    if len(found) != 2:
        raise RustGuardError("The daemon sent no namespaces.", "Restart it: it may be older than this command.")
    _enter(found[0], found[1], {Path(path): str(text) for path, text in answer["files"].items()})
    _become(line)


def _choose(name: str | None) -> Candidate:
    """Return the client that is meant."""
    running = [each for each in paths.running() if listens(each.socket)]
    chosen = running if name is None else called(running, name)
    if name is None and len(chosen) > 1:
        chosen = [each for each in chosen if _may_be_entered(each)] or chosen
    if not chosen:
        raise NotRunningError(
            "Nothing runs here." if name is None else f"No {name} runs here.", "Start it: rustguard join --rootless"
        )
    if len(chosen) > 1:
        lines = [f"rustguard exec {quote(str(each.state_directory))} -- …" for each in chosen]
        raise UsageError(f"{len(chosen)} run here.", "\n".join(["Choose one:", *lines]))
    return chosen[0]


def _is_rootless(candidate: Candidate) -> bool:
    return call(candidate.socket, "status").get("rootless") is not None


def _may_be_entered(candidate: Candidate) -> bool:
    """Return whether it is a client with --rootless that answers us; root's daemons don't."""
    with suppress(RustGuardError):
        return _is_rootless(candidate)
    return False


def _enter(user: int, network: int, files: dict[Path, str]) -> None:
    """Enter the tunnel's network with mounts of our own, and give up all rights there."""
    from rustguard_py.rootless import namespaces
    from rustguard_py.sandbox import capabilities

    try:
        namespaces.join(user, namespaces.NEW_USER)
        namespaces.join(network, namespaces.NEW_NETWORK)
        missing = _show(files)
        capabilities.drop_all()
        capabilities.gain_nothing()
    except OSError as error:
        raise RustGuardError(
            f"The tunnel's network can't be entered: {error.strerror}.", "Restart the client, and look at its log."
        ) from error
    for each in (user, network):
        os.close(each)
    if missing:
        click.echo(f"Names can't be resolved inside without {', '.join(missing)}.", err=True)


def _show(files: dict[Path, str]) -> list[str]:
    """Show the tunnel's files of names in mounts of our own. Return those that can't be shown."""
    from rustguard_py.rootless import names, namespaces
    from rustguard_py.rootless.refusals import Step, refused

    try:
        namespaces.own_mounts()
        return names.show(files)
    except OSError as error:
        raise refused(Step.MOUNTS, error.errno or 0) from error


def _become(line: Sequence[str]) -> NoReturn:
    """Become the program, so that its terminal, signals and exit code are its own."""
    for each in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores them, and a program would inherit that.
        signal.signal(each, signal.SIG_DFL)
    try:
        os.execvp(line[0], list(line))  # noqa: S606 - what the user typed is the point
    except OSError as error:
        click.echo(f"rustguard exec: {line[0]}: {error.strerror}", err=True)
        raise click.exceptions.Exit(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN) from error
