"""The units: their text, their limits, and what a command line makes of them."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import click
import pytest

from rustguard_py.cli import service as verb
from rustguard_py.cli.app import group, run
from rustguard_py.model import sudo
from rustguard_py.model.errors import NotRunningError, RefusedError, UsageError
from rustguard_py.service import systemd, unit
from rustguard_py.service.unit import Unit, quoted

PACKAGED = Path(__file__).parents[2] / "package/units"
MOST_EXPOSURE, MOST_EXPOSURE_XDP = 2.5, 2.8


@pytest.mark.parametrize("name", sorted(unit.packaged()))
def test_the_packages_units_are_those_of_the_program(name: str) -> None:
    assert (PACKAGED / name).read_text() == unit.packaged()[name]
    assert {path.name for path in PACKAGED.iterdir()} == set(unit.packaged())


def exposure(folder: Path, name: str) -> float:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"./{name}"],
        capture_output=True, text=True, check=True, timeout=60, cwd=folder,
    )  # fmt: skip
    return float(done.stdout.strip().splitlines()[-1].partition(": ")[2].split()[0])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_finds_little_exposed(tmp_path: Path) -> None:
    for name in ("rustguard-serve.service", "rustguard-join.service"):
        (tmp_path / name).write_text(unit.packaged()[name])
        plain = exposure(tmp_path, name)
        assert plain <= MOST_EXPOSURE
    (tmp_path / "rustguard-join.service.d").mkdir()
    (tmp_path / "rustguard-join.service.d/xdp.conf").write_text(unit.XDP)
    assert plain < exposure(tmp_path, "rustguard-join.service") <= MOST_EXPOSURE_XDP


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("--pool", "--pool"),
        ("10.150.0.0/24", "10.150.0.0/24"),
        ("my file", '"my file"'),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ('say "hi"\\', '"say \\"hi\\"\\\\"'),
        ("two\nlines", '"two\\nlines"'),
        ("", '""'),
    ],
)
def test_a_word_is_one_word_in_the_unit(word: str, written: str) -> None:
    assert quoted(word) == written


def test_the_token_is_named_and_never_written_into_the_unit() -> None:
    text = Unit("a server", ("/usr/bin/rustguard", "serve"), token=Path("/etc/rustguard/x.token")).text()
    assert "LoadCredential=token:/etc/rustguard/x.token" in text
    assert "ExecStart=/usr/bin/rustguard serve --token-file %d/token\n" in text
    assert "LoadCredential" not in Unit("a client", ("/usr/bin/rustguard", "join")).text()


def test_options_that_need_more_are_permitted_more_and_no_others_are() -> None:
    plain = Unit("x", ("/x",)).text()
    more = Unit("x", ("/x",), capabilities=("CAP_CHOWN",), sysfs=True, home=True, state=Path("/srv/a b")).text()
    assert "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE\n" in plain
    assert "CAP_CHOWN" in more
    assert "ProtectKernelTunables" in plain
    assert "ProtectKernelTunables" not in more
    assert "ProtectHome=yes" in plain
    assert "ProtectHome=read-only" in more
    assert 'ReadWritePaths="/srv/a b"' in more
    assert "ReadWritePaths" not in plain
    assert "ReadWritePaths=-/run/vpp\n" in Unit("x", ("/x",), memif=Path("/run/vpp")).text()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with systemd, whose systemctl only notes what it is asked."""
    for name in ("units", "tokens", "state", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setattr(systemd, "UNITS", tmp_path / "units")
    monkeypatch.setattr(systemd, "TOKENS", tmp_path / "tokens")
    monkeypatch.setattr(systemd, "require", lambda **_: None)
    monkeypatch.setenv("RUSTGUARD_RUNTIME", str(tmp_path / "run"))
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def systemctl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        assert check in (True, False)
        with (tmp_path / "asked").open("a") as file:
            file.write(" ".join(words) + "\n")
        failing = (tmp_path / "failing").exists() and words[0] == "restart"
        return subprocess.CompletedProcess(words, int(failing), "", "")

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    monkeypatch.setattr(systemd, "_last_lines", lambda _: "There is an interface rg0 already.")
    return tmp_path


def serve(machine: Path, *words: str) -> int:
    state = ["--state", str(machine / "state")]
    return run(["serve", "--service", "--pool", "10.9.0.0/24", *state, *words])


def test_serve_as_a_service_keeps_its_options_and_hides_its_token(machine: Path) -> None:
    token = machine / "secret"
    token.write_text("maple-comet-fjord\n")
    assert serve(machine, "--token-file", str(token), "--port", "443", "--most", "3", "--log-level", "debug") == 0
    text = (machine / "units/rustguard-serve-state.service").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    assert line.endswith(
        f" serve --pool 10.9.0.0/24 --port 443 --log-level debug --state {machine}/state --token-file %d/token"
    )
    kept = machine / "tokens/rustguard-serve-state.token"
    assert kept.read_text() == "maple-comet-fjord\n"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "maple" not in text
    asked = (machine / "asked").read_text().splitlines()
    assert asked == ["daemon-reload", "enable rustguard-serve-state", "restart rustguard-serve-state"]


@pytest.mark.parametrize(
    ("memif", "word", "writes"),
    [("/run/vpp/m,id=3,role=server", "", True), ("/run/vpp/m", "", False), ("none", "none", False)],
)
def test_a_service_on_a_memif_may_make_its_socket(machine: Path, memif: str, word: str, writes: bool) -> None:
    assert serve(machine, "--memif", memif) == 0
    text = (machine / "units/rustguard-serve-state.service").read_text()
    assert f" --memif {word or memif} " in text
    assert ("ReadWritePaths=-/run/vpp\n" in text) is writes


def test_a_memifs_secret_is_not_written_into_a_unit(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(machine, "--memif", "/run/vpp/m,secret=psst") == 2
    assert "Run `rustguard serve` with --memif once: it is kept" in capsys.readouterr().err
    assert list((machine / "units").iterdir()) == []


def test_the_long_form_installs_the_same(machine: Path) -> None:
    words = ["--pool", "10.9.0.0/24", "--xdp", "lo", "--state", str(machine / "state")]
    assert run(["service", "install", "serve", *words]) == 0
    long = (machine / "units/rustguard-serve-state.service").read_text()
    assert (machine / "units/rustguard-serve-state.service.d/xdp.conf").read_text() == unit.XDP
    assert serve(machine) == 0
    assert (machine / "units/rustguard-serve-state.service").read_text() == long.replace(" --xdp lo", "")
    assert not (machine / "units/rustguard-serve-state.service.d").exists()


def test_services_are_listed_by_name(machine: Path) -> None:
    shutil.copytree(machine / "state", machine / "third")
    # As file names, the longer one would be first: "-" sorts before ".".
    for words in (["--state", str(machine / "third")], ["--state", str(machine / "state")]):
        assert run(["service", "install", "serve", *words]) == 0
    (machine / "units/rustguard-serve-state.service").rename(machine / "units/rustguard-serve.service")
    assert [each.name for each in systemd.installed()] == ["rustguard-serve", "rustguard-serve-third"]


def test_a_join_without_root_is_a_service_of_the_users_own_systemd(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(machine / "config"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sudo._Rootless, "is_it", False)
    (machine / "state/state.json").write_text("{}")
    words = ["--rootless", "--dns", "10.9.0.1", "--dns", "fd00::1", "--state", str(machine / "state")]
    assert run(["service", "install", "join", *words]) == 0
    file = machine / "config/systemd/user/rustguard-join-state.service"
    text = file.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    assert line.endswith(f" join --rootless --dns 10.9.0.1 --dns fd00::1 --state {machine}/state")
    assert "WantedBy=default.target\n" in text
    assert "Capability" not in text
    assert "loginctl enable-linger" in capsys.readouterr().err
    assert [each.user for each in systemd.installed()] == [True]
    assert run(["service", "remove", "join-state"]) == 0
    assert not file.exists()
    assert list((machine / "units").iterdir()) == []
    name = "rustguard-join-state"
    assert (machine / "asked").read_text().splitlines() == [
        "--user daemon-reload",
        f"--user enable {name}",
        f"--user restart {name}",
        f"--user disable {name} --now",
        "--user daemon-reload",
        f"--user reset-failed {name}",
    ]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_can_read_a_users_unit(tmp_path: Path) -> None:
    file = tmp_path / "rustguard-join.service"
    file.write_text(Unit("a client", ("/bin/sh", "join"), user=True).text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", file],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [line for line in done.stderr.splitlines() if "rustguard-join" in line] == []


def test_a_service_that_does_not_start_is_taken_back(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "failing").touch()
    assert serve(machine) == 1
    assert list((machine / "units").iterdir()) == []
    assert "There is an interface rg0 already." in capsys.readouterr().err


def test_somebody_elses_unit_is_neither_replaced_nor_removed(machine: Path) -> None:
    (machine / "units/rustguard-serve-state.service").write_text("[Unit]\n")
    assert serve(machine) == RefusedError.exit_code
    assert run(["service", "remove", "serve-state"]) == NotRunningError.exit_code
    assert (machine / "units/rustguard-serve-state.service").read_text() == "[Unit]\n"


def test_remove_takes_unit_and_token(machine: Path) -> None:
    token = machine / "secret"
    token.write_text("maple-comet-fjord\n")
    assert serve(machine, "--token-file", str(token)) == 0
    assert run(["service", "remove"]) == 0
    assert list((machine / "units").iterdir()) == []
    assert list((machine / "tokens").iterdir()) == []


def test_one_of_several_services_has_to_be_named(machine: Path) -> None:
    for name in ("rustguard-serve", "rustguard-join"):
        (machine / f"units/{name}.service").write_text(unit.MARK)
    with pytest.raises(UsageError):
        systemd.find(None)
    assert systemd.find("join").name == "rustguard-join"


def test_a_users_only_service_is_meant_where_the_machine_has_one_of_the_same_name(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(machine / "config"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (machine / "units/rustguard-join.service").write_text(unit.MARK)
    assert not systemd.find(None).user
    (machine / "config/systemd/user").mkdir(parents=True)
    (machine / "config/systemd/user/rustguard-join.service").write_text(unit.MARK)
    assert systemd.find(None).user
    assert len(systemd.installed()) == 2
    (machine / "config/systemd/user/rustguard-join-work.service").write_text(unit.MARK)
    with pytest.raises(UsageError, match="2 services are installed"):
        systemd.find(None)


def test_up_as_a_service_applies_a_changed_file(machine: Path) -> None:
    file = machine / "wg7.conf"
    file.write_text(f"[Interface]\nPrivateKey = {'A' * 43}=\n")
    file.chmod(0o600)
    assert run(["service", "install", "up", str(file), "--state", str(machine / "state")]) == 0
    text = (machine / "units/rustguard-up-wg7.service").read_text()
    assert f" up --state {machine}/state --foreground {file}\n" in text
    assert f"ExecReload={' '.join(verb._program())} up --state {machine}/state {file}\n" in text
    assert "CapabilityBoundingSet" not in text


@pytest.mark.parametrize(("typed", "meant"), [("stauts", "status"), ("sevre", "serve"), ("jion", "join")])
def test_a_mistyped_command_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(click.UsageError, match=f"Did you mean `{meant}`"):
        group.main([typed], standalone_mode=False)


def test_what_undoes_something_that_isnt_there_is_done_already(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["leave", "--state", str(machine / "nothing")]) == 0
    assert "Nothing is joined here" in capsys.readouterr().err
    assert not (machine / "nothing").exists()
    assert run(["service", "remove"]) == 0
    assert capsys.readouterr().err == "No service is installed.\n"
    # A name is an error: it may be mistyped, or somebody else's.
    assert run(["service", "remove", "serve"]) == NotRunningError.exit_code


def test_stop_with_nothing_there(machine: Path) -> None:
    assert machine.exists()
    assert run(["stop"]) == NotRunningError.exit_code
    assert run(["stop", "--all"]) == 0
    assert run(["stop", "--all", "server"]) == UsageError.exit_code


def test_an_upgrade_names_the_users_whose_clients_go_on_with_the_old_program(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "package/debian/postinst"
    function = re.search(r"^tell_users\(\) \{\n.*?^\}\n", script.read_text(), re.MULTILINE | re.DOTALL)
    assert function is not None
    for user, name in (("1000", "a.sock"), ("1001", "a.state")):
        runtime = tmp_path / user / "rustguard"
        runtime.mkdir(parents=True)
        if name.endswith(".sock"):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(runtime / name))
        else:
            (runtime / name).touch()
    told = subprocess.run(
        ["sh", "-euc", f'{function[0]}tell_users "$1"', "sh", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert told.count("goes on with the old program") == 1
    assert "systemctl --user restart rustguard-join" in told
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
