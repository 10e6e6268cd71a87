"""Name servers while a tunnel is up: the commands for resolvconf and for systemd-resolved."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from rustguard_py.daemon import dns, outside
from rustguard_py.daemon.dns import Dns
from rustguard_py.model.errors import RefusedError, RustGuardError

NETLINK = cast(Any, None)
BOTH = Dns("wg0", ("10.0.0.1", "fd00::1"), ("lan.example", "other"))
SEARCH = Dns("wg0", (), ("lan.example",))


class Programs:
    """What is run, and how that ends."""

    def __init__(self) -> None:
        self.ran: list[tuple[list[str], str]] = []
        self.code: int | None = 0

    def run(self, argv: list[str], stdin: str = "") -> subprocess.CompletedProcess[str] | None:
        self.ran.append((argv, stdin))
        return None if self.code is None else subprocess.CompletedProcess(argv, self.code, "", "no such link\n")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Programs:
    made = Programs()
    monkeypatch.setattr(dns, "run", made.run)
    monkeypatch.setattr(dns, "_ORDER", tmp_path / "interface-order")
    return made


def test_systemd_resolved_gets_the_servers_and_all_names_or_only_the_search_domains(programs: Programs) -> None:
    said: list[str] = []
    BOTH.apply(NETLINK, "resolvectl", said.append)
    SEARCH.apply(NETLINK, "resolvectl", said.append)
    BOTH.undo(NETLINK, "resolvectl", said.append)
    commands = [
        "resolvectl dns wg0 10.0.0.1 fd00::1",
        "resolvectl domain wg0 ~. lan.example other",
        # An empty one removes those that were set before.
        "resolvectl dns wg0 ",
        "resolvectl domain wg0 lan.example",
        "resolvectl revert wg0",
    ]
    assert [" ".join(argv) for argv, _ in programs.ran] == commands
    assert said == [f"[#] {command}" for command in commands]


def test_resolvconf_gets_a_record_that_excludes_others_only_if_it_names_servers(
    programs: Programs, tmp_path: Path
) -> None:
    BOTH.apply(NETLINK, "resolvconf", lambda _: None)
    (tmp_path / "interface-order").write_text("# comment\nlo.*\ntun*\neth*\n")
    SEARCH.apply(NETLINK, "resolvconf", lambda _: None)
    SEARCH.undo(NETLINK, "resolvconf", lambda _: None)
    assert programs.ran == [
        (
            ["resolvconf", "-a", "wg0", "-m", "0", "-x"],
            "nameserver 10.0.0.1\nnameserver fd00::1\nsearch lan.example other\n",
        ),
        (["resolvconf", "-a", "tun.wg0"], "search lan.example\n"),
        (["resolvconf", "-d", "tun.wg0", "-f"], ""),
    ]


@pytest.mark.parametrize(("code", "why"), [(1, "resolvectl: no such link"), (None, "resolvectl: it is missing")])
def test_a_program_that_refuses_stops_the_start_and_says_why(programs: Programs, code: int | None, why: str) -> None:
    programs.code = code
    with pytest.raises(RustGuardError, match=why):
        BOTH.apply(NETLINK, "resolvectl", lambda _: None)


@pytest.mark.parametrize(("memo", "warned"), [("resolvconf", True), ("resolvectl", False)])
def test_an_undo_that_fails_is_said_only_of_resolvconf(programs: Programs, memo: str, *, warned: bool) -> None:
    programs.code = 1
    said: list[str] = []
    BOTH.undo(NETLINK, memo, said.append)
    assert any(line.startswith("[!]") for line in said) is warned


def test_a_machine_without_either_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, chosen in (({"resolvconf", "resolvectl"}, "resolvconf"), ({"resolvectl"}, "resolvectl")):
        monkeypatch.setattr(shutil, "which", lambda name, there=there: name if name in there else None)
        assert BOTH.prepare() == chosen
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RefusedError, match="neither resolvconf nor systemd-resolved"):
        BOTH.prepare()


# -- what another program changes ---------------------------------------------------------------------------


@pytest.fixture
def run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that stands for the places of resolvconf's records and resolv.conf."""
    monkeypatch.setattr(dns, "_RECORDS", (tmp_path / "interface", tmp_path / "interfaces"))
    monkeypatch.setattr(dns, "_RESOLV_CONF", tmp_path / "resolv.conf")
    return tmp_path


@pytest.mark.usefixtures("programs")
def test_a_record_that_is_gone_and_a_resolv_conf_without_our_servers_look_different(run_folder: Path) -> None:
    """Also with other lines in it, which are other programs' own."""
    resolv_conf, record = run_folder / "resolv.conf", run_folder / "interfaces/wg0"
    looks = [BOTH.look("resolvconf")]
    ours = "nameserver 10.0.0.1\nnameserver fd00::1\n"
    resolv_conf.write_text(ours)
    looks.append(BOTH.look("resolvconf"))
    record.parent.mkdir()
    looks.append(BOTH.look("resolvconf"))
    record.write_text(ours)
    looks.append(BOTH.look("resolvconf"))
    resolv_conf.write_text(f"# by hand\nsearch lan\n{ours}nameserver\nnameserver 192.0.2.1\n")
    looks.append(BOTH.look("resolvconf"))
    resolv_conf.write_text("nameserver 192.0.2.1\n")
    looks.append(BOTH.look("resolvconf"))
    record.unlink()
    looks.append(BOTH.look("resolvconf"))
    written = "10.0.0.1\nfd00::1\n"
    assert looks == [None, written, written, ours + written, ours + written, ours, ""]


def test_what_is_put_back_is_written_to_resolv_conf_also_when_resolvconf_has_it_already(programs: Programs) -> None:
    BOTH.put_back(NETLINK, "resolvconf", lambda _: None)
    assert [argv[1] for argv, _ in programs.ran] == ["-a", "-u"]
    programs.ran.clear()
    BOTH.put_back(NETLINK, "resolvectl", lambda _: None)
    assert [argv[1] for argv, _ in programs.ran] == ["dns", "domain"]


def test_with_a_helper_this_process_starts_no_program(programs: Programs) -> None:
    asked: list[tuple[str, str]] = []

    def helper(_step: object, what: str, memo: str) -> outside.Done:
        asked.append((what, memo))
        return outside.Done(("done",), "seen")

    said: list[str] = []
    outside.use(helper)
    try:
        for change in (BOTH.apply, BOTH.put_back, BOTH.undo):
            change(NETLINK, "resolvconf", said.append)
        assert BOTH.look("resolvconf") == "seen"
    finally:
        outside.use(None)
    assert asked == [(what, "resolvconf") for what in ("apply", "put_back", "undo", "look")]
    assert said == ["done"] * 3
    assert programs.ran == []


def test_the_files_of_the_program_in_charge_are_watched(run_folder: Path) -> None:
    (run_folder / "resolv.conf").symlink_to("elsewhere")
    assert BOTH.where("resolvconf") == (
        *(run_folder / each for each in ("interface", "interfaces", "resolv.conf", "elsewhere")),
    )
    assert Path("/run/systemd/resolve/netif") in BOTH.where("resolvectl")
