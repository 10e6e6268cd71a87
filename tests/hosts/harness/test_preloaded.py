"""A program that is a fork of a preloaded process does what the same program does that was started."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.model.errors import RustGuardError
from support import preloaded
from support.preloaded import Preloaded, Switch
from support.product import PATIENCE, POOL, Machine, Site, eventually


@pytest.fixture
def home(lab: Lab, tmp_path: Path) -> Machine:
    Switch.on = True
    return Site(lab, tmp_path).home()


@pytest.mark.parametrize(
    "words", ["status", "open 0", "serve --pool 10.0.0.0/33", "join -h", "up nowhere", "close -x"]
)
def test_it_says_the_same_and_ends_with_the_same_code(home: Machine, words: str) -> None:
    forked = home.run(words, check=False)
    assert isinstance(preloaded._Program.of(home.command(words), home.host, None), preloaded._Program)
    Switch.on = False
    started = home.run(words, check=False)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)
    assert forked.stdout + forked.stderr


def test_a_failure_is_an_error_with_what_was_said(home: Machine) -> None:
    with pytest.raises(RustGuardError, match="ended with 3: rustguard: No daemon runs"):
        home.run("status")


def test_it_runs_in_its_host_in_a_session_of_its_own_and_ends_as_it_was_ended(home: Machine) -> None:
    program = home.serve(f"--pool {POOL}")
    assert type(program).__name__ == Preloaded.__name__
    assert program.poll() is None
    own, hosts = (Path(f"/proc/{pid}/ns/net").readlink() for pid in (program.pid, home.host.pid))
    assert own == hosts
    assert os.getsid(program.pid) == program.pid
    assert home.status()["pid"] == program.pid
    program.terminate()
    assert program.wait(PATIENCE) == program.returncode == 0
    killed = home.start("serve")
    killed.kill()
    assert killed.wait(PATIENCE) == -signal.SIGKILL


def test_what_still_runs_ends_with_its_host(lab: Lab, home: Machine) -> None:
    program = home.serve(f"--pool {POOL}")
    lab.close()
    assert program.returncode == 0
    eventually(lambda: not Path(f"/proc/{program.pid}").exists(), what="its end")


@pytest.mark.parametrize("name", ["PYTHONWARNINGS", "LANG"])
def test_a_variable_that_python_reads_at_its_start_has_a_program_started(home: Machine, name: str) -> None:
    assert preloaded._Program.of(home.command("status"), home.host, {"COLUMNS": "100"}) is not None
    assert preloaded._Program.of(home.command("status"), home.host, {name: "other"}) is None


@pytest.mark.fresh
def test_a_test_of_the_start_has_its_programs_started(lab: Lab, tmp_path: Path) -> None:
    home = Site(lab, tmp_path).home()
    assert preloaded._Program.of(home.command("status"), home.host, None) is None
