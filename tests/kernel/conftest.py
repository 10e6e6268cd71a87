"""Everything here needs a kernel with WireGuard, and hosts in network namespaces; `make test-kernel` runs it where
both are: in a virtual machine. There each start of Python takes long, so that programs are forks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.forked import ForkedSite, preload

_HERE = Path(__file__).parent
# A test that hangs must not take the machine's time from the others.
_MOST_SECONDS = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker("needs_namespaces")
            item.add_marker("needs_kernel_wireguard")


def _expired(_number: int, _frame: object) -> None:
    raise TimeoutError(f"the test took more than {_MOST_SECONDS} s")


@pytest.fixture(autouse=True)
def _bounded(soak: bool) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _expired)
    signal.alarm(_MOST_SECONDS * (4 if soak else 1))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


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
