"""What earlier versions saved opens, and what a later one saved is refused with the way back, and stays as it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.cli.app import run
from rustguard_py.model.errors import StateError
from rustguard_py.state import envelope
from rustguard_py.state.backup import Backup, Places, take
from rustguard_py.state.client_records import ClientState
from rustguard_py.state.document import Document
from rustguard_py.state.journal import TimestampJournal
from rustguard_py.state.records import ServerState

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests/data/states"
VERSIONS = sorted(path.name for path in KEPT.iterdir() if path.is_dir())


def copied(version: str, role: str, above: Path) -> Path:
    """Return a state directory that a version left, with the modes that git doesn't keep."""
    directory = above / version / role
    shutil.copytree(KEPT / version / role, directory)
    directory.chmod(0o700)
    for path in directory.iterdir():
        path.chmod(0o600)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}


def test_each_version_that_was_released_has_its_state_here() -> None:
    dated = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sorted(dated) == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_of_each_version_opens_with_all_its_peers(version: str, tmp_path: Path) -> None:
    directory = copied(version, "server", tmp_path)
    document = Document.open(directory)
    state = ServerState.from_json(document.load())
    laptop, phone = state.peers.values()
    assert (laptop.name, phone.name) == ("laptop", "Anna's Phone")
    assert (str(laptop.address4), str(phone.address4)) == ("10.150.0.2", "10.150.0.3")
    assert laptop.address6 is not None
    assert state.pool6 is not None
    assert laptop.address6 in state.pool6
    assert len(state.revoked) == 1
    assert not any(peer.has_to_join_again for peer in state.peers.values())
    # The replay protection goes on where it was.
    journal = TimestampJournal.open(directory)
    assert journal.greatest(laptop.public_key) is not None
    assert journal.bad == 0
    journal.close()
    document.save(state.to_json())
    document.close()
    again = Document.peek(directory)
    assert ServerState.from_json(again) == state


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_of_each_version_opens_with_its_network(version: str, tmp_path: Path) -> None:
    directory = copied(version, "client", tmp_path)
    document = Document.open(directory)
    state = ClientState.from_json(document.load())
    document.save(state.to_json())
    document.close()
    network = state.network("192.0.2.1")
    assert network is not None
    assert (network.name, str(network.address4), network.port) == ("laptop", "10.150.0.2/24", 51820)
    server = ServerState.from_json(Document.peek(copied(version, "server", tmp_path)))
    assert network.preshared_key in {peer.preshared_key for peer in server.peers.values()}
    assert ClientState.from_json(Document.peek(directory)) == state


@pytest.mark.parametrize("version", VERSIONS)
def test_it_can_be_backed_up_as_it_is(version: str, tmp_path: Path) -> None:
    copied(version, "server", tmp_path)
    copied(version, "client", tmp_path)
    taken = take(Places(tmp_path / version), version, "vm")
    assert Backup.decode(taken.encode()) == taken
    assert taken.directories == ["client", "server"]


# -- what a later version saved ------------------------------------------------------------------------------------


def of_a_later_form(document: dict[str, Any]) -> bytes:
    """Return the document with a schema number that is not known yet, as a later version would write it."""
    later = {"data": document["data"], "generation": document["generation"], "schema": envelope.STATE_SCHEMA + 1}
    text = json.dumps(later, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps({**later, "checksum": f"sha256:{sha256(text.encode()).hexdigest()}"}).encode()


def with_a_new_member(document: dict[str, Any]) -> bytes:
    """Return the document with a member that is not known yet."""
    return envelope.encode(document["generation"], {**document["data"], "colour": "red"})


@pytest.mark.parametrize("later", [of_a_later_form, with_a_new_member])
@pytest.mark.parametrize(("role", "words"), [("server", "serve"), ("client", "join"), ("client", "leave --yes")])
def test_what_a_later_version_saved_is_refused_with_the_way_back_and_stays_as_it_is(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    later: Callable[[dict[str, Any]], bytes],
    role: str,
    words: str,
) -> None:
    directory = copied("0.2.0", role, tmp_path)
    path = directory / "state.json"
    path.write_bytes(later(json.loads(path.read_bytes())))
    before = contents(directory)
    assert run([*words.split(), "--state", str(directory)]) == StateError.exit_code
    said = capsys.readouterr().err
    assert "later version of RustGuard" in said
    assert "pgrade" in said
    assert "rustguard restore FILE --overwrite" in said
    assert contents(directory) == before
