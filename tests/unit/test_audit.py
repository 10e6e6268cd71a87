"""The audit log: whole lines, private, rotated, never in the server's way, and readable by people."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.cli.app import run
from rustguard_py.cli.audit import parse_since
from rustguard_py.daemon import audit, audit_events
from rustguard_py.model.duration import parse_duration
from rustguard_py.model.errors import UsageError
from rustguard_py.model.keys import encode_key
from rustguard_py.state.durable_files import Files
from support.disk import BreakableFiles

KEY = encode_key(bytes(range(32)))
EVENTS = [
    audit_events.Joined("laptop", KEY, "10.0.0.2", "192.0.2.2:4000"),
    audit_events.Admitted("phone", KEY, "10.0.0.3", 0),
    audit_events.Refused("the pool is used up", "192.0.2.3:4000"),
    audit_events.WrongToken("192.0.2.4:4000", 3),
    audit_events.BudgetSpent(20),
    audit_events.WindowOpened(60.0, 1000),
    audit_events.WindowClosed("its time ran out", None),
    audit_events.Revoked("laptop", KEY, 1000),
    audit_events.Restored(KEY, 1000),
    audit_events.Left("laptop", KEY, "10.150.0.2"),
    audit_events.TakenBack("laptop", KEY, "10.150.0.2", "192.0.2.2:40000"),
    audit_events.GivenAway("older", KEY, "10.150.0.5"),
    audit_events.Renamed("phone", "annas-phone", KEY, 1000),
    audit_events.ClockReset("phone", KEY, "2150-01-01T00:00:00Z", 1000),
    audit_events.Omitted(7, "too many came"),
]


@contextmanager
def opened(directory: Path, files: Files | None = None, **options: Any) -> Iterator[audit.AuditLog]:
    made = audit.AuditLog(directory, files, **options)
    try:
        yield made
    finally:
        made.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / audit.NAME).read_bytes().splitlines()]


def test_every_kind_is_written_and_read_back_as_the_sentence_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert {type(event) for event in EVENTS} == set(audit_events._KINDS.values())
    with caplog.at_level(logging.INFO), opened(tmp_path) as log:
        for event in EVENTS:
            log.record(event)
    assert (tmp_path / audit.NAME).stat().st_mode & 0o777 == 0o600
    events = audit.read(tmp_path)
    assert events is not None
    assert [audit_events.sentence(event) for event in events] == [str(event) for event in EVENTS]
    assert caplog.messages == [str(event) for event in EVENTS]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"]) for event in events)
    assert "by uid 1000" in caplog.text


def test_no_event_has_a_place_for_a_secret() -> None:
    names = {each.name for event in EVENTS for each in fields(event)}
    allowed = {"name", "key", "address", "source", "reason", "count", "seconds", "by", "old", "new", "was", "why"}
    allowed |= {"sources", "most"}
    assert names <= allowed


def test_a_mode_that_is_too_wide_is_narrowed(tmp_path: Path) -> None:
    (tmp_path / audit.NAME).write_bytes(b"")
    (tmp_path / audit.NAME).chmod(0o644)
    with opened(tmp_path) as log:
        log.record(EVENTS[0])
    assert (tmp_path / audit.NAME).stat().st_mode & 0o777 == 0o600
    # Before a daemon gives up changing modes; a link isn't followed.
    (tmp_path / audit.NAME).chmod(0o644)
    (tmp_path / "theirs").touch(0o644)
    (tmp_path / f"{audit.NAME}.1").symlink_to("theirs")
    audit.narrow(tmp_path)
    assert (tmp_path / audit.NAME).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "theirs").stat().st_mode & 0o777 == 0o644


def test_a_directory_in_the_place_of_the_log_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir(0o750)
    audit.narrow(tmp_path)
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o7777 == 0o750


def test_it_is_rotated_and_both_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_BYTES", 600)
    with opened(tmp_path) as log:
        for number in range(12):
            log.record(audit_events.BudgetSpent(number))
    sizes = [(tmp_path / name).stat().st_size for name in (audit.NAME, f"{audit.NAME}.1")]
    assert min(sizes) > 0
    assert max(sizes) <= 600
    assert sorted(path.name for path in tmp_path.iterdir()) == [audit.NAME, f"{audit.NAME}.1"]
    events = audit.read(tmp_path)
    assert events is not None
    assert [event["count"] for event in events] == list(range(12))


def test_a_line_longer_than_a_file_may_be_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_BYTES", 10)
    with opened(tmp_path) as log:
        log.record(EVENTS[0])
        log.record(EVENTS[1])
    assert [event["event"] for event in audit.read(tmp_path) or ()] == ["joined", "admitted"]


def test_a_full_disk_is_logged_once_and_nothing_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = BreakableFiles()
    files.break_all(errno.ENOSPC, "write")
    with opened(tmp_path, files, retry=0.01) as log:
        began = time.monotonic()
        for number in range(50):
            log.record(audit_events.BudgetSpent(number))
        assert time.monotonic() - began < 1
        until(lambda: files.calls.count("write") > 5)
        assert (tmp_path / audit.NAME).read_bytes() == b""
        files.repair()
        until(lambda: len(lines(tmp_path)) == 50)
    assert [event["count"] for event in lines(tmp_path)] == list(range(50))
    assert caplog.text.count("the audit log can't be written") == 1
    assert caplog.text.count("the audit log can be written again") == 1


def test_a_write_that_stops_half_way_leaves_whole_lines_only(tmp_path: Path) -> None:
    class Half(Files):
        def __init__(self) -> None:
            self.full = True
            self.half = 0

        def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
            if not self.full:
                return super().write(descriptor, data, offset)
            if self.half:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.half = super().write(descriptor, data[: len(data) // 2], offset)
            return self.half

    files = Half()
    with opened(tmp_path, files, retry=0.01) as log:
        log.record(EVENTS[0])
        until(lambda: files.half > 0)
        until(lambda: (tmp_path / audit.NAME).read_bytes() == b"")
        files.full = False
    assert [event["event"] for event in lines(tmp_path)] == ["joined"]


def test_the_oldest_go_when_the_disk_stays_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_WAITING", 5)
    files = BreakableFiles()
    files.break_all(errno.ENOSPC, "open")
    with opened(tmp_path, files, retry=0.01) as log:
        for number in range(40):
            log.record(audit_events.BudgetSpent(number))
            until(lambda: len(log._waiting) <= 5)
        files.repair()
        until((tmp_path / audit.NAME).exists)
        until(lambda: any(event.get("count") == 39 for event in lines(tmp_path)))
    written = lines(tmp_path)
    lost = sum(event["count"] for event in written if event["event"] == "omitted")
    assert lost + sum(event["event"] == "budget-spent" for event in written) == 40
    assert lost > 0


class Stuck(Files):
    """A disk that doesn't answer until `goes_on`."""

    def __init__(self) -> None:
        self.asked, self.goes_on = threading.Event(), threading.Event()

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self.asked.set()
        self.goes_on.wait(20)
        return super().open(path, flags, mode)


