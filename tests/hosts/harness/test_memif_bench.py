"""testpmd at both ends of a tunnel, as `bench/memif.py` measures it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from support.engines import needs_native

BENCH = Path(__file__).parents[3] / "bench/memif.py"


@needs_native
@pytest.mark.needs_testpmd
@pytest.mark.xdist_group("testpmd")
def test_what_testpmd_sends_another_receives_behind_the_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    # It is set for the ends.
    monkeypatch.setenv("PYTHONPATH", "")
    bench = runpy.run_path(str(BENCH))
    samples = dict(bench["forwarded"](0.1))
    assert list(samples) == list(bench["SIZES"])
    assert all(sample.rate > 1000 and sample.cpu > 0 for sample in samples.values()), samples
