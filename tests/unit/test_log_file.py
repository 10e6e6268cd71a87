"""The log of a daemon in the background is next to its state directory, whatever the directory's name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from rustguard_py.cli import show_logs
from rustguard_py.state import paths


@pytest.mark.parametrize("name", ["server", "wg0", "wg0.5", "vpn.home.example", ".hidden"])
def test_two_directories_have_two_logs(name: str, tmp_path: Path) -> None:
    assert paths.log_file(tmp_path / name) == tmp_path / f"{name}.log"


def test_the_log_of_a_directory_with_a_dot_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda _, words: shown.append(words))
    for name in ("wg0.log", "wg0.5.log"):
        (tmp_path / name).write_text("a line\n")
    CliRunner().invoke(show_logs.command, ["--state", str(tmp_path / "wg0.5")], catch_exceptions=False)
    assert [words[-1] for words in shown] == [str(tmp_path / "wg0.5.log")]
