"""Messages of the kernel's WireGuard: changes to peers encoded, readings decoded.

pyroute2's `wgmsg` does the encoding; include/uapi/linux/wireguard.h defines the content.
"""

from __future__ import annotations

import socket
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from rustguard_py.model.endpoint import Endpoint, Network
from rustguard_py.model.keys import KEY_SIZE, NO_PRESHARED_KEY
from rustguard_py.system.netlink_library import uapi, wgmsg

# Bytes of peers in one message: well below the limit of a netlink attribute (64 KiB).
MESSAGE_ROOM = 16384
# The most that a peer and one of its networks take, encoded.
_PEER_SIZE = 160
_NETWORK_SIZE = 48


@dataclass(frozen=True, slots=True)
class KernelPeerChange:
    """A change to one peer. None leaves a setting as it is.

    Attributes:
        public_key: 32 bytes.
        preshared_key: 32 bytes, `NO_PRESHARED_KEY` for none.
        endpoint: Where to send.
        keepalive: Seconds, 0 for none. Changing it from 0 sends one at once if the interface is up.
        allowed_ips: All networks of the peer. A network that another peer has moves to this one.
        remove: Remove the peer and ignore the other settings.
        update_only: Do nothing if there is no such peer.
    """

    public_key: bytes
    preshared_key: bytes | None = field(default=None, repr=False)
    endpoint: Endpoint | None = None
    keepalive: int | None = None
    allowed_ips: Sequence[Network] | None = None
    remove: bool = False
    update_only: bool = False


@dataclass(slots=True)
class KernelPeerState:
    """The kernel's state of one peer.

    Attributes:
        public_key: 32 bytes.
        preshared_key: 32 bytes, `NO_PRESHARED_KEY` for none.
        last_handshake: Unix time in seconds, or None.
        keepalive: Seconds, 0 for none.
        allowed_ips: Empty unless requested.
    """

    public_key: bytes
    preshared_key: bytes = field(repr=False)
    endpoint: Endpoint | None
    last_handshake: float | None
    keepalive: int
    rx_bytes: int
    tx_bytes: int
    allowed_ips: list[Network] = field(default_factory=list)


@dataclass(slots=True)
class KernelInterfaceState:
    """The kernel's state of an interface.

    Attributes:
        public_key: 32 bytes, zeros while no key is set.
        private_key: 32 bytes, or None while no key is set.
        port: UDP.
        fwmark: 0 for none.
        peers: By public key.
    """

    public_key: bytes = bytes(KEY_SIZE)
    private_key: bytes | None = field(default=None, repr=False)
    port: int = 0
    fwmark: int = 0
    peers: dict[bytes, KernelPeerState] = field(default_factory=dict)


def batches(changes: Iterable[KernelPeerChange]) -> Iterator[list[dict[str, Any]]]:
    """Encode changes for `wgmsg`, one list per message. A peer with many networks continues in the next message."""
    batch: list[dict[str, Any]] = []
    room = MESSAGE_ROOM
    for change in changes:
        networks = list(change.allowed_ips or ())
        first = True
        while first or networks:
            if room < _PEER_SIZE + _NETWORK_SIZE:
                yield batch
                batch, room = [], MESSAGE_ROOM
            fitting = (room - _PEER_SIZE) // _NETWORK_SIZE
            part, networks = networks[:fitting], networks[fitting:]
            batch.append(_peer(change, part) if first else _more(change, part))
            room -= _PEER_SIZE + _NETWORK_SIZE * len(part)
            first = False
    if batch:
        yield batch


def _peer(change: KernelPeerChange, networks: Sequence[Network]) -> dict[str, Any]:
    attributes: list[list[Any]] = [["WGPEER_A_PUBLIC_KEY", b64encode(change.public_key)]]
    if change.remove:
        attributes.append(["WGPEER_A_FLAGS", uapi.WGPEER_F_REMOVE_ME])
        return {"attrs": attributes}
    flags = uapi.WGPEER_F_UPDATE_ONLY if change.update_only else 0
    if change.allowed_ips is not None:
        flags |= uapi.WGPEER_F_REPLACE_ALLOWEDIPS
    attributes.append(["WGPEER_A_FLAGS", flags])
    if change.preshared_key is not None:
        attributes.append(["WGPEER_A_PRESHARED_KEY", b64encode(change.preshared_key)])
    if change.endpoint is not None:
        attributes.append(["WGPEER_A_ENDPOINT", _endpoint_fields(change.endpoint)])
    if change.keepalive is not None:
        attributes.append(["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", change.keepalive])
    if networks:
        attributes.append(["WGPEER_A_ALLOWEDIPS", [_network_fields(each) for each in networks]])
    return {"attrs": attributes}


