"""Peers of the first RustGuard become a server's."""

from __future__ import annotations

from base64 import b64encode
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from click.testing import CliRunner

from rustguard_py.cli.app import run
from rustguard_py.enroll.v1_takeover import parse
from rustguard_py.errors import UsageError
from rustguard_py.state.document import Document
from rustguard_py.state.records import ServerState

# The same in each worker of a run: they are in the names of tests.
KEYS = [b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3)]
FILE = f"""# kept by the first one
{KEYS[0]} 10.77.0.2 192.0.2.7:40000

{KEYS[1]} 10.77.0.3/32 [2001:db8::7]:51820
{KEYS[2]} 10.77.0.9
"""


def state(directory: Path) -> ServerState:
    document = Document.open(directory)
    try:
        data = document.load()
    finally:
        document.close()
    assert data is not None
    return ServerState.from_json(data)


def imported(tmp_path: Path, *more: str, text: str = FILE) -> int:
    file = tmp_path / "old"
    file.write_text(text)
    with CliRunner().isolation():
        return run(["import", "--rustguard-state", str(file), "--state", str(tmp_path / "state"), *more])


def test_each_line_is_a_peer() -> None:
    peers = parse(FILE, "old")
    assert [str(peer.address) for peer in peers] == ["10.77.0.2", "10.77.0.3", "10.77.0.9"]
    assert [peer.endpoint for peer in peers] == ["192.0.2.7:40000", "[2001:db8::7]:51820", None]


def test_a_new_server_has_the_peers_the_pool_and_the_old_key(tmp_path: Path) -> None:
    key = b64encode(bytes(range(32))).decode()
    (tmp_path / "key").write_text(key + "\n")
    assert imported(tmp_path, "--pool", "10.77.0.0/24", "--private-key", str(tmp_path / "key")) == 0
    kept = state(tmp_path / "state")
    assert kept.private_key == bytes(range(32))
    assert kept.pool4 == IPv4Network("10.77.0.0/24")
    assert {str(peer.address4) for peer in kept.peers.values()} == {"10.77.0.2", "10.77.0.3", "10.77.0.9"}
    assert {peer.preshared_key for peer in kept.peers.values()} == {bytes(32)}


def test_a_server_that_is_there_gets_them_beside_its_own_and_again_changes_nothing(tmp_path: Path) -> None:
    assert imported(tmp_path, "--pool", "10.77.0.0/24", text=FILE.splitlines()[1]) == 0
    first = state(tmp_path / "state")
    assert imported(tmp_path) == 0
    assert imported(tmp_path) == 0
    kept = state(tmp_path / "state")
    assert kept.private_key == first.private_key
    assert len(kept.peers) == 3
    assert imported(tmp_path, "--pool", "10.77.0.0/24") == 2


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (f"{KEYS[1]}", "1 words"),
        (f"{KEYS[1]} 10.77.0.3 192.0.2.1:1 more", "4 words"),
        ("nonsense 10.77.0.3", "isn't a WireGuard key"),
        (f"{KEYS[1]} 10.77.0", "no IPv4 address"),
        (f"{KEYS[1]} 10.77.0.3 home.example:51820", "no endpoint"),
        (f"{KEYS[1]} 10.77.0.3 192.0.2.1", "no endpoint"),
        (f"{KEYS[0]} 10.77.0.3", "the same key or address"),
        (f"{KEYS[1]} 10.77.0.2", "the same key or address"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named_and_nothing_is_kept(tmp_path: Path, line: str, what: str) -> None:
    text = f"{KEYS[0]} 10.77.0.2\n{line}\n"
    with pytest.raises(UsageError, match=f"line 2: .*{what}"):
        parse(text, "old")
    assert imported(tmp_path, "--pool", "10.77.0.0/24", text=text) == 2
    assert not (tmp_path / "state/state.json").exists()


def test_an_address_outside_the_pool_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    assert imported(tmp_path, "--pool", "10.78.0.0/24") == 4
    assert not (tmp_path / "state/state.json").exists()


def test_a_new_server_needs_a_pool_and_a_file_is_needed(tmp_path: Path) -> None:
    assert imported(tmp_path) == 2
    with CliRunner().isolation():
        assert run(["import"]) == 2