def test_what_waits_for_a_disk_that_does_not_answer_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_WAITING", 5)
    files = Stuck()
    with opened(tmp_path, files, retry=0.01) as log:
        log.record(audit_events.BudgetSpent(0))
        assert files.asked.wait(20)
        for number in range(1, 41):
            log.record(audit_events.BudgetSpent(number))
        files.goes_on.set()
        until((tmp_path / audit.NAME).exists)
        until(lambda: any(event.get("count") == 40 for event in lines(tmp_path)))
    written = lines(tmp_path)
    assert sum(event["count"] for event in written if event["event"] == "omitted") >= 30
    assert sum(event["event"] == "budget-spent" for event in written) <= 10


def test_thousands_of_lines_wait_for_a_disk_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit.log, "disabled", True)
    files = Stuck()
    with opened(tmp_path, files, retry=0.01) as log:
        for number in range(9000):
            log.record(audit_events.BudgetSpent(number))
        files.goes_on.set()
        until((tmp_path / audit.NAME).exists)
        # Not read as JSON before the last line is whole.
        until(lambda: re.search(rb'"count": ?8999\b.*\n$', (tmp_path / audit.NAME).read_bytes()) is not None)
    assert [event.get("count") for event in lines(tmp_path)] == list(range(9000))


def test_a_cut_last_line_is_skipped_and_the_next_begins_a_line_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.record(EVENTS[0])
    with (tmp_path / audit.NAME).open("ab") as file:
        file.write(b'{"time": "2026-11-26T09:00:00.000Z", "event": "rev')
    with opened(tmp_path) as log:
        log.record(EVENTS[1])
    assert [event["event"] for event in audit.read(tmp_path) or ()] == ["joined", "admitted"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"1",
        b"{}",
        b"\xff\xfe",
        b"\0" * 20,
        b'{"time": 1, "event": "joined"}',
        b'{"time": "2026-11-26T09:00:00", "event": "joined"}',
        b'{"time": "2026-11-26T09:00:00Z", "event": 1}',
        b"[" * 100000,
    ],
)
def test_a_damaged_line_is_skipped(line: bytes, tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.record(EVENTS[0])
    with (tmp_path / audit.NAME).open("ab") as file:
        file.write(line + b"\n")
    assert len(audit.read(tmp_path) or ()) == 1


def test_a_flood_of_refusals_does_not_push_the_rest_out(tmp_path: Path) -> None:
    clock = [0.0]
    with opened(tmp_path, clock=lambda: clock[0]) as log:
        for number in range(1, 5001):
            log.record(audit_events.Refused("the pool is used up", f"192.0.2.1:{number}"))
        log.record(EVENTS[7])
        clock[0] += 3600 / audit.EACH_PER_HOUR
        log.record(audit_events.Refused("the pool is used up", "192.0.2.1:1"))
    events = [event["event"] for event in lines(tmp_path)]
    assert events == ["refused"] * audit.EACH_AT_ONCE + ["revoked", "omitted", "refused"]
    assert lines(tmp_path)[-2]["count"] == 5000 - audit.EACH_AT_ONCE


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (lambda _: "192.0.2.1:4000", lambda _: KEY),
        (lambda number: f"192.0.2.1:{number + 1}", lambda number: encode_key(number.to_bytes(32))),
        (lambda number: f"[2001:db8:0:{number:x}::1]:4000", lambda number: encode_key(number.to_bytes(32))),
        (lambda number: f"192.0.2.{number % 250}:4000", lambda _: KEY),
    ],
    ids=["one machine", "many keys", "an IPv6 /48", "many addresses"],
)
def test_one_token_holder_that_joins_for_a_month_does_not_push_the_rest_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: Callable[[int], str], key: Callable[[int], str]
) -> None:
    clock = [0.0]
    with caplog.at_level(logging.CRITICAL), opened(tmp_path, clock=lambda: clock[0]) as log:
        log.record(EVENTS[7])
        for number in range(6_000):
            log.record(audit_events.Joined("laptop", key(number), "10.0.0.2", source(number), new=False))
            clock[0] += 30 * 86400 / 6_000
    written = lines(tmp_path)
    assert written[0]["event"] == "revoked"
    joined = sum(event["event"] == "joined" for event in written)
    assert joined <= audit.EACH_AT_ONCE + 30 * 24 * audit.EACH_PER_HOUR
    assert joined + sum(event.get("count", 0) for event in written) == 6_000
    assert len(written) - joined < 30 * 24 + 10
    assert (tmp_path / audit.NAME).stat().st_size < audit.MAX_BYTES / 10