def _more(change: KernelPeerChange, networks: Sequence[Network]) -> dict[str, Any]:
    """Return an attribute that adds networks to a peer."""
    return {
        "attrs": [
            ["WGPEER_A_PUBLIC_KEY", b64encode(change.public_key)],
            ["WGPEER_A_FLAGS", uapi.WGPEER_F_UPDATE_ONLY],
            ["WGPEER_A_ALLOWEDIPS", [_network_fields(each) for each in networks]],
        ]
    }


def _network_fields(network: Network) -> dict[str, Any]:
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return {
        "attrs": [
            ["WGALLOWEDIP_A_FAMILY", int(family)],
            ["WGALLOWEDIP_A_IPADDR", network.network_address.packed],
            ["WGALLOWEDIP_A_CIDR_MASK", network.prefixlen],
        ]
    }


def _endpoint_fields(endpoint: Endpoint) -> dict[str, Any]:
    fields: dict[str, Any] = {"addr": endpoint[0], "port": endpoint[1]}
    if len(endpoint) == 4:
        # pyroute2 writes both in network order, but the kernel expects the scope in the machine's order.
        fields |= {"flowinfo": endpoint[2], "scope_id": socket.htonl(endpoint[3])}
    return fields


def device_request(command: int, index: int, attributes: list[list[Any]]) -> Any:
    """Return a message for the interface of this number, to be encoded by `WireGuardChannel`."""
    message = wgmsg()
    message["cmd"] = command
    message["version"] = uapi.WG_GENL_VERSION
    message["attrs"] = [["WGDEVICE_A_IFINDEX", index], *attributes]
    return message


def parse_dump(messages: Iterable[Any], *, allowed_ips: bool) -> KernelInterfaceState:
    """Return the state in the messages of a dump. A peer with many networks continues in the next message."""
    state = KernelInterfaceState()
    for message in messages:
        if (key := message.get_attr("WGDEVICE_A_PUBLIC_KEY")) is not None:
            state.public_key = b64decode(key)
        if (key := message.get_attr("WGDEVICE_A_PRIVATE_KEY")) is not None:
            state.private_key = b64decode(key)
        state.port = message.get_attr("WGDEVICE_A_LISTEN_PORT") or state.port
        state.fwmark = message.get_attr("WGDEVICE_A_FWMARK") or state.fwmark
        for part in message.get_attr("WGDEVICE_A_PEERS") or ():
            public_key = b64decode(part.get_attr("WGPEER_A_PUBLIC_KEY"))
            peer = state.peers.get(public_key)
            if peer is None:
                peer = state.peers[public_key] = _peer_state(public_key, part)
            if allowed_ips:
                networks = part.get_attr("WGPEER_A_ALLOWEDIPS") or ()
                peer.allowed_ips += [ip_network(each["addr"]) for each in networks]
    return state


def _peer_state(public_key: bytes, part: Any) -> KernelPeerState:
    handshake = part.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME") or {"tv_sec": 0, "tv_nsec": 0}
    preshared = part.get_attr("WGPEER_A_PRESHARED_KEY")
    return KernelPeerState(
        public_key,
        b64decode(preshared) if preshared is not None else NO_PRESHARED_KEY,
        _endpoint(part.get_attr("WGPEER_A_ENDPOINT")),
        handshake["tv_sec"] + handshake["tv_nsec"] / 1e9 if handshake["tv_sec"] else None,
        part.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
        part.get_attr("WGPEER_A_RX_BYTES") or 0,
        part.get_attr("WGPEER_A_TX_BYTES") or 0,
    )


def _endpoint(fields: Any) -> Endpoint | None:
    if fields is None:
        return None
    if fields["family"] == socket.AF_INET:
        return fields["addr"], fields["port"]
    return fields["addr"], fields["port"], fields["flowinfo"], socket.ntohl(fields["scope_id"])
