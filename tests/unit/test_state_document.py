"""The durable document: nothing acknowledged is lost, nothing damaged is believed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from rustguard_py.model.errors import StateError
from rustguard_py.state.document import Document
from rustguard_py.state.durable_files import Files
from rustguard_py.state.records import PeerRecord, ServerState
from support.disk import BreakableFiles, Disk, RecordingFiles, put
from support.other_user import NOBODY, as_user

HOLDER = """
import sys
from pathlib import Path
from rustguard_py.state.document import Document
document = Document.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def small_state(peers: int) -> dict[str, object]:
    state = ServerState(
        private_key=sha256(b"server").digest(),
        server_id=sha256(b"id").digest(),
        pool4=IPv4Network("10.150.0.0/24"),
        pool6=IPv6Network("fd00::/64"),
        port=51820,
        mtu=1420,
    )
    for number in range(peers):
        key = sha256(b"%d" % number).digest()
        address4, address6 = IPv4Address("10.150.0.2") + number, IPv6Address("fd00::2") + number
        state.peers[key] = PeerRecord(f"peer {number} é", key, key[::-1], address4, address6, 1.5e9, None)
    return state.to_json()


def saved(directory: Path, *states: dict[str, object]) -> Path:
    document = Document.open(directory)
    document.load()
    for state in states:
        document.save(state)
    document.close()
    return directory / "state.json"


def load(directory: Path, files: Files | None = None) -> dict[str, object] | None:
    document = Document.open(directory, files)
    try:
        return document.load()
    finally:
        document.close()


class FilesWithoutLinks(RecordingFiles):
    """A filesystem such as FAT."""

    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source), None, str(target))


def test_a_new_directory_holds_nothing_and_what_is_saved_comes_back(tmp_path: Path) -> None:
    assert load(tmp_path / "a/b") is None
    saved(tmp_path / "a/b", small_state(0), small_state(2))
    assert load(tmp_path / "a/b") == small_state(2)


def test_directory_and_files_are_the_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        saved(tmp_path / "state", small_state(0), small_state(1))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
    assert modes == {"lock": 0o600, "state.json": 0o600, "state.json.bak": 0o600}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_the_copy_beside_is_the_save_before(tmp_path: Path) -> None:
    path = saved(tmp_path / "state", small_state(0), small_state(1), small_state(2))
    path.with_name("state.json.bak").replace(path)
    assert load(path.parent) == small_state(1)


def test_copies_are_removed_with_the_secrets_in_them(tmp_path: Path) -> None:
    saved(tmp_path, small_state(1), small_state(2), small_state(0))
    document = Document.open(tmp_path)
    document.load()
    document.remove_copies()
    document.close()
    assert sorted(path.name for path in tmp_path.glob("state.json*")) == ["state.json"]
    assert saved(tmp_path).exists()


def test_saving_before_loading_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    document = Document.open(tmp_path / "state")
    with pytest.raises(RuntimeError):
        document.save(small_state(0))
    document.close()


def test_a_value_that_is_not_json_leaves_the_file_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "state", small_state(1))
    document = Document.open(path.parent)
    document.load()
    with pytest.raises(ValueError, match="JSON compliant"):
        document.save({"joined": float("nan")})
    document.close()
    assert load(path.parent) == small_state(1)


@pytest.mark.fault(8)
@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("saves_before", [0, 1, 2])
def test_a_failing_call_acknowledges_nothing_and_the_next_save_goes_on(
    tmp_path: Path, saves_before: int, error: int, partly: bool
) -> None:
    failed: list[str] = []
    slowest = 0.0
    for number in range(calls_of_a_save(tmp_path / "unbroken", saves_before)):
        old = small_state(saves_before - 1) if saves_before else None
        document, files = opened(tmp_path / str(number), saves_before)
        files.break_call(number, error, partly=partly)
        with pytest.raises(StateError, match=os.strerror(error)) as caught:
            document.save(small_state(5))
        assert str(document.directory) in caught.value.fix
        failed.append(files.calls[number])
        files.repair()
        # Also if only the directory's fsync failed, after the last rename: nobody was told that it is saved.
        assert load(put_aside(document.directory, tmp_path / "copy")) == old
        begun = time.monotonic()
        document.save(small_state(6))
        slowest = max(slowest, time.monotonic() - begun)
        document.close()
        assert load(document.directory) == small_state(6)
    assert {"open", "write", "fsync", "rename"} <= set(failed)
    # The row says 5 s; a disk that is busy with others may take longer to sync.
    assert slowest < 30
    what = f"{os.strerror(error)} at each of {len(failed)} calls of a save"
    print(f"row 8: {what}: none acknowledged, the next save done in {slowest * 1e3:.0f} ms")


