"""A generic netlink socket (netlink(7)) that talks to the kernel's WireGuard.

It is a plain blocking socket: commands come from inside a running event loop, where pyroute2's own sockets can't be
used. Each command takes the kernel a fraction of a millisecond.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

from rustguard_py.system.netlink_library import CTRL_CMD_GETFAMILY, GENL_ID_CTRL, ctrlmsg, uapi

# linux/netlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x4, 0x300, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_RECEIVE_SIZE = 1 << 18


class WireGuardChannel:
    """A generic netlink socket that talks to WireGuard.

    Raises:
        OSError: It can't be opened; ENOENT if the kernel has no WireGuard.
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
        """Close the socket."""
        self._socket.close()

    def command(self, message: Any) -> None:
        """Send a command and wait until it is done.

        Raises:
            OSError: The kernel refused it.
        """
        for _ in self._exchange(message, self._family, _NLM_F_ACK):
            pass

    def dump(self, message: Any) -> tuple[list[bytes], bool]:
        """Request a dump. Return its messages, and whether nothing changed while it was read.

        Raises:
            OSError: The kernel refused it.
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
        """Send one message and yield flags and bytes of each answer."""
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
                    continue  # left over from an exchange that was ended early
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
