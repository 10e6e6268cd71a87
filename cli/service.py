"""`rustguard service`: run a server, a client or a tunnel as a service of systemd."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rustguard_py.cli import complete
from rustguard_py.cli.values import OneOf
from rustguard_py.cli.verb import CONTEXT_SETTINGS, LOG_LEVEL, VerbGroup
from rustguard_py.daemon.control.client import call, listener, listens
from rustguard_py.model.counted import counted
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.memif import parse as parse_memif
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root
from rustguard_py.service import systemd
from rustguard_py.service.unit import STATE, Unit
from rustguard_py.state import paths

# What `serve` and `join` were given for one start, and a unit doesn't repeat.
_ONCE = {"token", "token_file", "open_for", "most", "name", "fingerprint", "routes", "save_only", "daemon", "service"}
_HOMES = ("/home/", "/root/", "/run/user/")


@click.group(
    "service",
    cls=VerbGroup,
    examples=[
        ("sudo rustguard service install serve --pool 10.150.0.0/24 --token -", "a server, now and at each boot"),
        ("sudo rustguard service install join home.example --token -", "join, then connect now and at each boot"),
        ("sudo rustguard service install up wg0", "the tunnel of /etc/wireguard/wg0.conf"),
        ("rustguard service install join home.example --rootless --token -", "without root, for this user"),
    ],
)
def command() -> None:
    """Run a server, a client or a tunnel as a service of systemd, one unit for each."""


@command.command(
    "install",
    context_settings={**CONTEXT_SETTINGS, "ignore_unknown_options": True, "allow_interspersed_args": False},
    examples=[
        ("sudo rustguard service install serve --pool 10.150.0.0/24 --token - --open", "open for a first peer too"),
        ("sudo rustguard service install join", "a machine that has joined before"),
    ],
)
@click.argument("kind", type=OneOf(["serve", "join", "up"]), metavar="serve|join|up")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[THE SAME OPTIONS]")
def install(kind: str, options: tuple[str, ...]) -> None:
    """Install a service and start it; its options are those of `serve`, `join` or `up`.

    The token goes to a file that only root can read, never into the unit. A client joins at once, and the service
    then connects with what was saved. If the service doesn't start, it is removed again.
    """
    root = click.get_current_context().find_root()
    from rustguard_py.cli.app import group

    target = group.get_command(root, kind)
    assert target is not None  # noqa: S101 - the choice above names three of the group's commands
    with target.make_context(kind, list(options), parent=root) as asked:
        install_as(asked)


def install_as(asked: click.Context) -> None:
    """Install the service that does what a command line of `serve`, `join` or `up` asks for, and start it."""
    systemd.require(user=_is_users(asked))
    if (memif := asked.params["memif"]) and parse_memif(memif).secret:
        kind = asked.info_name
        raise UsageError(
            "Every user can read a unit, so it can't hold the secret of --memif.",
            "Leave out secret=: the socket's mode says who may connect."
            if kind == "up"
            else f"Run `rustguard {kind}` with --memif once: it is kept. Then install the service without it.",
        )
    {"serve": _serve, "join": _join, "up": _up}[str(asked.info_name)](asked)


@command.command("remove", examples=[("sudo rustguard service remove serve", "stop it, and delete unit and token")])
@click.argument("name", required=False, shell_complete=complete.services)
def remove(name: str | None) -> None:
    """Stop a service and remove it, with its token. Keys and peers stay.

    Where none is installed it does nothing, with exit code 0.
    """
    if name is None and not systemd.installed():
        _tell("No service is installed.")
        return
    service = systemd.find(name)
    systemd.require(user=service.user)
    systemd.remove(service)
    _tell(f"{service.name} is stopped and removed. Keys and peers stay in {paths.state_root()}.")


@command.command("status", examples=[("rustguard service status", "all services that were installed")])
@click.argument("name", required=False, shell_complete=complete.services)
def status(name: str | None) -> None:
    """Show whether the services run."""
    for service in systemd.installed() if name is None else [systemd.find(name)]:
        found = systemd.properties(service)
        when = _when(service)
        state = f"{found.get('ActiveState')} ({found.get('SubState')}), {found.get('UnitFileState')} at {when}"
        process = "" if found.get("MainPID") in (None, "0") else f", process {found['MainPID']}"
        again = (
            "" if found.get("NRestarts") in (None, "0") else f", restarted {counted(int(found['NRestarts']), 'time')}"
        )
        result = "" if found.get("Result") in (None, "success") else f", ended by {found['Result']}"
        click.echo(printable(f"{service.name}: {state}{process}{again}{result}"))
        if text := found.get("StatusText"):
            click.echo(printable(f"  {text}"))
    if name is None and not systemd.installed():
        _tell(f"No service is installed. Install one: {as_root('rustguard service install serve …')}")


@command.command("logs", examples=[("rustguard service logs -f", "what it says, as it says it")])
@click.argument("name", required=False, shell_complete=complete.services)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines, until Ctrl-C.")
def logs(name: str | None, follow: bool) -> None:
    """Show what a service has logged."""
    service = systemd.find(name)
    show_journal(f"{service.name}.service", ("--user",) if service.user else (), follow=follow)


def show_journal(unit: str, manager: Sequence[str] = (), *, follow: bool) -> None:
    """Become journalctl(1), which shows a unit's lines.

    Args:
        unit: The unit's whole name.
        manager: The option that selects the systemd that runs it.
        follow: Whether to go on with new lines.
    """
    words = ["journalctl", *manager, "-u", unit, *(["-f"] if follow else ["--no-pager"])]
    sys.stdout.flush()
    os.execvp(words[0], words)  # noqa: S606


def _serve(asked: click.Context) -> None:
    from rustguard_py.cli import serve

    given = asked.params
    directory = paths.state_directory("server", given["state"])
    service = systemd.Service(systemd.service_name("serve", _label(given["state"])))
    _check_free(directory, service)
    serve.network4(given["pool"])
    serve.network6(given["pool6"])
    token = serve.ask_token(given["token"], given["token_file"])
    unit = Unit(
        f"RustGuard server {service.name}",
        (*_program(), "serve", *_words(asked, _ONCE)),
        token=service.token if token is not None or service.token.exists() else None,
        **_needs(given, directory),
    )
    systemd.install(service, unit, token=token, xdp=given["xdp"] is not None)
    _installed(service)
    if given["open_for"] is not None:
        most = {} if given["most"] is None else {"most": given["most"]}
        call(paths.control_socket(directory), "open", {"seconds": given["open_for"], **most})
        _tell(f"The window is open for {given['open_for']:g} s. After a restart it is closed: rustguard open")


def _join(asked: click.Context) -> None:
    given = asked.params
    directory = paths.state_directory("client", given["state"])
    service = systemd.Service(systemd.service_name("join", _label(given["state"])), _is_users(asked))
    _check_free(directory, service)
    has_token = given["token"] or given["token_file"] or "RUSTGUARD_TOKEN" in os.environ
    if has_token or not (directory / "state.json").exists():
        # Now, while somebody reads the answer: a service that was refused would tell only the journal.
        if service.is_installed():
            service.systemctl("stop")
        assert asked.command.callback is not None  # noqa: S101
        # What was given up for the pairing would be missing for the service.
        asked.command.callback(**{**given, "save_only": True, "service": False, "no_sandbox": True})
    unit = Unit(
        f"RustGuard client {service.name}",
        (*_program(), "join", *_words(asked, _ONCE)),
        **({"user": True} if service.user else _needs(given, directory)),
    )
    systemd.install(service, unit, token=None, xdp=given["xdp"] is not None)
    _installed(service)
    if service.user:
        _tell("Without you logged in it runs only after: loginctl enable-linger")


def _up(asked: click.Context) -> None:
    from rustguard_py.quick import conf_files

    given = asked.params
    interface = conf_files.interface_of(given["file"])
    service = systemd.Service(systemd.service_name("up", interface))
    directory = (given["state"] or paths.tunnel_directory(interface)).expanduser().resolve()
    _check_free(directory, service)
    conf_files.load_to_run(conf_files.find(given["file"]), trust=given["trust_file"])
    file = str(Path(given["file"]).absolute()) if "/" in given["file"] else given["file"]
    state = [] if given["state"] is None else ["--state", str(directory)]
    unit = Unit(
        f"RustGuard tunnel {interface}",
        (*_program(), "up", *_words(asked, {"foreground", "file"}), "--foreground", file),
        reload=(*_program(), "up", *state, file),
        limited=False,
    )
    systemd.install(service, unit, token=None, xdp=False)
    _installed(service)


def _is_users(asked: click.Context) -> bool:
    """Return whether a command line asks for a service of this user's own systemd."""
    return bool(asked.params.get("rootless"))


