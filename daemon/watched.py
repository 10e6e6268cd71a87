"""How each kind of thing that we set on the system is recognised there, described, and put back."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_interface
from itertools import groupby
from pathlib import Path

from rustguard_py.daemon import steps
from rustguard_py.daemon.dns import Dns
from rustguard_py.daemon.steps import Address, Firewall, Route, Rule, Step, Sysctl
from rustguard_py.model.errors import RustGuardError
from rustguard_py.system.changes import Kind
from rustguard_py.system.interface import RT_TABLE_MAIN, Echo, explain, with_netlink
from rustguard_py.system.kernel_view import RuleSeen, View, network_of, split
from rustguard_py.system.netlink_library import IPRoute, NetlinkError

# linux/rtnetlink.h: RTPROT_KERNEL, RT_SCOPE_LINK. The kernel's metric for the network of an IPv6 address.
_PROTO_KERNEL, _SCOPE_LINK = 2, 253
_METRIC6 = 256


@dataclass(frozen=True, slots=True)
class Connected:
    """The route to an address's own network, which the kernel makes with the address.

    Attributes:
        interface: The interface's name.
        address: With its prefix length.
    """

    interface: str
    address: str


# What is watched and put back.
Thing = Step | Connected


def things(done: Iterable[Step]) -> list[Thing]:
    """Return what there is to watch after these steps: they themselves, and the routes that came with addresses."""
    found: list[Thing] = []
    for step in done:
        found.append(step)
        if isinstance(step, Address) and "/" in step.address and not _is_host(step.address):
            found.append(Connected(step.interface, step.address))
    return found


def kind(thing: Thing) -> Kind | None:
    """Return which kind of change removes it, or None if nothing tells of that."""
    match thing:
        case Address():
            return "address"
        case Route() | Connected():
            return "route"
        case Rule():
            return "rule"
        case Firewall():
            return "firewall"
        case Dns() | Sysctl():
            return "file"
    return None


def describe(thing: Thing) -> str:
    """Return a thing in words, such as `the address 10.9.0.1/24 on wg0`."""
    match thing:
        case Address(interface, address):
            return f"the address {address} on {interface}"
        case Connected(interface, address):
            return f"the route to {network_of(address)} on {interface}"
        case Route(interface, network, table):
            return f"the route to {network} on {interface}{'' if table == RT_TABLE_MAIN else f' in table {table}'}"
        case Rule(version, priority, table, mark):
            what = f"that sends packets to table {table}" if mark else "that keeps local routes in use"
            return f"the IPv{version} routing rule {priority} {what}"
        case Firewall(interface, version):
            return f"the nftables table {'ip' if version == 4 else 'ip6'} rustguard-{interface}"
        case Sysctl(name, value):
            return f"the setting {name}={value}"
        case Dns(interface):
            return f"the name servers of {interface}"
    return str(thing)


def holds(thing: Thing, view: View) -> bool:
    """Return whether the kernel still has a thing. What can't be seen in this view is taken to be there.

    An interface that is down has no routes and no IPv6 addresses. An admin may want that, so nothing is missing then.
    """
    match thing:
        case Address(interface, address):
            return not view.is_up(interface) or view.has_address(interface, address)
        case Route(interface, network, table):
            return not view.is_up(interface) or view.has_route(interface, network, table)
        case Connected(interface, address):
            # In a VRF it is in that one's table. Without the address it comes back with that.
            return (
                not view.is_up(interface)
                or not view.has_address(interface, address)
                or view.has_route(interface, network_of(address), None)
            )
        case Rule(version, priority, table, mark):
            return RuleSeen(version, priority, table, mark, not mark) in view.rules
        case Sysctl(_, value):
            with suppress(RustGuardError):
                return thing.prepare() == value
    return True


def look(thing: Thing, memo: str) -> str | None:
    """Return how a thing looks that only another program can show; None if nothing can be seen."""
    match thing:
        case Firewall() | Dns():
            return thing.look(memo)
    return None


def why_not_back(thing: Thing, wanted: str, found: str) -> str | None:
    """Return why a thing isn't back though it was put back, or None if it is.

    Args:
        thing: The thing.
        wanted: How it looked before it was removed.
        found: How it looks after it was put back. A table may list its rules in another way than before.
    """
    if isinstance(thing, Dns) and found != wanted:
        return "another program still has charge of them."
    return None


def where(pairs: Iterable[tuple[Thing, str]]) -> list[Path]:
    """Return the files and directories that change with these things, which come with their memos."""
    found: list[Path] = []
    for thing, memo in pairs:
        if isinstance(thing, Dns):
            found += thing.where(memo)
        elif isinstance(thing, Sysctl):
            found.append(thing.path)
    return found


def put_back(wanted: Sequence[tuple[Thing, str]], echo: Echo) -> dict[Thing, str]:
    """Put things back, in order.

    Args:
        wanted: Things with their memos.
        echo: Called with one line per change.

    Returns:
        Why some were refused.
    """
    refused: dict[Thing, str] = {}

    def work(netlink: IPRoute) -> None:
        for many, run in groupby(wanted, lambda each: isinstance(each[0], (Address, Route))):
            here = list(run)
            if many and _at_once([thing for thing, _ in here if isinstance(thing, (Address, Route))], echo):
                continue
            for thing, memo in here:
                try:
                    _one(thing, memo, netlink, echo)
                except RustGuardError as error:
                    refused[thing] = error.message
                except OSError as error:
                    refused[thing] = error.strerror or str(error)

    with_netlink(work)
    return refused


def _at_once(here: Sequence[Address | Route], echo: Echo) -> bool:
    """Put back many addresses and routes; return whether all of them went well."""
    try:
        return all(not steps.apply_all(list(run), echo, _is_made, wait=True) for _, run in groupby(here, _interface))
    except (RustGuardError, OSError):
        return False


def _is_made(_step: Address | Route) -> None:
    """Nothing changes in the ledger: it has the step."""


def _interface(thing: Address | Route) -> str:
    return thing.interface


def _one(thing: Thing, memo: str, netlink: IPRoute, echo: Echo) -> None:
    if isinstance(thing, Connected):
        _connect(netlink, thing, echo)
    elif isinstance(thing, (Address, Route)):
        # One that is there already came back by itself, or with the address before it.
        steps.apply_all([thing], echo, _is_made, wait=True)
    elif isinstance(thing, Dns):
        thing.put_back(netlink, memo, echo)
    else:
        _ignoring_what_is_there(lambda: thing.apply(netlink, memo, echo))


def _connect(netlink: IPRoute, thing: Connected, echo: Echo) -> None:
    address, network = ip_interface(thing.address), network_of(thing.address)
    command = f"ip -{address.version} route add {network} dev {thing.interface}"
    what = {"dst": network, "oif": socket.if_nametoindex(thing.interface), "proto": _PROTO_KERNEL}
    if address.version == 4:
        what |= {"family": socket.AF_INET, "scope": _SCOPE_LINK, "prefsrc": str(address.ip)}
    else:
        what |= {"family": socket.AF_INET6, "priority": _METRIC6}
    try:
        netlink.route("add", **what)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise explain(error, command) from error
    else:
        echo(f"[#] {command}")


def _ignoring_what_is_there(work: Callable[[], None]) -> None:
    try:
        work()
    except RustGuardError as error:
        if not (isinstance(error.__cause__, NetlinkError) and error.__cause__.code == errno.EEXIST):
            raise


def _is_host(address: str) -> bool:
    packed, length = split(address)
    return length == 8 * len(packed)


def memos(done: Mapping[Step, str], found: Iterable[Thing]) -> list[tuple[Thing, str]]:
    """Return things with the memos of the steps that they are."""
    return [(each, "" if isinstance(each, Connected) else done.get(each, "")) for each in found]
