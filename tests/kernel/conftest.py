"""Tests that need a kernel with WireGuard, and hosts in network namespaces.

`make test-kernel` runs them in a virtual machine that has both. Starting Python takes long there, so programs are
forks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.forked import ForkedSite, preload

_HERE = Path(__file__).parent
# A test that hangs must not take the machine's time from the others.
_MOST_SECONDS = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder."""
    seconds = _MOST_SECONDS * (4 if os.environ.get("RUSTGUARD_SOAK") == "1" else 1)
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker("needs_namespaces")
            item.add_marker("needs_kernel_wireguard")
            item.add_marker(pytest.mark.timeout(seconds), append=False)


@pytest.fixture(scope="session", autouse=True)
def own_network() -> None:
    """Stay in the virtual machine's network, which is ours: /sys shows that one's interfaces."""


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> ForkedSite:
    """A server and its clients."""
    preload(
        [
            "rustguard_py.cli.foreground",
            "rustguard_py.cli.peers",
            "rustguard_py.cli.status",
            "rustguard_py.enroll.client.start",
            "rustguard_py.enroll.server.start",
            "rustguard_py.kernel.kernel_tunnel",
            "rustguard_py.planes.portable",
        ]
    )
    return ForkedSite(lab, tmp_path)
