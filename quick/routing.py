"""The routes and rules that a configuration asks for, as wg-quick makes them.

A default route goes into a table of its own. A rule sends all packets without a mark to that table. The tunnel's own
datagrams to its peers are marked, so they never loop back into the tunnel. Another rule consults the main table
first, without its default route, so the local network stays reachable.

    ip route add 0.0.0.0/0 dev wg0 table 51820
    ip rule add not fwmark 51820 table 51820
    ip rule add table main suppress_prefixlength 0
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from rustguard_py import conf
from rustguard_py.daemon.steps import SRC_VALID_MARK, Firewall, Route, Rule, Step, Sysctl
from rustguard_py.model.endpoint import Network
from rustguard_py.system.interface import RT_TABLE_MAIN, with_netlink
from rustguard_py.system.netlink_library import IPRoute, NetlinkError

# Where wg-quick begins to look for a free table: the number of WireGuard's port.
FIRST_TABLE = 51820
# Bytes of a WireGuard datagram around a packet, over IPv6, as wg-quick counts them.
OVERHEAD = 80
USUAL_MTU = 1500
_TABLE_NAMES = (Path("/usr/share/iproute2/rt_tables"), Path("/etc/iproute2/rt_tables"))
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Scheme:
    """The numbers used for a default route through the tunnel.

    Attributes:
        mark: Mark of the datagrams to peers, and number of the table. Without a default route it is the file's
            FwMark, or 0.
        priorities: Pairs of an IP version and the priority of its first rule; its second rule has the next one.
    """

    mark: int
    priorities: tuple[tuple[int, int], ...] = ()


def default_versions(config: conf.Config) -> list[int]:
    """Return the IP versions that have a default route through the tunnel."""
    if config.table != conf.AUTO:
        return []
    return sorted({network.version for network in config.networks if network.prefixlen == 0})


def choose_scheme(config: conf.Config, before: Scheme | None = None) -> Scheme:
    """Return mark and priorities: those of `before` where it has them, else free ones."""
    versions = default_versions(config)
    asked = config.fwmark or 0
    if not versions:
        return Scheme(asked)
    known = dict(before.priorities) if before is not None else {}

    def look(netlink: IPRoute) -> Scheme:
        kept = before.mark if before is not None and before.priorities else 0
        mark = asked or kept or _free_table(netlink)
        return Scheme(mark, tuple((v, known.get(v) or _free_priority(netlink, v)) for v in versions))

    return with_netlink(look)


def plan(interface: str, config: conf.Config, scheme: Scheme) -> list[Step]:
    """Return the routes and rules, and the firewall and sysctl that rules need, in the order to apply them.

    The interface must be up and have its addresses.
    """
    steps: list[Step] = list(_routes(interface, config, scheme))
    for version, priority in scheme.priorities:
        own = tuple(str(address.ip) for address in config.addresses if address.version == version)
        steps.append(Firewall(interface, version, own, scheme.mark))
        if version == 4:
            # Makes the reverse-path filter use the answers' mark when it looks up the route back.
            steps.append(Sysctl(SRC_VALID_MARK, "1"))
        steps.append(Rule(version, priority, RT_TABLE_MAIN, 0))
        steps.append(Rule(version, priority + 1, scheme.mark, scheme.mark))
    return steps


def _routes(interface: str, config: conf.Config, scheme: Scheme) -> Iterator[Step]:
    if config.table == conf.OFF:
        return
    if isinstance(config.table, int):
        yield from (Route(interface, str(network), config.table) for network in config.networks)
        return
    # The kernel has already made a route to the network of each address.
    connected = {address.network for address in config.addresses}
    versions = dict(scheme.priorities)
    for network in config.networks:
        if network.prefixlen == 0 and network.version in versions:
            yield Route(interface, str(network), scheme.mark)
        elif not any(each.version == network.version and _within(network, each) for each in connected):
            yield Route(interface, str(network))


def _within(network: Network, other: Network) -> bool:
    return network.prefixlen >= other.prefixlen and network.network_address in other


def _free_table(netlink: IPRoute) -> int:
    taken = {route.get_attr("RTA_TABLE") or route["table"] for route in netlink.get_routes(family=socket.AF_INET)}
    taken |= {route.get_attr("RTA_TABLE") or route["table"] for route in netlink.get_routes(family=socket.AF_INET6)}
    table = FIRST_TABLE
    while table in taken:
        table += 1
    return table


def _free_priority(netlink: IPRoute, version: int) -> int:
    """Return the first of two priorities ahead of every rule except the local table's, as `ip rule add` does."""
    found = [rule.get_attr("FRA_PRIORITY") or 0 for rule in netlink.get_rules(family=_FAMILIES[version])]
    return max(1, min((each for each in found if each > 2), default=32766) - 2)


def find_mtu(config: conf.Config, endpoints: list[str]) -> int:
    """Return the file's MTU, or one that fits the links to the peers, else the default route's link.

    Args:
        config: The file.
        endpoints: Addresses of peers.
    """
    if config.mtu is not None:
        return config.mtu

    def look(netlink: IPRoute) -> int:
        found = [_mtu_towards(netlink, endpoint) for endpoint in endpoints]
        return max(found, default=0) or _mtu_towards(netlink, None) or USUAL_MTU

    least = 1280 if any(address.version == 6 for address in config.addresses) else conf.MTU_LEAST
    return min(max(with_netlink(look) - OVERHEAD, least), conf.MTU_MOST)


def _mtu_towards(netlink: IPRoute, destination: str | None) -> int:
    try:
        if destination is None:
            routes = netlink.get_default_routes()
        else:
            version = ip_address(destination.partition("%")[0]).version
            routes = netlink.route("get", dst=destination.partition("%")[0], family=_FAMILIES[version])
        for route in routes:
            metrics = route.get_attr("RTA_METRICS")
            if metrics is not None and (mtu := metrics.get_attr("RTAX_MTU")):
                return int(mtu)
            if (index := route.get_attr("RTA_OIF")) is not None:
                return int(netlink.get_links(index)[0].get_attr("IFLA_MTU") or 0)
    except (NetlinkError, OSError):
        pass  # there is no route now
    return 0


def table_names() -> dict[str, int]:
    """Return the numbers of routing tables by the names that iproute2 has for them."""
    names = dict(conf.TABLES)
    for path in _TABLE_NAMES:
        if path.is_file():
            for match in re.finditer(r"^\s*(\d+)\s+(\S+)", path.read_text(errors="replace"), re.MULTILINE):
                names[match[2]] = int(match[1])
    return names
