"""Packages are fetched over the machine's network, so it isn't hidden from these tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_network() -> None:
    """Stay in the machine's network."""
