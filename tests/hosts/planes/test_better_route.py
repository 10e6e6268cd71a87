"""A better route over another interface is taken without loss, though a router drops what has the old address there.

As the kernel's own test has it: "another interface route takes precedence over an ongoing one".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rustguard_py.lab.hosts import Lab
from support.better_route import lost_pings
from support.engines import needs_native


@pytest.mark.parametrize(
    ("engine", "options", "family"),
    [
        pytest.param("portable", {}, 4, id="portable-4"),
        pytest.param("portable", {}, 6, id="portable-6"),
        pytest.param("native", {}, 4, marks=needs_native, id="sockets-4"),
        pytest.param("native", {}, 6, marks=needs_native, id="sockets-6"),
        pytest.param("native", {"uring": True}, 6, marks=needs_native, id="uring-6"),
        pytest.param("native", {"xdp": True}, 4, marks=needs_native, id="xdp-4"),
    ],
)
def test_a_better_route_over_another_interface_costs_at_most_the_ping_on_its_way(
    lab: Lab, tmp_path: Path, engine: str, options: dict[str, Any], family: int
) -> None:
    # A ping may leave after the kernel has changed the route and before we have read of it.
    assert sum(lost_pings(lab, tmp_path, engine, options, family)) <= 1
