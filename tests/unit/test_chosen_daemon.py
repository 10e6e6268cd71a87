"""Which of several daemons on a machine a command is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rustguard_py.cli import daemon
from rustguard_py.model.errors import UnansweredError, UsageError
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
    return sockets


@pytest.mark.parametrize("method", ["open", "close", "revoke", "restore", "rename", "reset"])
def test_what_only_a_server_can_do_goes_to_the_only_server(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    sockets = _run(monkeypatch, ["tunnel", "server", "client", None])
    assert daemon.ask(None, method) == {"role": "server", "socket": sockets[1], "method": method}


@pytest.mark.parametrize("method", ["status", "peers"])
def test_what_each_daemon_can_do_needs_a_choice(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    _run(monkeypatch, ["tunnel", "server"])
    with pytest.raises(UsageError, match=r"^2 daemons run here") as caught:
        daemon.ask(None, method)
    assert "--state /var/lib/0\n" in f"{caught.value.fix}\n"


@pytest.mark.parametrize(
    ("roles", "listed"),
    [(["server", "tunnel", "server"], ["0", "2"]), (["tunnel", "client"], ["0", "1"]), ([None, None], ["0", "1"])],
)
def test_several_servers_and_none_need_a_choice(
    monkeypatch: pytest.MonkeyPatch, roles: list[str | None], listed: list[str]
) -> None:
    _run(monkeypatch, roles)
    with pytest.raises(UsageError, match=rf"^{len(listed)} daemons run here") as caught:
        daemon.ask(None, "open")
    assert [line.rpartition("/")[2] for line in str(caught.value.fix).splitlines()[1:]] == listed