def opened(directory: Path, saves: int) -> tuple[Document, BreakableFiles]:
    saved(directory, *(small_state(count) for count in range(saves)))
    files = BreakableFiles()
    document = Document.open(directory, files)
    document.load()
    return document, files


def calls_of_a_save(directory: Path, saves_before: int) -> int:
    document, files = opened(directory, saves_before)
    files.repair()
    document.save(small_state(5))
    calls = len(files.calls)
    document.close()
    return calls


def put_aside(directory: Path, copy: Path) -> Path:
    put(copy, {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"})
    return copy


class UnsyncedNames(Files):
    """A disk that makes no name durable."""

    def __init__(self) -> None:
        self.refused = 0

    def fsync(self, descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            self.refused += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync(descriptor)


@pytest.mark.parametrize("saves_before", [0, 1, 2])
def test_what_could_not_be_made_durable_is_not_loaded_while_the_disk_goes_on_failing(
    tmp_path: Path, saves_before: int
) -> None:
    document, files = opened(tmp_path / "state", saves_before)
    document._files = failing = UnsyncedNames()
    for _ in range(3):
        with pytest.raises(StateError, match="Input/output error"):
            document.save(small_state(5))
        found = load(put_aside(document.directory, tmp_path / "copy"))
        assert found == (small_state(saves_before - 1) if saves_before else None)
    assert failing.refused == 3
    document._files = files
    document.save(small_state(6))
    document.close()
    assert load(document.directory) == small_state(6)


def test_an_older_copy_does_not_come_back_in_place_of_a_deleted_file(tmp_path: Path) -> None:
    """Another program deleted the file, so the copy next to it is older than what was saved last."""
    document, _ = opened(tmp_path / "state", 3)
    document.path.unlink()
    document._files = failing = UnsyncedNames()
    with pytest.raises(StateError, match="Input/output error"):
        document.save(small_state(6))
    document.close()
    assert failing.refused == 1
    assert load(document.directory) == small_state(6)


@pytest.mark.fault(8)
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "link"])
def test_a_full_disk_may_stay_full_for_many_saves(tmp_path: Path, call: str) -> None:
    path = saved(tmp_path / "state", small_state(0), small_state(1))
    files = BreakableFiles()
    document = Document.open(path.parent, files)
    document.load()
    files.break_all(errno.ENOSPC, call)
    for _ in range(20):
        with pytest.raises(StateError, match="No space left"):
            document.save(small_state(2))
    assert load(put_aside(path.parent, tmp_path / "copy")) == small_state(1)
    files.repair()
    document.save(small_state(2))
    document.close()
    assert load(path.parent) == small_state(2)
    print(f"row 8: 20 saves without room at {call}: old state whole, the 21st saved")


def crash_states(
    directory: Path, recorder: type[RecordingFiles], saves: int
) -> list[tuple[Disk, list[dict[str, object] | None]]]:
    """Return each state that a cut can leave, with what may be loaded: the last acknowledged, and the next."""
    directory.mkdir(mode=0o700)
    files = recorder(directory)
    document = Document.open(directory, files)
    document.load()
    acknowledged = [(0, -1)]
    for number in range(saves):
        document.save(small_state(number))
        acknowledged.append((len(files.log), number))
    document.close()
    states = []
    for done, disk in files.crash_states():
        last = max(number for steps, number in acknowledged if steps <= done)
        wanted = [small_state(number) if number >= 0 else None for number in (last, last + 1)]
        states.append((disk, wanted))
    return states


@pytest.mark.fault(9)
@pytest.mark.parametrize("recorder", [RecordingFiles, FilesWithoutLinks])
def test_every_crash_state_loads_the_old_or_the_new(tmp_path: Path, recorder: type[RecordingFiles]) -> None:
    states = crash_states(tmp_path / "recorded", recorder, saves=3)
    for disk, wanted in states:
        put(tmp_path / "after", disk)
        document = Document.open(tmp_path / "after")
        found = document.load()
        assert found in wanted
        assert found is not None or wanted[0] is None
        document.save(small_state(7))
        document.close()
        assert load(tmp_path / "after") == small_state(7)
    assert len(states) > 50
    print(f"row 9: {len(states)} of {len(states)} crash states of 3 saves loaded ({recorder.__name__})")


@pytest.mark.fault(9)
def test_a_second_crash_right_after_the_first_loses_nothing_either(tmp_path: Path, soak: bool) -> None:
    count = 0
    for disk, _ in crash_states(tmp_path / "recorded", RecordingFiles, saves=2)[:: 1 if soak else 5]:
        directory = tmp_path / f"again {count}"
        directory.mkdir(mode=0o700)
        files = RecordingFiles(directory)
        # What the first crash left is durable: written and fsynced before the clock of the second starts.
        for name, content in disk.items():
            descriptor = files.open(directory / name, os.O_RDWR | os.O_CREAT)
            files.write(descriptor, content, 0)
            files.fsync(descriptor)
            files.close(descriptor)
        descriptor = files.open(directory, os.O_RDONLY)
        files.fsync(descriptor)
        files.close(descriptor)
        start = len(files.log)
        document = Document.open(directory, files)
        old = document.load()
        document.save(small_state(9))
        document.close()
        for done, second in files.crash_states():
            if done < start:
                continue
            put(tmp_path / "after", second)
            found = load(tmp_path / "after")
            assert found in ([small_state(9)] if done == len(files.log) else [old, small_state(9)])
            count += 1
    assert count > (500 if soak else 100)
    print(f"row 9: {count} of {count} states after a crash in the save that follows a crash loaded")


class FailingOnce(RecordingFiles):
    """Records, and answers EIO to one call (from 0) of those that change the disk or make it durable."""

    fails_at = -1

    def __getattribute__(self, name: str) -> Any:
        if name in {"write", "fsync", "link", "rename", "unlink"}:
            object.__setattr__(self, "fails_at", self.fails_at - 1)
            if self.fails_at == -1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return object.__getattribute__(self, name)


@pytest.mark.fault(9)
@pytest.mark.parametrize("saves_before", [0, 1])
def test_a_crash_in_or_after_the_save_that_follows_a_failed_one(
    tmp_path: Path, saves_before: int, soak: bool
) -> None:
    count = 0
    for call in range(6 + 5 * saves_before):
        directory = tmp_path / str(call)
        directory.mkdir(0o700)
        files = FailingOnce(directory)
        document = Document.open(directory, files)
        document.load()
        for number in range(saves_before):
            document.save(small_state(number))
        start = len(files.log)
        files.fails_at = call + 1
        acknowledged = saves(document, small_state(5))
        assert acknowledged == (files.fails_at > -1)
        files.fails_at = -1
        document.save(small_state(6))
        document.close()
        wanted = [small_state(0) if saves_before else None, small_state(5), small_state(6)]
        states = [(done, disk) for done, disk in files.crash_states() if done >= start]
        # The last is the state in which everything was acknowledged.
        for done, disk in states[:: -1 if soak else -4]:
            put(tmp_path / "after", disk)
            assert load(tmp_path / "after") in (wanted[2:] if done == len(files.log) else wanted)
            count += 1
    assert count > (100 if soak else 25)
    print(f"row 9: {count} of {count} crash states of a save after one that failed, {saves_before} before, loaded")


def saves(document: Document, state: dict[str, object]) -> bool:
    try:
        document.save(state)
    except StateError:
        return False
    return True


def test_a_leftover_that_is_the_file_itself_by_another_name_is_not_written_through(tmp_path: Path) -> None:
    path = saved(tmp_path / "state", small_state(1), small_state(2))
    os.link(path, path.with_name("state.json.new"))
    files = BreakableFiles()
    document = Document.open(path.parent, files)
    document.load()
    files.break_all(errno.ENOSPC, "write")
    assert not saves(document, small_state(3))
    document.close()
    assert load(path.parent) == small_state(2)


@pytest.mark.fault(10)
@pytest.mark.parametrize("with_copy", [True, False])
def test_a_file_cut_at_any_byte_is_refused_with_the_way_back(tmp_path: Path, with_copy: bool) -> None:
    path = saved(tmp_path / "state", *(small_state(count) for count in range(0 if with_copy else 2, 3)))
    whole = path.read_bytes()
    document = Document.open(path.parent)
    refused = 0
    for length in range(len(whole) - 1):  # The last byte is a line feed: without it nothing is missing.
        path.write_bytes(whole[:length])
        refused += refusal_names_the_way_back(document, with_copy)
    document.close()
    assert refused == len(whole) - 1
    print(f"row 10: cut at each of {refused} bytes: {refused} refused, copy named: {with_copy}")


@pytest.mark.fault(10)
@pytest.mark.parametrize("with_copy", [True, False])
def test_any_flipped_bit_is_refused_with_the_way_back(tmp_path: Path, with_copy: bool, soak: bool) -> None:
    path = saved(tmp_path / "state", *(small_state(count) for count in range(0 if with_copy else 1, 2)))
    whole = path.read_bytes()
    document = Document.open(path.parent)
    # In the short run one or two of each byte, every place in turn.
    bits = range(0, len(whole) * 8, 1 if soak else 5)
    refused = 0
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        refused += refusal_names_the_way_back(document, with_copy)
    document.close()
    assert refused == len(bits)
    print(f"row 10: {refused} of {len(whole) * 8} bits flipped: {refused} refused, copy named: {with_copy}")


def refusal_names_the_way_back(document: Document, with_copy: bool) -> bool:
    with pytest.raises(StateError) as caught:
        document.load()
    assert str(document.path) in caught.value.message
    command = f"mv {document.path}.bak {document.path}"
    assert (command in caught.value.fix) == with_copy
    with pytest.raises(RuntimeError):  # What was refused can't be written over by mistake.
        document.save({})
    return True


@pytest.mark.fault(10)
def test_the_named_command_fixes_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "a state", small_state(1), small_state(2))
    path.write_bytes(b"")
    with pytest.raises(StateError) as caught:
        load(path.parent)
    subprocess.run(caught.value.fix.rpartition(": ")[2], shell=True, check=True)  # noqa: S602 - it's what a user does
    assert load(path.parent) == small_state(1)
    print("row 10: an empty file refused, the command in the refusal brought back the save before")