def _words(asked: click.Context, left_out: Collection[str]) -> list[str]:
    """Return the options and arguments that were given, by command line or environment, as words."""
    words: list[str] = []
    arguments: list[str] = []
    for parameter in asked.command.params:
        name = str(parameter.name)
        source = asked.get_parameter_source(name)
        if name in left_out or source not in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
            continue
        # `--log-level` has no parameter.
        value: Any = asked.params.get(name, asked.meta.get(LOG_LEVEL))
        if isinstance(value, Path):
            value = value.expanduser().resolve()
        if isinstance(parameter, click.Argument):
            arguments.append(str(value))
        elif getattr(parameter, "is_flag", False):
            words += parameter.opts[-1:] if value else []
        elif getattr(parameter, "multiple", False):
            words += [word for each in value for word in (parameter.opts[-1], str(each))]
        else:
            words += [parameter.opts[-1], "none" if (name, value) == ("memif", "") else str(value)]
    return words + [each for each in arguments if each != "None"]


def _needs(given: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return what a unit is permitted for some options."""
    outside = not directory.is_relative_to(STATE)
    if outside:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "state": directory if outside else None,
        "capabilities": ("CAP_CHOWN",) if given["group"] is not None else (),
        "sysfs": given["threaded_napi"],
        "memif": _listens_in(given["memif"]),
        "home": any(word.startswith(_HOMES) for word in (*_program(), sys.prefix + "/", str(directory))),
    }


def _listens_in(memif: str | None) -> Path | None:
    """Return the directory of the socket that a memif listens at, or None."""
    options = parse_memif(memif) if memif else None
    return options.socket.parent if options is not None and options.server else None


def _program() -> tuple[str, ...]:
    """Return the words that run this program, as this process was started."""
    found = shutil.which(sys.argv[0])
    if found is not None and Path(found).name == "rustguard":
        return (str(Path(found).absolute()),)
    return (sys.executable, "-m", "rustguard_py.cli")


def _check_free(directory: Path, service: systemd.Service) -> None:
    """Check that no daemon outside the service has the state directory."""
    socket = paths.find_socket(directory)
    if socket is None or not listens(socket):
        return
    process = listener(socket)
    if systemd.running_unit(process) != f"{service.name}.service":
        raise RefusedError(f"It runs already, as process {process}.", f"End it first: {as_root('rustguard stop')}")


def _label(state: Path | None) -> str | None:
    return None if state is None else state.expanduser().resolve().name


def _installed(service: systemd.Service) -> None:
    _tell(f"{service.name} runs, now and at each {_when(service)}. Its log: rustguard service logs {service.name}")


def _when(service: systemd.Service) -> str:
    return "login" if service.user else "boot"


def _tell(line: str) -> None:
    click.echo(printable(line), err=True)
