"""What `join --rootless` was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from rustguard_py.model.endpoint import IpAddress
from rustguard_py.model.errors import UsageError
from rustguard_py.proxy.forward import Forward
from rustguard_py.proxy.request import Credentials, is_host

_PLACE = re.compile(r"(?:(\[[^\[\]]*\]|[^:\[\]]*):)?([0-9]{1,5})", re.ASCII)
_BROADCAST = IPv4Address("255.255.255.255")
_DNS_FIX = "Name one that is reached through the tunnel: --dns 10.150.0.1"
_LOOPBACK, _LAST_PORT = "127.0.0.1", 65535


@dataclass(frozen=True, slots=True)
class Rootless:
    """The options of a tunnel without root.

    Attributes:
        servers: Name servers to use inside; empty for the server's inner addresses.
        socks: Where to serve SOCKS5 and HTTP CONNECT: addresses and ports.
        login: What clients of those have to name, or None.
        ins: Ports of this machine that lead into the tunnel (`-L`).
        outs: Ports inside that lead to this machine (`-R`).
    """

    servers: tuple[IpAddress, ...] = ()
    socks: tuple[tuple[str, int], ...] = ()
    login: Credentials | None = None
    ins: tuple[Forward, ...] = ()
    outs: tuple[Forward, ...] = ()

    def words(self) -> dict[str, list[str]]:
        """Return the options' values by option, without those that weren't given and without the login."""
        values: dict[str, Iterable[object]] = {
            "--dns": self.servers,
            "--socks": (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.socks),
            "-L": self.ins,
            "-R": self.outs,
        }
        words = {option: sorted(map(str, given)) for option, given in values.items()}
        return {option: given for option, given in words.items() if given}


def parse_place(text: str) -> tuple[str, int]:
    """Return the address and port in `[ADDR:]PORT`; without an address, it is that of this machine alone.

    Raises:
        UsageError: The text has another form.
    """
    found = _PLACE.fullmatch(text)
    host = _LOOPBACK if found is None or found[1] is None else found[1].removeprefix("[").removesuffix("]")
    if found is None or not 1 <= int(found[2]) <= _LAST_PORT or not is_host(host):
        raise UsageError(
            f"--socks {text!r} isn't an address and a port.",
            "Write it like: --socks 1080, --socks 127.0.0.1:1080 or --socks '[::1]:1080'. Without a value, write it "
            "last or before another option.",
        )
    return host, int(found[2])


def parse_name_server(text: str) -> IpAddress:
    """Return the address of a name server that can be reached from inside.

    Raises:
        UsageError: The text is no address, or one that leads to nobody there.
    """
    try:
        address = ip_address(text)
    except ValueError as error:
        raise UsageError(f"--dns: {error}.", _DNS_FIX) from error
    meant = getattr(address, "ipv4_mapped", None) or address
    kinds = {
        "of the loopback interface, and no name server runs inside": meant.is_loopback,
        "the unspecified one": meant.is_unspecified,
        "of a multicast group": meant.is_multicast,
        "the broadcast one": meant == _BROADCAST,
    }
    for kind, applies in kinds.items():
        if applies:
            raise UsageError(f"--dns {text}: that address is {kind}.", _DNS_FIX)
    return address


def check_open_to_others(socks: Iterable[tuple[str, int]]) -> None:
    """Check that places without a login are for this machine alone. The proxy checks what names stand for.

    Raises:
        UsageError: One isn't.
    """
    for host, port in socks:
        with suppress(ValueError):
            if host in ("", "*") or not ip_address(host).is_loopback:
                raise UsageError(
                    f"Whoever reaches this machine could use the tunnel by --socks {host}:{port}.",
                    "Add --socks-login FILE, or leave out the address.",
                )


def parse_login(line: str, file: Path) -> Credentials:
    """Return the user and password in a line, `USER:PASSWORD`.

    Args:
        line: The first line of the file.
        file: Where it was read, for errors.

    Raises:
        UsageError: It has another form.
    """
    user, colon, password = line.partition(":")
    if not colon or "\n" in password:
        raise UsageError(f"--socks-login {file} has no user and password.", "Write one line into it: USER:PASSWORD")
    return Credentials(user, password)
