"""The benchmark programs: their options, and how a run is reported. Nothing is measured here."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

BENCH = Path(__file__).parents[2] / "bench"
ENGINES = (
    *("veth", "wireguard-go", "gotatun", "boringtun", "portable", "native", "native-2q", "native-ring"),
    *("native-ring-2q", "native-uring", "native-xdp"),
)
MACHINE = {"cpu": "a processor", "cores": 2, "kernel": "6.1", "python": "3.11", "wireguard-go": "wireguard-go"}


def _run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(BENCH / program), *words]
    # A program finds its parts beside itself, which the tests' own environment forbids.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=env)


@pytest.mark.parametrize(
    "program",
    ["run.py", "scale.py", "peers.py", "handshakes.py", "spread.py", "tunnels.py", "scheduling.py", "waking.py"],
)
def test_each_program_says_what_it_does(program: str) -> None:
    done = _run(program, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_wake_ups_are_timed_on_each_core() -> None:
    done = _run("waking.py", "--times", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("same core: median ")


def test_another_checkout_is_measured_whichever_engines_are_named(tmp_path: Path) -> None:
    chosen = "import run; print(run._arguments().engines)"
    argv = [sys.executable, "-c", chosen, "--before", str(tmp_path), "--engines", "portable"]
    env = os.environ | {"PYTHONPATH": str(BENCH)}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.stdout == "['before', 'portable']\n", done.stderr


def test_the_engines_are_listed_with_the_reason_why_one_cannot_run() -> None:
    done = _run("run.py", "--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*ENGINES]


def test_an_engine_or_a_step_that_there_is_not_is_refused_with_the_choice() -> None:
    for option in ("--engines", "--steps"):
        done = _run("run.py", option, "tortoise")
        assert done.returncode == 2
        assert "tortoise: choose from" in done.stderr


def test_a_round_of_many_peers_may_not_outlast_its_sessions() -> None:
    for seconds in ("0", "6"):
        done = _run("scale.py", "--seconds", seconds)
        assert done.returncode == 2
        assert f"--seconds is 1 to 5, not {seconds}" in done.stderr


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The parts of run.py, as it imports them, and scheduling.py, which uses some of them."""
    import importlib

    monkeypatch.syspath_prepend(str(BENCH))
    names = ("links", "engines", "measures", "report", "suites", "tunnels", "siblings", "scheduling")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def _results(bench: dict[str, ModuleType], samples: dict[str, list[dict[str, float]]]) -> Any:
    results = bench["report"].Results(bench["links"].Way(), 5, 2, MACHINE, samples)
    results.others.append(0.0)
    return results


