"""wireguard-go-vpp's files `if.NAME.json` and `gw.BRIDGE.json`, and its environment.

Its README is the reference for each key (github.com/KusakabeShi/wireguard-go-vpp).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from rustguard_py.model.errors import UsageError
from rustguard_py.vpp import values
from rustguard_py.vpp.json_file import Entry, read_object

SOCKETS, CONFIGS, API = "VPP_MEMIF_SOCKET_DIR", "VPP_MEMIF_CONFIG_DIR", "VPP_API_SOCKET_PATH"
LINK_LOCAL = IPv6Network("fe80::/10")
# VPP's ~0.
_NO_NUMBER = (1 << 32) - 1

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are, from the environment.

    Attributes:
        sockets: Directory of the control channels.
        configs: Directory of the files.
        api: Socket of VPP's binary API.
    """

    sockets: Path
    configs: Path
    api: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Places:
        """Return the places. An empty variable is the same as none."""
        return cls(
            Path(environment.get(SOCKETS) or "/var/run/wggo-vpp").absolute(),
            Path(environment.get(CONFIGS) or "/etc/wggo-vpp").absolute(),
            Path(environment.get(API) or "/run/vpp/api.sock").absolute(),
        )

    def interface_file(self, name: str) -> Path:
        """Return the path of an interface's file."""
        return self.configs / f"if.{name}.json"

    def bridge_file(self, bridge: int) -> Path:
        """Return the path of the file that all interfaces of a bridge share."""
        return self.configs / f"gw.{bridge}.json"

    def why_this_mode(self, name: str, environment: Mapping[str, str] = os.environ) -> str:
        """Return what asks for wireguard-go-vpp's ways, or an empty string if nothing does."""
        for variable in (SOCKETS, CONFIGS):
            if environment.get(variable):
                return f"{variable} is set"
        return f"{self.interface_file(name)} is there" if self.interface_file(name).exists() else ""


