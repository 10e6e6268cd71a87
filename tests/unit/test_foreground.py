"""Signals to a daemon that starts: it takes back what it made, and then the signal ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Until it is stopped, with a second signal while it takes back what it made.
DAEMON = """
import asyncio, os, signal, sys
from rustguard_py.cli.foreground import run
async def work(_):
    try:
        print("made", flush=True)
        await asyncio.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)
        print("taken back", flush=True)
run(work)
"""
# Its start ends just as the signal comes, and so ignores it.
LATE = """
import asyncio
from rustguard_py.cli.foreground import run
from rustguard_py.daemon.runtime import stop_on_signals
async def work(_):
    print("made", flush=True)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        pass
    stopped = asyncio.Event()
    stop_on_signals(stopped.set)
    await stopped.wait()
    print("stopped", flush=True)
run(work)
"""
BACKGROUND = """
import os, pathlib, sys, time
from rustguard_py.cli.foreground import Background
Background(pathlib.Path(sys.argv[1]), str)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def _start(program: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_start_once_everything_is_taken_back(number: signal.Signals) -> None:
    with _start(DAEMON) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "made\n"
        program.send_signal(number)
        assert program.stdout.read() == "taken back\n"
        assert program.wait(60) == -number


def test_a_signal_at_the_last_moment_of_a_start_stops_the_daemon() -> None:
    with _start(LATE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "made\n"
        program.send_signal(signal.SIGTERM)
        assert program.stdout.read() == "stopped\n"
        assert program.wait(60) == 0


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    ignoring = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{DAEMON}"
    with _start(ignoring) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "made\n"
        program.send_signal(signal.SIGHUP)
        program.send_signal(signal.SIGTERM)
        assert program.stdout.read() == "taken back\n"
        assert program.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_process_at_the_terminal_ends_the_one_in_the_background(
    tmp_path: Path, number: signal.Signals
) -> None:
    with _start(BACKGROUND, str(tmp_path / "log")) as program:
        assert program.stdout is not None
        child = int(program.stdout.readline())
        assert child != program.pid
        program.send_signal(number)
        assert program.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
