"""`rustguard leave`: what it asks, and what it does where nobody can answer."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from rustguard_py.cli.app import run
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.keys import encode_key, public_key
from rustguard_py.state.client_records import ClientState
from rustguard_py.state.document import Document
from support.joined import NETWORK


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    """A state directory with one network."""
    document = Document.open(tmp_path / "client")
    try:
        document.load()
        document.save(ClientState(bytes(32), (NETWORK,)).to_json())
    finally:
        document.close()
    return tmp_path / "client"


@pytest.mark.parametrize(
    ("answer", "code", "error"),
    [
        ("n\n", RefusedError.exit_code, "Nothing was changed."),
        ("", UsageError.exit_code, "To leave without being asked: --yes"),
        ("y\n", 0, f"Left {NETWORK.host}."),
    ],
)
def test_it_asks_and_an_end_of_input_is_no_answer(
    joined: Path,
    answer: str,
    code: int,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    assert run(["leave", "--state", str(joined)]) == code
    assert error in capsys.readouterr().err
    kept = Document.peek(joined)
    assert kept is not None
    assert bool(ClientState.from_json(kept).networks) is (code != 0)


def test_the_command_for_the_server_has_the_key_because_the_name_may_be_anothers_there(
    joined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["leave", "--yes", "--state", str(joined)]) == 0
    assert f"rustguard peers revoke {encode_key(public_key(bytes(32)))}\n" in capsys.readouterr().err