@pytest.mark.fault(10)
def test_a_missing_file_beside_a_copy_is_refused_and_a_damaged_copy_is_not_offered(tmp_path: Path) -> None:
    path = saved(tmp_path / "state", small_state(1), small_state(2))
    path.unlink()
    with pytest.raises(StateError, match="missing") as caught:
        load(path.parent)
    assert f"mv {path}.bak {path}" in caught.value.fix
    path.with_name("state.json.bak").write_bytes(b"{}")
    with pytest.raises(StateError, match="missing") as caught:
        load(path.parent)
    assert ".bak" not in caught.value.fix
    print("row 10: state.json gone: refused, with and without a whole copy")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_deleted_while_the_program_runs_is_back_with_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(Files, "link", FilesWithoutLinks.link)
    path = saved(tmp_path / "state", small_state(1), small_state(2))
    copy = path.with_name("state.json.bak")
    for copies in (False, True):
        document = Document.open(path.parent)
        document.load()
        path.unlink()
        if copies:
            copy.unlink()
        before = copy.read_bytes() if copy.exists() else None
        document.save(small_state(3))
        document.close()
        assert load(path.parent) == small_state(3)
        # There was nothing to keep, so the older copy stays what it was.
        assert (copy.read_bytes() if copy.exists() else None) == before


