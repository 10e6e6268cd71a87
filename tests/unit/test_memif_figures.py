"""The memif of `rustguard bench generate`, and what `bench/memif.py` makes of its measurements."""

from __future__ import annotations

import re
import runpy
import time
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.system import memif_socket
from support.engines import needs_native

ROOT = Path(__file__).parents[2]
DASH = "\N{EN DASH}"


@needs_native
def test_a_generator_fills_a_memif_and_one_at_its_other_end_counts_every_packet(tmp_path: Path) -> None:
    from rustguard_py import _native

    path = tmp_path / "m"
    listener, _ = memif_socket.bind(path)
    with listener:
        ends = [
            _native.Memif(str(path), listener=fd, number=0, secret=b"", queues=1, ethernet=None, interface="one")
            for fd in (listener.fileno(), None)
        ]
    one, other = (_native.Generator("10.0.0.1", "10.0.0.2", memif=end) for end in ends)
    # The second is a client, which tries four times a second.
    until = time.monotonic() + 10
    while not all(end.state()[0] for end in ends):
        assert time.monotonic() < until, [end.state() for end in ends]
        time.sleep(0.01)
    for trial, (source, sink) in enumerate([(one, other), (other, one)]):
        sink.receive(trial=trial, flows=3)
        sent = source.send(trial=trial, sizes=[64, 1420, 1500], flows=3, rate=5000, seconds=0.2)
        received = sink.report(sent=sent["sent"])
        assert sent["offered"] == 1000
        assert received["received"] == sent["sent"] > 0
        assert [received[what] for what in ("invalid", "duplicates", "reordered", "stale")] == [0] * 4
        assert received["bytes"] == sent["bytes"]
    # As much as it takes: a full ring isn't a loss, and sleepers are woken.
    other.receive(trial=9, flows=1)
    sent = one.send(trial=9, sizes=[64], flows=1, rate=None, seconds=0.1)
    assert other.report(sent=sent["sent"])["received"] == sent["sent"] > 2048
    for end in ends:
        end.close()


@needs_native
def test_a_memif_feeds_one_generator() -> None:
    from rustguard_py import _native

    memif = _native.Memif("/nowhere/m", listener=None, number=0, secret=b"", queues=1, ethernet=None, interface="one")
    _native.Generator("10.0.0.1", "10.0.0.2", memif=memif)
    with pytest.raises(ValueError, match="already"):
        _native.Generator("10.0.0.1", "10.0.0.2", memif=memif)
    memif.close()


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    """What `bench/memif.py` has."""
    return runpy.run_path(str(ROOT / "bench/memif.py"))


def _samples(bench: dict[str, Any]) -> dict[str, dict[int, list[Any]]]:
    sample = bench["Sample"]
    rates = {bench["TUN"]: [100e3, 50e3], bench["GENERATOR"]: [400e3, 100e3], bench["TESTPMD"]: [150e3, 100e3]}
    rates[bench["SHORT"]] = [50e3, 50e3]
    return {
        name: {size: [sample(rate, 1e9 / rate) for rate in each] for size in bench["SIZES"]}
        for name, each in rates.items()
    }


def test_ratios_are_of_one_round_and_goals_are_of_64_bytes(bench: dict[str, Any]) -> None:
    samples = _samples(bench)
    rates, costs = bench["tables"](samples)
    assert [row[0] for row in rates.rows] == ["64", "512", "1420"]
    # 4 and 2, not the ratio of the medians.
    assert rates.rows[0][1:] == [
        *("75", "250", "125", "50", f"3.00 (2.00{DASH}4.00)", f"1.75 (1.50{DASH}2.00)", f"0.75 (0.50{DASH}1.00)"),
    ]
    assert costs.rows[0][-3:-1] == [f"0.38 (0.25{DASH}0.50)", f"0.58 (0.50{DASH}0.67)"]
    said = " ".join(bench["goals"](samples))
    assert "rate 3.00 of TUN's (goal: at least 3)" in said
    assert "rate 1.75 of TUN's (goal: at least 1.5)" in said
    # A goal that is missed is shown too.
    assert "rate 0.75 of TUN's (goal: at least 1.5)" in said


def test_its_tables_are_put_between_the_marks_of_the_page(bench: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "devices.md"
    page.write_text("before\n<!-- memif -->\nold\n<!-- /memif -->\nafter\n")
    text = bench["document"](_samples(bench), 1.0)
    assert all(len(line) <= 100 for line in text.splitlines())
    bench["publish"](text, page)
    said = page.read_text()
    assert re.fullmatch(r"before\n<!-- memif -->\n.*2 rounds of 1 s.*<!-- /memif -->\nafter\n", said, re.DOTALL)
    assert "old" not in said
    # The real page has the marks.
    assert (ROOT / "docs/internals/devices.md").read_text().count("<!-- memif -->\n") == 1
