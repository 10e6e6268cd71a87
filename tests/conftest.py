"""What a test may need of the machine: skipped with the reason where it isn't there, an error under CI.

With the environment variable CI set, a run fails at its end if a test was skipped for such a reason, or if the native
plane isn't built.

`make test` has several workers (pytest-xdist), as most tests wait more than they compute: all that a test makes has a
name or a namespace of its own. What floods is marked `alone`: it comes last, when no other test runs.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import signal
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from rustguard_py.cli import failures
from rustguard_py.lab.hosts import Lab
from support import attack_table, container, debian_root, groups, machine, network, played_vpp, preloaded, testpmd

_NEEDS: dict[str, tuple[str, Callable[[], str]]] = {
    "needs_namespaces": ("network namespaces and TUN devices", machine.why_no_namespaces),
    "needs_wireguard_go": ("wireguard-go and wg", machine.why_no_wireguard_go),
    "needs_testpmd": ("DPDK's testpmd", testpmd.why_not),
    "needs_vpp_papi": ("vpp-papi, the client of VPP's API", played_vpp.why_not),
    "needs_kernel_wireguard": ("a kernel with WireGuard", machine.why_no_kernel_wireguard),
    "needs_packages": ("the Debian packages and fresh roots for them", debian_root.why_no_packages),
    "needs_containers": ("buildah and crun, and the Debian packages", container.why_no_containers),
    "needs_second_uid": ("a second user id", machine.why_no_second_uid),
}
_MOST_WORKERS = 8
# The long run repeats more: a test may take this many times its limit.
_SOAK_TIMES = 12
# Everything there needs hosts, which `lab` gives.
_WITH_HOSTS = [Path(__file__).parent / name for name in ("hosts", "conformance")]
_NUMBERS = itertools.count()
# Of a test's report, as `user_properties` come to us from a worker too.
_MISSED = "missed"


class _Missed:
    """Which tests couldn't be run here: listed at the end of a CI run, which then fails."""

    def __init__(self) -> None:
        why_not = _native()[1]
        self._lines = [f"all tests of the native plane: {why_not}"] if why_not else []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup":
            self._lines += [f"{report.nodeid}: {why}" for what, why in report.user_properties if what == _MISSED]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._lines and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._lines:
            terminalreporter.section("not run here, which fails a CI run", red=True)
            for line in self._lines:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, and keep the checkout out of our children's way.

    `python -c` looks for modules in the working folder first, and there ./rustguard_py hides the installed package.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    # A shell's `&` starts a program with it ignored, and daemons that a test starts would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Also for what runs between two tests; each test has its own.
    os.environ["RUSTGUARD_SYSTEM_RUNTIME"] = "/nonexistent"
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
    for name, (what, _) in _NEEDS.items():
        config.addinivalue_line("markers", f"{name}: needs {what}")
    config.addinivalue_line("markers", "fresh: no program is a fork, as starts are what it tests")
    config.addinivalue_line("markers", "alone: floods, and so runs while no other test does")
    config.addinivalue_line("markers", "attack(name): an attack, or the control of one: a row of `make attack`")
    config.addinivalue_line("markers", "fault(*rows): rows of docs/internals/reliability.md that it tests; -k row_3_")
    # A worker's reports go to who started it, who then decides.
    if _is_worker(config):
        config.pluginmanager.register(groups)
    else:
        config.pluginmanager.register(attack_table.AttackTable())
        if os.environ.get("CI"):
            config.pluginmanager.register(_Missed())


def _native() -> tuple[str, str]:
    """Return which native plane is tested, and why there is none; one of them is empty."""
    try:
        from rustguard_py import _native
    except ImportError as error:
        return "", f"it isn't built here: {error}"
    # What the processor lacks isn't tested, so the AEAD that it chooses counts too.
    return f"{_native.__file__}, AEAD: {_native.aead()}", ""


def pytest_report_header() -> str:
    """Return which native plane is tested."""
    return f"native plane: {''.join(_native())}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Give a core three workers, as tests of hosts mostly wait."""
    return min(3 * len(os.sched_getaffinity(0)), _MOST_WORKERS)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _seconds(item: pytest.Item) -> float:
    """Return a test's time limit."""
    marked = item.get_closest_marker("timeout")
    return float(marked.args[0] if marked else item.config.getini("timeout"))


# Before pytest-xdist reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in a folder that needs hosts, put last what runs alone, and give the long run its time."""
    for item in items:
        if attack_table.is_long():
            item.add_marker(pytest.mark.timeout(_SOAK_TIMES * _seconds(item)), append=False)
        needs_lab = isinstance(item, pytest.Function) and "lab" in item.fixturenames
        if needs_lab or any(item.path.is_relative_to(folder) for folder in _WITH_HOSTS):
            item.add_marker("needs_namespaces")
        if _is_alone(item):
            item.add_marker(pytest.mark.xdist_group("alone"))
        item.extra_keyword_matches.update(f"row_{row}_" for mark in item.iter_markers("fault") for row in mark.args)
    items.sort(key=_is_alone)


# Around pytest-timeout's: a test's time begins when the others let it run.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """In a worker, have what is to run alone wait for the others, and the others for it."""
    if not _is_worker(item.config):
        return (yield)
    # This file is what all workers have, and locks go with who holds them.
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if _is_alone(item) else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            # What a test has left running may still have it open.
            fcntl.flock(lock, fcntl.LOCK_UN)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose need isn't met."""
    for name, (what, why_not) in _NEEDS.items():
        if item.get_closest_marker(name) and (reason := cache(why_not)()):
            item.user_properties.append((_MISSED, f"needs {what}: {reason}"))
            pytest.skip(f"needs {what}: {reason}")
    preloaded.Switch.on = os.environ.get("RUSTGUARD_SOAK") != "1" and item.get_closest_marker("fresh") is None


@pytest.fixture
def started() -> Iterator[list[testpmd.Testpmd]]:
    """All of DPDK's testpmd that a test has started; what still runs is killed."""
    every: list[testpmd.Testpmd] = []
    yield every
    for each in every:
        each.kill()


@pytest.fixture(scope="session", autouse=True)
def own_network() -> None:
    """Hide this machine's interfaces from all tests. The other workers don't see what they make, either."""
    network.enter()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hide this machine's daemons and settings from a test and from the programs that it starts.

    Nothing is made: directly in the folder of all tests, which is ours alone, whoever needs them may make them.
    """
    number = next(_NUMBERS)
    for variable, name in (
        ("RUSTGUARD_RUNTIME", "run"),
        ("RUSTGUARD_SYSTEM_RUNTIME", "system"),
        ("RUSTGUARD_SYSTEM_STATE", "state"),
        ("XDG_STATE_HOME", "state"),
    ):
        monkeypatch.setenv(variable, str(tmp_path_factory.getbasetemp() / f"{name}-{number}"))
    for variable in ("RUSTGUARD_STATE", "RUSTGUARD_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    # A report of an error that a test provokes isn't for this machine's administrator.
    monkeypatch.setattr(failures.Program, "state", tmp_path_factory.getbasetemp())


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Hosts on one machine, gone after the test."""
    with Lab() as made:
        yield made


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name: sockets lie in it, whose paths may have 107 bytes, and a worker's are longer."""
    return tmp_path_factory.mktemp(re.sub(r"\W", "_", request.node.name)[:12])


@pytest.fixture(scope="session")
def soak() -> bool:
    """Whether this is the long run (`make soak`), with every repetition that a promise is stated with."""
    return os.environ.get("RUSTGUARD_SOAK") == "1"
