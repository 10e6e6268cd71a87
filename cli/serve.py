"""`rustguard serve`: run a server."""

from __future__ import annotations

import sys
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import click

from rustguard_py.cli.secret import find_token, is_weak, read_token, warn_weak
from rustguard_py.cli.values import Duration, Number
from rustguard_py.cli.verb import (
    Verb,
    data_path_options,
    log_level_option,
    sandbox_option,
    state_option,
    token_options,
)
from rustguard_py.data_path import DataPath
from rustguard_py.model.errors import InUseError, UsageError
from rustguard_py.state.records import MOST_TUNNELS

# How long `--open` without a number opens the window: time to walk to the other machine.
OPEN_SECONDS = 600


@click.command(
    "serve",
    cls=Verb,
    examples=[
        (
            "sudo rustguard serve --pool 10.150.0.0/24 --token-file token",
            "a server; open the window when it's needed",
        ),
        ("sudo rustguard serve --pool 10.150.0.0/24 --token - --open", "asks for the token, open for ten minutes"),
        ("sudo rustguard serve", "again, with everything that was kept; nobody new can join"),
    ],
)
@click.option("--pool", metavar="CIDR", help="IPv4 addresses to give out, /30 or wider; kept after the first start.")
@click.option(
    "--pool6",
    metavar="CIDR",
    help="The same for IPv6, a /64; `none` for none. Default: made at the first start and kept.",
)
@token_options
@click.option("--port", type=Number(1, 65535), metavar="N", help="UDP port; kept.  [default: 51820]")
@click.option(
    "--open",
    "open_for",
    type=Duration(1, 86400),
    is_flag=False,
    flag_value=OPEN_SECONDS,
    metavar="[TIME]",
    help=f"Open the window from the start, for TIME, such as 1h or 90 (seconds), at most a day; {OPEN_SECONDS // 60} "
    "minutes if no time is given.",
)
@click.option(
    "--most",
    type=Number(min=1),
    metavar="N",
    help="With --open: how many new machines may join in that window.  [default: 50]",
)
@click.option(
    "--interface",
    metavar="NAME",
    help="Name of the interface.  [default: that of an imported file, else the first free of rg0, rg1, …]",
)
@click.option("--mtu", type=Number(1280, 65000), metavar="N", help="MTU of the interface; kept.  [default: 1420]")
@click.option(
    "--tunnels",
    type=Number(1, MOST_TUNNELS),
    metavar="N",
    help="Number of tunnels to each client, each with its own port, key and interface; flows are spread over "
    "them; kept.  [default: 1]",
)
@click.option("--daemon", is_flag=True, help="Go to the background once clients can connect.")
@click.option("--service", is_flag=True, help="Install this as a service of systemd: now, and at each boot.")
@click.option("--group", metavar="NAME", help="Group allowed to use the control socket, besides root.")
@data_path_options
@sandbox_option
@log_level_option("info")
@state_option
def command(
    pool: str | None,
    pool6: str | None,
    token: str | None,
    token_file: Path | None,
    port: int | None,
    open_for: float | None,
    most: int | None,
    interface: str | None,
    mtu: int | None,
    tunnels: int | None,
    daemon: bool,
    service: bool,
    group: str | None,
    data_path: DataPath,
    no_sandbox: bool,
    state: Path | None,
) -> None:
    """Run a server, until Ctrl-C, SIGTERM or `rustguard stop`.

    It owns a pool of addresses and admits anyone who knows the token while the window is open (`rustguard open`).
    Its key, its peers and their addresses are kept for the next start.
    """
    if service:
        from rustguard_py.cli.service import install_as

        install_as(click.get_current_context())
        return
    pool4 = network4(pool)
    pool_6 = network6(pool6)

    from rustguard_py.cli.daemon import STARTING, runs_already
    from rustguard_py.cli.foreground import Background, in_the_background, run
    from rustguard_py.enroll.server.settings import Settings
    from rustguard_py.enroll.server.start import PairingOptions, ServeOptions, serve
    from rustguard_py.state.paths import log_file, state_directory

    directory = state_directory("server", state)
    again = "" if open_for is None else f"Its window stays as it is. To open it: rustguard open {open_for:g}"
    if runs_already(directory, "server", again=again):
        return
    secret = ask_token(token, token_file)
    log = log_file(directory) if daemon else None
    options = ServeOptions(
        directory=directory,
        settings=Settings(pool4, pool_6, pool6 != "none", port, mtu, tunnels),
        pairing=PairingOptions(secret, open_for, most),
        data_path=data_path,
        interface=interface,
        group=group,
        sandbox=not no_sandbox,
        log=log,
    )
    background = None if log is None else Background(log, in_the_background("server", directory))
    try:
        run(lambda voice: serve(options, voice, background.ready if background else lambda: None))
    except InUseError:
        # Another start was faster, and this one is the second.
        if not runs_already(directory, "server", patience=STARTING, again=again):
            raise


