"""A tunnel's interface in the system: MTU, addresses and routes, and checks of what the machine has already.

Each change is echoed as the equivalent `ip` command, as wg-quick does, and can be undone.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from rustguard_py.model.endpoint import InterfaceAddress, Network
from rustguard_py.model.errors import NameTakenError, RefusedError, RustGuardError, UsageError
from rustguard_py.model.sudo import as_root
from rustguard_py.system import container
from rustguard_py.system.netlink_library import IPRoute, NetlinkError

Echo = Callable[[str], None]
Result = TypeVar("Result")

# IFNAMSIZ without the zero at the end.
INTERFACE_NAME_LIMIT = 15
TUN_DEVICE = Path("/dev/net/tun")
SYSCTLS = Path("/proc/sys")
IPV6_SYSCTLS = SYSCTLS / "net/ipv6"

# include/uapi/linux/rtnetlink.h, if_link.h and if_addr.h.
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
IFA_F_NODAD = 0x02
_RT_SCOPE_LINK = 253
_IN6_ADDR_GEN_MODE_NONE = 1
# linux/if.h
_IFF_UP = 0x1
# linux/sockios.h, linux/if_arp.h
_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER, _ARPHRD_LOOPBACK, _ARPHRD_NONE = 1, 772, 0xFFFE


@dataclass(frozen=True, slots=True)
class InterfaceSetup:
    """The settings for an existing interface.

    Attributes:
        name: The interface's name.
        mtu: Greatest size of an IP packet, bytes.
        addresses: With prefix lengths. The kernel adds the route to each address's network.
        routes: Further networks behind the interface.
        gso_max_segs: The most segments in one superpacket, or None to leave it as it is.
    """

    name: str
    mtu: int
    addresses: tuple[InterfaceAddress, ...] = ()
    routes: tuple[Network, ...] = ()
    gso_max_segs: int | None = None


@dataclass(frozen=True, slots=True)
class _Change:
    """One change: its `ip` command, and the call that does it."""

    command: str
    apply: Callable[[IPRoute], Any]


@dataclass(slots=True)
class Applied:
    """The changes made to an interface.

    Attributes:
        name: The interface's name.
        notes: Refused changes that aren't needed, one sentence each.
    """

    name: str
    notes: list[str] = field(default_factory=list)
    _undo: list[_Change] = field(default_factory=list)

    def undo(self, echo: Echo) -> None:
        """Undo all changes, last one first. What is already gone is skipped. May be called twice."""
        with suppress(RustGuardError):
            with_netlink(lambda netlink: self._take_back(netlink, echo))

    def _take_back(self, netlink: IPRoute, echo: Echo) -> None:
        while self._undo:
            change = self._undo.pop()
            # An interface that is gone took its addresses and routes with it.
            with suppress(NetlinkError):
                change.apply(netlink)
                echo(f"[#] {change.command}")

    def _do(self, netlink: IPRoute, change: _Change, undo: _Change | None, echo: Echo) -> None:
        echo(f"[#] {change.command}")
        try:
            change.apply(netlink)
        except NetlinkError as error:
            raise explain(error, change.command) from error
        if undo is not None:
            self._undo.append(undo)


def set_up(layout: InterfaceSetup, echo: Echo) -> Applied:
    """Return an existing interface its MTU, addresses and routes, and bring it up.

    Args:
        layout: The settings.
        echo: Called with one line per change, `[#] ip …`.

    Returns:
        The changes, to be undone.

    Raises:
        RefusedError: No permission to change interfaces.
        RustGuardError: The kernel refused a change. Earlier changes were undone.
    """
    applied = Applied(layout.name)
    try:
        with_netlink(lambda netlink: _apply(netlink, layout, applied, echo))
    except BaseException:
        applied.undo(echo)
        raise
    return applied


def rename(index: int, name: str, echo: Echo) -> None:
    """Name an interface again as it was. It stays up if it is, or stays down.

    Args:
        index: Its number.
        name: The name.
        echo: Called with one line per change.

    Raises:
        RefusedError: No permission to change interfaces.
        RustGuardError: Another interface has the name, or the kernel refused.
    """

    def work(netlink: IPRoute) -> None:
        now = netlink.get_links(index)[0]
        called, up = now.get_attr("IFLA_IFNAME"), bool(now["flags"] & _IFF_UP)
        command = f"ip link set dev {called} name {name}"
        echo(f"[#] {command}")
        try:
            try:
                netlink.link("set", index=index, ifname=name)
            except NetlinkError as error:
                # Before Linux 6.2, one that is up keeps its name.
                if error.code != errno.EBUSY or not up:
                    raise
                netlink.link("set", index=index, state="down")
                try:
                    netlink.link("set", index=index, ifname=name)
                finally:
                    netlink.link("set", index=index, state="up")
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                raise NameTakenError(
                    f"`{command}` was refused: another interface has that name.", "Rename or remove the other one."
                ) from error
            raise explain(error, command) from error

    with_netlink(work)


def with_netlink(work: Callable[[IPRoute], Result]) -> Result:
    """Call `work` with a socket to the kernel's routing (rtnetlink(7)) and return its result."""

    # pyroute2 runs its own event loop, which can't run inside another, so each call gets a thread.
    def run() -> Result:
        with IPRoute() as netlink:
            return work(netlink)

    with ThreadPoolExecutor(1, "netlink") as executor:
        return executor.submit(run).result()


