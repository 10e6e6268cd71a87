"""A backup has all that a machine needs, taken at any moment, and what isn't one is refused."""

from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.model.errors import StateError, UsageError
from rustguard_py.state import backup, envelope
from rustguard_py.state.backup import Backup, KeptFile, Places, take
from rustguard_py.state.document import Document
from rustguard_py.state.journal import TimestampJournal
from rustguard_py.state.records import ServerState
from support.backups import a_client, a_machine, a_server, again, do, loaded, places

ROOT = Path(__file__).parents[2]


@pytest.fixture
def machine(tmp_path: Path) -> Places:
    return a_machine(tmp_path / "machine")


# -- what is in it ---------------------------------------------------------------------------------------------


def test_it_has_what_is_worth_keeping_and_nothing_of_a_process(machine: Places) -> None:
    taken = take(machine, "0.2.0", "vm", (("serve", "--port", "4000"),))
    assert [each.path for each in taken.files] == [
        "state/client/state.json",
        "state/server/state.json",
        "state/server/timestamps",
        "state/server/audit.jsonl",
        "state/server/audit.jsonl.1",
        "state/tunnels/wg0/timestamps",
        "settings/home.conf",
        "settings/rustguard-serve.token",
        "defaults/rustguard",
    ]
    contents = {each.path: each.content for each in taken.files}
    # The line that is being written isn't in it.
    assert contents["state/server/audit.jsonl"] == b'{"event":"joined"}\n'
    assert again(taken) == taken
    assert "maple" not in repr(taken)
    states = taken.states()
    assert states == {"client": a_client(), "server": a_server(2), "tunnels/wg0": None}


def test_each_file_that_the_reference_names_is_kept_or_left_out_on_purpose() -> None:
    page = (ROOT / "docs/reference/files-and-exit-codes.md").read_text()
    table = page.split("| file | holds |")[1].split("\n\n")[0]
    named = {word for row in table.splitlines()[2:] for word in re.findall(r"`([^`]+)`", row.split("|")[1])}
    left_out = {"state.json.bak", "state.json.new", ".first", ".bak.new", "lock", "undo.json", "log", "NAME.hooks"}
    left_out |= {".restore", ".restore-plan", ".….restoring-…"}
    assert named == {*backup.STATE_FILES, *left_out}


def test_one_state_directory_is_named_by_what_it_is(machine: Places, tmp_path: Path) -> None:
    for directory, name in (("server", "server"), ("client", "client"), ("tunnels/wg0", "tunnels/wg0")):
        taken = take(Places(machine.state / directory, single=True), "0.2.0", "vm")
        assert taken.directories == [name]
        # So it comes back in its usual place, or in another.
        do(taken, places(tmp_path / name / "new"))
        do(taken, Places(tmp_path / name / "named", single=True))
        for target in (tmp_path / name / "new/state" / name, tmp_path / name / "named"):
            assert loaded(target) == loaded(machine.state / directory)


def test_nothing_to_back_up_says_so(tmp_path: Path) -> None:
    for where in (places(tmp_path), Places(tmp_path / "nowhere", single=True)):
        with pytest.raises(UsageError, match="nothing to back up"):
            take(where, "0.2.0", "vm")


def test_a_state_that_is_damaged_or_open_to_others_is_not_backed_up_as_if_it_were_whole(machine: Places) -> None:
    path = machine.state / "client/state.json"
    path.chmod(0o644)
    with pytest.raises(StateError, match="Others can access"):
        take(machine, "0.2.0", "vm")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StateError, match="can't be trusted"):
        take(machine, "0.2.0", "vm")


