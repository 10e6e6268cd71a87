"""The kernel's WireGuard: interfaces made, found and removed, keys and peers set, statistics read. Netlink only.

Messages are encoded and decoded by pyroute2's `wgmsg` (the kernel's include/uapi/linux/wireguard.h says what they
hold). They are exchanged here, on a plain socket: commands come from within a running event loop, where pyroute2's
own sockets can't be used, and each takes the kernel a fraction of a millisecond.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import CTRL_CMD_GETFAMILY, GENL_ID_CTRL, ctrlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import wireguard as uapi
from pyroute2.netlink.generic.wireguard import wgmsg

from rustguard_py.kernel.counters import Counters, decode
from rustguard_py.model.endpoint import Endpoint, Network
from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.model.keys import KEY_SIZE, NO_PRESHARED_KEY
from rustguard_py.system.interface import with_netlink

KIND = "wireguard"
# Room for the peers of one message, bytes: well below what a netlink attribute can hold (64 KiB).
MESSAGE_ROOM = 16384
# What a peer and one of its networks take at most, encoded.
_PEER_SIZE = 160
_NETWORK_SIZE = 48
# linux/netlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x4, 0x300, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_RECEIVE_SIZE = 1 << 18
# linux/if.h: IFALIASZ, less the zero at its end; in ASCII characters.
_ALIAS_LENGTH = 255
# A dump that something changed meanwhile is read again; the last one is taken as it is.
_DUMP_TRIES = 4


@dataclass(frozen=True, slots=True)
class KernelPeerChange:
    """What to change of a peer; None leaves a thing as it is.

    Attributes:
        public_key: 32 bytes.
        preshared_key: 32 bytes, zeros for none.
        endpoint: Where to send.
        keepalive: Seconds, 0 for none. Turned on from 0 while the interface is up, one is sent at once.
        allowed_ips: Exactly these; each moves here from other peers.
        remove: Forget it; all else is ignored.
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
    """What the kernel knows of a peer.

    Attributes:
        public_key: 32 bytes.
        preshared_key: 32 bytes, zeros for none.
        last_handshake: Unix time in seconds, or None.
        keepalive: Seconds, 0 for none.
        allowed_ips: Empty unless they were asked for.
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
    """What the kernel knows of an interface.

    Attributes:
        public_key: 32 bytes, zeros while no key is set.
        port: UDP.
        fwmark: 0 for none.
        peers: By public key.
    """

    public_key: bytes = bytes(KEY_SIZE)
    port: int = 0
    fwmark: int = 0
    peers: dict[bytes, KernelPeerState] = field(default_factory=dict)


def why_absent() -> str | None:
    """Say in one sentence why this machine's kernel can't be used, or None where it can. Loads its module."""
    try:
        _Channel().close()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return f"This kernel ({os.uname().release}) has no WireGuard."
        return f"This kernel's WireGuard can't be asked: {error.strerror}."
    return None


class KernelInterface:
    """A WireGuard interface, made or found. Its number stands for it: it may be renamed.

    Args:
        index: Its number.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._channel = _Channel()
        self._removed = False

    @classmethod
    def make(cls, name: str, alias: str) -> KernelInterface:
        """Make an interface; it is down, and has no key.

        Args:
            name: 1 to 15 bytes.
            alias: What people, and we, recognise it by (`ip link` shows it).

        Raises:
            RefusedError: We may not, or the name is taken.
        """

        def add(netlink: IPRoute) -> int:
            netlink.link("add", ifname=name, kind=KIND)
            index: int = netlink.link_lookup(ifname=name)[0]
            try:
                netlink.link("set", index=index, ifalias=alias[:_ALIAS_LENGTH])
            except BaseException:
                netlink.link("del", index=index)
                raise
            return index

        try:
            index = with_netlink(add)
        except NetlinkError as error:
            raise _refused(name, int(error.code)) from error
        try:
            return cls(index)
        except BaseException:
            _remove(index)
            raise

    def remove(self) -> None:
        """Remove it; that it is gone is no error. May be called twice."""
        if not self._removed:
            self._removed = True
            _remove(self.index)
            self._channel.close()

    def exists(self) -> bool:
        """Say whether it is still there, in this network namespace."""
        try:
            socket.if_indextoname(self.index)
        except OSError:
            return False
        return True

    def configure(
        self, *, private_key: bytes | None = None, port: int | None = None, fwmark: int | None = None
    ) -> None:
        """Set what isn't None.

        Args:
            private_key: 32 bytes.
            port: UDP, 0 for any.
            fwmark: Of the packets that it sends, 0 for none.

        Raises:
            RustGuardError: The kernel refused it.
        """
        attributes: list[list[Any]] = []
        if private_key is not None:
            attributes.append(["WGDEVICE_A_PRIVATE_KEY", b64encode(private_key)])
        if port is not None:
            attributes.append(["WGDEVICE_A_LISTEN_PORT", port])
        if fwmark is not None:
            attributes.append(["WGDEVICE_A_FWMARK", fwmark])
        self._set(attributes)

    def set_peers(self, changes: Iterable[KernelPeerChange]) -> None:
        """Change peers, in order, in as many messages as it takes.

        Raises:
            RustGuardError: The kernel refused one; those before it are changed.
        """
        for peers in batches(changes):
            self._set([["WGDEVICE_A_PEERS", peers]])

    def read(self, *, allowed_ips: bool = False) -> KernelInterfaceState:
        """Read all, with the peers' networks if they are wanted: they take most of the time.

        Raises:
            RustGuardError: It is gone.
        """
        messages = []
        for data in self._dump():
            messages.append(wgmsg(data))
            messages[-1].decode()
        return parse(messages, allowed_ips=allowed_ips)

    def read_counters(self) -> dict[bytes, Counters]:
        """Read the peers' counters alone, by public key (32 bytes), in a fraction of the time.

        Raises:
            RustGuardError: It is gone.
        """
        return decode(self._dump())

    def _dump(self) -> list[bytes]:
        request = _request(uapi.WG_CMD_GET_DEVICE, self.index, [])
        try:
            for _ in range(_DUMP_TRIES):
                messages, whole = self._channel.dump(request)
                if whole:
                    break
        except OSError as error:
            raise _lost(error) from error
        return messages

    def _set(self, attributes: list[list[Any]]) -> None:
        try:
            self._channel.command(_request(uapi.WG_CMD_SET_DEVICE, self.index, attributes))
        except OSError as error:
            raise _lost(error) from error