def explain(error: NetlinkError, command: str) -> RustGuardError:
    """Return the kernel's refusal of an `ip` command as an error for people."""
    code = int(error.code)
    if code == errno.EPERM:
        message = f"`{command}` was refused: changing interfaces needs root or the capability CAP_NET_ADMIN."
        return RefusedError(message, container.capability_fix())
    if code in {errno.EACCES, errno.EOPNOTSUPP} and " -6 " in command:
        message = f"`{command}` was refused: IPv6 is switched off on this machine or interface."
        return RustGuardError(message, f"Turn it on: `{as_root('sysctl net.ipv6.conf.all.disable_ipv6=0')}`.")
    if code == errno.EEXIST:
        message = f"`{command}` was refused: it's there already, likely another VPN's or a leftover."
        return RustGuardError(message, "Find it with `ip address` and `ip route`, then choose another address.")
    reason = errno.errorcode.get(code, str(code))
    return RustGuardError(
        f"`{command}` was refused by the kernel ({reason}).", "Try that command as root to see more."
    )


def check_interface_name(name: str) -> None:
    """Refuse a name that the kernel can't give an interface.

    Raises:
        UsageError: It is empty, longer than INTERFACE_NAME_LIMIT bytes, `.`, `..`, `all` or `default`, or has a blank
            or one of `/:%`, or begins with `-`. The kernel takes a `%` for the place of a number; `ip` and other
            programs take a `-` for an option.
    """
    fits = 0 < len(name.encode()) <= INTERFACE_NAME_LIMIT
    # The characters of dev_valid_name (net/core/dev.c), and those that can't be printed.
    printable = name.isprintable() and not any(each in "/:%" or each.isspace() for each in name)
    # The kernel has these two in /proc/sys/net, for settings of every interface.
    if not fits or not printable or name.startswith("-") or name in (".", "..", "all", "default"):
        raise UsageError(
            f"{name!r} can't name an interface.",
            f"Use a name of 1 to {INTERFACE_NAME_LIMIT} bytes, without blanks and without any of / : %, that doesn't "
            "begin with -.",
        )


def interface_names() -> set[str]:
    """Return the names of all interfaces in this network namespace."""
    return {name for _, name in socket.if_nameindex()}


def interface_exists(name: str) -> bool:
    """Return whether an interface has this name."""
    return name in interface_names()


def free_interface_name(prefix: str = "rg", taken: Collection[str] = ()) -> str:
    """Return the first of `prefix0`, `prefix1` and so on that no interface has, and that isn't taken otherwise."""
    used = {*interface_names(), *taken}
    return next(name for name in (f"{prefix}{number}" for number in count()) if name not in used)


def why_no_ipv6() -> str | None:
    """Return in one sentence why this machine has no IPv6, or None if it has."""
    if not IPV6_SYSCTLS.is_dir():
        return "This machine's kernel runs without IPv6."
    # A new interface takes `default`. Writing `all` sets every existing one.
    for scope in ("all", "default"):
        path = IPV6_SYSCTLS / "conf" / scope / "disable_ipv6"
        with suppress(OSError):
            if path.read_text().strip() == "1":
                return f"IPv6 is switched off on this machine (net.ipv6.conf.{scope}.disable_ipv6 is 1)."
    return None


def require_ethernet(name: str) -> None:
    """Check that an interface exists and is an Ethernet interface.

    Raises:
        RefusedError: It isn't.
    """
    # An ifreq of linux/if.h: 16 bytes of name, then for SIOCGIFHWADDR a sockaddr with the kind of link.
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, struct.pack("16s24x", name.encode()[:15]))
    except OSError as error:
        raise RefusedError(f"There is no interface {name!r}.", "List the interfaces with `ip link`.") from error
    if struct.unpack_from("H", answer, 16)[0] != _ARPHRD_ETHER:
        raise RefusedError(
            f"{name} is {_what_else(answer)}, not an Ethernet interface: AF_XDP can't be used on it.",
            "Name the interface that the peers' datagrams come in on (`ip route get` with a peer's address), "
            "or leave out --xdp.",
        )


