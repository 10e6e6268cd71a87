"""VPP's binary API, played: what it is told it remembers, and it refuses what VPP would refuse.

Its messages are those of tests/data/vpp, packed by vpp-papi at both ends. It moves no packets.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DEFINITIONS = Path(__file__).parents[1] / "data/vpp"
BVI = "loop42"
_HEADER = struct.Struct(">QII")
_CREATE, _CREATE_REPLY = 15, 16
_FIRST = 100
# VNET_API_ERROR_*, as VPP has them.
NO_SUCH_ENTRY, INVALID_SW_IF_INDEX, ENTRY_EXISTS = -3, -2, -56


@cache
def why_not() -> str:
    """vpp-papi is here."""
    return "" if find_spec("vpp_papi") else "no vpp-papi (pip install vpp-papi)"


class PlayedVpp:
    """A VPP with one loopback interface in one bridge, listening at a path.

    Attributes:
        sockets: Paths of the memif sockets by number.
        memifs: Each memif by its sw_if_index, as it was created, with `mtu`, `up` and `bridge`.
        routes: Addresses and the sw_if_index that they are behind.
        neighbours: Address, sw_if_index, MAC address and flags.
        calls: The name of each request that changes something, in order.
        refuse: Names of requests that it refuses.
    """

    def __init__(self, path: Path, index: int = 1) -> None:
        from vpp_papi.vpp_papi import VPPApiJSONFiles

        _, self._messages, _ = VPPApiJSONFiles.load_api(sorted(map(str, DEFINITIONS.glob("*.json"))))
        self._names = dict(enumerate(self._messages, _FIRST))
        self._ids = {name: number for number, name in self._names.items()}
        self.path, self.index = path, index
        self.refuse: set[str] = set()
        self.forget()
        self._open()

    def forget(self) -> None:
        """Have nothing set up, as after a restart."""
        self.sockets: dict[int, str] = {0: "/run/vpp/memif.sock"}
        self.memifs: dict[int, dict[str, Any]] = {}
        self.routes: list[tuple[str, int]] = []
        self.neighbours: list[tuple[str, int, str, int]] = []
        self.calls: list[str] = []

    @property
    def is_clean(self) -> bool:
        """Whether it has nothing but what it began with."""
        return list(self.sockets) == [0] and not (self.memifs or self.routes or self.neighbours)

    def stop(self) -> None:
        """End, with all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)
        for each in self._open_ones:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def restart(self) -> None:
        """Stop, and start with nothing."""
        self.stop()
        self.forget()
        self._open()

    def _open(self) -> None:
        self._open_ones: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self._open_ones.append(connection)
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, EOFError):
            while True:
                _, size, _ = _HEADER.unpack(_exactly(connection, _HEADER.size))
                for answer in self._answers(_exactly(connection, size)):
                    connection.sendall(_HEADER.pack(0, len(answer), 0) + answer)

    def _answers(self, request: bytes) -> list[bytes]:
        number = int.from_bytes(request[:2], "big")
        if number == _CREATE:
            table = [
                {"index": each, "name": f"{name}_{self._messages[name].crc[2:]}"} for name, each in self._ids.items()
            ]
            asked, _ = self._messages["sockclnt_create"].unpack(request)
            fields = {"context": asked.context, "index": 1, "count": len(table), "message_table": table}
            return [self._packed("sockclnt_create_reply", _CREATE_REPLY, **fields)]
        name = self._names[number]
        asked, _ = self._messages[name].unpack(request, ntc=True)
        if name in ("control_ping", "sockclnt_delete"):
            return [self._packed(f"{name}_reply", context=asked.context)]
        if name.endswith("_dump"):
            details = getattr(self, f"_{name}")(asked)
            return [
                self._packed(name.replace("_dump", "_details"), context=asked.context, **each) for each in details
            ]
        self.calls.append(name)
        work: Callable[[Any], dict[str, int] | int] = getattr(self, f"_{name}")
        done = NO_SUCH_ENTRY if name in self.refuse else work(asked)
        fields = {"retval": done, "sw_if_index": 0} if isinstance(done, int) else {"retval": 0, **done}
        return [self._packed(f"{name}_reply", context=asked.context, **fields)]

    def _packed(self, name: str, number: int | None = None, **fields: object) -> bytes:
        return bytes(self._messages[name].pack({"_vl_msg_id": number or self._ids[name], **fields}))

    def _memif_socket_filename_dump(self, _: Any) -> list[dict[str, Any]]:
        return [{"socket_id": number, "socket_filename": path} for number, path in self.sockets.items()]

    def _memif_dump(self, _: Any) -> list[dict[str, Any]]:
        names = ("id", "socket_id")
        return [
            {"sw_if_index": index, "if_name": f"memif{each['socket_id']}/{each['id']}"}
            | {name: each[name] for name in names}
            for index, each in self.memifs.items()
        ]

    def _sw_interface_dump(self, asked: Any) -> list[dict[str, Any]]:
        every = {self.index + 1: f"{BVI}0", self.index: BVI}
        wanted = asked.name_filter if asked.name_filter_valid else ""
        return [
            {"sw_if_index": index, "interface_name": name, "mtu": [1500, 0, 0, 0]}
            for index, name in every.items()
            if wanted in name
        ]

    def _memif_socket_filename_add_del_v2(self, asked: Any) -> dict[str, int] | int:
        number = asked.socket_id
        if asked.is_add:
            if number in self.sockets:
                return ENTRY_EXISTS
            self.sockets[number] = asked.socket_filename
            return {"socket_id": number}
        if number not in self.sockets or any(each["socket_id"] == number for each in self.memifs.values()):
            return NO_SUCH_ENTRY
        del self.sockets[number]
        return {"socket_id": number}

    def _memif_create(self, asked: Any) -> dict[str, int] | int:
        if asked.socket_id not in self.sockets:
            return NO_SUCH_ENTRY
        index = max([self.index + 1, *self.memifs]) + 1
        created = {name: getattr(asked, name) for name in ("role", "mode", "id", "socket_id", "hw_addr", "secret")}
        self.memifs[index] = created
        return {"sw_if_index": index}

    def _memif_delete(self, asked: Any) -> int:
        return INVALID_SW_IF_INDEX if self.memifs.pop(asked.sw_if_index, None) is None else 0

    def _sw_interface_set_mtu(self, asked: Any) -> int:
        return self._change(asked.sw_if_index, mtu=list(asked.mtu))

    def _sw_interface_set_flags(self, asked: Any) -> int:
        return self._change(asked.sw_if_index, up=int(asked.flags) == 1)

    def _sw_interface_set_l2_bridge(self, asked: Any) -> int:
        return self._change(asked.rx_sw_if_index, bridge=asked.bd_id if asked.enable else None)

    def _change(self, index: int, **fields: object) -> int:
        if index not in self.memifs:
            return INVALID_SW_IF_INDEX
        self.memifs[index].update(fields)
        return 0

    def _ip_route_add_del(self, asked: Any) -> int:
        route = asked.route
        (path,) = route.paths
        family = "ip4" if route.prefix.address.af == 0 else "ip6"
        raw = bytes(getattr(route.prefix.address.un, family))
        assert bytes(getattr(path.nh.address, family)) == raw, "a route to one address is via that address"
        assert (path.proto, bool(asked.is_multipath)) == (0 if family == "ip4" else 1, True)
        return self._keep(self.routes, (f"{_text(raw)}/{route.prefix.len}", path.sw_if_index), asked.is_add)

    def _ip_neighbor_add_del(self, asked: Any) -> int:
        each = asked.neighbor
        raw = bytes(each.ip_address.un.ip4 if each.ip_address.af == 0 else each.ip_address.un.ip6)
        entry = (_text(raw), each.sw_if_index, bytes(each.mac_address).hex(":"), int(each.flags))
        return self._keep(self.neighbours, entry, asked.is_add)

    def _keep(self, every: list[Any], entry: tuple[object, ...], add: bool) -> int:
        if entry[1] != self.index:
            return INVALID_SW_IF_INDEX
        if add == (entry in every):
            return ENTRY_EXISTS if add else NO_SUCH_ENTRY
        if add:
            every.append(entry)
        else:
            every.remove(entry)
        return 0


def _text(raw: bytes) -> str:
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            raise EOFError
        data += more
    return data
