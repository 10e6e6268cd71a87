"""What the runs of the tests promise: a hang fails alone, a group has one worker, and CI needs the native plane."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# `-c` would have pytest look for the options of the folder where the tests lie.
OPTIONS = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
HANGING = """
import signal, time

def test_hangs():
    try:
        time.sleep(60)
    finally:
        print("its fixtures have ended")

def test_goes_on():
    signal.alarm(0)
"""
GROUPED = """
import pytest

@pytest.mark.xdist_group("together")
@pytest.mark.parametrize("number", range(20))
def test_in_a_group(number, worker_id):
    with open("workers", "a") as workers:
        workers.write(f"{worker_id}\\n")
"""
# Tests that need nothing.
PLAIN = f"{ROOT}/tests/unit/test_plane_window.py"
PYTEST = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
WITHOUT_NATIVE = f"import sys; sys.modules['rustguard_py._native'] = None; {PYTEST}"


def run(code: str, *arguments: str, ci: str = "") -> subprocess.CompletedProcess[str]:
    """Run pytest in a process of its own."""
    argv = [sys.executable, "-c", code, *OPTIONS, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CI"))}
    return subprocess.run(
        argv, env=environment | {"CI": ci}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_a_test_that_hangs_fails_and_the_others_go_on(tmp_path: Path, workers: str) -> None:
    file = tmp_path / "test_hanging.py"
    file.write_text(HANGING)
    done = run(PYTEST, str(file), workers, "-otimeout=1", "--noconftest")
    assert done.returncode == 1, done.stdout
    assert "Timeout (>1.0s)" in done.stdout
    assert "its fixtures have ended" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_the_tests_of_a_group_run_in_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    file = tmp_path / "test_grouped.py"
    workers = tmp_path / "workers"
    file.write_text(GROUPED.replace('"workers"', repr(str(workers))))
    done = run(PYTEST, str(file), "-n2", "--dist=loadgroup", "--noconftest", "-p", "support.groups")
    assert done.returncode == 0, done.stdout
    ran_in = workers.read_text().split()
    assert (len(ran_in), len(set(ran_in))) == (20, 1)


def test_a_run_without_the_native_plane_fails_under_ci_and_says_why() -> None:
    here = run(WITHOUT_NATIVE, PLAIN, "-n0")
    assert here.returncode == 0, here.stdout
    under_ci = run(WITHOUT_NATIVE, PLAIN, "-n0", ci="1")
    assert under_ci.returncode == 1, under_ci.stdout
    assert "all tests of the native plane: it isn't built here" in under_ci.stdout


def test_the_header_names_the_native_plane_that_is_tested() -> None:
    native = pytest.importorskip("rustguard_py._native", reason="the native plane isn't built here")
    # No longer quiet.
    shown = run(PYTEST, "-v", "--collect-only", PLAIN).stdout
    assert re.search(rf"^native plane: /\S*_native\S*, AEAD: {re.escape(native.aead())}$", shown, re.MULTILINE), shown
