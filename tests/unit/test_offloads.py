"""Offloads: what a list asks for, what known kernels get wrong, what is kept."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

import rustguard_py
from rustguard_py import engine
from rustguard_py.cli import app, bench, bench_generate, demo
from rustguard_py.cli.generate import compare
from rustguard_py.cli.wg import command as wg
from rustguard_py.data_path import DataPath
from rustguard_py.model.errors import StateError, UsageError
from rustguard_py.model.offloads import ALL, NONE, OFFLOADS, Offloads, choose_offloads
from rustguard_py.planes.known_kernels import KNOWN, known_faults
from rustguard_py.quick import up
from rustguard_py.state import kept_offloads
from rustguard_py.state.client_records import ClientState
from support.embedded import Ends


@pytest.mark.parametrize(
    ("text", "off"),
    [
        ("auto", ["tso"]),
        ("all", []),
        ("none", list(OFFLOADS)),
        ("no-uso", ["tso", "uso"]),
        ("tso", []),
        ("none, udp-gro", [name for name in OFFLOADS if name != "udp-gro"]),
        ("no-udp-segmentation,all", []),
        ("all,no-tun-checksum,no-short-tail", ["tun-checksum", "short-tail"]),
    ],
)
def test_a_list_begins_from_what_the_kernel_does_right_and_later_items_count(text: str, off: list[str]) -> None:
    assert choose_offloads(text, ALL.without("tso")).off == off


@pytest.mark.parametrize("name", OFFLOADS)
def test_each_can_be_off_alone(name: str) -> None:
    assert choose_offloads(f"no-{name}", ALL).off == [name]


@pytest.mark.parametrize("text", ["", "tso,", "no-", "TSO", "no-no-tso", "all none"])
def test_a_name_that_is_unknown_is_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(UsageError, match="There is no offload") as caught:
        choose_offloads(text, ALL)
    assert "udp-segmentation" in caught.value.fix


def test_the_vnet_header_is_left_out_when_nothing_uses_it() -> None:
    assert ALL.needs_vnet
    assert not NONE.needs_vnet
    for name in ("tun_checksum", "tcp_merging", "udp_merging"):
        assert Offloads(**{**{each.replace("-", "_"): False for each in OFFLOADS}, name: True}).needs_vnet


@pytest.mark.parametrize(
    ("release", "guest", "off"),
    [
        ("7.0.0", False, {"udp-segmentation"}),
        ("7.0.2-6-pve", False, {"udp-segmentation"}),
        ("7.0.14-4-pve", False, set()),
        ("7.0.14-4-generic", False, {"udp-segmentation"}),
        ("7.1.4-arch1-1", False, {"udp-segmentation"}),
        ("7.1.5", False, set()),
        ("6.17.0-41-generic", True, {"udp-segmentation"}),
        ("6.17.0-41-generic", False, set()),
        ("6.17.0-42-generic", True, set()),
        ("6.8.5", False, set()),
        ("6.8.4-060804-generic", False, {"udp-merging"}),
        ("6.8", False, {"udp-merging"}),
        ("6.6.44-3.1-lts", False, {"udp-merging", "short-tail"}),
        ("6.6.45", False, {"udp-merging"}),
        ("6.6.x", False, {"udp-merging", "tcp-merging"}),
        ("4.9-ndm-5", False, {"udp-merging", "udp-segmentation"}),
        ("4.18.0-553.el8", False, {"udp-merging"}),
        ("six", False, {"udp-merging", "udp-segmentation"}),
    ],
)
def test_a_known_kernel_loses_what_it_gets_wrong_and_no_more(release: str, guest: bool, off: set[str]) -> None:
    assert {name for fault in known_faults(release, guest=guest) for name in fault.offloads} == off


def test_each_entry_has_a_source_and_offloads_that_there_are() -> None:
    for entry in KNOWN:
        assert set(entry.offloads) <= set(OFFLOADS)
        assert all("#" in source and "/" in source for source in entry.source.split(", "))


def test_every_entry_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/offloads.md").read_text()
    for name in (*OFFLOADS, *(source for entry in KNOWN for source in entry.source.split(", "))):
        assert name in page, name


def test_the_status_says_what_is_off_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="7.0.2-6-pve"))
    chosen = engine.choose(DataPath("portable"))
    assert chosen.offloads.off == ["udp-segmentation"]
    assert len(chosen.notes) == 1
    assert "tailscale/tailscale#19777" in chosen.notes[0]
    wanted = engine.choose(DataPath("portable", offloads="udp-segmentation,no-tso"))
    assert wanted.offloads.off == ["tso"]
    assert wanted.notes == ("Off: tso, as asked for (--offloads udp-segmentation,no-tso).",)
    with pytest.raises(UsageError):
        engine.choose(DataPath("portable", offloads="sideways"))


def test_a_list_on_the_command_line_is_kept_and_one_of_the_environment_is_not() -> None:
    assert DataPath(offloads="no-tso", keep_offloads=True).to_keep("none") == "no-tso"
    assert DataPath(offloads="auto", keep_offloads=True).to_keep("none") == ""
    assert DataPath(offloads="no-tso").to_keep("none") == "none"
    assert DataPath(offloads="no-tso").with_kept("none").offloads == "no-tso"
    assert DataPath().with_kept("none").offloads == "none"
    assert DataPath().with_kept("").offloads is None
    state = ClientState(os.urandom(32), offloads="no-tso")
    assert ClientState.from_json(state.to_json()) == state
    assert "offloads" not in ClientState(os.urandom(32)).to_json()


def test_up_keeps_the_list_of_the_command_line_until_auto_forgets_it(tmp_path: Path) -> None:
    def used(offloads: str | None, *, keep: bool = False) -> str | None:
        data_path = DataPath(offloads=offloads, keep_offloads=keep)
        return up._with_kept_offloads(up.UpOptions(tmp_path / "wg0.conf", "wg0", tmp_path, data_path)).offloads

    assert used(None) is None
    assert used("no-tso") == "no-tso"
    assert used(None) is None
    assert used("no-uso", keep=True) == "no-uso"
    # Of the environment: for this start.
    assert used("none") == "none"
    assert used(None) == "no-uso"
    assert used("auto", keep=True) == "auto"
    assert used(None) is None
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_list_is_refused_with_the_way_out(tmp_path: Path) -> None:
    kept = tmp_path / "offloads"
    kept.write_bytes(b"no-\xff\n")
    kept.chmod(0o600)
    with pytest.raises(StateError, match="is damaged: There is no offload") as caught:
        kept_offloads.load(tmp_path)
    assert caught.value.fix == f"Remove it: rm {kept}"


@pytest.mark.parametrize("words", ["serve", "join", "up", "demo", "bench", "bench generate", "rustguard-wg"])
def test_every_command_that_runs_a_plane_has_the_option_and_the_variable(words: str) -> None:
    command: click.Command = wg
    if words != "rustguard-wg":
        command = app.group
        for word in words.split():
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), word)
            assert found is not None
            command = found
    [option] = [each for each in command.params if each.name == "offloads"]
    assert isinstance(option, click.Option)
    assert (option.opts, option.envvar) == (["--offloads"], "RUSTGUARD_OFFLOADS")


def test_bench_and_demo_hand_the_list_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(data_path: DataPath) -> None:
        if data_path.engine == "kernel":
            raise UsageError("no")

    monkeypatch.setattr(engine, "choose", no_kernel)
    here, _ = bench.contenders("none, udp-gro")
    assert [each.words for each in here] == [
        None,
        "--engine native --offloads none,udp-gro",
        "--engine native --uring --offloads none,udp-gro",
        "--engine portable --offloads none,udp-gro",
    ]
    assert bench.contenders()[0][1].words == "--engine native"
    played = []

    class Recorded:
        def __init__(self, *given: Any) -> None:
            played.append(given[-1])

        def play(self) -> None:
            pass

    monkeypatch.setattr(demo, "Demo", Recorded)
    monkeypatch.setattr(demo, "Lab", click.Context(demo.command).scope)
    for given in (["--offloads", "no-uso"], []):
        with pytest.raises(SystemExit):
            demo.command.main(given, standalone_mode=False)
    assert played == [" --offloads no-uso", ""]


def test_bench_generate_hands_the_list_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def running(contender: Any, *_: Any, **__: Any) -> None:
        ran.append(contender.offloads)
        raise UsageError("enough")

    def compared(*given: Any) -> None:
        ran.extend({each.offloads for each in given[-1][0]})
        raise UsageError("enough")

    monkeypatch.setattr(bench_generate, "running", running)
    monkeypatch.setattr(compare, "run", compared)
    for given in (["--rate", "5"], [], ["--compare"]):
        with pytest.raises(UsageError, match="enough"):
            bench_generate.command.main(["--offloads", "no-uso", *given], standalone_mode=False)
    assert ran == ["no-uso"] * 3


def test_a_program_can_switch_them_off() -> None:
    config = Ends().other()
    connecting = rustguard_py.connect(config, offloads="no-udp-segmentation")
    assert connecting._engine.offloads.off == ["udp-segmentation"]
    with pytest.raises(UsageError, match="There is no offload 'sideways'"):
        rustguard_py.connect(config, offloads="sideways")
    wrong: Any = ["no-tso"]
    with pytest.raises(UsageError, match="is no list of names"):
        rustguard_py.connect(config, offloads=wrong)
