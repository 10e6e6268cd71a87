"""`MemoryPlane` over the native rules; where the native plane isn't built, asking for one fails."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from rustguard_py.planes.transport import Transport
from support.memory_plane import MemoryPlane


class NativeMemoryPlane(MemoryPlane):
    """`MemoryPlane` over the native rules."""

    @staticmethod
    def rules() -> Callable[..., Transport]:
        return cast(Callable[..., Transport], import_module("rustguard_py._native").Transport)
