"""Completion in a shell: what each word can be, quickly, and nothing where nothing runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from rustguard_py.cli.app import group
from rustguard_py.quick import conf_files
from rustguard_py.service import systemd
from rustguard_py.state.client_records import ClientState, NetworkRecord
from rustguard_py.state.document import Document
from support.answering import answering

PEERS = [
    {"name": "laptop", "address4": "10.77.0.2"},
    {"name": "phone", "address4": None, "address6": "fd77::3"},
    {"name": "two\nlines", "address4": "10.77.0.4"},
]
STATUS = {"role": "tunnel", "interface": "wg0", "file": "/etc/wireguard/wg0.conf"}


@contextmanager
def running(state: Path) -> Iterator[None]:
    """Run a daemon on a state directory."""
    state.mkdir()
    handlers: Any = {"peers": lambda _: {"peers": PEERS}, "status": lambda _: STATUS}
    with answering(state, handlers):
        yield


def offered(line: str) -> list[str]:
    """Return what is offered for the last word of a command line."""
    *words, incomplete = line.split(" ")
    shell = ShellComplete(group, {}, "rustguard", "_RUSTGUARD_COMPLETE")
    found = shell.get_completions(words, incomplete)
    return [each.value if each.type == "plain" else f"<{each.type}>" for each in found]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = (tmp_path / "wireguard", tmp_path / "none")
    directories[0].mkdir()
    for name in ("wg0.conf", "office.conf", "notes.txt"):
        (directories[0] / name).touch()
    monkeypatch.setattr(conf_files, "DIRECTORIES", directories)
    monkeypatch.setattr(systemd, "installed", lambda: [systemd.Service("rustguard-serve")])
    monkeypatch.delenv("RUSTGUARD_STATE", raising=False)


def test_peers_daemons_and_tunnels_are_those_that_run(tmp_path: Path) -> None:
    with running(tmp_path / "home"):
        # A name with a line end in it would be two words.
        assert offered("peers revoke ") == ["laptop", "phone"]
        assert offered("peers rename p") == ["phone"]
        assert offered("peers reset ") == ["laptop", "phone"]
        assert offered("stop ") == offered("logs ") == ["home"]
        assert offered("stop x") == []
        assert offered("down ") == ["wg0"]
        assert offered("status --state ") == [str(tmp_path / "home")]
        # With --state, only that daemon's.
        assert offered(f"peers --state {tmp_path / 'home'} revoke ") == ["laptop", "phone"]
        assert offered(f"peers revoke --state {tmp_path / 'other'} ") == []


def test_networks_are_those_that_were_joined_the_last_one_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUSTGUARD_STATE", str(tmp_path / "client"))
    key = bytes(range(32))
    networks = tuple(
        NetworkRecord(
            host=host,
            port=51820,
            server_key=bytes([number]) * 32,
            preshared_key=key,
            name="laptop",
            address4=IPv4Interface("10.77.0.2/24"),
            address6=None,
            routes=(),
            mtu=1420,
            keepalive=25,
            gateway4=IPv4Address("10.77.0.1"),
            gateway6=None,
            joined=1e9,
        )
        for number, host in enumerate(("home.example", "office.example"))
    )
    document = Document.open(tmp_path / "client")
    assert document.load() is None
    document.save(ClientState(key, networks).to_json())
    document.close()
    assert offered("join ") == offered("leave ") == offered("export ") == ["office.example", "home.example"]
    assert offered("join o") == ["office.example"]


def test_files_services_and_choices() -> None:
    assert offered("up ") == ["office", "wg0"]
    assert offered("up w") == ["wg0"]
    # A path is the shell's own business.
    assert offered("up ./") == offered("up x") == ["<file>"]
    assert offered("service remove ") == ["rustguard-serve"]
    assert offered("completion ") == ["bash", "zsh", "fish"]
    assert offered("serve --engine n") == ["native"]
    assert {"serve", "status", "stop"} == set(offered("s")) - {"service"}


@pytest.mark.parametrize("line", ["peers revoke ", "stop ", "down ", "logs ", "join ", "leave ", "status --state "])
def test_where_nothing_runs_nothing_is_offered_at_once(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    began = time.monotonic()
    assert offered(line) == []
    # Less than a daemon that is missing is waited for by other commands.
    assert time.monotonic() - began < 2
    assert capfd.readouterr() == ("", "")


def test_a_broken_state_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUSTGUARD_STATE", str(tmp_path / "client"))
    (tmp_path / "client").mkdir(mode=0o700)
    (tmp_path / "client/state.json").write_text("{")
    assert offered("leave ") == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("shell", "words", "at", "answer"),
    [
        ("bash", "rustguard peers revoke l", "3", "plain,laptop\n"),
        ("zsh", "rustguard peers revoke l", "3", "plain\nlaptop\n10.77.0.2\n"),
        ("fish", "rustguard peers revoke l", "l", "plain,laptop\t10.77.0.2\n"),
    ],
)
def test_each_shell_gets_its_answer_and_no_more(tmp_path: Path, shell: str, words: str, at: str, answer: str) -> None:
    asked = {"_RUSTGUARD_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": at}
    with running(tmp_path / "home"):
        done = subprocess.run(
            [sys.executable, "-c", "from rustguard_py.cli.app import main; main()"],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
        )
    assert done.stderr == ""
    assert done.stdout == answer
