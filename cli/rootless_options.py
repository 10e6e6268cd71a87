"""The options of `join` for a tunnel without root."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from ipaddress import ip_address
from typing import Any

import click

from rustguard_py.cli.values import BadValueError
from rustguard_py.model.endpoint import IpAddress
from rustguard_py.model.errors import UsageError
from rustguard_py.rootless.options import Rootless


def rootless_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--rootless` and what goes with it; the parameter is `rootless: Rootless | None`."""

    @wraps(function)
    def with_rootless(*others: Any, rootless: bool, dns: tuple[IpAddress, ...], **named: Any) -> Any:
        given = {"--dns": dns}
        if not rootless:
            for option, value in given.items():
                if value:
                    raise UsageError(f"{option} needs --rootless.", f"Add --rootless, or leave out {option}.")
        return function(*others, rootless=Rootless(dns) if rootless else None, **named)

    by_dns = click.option(
        "--dns",
        metavar="ADDRESS",
        multiple=True,
        callback=_read_addresses,
        help="With --rootless: name server for names inside, reached through the tunnel; may be repeated.  "
        "[default: the server]",
    )
    by_rootless = click.option(
        "--rootless",
        is_flag=True,
        help="Join as an ordinary user: the tunnel is in a network of its own, for `rustguard exec` and the proxies.",
    )
    return by_rootless(by_dns(with_rootless))


def _read_addresses(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[IpAddress, ...]:
    try:
        return tuple(ip_address(each) for each in values)
    except ValueError as error:
        raise BadValueError(f"{error}.", "Write it like: --dns 10.150.0.1", parameter=parameter) from error
