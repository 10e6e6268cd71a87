"""A limit of descriptors, threads or memory: a clear error with a true fix, no traceback, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rustguard_py.engine import has_native
from rustguard_py.lab.hosts import Lab
from support.product import TOKEN, Machine, Site, eventually

# A start must do with little.
pytestmark = pytest.mark.fresh

CONF = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nAddress = 10.9.0.1/24\n"
CONF += "[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nEndpoint = localhost:9\n"
ENGINES = ["native", "portable"] if has_native() else ["portable"]
SOAK = bool(os.environ.get("RUSTGUARD_SOAK"))
VALUES = range(8, 25) if SOAK else range(8, 20, 3)
# For a start that the limit leaves alone, and that is then ended.
RUN = ["timeout", "-s", "TERM", "15"]


def _start(machine: Machine, engine: str, verb: str, before: list[str]) -> tuple[subprocess.Popen[str], Machine]:
    words = {"serve": "serve --pool 10.150.0.0/24 --open", "up": "up"}[verb]
    argv = machine.command(words)
    if verb == "up":
        file = machine.state.with_suffix(".d") / f"{machine.state.name[:15]}.conf"
        file.parent.mkdir()
        file.write_text(CONF)
        file.chmod(0o600)
        argv[4:4] = [str(file), "--foreground"]
    environment = {**machine.environment(TOKEN), "RUSTGUARD_ENGINE": engine}
    return machine.host.popen([*RUN, *before, *argv], log=machine.log, env=environment), machine


def _check(program: subprocess.Popen[str], machine: Machine, says: str, fix: str) -> bool:
    """Return whether the limit ended the program, which then said so."""
    code = program.wait(60)
    said = machine.log.read_text()
    assert "Traceback" not in said, said
    assert "a fault of RustGuard" not in said, said
    if code == 124:
        return False
    assert "tried again" not in said, said
    assert "never awaited" not in said, said
    assert says in said, (code, said)
    assert fix in said, (code, said)
    assert not list(machine.runtime.glob("*.undo")) + list(machine.runtime.glob("*.sock")), said
    return True


@pytest.mark.fault(47)
@pytest.mark.parametrize("engine", ENGINES)
def test_too_few_descriptors_are_an_error_that_says_so(lab: Lab, tmp_path: Path, engine: str) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    before = home.network()
    ended = 0
    for verb in ("serve", "up"):
        for value in VALUES:
            machine = site.machine(f"{verb}{value}", home.host)
            program, _ = _start(machine, engine, verb, ["prlimit", f"--nofile={value}"])
            ended += _check(program, machine, "oo many open files", "ulimit -n")
    assert home.network() == before
    assert ended >= 2 * 4
    tried = 2 * len(VALUES)
    print(f"row 47: {tried} starts with 8 to {VALUES[-1]} descriptors, {engine}: {ended} ended with the true reason")


@contextmanager
def _group(controller: str, file: str, value: str) -> Iterator[list[str]]:
    """Make a control group with a limit; yield the words before a command that is to run in it."""
    path = Path(f"/sys/fs/cgroup/{controller}/rustguard-test-{os.getpid()}")
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (path / file).exists():
            pytest.skip(f"there is no {file} here")
        (path / file).write_text(value)
        yield ["sh", "-c", f'echo $$ > {path}/cgroup.procs; exec "$@"', "sh"]
    finally:
        path.rmdir()


@pytest.mark.fault(47)
@pytest.mark.parametrize("engine", ENGINES)
def test_too_few_threads_are_an_error_that_says_so(lab: Lab, tmp_path: Path, engine: str) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    before = home.network()
    for value in range(1, 6) if SOAK else (1, 4):
        with _group("pids", "pids.max", str(value)) as words:
            program, machine = _start(site.machine(f"serve{value}", home.host), engine, "serve", words)
            assert _check(program, machine, "refused a further thread", "ulimit -u")
    assert home.network() == before
    print(f"row 47: few threads, {engine}: each start ended with the true reason")


@pytest.mark.fault(47)
@pytest.mark.parametrize("engine", ENGINES)
def test_too_little_memory_is_an_error_and_no_kill(lab: Lab, tmp_path: Path, engine: str) -> None:
    home = Site(lab, tmp_path).home()
    before = home.network()
    with _group("memory", "memory.limit_in_bytes", "60M") as words:
        assert _check(*_start(home, engine, "serve", words), "isn't enough memory", "MemoryMax=")
    assert home.network() == before
    print(f"row 47: 60 MiB, {engine}: the start ended with its reason")


@pytest.mark.fault(47)
@pytest.mark.parametrize("engine", ENGINES)
def test_too_small_an_address_space_is_an_error_and_no_abort(lab: Lab, tmp_path: Path, engine: str) -> None:
    """Each refused call has its own words. Rust's own answer would be an abort, which has a core file and no fix."""
    site = Site(lab, tmp_path)
    home = site.home()
    before = home.network()
    values = range(40, 420, 20) if SOAK else (60, 120, 220)
    ended = 0
    for value in values:
        limited = ["prlimit", f"--as={value << 20}"]
        program, machine = _start(site.machine(f"as{value}", home.host), engine, "serve", limited)
        code, said = program.wait(60), machine.log.read_text()
        assert "Traceback" not in said, said
        assert "memory allocation of" not in said, said
        assert "a fault of RustGuard" not in said, said
        if code != 124:
            ended += 1
            assert code in (1, 4), (code, said)
            # A library of numpy ends the process by itself, with its own sentence.
            assert "`ulimit -v`" in said or "OpenBLAS error: Memory allocation" in said, said
    eventually(lambda: home.network() == before, what="the end of what was made")
    assert ended > 0
    print(
        f"row 47: {ended} of {len(values)} starts in {values[0]} to {values[-1]} MiB, {engine}, ended with the reason"
    )
