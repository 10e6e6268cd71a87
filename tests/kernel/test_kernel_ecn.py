"""The kernel's WireGuard is the oracle: each cell of the table of congestion marks is the same on our planes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support import ecn_probe
from support.ecn_probe import Seen
from support.engines import needs_native

Table = dict[tuple[str, str | None, str], Seen]


def _measure(lab: Lab, folder: Path, engine: str, family: int) -> tuple[Table, set[tuple[int, int]]]:
    path = ecn_probe.Path(lab)
    left, right = ecn_probe.tunnels(path, engine, folder, family)
    with ecn_probe.probing(path) as probe:
        handshakes = {each for each in probe.outer() if each[0] in (1, 2)}
        found = ecn_probe.table(path, probe)
    left.stop()
    right.stop()
    return found, handshakes


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "portable"])
def test_marks_are_the_kernels_in_each_cell(lab: Lab, tmp_path: Path, engine: str, family: int) -> None:
    with Lab() as other:
        theirs, their_handshakes = _measure(other, tmp_path, "kernel", family)
    ours, our_handshakes = _measure(lab, tmp_path, engine, family)
    print(f"over IPv{family}, {engine}: inner family, set by the router, sent: at the end, outside")
    for cell, seen in theirs.items():
        print(*cell, sorted(seen.inner), sorted(seen.outer))
    assert ours == theirs
    assert our_handshakes == their_handshakes == {(1, 0x88)}
