"""Python processes that this program starts find its modules, wherever they lie."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rustguard_py
from rustguard_py.system.own_python import import_path

FOLDER = Path(rustguard_py.__file__).parent
# The unit that it writes is run by systemd, with a command that finds the modules by itself.
WITHOUT = {"cli/service.py"}


def test_a_module_that_only_our_path_has_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("print('found')\n")
    argv = [sys.executable, "-P", "-m", "only_here"]
    assert subprocess.run(argv, capture_output=True, check=False, cwd="/").returncode
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/", env=import_path())
    assert done.stdout == "found\n", done.stderr
    assert "" not in import_path()["PYTHONPATH"].split(":")


def test_whatever_starts_a_module_of_ours_gives_it_our_path() -> None:
    found = set()
    # In a checkout some folders are symbolic links, which glob doesn't follow.
    files = [Path(place, name) for place, _, names in os.walk(FOLDER, followlinks=True) for name in names]
    for path in (each for each in files if each.suffix == ".py"):
        tree = ast.parse(path.read_text())
        words = [each.value for each in ast.walk(tree) if isinstance(each, ast.Constant)]
        if "-m" in words and any(isinstance(each, str) and each.startswith("rustguard_py.") for each in words):
            found.add(str(path.relative_to(FOLDER)))
            names = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}
            assert "import_path" in names or str(path.relative_to(FOLDER)) in WITHOUT, path
    assert found >= {*WITHOUT, "rootless/helper.py", "cli/machine.py", "cli/bench.py", "cli/generate/pair.py"}
