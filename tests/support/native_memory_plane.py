"""`MemoryPlane` over the native rules; where the native plane isn't built, asking for one fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module

from support.memory_plane import MemoryPlane


class NativeMemoryPlane(MemoryPlane):
    """`MemoryPlane` over the native rules."""

    def __init__(
        self,
        public_key: bytes,
        *,
        random: Callable[[int], bytes] = os.urandom,
        now: float = 0.0,
        mtu: int = 1420,
        backlog: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(public_key, mtu=mtu, now=now)
        rules = import_module("rustguard_py._native").Transport
        self.transport = rules(public_key, emit=self.events.append, random=random, mtu=mtu, backlog=backlog)
