"""`rustguard bench`, as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from rustguard_py import engine
from rustguard_py.data_path import DataPath

BENCH = [sys.executable, "-P", "-m", "rustguard_py.cli", "bench", "--rounds", "1", "--seconds", "0.2"]


def test_each_engine_here_is_measured_and_what_auto_takes_is_said() -> None:
    done = subprocess.run([*BENCH, "--json"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    measured = {each["name"]: each["medians"] for each in document["engines"]}
    assert {"no tunnel", "portable"} <= set(measured)
    assert ("native" in measured) is engine.has_native()
    for name, figures in measured.items():
        assert figures["up"] > 0, name
        assert figures["down"] > 0, name
        assert figures["ping"] > 0, name
        assert (figures["cpu"] is None) is (name in {"no tunnel", "kernel"})
    assert document["auto"]["name"] == engine.choose(DataPath()).name
    assert set(measured) | set(document["missing"]) >= set(engine.ENGINES) - {"auto"}


def test_what_a_server_of_it_says_as_it_ends_is_shown_line_by_line() -> None:
    environment = {**os.environ, "RUSTGUARD_LOG": "loud"}
    done = subprocess.run(BENCH, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 1
    assert "serve ended with exit code 2\n" in done.stderr
    assert "  rustguard: RUSTGUARD_LOG: 'loud' isn't one of the choices.\n" in done.stderr
    assert "\\x0a" not in done.stderr


def test_a_list_of_offloads_that_is_wrong_is_refused_before_anything_runs() -> None:
    environment = {**os.environ, "RUSTGUARD_OFFLOADS": "no-bogus"}
    done = subprocess.run(BENCH, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 2
    assert "There is no offload 'no-bogus'" in done.stderr
