"""What two files of wireguard-go-vpp ask for: our memif, and what VPP needs for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from rustguard_py.model.counted import counted
from rustguard_py.model.errors import UsageError
from rustguard_py.vpp.conflicts import refuse_overlaps
from rustguard_py.vpp.settings import (
    NOWHERE,
    BridgeSettings,
    Families,
    InterfaceSettings,
    Places,
    Warn,
    read_bridge,
    read_interface,
)

Network = IPv4Network | IPv6Network
_MAC_BYTES = 6


@dataclass(frozen=True, slots=True)
class Bvi:
    """VPP's own interface in the bridge.

    Attributes:
        name: Of the interface, or empty if only its index is known.
        index: Its sw_if_index, or 0 if it has to be looked up by name.
    """

    name: str
    index: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is set up in VPP.

    Attributes:
        uid: Number of the memif and of its socket.
        socket: The control channel, at which we listen.
        secret: Of the memif, or none.
        mac, own_mac: MAC address of VPP's end, and of ours.
        bridge: The bridge domain that the memif joins.
        bvi: The interface that routes and neighbours are behind.
        routes: Of one address each.
        neighbours: For which answered addresses VPP gets a neighbour.
        static, no_fib_entry: Flags of these neighbours.
    """

    uid: int
    socket: Path
    mac: bytes
    own_mac: bytes
    bridge: int
    bvi: Bvi
    secret: bytes = field(default=b"", repr=False)
    routes: tuple[Network, ...] = ()
    neighbours: Families = NOWHERE
    static: bool = False
    no_fib_entry: bool = False

    @property
    def name(self) -> str:
        """The memif's name in VPP."""
        return f"memif{self.uid}/{self.uid}"


@dataclass(frozen=True, slots=True)
class Plan:
    """One start: both files, and what follows from them."""

    interface: InterfaceSettings
    bridge: BridgeSettings
    wanted: Wanted


def read(places: Places, name: str, warn: Warn) -> Plan:
    """Read an interface's two files, and compare them with those of other interfaces.

    Args:
        places: Where they are.
        name: Of the interface.
        warn: Told of each key that isn't known.

    Raises:
        UsageError: A file is missing or wrong.
        RefusedError: Two interfaces answer for the same address.
    """
    interface = read_interface(places.interface_file(name), warn)
    bridge = read_bridge(places.bridge_file(interface.bridge), warn)
    refuse_overlaps(interface, bridge)
    return Plan(interface, bridge, _wanted(interface, bridge, places.sockets / f"{name}.sock"))


def _wanted(interface: InterfaceSettings, bridge: BridgeSettings, socket: Path) -> Wanted:
    if len(bridge.own_prefix) != len(bridge.vpp_prefix):
        raise UsageError(
            f"{bridge.path}: WgIfMacaddrPrefix and VppIfMacaddrPrefix have different lengths.",
            "Write the same number of bytes for both.",
        )
    if bridge.own_prefix == bridge.vpp_prefix:
        raise UsageError(
            f"{bridge.path}: WgIfMacaddrPrefix and VppIfMacaddrPrefix are the same, so both ends would have the same "
            "address.",
            "Change one of them.",
        )
    mac, own_mac = (_mac(prefix, interface, bridge) for prefix in (bridge.vpp_prefix, bridge.own_prefix))
    for which, end in (("VPP's", mac), ("our", own_mac)):
        if bridge.gateway == end:
            raise UsageError(
                f"{bridge.path}: GatewayMacAddr is that of {which} end of the memif (its prefix and the uid).",
                "Write that of VPP's interface in the bridge. `vppctl show hardware-interfaces` lists it.",
            )
    neighbours, routes = bridge.neighbours, tuple(_routes(interface, bridge))
    installs = bridge.method != "none"
    if installs and (routes or neighbours != NOWHERE):
        _require_bvi(bridge)
    return Wanted(
        interface.uid,
        socket,
        mac,
        own_mac,
        interface.bridge,
        Bvi(bridge.bvi, bridge.bvi_index if bridge.method == "api" else 0),
        interface.secret,
        routes if installs else (),
        neighbours if installs else NOWHERE,
        bridge.static,
        bridge.no_fib_entry,
    )


def _routes(interface: InterfaceSettings, bridge: BridgeSettings) -> list[Network]:
    """Return the answered ranges that get a route: those of one address."""
    whole = [each for each in interface.answered if each.prefixlen == each.max_prefixlen]
    return [each for each in whole if each in bridge.routes]


def _mac(prefix: bytes, interface: InterfaceSettings, bridge: BridgeSettings) -> bytes:
    """Return a MAC address: the prefix, then the uid."""
    room = _MAC_BYTES - len(prefix)
    if interface.uid >= 256**room:
        raise UsageError(
            f"{interface.path}: uid {interface.uid} doesn't fit behind the prefixes in {bridge.path}: "
            f"they leave {counted(room, 'byte')} of a MAC address.",
            f"Choose a uid below {256**room}, or shorter prefixes.",
        )
    return prefix + interface.uid.to_bytes(room, "big")


def _require_bvi(bridge: BridgeSettings) -> None:
    if bridge.bvi or (bridge.method == "api" and bridge.bvi_index):
        return
    raise UsageError(
        f"{bridge.path} has no VppBridgeLoop_SwIfName, and VPP's routes and neighbours need an interface.",
        'Add a line like: "VppBridgeLoop_SwIfName": "loop42"',
    )
