"""The ways from this machine into a tunnel without root: the proxy and forwarded ports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

from rustguard_py.proxy.server import Proxy
from rustguard_py.rootless.helper import Helper
from rustguard_py.rootless.options import Rootless


async def start(
    stack: AsyncExitStack, inside: Helper, options: Rootless, say: Callable[[str], None]
) -> dict[str, Any]:
    """Start what the options ask for.

    Args:
        stack: Ends it.
        inside: The running helper, after `set_up`.
        options: The options.
        say: Prints where it listens.

    Returns:
        What the status shows: where the proxy listens, each forwarded port, and the options.

    Raises:
        RefusedError: An address can't be bound.
        UsageError: The proxy would serve others than this machine's users without a login.
    """
    shown: dict[str, Any] = {"proxy": [], "forwards": [], "options": options.words()}
    if not (options.socks or options.ins or options.outs):
        return shown
    proxy = Proxy(inside, credentials=options.login)
    stack.push_async_callback(proxy.close)
    for host, port in options.socks:
        shown["proxy"] += _listed(await proxy.serve(host, port))
    if shown["proxy"]:
        say(f"SOCKS5 and HTTP proxy into the tunnel at {', '.join(shown['proxy'])}.")
    for forwards, work, where in (
        (options.ins, proxy.forward_in, "inside"),
        (options.outs, proxy.forward_out, "here"),
    ):
        for each in forwards:
            at = ", ".join(dict.fromkeys(_listed(await work(each))))
            shown["forwards"].append(f"{at} {'inside ' if where == 'here' else ''}leads to {each.target} {where}")
            say(f"Forwarded: {shown['forwards'][-1]}.")
    return shown


def _listed(addresses: Iterable[tuple[Any, ...]]) -> list[str]:
    return [_place(str(host), port) for host, port, *_ in addresses]


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
