"""`rustguard bench generate`: packets, histograms, the search, the report. Nothing is measured here."""

from __future__ import annotations

import json
import random
import re
import runpy
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rustguard_py import engine
from rustguard_py.cli import app, bench_generate
from rustguard_py.cli.generate import compare, layout, pair, report, stages, threads
from rustguard_py.cli.generate.histogram import Histogram, equivalent
from rustguard_py.cli.generate.layout import Record
from rustguard_py.cli.generate.measure import Measured, Traffic, measure
from rustguard_py.cli.generate.pair import Contender
from rustguard_py.cli.generate.plot import plot
from rustguard_py.cli.generate.portable import PortableGenerator, Received
from rustguard_py.cli.generate.report import Results
from rustguard_py.cli.generate.search import Limits, Search
from rustguard_py.cli.generate.trial import Cpu, Trial, put_together
from rustguard_py.model.errors import RefusedError, RustGuardError, UsageError

ROOT = Path(__file__).parents[2]
ENDS = "10.99.0.1", "10.99.0.2"
TRAFFIC = Traffic("64", (64,), 16, 1.0)


# -- packets --------------------------------------------------------------------------------------------------------


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("size", [64, 594, 1420])
def test_a_packet_is_valid_and_its_record_is_read_back(size: int) -> None:
    record = Record(3, 9, 1 << 40, 123_456_789_012)
    packet = layout.build(record, size, *ENDS)
    assert len(packet) == size
    assert _sum(packet[:20]) == 0xFFFF
    assert _sum(packet[12:] + struct.pack(">HH", 17, size - 20)) == 0xFFFF
    assert struct.unpack(">H", packet[20:22]) == (layout.FIRST_PORT + 9,)
    assert layout.parse(packet) == record
    assert layout.parse(packet[:-1]) is None
    assert layout.parse(packet[: layout.HEADERS]) is None


def test_the_mix_is_seven_to_four_to_one_and_each_flow_gets_every_size() -> None:
    assert [layout.IMIX.count(size) for size in (64, 594, 1420)] == [7, 4, 1]
    for flows in (1, 3, 12, 16):
        of_first = {layout.size_at(number, flows, layout.IMIX) for number in range(0, 12 * flows, flows)}
        assert of_first == {64, 594, 1420}


def test_the_programs_agree_on_the_layout() -> None:
    go = (ROOT / "bench/wireguard-go/traffic.go").read_text()
    rust = (ROOT / "native/generator/src/layout.rs").read_text()
    for program in (go, rust):
        numbers = {int(each.replace("_", "")) for each in re.findall(r"= ([\d_]+);?$", program, re.MULTILINE)}
        assert {layout.HEADERS, layout.RECORD.size, layout.FIRST_PORT, layout.TARGET_PORT} <= numbers


def test_the_reference_is_of_the_version_that_the_tests_use() -> None:
    makefile = (ROOT / "Makefile").read_text()
    wanted = re.findall(r"^WIREGUARD_GO := (\S+)$", makefile, re.MULTILINE)
    module = (ROOT / "bench/wireguard-go/go.mod").read_text()
    assert re.findall(r"golang\.zx2c4\.com/wireguard (\S+)$", module, re.MULTILINE) == wanted


# -- what arrives ---------------------------------------------------------------------------------------------------


