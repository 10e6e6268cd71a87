"""Run the tests that reach a mutant, in a process of its own, until the first one fails."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from mutants import plugin
from mutants.generate import Mutant
from mutants.reach import ROOT, Reach, environment

# Seconds of tests for one mutant, shortest first. Code that nearly all tests run would take all of them each time.
MOST_SECONDS = 40.0
_MEMORY = 4 << 30
_PASSED = 0
# At its end pytest raises what the tests left unclosed, and then has no exit code of its own.
_RAISED = 70
# Also what pytest itself fails at: the same tests pass without a mutant.
_FAILED = (1, 2, 3, _RAISED)


def warm_up() -> None:
    """Import what is slow to import and isn't ours, once for all the processes that are forked."""
    for name in ("asyncio", "pytest", "hypothesis", "numpy", "cryptography.hazmat.primitives.ciphers.aead"):
        __import__(name)
    for name in ("nacl.bindings", "pyroute2", "rich.console", "click"):
        __import__(name)


def choose_tests(reach: Reach, mutant: Mutant) -> list[str]:
    """Return the tests for a mutant, shortest first.

    Of a test with many parameters, each comes as late as if it took the time of those before it too.
    """
    reached = reach.tests(mutant.path, mutant.line, mutant.last, imported=mutant.imported)
    spent: dict[str, float] = {}
    late: dict[str, float] = {}
    for test in sorted(reached, key=lambda test: (reach.seconds[test], test)):
        function = test.partition("[")[0]
        late[test] = spent[function] = spent.get(function, 0.0) + reach.seconds[test]
    tests = sorted(late, key=lambda test: (late[test], test))
    taken = 0.0
    chosen: list[str] = []
    for test in tests:
        taken += reach.seconds[test]
        if chosen and taken > MOST_SECONDS:
            break
        chosen.append(test)
    return chosen


def is_noticed(package: Path, mutant: Mutant, reach: Reach) -> bool:
    """Return whether a test fails with the mutant, or doesn't end. Afterwards the copy is as before."""
    tests = choose_tests(reach, mutant)
    usual = sum(reach.seconds[test] for test in tests)
    path = package / mutant.path
    original = path.read_text()
    # A compiled file of the same length and second would pass for the new one.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()
    path.write_text(mutant.code)
    only = package.parent / "only"
    only.write_text(json.dumps(tests))
    try:
        return _run(package, only, tests, limit=20.0 + 8.0 * usual)
    finally:
        path.write_text(original)


def _run(package: Path, only: Path, tests: Iterable[str], limit: float) -> bool:
    child = os.fork()
    if not child:
        try:
            code = _child(package, only, tests)
        except BaseException:
            traceback.print_exc()
            code = _RAISED
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    ends = time.monotonic() + limit
    status = None
    try:
        while time.monotonic() < ends:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            status = None
            time.sleep(0.02)
    finally:
        # Also what a test has started and left.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if status is None:
            os.waitpid(child, 0)
    if status is None:
        return True
    code = os.waitstatus_to_exitcode(status)
    if code not in (_PASSED, *_FAILED) and code >= 0:
        log = (package.parent / "log").read_text()
        raise RuntimeError(f"pytest ended with {code}:\n{log}")
    return code != _PASSED


def _child(package: Path, only: Path, tests: Iterable[str]) -> int:
    os.setpgid(0, 0)
    log = os.open(package.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(ROOT)
    os.environ.update(environment(package), **{plugin.ONLY: str(only)})
    sys.path[:0] = [str(package.parent), str(ROOT / "tests")]
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    import pytest

    files = sorted({test.partition("::")[0] for test in tests})
    # What `warm_up` imported is not rewritten, and need not be.
    options = ["-x", "-q", "--tb=native", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options.append(f"--basetemp={package.parent / 'scratch'}")
    return pytest.main([*options, *files], plugins=[plugin])
