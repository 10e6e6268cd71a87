"""`up` on a tunnel that is up: the file's changes are applied, and options that can't be are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from rustguard_py.cli import up


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--memif", "/run/m.sock,mode=ethernet"], "--memif"),
        (["--engine", "native", "--group", "wheel"], "--group, --engine"),
        (["--foreground", "--trust-file"], None),
        ([], None),
    ],
)
def test_options_that_a_running_tunnel_does_not_take_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], named: str | None
) -> None:
    file = tmp_path / "wg7.conf"
    file.write_text(f"[Interface]\nPrivateKey = {'A' * 43}=\n")
    file.chmod(0o600)
    monkeypatch.setattr(up, "wait_for_socket", lambda *_: tmp_path / "socket")
    monkeypatch.setattr(up, "call", lambda *_: {"changes": []})
    shown = CliRunner().invoke(up.command, [str(file), "--state", str(tmp_path / "a state"), *words])
    assert shown.exit_code == 0, shown.output
    assert f"wg7 is up, and nothing in {file} has changed." in shown.output
    end = f"rustguard down wg7 --state '{tmp_path}/a state'"
    expected = f"wg7 goes on as it was started. To change {named}, end it first: "
    assert (expected in shown.output and end in shown.output) if named else "To change" not in shown.output
