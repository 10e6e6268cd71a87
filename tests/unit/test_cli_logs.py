"""What the daemons log: from which level on, and how a line begins on a terminal, in a file and in the journal."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rustguard_py.cli import failures, wg
from rustguard_py.cli.app import run
from rustguard_py.cli.foreground import LoopErrors
from rustguard_py.cli.logs import LineFormatter, is_journal

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"
LEVELS = ["debug", "info", "warning", "error"]
# A daemon in small: it prints a line, logs one of each level, and can go to the background in between.
DAEMON = """
import logging, sys
from pathlib import Path
import click
from rustguard_py.cli.foreground import Background, in_the_background, run
from rustguard_py.cli.verb import log_level_option

@click.command()
@log_level_option("info")
@click.option("--log", type=Path)
def command(log):
    background = Background(log, in_the_background("server", log.parent)) if log else None

    async def work(voice):
        if background:
            background.ready()
        voice.say("hello")
        for name in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger("rustguard_py.any"), name)("it is %s", name)

    run(work)

command()
"""


def daemon(*arguments: str, stderr: int = subprocess.PIPE, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RUSTGUARD_LOG", "JOURNAL_STREAM")
    }
    argv = [sys.executable, "-c", DAEMON, *arguments]
    return subprocess.run(argv, stderr=stderr, text=True, env=environment | variables, timeout=60, check=False)


def levels(text: str) -> list[str]:
    return re.findall(r"it is (\w+)$", text, re.MULTILINE)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_lets_itself_and_all_above_through(level: str) -> None:
    wanted = LEVELS[LEVELS.index(level) :]
    assert levels(daemon("--log-level", level.upper()).stderr) == wanted
    assert levels(daemon(RUSTGUARD_LOG=level).stderr) == wanted


def test_the_option_counts_before_the_variable_and_info_is_the_default() -> None:
    assert levels(daemon("--log-level", "error", RUSTGUARD_LOG="debug").stderr) == ["error"]
    assert levels(daemon().stderr) == LEVELS[1:]


def test_a_log_line_begins_with_local_date_time_and_offset() -> None:
    said = daemon(TZ="Asia/Kolkata").stderr.splitlines()
    assert said[0] == "hello"
    assert all(re.fullmatch(rf"{STAMP} it is \w+", line) and "+05:30 " in line for line in said[1:])


def test_the_journal_gets_priorities_in_place_of_times(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as journal:
        status = os.fstat(journal.fileno())
        stream = f"{status.st_dev}:{status.st_ino}"
        daemon("--log-level", "debug", stderr=journal.fileno(), JOURNAL_STREAM=stream)
    assert (tmp_path / "journal").read_text().splitlines() == [
        "hello",
        "<7>it is debug",
        "<6>it is info",
        "<4>it is warning",
        "<3>it is error",
    ]


def test_a_journal_that_somebody_else_writes_to_changes_nothing(tmp_path: Path) -> None:
    other = (tmp_path / "other").open("w")
    with other:
        status = os.fstat(other.fileno())
        said = daemon(JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}").stderr
    assert re.fullmatch(rf"{STAMP} it is info", said.splitlines()[1])


def test_in_the_background_every_line_of_the_log_file_has_its_time(tmp_path: Path) -> None:
    log, journal = tmp_path / "log", tmp_path / "journal"
    with journal.open("w") as stderr:
        status = os.fstat(stderr.fileno())
        stream = f"{status.st_dev}:{status.st_ino}"
        # What it writes to from then on is no journal, whatever it was started with.
        assert daemon("--log", str(log), stderr=stderr.fileno(), JOURNAL_STREAM=stream).returncode == 0
    said = journal.read_text()
    assert "In the background, process" in said
    assert f"rustguard stop {tmp_path}" in said, "not the usual state directory, so others may run next to it"
    deadline = 200
    while len(lines := log.read_text().splitlines()) < 4 and deadline:
        deadline -= 1
        subprocess.run(["sleep", "0.05"], check=True)
    assert [re.sub(rf"^{STAMP} ", "", line) for line in lines] == [
        "hello",
        "it is info",
        "it is warning",
        "it is error",
    ]
    assert all(re.match(STAMP, line) for line in lines)


def test_each_line_of_an_error_has_its_priority_and_names_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RUSTGUARD_STATE", str(tmp_path / "client"))
    monkeypatch.setattr(failures.Program, "state", None)
    with (tmp_path / "journal").open("w") as journal:
        status = os.fstat(journal.fileno())
        monkeypatch.setattr(sys, "stderr", journal)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert is_journal()
        try:
            int("broken")
        except ValueError:
            record = logging.LogRecord("any", logging.ERROR, "", 0, "internal error", (), sys.exc_info())
        lines = LineFormatter().format(record).splitlines()
    assert lines[0] == "<3>internal error"
    assert lines[-1].startswith("<3>ValueError: ")
    assert all(line.startswith("<3>") for line in lines)
    assert "Traceback" in Path(lines[-1].rpartition("report: ")[2]).read_text()


@pytest.mark.parametrize("verb", ["serve", "join", "up wg0"])
def test_an_unknown_level_is_exit_code_2_and_names_the_levels(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run([*verb.split(), "--log-level", "loud"]) == 2
    said = capsys.readouterr().err
    assert "--log-level" in said
    assert f"Choose from: {', '.join(LEVELS)}." in said
    monkeypatch.setenv("RUSTGUARD_LOG", "loud")
    assert run(verb.split()) == 2
    assert "RUSTGUARD_LOG" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "variables", "logged"),
    [
        ([], {}, ["warning", "error"]),
        ([], {"LOG_LEVEL": "verbose"}, ["info", "warning", "error"]),
        ([], {"LOG_LEVEL": "silent"}, []),
        ([], {"LOG_LEVEL": "silent", "RUSTGUARD_LOG": "error"}, ["error"]),
        (["--log-level", "debug"], {"LOG_LEVEL": "error"}, LEVELS),
    ],
)
def test_rustguard_wg_takes_log_level_as_wireguard_go_does_unless_told_otherwise(
    arguments: list[str],
    variables: dict[str, str],
    logged: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    async def serve(*_: object) -> None:
        for name in LEVELS:
            getattr(logging.getLogger("rustguard_py.any"), name)("it is %s", name)

    monkeypatch.setattr("rustguard_py.quick.wg_daemon.serve", serve)
    monkeypatch.setattr("rustguard_py.cli.foreground._no_core_dump", lambda: None)
    monkeypatch.setattr("rustguard_py.quick.wg_daemon.directory_of", lambda _: tmp_path / "wg0")
    for name in ("LOG_LEVEL", "RUSTGUARD_LOG", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        wg.command.main(["--foreground", "wg0", *arguments], standalone_mode=False)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert levels(capsys.readouterr().err) == logged


def test_an_unknown_level_of_rustguard_wg_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rustguard-wg", "wg0", "--log-level", "loud"])
    with pytest.raises(SystemExit) as ended:
        wg.main()
    assert ended.value.code == 2
    assert "debug, info, warning, error" in capsys.readouterr().err


def test_the_same_error_of_the_loop_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0

    class Loop(asyncio.BaseEventLoop):
        def time(self) -> float:
            return now

    errors = LoopErrors()
    loop = Loop()
    try:
        for now in (100.0, 100.1, 159.9, 160.0):  # noqa: B007 - read by the loop's clock
            errors(loop, {"message": "no descriptor", "exception": OSError(24, "Too many open files")})
        errors(loop, {"message": "no descriptor", "exception": OSError(12, "Cannot allocate memory")})
        assert len(caplog.records) == 3
        # Thousands of different ones take no memory.
        for number in range(1000):
            errors(loop, {"message": f"fault {number}"})
        assert len(caplog.records) == 1003
        assert len(errors._quiet_until) <= 64
    finally:
        loop.close()
