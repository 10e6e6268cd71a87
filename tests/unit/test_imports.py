"""The checkout's rooms are imported as parts of `rustguard_py` only, never by the name of their folder.

Where the checkout's root is on the path, `import enroll` works. It makes every class of that room a second time, and
it fails where the package is installed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Folders at the root that are the package's by a symbolic link.
ROOMS = {link.name for link in (ROOT / "rustguard_py").iterdir() if link.is_symlink()}
FOLDERS = [*sorted(ROOMS), "rustguard_py", "tests", "bench", "scripts", "examples"]


def sources() -> Iterator[Path]:
    """Yield each Python file of the checkout once; `rglob` doesn't follow links."""
    yield from ROOT.glob("*.py")
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of each module that is imported by a name of its own, at whatever depth."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module
            case ast.Call(
                ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module"), [first, *_]
            ):
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield node.lineno, first.value


def wrong(source: str) -> list[tuple[int, str]]:
    """Return the line and the module of each import of a room by its folder."""
    return [(line, module) for line, module in imported(source) if module.partition(".")[0] in ROOMS]


def test_no_room_is_imported_by_the_name_of_its_folder() -> None:
    assert {"cli", "daemon", "embed", "enroll", "quick", "service", "state"} <= ROOMS
    found = {str(path.relative_to(ROOT)): wrong(path.read_text()) for path in sources()}
    assert len(found) > 200
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import enroll",
        "import enroll.client as client",
        "from cli import app",
        "from state.paths import running",
        "def later():\n    import daemon",
        "import_module('quick.up')",
        "importlib.import_module('state')",
    ],
)
def test_each_way_to_import_one_is_found(line: str) -> None:
    assert len(wrong(line)) == 1


@pytest.mark.parametrize(
    "line", ["from rustguard_py.cli import app", "from . import state", "from .state import x", "import statement"]
)
def test_other_imports_pass(line: str) -> None:
    assert wrong(line) == []


def programs(path: Path) -> Iterator[str]:
    """Yield the code that a test file hands to other processes as strings, and that names the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "rustguard_py" in node.value:
            with suppress(SyntaxError):
                ast.parse(node.value)
                yield node.value


def test_what_other_processes_are_told_to_import_is_there() -> None:
    missing, seen = [], 0
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in [node for code in programs(path) for node in ast.walk(ast.parse(code))]:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rustguard_py"):
                module = import_module(str(node.module))
                seen += 1
                missing += [
                    f"{path.name}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not (alias.name in {"*", "_native"} or hasattr(module, alias.name))
                    and find_spec(f"{node.module}.{alias.name}") is None
                ]
    assert seen > 10
    assert missing == []
