"""What `make mutants` adds to pytest: which tests run, shortest first, and how long each takes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

# Files with the ids of the tests to run, shortest first; and for the times of those that pass.
ONLY, TIMES = "MUTANTS_ONLY", "MUTANTS_TIMES"
_taken: dict[str, float] = {}
_failed: set[str] = set()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep those that are to run, in their order."""
    if ONLY in os.environ:
        order = {test: place for place, test in enumerate(json.loads(Path(os.environ[ONLY]).read_text()))}
        items[:] = sorted((each for each in items if each.nodeid in order), key=lambda each: order[each.nodeid])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how long a test took."""
    _taken[report.nodeid] = _taken.get(report.nodeid, 0.0) + report.duration
    if not report.passed:
        _failed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the times down, unless this is a worker."""
    if TIMES in os.environ and not hasattr(session.config, "workerinput"):
        passed = {test: round(taken, 3) for test, taken in _taken.items() if test not in _failed}
        Path(os.environ[TIMES]).write_text(json.dumps(passed))
