"""`rustguard-wg`: the user-space WireGuard that wg-quick(8) starts where the kernel has none."""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import click

from rustguard_py import __version__
from rustguard_py.cli import failures
from rustguard_py.cli.verb import Verb, log_level_option, memif_option, offloads_option
from rustguard_py.data_path import DataPath
from rustguard_py.model.errors import UsageError
from rustguard_py.model.memif import MemifOptions
from rustguard_py.model.printable import printable

if TYPE_CHECKING:
    from rustguard_py.engine import Engine

_LEVELS = {"silent": logging.CRITICAL + 1, "error": logging.WARNING, "verbose": logging.INFO, "debug": logging.INFO}


@click.command(
    "rustguard-wg",
    cls=Verb,
    more="man rustguard-wg, or rustguard man rustguard-wg",
    examples=[
        ("sudo rustguard-wg wg0", "an interface wg0 in the background; set it up with `wg set wg0 …`"),
        (
            "sudo WG_QUICK_USERSPACE_IMPLEMENTATION=rustguard-wg wg-quick up wg0",
            "wg-quick's own file, where the kernel has no WireGuard",
        ),
        (
            "sudo rustguard-wg --memif /run/vpp/memif.sock,id=3 wg0",
            "no interface: VPP has the packets, and listens at that socket with `mode ip`",
        ),
        ("sudo ip link delete wg0", "stop it; or remove /var/run/wireguard/wg0.sock"),
    ],
)
@click.version_option(__version__, "--version", "-v", prog_name="rustguard-wg")
@click.option("-f", "--foreground", is_flag=True, envvar="WG_PROCESS_FOREGROUND", help="Stay in the foreground.")
@memif_option
@offloads_option
@log_level_option("LOG_LEVEL, else error")
@click.argument("interface", metavar="INTERFACE")
def command(foreground: bool, interface: str, memif: MemifOptions | None, offloads: str | None) -> None:
    """Make a WireGuard interface in user space, for wg(8) and wg-quick(8) to set up.

    Variables: LOG_LEVEL (silent, error, verbose, debug), RUSTGUARD_ENGINE (native, portable), WG_TUN_FD and
    WG_UAPI_FD (descriptors of an existing interface and socket to use).

    It stands in for wireguard-go-vpp if VPP_MEMIF_SOCKET_DIR or VPP_MEMIF_CONFIG_DIR is set, or if there is a file
    /etc/wggo-vpp/if.INTERFACE.json. VPP_API_SOCKET_PATH is VPP's API then.
    """
    from rustguard_py.cli.foreground import Background, run
    from rustguard_py.quick.conf_files import interface_of
    from rustguard_py.quick.wg_daemon import WgOptions, directory_of, serve
    from rustguard_py.quick.wg_vpp import asked_for
    from rustguard_py.state.paths import log_file

    if "/" in interface or interface.endswith(".conf") or not interface_of(interface):
        raise UsageError(f"{interface!r} can't name an interface.", "Give a name such as wg0.")
    level = _level()
    directory = directory_of(interface)
    if memif is not None and "WG_TUN_FD" in os.environ:
        raise UsageError("A memif stands in place of an interface.", "Leave out --memif, or: unset WG_TUN_FD")
    vpp = None if memif is not None or "WG_TUN_FD" in os.environ else asked_for(interface, _say)
    engine = _engine(offloads, memif if vpp is None else vpp.memif)
    options = WgOptions(interface, directory, engine, _descriptor("WG_TUN_FD"), _descriptor("WG_UAPI_FD"), vpp)
    background = None if foreground else Background(log_file(directory), lambda _: "")

    def ready() -> None:
        if background is not None:
            background.ready()

    run(lambda voice: serve(options, voice, ready), level)


def _say(line: str) -> None:
    click.echo(f"rustguard-wg: {printable(line)}", err=True)


def _engine(offloads: str | None, memif: MemifOptions | None) -> Engine:
    from rustguard_py import engine

    # The kernel's WireGuard needs no program, so `auto` and `kernel` mean the fastest of our own engines.
    fastest = "native" if engine.has_native() else "portable"
    wanted = os.environ.get("RUSTGUARD_ENGINE", "auto")
    chosen = engine.choose(DataPath(fastest if wanted in ("auto", "kernel") else wanted, offloads=offloads))
    return chosen if memif is None else chosen.on_memif(memif)


def _level() -> int:
    given = os.environ.get("LOG_LEVEL", "error").lower()
    if given not in _LEVELS:
        raise UsageError(f"LOG_LEVEL {given!r} is unknown.", f"Choose one of: {', '.join(_LEVELS)}.")
    return _LEVELS[given]


def _descriptor(variable: str) -> int | None:
    given = os.environ.get(variable, "")
    if not given:
        return None
    if not given.isdecimal():
        raise UsageError(f"{variable} must be the number of a descriptor.", f"Unset it: unset {variable}")
    return int(given)


def main() -> NoReturn:
    """Run the program."""
    failures.settle_streams()
    failures.install()
    arguments = sys.argv[1:]
    run = partial(command.main, arguments, prog_name="rustguard-wg", standalone_mode=False)
    sys.exit(failures.exit_code(run))


if __name__ == "__main__":
    main()
