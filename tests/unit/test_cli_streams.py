"""Standard streams as people and services give them: closed, full, or in an encoding without our characters."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = ["rustguard_py.cli", "rustguard_py.cli.wg"]
KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
# The command, whose `genkey` fails as a bug would.
BROKEN = """
from rustguard_py.cli import genkey, main
from rustguard_py.cli.secret import check_token
def fail():
    check_token("maple-comet-fjord")
    raise LookupError("{key} and maple-comet-fjord")
genkey.clamp = lambda _: fail()
main()
"""


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run(["sh", "-c", line], capture_output=True, env=environment, timeout=120, check=False)


@pytest.fixture(scope="module")
def latin1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a real locale in ISO 8859-1."""
    places = tmp_path_factory.mktemp("locales")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(places / "de_DE.ISO-8859-1")],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("localedef can't make a locale here")
    return {"LOCPATH": str(places), "LC_ALL": "de_DE.ISO-8859-1", "LANG": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["--help", "--nonsense"])
def test_a_closed_stream_is_no_traceback(module: str, streams: str, words: str) -> None:
    done = shell(f'exec "$PYTHON" -P -m {module} {words} {streams}')
    assert done.returncode == (0 if words == "--help" else 2)
    assert b"Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", ["--help", "genkey", "completion bash"])
def test_a_full_disk_is_an_error_of_one_line(words: str) -> None:
    done = shell(f'exec "$PYTHON" -P -m rustguard_py.cli {words} >/dev/full')
    assert (done.returncode, done.stderr) == (1, b"rustguard: No space left on device.\n")


def test_a_reader_that_went_away_is_quiet() -> None:
    done = shell('("$PYTHON" -P -m rustguard_py.cli --help; echo "code $?" >&2) | true')
    assert done.stderr in (b"code 1\n", b"code 0\n")


@pytest.mark.parametrize("words", ["--help", "serve -h", "status", "peers -h"])
def test_an_encoding_without_our_characters_gets_replacements(latin1: dict[str, str], words: str) -> None:
    for variables in (latin1, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "ascii"}):
        done = shell(f'exec "$PYTHON" -P -m rustguard_py.cli {words}', **variables)
        assert b"Traceback" not in done.stderr
        assert done.returncode == (3 if words == "status" else 0)


def test_a_locale_of_one_byte_shows_a_table(latin1: dict[str, str]) -> None:
    code = (
        "from rustguard_py.cli.failures import settle_streams; settle_streams()\n"
        "from rustguard_py.cli.render import Column, show_table\n"
        "show_table([Column('N\\u00c4ME'), Column('\\u2193', right=True)], [['\\u65e5\\u672c', '1\\u2026']])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, **latin1}, check=True)
    assert done.stdout.split() == [b"N\xc4ME", b"?", b"??", b"1?"]


def test_an_error_that_nobody_foresaw_is_a_line_and_a_report(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(key=KEY), "genkey"],
        capture_output=True,
        text=True,
        env={**os.environ, "RUSTGUARD_STATE": str(state / "client")},
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [report] = state.glob("rustguard-report-*.txt")
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert str(report) in done.stderr
    text = report.read_text()
    assert "Traceback" in text
    assert "LookupError: (a key) and ***" in text
    assert KEY not in text + done.stderr
    assert "maple-comet-fjord" not in text + done.stderr


def test_a_failing_callback_task_and_thread_are_a_line_and_a_report_each(tmp_path: Path) -> None:
    code = """
import asyncio, threading
from rustguard_py.cli import failures, foreground
failures.install()
def fail(which):
    raise LookupError(which)
async def work(voice):
    asyncio.get_running_loop().call_soon(fail, "callback")
    thread = threading.Thread(target=fail, args=("thread",))
    thread.start(); thread.join()
    await asyncio.sleep(0.05)
foreground.run(work)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "RUSTGUARD_STATE": str(tmp_path / "client")},
        check=True,
    )
    assert "Traceback" not in done.stderr
    for which in ("callback", "thread"):
        assert f"LookupError: {which}" in done.stderr
    assert done.stderr.count("; report: ") == 2
    assert list(tmp_path.glob("rustguard-report-*.txt"))
