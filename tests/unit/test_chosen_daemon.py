"""Which of several daemons on a machine a command is for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.cli import daemon
from rustguard_py.cli.app import run
from rustguard_py.cli.daemon import server_meant, servers
from rustguard_py.model.errors import RefusedError, UnansweredError, UsageError
from rustguard_py.state import paths


def _run(monkeypatch: pytest.MonkeyPatch, roles: list[str | None]) -> list[Path]:
    """Let daemons of these roles run, one with None without an answer; return their sockets."""
    sockets = [Path(f"/run/rustguard/{number}.sock") for number in range(len(roles))]

    def call(socket: Path, method: str, _: Any = None) -> dict[str, Any]:
        role = roles[sockets.index(socket)]
        if role is None:
            raise UnansweredError("It is silent.")
        return {"role": role, "socket": socket, "method": method}

    found = [paths.Candidate(Path(f"/var/lib/{number}"), socket) for number, socket in enumerate(sockets)]
    monkeypatch.setattr(paths, "running", lambda: found)
    monkeypatch.setattr(daemon, "listens", lambda _: True)
    monkeypatch.setattr(daemon, "call", call)
    monkeypatch.setattr(os, "access", lambda *_, **__: True)
    return sockets


@pytest.mark.parametrize("method", ["open", "close", "revoke", "restore", "rename", "reset"])
def test_what_only_a_server_can_do_goes_to_the_only_server(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    sockets = _run(monkeypatch, ["tunnel", "server", "client", None])
    assert daemon.ask(None, method) == {"role": "server", "socket": sockets[1], "method": method}


@pytest.mark.parametrize(
    ("method", "roles", "listed"),
    [
        ("status", ["tunnel", "server", "client"], ["0", "1", "2"]),
        ("status", ["tunnel", "tunnel"], ["0", "1"]),
        ("status", ["server", None], ["0", "1"]),
        ("peers", ["server", "tunnel", "server"], ["0", "1", "2"]),
        ("peers", ["client", "client"], ["0", "1"]),
        ("open", ["server", "tunnel", "server"], ["0", "2"]),
        ("open", ["tunnel", None], ["0", "1"]),
        ("open", [None, None], ["0", "1"]),
    ],
)
def test_several_that_may_be_meant_need_a_choice(
    monkeypatch: pytest.MonkeyPatch, method: str, roles: list[str | None], listed: list[str]
) -> None:
    _run(monkeypatch, roles)
    with pytest.raises(UsageError, match=rf"^{len(listed)} daemons run here") as caught:
        daemon.ask(None, method)
    assert [line.rpartition("/")[2] for line in str(caught.value.fix).splitlines()[1:]] == listed


@pytest.mark.parametrize(
    ("method", "roles", "meant"),
    [
        ("status", ["tunnel", "server"], 1),
        ("status", ["client", "tunnel", "tunnel"], 0),
        ("peers", ["client", "tunnel", "server"], 2),
        ("peers", ["tunnel", "client"], 1),
    ],
)
def test_next_to_tunnels_of_up_the_only_other_one_is_meant(
    monkeypatch: pytest.MonkeyPatch, method: str, roles: list[str | None], meant: int
) -> None:
    sockets = _run(monkeypatch, roles)
    assert daemon.ask(None, method)["socket"] == sockets[meant]


def test_where_no_server_runs_nothing_that_needs_one_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch, ["tunnel", "client"])
    with pytest.raises(RefusedError, match=r"^None of the 2 daemons here is a server") as caught:
        daemon.ask(None, "open")
    assert caught.value.fix == "Run it on the server."


def test_status_shows_all_that_answer_and_the_error_of_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sockets = _run(monkeypatch, ["tunnel", None, "server"])
    documents, errors = daemon.statuses(None)
    assert [each["socket"] for each in documents] == [sockets[0], sockets[2]]
    # By the name that a person knows it by, as the choices have it.
    assert [error.message for error in errors] == ["The daemon on /var/lib/1 doesn't answer."]
    with pytest.raises(UnansweredError, match=r"^The daemon on /var/lib/1 doesn't answer\.$"):
        daemon.ask(Path("/var/lib/1"), "status")
    common = {"interface": "rg0", "peers": [], "uptime": 1, "port": 1, "mtu": 1420, "addresses": ["10.9.0.1/24"]}
    common |= {"public_key": "k" * 44, "fingerprint": "F" * 16}
    shown = [{**common, "role": each["role"], "state_directory": f"/var/lib/{each['role']}"} for each in documents]
    monkeypatch.setattr("rustguard_py.cli.status.statuses", lambda _: (shown, errors))
    assert run(["status"]) == UnansweredError.exit_code
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines() if line.startswith("state")] == [
        ["state", "/var/lib/tunnel"],
        ["state", "/var/lib/server"],
    ]
    assert "The daemon on /var/lib/1 doesn't answer." in err


def test_a_health_check_fails_if_one_of_several_is_ill_or_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    well = {"interface": "rg0", "engine": "native", "healthy": True}
    ill = {"interface": "wg0", "engine": "native", "healthy": False, "warnings": ["The data plane is gone."]}
    found: tuple[list[dict[str, Any]], list[Exception]] = ([well, {**ill, "healthy": True}], [])
    monkeypatch.setattr("rustguard_py.cli.status.statuses", lambda _: found)
    assert run(["status", "--healthy"]) == 0
    assert capsys.readouterr().out == "rg0 is healthy, engine native.\nwg0 is healthy, engine native.\n"
    found = ([well, ill], [])
    assert run(["status", "--healthy"]) == 1
    assert "wg0 isn't healthy. The data plane is gone." in capsys.readouterr().err
    found = ([well], [UnansweredError("It is silent.")])
    assert run(["status", "--healthy"]) == 1
    assert "It is silent." in capsys.readouterr().err


@pytest.mark.parametrize("other", ["--json", "--watch"])
def test_a_health_check_ignores_no_option(capsys: pytest.CaptureFixture[str], other: str) -> None:
    assert run(["status", "--healthy", other]) == UsageError.exit_code
    assert f"--healthy and {other} exclude each other." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("roles", "meant"),
    [
        (["tunnel", "server"], "/var/lib/1"),
        (["client"], "usual"),
        ([], "usual"),
    ],
)
def test_the_only_server_that_runs_is_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, roles: list[str | None], meant: str
) -> None:
    _run(monkeypatch, roles)
    monkeypatch.setenv("RUSTGUARD_SYSTEM_STATE", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("RUSTGUARD_STATE", raising=False)
    usual = paths.state_directory("server")
    assert server_meant(None, servers(), "audit") == (usual if meant == "usual" else Path(meant))
    assert server_meant(tmp_path / "given", servers(), "audit") == (tmp_path / "given").resolve()


def test_which_of_several_servers_is_meant_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _run(monkeypatch, ["server", "server"])
    monkeypatch.setenv("RUSTGUARD_SYSTEM_STATE", str(tmp_path))
    monkeypatch.delenv("RUSTGUARD_STATE", raising=False)
    with pytest.raises(UsageError, match=r"^2 servers run here\.$") as caught:
        server_meant(None, servers(), "rustguard export --new NAME")
    assert "rustguard export --new NAME --state /var/lib/1" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("role", "words", "changed"),
    [
        ("client", ["--token-file", "secret", "--interface", "vpn0"], "--interface"),
        ("client", ["--token", "secret"], None),
        ("server", ["--token-file", "secret"], "--token-file"),
    ],
)
def test_a_second_start_names_the_options_that_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    role: str,
    words: list[str],
    changed: str | None,
) -> None:
    found = {"interface": "rg0", "pid": 7, "role": role, "peers": [{"name": "home.example"}], "rootless": None}
    monkeypatch.setattr(daemon, "_status_of", lambda *_: found)
    (tmp_path / "secret").write_text("maple-comet-fjord\n")
    (tmp_path / "secret").chmod(0o600)
    monkeypatch.chdir(tmp_path)
    assert run(["join" if role == "client" else "serve", *words, "--state", str(tmp_path / "state")]) == 0
    err = capsys.readouterr().err
    assert (f"To change {changed}, end it first" in err) is (changed is not None)
    assert ("It goes on as it was started" in err) is (changed is not None)


def test_what_a_user_may_not_use_is_meant_only_if_there_is_nothing_else_or_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sockets = _run(monkeypatch, ["tunnel", "client"])
    permitted = {sockets[1]}
    monkeypatch.setattr(os, "access", lambda path, *_, **__: path in permitted)
    assert [each.socket for each in daemon.running()] == [sockets[1]]
    assert [each.socket for each in daemon.running(named=True)] == sockets
    assert daemon.ask(None, "status")["socket"] == sockets[1]
    assert [each["socket"] for each in daemon.statuses(None)[0]] == [sockets[1]]
    permitted.clear()
    assert [each.socket for each in daemon.running()] == sockets
