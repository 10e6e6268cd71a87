"""Offloads: what a list asks for, what known kernels get wrong, what is kept."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from rustguard_py import engine
from rustguard_py.data_path import DataPath
from rustguard_py.model.errors import UsageError
from rustguard_py.model.offloads import ALL, NONE, OFFLOADS, Offloads, choose_offloads
from rustguard_py.planes.known_kernels import KNOWN, known_faults
from rustguard_py.state.client_records import ClientState


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
