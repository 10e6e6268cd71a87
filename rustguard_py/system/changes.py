"""Notices what other programs change on this machine: links, addresses, routes, rules and nftables (netlink(7))."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from rustguard_py.system.kernel_view import attributes, messages

log = logging.getLogger(__name__)

# `file`: one that shows name servers or a kernel setting, of which no netlink message tells.
Kind = Literal["link", "address", "route", "rule", "firewall", "file"]

# include/uapi/linux/rtnetlink.h: the messages that can mean that something of ours is gone, and their groups.
_RTM_NEWLINK, _RTM_DELLINK, _RTM_DELADDR, _RTM_DELROUTE, _RTM_DELRULE = 16, 17, 21, 25, 33
_IFLA_IFNAME, _RTA_OIF, _IFF_UP = 3, 4, 0x1
_KINDS: Final[dict[int, Kind]] = {
    _RTM_NEWLINK: "link",
    _RTM_DELLINK: "link",
    _RTM_DELADDR: "address",
    _RTM_DELROUTE: "route",
    _RTM_DELRULE: "rule",
}
# RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE.
_ROUTING_GROUPS = sum(1 << group - 1 for group in (1, 5, 7, 8, 9, 11, 19))
# include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h: NFNLGRP_NFTABLES, NFNL_SUBSYS_NFTABLES.
_NFTABLES_GROUP = 1 << 7 - 1
# linux/netlink.h; the socket module names it on some systems only.
_NETLINK_NETFILTER = 12
_NFTABLES = 10
_NFT_MSG_NEWGEN, _NFTA_GEN_PROC_NAME = 15, 3
_NFGENMSG_SIZE = 4
_PID_BITS = 22
_BUFFER = 1 << 20


class ChangeWatch:
    """Calls `changed` when another program may have changed something of ours. Make it inside the running loop.

    Args:
        changed: Takes what changed and the name of the program that did it, if the kernel tells. None stands for
            anything: messages were lost.
        table: How the names of our nftables tables begin.

    Attributes:
        indices: The numbers of our interfaces.
        names: Their names.
    """

    def __init__(self, changed: Callable[[Kind | None, str | None], None], *, table: str) -> None:
        self.indices: set[int] = set()
        self.names: set[str] = set()
        self._downs: set[int] = set()
        self._table = table.encode()
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._sockets = [_listen(socket.NETLINK_ROUTE, _ROUTING_GROUPS)]
        # A kernel without nftables, or a container that may not watch it: the periodic look is left.
        with suppress(OSError):
            self._sockets.append(_listen(_NETLINK_NETFILTER, _NFTABLES_GROUP))
        for each in self._sockets:
            self._loop.add_reader(each.fileno(), self._read, each)

    def take_downs(self) -> set[int]:
        """Return the numbers of our interfaces that were set down since the last call, even for a moment."""
        downs, self._downs = self._downs, set()
        return downs

    def close(self) -> None:
        """Stop listening. May be called twice."""
        for each in self._sockets:
            self._loop.remove_reader(each.fileno())
            each.close()
        self._sockets.clear()

    def _read(self, each: socket.socket) -> None:
        try:
            while received := each.recv(_BUFFER):
                if each.proto == socket.NETLINK_ROUTE:
                    self._on_routing(received)
                else:
                    self._on_nftables(received)
        except BlockingIOError:
            pass
        except OSError:
            self._changed(None, None)  # ENOBUFS: messages were lost

    def _on_routing(self, received: bytes) -> None:
        for of, port, body in messages(received):
            kind = _KINDS.get(of)
            if kind is not None and self._concerns_us(of, body):
                self._changed(kind, program(port))

    def _concerns_us(self, of: int, body: bytes) -> bool:
        if of in (_RTM_NEWLINK, _RTM_DELLINK):
            index, flags = struct.unpack_from("iI", body, 4)
            if index in self.indices and not flags & _IFF_UP:
                self._downs.add(index)
            name = dict(attributes(body, 16)).get(_IFLA_IFNAME, b"").rstrip(b"\0")
            return index in self.indices or os.fsdecode(name) in self.names
        if of == _RTM_DELADDR:
            return struct.unpack_from("I", body, 4)[0] in self.indices
        if of == _RTM_DELROUTE:
            over = dict(attributes(body, 12)).get(_RTA_OIF)
            # A route over several interfaces names none here.
            return over is None or struct.unpack("I", over)[0] in self.indices
        return True

    def _on_nftables(self, received: bytes) -> None:
        ours, by = False, None
        for of, port, body in messages(received):
            if of >> 8 != _NFTABLES:
                continue
            if of & 0xFF == _NFT_MSG_NEWGEN:
                names = dict(attributes(body, _NFGENMSG_SIZE))
                by = os.fsdecode(names.get(_NFTA_GEN_PROC_NAME, b"").rstrip(b"\0")) or program(port)
            else:
                ours = ours or self._table in body
        if ours:
            self._changed("firewall", by)


def program(port: int) -> str | None:
    """Return the name of the program that has a netlink port, or None: it has ended, or it is the kernel or us."""
    # By default the port is the process id; pyroute2 has more bits above it.
    pid = port & (1 << _PID_BITS) - 1
    if not pid or pid == os.getpid():
        return None
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() or None
    return None


def _listen(protocol: int, groups: int) -> socket.socket:
    listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        listening.bind((0, groups))
    except OSError:
        listening.close()
        raise
    return listening
