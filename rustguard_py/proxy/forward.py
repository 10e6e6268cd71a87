"""`-L` and `-R`: forwarded ports, written as ssh(1) writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from rustguard_py.model.errors import UsageError
from rustguard_py.proxy.request import is_host

_PART: Final = r"\[[^\[\]]*\]|[^:\[\]]*"
_FORWARD: Final = re.compile(
    rf"(?:(?P<address>{_PART}):)?(?P<port>[0-9]{{1,5}}):(?P<host>{_PART}):(?P<host_port>[0-9]{{1,5}})"
)
_LAST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Forward:
    """A forwarded port.

    Attributes:
        address: Where to listen: a name or an address; empty for every address.
        port: The port there.
        host: Where to connect to, seen from the other side of the tunnel.
        host_port: The port there.
    """

    address: str
    port: int
    host: str
    host_port: int

    @property
    def target(self) -> str:
        """Host and port as a person writes them."""
        return _place(self.host, self.host_port)

    def __str__(self) -> str:
        """Return the same as it may be typed."""
        return f"{_place(self.address, self.port)}:{self.target}"


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_forward(option: Literal["-L", "-R"], text: str) -> Forward:
    """Return what `[ADDR:]PORT:HOST:PORT` asks for.

    Without ADDR, `-L` listens on the loopback addresses of this host, as ssh does. `-R` listens on every address
    inside the tunnel, where ssh would listen on loopback: nobody could reach that one. An empty ADDR and `*` mean
    every address.

    Raises:
        UsageError: The text has another form.
    """
    found = _FORWARD.fullmatch(text)
    if found is None:
        raise _wrong(option, text, "it has another form")
    for port in (found["port"], found["host_port"]):
        if not 1 <= int(port) <= _LAST_PORT:
            raise _wrong(option, text, f"ports go from 1 to {_LAST_PORT}, and it has {port}")
    address = found["address"]
    if address is None:
        address = "localhost" if option == "-L" else ""
    address = "" if address == "*" else address.removeprefix("[").removesuffix("]")
    host = found["host"].removeprefix("[").removesuffix("]")
    if not is_host(host) or (address and not is_host(address)):
        raise _wrong(option, text, "a host in it is neither a name nor an address")
    return Forward(address, int(found["port"]), host, int(found["host_port"]))


def _wrong(option: str, text: str, why: str) -> UsageError:
    return UsageError(
        f"{option} {text!r} isn't a forwarded port, [ADDR:]PORT:HOST:PORT: {why}.",
        f"Write it like {option} 8080:files.home:80, or {option} [::1]:8080:[fd00::7]:80 with IPv6 addresses.",
    )
