"""A user without root restores what `join --rootless` had, and the commands in the hints need no root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rustguard_py.cli import backup as verb
from rustguard_py.cli.app import run
from rustguard_py.model import sudo
from rustguard_py.model.errors import InUseError
from rustguard_py.state.document import Document
from rustguard_py.state.sealed import Cost, seal
from support.backups import a_client

QUICK = Cost(log_n=4, r=8, p=1)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A backup of a client, and the words that open it."""
    monkeypatch.setattr(verb, "seal", lambda content, passphrase: seal(content, passphrase, QUICK))
    monkeypatch.setattr(sudo._Rootless, "is_it", False)
    monkeypatch.setattr(sudo, "_runner", lambda: "sudo")
    passphrase = tmp_path / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text("five-random-words-as-usual\n")
    document = Document.open(tmp_path / "client")
    document.load()
    document.save(a_client().to_json())
    document.close()
    words = [str(tmp_path / "a.backup"), "--passphrase-file", str(passphrase)]
    assert run(["backup", *words, "--state", str(tmp_path / "client")]) == 0
    monkeypatch.setattr("rustguard_py.cli.restore.is_ordinary_user", lambda: True)
    return words


def test_the_start_is_without_root(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["restore", *options, "--state", str(tmp_path / "other")]) == 0
    said = capsys.readouterr().err
    assert f"Start it: rustguard join --rootless --state {tmp_path / 'other'}" in said
    assert "sudo" not in said


def test_what_runs_is_stopped_without_root(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = Document.open(tmp_path / "client")
    words = ["--overwrite", "--state", str(tmp_path / "client")]
    assert run(["restore", *options, *words]) == InUseError.exit_code
    document.close()
    assert "Stop it first: rustguard stop client" in capsys.readouterr().err


def test_root_and_who_may_change_the_network_are_no_ordinary_users(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for user, net_admin in ((0, False), (1000, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        monkeypatch.setattr(sudo, "_has_net_admin", lambda net_admin=net_admin: net_admin)
        found.append(sudo.is_ordinary_user())
    assert found == [False, False, True]
