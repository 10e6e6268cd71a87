"""Watches the machine's links, addresses and routes for changes (rtnetlink(7))."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

# linux/rtnetlink.h: RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
# A changed address causes several messages in a row. Wait this long for them, seconds.
_SETTLE = 0.1


class NetWatch:
    """Calls `changed` once, shortly after the machine's network changed. Make it inside the running loop.

    Args:
        changed: The callback.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, _GROUPS))
        self._loop.add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        try:
            while self._socket.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # ENOBUFS: messages were lost, which also means a change
        if self._timer is None:
            self._timer = self._loop.call_later(_SETTLE, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._changed()

    def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