def _what_else(answer: bytes) -> str:
    kinds = {_ARPHRD_LOOPBACK: "the loopback of this machine", _ARPHRD_NONE: "a tunnel"}
    return kinds.get(struct.unpack_from("H", answer, 16)[0], "of another kind")


def require_tun() -> None:
    """Check that a TUN interface can be made here.

    Raises:
        RefusedError: `/dev/net/tun` may not be opened.
        RustGuardError: It's missing.
    """
    try:
        with TUN_DEVICE.open("r+b", buffering=0):
            return
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{TUN_DEVICE} is missing, and tunnels are made of it."
        raise RustGuardError(message, container.device_fix()) from error
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            message = f"{TUN_DEVICE} may not be opened: {error.strerror}."
            raise RefusedError(message, container.device_fix(refused=True)) from error
        # ENODEV, ENXIO: the device node exists, its kernel module isn't loaded.
        likely = ": its kernel module is likely not loaded" if error.errno in {errno.ENODEV, errno.ENXIO} else ""
        message = f"{TUN_DEVICE} can't be opened ({error.strerror}){likely}."
        raise RustGuardError(message, container.device_fix()) from error


def _apply(netlink: IPRoute, layout: InterfaceSetup, applied: Applied, echo: Echo) -> None:
    name = layout.name
    found = netlink.link_lookup(ifname=name)
    if not found:
        raise RustGuardError(f"There is no interface {name}; something else may have removed it.", "Start again.")
    index = found[0]
    quiet = _keep_quiet(netlink, index, name, echo)
    if layout.gso_max_segs is not None:
        _limit_segments(netlink, index, layout.gso_max_segs, applied, echo)
    old_mtu = netlink.get_links(index)[0].get_attr("IFLA_MTU")
    applied._do(
        netlink,
        _Change(
            f"ip link set mtu {layout.mtu} up dev {name}",
            lambda n: n.link("set", index=index, mtu=layout.mtu, state="up"),
        ),
        _Change(
            f"ip link set mtu {old_mtu} down dev {name}",
            lambda n: n.link("set", index=index, mtu=old_mtu, state="down"),
        ),
        echo,
    )
    # With an MTU below 1,280 bytes it had no IPv6. Now it has, and a link-local address.
    if not quiet and _keep_quiet(netlink, index, name, echo):
        for made in netlink.get_addr(index=index, family=socket.AF_INET6, scope=_RT_SCOPE_LINK):
            netlink.addr("del", index=index, address=made.get_attr("IFA_ADDRESS"), prefixlen=made["prefixlen"])
    for address in layout.addresses:
        applied._do(netlink, *_address_changes(index, name, address), echo)
    for route in layout.routes:
        applied._do(netlink, *_route_changes(index, name, route), echo)


def _keep_quiet(netlink: IPRoute, index: int, name: str, echo: Echo) -> bool:
    """Keep the kernel from sending by itself; return False if it refuses because the interface has no IPv6."""
    # As in the kernel's WireGuard: without a link-local address, no router solicitation starts a handshake.
    command = f"ip link set dev {name} addrgenmode none"
    inet6 = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _IN6_ADDR_GEN_MODE_NONE)]}
    with suppress(NetlinkError):
        netlink.link("set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", inet6)]})
        echo(f"[#] {command}")
        return True
    return False


def _limit_segments(netlink: IPRoute, index: int, segments: int, applied: Applied, echo: Echo) -> None:
    command = f"ip link set dev {applied.name} gso_max_segs {segments}"
    try:
        netlink.link("set", index=index, gso_max_segs=segments)
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise explain(error, command) from error
        applied.notes.append(f"The kernel refused `{command}`; superpackets may leave a short last datagram.")
    else:
        echo(f"[#] {command}")


def _address_changes(index: int, name: str, address: InterfaceAddress) -> tuple[_Change, _Change]:
    what: dict[str, Any] = {
        "index": index,
        "address": str(address.ip),
        "prefixlen": address.network.prefixlen,
    }
    # Nobody else on this link can have the address, and until DAD ends nothing can be bound to it.
    nodad = {"flags": IFA_F_NODAD} if address.version == 6 else {}
    suffix = " nodad" if nodad else ""
    return (
        _Change(
            f"ip -{address.version} address add {address} dev {name}{suffix}",
            lambda n: n.addr("add", **what, **nodad),
        ),
        _Change(f"ip -{address.version} address delete {address} dev {name}", lambda n: n.addr("del", **what)),
    )


def _route_changes(index: int, name: str, network: Network) -> tuple[_Change, _Change]:
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    what = {"dst": str(network), "oif": index, "family": family}
    return (
        _Change(f"ip -{network.version} route add {network} dev {name}", lambda n: n.route("add", **what)),
        _Change(f"ip -{network.version} route delete {network} dev {name}", lambda n: n.route("del", **what)),
    )