def test_it_is_whole_at_any_moment_while_a_daemon_works(tmp_path: Path) -> None:
    directory = tmp_path / "state/server"
    where = places(tmp_path)
    document = Document.open(directory)
    document.load()
    document.save(replace(a_server(0), port=1).to_json())
    journal = TimestampJournal.open(directory)
    journal.record(b"k" * 32, bytes(11) + b"\1")
    audit = directory / "audit.jsonl"
    ended, key = threading.Event(), b"k" * 32

    def work() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            journal.record(key, number.to_bytes(12))
            descriptor = os.open(audit, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(descriptor, b"%d\n" % number)
            os.close(descriptor)
            if number % 7 == 0:
                audit.replace(directory / "audit.jsonl.1")
                journal._compact()
            document.save(replace(a_server(0), port=1 + number % 60_000).to_json())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(60):
            taken = again(take(where, "0.2.0", "vm"))
            server = taken.states()["server"]
            assert isinstance(server, ServerState)
            contents = {each.name: each.content for each in taken.files}
            stamps = contents["timestamps"]
            # Timestamps are never older than the state, so that no handshake from before can be replayed.
            newest = max(int.from_bytes(stamps[at + 32 : at + 44]) for at in range(0, len(stamps), 48))
            assert newest >= server.port - 1
            lines = (contents.get("audit.jsonl.1", b"") + contents.get("audit.jsonl", b"")).split()
            numbers = list(map(int, lines))
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
    finally:
        ended.set()
        thread.join()
        assert document.load() != replace(a_server(0), port=1).to_json()
        journal.close()
        document.close()


# -- what isn't one --------------------------------------------------------------------------------------------


def listed(**changes: Any) -> bytes:
    """Return a backup of one file, whose entry in the list has these members."""
    content = envelope.encode(1, a_server(0).to_json())
    entry = {"path": "state/server/state.json", "mode": 0o600, "owner": "root", "group": "root", "size": len(content)}
    about = {"version": "0.2.0", "host": "vm", "made": 1.0, "services": [], "files": [{**entry, **changes}]}
    text = json.dumps(about).encode()
    return len(text).to_bytes(4) + text + content


def test_the_helper_makes_one_that_is_right() -> None:
    assert Backup.decode(listed()).directories == ["server"]


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "state/../../etc/shadow"},
        {"path": "state/../state.json"},
        {"path": "state/./state.json"},
        {"path": "state//state.json"},
        {"path": "/state/server/state.json"},
        {"path": "state/state.json"},
        {"path": "state/a/b/c/d/state.json"},
        {"path": "state/server/.restore"},
        {"path": "state/server/lock"},
        {"path": "settings/../x"},
        {"path": "settings/a/b"},
        {"path": "settings/.hidden"},
        {"path": "defaults/grub"},
        {"path": "elsewhere/x"},
        {"path": "state/server\0/state.json"},
        {"mode": 0o4755},
        {"mode": 0o644},
        {"mode": -1},
        {"size": 5},
        {"size": 10**9},
        {"owner": 0},
        {"more": 1},
    ],
)
def test_a_list_that_leads_elsewhere_or_lets_others_in_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="The backup can't be used"):
        Backup.decode(listed(**changes))


@pytest.mark.parametrize("content", [b"", b"\0\0\0\x05[1,2]", b"\0\0\0\xffx", b"\0\0\0\x02{}", b"\0\0\0\x02\xff\xff"])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(StateError, match="The backup can't be used"):
        Backup.decode(content)


def with_state(content: bytes) -> Backup:
    return Backup("0.9.0", "vm", 1.0, (KeptFile("state", "server", "state.json", content),))


def test_a_state_of_a_later_version_is_refused_with_the_version_that_made_it() -> None:
    document = json.loads(envelope.encode(3, a_server(1).to_json()))
    later = json.dumps({**document, "schema": envelope.STATE_SCHEMA + 1, "checksum": "sha256:0"}).encode()
    with pytest.raises(StateError, match=r"RustGuard 0\.9\.0 made this backup, .* later form") as told:
        Backup.decode(with_state(later).encode())
    assert told.value.fix.startswith("Upgrade RustGuard")
    unknown = envelope.encode(3, {**a_server(1).to_json(), "colour": "red"})
    with pytest.raises(StateError, match=r"colour .*is not known to this version") as told:
        Backup.decode(with_state(unknown).encode())
    assert "0.9.0 or later" in told.value.fix
    with pytest.raises(StateError, match="can't be trusted"):
        Backup.decode(with_state(b"{}").encode())
