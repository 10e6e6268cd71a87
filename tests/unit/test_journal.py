"""The timestamp journal: after a restart, no timestamp is lower than what was recorded."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from rustguard_py.model.errors import StateError
from rustguard_py.state.durable_files import Files
from rustguard_py.state.journal import TimestampJournal
from support.disk import BreakableFiles, RecordingFiles, put

RECORD = 48
FOREVER = """
import sys
from pathlib import Path
from rustguard_py.state.journal import TimestampJournal
journal = TimestampJournal.open(Path(sys.argv[1]))
for number in range(1, 1 << 40):
    journal.record(bytes(32), number.to_bytes(12, "big"))
    sys.stdout.buffer.write(b"%d\\n" % number)
    sys.stdout.buffer.flush()
    if number % 500 == 0:
        journal.sync()
"""


def key(number: int) -> bytes:
    return sha256(b"%d" % number).digest()


def at(moment: int) -> bytes:
    return moment.to_bytes(12, "big")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def read(directory: Path) -> TimestampJournal:
    journal = TimestampJournal.open(directory)
    journal.close()
    return journal


def test_what_was_recorded_is_known_after_a_restart_and_never_goes_back(directory: Path) -> None:
    journal = TimestampJournal.open(directory)
    assert journal.greatest(key(1)) is None
    for moment in (5, 7, 6, 7):
        journal.record(key(1), at(moment))
    journal.record(key(2), at(1))
    journal.close()
    again = read(directory)
    assert (again.greatest(key(1)), again.greatest(key(2)), again.greatest(key(3))) == (at(7), at(1), None)
    # Neither the 6 nor the second 7 cost a write.
    assert (directory / "timestamps").stat().st_size == 3 * RECORD
    assert (directory / "timestamps").stat().st_mode & 0o777 == 0o600


def test_sizes_are_checked(directory: Path) -> None:
    journal = TimestampJournal.open(directory)
    for wrong_key, timestamp in ((bytes(31), at(1)), (bytes(32), bytes(11))):
        with pytest.raises(ValueError, match="32 bytes"):
            journal.record(wrong_key, timestamp)
    journal.close()


@pytest.mark.fault(17)
def test_a_killed_process_has_written_all_it_said_it_had(directory: Path) -> None:
    kills = 10
    for _ in range(kills):
        (directory / "timestamps").unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", FOREVER, str(directory)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(random.randrange(1, 3000))]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        said = int([line for line in lines if line.endswith(b"\n")][-1])
        known = int.from_bytes(read(directory).greatest(bytes(32)) or b"", "big")
        assert known in (said, said + 1)
    print(f"row 17: {kills} of {kills} kills -9 lost no timestamp that was said to be recorded")


@pytest.mark.fault(10)
def test_a_tail_torn_at_any_byte_costs_no_earlier_record_and_the_next_ones_are_kept(directory: Path) -> None:
    journal = TimestampJournal.open(directory)
    for number in range(4):
        journal.record(key(number), at(number + 1))
    journal.close()
    path = directory / "timestamps"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        journal = TimestampJournal.open(directory)
        kept = [journal.greatest(key(number)) is not None for number in range(4)]
        assert kept == [number < length // RECORD for number in range(4)]
        assert journal.bad == 0
        journal.record(key(9), at(9))
        journal.close()
        assert read(directory).greatest(key(9)) == at(9)
    print(f"row 10: the journal cut at each of {len(whole)} bytes: no whole record lost")


@pytest.mark.fault(10)
def test_any_flipped_bit_costs_that_record_alone_and_is_counted(directory: Path, soak: bool) -> None:
    journal = TimestampJournal.open(directory)
    for number in range(3):
        journal.record(key(number), at(number + 1))
    journal.close()
    path = directory / "timestamps"
    whole = path.read_bytes()
    # In the short run one or two of each byte, every place in turn.
    bits = range(0, len(whole) * 8, 1 if soak else 5)
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        journal = read(directory)
        hit = bit // 8 // RECORD
        assert journal.bad == 1
        known = [journal.greatest(key(number)) for number in range(3)]
        assert known == [None if number == hit else at(number + 1) for number in range(3)]
    assert read(directory).bad == 0  # It was rewritten without what was spoilt.
    print(
        f"row 10: {len(bits)} of {len(whole) * 8} bits of the journal flipped: that record skipped, counted, no other"
    )


def test_a_hole_of_zeros_is_skipped_and_counted(directory: Path) -> None:
    journal = TimestampJournal.open(directory)
    journal.record(key(1), at(1))
    journal.close()
    with (directory / "timestamps").open("r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(bytes(3 * RECORD) + content)
    journal = read(directory)
    assert (journal.bad, journal.greatest(key(1)), journal.greatest(bytes(32))) == (3, at(1), None)


def test_the_file_stays_within_a_few_times_what_lives_while_running_and_when_opened(directory: Path) -> None:
    path, keys = directory / "timestamps", 1000
    journal = TimestampJournal.open(directory)
    largest = 0
    for moment in range(1, 21):
        for number in range(keys):
            journal.record(key(number), at(moment))
        journal.sync()
        largest = max(largest, path.stat().st_size)
    assert largest <= 5 * keys * RECORD
    for moment in range(21, 31):
        for number in range(keys):
            journal.record(key(number), at(moment))
    before = path.stat().st_size
    del journal  # As a kill would: nothing is synced or rewritten.
    again = read(directory)
    assert path.stat().st_size == keys * RECORD < before
    assert all(again.greatest(key(number)) == at(30) for number in range(keys))
    print(f"journal: at most {largest // (keys * RECORD)} times the live size, then once")


class FilesThatAreInterrupted(Files):
    """Runs something in the middle of the next fsync, as the other thread may."""

    def __init__(self) -> None:
        self.meanwhile: list[Callable[[], None]] = []

    def fsync(self, descriptor: int) -> None:
        if self.meanwhile:
            self.meanwhile.pop()()
        super().fsync(descriptor)


def test_records_made_while_the_file_is_rewritten_are_kept_and_so_are_those_after(directory: Path) -> None:
    files = FilesThatAreInterrupted()
    journal = TimestampJournal.open(directory, files)
    for moment in range(1, 1501):
        journal.record(key(1), at(moment))

    def meanwhile() -> None:
        journal.record(key(1), at(2000))
        journal.record(key(2), at(1))

    files.meanwhile = [meanwhile]
    journal.sync()
    assert (directory / "timestamps").stat().st_size == 3 * RECORD
    journal.record(key(3), at(5))
    known = read_copy(directory)
    assert [known.greatest(key(number)) for number in (1, 2, 3)] == [at(2000), at(1), at(5)]
    journal.close()


def test_another_thread_may_sync_all_the_while(directory: Path) -> None:
    journal = TimestampJournal.open(directory)
    stop = threading.Event()

    def keep_syncing() -> None:
        while not stop.is_set():
            journal.sync()

    thread = threading.Thread(target=keep_syncing)
    thread.start()
    for moment in range(1, 301):
        for number in range(50):
            journal.record(key(number), at(moment))
    stop.set()
    thread.join()
    known = read_copy(directory)
    assert all(known.greatest(key(number)) == at(300) for number in range(50))
    journal.close()


@pytest.mark.fault(8)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("partly", [False, True])
def test_a_record_that_cannot_be_written_is_said_known_here_and_written_by_the_next_sync(
    directory: Path, error: int, partly: bool
) -> None:
    files = BreakableFiles()
    journal = TimestampJournal.open(directory, files)
    journal.record(key(1), at(1))
    files.break_call(0, error, partly=partly)
    with pytest.raises(StateError, match=os.strerror(error)):
        journal.record(key(1), at(2))
    files.repair()
    assert journal.greatest(key(1)) == at(2)
    assert read_copy(directory).greatest(key(1)) == at(1)
    journal.record(key(2), at(3))
    assert read_copy(directory).greatest(key(2)) == at(3)
    journal.sync()
    assert read_copy(directory).greatest(key(1)) == at(2)
    journal.close()
    print(f"row 8: {os.strerror(error)} at a record: said, and on disk after the next sync")


def read_copy(directory: Path) -> TimestampJournal:
    copy = directory / "copy"
    put(copy, {"timestamps": (directory / "timestamps").read_bytes()})
    return read(copy)


@pytest.mark.fault(8)
@pytest.mark.parametrize("rewrite", [False, True])
def test_a_sync_failing_at_any_call_loses_nothing_and_the_next_one_fixes_it(directory: Path, rewrite: bool) -> None:
    files = BreakableFiles()
    journal = TimestampJournal.open(directory, files)
    number = moment = 0
    refused = True
    while refused:
        for _ in range(1500 if rewrite else 1):  # 72 kB of one key's records: more than is left lying.
            moment += 1
            journal.record(key(1), at(moment))
        files.break_call(number, errno.EIO)
        refused = not sync_succeeds(journal)
        files.repair()
        assert read_copy(directory).greatest(key(1)) == at(moment)
        journal.sync()
        assert refused == (files.calls.count("rename") == 1)  # A rewrite repairs what failed.
        number += refused
    files.repair()
    journal.close()
    assert number >= (7 if rewrite else 1)
    print(f"row 8: EIO at each of {number} calls of a sync: nothing lost, the next one done")


def sync_succeeds(journal: TimestampJournal) -> bool:
    try:
        journal.sync()
    except StateError:
        return False
    return True


@pytest.mark.fault(9)
def test_every_crash_state_holds_what_was_synced(directory: Path, soak: bool) -> None:
    recorded = directory / "recorded"
    recorded.mkdir(mode=0o700)
    files = RecordingFiles(recorded)
    journal = TimestampJournal.open(recorded, files)
    synced: list[tuple[int, dict[int, int]]] = [(0, {})]
    greatest: dict[int, int] = {}
    for moment in range(1, 5):
        for number in range(2):
            journal.record(key(number), at(moment))
            greatest[number] = moment
        if moment == 3:
            journal._dirty = True  # So that this sync rewrites the file.
        journal.sync()
        synced.append((len(files.log), dict(greatest)))
    journal.close()
    states = list(files.crash_states())[:: -1 if soak else -4]
    for done, disk in states:
        floor = max((item for item in synced if item[0] <= done), key=lambda item: item[0])[1]
        put(directory / "after", disk)
        found = read(directory / "after")
        for number in range(2):
            known = int.from_bytes(found.greatest(key(number)) or b"", "big")
            assert floor.get(number, 0) <= known <= 4
    assert len(states) > (100 if soak else 25)
    print(f"row 9: {len(states)} of {len(states)} crash states of the journal held all that was synced")


def test_a_journal_that_others_can_get_at_is_refused(directory: Path) -> None:
    read(directory)
    (directory / "timestamps").chmod(0o644)
    with pytest.raises(StateError, match="0644"):
        TimestampJournal.open(directory)


@pytest.mark.parametrize("call", ["open", "unlink", "write", "fsync", "rename"])
def test_a_journal_that_cannot_be_opened_is_said(directory: Path, call: str) -> None:
    journal = TimestampJournal.open(directory)
    journal.record(key(1), at(1))
    journal.close()
    with (directory / "timestamps").open("ab") as file:
        file.write(bytes(RECORD))  # Spoilt, so that opening rewrites it.
    files = BreakableFiles()
    files.break_all(errno.EROFS, call)
    with pytest.raises(StateError, match="Read-only file system"):
        TimestampJournal.open(directory, files)
    assert read(directory).greatest(key(1)) == at(1)


def test_a_closed_journal_says_so_and_closing_twice_is_harmless(directory: Path) -> None:
    journal = read(directory)
    journal.close()
    with pytest.raises(StateError, match="closed"):
        journal.record(key(1), at(1))