def test_the_newest_whole_copy_is_the_one_offered(tmp_path: Path) -> None:
    path = saved(tmp_path / "state", small_state(1), small_state(2), small_state(3))
    path.replace(path.with_name("state.json.new"))
    path.touch(0o600)
    with pytest.raises(StateError) as caught:
        load(path.parent)
    assert f"mv {path}.new {path}" in caught.value.fix


def test_a_later_schema_asks_for_an_upgrade_and_an_altered_number_does_not(tmp_path: Path) -> None:
    path = saved(tmp_path / "state", small_state(1), small_state(2))
    envelope = json.loads(path.read_bytes())
    path.write_text(json.dumps(envelope | {"schema": 3}))
    with pytest.raises(StateError, match="altered"):
        load(path.parent)
    path.write_text(json.dumps(envelope | {"schema": 3, "checksum": "made otherwise", "more": []}))
    with pytest.raises(StateError, match="later version") as caught:
        load(path.parent)
    assert "Upgrade" in caught.value.fix
    assert f"mv {path}.bak {path}" in caught.value.fix


@pytest.mark.parametrize(
    "content", [b"null", b"[]", b"{}", b"[" * 200_000, b'{"schema":true}', b'{"schema":NaN}', b"\xff", b"\x00" * 999]
)
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = saved(tmp_path / "state", small_state(1), small_state(2))
    path.write_bytes(content)
    with pytest.raises(StateError, match="can't be trusted"):
        load(path.parent)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_get_at_is_refused_with_the_command_to_close_it(tmp_path: Path, mode: int) -> None:
    path = saved(tmp_path / "state", small_state(1))
    path.chmod(mode)
    with pytest.raises(StateError, match=f"{mode:04o}") as caught:
        load(path.parent)
    assert f"chmod 600 {path}" in caught.value.fix


