"""What a test may need of the machine: skipped with the reason where it isn't there, an error under CI.

With the environment variable CI set, a run fails at its end if a test was skipped for such a reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from rustguard_py.lab import Lab
from support import machine

_NEEDS: dict[str, tuple[str, Callable[[], str]]] = {
    "needs_namespaces": ("network namespaces and TUN devices", machine.why_no_namespaces),
    "needs_wireguard_go": ("wireguard-go and wg", machine.why_no_wireguard_go),
    "needs_kernel_wireguard": ("a kernel with WireGuard", machine.why_no_kernel_wireguard),
    "needs_second_uid": ("a second user id", machine.why_no_second_uid),
}
# Everything there needs hosts, which `lab` gives.
_WITH_HOSTS = [Path(__file__).parent / name for name in ("namespaces", "netns")]
_MISSED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, and keep the checkout out of our children's way.

    `python -c` looks for modules in the working folder first, and there ./rustguard_py hides the installed package.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    # Neither the folder of examples (a run as root would leave one that others can't write) nor a slow machine nor
    # chance shall make a property fail: the examples are the same in each run, and others in the long one.
    settings.register_profile(
        "project",
        database=None,
        deadline=None,
        derandomize=os.environ.get("RUSTGUARD_SOAK") != "1",
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("project")
    config.stash[_MISSED] = []
    for name, (what, _) in _NEEDS.items():
        config.addinivalue_line("markers", f"{name}: needs {what}")


def pytest_report_header() -> str:
    """Say what the native plane seals with: what the processor lacks isn't tested."""
    try:
        from rustguard_py import _native
    except ImportError:
        return "native plane: not built"
    return f"native plane: AEAD: {_native.aead()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in a folder that needs hosts."""
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in _WITH_HOSTS):
            item.add_marker("needs_namespaces")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose need isn't met."""
    for name, (what, why_not) in _NEEDS.items():
        if item.get_closest_marker(name) and (reason := cache(why_not)()):
            item.config.stash[_MISSED].append(f"{item.nodeid}: needs {what}: {reason}")
            pytest.skip(f"needs {what}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under CI, what couldn't be run counts as failed."""
    if os.environ.get("CI") and session.config.stash[_MISSED] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests made a CI run fail by being skipped."""
    missed = terminalreporter.config.stash[_MISSED]
    if os.environ.get("CI") and missed:
        terminalreporter.section("not run here, which fails a CI run", red=True)
        for line in missed:
            terminalreporter.line(line)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Hosts on one machine, gone after the test."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="session")
def soak() -> bool:
    """Whether this is the long run (`make soak`), with every repetition that a promise is stated with."""
    return os.environ.get("RUSTGUARD_SOAK") == "1"