def ask_token(option: str | None, file: Path | None) -> str | None:
    """Return the token, asking for it on a terminal only: a service without one serves the peers it has."""
    token = find_token(option, file)
    if token is None and sys.stdin.isatty():
        return read_token(None, None)
    if token is not None and is_weak(token):
        warn_weak()
    return token


# Ranges of which a pool may have no address (IANA's special-purpose registries).
_NOT_FOR_HOSTS = {
    "multicast": (IPv4Network("224.0.0.0/4"), IPv6Network("ff00::/8")),
    "reserved": (IPv4Network("240.0.0.0/4"),),
    "this machine's own": (IPv4Network("127.0.0.0/8"), IPv4Network("0.0.0.0/8"), IPv6Network("::/96")),
    "link-local": (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10")),
}


def network4(text: str | None) -> IPv4Network | None:
    """Return the network of `--pool`, or None if it wasn't given.

    Raises:
        UsageError: It isn't a network, or has no room for a peer.
    """
    if text is None:
        return None
    try:
        network = IPv4Network(text)
    except ValueError as error:
        fix = "Write it like 10.150.0.0/24: the first address of the network, and its prefix length."
        with suppress(ValueError):
            fix = f"Write the first address of the network: --pool {IPv4Network(text, strict=False)}"
        with suppress(ValueError):
            fix = f"For IPv6: --pool6 {IPv6Network(text, strict=False)}"
        raise UsageError(f"--pool: {error}.", fix) from error
    _check_kind("--pool", network)
    if network.prefixlen > 30:
        raise UsageError(f"--pool {network} has no room for a peer.", "A /30 has room for one, a /24 for 253.")
    return network


def network6(text: str | None) -> IPv6Network | None:
    """Return the network of `--pool6`, or None if it wasn't given or is `none`; see `network4`."""
    if text in (None, "none"):
        return None
    try:
        network = IPv6Network(text or "")
    except ValueError as error:
        fix = "Write it like fd12:3456:789a::/64, or leave it out."
        with suppress(ValueError):
            fix = f"For IPv4: --pool {IPv4Network(text or '', strict=False)}"
        raise UsageError(f"--pool6: {error}.", fix) from error
    _check_kind("--pool6", network)
    if network.prefixlen > 64:
        raise UsageError(f"--pool6 {network} is too narrow.", "Give a /64.")
    return network


def _check_kind(option: str, network: IPv4Network | IPv6Network) -> None:
    """Refuse a pool with addresses that no host can have."""
    for what, ranges in _NOT_FOR_HOSTS.items():
        if any(each.version == network.version and each.overlaps(network) for each in ranges):
            fix = "Choose a private network: --pool 10.150.0.0/24, or for IPv6 --pool6 fd12:3456:789a::/64"
            raise UsageError(f"{option} {network} has addresses that are {what}; no host can have them.", fix)
