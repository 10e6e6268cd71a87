"""`rustguard bench`, as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys

from rustguard_py import engine
from rustguard_py.data_path import DataPath


def test_each_engine_here_is_measured_and_what_auto_takes_is_said() -> None:
    command = [sys.executable, "-P", "-m", "rustguard_py.cli", "bench", "--rounds", "1", "--seconds", "0.2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
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
