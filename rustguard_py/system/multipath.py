"""Routes over several interfaces at once (ECMP), flow by flow, and the system settings that they need.

A flow is a protocol and the address and port at both ends. The kernel hashes these (layer 4), so the packets of a
flow stay on one interface and in order. All interfaces have the same addresses, so a reply is accepted on any.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rustguard_py.model.endpoint import InterfaceAddress, Network
from rustguard_py.model.errors import RustGuardError
from rustguard_py.system.interface import RT_TABLE_MAIN, SYSCTLS, Echo, explain, with_netlink
from rustguard_py.system.kernel_view import View, split
from rustguard_py.system.netlink_library import IPRoute, NetlinkError

log = logging.getLogger(__name__)

_NET_SYSCTLS = SYSCTLS / "net"
_HASH_POLICIES = ("ipv4/fib_multipath_hash_policy", "ipv6/fib_multipath_hash_policy")
_LAYER_4 = "1"
# Values of rp_filter (include/linux/inetdevice.h). The greater of the interface's value and that of `all` applies.
_STRICT, _LOOSE = "1", "2"
# The kernel accepts several IPv6 interfaces in one route only with a gateway. No packet is ever sent to this one,
# because a TUN interface has no neighbours.
_GATEWAY6 = "fe80::1"


class Multipath:
    """Routes over several interfaces, which are up and have the source addresses.

    Args:
        interfaces: The interfaces' names. A route refers to them by index.
        sources: Our address in each family.
        echo: Called with one line per change, as in `system.interface.set_up`.

    Attributes:
        notes: Refused changes that aren't needed, one sentence each.
    """

    def __init__(self, interfaces: Sequence[str], sources: Sequence[InterfaceAddress], echo: Echo) -> None:
        self.notes: list[str] = []
        self._interfaces = tuple(interfaces)
        self._sources = {source.version: str(source.ip) for source in sources}
        self._echo = echo
        self._routes: dict[Network, tuple[int, ...]] = {}
        self._before: dict[Path, str] = {}
        self._refused = False
        self._closed = False
        # `close` may be called while `apply` still runs in a thread.
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Have the kernel hash by layer 4, and accept packets on any of the interfaces.

        Settings that are already right stay as they are.
        """
        for name in _HASH_POLICIES:
            self._set(_NET_SYSCTLS / name, _LAYER_4)
        everywhere = _read(_NET_SYSCTLS / "ipv4/conf/all/rp_filter")
        for interface in self._interfaces:
            own = _NET_SYSCTLS / "ipv4/conf" / interface / "rp_filter"
            # While a route leaves an interface out, a strict filter would drop packets that still come in on it.
            if _STRICT in (everywhere, _read(own)) and _LOOSE not in (everywhere, _read(own)):
                self._set(own, _LOOSE)

    def differs(self, routes: Mapping[Network, tuple[int, ...]]) -> bool:
        """Return whether `apply` would change anything."""
        return self._routes != routes

    def apply(self, routes: Mapping[Network, tuple[int, ...]]) -> None:
        """Set exactly these routes. May be called in a thread.

        A refusal by the kernel (an interface is gone) is logged once, and the next call tries again.

        Args:
            routes: For each network, the indices of the interfaces to spread its flows over, at least one.
        """
        with self._lock:
            if self._closed:
                return
            try:
                with_netlink(lambda netlink: self._apply(netlink, routes))
            except RustGuardError as error:
                if not self._refused:
                    log.warning("%s", error.message)
                self._refused = True
            else:
                self._refused = False

    def holds(self, view: View) -> bool:
        """Return whether the kernel has the routes, as far as they lead to interfaces that are up."""
        up = {name: link.index for name, link in view.links.items() if link.up and name in self._interfaces}
        known = frozenset(up.values())
        for network, over in list(self._routes.items()):
            wanted = {up[name] for name in self._names(over) if name in up}
            found = view.routes.get((RT_TABLE_MAIN, split(str(network))), [])
            if wanted and not any(each & known == wanted for each in found):
                return False
        return True

    def restore(self) -> None:
        """Make the routes again after another program removed some.

        Raises:
            RustGuardError: The kernel refused.
        """
        with self._lock:
            if self._closed:
                return
            routes, self._routes = self._routes, {}
            try:
                with_netlink(lambda netlink: self._apply(netlink, routes))
            except BaseException:
                self._routes = routes
                raise

    def close(self) -> None:
        """Remove the routes and restore the settings. May be called twice."""
        with self._lock, suppress(RustGuardError):
            self._closed = True
            with_netlink(self._take_out)
        self._routes.clear()
        while self._before:
            path, value = self._before.popitem()
            # The setting of an interface that is gone went with it.
            with suppress(OSError):
                path.write_text(value)
                self._echo(f"[#] sysctl -w {_sysctl(path)}={value}")

    def _set(self, path: Path, value: str) -> None:
        before = _read(path)
        if before in (None, value):
            return
        try:
            path.write_text(value)
        except OSError as error:
            self.notes.append(f"{_sysctl(path)} can't be set to {value} ({error.strerror}): flows may not be spread.")
            return
        self._before[path] = str(before)
        self._echo(f"[#] sysctl -w {_sysctl(path)}={value}")

    def _apply(self, netlink: IPRoute, routes: Mapping[Network, tuple[int, ...]]) -> None:
        places = {name: index for index, name in socket.if_nameindex()}
        for network in [each for each in self._routes if each not in routes]:
            # A route that is missing was removed with its interfaces.
            with suppress(NetlinkError):
                self._do(netlink.route, "del", network, (), places)
            del self._routes[network]
        for network, over in routes.items():
            if self._routes.get(network) == over:
                continue
            try:
                self._do(netlink.route, "replace", network, over, places)
            except NetlinkError as error:
                raise explain(error, self._command("replace", network, over)) from error
            self._routes[network] = over

    def _take_out(self, netlink: IPRoute) -> None:
        self._apply(netlink, {})

    def _do(
        self,
        route: Callable[..., Any],
        verb: str,
        network: Network,
        over: Sequence[int],
        places: Mapping[str, int],
    ) -> None:
        what: dict[str, Any] = {
            "dst": str(network),
            "family": socket.AF_INET if network.version == 4 else socket.AF_INET6,
        }
        gateway = {"gateway": _GATEWAY6} if network.version == 6 else {}
        hops = [{"oif": places[name], **gateway} for name in self._names(over) if name in places]
        if over:
            what["prefsrc"] = self._sources[network.version]
        if len(hops) > 1:
            what["multipath"] = hops
        elif hops:
            what |= hops[0]
        self._echo(f"[#] {self._command(verb, network, over)}")
        route(verb, **what)

    def _command(self, verb: str, network: Network, over: Sequence[int]) -> str:
        via = f"via {_GATEWAY6} " if network.version == 6 else ""
        words = [f"ip -{network.version} route {verb.replace('del', 'delete')} {network}"]
        if over:
            words.append(f"src {self._sources[network.version]}")
        hop = "nexthop " if len(over) > 1 else ""
        return " ".join([*words, *(f"{hop}{via}dev {name}" for name in self._names(over))])

    def _names(self, over: Sequence[int]) -> list[str]:
        return [self._interfaces[place] for place in over]


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None  # no IPv6, or an old kernel


def _sysctl(path: Path) -> str:
    return ".".join(("net", *path.relative_to(_NET_SYSCTLS).parts))
