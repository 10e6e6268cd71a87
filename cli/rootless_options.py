"""The options of `join` for a tunnel without root."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from rustguard_py.cli.secret import read_file
from rustguard_py.model.errors import UsageError
from rustguard_py.proxy.forward import parse_forward
from rustguard_py.proxy.request import Credentials
from rustguard_py.rootless.options import Rootless, check_open_to_others, parse_login, parse_name_server, parse_place

_USUAL_PLACE = "127.0.0.1:1080"


def _read_login(file: Path) -> Credentials:
    return parse_login(read_file(file, "login", "Name a file that you can read."), file)


def rootless_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--rootless` and what goes with it; the parameter is `rootless: Rootless | None`."""

    @wraps(function)
    def with_rootless(
        *others: Any,
        rootless: bool,
        dns: tuple[str, ...],
        socks: tuple[str, ...],
        socks_login: Path | None,
        forward_in: tuple[str, ...],
        forward_out: tuple[str, ...],
        **named: Any,
    ) -> Any:
        given = {"--dns": dns, "--socks": socks, "--socks-login": socks_login, "-L": forward_in, "-R": forward_out}
        if not rootless and (needing := [option for option, value in given.items() if value]):
            raise UsageError(f"{needing[0]} needs --rootless.", f"Add --rootless, or leave out {needing[0]}.")
        if socks_login is not None and not socks:
            raise UsageError("--socks-login needs --socks.", "Add --socks, or leave out --socks-login.")
        servers = tuple(map(parse_name_server, dns))
        places = tuple(parse_place(each) for each in socks)
        if socks_login is None:
            check_open_to_others(places)
        options = Rootless(
            servers,
            places,
            None if socks_login is None else _read_login(socks_login),
            tuple(parse_forward("-L", each) for each in forward_in),
            tuple(parse_forward("-R", each) for each in forward_out),
        )
        return function(*others, rootless=options if rootless else None, **named)

    by_dns = click.option(
        "--dns",
        metavar="ADDRESS",
        multiple=True,
        help="With --rootless: name server for names inside, reached through the tunnel; may be repeated.  "
        "[default: the server]",
    )
    by_out = click.option(
        "-R",
        "forward_out",
        metavar="[ADDR:]PORT:HOST:PORT",
        multiple=True,
        help="With --rootless: listen inside the tunnel, and connect what comes to HOST from here; may be repeated.",
    )
    by_in = click.option(
        "-L",
        "forward_in",
        metavar="[ADDR:]PORT:HOST:PORT",
        multiple=True,
        help="With --rootless: listen here, and connect what comes to HOST inside the tunnel; may be repeated.",
    )
    by_login = click.option(
        "--socks-login",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="File with the USER:PASSWORD that clients of --socks have to name. Without it, every user of this "
        "machine may use the proxy, and nobody else.",
    )
    by_socks = click.option(
        "--socks",
        is_flag=False,
        flag_value=_USUAL_PLACE,
        metavar="[ADDR:]PORT",
        multiple=True,
        help="With --rootless: serve SOCKS5 and HTTP CONNECT into the tunnel here; without a value, at "
        f"{_USUAL_PLACE}.",
    )
    by_rootless = click.option(
        "--rootless",
        is_flag=True,
        help="Join as an ordinary user: the tunnel is in a network of its own, for `rustguard exec` and the proxy.",
    )
    return by_rootless(by_socks(by_login(by_in(by_out(by_dns(with_rootless))))))
