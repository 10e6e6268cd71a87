"""IP addresses and networks in text from outside, read strictly.

The classes of `ipaddress` accept any text behind a `%` as the scope of an IPv6 address, also line feeds and escape
sequences, and give it back in `str`. These functions accept digits, dots and colons, and a prefix length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Final, TypeVar

from rustguard_py.model.endpoint import InterfaceAddress, Network

T = TypeVar("T")

# The longest address, `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255`, has 45 characters, and a prefix length four.
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}")
_WITH_PREFIX: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?")


def ipv4_address(text: str) -> IPv4Address:
    """Return the address in a text. Raise ValueError for anything else."""
    return _strict(IPv4Address, text, _ADDRESS)


def ipv6_address(text: str) -> IPv6Address:
    """Return the address in a text. Raise ValueError for anything else, and for a scope."""
    return _strict(IPv6Address, text, _ADDRESS)


def ipv4_interface(text: str) -> IPv4Interface:
    """Return the address in a text, with its prefix length. Raise ValueError for anything else."""
    return _strict(IPv4Interface, text, _WITH_PREFIX)


def ipv6_interface(text: str) -> IPv6Interface:
    """Return the address in a text, with its prefix length. Raise ValueError for anything else, and for a scope."""
    return _strict(IPv6Interface, text, _WITH_PREFIX)


def interface(text: str) -> InterfaceAddress:
    """Return the address of either family in a text, with its prefix length. Raise ValueError for anything else."""
    return ipv6_interface(text) if ":" in text else ipv4_interface(text)


def ipv4_network(text: str) -> IPv4Network:
    """Return the network in a text. Raise ValueError for anything else."""
    return _strict(IPv4Network, text, _WITH_PREFIX)


def ipv6_network(text: str) -> IPv6Network:
    """Return the network in a text. Raise ValueError for anything else, and for a scope."""
    return _strict(IPv6Network, text, _WITH_PREFIX)


def network(text: str) -> Network:
    """Return the network of either family in a text. Raise ValueError for anything else, and for a scope."""
    return ipv6_network(text) if ":" in text else ipv4_network(text)


def check_own4(address: IPv4Interface, gateway: IPv4Address | None) -> None:
    """Check an address that a server gave us, and the server's own one. Raise ValueError if they make no sense."""
    _check_own(address, gateway)
    if address.network.prefixlen > 30 or address.ip in (address.network[0], address.network[-1]):
        raise ValueError("is no address of a host in a network")


def check_own6(address: IPv6Interface, gateway: IPv6Address | None) -> None:
    """Check the same for IPv6."""
    _check_own(address, gateway)
    if address.network.prefixlen > 126 or address.ip == address.network[0]:
        raise ValueError("is no address of a host in a network")


def _check_own(address: IPv4Interface | IPv6Interface, gateway: IPv4Address | IPv6Address | None) -> None:
    ip = address.ip
    if ip.is_multicast or ip.is_loopback or ip.is_unspecified or ip.is_link_local:
        raise ValueError("is no address that a tunnel can have")
    if gateway is not None and (gateway == ip or gateway not in address.network):
        raise ValueError("doesn't fit the server's own address")


def _strict(parse: Callable[[str], T], text: str, pattern: re.Pattern[str]) -> T:
    if pattern.fullmatch(text) is None:
        raise ValueError(f"{text[:50]!r} is no address")
    return parse(text)
