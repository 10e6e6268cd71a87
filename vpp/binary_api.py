"""VPP by its binary API, with VPP's own Python client (vpp-papi).

vpp-papi reads the definitions of all messages where VPP installs them: /usr/share/vpp/api, or VPP_API_DIR.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from rustguard_py.model.errors import RefusedError
from rustguard_py.model.printable import printable
from rustguard_py.vpp.plan import Bvi, Network, Wanted
from rustguard_py.vpp.ways import Address, DeclinedError, UnreachableError

log = logging.getLogger(__name__)

_SECONDS = 5
_NAME = "rustguard-wg"
_SLAVE, _ETHERNET = 1, 0
_ADMIN_UP = 1
_STATIC, _NO_FIB_ENTRY = 1, 2
_ANY = (1 << 32) - 1
_RING, _BUFFER = 1024, 2048


class BinaryApi:
    """VPP by its API socket.

    Args:
        socket: Of the API.
        client: Makes vpp-papi's client for a socket.

    Raises:
        RefusedError: vpp-papi, or VPP's definitions for it, aren't here.
    """

    def __init__(self, socket: Path, client: Callable[[Path], Any] | None = None) -> None:
        self._socket = socket
        self._client = (client or _client)(socket)
        self._connected = False

    def close(self) -> None:
        """End the connection if there is one."""
        if self._connected:
            self._connected = False
            try:
                self._client.disconnect()
            except (
                Exception
            ) as error:  # It raises what its parts happen to raise. The connection is gone in any case.
                log.info("VPP's API: %s", error)

    def socket_path(self, number: int) -> Path | None:
        """Return the path of a memif socket, or None if there is no socket of that number."""
        for each in self._call("memif_socket_filename_dump"):
            if each.socket_id == number:
                return Path(str(each.socket_filename))
        return None

    def has_memif(self, number: int) -> bool:
        """Return whether the memif is there."""
        return self._index(number) is not None

    def add_socket(self, number: int, path: Path) -> None:
        """Name a path as a memif socket."""
        self._call("memif_socket_filename_add_del_v2", is_add=True, socket_id=number, socket_filename=str(path))

    def delete_socket(self, number: int, path: Path) -> None:
        """Forget a memif socket."""
        self._call("memif_socket_filename_add_del_v2", is_add=False, socket_id=number, socket_filename=str(path))

    def add_memif(self, wanted: Wanted) -> None:
        """Make the memif."""
        self._call(
            "memif_create",
            role=_SLAVE,
            mode=_ETHERNET,
            rx_queues=1,
            tx_queues=1,
            id=wanted.uid,
            socket_id=wanted.uid,
            ring_size=_RING,
            buffer_size=_BUFFER,
            no_zero_copy=True,
            hw_addr=wanted.mac,
            secret=wanted.secret.decode(),
        )

    def delete_memif(self, number: int) -> None:
        """Delete a memif."""
        if (index := self._index(number)) is not None:
            self._call("memif_delete", sw_if_index=index)

    def bring_up(self, wanted: Wanted, mtu: int) -> None:
        """Set the memif's MTU, bring it up and put it into the bridge."""
        index = self._index(wanted.uid)
        # Of whole packets; zeros leave those of IPv4, IPv6 and MPLS at the same.
        self._call("sw_interface_set_mtu", sw_if_index=index, mtu=[mtu, 0, 0, 0])
        self._call("sw_interface_set_flags", sw_if_index=index, flags=_ADMIN_UP)
        self._call("sw_interface_set_l2_bridge", rx_sw_if_index=index, bd_id=wanted.bridge, enable=True)

    def look_up(self, bvi: Bvi) -> Bvi:
        """Return the interface with its index."""
        if bvi.index:
            return bvi
        # VPP's filter finds all names that contain this one.
        asked = {"sw_if_index": _ANY, "name_filter_valid": True, "name_filter": bvi.name}
        for each in self._call("sw_interface_dump", **asked):
            if each.interface_name == bvi.name:
                return Bvi(bvi.name, int(each.sw_if_index))
        raise DeclinedError(
            f"VPP has no interface {bvi.name}.",
            "Make it (docs/guide/vpp.md), or correct VppBridgeLoop_SwIfName; `vppctl show interface` lists all.",
        )

    def route(self, network: Network, bvi: Bvi, *, add: bool) -> None:
        """Add or delete a route to one address."""
        family = "ip4" if isinstance(network, IPv4Network) else "ip6"
        path: dict[str, object] = {
            "sw_if_index": bvi.index,
            "weight": 1,
            "preference": 1,
            "proto": 0 if family == "ip4" else 1,
            "nh": {"address": {family: network.network_address.packed}},
            "n_labels": 0,
            "label_stack": [{}] * 16,
        }
        # One path among others, so that an entry of somebody else for that address stays.
        self._call(
            "ip_route_add_del",
            is_add=add,
            is_multipath=True,
            route={"table_id": 0, "prefix": network, "n_paths": 1, "paths": [path]},
        )

    def neighbour(self, address: Address, bvi: Bvi, wanted: Wanted, *, add: bool) -> None:
        """Add or delete a neighbour with our MAC address."""
        flags = _STATIC * wanted.static | _NO_FIB_ENTRY * wanted.no_fib_entry
        neighbour = {"sw_if_index": bvi.index, "flags": flags, "mac_address": wanted.own_mac, "ip_address": address}
        self._call("ip_neighbor_add_del", is_add=add, neighbor=neighbour)

    def _index(self, number: int) -> int | None:
        """Return the sw_if_index of our memif, or None if it isn't there."""
        for each in self._call("memif_dump"):
            if each.id == number and each.socket_id == number:
                return int(each.sw_if_index)
        return None

    def _call(self, message: str, **fields: object) -> Any:
        """Send a message and return VPP's answer, or a list of answers to a dump."""
        self._connect()
        function = getattr(self._client.api, message, None)
        if function is None:
            raise DeclinedError(
                f"VPP at {self._socket} has no message {message} as its definitions here describe it.",
                "Does it have its memif plugin (vppctl show plugins)? Are VPP and the definitions of one version?",
            )
        try:
            answer = function(**fields)
        except Exception as error:  # vpp-papi lets through what struct, queue and socket raise.
            self.close()
            raise UnreachableError(
                f"VPP at {self._socket} didn't answer {message}: {printable(str(error))}.",
                "Does it run? systemctl status vpp",
            ) from error
        if not isinstance(answer, list) and answer.retval < 0:
            raise DeclinedError(
                f"VPP refused {message} (its error {answer.retval}).",
                "Is VPP set up as docs/guide/vpp.md says? `vppctl show logging` may say more.",
            )
        return answer

    def _connect(self) -> None:
        if self._connected:
            return
        try:
            self._client.connect(_NAME)
        except Exception as error:  # As above.
            # It leaves its socket open.
            if (left := self._client.transport.socket) is not None:
                left.close()
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UnreachableError(
                f"VPP's API at {self._socket} can't be used: {printable(why)}.",
                "Start VPP: sudo systemctl start vpp. You need write access to it. VPP_API_SOCKET_PATH names "
                "another socket.",
            ) from error
        self._connected = True


def _client(socket: Path) -> Any:
    try:
        from vpp_papi import VPPApiClient
    except ImportError as error:
        raise RefusedError(
            "VPP's binary API needs vpp-papi, which isn't installed.",
            "Install it: pip install 'rustguard-py[vpp]'. Or set VppBridgeLoop_InstallMethod to \"vppctl\".",
        ) from error
    try:
        return VPPApiClient(server_address=str(socket), read_timeout=_SECONDS, async_thread=False)
    except Exception as error:  # As above, and what it raises for a definition that it doesn't understand.
        raise RefusedError(
            "The definitions of VPP's messages aren't here, or can't be read (/usr/share/vpp/api).",
            "Install VPP's package on this machine, or name their folder in VPP_API_DIR. Or set "
            'VppBridgeLoop_InstallMethod to "vppctl".',
        ) from error