def _received(order: list[int], flows: int = 1) -> Received:
    received = Received(5, flows)
    for number in order:
        received.take(layout.build(Record(5, number % flows, number // flows, 1000), 100, *ENDS), 2000)
    return received


@pytest.mark.parametrize(
    ("order", "counts"),
    [
        ([0, 1, 2, 3], (4, 0, 0, 0)),
        ([0, 3, 4, 9], (4, 0, 0, 0)),
        ([0, 4, 1, 2, 5, 3], (6, 0, 3, 4)),
        ([0, 1, 1, 0, 2, 5, 5], (4, 3, 0, 0)),
    ],
    ids=["in order", "a gap", "reordered", "duplicates"],
)
def test_loss_reordering_and_duplicates_are_told_apart(order: list[int], counts: tuple[int, ...]) -> None:
    received = _received(order)
    assert (received.received, received.duplicates, received.reordered, received.extent) == counts
    assert received.latency.count == counts[0]


def test_flows_are_apart_and_damaged_or_late_packets_are_not_received() -> None:
    received = _received([1, 3, 5, 0, 2, 4], flows=2)
    assert (received.received, received.reordered) == (6, 0)
    whole = layout.build(Record(5, 0, 9, 0), 100, *ENDS)
    for packet in (
        whole[:-1],
        layout.build(Record(5, 2, 0, 0), 100, *ENDS),
        layout.build(Record(4, 0, 0, 0), 64, *ENDS),
    ):
        received.take(packet, 2000)
    assert (received.received, received.invalid, received.stale) == (6, 2, 1)


class _Wire:
    """A channel that refuses every fifth write, loses every tenth packet, and hands the others straight back."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.count = self.writes = 0

    def write_batch(self, packets: Any) -> int:
        self.writes += 1
        taken = list(packets) if self.writes % 5 else []
        for packet in taken:
            self.count += 1
            if self.count % 10:
                self.waiting.append(packet)
        return len(taken)

    def read_batch(self, most: int) -> list[bytes]:
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        return taken

    def fileno(self) -> int:
        return 0

    writable_fileno = fileno


def test_the_portable_generator_counts_every_packet_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rustguard_py.cli.generate.portable.select.select", lambda *_: None)
    wire: Any = _Wire()
    generator = PortableGenerator(wire, *ENDS)
    generator.receive(trial=2, flows=3)
    sent = generator.send(trial=2, sizes=[64, 594], flows=3, rate=4000.0, seconds=0.25)
    received = generator.report(sent=sent["sent"])
    assert (sent["offered"], sent["sent"]) == (1000, 800)
    assert (received["received"], received["reordered"], received["duplicates"]) == (720, 0, 0)
    trial = put_together(4000.0, {**sent, "engine": {}}, {**received, "engine": {}}, {"elsewhere": 80})
    assert (trial.refused, trial.lost, trial.loss) == (200, 80, 0.28)
    assert (received["expected"], trial.drops) == (sent["sent"] - 1, {"elsewhere": 80})


# -- histograms -----------------------------------------------------------------------------------------------------


def test_values_are_told_apart_to_three_digits() -> None:
    for value in [0, 1, 2047, 2048, 4095, 1_000_000, random.randrange(1 << 36)]:
        highest = equivalent(value)
        assert value <= highest <= value * 1.001 + 1
        assert equivalent(highest) == highest
    # What the crate says of the same value, see native/generator/src/sink.rs.
    assert equivalent(1_000_000) == 1_000_447


def test_percentiles_are_those_of_the_values_and_histograms_add_up() -> None:
    one, other = Histogram(), Histogram()
    for value in range(1, 1001):
        (one if value % 2 else other).add(value)
    one.merge(Histogram(other.pairs()))
    assert one.count == 1000
    assert [one.percentile(percent) for percent in (50, 90, 99, 99.9, 100)] == [500, 900, 990, 999, 1000]
    assert Histogram().percentile(50) is None


# -- the search -----------------------------------------------------------------------------------------------------


def _search(
    start: float, passes: Callable[[float], bool], limits: Limits | None = None
) -> tuple[Search, list[float]]:
    """Search where a load passes or not, in trials of a second."""
    search = Search(start, limits or Limits(), 0.0)
    loads: list[float] = []
    while (load := search.next_load(float(len(loads)))) is not None:
        loads.append(load)
        search.record(passes(load))
    return search, loads


@pytest.mark.parametrize("start", [20_000.0, 100_000.0, 3_000_000.0])
def test_the_highest_load_that_passes_is_found_to_the_resolution(start: float) -> None:
    search, loads = _search(start, lambda load: load <= 123_456, Limits(trials=60))
    assert search.ended == "resolution"
    assert search.best is not None
    assert 123_456 / 1.05 <= search.best <= 123_456
    assert max(load for load in loads if load <= 123_456) == search.best


def test_a_load_that_fails_once_is_tried_again() -> None:
    failed: set[float] = set()

    def passes(load: float) -> bool:
        hiccup = load not in failed
        failed.add(load)
        return load <= 100_000 and not hiccup

    search, _ = _search(90_000, passes, Limits(trials=60))
    assert search.best is not None
    assert 100_000 / 1.05 <= search.best <= 100_000


def test_the_search_ends_by_trials_by_time_and_at_the_floor() -> None:
    search, loads = _search(1e6, lambda load: load <= 123_456, Limits(trials=5))
    assert (search.ended, len(loads)) == ("trials", 5)
    search, loads = _search(1e6, lambda load: load <= 123_456, Limits(seconds=3))
    assert (search.ended, len(loads)) == ("time", 3)
    search, loads = _search(1000, lambda _: False, Limits(floor=100))
    assert (search.ended, search.best, loads[-1]) == ("floor", None, 100)


# -- trials and stages ----------------------------------------------------------------------------------------------


def made_up(load: float | None, capacity: float = 100_000, latency: int = 50_000) -> Trial:
    """Return a trial of one second through something that carries so many packets per second."""
    offered = int(load or 2 * capacity)
    received = min(offered, int(capacity))
    pairs = Histogram([(equivalent(latency), received)])
    threads_out = {"rg-out-0": Cpu(300 * received, 200 * received), "rg-timers": Cpu(received, 0)}
    threads_in = {"rg-in-0": Cpu(400 * received, 100 * received)}
    return Trial(
        load, 1.0, offered, offered, received, bytes=64 * received, latency=pairs, out=threads_out, inward=threads_in
    )


def test_ends_that_contradict_each_other_are_noticed() -> None:
    cpu = {"user": 0, "system": 0}
    sent = {
        "offered": 9,
        "sent": 8,
        "bytes": 512,
        "nanoseconds": 10**9,
        "lateness": [],
        "generator": cpu,
        "engine": {},
    }
    got: dict[str, Any] = {"received": 8, "expected": 8, "latency": [(7, 8)], "sink": cpu, "engine": {"all": cpu}}
    got |= dict.fromkeys(("duplicates", "reordered", "extent", "stale", "invalid", "bytes", "nanoseconds"), 0)
    trial = put_together(9.0, sent, got, {})
    assert (trial.refused, trial.lost, trial.rate) == (1, 0, 8.0)
    # What arrives later has been queued: it isn't what was carried in that second.
    assert put_together(9.0, sent, {**got, "nanoseconds": 2 * 10**9}, {}).rate == 4.0
    for wrong in ({"received": 9, "latency": [(7, 9)]}, {"expected": 9}, {"expected": 7}, {"latency": [(7, 7)]}):
        with pytest.raises(RustGuardError, match="contradict"):
            put_together(9.0, sent, {**got, **wrong}, {})


def test_a_trial_passes_only_if_its_load_was_offered_and_arrived_whole() -> None:
    whole = made_up(1000)
    assert whole.passes(0)
    assert not replace(whole, received=999).passes(0)
    assert replace(whole, received=999).passes(0.001)
    # Refused by the device, and so offered in vain.
    assert not replace(whole, sent=999, received=999).passes(0)
    assert not replace(whole, invalid=1).passes(0)
    assert not replace(whole, offered=900, sent=900, received=900).passes(0)
    assert not replace(whole, offered=0, sent=0, received=0).passes(1)


def test_cpu_time_is_attributed_to_stages_and_none_is_lost() -> None:
    trial = replace(made_up(1000), device={"read": 90_000.0, "write": 40_000.0}, generator=Cpu(5000, 0))
    found = stages.stages(trial)
    assert list(found) == [
        *("generator", "device read", "seal", "send", "receive", "open", "device write", "other threads", "sink")
    ]
    assert found["device read"] == 90
    assert (found["seal"], found["send"], found["receive"], found["open"]) == (210, 200, 100, 360)
    assert sum(found.values()) == (5000 + 501_000 + 500_000) / 1000
    without = stages.stages(replace(trial, device={}))
    assert sum(without.values()) == sum(found.values())
    other = stages.stages(replace(trial, out={"all": Cpu(7000, 0)}, inward={"all": Cpu(0, 9000)}))
    assert (other["sending end"], other["receiving end"]) == (7, 9)
    assert stages.stages(Trial(None, 1.0, 0, 0, 0)) == {}


def test_threads_are_read_from_what_the_kernel_says(tmp_path: Path) -> None:
    def task(number: int, name: str, user: int, system: int, whole: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        (folder / "comm").write_text(f"{name}\n")
        (folder / "stat").write_text(f"{number} ({name}) S {'0 ' * 10}{user} {system} 0\n")
        (folder / "schedstat").write_text(f"{whole} 0 0\n")

    for number, name in enumerate(("rg-out-0", "python", "rg-sink")):
        task(number, name, 10, 10, 200_000_000)
    before = threads.read(tmp_path)
    assert list(before) == ["rg-out-0"]
    task(0, "rg-out-0", 40, 20, 600_000_000)
    task(7, "rg-in-0", 0, 0, 3_000_000)
    (tmp_path / "9").mkdir()
    used = threads.used(before, threads.read(tmp_path))
    assert used["rg-out-0"] == {"user": 300_000_000, "system": 100_000_000}
    assert used["rg-in-0"] == {"user": 3_000_000, "system": 0}


# -- measuring and comparing ----------------------------------------------------------------------------------------


class _Pair:
    """A pair with a capacity in place of engines."""

    notes = ("something is missing",)
    about = "made up"

    def __init__(self, capacity: float) -> None:
        self._capacity = capacity

    def trial(self, load: float | None, *_: Any) -> Trial:
        return made_up(load, self._capacity)


def _measure(capacity: float, size: str = "64") -> Measured:
    made: Any = _Pair(capacity)
    return measure(made, replace(TRAFFIC, size=size), (0.5, 0.9), Limits(trials=30))


def test_one_contender_is_measured_from_saturation_down() -> None:
    measured = _measure(100_000)
    assert measured.saturated.load is None
    assert measured.best is not None
    assert measured.best.load is not None
    assert 100_000 / 1.05 <= measured.best.load <= 100_000
    assert [round(each.load or 0) for each in measured.loads.values()] == [
        round(share * measured.best.load) for share in (0.5, 0.9)
    ]
    nothing = _measure(0)
    assert (nothing.best, nothing.ended, nothing.loads) == (None, "floor", {})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run made-up contenders, and return the names of those that ran, in order."""
    ran: list[str] = []

    @contextmanager
    def running(contender: Contender, *_: Any, **__: Any) -> Iterator[Any]:
        ran.append(contender.name)
        if contender.name == "broken":
            raise RefusedError("It can't run.")
        yield _Pair(100_000 * len(contender.name))

    monkeypatch.setattr(compare, "running", running)
    monkeypatch.setattr("rustguard_py.cli.bench_generate.running", running)
    return ran


def _contenders(*names: str) -> tuple[list[Contender], dict[str, str]]:
    return [Contender(name, "channel", "sockets") for name in names], {"absent": "it isn't here"}


def _doing(_: str, act: Callable[[], None]) -> None:
    act()


def test_contenders_take_turns_and_one_that_fails_is_left_out(fake: list[str]) -> None:
    results = compare.run(TRAFFIC, 3, _doing, lambda: 0.0, _contenders("a", "broken", "bb"))
    assert fake == ["a", "broken", "bb", "bb", "a", "bb", "a"]
    assert list(results.contenders) == ["a", "bb"]
    assert set(results.left_out) == {"absent", "broken"}
    assert "It can't run" in results.left_out["broken"]
    assert [len(results.of(name, size)) for name in ("a", "bb") for size in compare.SIZES] == [3, 3, 3, 3]


def test_no_turn_begins_that_may_end_too_late(fake: list[str]) -> None:
    times = iter(range(0, 10_000, 300))
    results = compare.run(TRAFFIC, 3, _doing, lambda: float(next(times)), _contenders("a", "bb"))
    assert fake == ["a", "bb"][: len(fake)]
    assert "the time was up" in results.left_out["the rest"]
    # What one comparison may take in all: the turns that begin end in time.
    assert compare.longest_turn(TRAFFIC.seconds) < 60


@pytest.mark.usefixtures("fake")
def test_a_comparison_has_a_row_for_each_and_all_that_was_measured_in_json(tmp_path: Path) -> None:
    results = compare.run(TRAFFIC, 2, _doing, lambda: 0.0, _contenders("a", "bb"))
    for size in compare.SIZES:
        table = report.comparison(results, size)
        assert [row[:2] for row in table.rows] == [["channel", "sockets"]] * 2
        assert {len(row) for row in table.rows} == {len(table.headings)}
        first, second = (float(row[5].replace(",", "")) for row in table.rows)
        assert (first, second) == (100, 200)
        # Nanoseconds per packet, out and in, and the latency.
        assert table.rows[0][6:9] == ["501", "500", "50"]
        assert [row[4] for row in table.rows] == ["-", "-"]
        loads = report.latencies(results, size)
        assert loads.headings[2:] == ["25%", "50%", "75%", "100%", "saturated"]
        for row in loads.rows:
            assert [cell.count(" / ") for cell in row[2:]] == [2] * 5
        assert loads.rows[0][3].split(" / ")[0] == table.rows[0][8]
        assert all(line == line.rstrip() for line in table.text().splitlines())
    document = json.loads(json.dumps(report.document(results)))
    assert document["schema"] == report.SCHEMA
    assert [each["name"] for each in document["contenders"]] == ["a", "bb"]
    assert document["contenders"][0]["rounds"][0]["best"]["ns_per_packet"]["open"] == 400
    assert document["left_out"] == {"absent": "it isn't here"}
    assert all(path.stat().st_size > 10_000 for path in plot(results, tmp_path / "plot"))


def test_ratios_are_over_the_reference_of_the_same_round() -> None:
    slow, fast = _measure(100_000), _measure(200_000)
    none = replace(slow, best=None)
    names = {name: Contender(name, "channel", "sockets") for name in ("channel, sockets", report.REFERENCE)}
    rounds = {"channel, sockets": [fast, slow, fast], report.REFERENCE: [slow, slow, none]}
    table = report.comparison(Results(TRAFFIC, names, rounds=rounds), "64")
    # 2 and 1; the third has nothing to compare with.
    assert [row[4] for row in table.rows] == ["1.50", ""]
    pages = [page.splitlines() for page in table.markdown().split("\n\n")]
    # In several tables, each of which says what its rows are of.
    assert len(pages) == 2
    assert all(line.startswith("| channel | sockets | ") for page in pages for line in page[2:])
    assert sum(page[1].count("---") - 2 for page in pages) == len(table.headings) - 2
    assert max(len(line) for page in pages for line in page) <= 100


@pytest.mark.usefixtures("fake")
def test_a_comparison_is_published_between_the_marks_of_the_page(tmp_path: Path) -> None:
    results = compare.run(TRAFFIC, 2, _doing, lambda: 0.0, _contenders("a", "bb"))
    (tmp_path / "generate.json").write_text(json.dumps(report.document(results)))
    (tmp_path / "generate.md").write_text("a table\n")
    (tmp_path / "generate.png").write_bytes(b"a plot")
    docs = tmp_path / "docs"
    docs.mkdir()
    page = docs / "devices.md"
    page.write_text("before\n<!-- generate -->\nold\n<!-- /generate -->\nafter\n")
    published = runpy.run_path(str(ROOT / "bench/generated.py"))["publish"](tmp_path, docs)
    assert published == [page, docs / "generate.png"]
    said = page.read_text()
    assert re.fullmatch(
        r"before\n<!-- generate -->\n.*2 rounds.*a table.*<!-- /generate -->\nafter\n", said, re.DOTALL
    )
    assert "old" not in said
    # The real page has the marks.
    assert "<!-- generate -->\n" in (ROOT / "docs/internals/devices.md").read_text()


# -- the command ----------------------------------------------------------------------------------------------------


def _run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app.group, ["bench", "generate", *words])
    said = str(done.exception) if done.exception is not None and not done.output else done.output
    return done.exit_code, said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "63"], "from 64 to 1420 bytes, nor imix"),
        (["--size", "1421"], "from 64 to 1420 bytes, nor imix"),
        (["--size", "99999999999999"], "from 64 to 1420 bytes, nor imix"),
        (["--flows", "0"], "from 1 to 10000"),
        (["--flows", "10001"], "from 1 to 10000"),
        (["--rate", "0"], "from 1 to 100000000"),
        (["--seconds", "0.01"], "from 0.1 s to 60 s"),
        (["--seconds", "61"], "from 0.1 s to 60 s"),
        (["--loss", "51"], "from 0 to 50"),
        (["--loss", "nan"], "from 0 to 50"),
        (["--loss", "some"], "from 0 to 50"),
        (["--rounds", "2"], "--rounds has no meaning without --compare"),
        (["--compare", "--rate", "5"], "--rate has no meaning"),
        (["--compare", "--engine", "native"], "--engine has no meaning"),
        (["--compare", "--seconds", "3"], "trials of 2 s at most"),
        (["--compare", "--xdp", "eth0"], "--xdp has no meaning"),
        (["--engine", "kernel"], "takes its packets from a device of the kernel"),
        (["--engine", "portable", "--uring"], "portable engine has no io_uring"),
        (["--engine", "portable", "--xdp", "eth0"], "--xdp needs the native engine"),
        (["--engine", "tortoise"], "isn't one of the choices"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_bounds(words: list[str], said: str) -> None:
    code, output = _run(*words)
    assert code != 0
    assert said in output


@pytest.mark.skipif(not engine.has_native(), reason="this installation has no native engine")
def test_an_interface_name_that_can_be_none_is_refused() -> None:
    code, output = _run("--xdp", "a/b")
    assert code != 0
    assert "a/b" in output


@pytest.mark.usefixtures("fake")
def test_the_command_shows_loads_stages_and_files(tmp_path: Path) -> None:
    code, output = _run("--engine", "portable", "--size", "imix", "--output", str(tmp_path))
    assert code == 0, output
    assert "Throughput with no loss" in output
    for words in ("saturated", "90%", "p99.9", "something is missing", "other threads"):
        assert words in output
    assert {"generate.json", "generate.txt"} <= {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "generate.json").read_text())["contenders"][0]["name"] == "portable, sockets"


