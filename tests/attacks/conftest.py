"""What the tests of attacks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support import attack_table
from support.product import Site


@pytest.fixture
def row(request: pytest.FixtureRequest) -> attack_table.Row:
    """The attack's row in the table of `make attack`."""
    return attack_table.Row(request.node)


@pytest.fixture(scope="session")
def long_form() -> bool:
    """Whether this is the long form."""
    return attack_table.is_long()


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    """Machines that run the program."""
    return Site(lab, tmp_path)
