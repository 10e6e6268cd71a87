"""What a daemon imports before it looks at anything, and that the forks of `support.preloaded` begin with no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import preloaded

# It stops where a daemon would begin to run.
_CHECK = """
import sys
from importlib import import_module
module, *sys.argv[1:] = sys.argv[1:]
modules = sys.argv.pop().split(",")
import rustguard_py.cli.foreground

def look(*_):
    imported = set(sys.modules)
    for name in modules:
        import_module(f"rustguard_py.{name}")
    print(*sorted(set(sys.modules) - imported))
    # For the portable plane, and for tables.
    print(*sorted({"numpy", "rich"} & imported))

rustguard_py.cli.foreground.run = look
import_module(module).main()
"""
_FILE = "[Interface]\nPrivateKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("serve", "rustguard_py.cli.app serve --pool 10.150.0.0/24"),
        ("join", "rustguard_py.cli.app join 192.0.2.1"),
        ("up", "rustguard_py.cli.app up {folder}/wg0.conf --foreground"),
        ("wg", "rustguard_py.cli.wg -f wg0"),
    ],
)
def test_a_start_imports_nothing_heavy_and_a_fork_begins_with_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str
) -> None:
    monkeypatch.setenv("RUSTGUARD_TOKEN", "maple-comet-fjord")
    (tmp_path / "wg0.conf").write_text(_FILE)
    (tmp_path / "wg0.conf").chmod(0o600)
    argv = [sys.executable, "-c", _CHECK, *words.format(folder=tmp_path).split()]
    done = subprocess.run([*argv, ",".join(preloaded._KINDS[kind])], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n\n", "")
