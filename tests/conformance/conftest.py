"""What every implementation of WireGuard promises: one suite for both of our planes and for wireguard-go."""

from __future__ import annotations

from pathlib import Path

import pytest

from rustguard_py.engine import has_native
from support.wireguards import Implementation

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them are set up by wg(8)."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker("needs_wireguard_go")


@pytest.fixture(
    params=[
        "portable",
        pytest.param("native", marks=pytest.mark.skipif(not has_native(), reason="no native plane")),
        "wireguard-go",
    ]
)
def implementation(request: pytest.FixtureRequest, tmp_path: Path) -> Implementation:
    """Each in turn."""
    return Implementation(request.param, tmp_path)
