"""The imports between rooms are those of the table in docs/internals/architecture.md, and they only go down."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

# One worker reads the package once for all tests.
pytestmark = pytest.mark.xdist_group("architecture")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/internals/architecture.md"
TOP_LEVEL = ("cli", "embed", "quick", "enroll", "service", "rootless", "vpp", "daemon", "state")
PACKAGE = "rustguard_py"
# The native extension is the plane's own: the table speaks of Python.
NATIVE = f"{PACKAGE}._native"
FRONT = f"{PACKAGE}/__init__"
# Not imported from the front, as it has that itself.
VERSION = f"{PACKAGE}.__version__"

Arrow = tuple[str, str]


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name; symlinks are not followed."""
    found = {}
    for top in (*TOP_LEVEL, PACKAGE):
        for path in (ROOT / top).rglob("*.py"):
            place = path.relative_to(ROOT)
            if any((ROOT / parent).is_symlink() for parent in place.parents):
                continue
            parts = place.with_suffix("").parts
            name = ".".join(parts if parts[0] == PACKAGE else (PACKAGE, *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def room(module: str, known: dict[str, Path]) -> str:
    """Return the room of a module: its folder below the package, or the package's name for its root.

    The package itself is a room above all others. It names what programs import.
    """
    if module == PACKAGE:
        return FRONT
    parts = module.split(".")[1:]
    if known[module].name != "__init__.py":
        parts = parts[:-1]
    return "/".join(parts) or PACKAGE


def imported(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            if node.module and node.module.split(".")[0] == PACKAGE:
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    if name != VERSION:
                        yield name if name in known or name == NATIVE else node.module


@cache
def actual_arrows() -> dict[Arrow, list[str]]:
    known = modules()
    arrows: dict[Arrow, list[str]] = {}
    for module, path in known.items():
        here = room(module, known)
        for target in imported(ast.parse(path.read_text()), known):
            if target != NATIVE and (there := room(target, known)) != here:
                arrows.setdefault((here, there), []).append(f"{module} imports {target}")
    return arrows


def table() -> dict[str, set[str]]:
    """Return the page's table, top to bottom: which rooms each room may import."""
    section = PAGE.read_text().partition("\n## Rooms\n")[2].partition("\n## ")[0]
    rooms: dict[str, set[str]] = {}
    last = ""
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 2 or cells[0] == "room" or set(cells[0]) == {"-"}:
            continue
        # A row without a room goes on with the one before.
        last = cells[0].strip("`").rstrip("/") or last
        rooms.setdefault(last, set()).update(name.rstrip("/") for name in re.findall(r"`([\w/]+)`", cells[1]))
    return rooms


def test_each_import_between_rooms_is_in_the_table() -> None:
    allowed = {(here, there) for here, targets in table().items() for there in targets}
    arrows = actual_arrows()
    print(f"{len(arrows)} arrows between {len({here for arrow in arrows for here in arrow})} rooms")
    assert {arrow: why for arrow, why in arrows.items() if arrow not in allowed} == {}


def test_the_table_names_no_arrow_that_is_not_there() -> None:
    allowed = {(here, there) for here, targets in table().items() for there in targets}
    assert allowed - set(actual_arrows()) == set()


def test_the_table_has_every_room_and_its_arrows_only_go_down() -> None:
    order = list(table())
    known = modules()
    assert {room(module, known) for module in known} <= set(order)
    upward = [
        (here, there)
        for here, targets in table().items()
        for there in targets
        if order.index(there) <= order.index(here)
    ]
    assert upward == []


def test_the_rules_that_stand_whatever_the_table_says() -> None:
    arrows = set(actual_arrows())
    inside = {here for here, _ in arrows if (ROOT / PACKAGE / here).is_dir() and not (ROOT / here).is_dir()}
    assert {"planes", "kernel", "protocol", "system", "lab"} & inside, "the rooms under rustguard_py/ were looked at"
    assert [arrow for arrow in arrows if arrow[0] in inside and arrow[1] == PACKAGE] == []
    assert [arrow for arrow in arrows if arrow[0].startswith("quick") and arrow[1].startswith("enroll")] == []
    ends = ("enroll/client", "enroll/server")
    assert [arrow for arrow in arrows if arrow[0] in ends and arrow[1] in ends] == []
    assert [arrow for arrow in arrows if arrow[0] == "model"] == []


def test_an_import_inside_a_function_is_seen_too() -> None:
    known = modules()
    tree = ast.parse("def late():\n    from rustguard_py.cli import app\n    import rustguard_py.state.paths\n")
    assert list(imported(tree, known)) == ["rustguard_py.cli.app", "rustguard_py.state.paths"]
