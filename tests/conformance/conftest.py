"""What every implementation of WireGuard promises: one suite for both of our planes and for wireguard-go.

Ours are also tested on another device: a channel, with each UDP side. Most of that is in the long form.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rustguard_py.engine import has_native, uring_refusal
from support.attack_table import is_long
from support.wireguards import Implementation

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them are set up by wg(8)."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker("needs_wireguard_go")


_NEEDS_NATIVE = pytest.mark.skipif(not has_native(), reason="no native plane")
_NEEDS_URING = pytest.mark.skipif(not has_native() or uring_refusal() is not None, reason="no io_uring")
_ON_INTERFACES = ["portable", pytest.param("native", marks=_NEEDS_NATIVE), "wireguard-go"]
# Sockets and io_uring are tested by tests/unit/test_channel.py too.
_CHANNELS = [
    pytest.param("portable on a channel"),
    pytest.param("native on a channel, xdp", marks=_NEEDS_NATIVE),
]
_MORE_CHANNELS = [
    pytest.param("native on a channel", marks=_NEEDS_NATIVE),
    pytest.param("native on a channel, io_uring", marks=_NEEDS_URING),
]


def _made(name: str, folder: Path) -> Implementation:
    engine, channel, side = name.partition(" on a channel")
    return Implementation(engine, folder, channel=(side.removeprefix(", ") or "sockets") if channel else "")


@pytest.fixture(params=[*_ON_INTERFACES, *([*_CHANNELS, *_MORE_CHANNELS] if is_long() else [])])
def implementation(request: pytest.FixtureRequest, tmp_path: Path) -> Implementation:
    """Each in turn."""
    return _made(request.param, tmp_path)


@pytest.fixture(params=_CHANNELS)
def on_a_channel(request: pytest.FixtureRequest, tmp_path: Path) -> Implementation:
    """Of those with a channel, the ones that nothing else tests."""
    return _made(request.param, tmp_path)