def test_very_many_token_holders_need_more_than_a_month_to_push_the_rest_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    longest = audit_events.Joined("\U0001f600" * 11, KEY, "100.100.100.100", "", new=False)

    def join(many: int) -> None:
        for _ in range(many):
            number = next(numbers)
            source = f"[2001:db8:{number:x}:1234:1234:1234:1234:1234]:40000"
            log.record(replace(longest, source=source, key=encode_key(number.to_bytes(32))))

    numbers = count()
    with caplog.at_level(logging.CRITICAL), opened(tmp_path, clock=lambda: clock[0]) as log:
        join(audit.ALL_AT_ONCE + 500)
        clock[0] += 3600
        join(2 * audit.ALL_PER_HOUR)
    written = [
        len(line) for line in (tmp_path / audit.NAME).read_bytes().splitlines(keepends=True) if b"joined" in line
    ]
    assert len(written) == audit.ALL_AT_ONCE + audit.ALL_PER_HOUR
    in_a_month = audit.ALL_AT_ONCE + 30 * 24 * audit.ALL_PER_HOUR
    assert in_a_month * max(written) + 30 * 24 * 200 < audit.MAX_BYTES


def test_new_peers_are_recorded_however_many_come_from_one_address(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        for number in range(500):
            log.record(audit_events.Joined("laptop", encode_key(number.to_bytes(32)), "10.0.0.2", "192.0.2.1:4000"))
    assert [event["event"] for event in lines(tmp_path)] == ["joined"] * 500


def test_a_line_of_an_older_version_is_shown_as_it_was() -> None:
    line = {"time": "2026-11-26T09:00:00Z", "event": "joined", "name": "laptop", "key": KEY}
    line |= {"address": "10.0.0.2", "source": "192.0.2.2:4000"}
    assert audit_events.sentence(line) == str(EVENTS[0]) == "laptop joined from 192.0.2.2:4000 as 10.0.0.2"
    assert audit_events.sentence({**line, "new": False}).startswith("laptop joined again from ")


def test_what_was_omitted_is_counted_at_the_end_too(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        for _ in range(audit.EACH_AT_ONCE + 3):
            log.record(EVENTS[2])
    assert lines(tmp_path)[-1]["count"] == 3


def test_control_characters_are_escaped_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "a\x1b[31m\x9b1m\r\nb\u202e\x7f"
    with caplog.at_level(logging.INFO), opened(tmp_path) as log:
        log.record(audit_events.Joined(hostile, hostile, hostile, hostile))
    with (tmp_path / audit.NAME).open("ab") as file:
        document = {"time": "2126-11-26T09:00:00Z", "event": hostile, hostile: hostile}
        file.write(json.dumps(document).encode() + b"\n")
    for arguments in (["audit", "--state", str(tmp_path)], ["audit", "--json", "--state", str(tmp_path)]):
        assert run(arguments) == 0
        out = capsys.readouterr().out
        assert all(character.isprintable() or character == "\n" for character in out.replace("\x7f", "\x7f"))
    assert all(message.isprintable() for message in caplog.messages)


def test_the_command_shows_times_and_sentences_and_filters_by_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path, wall=lambda: time.time() - 86400 * 8) as log:
        log.record(EVENTS[0])
    with opened(tmp_path) as log:
        log.record(EVENTS[7])
    assert run(["audit", "--state", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4}  laptop joined from 192.*", first)
    assert second.endswith("laptop was revoked, by uid 1000")
    assert run(["audit", "--since", "7d", "--json", "--state", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert [event["event"] for event in document["events"]] == ["revoked"]


def test_a_directory_without_a_log_is_an_error_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "--state", str(tmp_path)]) == 1
    assert "There is no audit log" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_log_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / audit.NAME).touch(0o000)
    assert run(["audit", "--state", str(tmp_path)]) == 4


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90", 90),
        ("10m", 600),
        ("12h", 43200),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("7d", 604800),
        ("1d2h", 93600),
        ("1w", 604800),
        ("1W2d3h4m5.5s", 788645.5),
    ],
)
def test_a_duration_is_understood(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    now = 1_800_000_000.0
    assert parse_since(text, now) == datetime.fromtimestamp(now, UTC) - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "d", "-1d", "1.h", ".5h", "7 d", "\u0667d", "2h1d", "1h1h", "1 h", "9999999999d", "9" * 99 + "d", "9" * 99],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["yesterday", "999999999d", "7x"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_since(text, time.time())


def test_a_time_may_have_a_zone_or_be_local() -> None:
    assert parse_since("2026-11-26T09:30Z", 0.0) == datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
    assert parse_since("2026-11-26", 0.0) == datetime(2026, 11, 26).astimezone()