@dataclass(frozen=True, slots=True)
class InterfaceSettings:
    """`if.NAME.json`.

    Attributes:
        path: The file.
        uid: Number of the memif and of its socket in VPP.
        secret: Which both ends of the memif need, or none.
        bridge: The bridge domain in VPP.
        answered4, answered6: Ranges for which ARP requests and neighbour solicitations are answered.
        learnt4, learnt6: Ranges whose MAC addresses are asked for and learnt.
    """

    path: Path
    uid: int
    bridge: int
    secret: bytes = field(default=b"", repr=False)
    answered4: tuple[IPv4Network, ...] = ()
    answered6: tuple[IPv6Network, ...] = ()
    learnt4: tuple[IPv4Network, ...] = ()
    learnt6: tuple[IPv6Network, ...] = ()

    @property
    def answered(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """All ranges for which we answer."""
        return (*self.answered4, *self.answered6)

    @property
    def learnt(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """All ranges that are learnt."""
        return (*self.learnt4, *self.learnt6)


@dataclass(frozen=True, slots=True)
class Families:
    """For which addresses something is done."""

    ipv4: bool = False
    ipv6: bool = False
    link_local: bool = False

    def __contains__(self, network: object) -> bool:
        """Return whether it is done for a network."""
        if isinstance(network, IPv4Network):
            return self.ipv4
        assert isinstance(network, IPv6Network)  # noqa: S101
        return self.link_local if network.subnet_of(LINK_LOCAL) else self.ipv6


NOWHERE = Families()


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """`gw.BRIDGE.json`.

    Attributes:
        path: The file.
        gateway: MAC address of VPP's interface in the bridge (its BVI).
        own_prefix, vpp_prefix: What the MAC addresses of our end and of VPP's begin with.
        method: How routes and neighbours are set up in VPP: none, api, vppctl.
        check, check_paths: Whether answered ranges of other files may not overlap ours, and where those files are.
        vppctl: The program.
        bvi, bvi_index: Name and index of VPP's interface in the bridge. Index 0: look it up by name.
        neighbours, static, no_fib_entry: For which answered addresses VPP gets a neighbour, and its flags.
        routes: For which answered addresses VPP gets a route.
    """

    path: Path
    gateway: bytes
    own_prefix: bytes
    vpp_prefix: bytes
    method: str = "none"
    check: bool = False
    check_paths: tuple[Path, ...] = ()
    vppctl: str = "vppctl"
    bvi: str = ""
    bvi_index: int = 0
    neighbours: Families = NOWHERE
    static: bool = False
    no_fib_entry: bool = False
    routes: Families = NOWHERE


_INTERFACE: dict[str, values.Taker] = {
    "uid": values.number,
    "secret": values.secret,
    "IPv4ArpResponseRanges": values.ranges(IPv4Network, "172.22.77.33/32"),
    "IPv4ArpLearningRanges": values.ranges(IPv4Network, "172.22.77.0/24"),
    "IPv6NdpNeighAdvRanges": values.ranges(IPv6Network, "fd28:cb8f:4c92::33/128"),
    "IPv6NdpLearningRanges": values.ranges(IPv6Network, "fd28:cb8f:4c92::/64"),
    "VppBridgeID": values.number,
}
_INTERFACE_FIELDS = {
    "uid": "uid",
    "secret": "secret",
    "IPv4ArpResponseRanges": "answered4",
    "IPv4ArpLearningRanges": "learnt4",
    "IPv6NdpNeighAdvRanges": "answered6",
    "IPv6NdpLearningRanges": "learnt6",
    "VppBridgeID": "bridge",
}
_LOOP = "VppBridgeLoop_"
_BRIDGE_FIELDS = {
    "GatewayMacAddr": "gateway",
    "WgIfMacaddrPrefix": "own_prefix",
    "VppIfMacaddrPrefix": "vpp_prefix",
    f"{_LOOP}InstallMethod": "method",
    f"{_LOOP}CheckRouteConflict": "check",
    f"{_LOOP}CheckRouteConfigPaths": "check_paths",
    # The README's name; the program itself read the other.
    f"{_LOOP}VppctlBin": "vppctl",
    f"{_LOOP}VppctlBinary": "vppctl",
    f"{_LOOP}SwIfName": "bvi",
    f"{_LOOP}SwIfIndex": "bvi_index",
    f"{_LOOP}InstallNeighbor": "neighbours",
    f"{_LOOP}InstallRoutes": "routes",
}
_FLAGS = f"{_LOOP}InstallNeighbor_Flag"


def read_interface(path: Path, warn: Warn) -> InterfaceSettings:
    """Read `if.NAME.json`.

    Raises:
        UsageError: It can't be read, a value has another type, or a key is missing.
    """
    found = values.take(read_object(path), _INTERFACE, warn)
    _require(path, found, {"uid": '"uid": 3', "VppBridgeID": '"VppBridgeID": 4242'})
    if found["uid"] in (0, _NO_NUMBER):
        raise UsageError(
            f"{path}: uid can't be {found['uid']}: VPP has a socket 0 of its own, and {_NO_NUMBER} stands for none.",
            'Choose another number: "uid": 3',
        )
    return InterfaceSettings(path, **_renamed(found, _INTERFACE_FIELDS))  # type: ignore[arg-type]


def read_bridge(path: Path, warn: Warn) -> BridgeSettings:
    """Read `gw.BRIDGE.json`.

    Raises:
        UsageError: It can't be read, a value has another type, or a key is missing.
    """
    families = partial(_families, warn)
    known: dict[str, values.Taker] = {
        "GatewayMacAddr": values.mac,
        "WgIfMacaddrPrefix": values.mac_prefix,
        "VppIfMacaddrPrefix": values.mac_prefix,
        f"{_LOOP}InstallMethod": values.one_of("none", "api", "vppctl"),
        f"{_LOOP}CheckRouteConflict": values.switch,
        f"{_LOOP}CheckRouteConfigPaths": values.paths,
        f"{_LOOP}VppctlBin": values.text,
        f"{_LOOP}VppctlBinary": values.text,
        f"{_LOOP}SwIfName": _interface_name,
        f"{_LOOP}SwIfIndex": values.number,
        f"{_LOOP}InstallNeighbor": families,
        _FLAGS: partial(_object, {"static": values.switch, "no-fib-entry": values.switch}, warn),
        f"{_LOOP}InstallRoutes": families,
    }
    found = values.take(read_object(path), known, warn)
    _require(
        path,
        found,
        {
            "GatewayMacAddr": '"GatewayMacAddr": "42:42:42:42:42:42"',
            "WgIfMacaddrPrefix": '"WgIfMacaddrPrefix": "98:D2:93"',
            "VppIfMacaddrPrefix": '"VppIfMacaddrPrefix": "A4:77:33"',
        },
    )
    flags = found.pop(_FLAGS, {})
    assert isinstance(flags, dict)  # noqa: S101
    renamed = _renamed(found, _BRIDGE_FIELDS)
    renamed["vppctl"] = renamed.get("vppctl") or "vppctl"
    return BridgeSettings(
        path,
        static=flags.get("static", False),
        no_fib_entry=flags.get("no-fib-entry", False),
        **renamed,  # type: ignore[arg-type]
    )


def _require(path: Path, found: Mapping[str, object], examples: Mapping[str, str]) -> None:
    for name, example in examples.items():
        if name not in found:
            raise UsageError(f"{path} has no {name}.", f"Add a line like: {example}")


def _renamed(found: Mapping[str, object], fields: Mapping[str, str]) -> dict[str, object]:
    return {fields[name]: value for name, value in found.items()}


def _interface_name(entry: Entry) -> str:
    name = values.text(entry)
    if any(character.isspace() for character in name) or name.startswith("-"):
        entry.refuse("can't be the name of an interface of VPP", "`vppctl show interface` lists them.")
    return name


def _object(known: Mapping[str, values.Taker], warn: Warn, entry: Entry) -> dict[str, object]:
    if not isinstance(entry.value, tuple):
        entry.refuse("must be an object", f'Write it like: "{entry.key}": {{"{next(iter(known))}": true}}')
    return values.take(entry.value, known, warn, entry.key)


def _families(warn: Warn, entry: Entry) -> Families:
    names = {"IPv4": "ipv4", "IPv6": "ipv6", "IPv6 link-local": "link_local"}
    found = _object(dict.fromkeys(names, values.switch), warn, entry)
    return Families(**{names[name]: bool(value) for name, value in found.items()})