def test_a_link_a_directory_or_a_pipe_in_the_files_place_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "state", small_state(1))
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(StateError, match="symbolic link"):
        load(path.parent)
    path.unlink()
    path.mkdir(0o700)
    with pytest.raises(StateError, match="not a plain file"):
        load(path.parent)
    path.rmdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(StateError, match="not a plain file"):
        load(path.parent)


def test_a_directory_that_others_can_write_in_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "state", small_state(1))
    path.parent.chmod(0o770)
    with pytest.raises(StateError, match="Others can write") as caught:
        load(path.parent)
    assert f"chmod go-w {path.parent}" in caught.value.fix


@pytest.mark.needs_second_uid
def test_somebody_elses_file_or_directory_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "state", small_state(1))
    os.chown(path, NOBODY, -1)
    with pytest.raises(StateError, match=f"belongs to uid {NOBODY}") as caught:
        load(path.parent)
    assert f"chown {os.geteuid()} {path}" in caught.value.fix
    os.chown(path.parent, NOBODY, -1)
    with pytest.raises(StateError, match="belongs to another user"):
        load(path.parent)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user can reach; pytest's own are closed."""
    with TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.needs_second_uid
def test_a_user_may_keep_a_state_and_not_get_at_roots(open_place: Path) -> None:
    saved(open_place / "roots", small_state(1))
    (open_place / "users").mkdir()
    os.chown(open_place / "users", NOBODY, -1)
    path = as_user(lambda: saved(open_place / "users/state", small_state(2)))
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (NOBODY, 0o600)
    assert as_user(lambda: load(path.parent)) == small_state(2)
    with pytest.raises(StateError, match="Permission denied") as caught:
        as_user(lambda: load(open_place / "roots"))
    assert "--state" in caught.value.fix


@pytest.mark.parametrize("call", ["open", "stat", "read", "close", "fsync"])
def test_a_read_that_fails_is_a_refusal_and_never_an_empty_state(tmp_path: Path, call: str) -> None:
    path = saved(tmp_path / "state", small_state(1), small_state(2))
    files = BreakableFiles()
    document = Document.open(path.parent, files)
    files.break_all(errno.EIO, call)
    with pytest.raises(StateError, match="can't be read: Input/output error"):
        document.load()
    files.repair()
    assert document.load() == small_state(2)
    document.close()


@pytest.mark.fault(23)
def test_a_second_process_is_refused_at_once_and_told_who_has_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(StateError, match=f"process {first.pid}") as caught:
            Document.open(tmp_path / "state")
        assert f"ps {first.pid}." in caught.value.fix
        assert "rustguard stop " in caught.value.fix
        assert "--state" in caught.value.fix
        begun = time.monotonic()
        second = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        took = time.monotonic() - begun
        assert second.returncode != 0
        assert f"in use by process {first.pid}" in second.stderr
        # The row says 1 s, most of which is the interpreter's start: ten of them on a slow and busy machine.
        assert took < 10
        first.kill()
    Document.open(tmp_path / "state").close()
    print(
        f"row 23: the second process ended after {took * 1e3:.0f} ms, status {second.returncode}; free after kill -9"
    )


def test_a_lock_given_back_can_be_taken_and_closing_twice_is_harmless(tmp_path: Path) -> None:
    document = Document.open(tmp_path / "state")
    with pytest.raises(StateError, match=f"process {os.getpid()}"):
        Document.open(tmp_path / "state")
    document.close()
    document.close()
    Document.open(tmp_path / "state").close()


@pytest.mark.parametrize("call", ["mkdir", "open", "flock", "truncate", "write", "fsync"])
def test_a_directory_that_cannot_be_made_or_locked_is_said_and_leaks_nothing(tmp_path: Path, call: str) -> None:
    files = BreakableFiles()
    files.break_all(errno.EROFS, call)
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(StateError, match="Read-only file system"):
        Document.open(tmp_path / "state", files)
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


def test_no_secret_is_told_in_a_refusal(tmp_path: Path) -> None:
    path = saved(tmp_path / "state", small_state(1), small_state(2))
    secret = str(small_state(1)["private_key"])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StateError) as caught:
        load(path.parent)
    causes = [caught.value.message, caught.value.fix, repr(caught.value.__cause__)]
    assert not any(secret in text for text in causes)


def test_the_directories_above_are_made_so_that_others_can_pass_but_not_write(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Document.open(tmp_path / "above/state").close()
    finally:
        os.umask(before)
    assert (tmp_path / "above").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "above/state").stat().st_mode & 0o777 == 0o700