def find(public_keys: Collection[bytes] | None, alias: str) -> list[int]:
    """Give the numbers of the WireGuard interfaces of this alias and, if not None, one of these keys (32 bytes)."""

    def search(netlink: IPRoute) -> list[int]:
        return [
            message["index"]
            for message in netlink.get_links(kind=KIND)
            if message.get_attr("IFLA_IFALIAS") == alias[:_ALIAS_LENGTH] and _kind(message) == KIND
        ]

    try:
        found = with_netlink(search)
        return [index for index in found if public_keys is None or _key_of(index) in public_keys]
    except (NetlinkError, OSError):
        return []


def remove_leftovers(public_keys: Collection[bytes] | None, alias: str) -> int:
    """Remove what `find` finds, which a kill left behind; give how many there were."""
    found = find(public_keys, alias)
    for index in found:
        _remove(index)
    return len(found)


# -- encoding -----------------------------------------------------------------------------------------------------


def batches(changes: Iterable[KernelPeerChange]) -> Iterator[list[dict[str, Any]]]:
    """Encode changes for `wgmsg`, as many a message as have room; a peer with many networks goes on in the next."""
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
    """More networks of a peer, added to those that it has."""
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
        # pyroute2 writes both in network order; the kernel takes the scope in the machine's.
        fields |= {"flowinfo": endpoint[2], "scope_id": socket.htonl(endpoint[3])}
    return fields


def _request(command: int, index: int, attributes: list[list[Any]]) -> Any:
    message = wgmsg()
    message["cmd"] = command
    message["version"] = uapi.WG_GENL_VERSION
    message["attrs"] = [["WGDEVICE_A_IFINDEX", index], *attributes]
    return message


# -- decoding -----------------------------------------------------------------------------------------------------