def test_eleven_engines_fit_a_page(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    largest = {"Mbit/s": 28_115.1, "%": 99.9, "ms": 999.99, "s/GB": 99.99}
    sample = {name: largest[about.unit] for name, about in bench["measures"].MEASURES.items()}
    sample |= {"udp64": 999.9, "ping": 9.999}
    turns = [{**sample, "tcp1": 20_000.0 + turn} for turn in range(5)]
    results = _results(bench, dict.fromkeys(ENGINES, turns))
    page = tmp_path / "page.txt"
    with page.open("w") as file:
        bench["report"].print_tables(results, Console(file=file, width=118))
    text = page.read_text()
    assert max(map(len, text.splitlines())) <= 118
    assert "…" not in text
    assert text.count("20,002  20,000..20,004") == len(ENGINES)


def test_ratios_are_those_of_one_round_and_a_failed_one_is_left_out(
    bench: dict[str, ModuleType], tmp_path: Path
) -> None:
    tcp = {"wireguard-go": [100.0, 200.0, 400.0, None], "native": [300.0, None, 800.0, 900.0]}
    samples = {
        name: [{"tcp1": value} if value is not None else {} for value in values] for name, values in tcp.items()
    }
    results = _results(bench, samples)
    assert results.ratios("native", "tcp1") == [3.0, 2.0]
    written = bench["report"].write(results, tmp_path)
    summary = json.loads(written[1].read_text())["summary"]
    assert summary["native"]["tcp1"]["ratio"] == {"median": 2.5, "least": 2.0, "most": 3.0}


def test_five_rounds_of_the_full_suite_take_half_an_hour(bench: dict[str, ModuleType]) -> None:
    tables = bench["suites"].full(list(ENGINES))
    assert [table.way.stem for table in tables] == [
        "bench",
        "bench-no-udp-segmentation",
        "bench-ipv6",
        "bench-loss-1",
    ]
    assert 20 < sum(table.estimate(5, 1) for table in tables) / 60 < 33


def test_one_tunnel_and_several_come_out_as_a_table_and_in_the_docs(
    bench: dict[str, ModuleType], tmp_path: Path
) -> None:
    def sample(mbit: float, shares: list[float]) -> dict[str, Any]:
        rates = {"mbit": mbit, "least": mbit / 100, "most": mbit / 10, "shares": shares, "cores": [0.9, 0.8]}
        return {**rates, "cpu_out": 1.0, "cpu_in": 2.0, "cpu_all": 5.0}

    even, uneven = [0.5, 0.5], [0.4, 0.6]
    taken = {
        ("native", 1, 64): [sample(1000.0, [1.0]), sample(2000.0, [1.0]), None],
        ("native", 2, 64): [sample(3000.0, even), sample(2000.0, uneven), sample(9000.0, uneven)],
        ("native", 1, 8): [sample(4000.0, [1.0])],
    }
    tunnels = bench["tunnels"]
    document = {
        "machine": MACHINE,
        "rounds": 3,
        "seconds": 2,
        "failures": ["native, 1 tunnels, round 3: no answer"],
        "others": [0.0],
        "skipped": {"kernel": "it has no WireGuard"},
        "rows": [tunnels._row(taken, *place) for place in taken],
        "spread": [tunnels_row(2)],
    }
    text = tmp_path / "page.txt"
    with text.open("w") as file:
        tunnels.print_tables(document, Console(file=file, width=140))
    said = text.read_text()
    assert "skipped: kernel: it has no WireGuard" in said
    assert "no answer" in said
    assert "…" not in said
    (tmp_path / "performance.md").write_text("before\n<!-- tunnels -->\nold\n<!-- /tunnels -->\nafter\n")
    tunnels.publish(document, tmp_path)
    page = (tmp_path / "performance.md").read_text()
    assert page.startswith("before\n<!-- tunnels -->\n64 TCP flows")
    assert page.endswith("<!-- /tunnels -->\nafter\n")
    assert "old" not in page
    # Of the rounds in which both were measured: 3 and 1.
    row = "| native | 2 | 3,000 | 2.00 (1.00\N{EN DASH}3.00) | 1.00, 2.00, 5.00 | 90% | 80% | 20% |"
    assert row in page
    assert page.count("| native |") == 2
    printed = tmp_path / "kernel.json"
    printed.write_text("round 1 of 3: kernel, 1 tunnels\n" + json.dumps(document) + "\nwritten: a file\n")
    document = tunnels._kept(printed)
    # A run with the kernel's engine is a virtual machine's, and stands apart.
    document["rows"][0]["engine"] = "kernel"
    (tmp_path / "performance.md").write_text(page + "<!-- tunnels-kernel -->\nold\n<!-- /tunnels-kernel -->\n")
    tunnels.publish(document, tmp_path)
    both = (tmp_path / "performance.md").read_text()
    assert both.startswith(page)
    assert both.count("| kernel |") == 1
    # The real page has both marks.
    real = (tunnels.DOCS / "performance.md").read_text()
    assert [real.count(f"<!-- {name} -->\n") for name in ("tunnels", "tunnels-kernel")] == [1, 1]


def tunnels_row(tunnels: int) -> dict[str, Any]:
    """What spread.py says of some tunnels."""
    means = [64 / tunnels] * tunnels
    return {
        "way": "chance",
        "tunnels": tunnels,
        "flows": 64,
        "sets": 9,
        "farthest_off": 0.1,
        "within": 0.9,
        "mean": means,
    }


def test_what_goes_with_the_rate_of_a_stream_comes_first(
    bench: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    scheduling = bench["scheduling"]
    pairs = [(1000.0, 5.0), (3000.0, 1.0), (2000.0, 4.0), (4000.0, 1.0)]
    runs = [{"rate": rate, "steady": 7.0, "cost": cost} for rate, cost in pairs]
    scheduling.print_engine("native", runs)
    said = capsys.readouterr().out.splitlines()[1:]
    assert said[0] == "native, Mbit/s of 4 runs in their order: 1000 3000 2000 4000"
    assert said[1] == "median 2500, worst ÷ median 0.40, best ÷ median 1.60"
    assert said[3].split() == ["cost", "5", "1", "-0.95"]
    assert said[4].split() == ["steady", "7", "7", "0.00"]


def test_a_core_counts_as_shared_only_while_both_want_it(bench: dict[str, ModuleType]) -> None:
    watch = bench["scheduling"].Watch([])
    watch.seen = [{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": None, "b": None}, {"a": 1, "b": 0}]
    assert watch.together("a", "b") == 0.25
    assert watch.home("a") == pytest.approx(2 / 3)


def test_a_line_that_is_not_whole_is_no_sample(bench: dict[str, ModuleType]) -> None:
    siblings = bench["siblings"]
    samples = siblings.parse("72473.3097 0 3.874 3.687\n72473.4089 1 1.93")
    assert samples == [siblings.Sample(72473.3097, 0, 3.874, 3.687)]
    assert siblings.parse("") == []


def test_a_sibling_is_busy_while_its_core_does_less_than_at_its_best(bench: dict[str, ModuleType]) -> None:
    siblings = bench["siblings"]
    # One core does four operations per cycle if it is alone, the other two.
    fast = [siblings.Sample(at, 0, done, 3.0) for at, done in enumerate([4.0, 4.0, 2.1, 3.9, 3.5])]
    slow = [siblings.Sample(at, 1, done, 2.0) for at, done in enumerate([1.2, 2.0, 2.0, 2.0, 2.0])]
    samples = fast + slow
    assert siblings.figures(samples, 1, 4) == {
        "sibling 0 busy": 0.5,
        "sibling 1 busy": 0.0,
        "siblings busy": 0.25,
        "clock": 2.5,
    }
    assert siblings.figures(samples, 5, 6) == {}


@pytest.mark.parametrize("others", [15, 150])
def test_a_sample_that_says_more_than_is_possible_makes_nobody_busy(
    bench: dict[str, ModuleType], others: int
) -> None:
    siblings = bench["siblings"]
    possible = [siblings.Sample(at, 0, 3.9, 3.7) for at in range(others)]
    spoilt = siblings.Sample(150, 0, 14.9, 0.5)
    assert siblings.figures([*possible, spoilt], 0, 200)["sibling 0 busy"] == 0.0


def test_a_report_tells_how_much_of_the_time_siblings_were_busy(bench: dict[str, ModuleType]) -> None:
    results = _results(bench, {"veth": [{}, {}, {}]})
    assert "siblings" not in _printed(bench, results)
    results.siblings += [0.04, None, 0.5, 0.1]
    said = "The cores' siblings were busy 10% of the time, 4% in the quietest turn and 50% in the busiest"
    assert said in _printed(bench, results)


def _printed(bench: dict[str, ModuleType], results: Any) -> str:
    file = io.StringIO()
    bench["report"].print_tables(results, Console(width=118, file=file))
    return file.getvalue()