@pytest.mark.usefixtures("fake")
def test_one_load_is_shown_without_a_search() -> None:
    code, output = _run("--engine", "portable", "--rate", "5000", "--json")
    assert code == 0, output
    document = json.loads(output)
    assert (document["trial"]["offered"], document["trial"]["lost"]) == (5000, 0)
    assert document["notes"] == ["something is missing"]


def test_each_contender_here_is_named_or_its_absence_explained() -> None:
    found, missing = compare.contenders()
    names = {each.name for each in found} | set(missing)
    assert "wireguard-go" in names
    if engine.has_native():
        sides = ("sockets", "io_uring", "AF_XDP")
        assert {f"{device}, {side}" for device in ("channel", "memif", "tun") for side in sides} <= names
    assert pair.CAPACITY >= 1024


@pytest.mark.usefixtures("fake")
def test_one_load_is_written_to_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Pair, "notes", [], raising=False)
    monkeypatch.setattr(compare, "ours", lambda *_, **__: Contender("a", "channel", "sockets"))
    folder = tmp_path / "results"
    done = CliRunner().invoke(bench_generate.command, ["--rate", "5000", "--output", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    assert {each.name for each in folder.iterdir()} == {"generate.json", "generate.txt", "generate.md"}
    assert json.loads((folder / "generate.json").read_text()) == json.loads(done.stdout)
    assert "5,000 packets/s" in (folder / "generate.txt").read_text()


def test_the_loopback_is_no_name_for_the_link() -> None:
    done = CliRunner().invoke(bench_generate.command, ["--xdp", "lo"])
    assert isinstance(done.exception, UsageError)
    assert "--xdp xdp0" in done.exception.fix