def parse(messages: Iterable[Any], *, allowed_ips: bool) -> KernelInterfaceState:
    """Put the messages of a dump together; a peer with many networks goes on in the next one."""
    state = KernelInterfaceState()
    for message in messages:
        if (key := message.get_attr("WGDEVICE_A_PUBLIC_KEY")) is not None:
            state.public_key = b64decode(key)
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


# -- netlink ------------------------------------------------------------------------------------------------------


class _Channel:
    """A generic netlink socket that talks to WireGuard.

    Raises:
        OSError: It can't; ENOENT where the kernel has none.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        self._sequence = 0
        try:
            self._socket.bind((0, 0))
            self._family = self._find_family()
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def command(self, message: Any) -> None:
        """Have something done.

        Raises:
            OSError: It was refused.
        """
        for _ in self._exchange(message, self._family, _NLM_F_ACK):
            pass

    def dump(self, message: Any) -> tuple[list[bytes], bool]:
        """Ask for all; give the messages, and whether nothing changed meanwhile.

        Raises:
            OSError: It was refused.
        """
        whole = True
        messages = []
        for flags, data in self._exchange(message, self._family, _NLM_F_DUMP):
            whole = whole and not flags & _NLM_F_DUMP_INTR
            messages.append(data)
        return messages, whole

    def _find_family(self) -> int:
        message = ctrlmsg()
        message["cmd"] = CTRL_CMD_GETFAMILY
        message["version"] = 1
        message["attrs"] = [["CTRL_ATTR_FAMILY_NAME", uapi.WG_GENL_NAME]]
        found = 0
        for _, data in self._exchange(message, GENL_ID_CTRL, _NLM_F_ACK):
            decoded = ctrlmsg(data)
            decoded.decode()
            found = decoded.get_attr("CTRL_ATTR_FAMILY_ID")
        return found

    def _exchange(self, message: Any, kind: int, flags: int) -> Iterator[tuple[int, bytes]]:
        """Send one message; give flags and bytes of each that answers it, to the end."""
        self._sequence += 1
        header = message["header"]
        header["type"], header["flags"] = kind, _NLM_F_REQUEST | flags
        header["sequence_number"], header["pid"] = self._sequence, 0
        message.encode()
        self._socket.sendto(message.data, (0, 0))
        while True:
            received = memoryview(self._socket.recv(_RECEIVE_SIZE))
            while received:
                length, answer, answer_flags, sequence, _ = _HEADER.unpack_from(received)
                data, received = bytes(received[:length]), received[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue  # the rest of an exchange that was left early
                if answer == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", data, _HEADER.size)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                if answer == _NLMSG_DONE:
                    return
                yield answer_flags, data


# linux/netlink.h; the socket module doesn't name it.
_NETLINK_GENERIC = 16


def _key_of(index: int) -> bytes | None:
    device = KernelInterface(index)
    try:
        return device.read().public_key
    except RustGuardError:
        return None
    finally:
        device._channel.close()


def _remove(index: int) -> None:
    with suppress(NetlinkError):
        with_netlink(lambda netlink: netlink.link("del", index=index))


def _kind(message: Any) -> str | None:
    info = message.get_attr("IFLA_LINKINFO")
    return None if info is None else info.get_attr("IFLA_INFO_KIND")


def _refused(name: str, code: int) -> RefusedError:
    if code == errno.EPERM:
        return RefusedError(
            f"The WireGuard interface {name} can't be made: that needs root or the capability CAP_NET_ADMIN.",
            "Run the same command as root: `sudo rustguard …`. In Docker: `--cap-add NET_ADMIN`.",
        )
    if code == errno.EEXIST:
        return RefusedError(f"There is an interface {name} already.", "Choose another: --interface NAME")
    reason = os.strerror(code)
    return RefusedError(
        f"The kernel refused to make the WireGuard interface {name}: {reason}.", "Choose: --engine native"
    )


def _lost(error: OSError) -> RustGuardError:
    if error.errno == errno.ENODEV:
        return RustGuardError("The interface is gone: something else removed it.", "Start again.")
    return RustGuardError(f"The kernel's WireGuard refused: {error.strerror}.", "Choose: --engine native")
