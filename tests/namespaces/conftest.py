"""Everything here needs hosts in network namespaces; `lab` gives them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab import Lab

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker("needs_namespaces")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Hosts on one machine, gone after the test."""
    with Lab() as made:
        yield made
