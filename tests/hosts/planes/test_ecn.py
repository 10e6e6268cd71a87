"""Congestion marks through the tunnel, on each way that our planes send and receive.

That the table is the kernel's is tested in tests/kernel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rustguard_py.lab.hosts import Lab
from support import ecn_probe
from support.ecn_probe import BURST, MARKS
from support.engines import needs_native

OUTER = {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 2}
INNER = {
    "not-ect": {"not-ect": 0, "ect1": 0, "ect0": 0, "ce": 0},
    "ect1": {"not-ect": 1, "ect1": 1, "ect0": 1, "ce": 3},
    "ect0": {"not-ect": 2, "ect1": 1, "ect0": 2, "ce": 3},
    "ce": {"not-ect": 3, "ect1": 3, "ect0": 3, "ce": 3},
}
HANDSHAKE = 0x88


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        pytest.param("portable", {}, id="portable"),
        pytest.param("native", {}, marks=needs_native, id="sockets"),
        pytest.param("native", {"uring": True}, marks=needs_native, id="uring"),
        pytest.param("native", {"xdp": True}, marks=needs_native, id="xdp"),
    ],
)
def test_marks_go_out_and_congestion_comes_in(
    lab: Lab, tmp_path: Path, engine: str, options: dict[str, Any], family: int
) -> None:
    path = ecn_probe.Path(lab)
    left, right = ecn_probe.tunnels(path, engine, tmp_path, family, **options)
    with ecn_probe.probing(path) as probe:
        assert {tos for first, tos in probe.outer() if first == 1} == {HANDSHAKE}
        found = ecn_probe.table(path, probe)
    for (inside, rule, mark), seen in found.items():
        cell = inside, rule, mark
        assert seen.count == 1 + BURST, cell
        expected = INNER[mark].get(rule or "", MARKS[mark] if mark != "ce" else 3)
        assert seen.inner == {expected}, cell
        assert seen.outer == {MARKS[rule] if rule else OUTER[mark]}, cell
    left.stop()
    right.stop()
